"""The language model of an rlvr run: a small one of characters, or a pretrained one."""

from typing import Any, Callable, NamedTuple

import jax
import ml_collections

from experiments.rlvr_config import model_path
from jaxreward.networks import lora
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies import adapted, lagged, language
from jaxreward.tasks import tokenizer as tokenizers
from jaxreward.training.config import resolve
from jaxreward.training.exits import ConfigError
from jaxreward.types import Policy


class Model(NamedTuple):
    """What a policy is made of.

    Attributes:
      network: its sizes and variants.
      tokenizer: of all texts.
      to_prompts: from the task's prompts to what the policy reads.
      load: `(shardings) -> params`, see `networks.weights.load_params`; None for a network that
        starts from scratch.
    """

    network: TransformerConfig
    tokenizer: tokenizers.Tokenizer
    to_prompts: Callable[[list[str]], list[str]]
    load: Callable[[Any], Any] | None


def open_model(config: ml_collections.ConfigDict) -> Model:
    """The model of `config.model`: of its sizes, or from the files at its `path`.

    Raises:
      ConfigError: the files are not a model, or need a package that is not installed.
    """
    if "path" in config.model:
        try:
            return _pretrained(config.model)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"config.model.path = {config.model.path!r}: {error}") from error
    chars = tokenizers.make_tokenizer(resolve(config.task.alphabet))
    network = TransformerConfig(vocab_size=chars.vocab_size, **config.model.to_dict())
    return Model(network, chars, list, None)


def _pretrained(settings: ml_collections.ConfigDict) -> Model:
    from jaxreward.networks import weights  # reads files with packages of jaxreward[lm]
    from jaxreward.tasks import pretrained_tokenizer

    path = model_path(settings.path)
    checkpoint = weights.open_checkpoint(
        path, dtype=settings.dtype, remat=settings.remat, scan=settings.scan
    )
    own = pretrained_tokenizer.open_pretrained(path)
    if own.tokenizer.vocab_size > checkpoint.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {own.tokenizer.vocab_size} ids; allowed are the "
            f"{checkpoint.config.vocab_size} of the weights"
        )

    def to_prompts(texts: list[str]) -> list[str]:
        return pretrained_tokenizer.chat_prompts(own, texts, system=settings.system)

    def load(shardings: Any) -> Any:
        return weights.load_params(
            checkpoint, param_dtype=settings.param_dtype, shardings=shardings
        )

    return Model(checkpoint.config, own.tokenizer, to_prompts if settings.chat else list, load)


def learner(config: ml_collections.ConfigDict, policy: Policy, base: Any) -> Policy:
    """The policy that learns: `policy` itself, or with `model.lora_rank` adapters of `base`.

    With `config.lagged` its parameters hold an older copy of themselves (`policies.lagged`).

    Args:
      config: of the run.
      policy: from `make_policy`.
      base: its parameters; traced where this is called in a jitted function.
    """
    rank = config.model.get("lora_rank", 0)
    policy = adapted.adapt(policy, base, lora.lora_config(rank)) if rank else policy
    return lagged.with_lagged(policy) if config.get("lagged", False) else policy


def first_params(config: ml_collections.ConfigDict, policy: Policy, base: Any) -> Any:
    """What every run learns, at its beginning: `base`, or adapters that change nothing."""
    if config.model.get("lora_rank", 0):
        return learner(config, policy, base).init(jax.random.key(config.seed))
    return lagged.start(base) if config.get("lagged", False) else base


def make_policy(
    config: ml_collections.ConfigDict,
    model: Model,
    layout: language.Layout = language.Layout(),
    top_k: int | None = None,
) -> Policy:
    """The policy that samples at `config.sampler`; `top_k=1` makes it greedy."""
    return language.language_policy(
        model.network,
        max_new_tokens=config.sampler.max_new_tokens,
        stop_tokens=model.tokenizer.stops,
        pad_token=model.tokenizer.pad,
        temperature=config.sampler.temperature,
        top_k=config.sampler.top_k if top_k is None else top_k,
        top_p=config.sampler.top_p,
        layout=layout,
    )
