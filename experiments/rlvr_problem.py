"""What an rlvr run is about: the data, the policy, the verifier, the warm start."""

import contextlib
import pathlib
from typing import Any, Iterator, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from experiments.rlvr_config import check_indices
from experiments.rlvr_model import Model, make_policy, open_model
from experiments.verification import Verification
from jaxreward.policies import supervised
from jaxreward.rewards import patterns
from jaxreward.tasks import datasets, pipeline
from jaxreward.training.config import build
from jaxreward.training.exits import ConfigError
from jaxreward.types import Policy


class Problem(NamedTuple):
    """The task and the policy.

    Attributes:
      train: rows of the training split, see `pipeline.encode_examples`.
      warm: rows that the warm start is trained on.
      evaluated: rows of the first `config.evaluation.prompts` of its split.
      prompt_types: names behind `prompt_type`.
      model: network, tokenizer and weights.
      policy: samples at `config.sampler`.
      fingerprint: of the data.
    """

    train: pipeline.Batch
    warm: pipeline.Batch
    evaluated: pipeline.Batch
    prompt_types: tuple[str, ...]
    model: Model
    policy: Policy
    fingerprint: str


def load_problem(config: ml_collections.ConfigDict, workdir: str) -> Problem:
    """Prepares the data under the workdir and builds the policy.

    Raises:
      ConfigError: no such data, damaged ones, a split that they lack, a package that they need,
        characters outside the alphabet, a model that cannot be opened, too few rates by index.
    """
    data_dir = pathlib.Path(workdir) / config.task.data_dir
    with _refused(f"config.task.dataset = {config.task.dataset!r}"):
        dataset = datasets.prepare(config.task.dataset, data_dir)
    sizes = {"prompt_type": len(dataset.prompt_types), "output_form": len(patterns.ANSWER_FORMS)}
    check_indices(config, sizes)
    with _refused("config.model or config.task.alphabet"):
        model = open_model(config)
    with _refused(f"config.task.dataset = {config.task.dataset!r}"):
        splits = pipeline.load_arrays(dataset, model.tokenizer, to_prompts=model.to_prompts)
    kept = np.arange(min(config.task.prompts, len(splits["train"]["prompt_id"])))
    splits["train"] = pipeline.take(splits["train"], kept)
    warm, evaluated = (_split(splits, config, room) for room in ("warm_start", "evaluation"))
    count = min(config.evaluation.prompts, len(evaluated["prompt_id"]))
    return Problem(
        train=splits["train"],
        warm=warm,
        evaluated=pipeline.take(evaluated, np.arange(count)),
        prompt_types=dataset.prompt_types,
        model=model,
        policy=make_policy(config, model),
        fingerprint=dataset.fingerprint,
    )


@contextlib.contextmanager
def _refused(what: str) -> Iterator[None]:
    """Data and models that cannot be used are the config's fault."""
    try:
        yield
    except ConfigError:
        raise
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{what}: {error}") from error


def _split(splits: dict[str, pipeline.Batch], config, section: str) -> pipeline.Batch:
    name = config[section].split
    if name not in splits:
        raise ConfigError(f"config.{section}.split = {name!r}; allowed are {', '.join(splits)}")
    return splits[name]


@contextlib.contextmanager
def open_verification(
    config: ml_collections.ConfigDict, problem: Problem
) -> Iterator[Verification]:
    """The verifier of `config.verifier`; owns its worker processes.

    Raises:
      ConfigError: it cannot be: no such function, or a number out of range.
    """
    with contextlib.ExitStack() as stack:
        verifier = build(config.verifier, tokenizer=problem.model.tokenizer)
        try:
            verification = stack.enter_context(verifier)
        except ValueError as error:
            raise ConfigError(f"config.verifier: {error}") from error
        yield verification


def warm_start(
    config: ml_collections.ConfigDict, problem: Problem, shardings: Any = None
) -> Any:
    """Pretrained or fresh parameters after supervised updates: the start and the KL reference.

    The whole stage is one jitted scan of seconds, so it is repeated rather than restored
    when a run resumes; the same config gives the same bits.

    Args:
      config: of the run; no updates with `warm_start.steps` 0.
      problem: from `load_problem`.
      shardings: where pretrained parameters are to lie, a tree as theirs; None: anywhere.
    """
    settings = config.warm_start
    key = jax.random.fold_in(jax.random.key(config.seed), _WARM_START)
    loaded = problem.model.load(shardings) if problem.model.load else None
    if not settings.steps:
        return jax.jit(problem.policy.init)(key) if loaded is None else loaded
    rows = pipeline.supervised_sequences(pipeline.device_arrays(problem.warm))
    if settings.prompts_too:
        place = jnp.arange(rows.tokens.shape[1], dtype=jnp.int32)[None, :]
        rows = rows._replace(loss_mask=place < rows.lengths[:, None])
    count = problem.warm["prompt_id"].shape[0]
    batch_size = min(settings.batch_size, count)
    schedule = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    optimizer = optax.adam(schedule)
    loss_fn = supervised.supervised_loss(problem.model.network)

    def body(carry, step):
        params, opt_state = carry
        indices = pipeline.batch_indices(key, step, count, batch_size)
        batch = jax.tree.map(lambda leaf: leaf[indices], rows)
        (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    @jax.jit
    def run(loaded):
        params = problem.policy.init(key) if loaded is None else loaded
        start = (params, optimizer.init(params))
        (params, _), losses = jax.lax.scan(body, start, jnp.arange(settings.steps))
        return params, losses

    return run(loaded)[0]


_WARM_START = 1 << 20  # far from the steps that other keys are folded with
