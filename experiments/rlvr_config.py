"""What a config of `experiments.rlvr` must satisfy, checked before anything heavy is loaded."""

import importlib.util
import math
import pathlib

import ml_collections

from jaxreward.training import check
from jaxreward.training import config as config_lib
from jaxreward.training.exits import ConfigError

_POSITIVE = (
    "seeds",
    "steps",
    "prompts_per_step",
    "updates_per_rollout",
    "task.prompts",
    "sampler.max_new_tokens",
    "hyper.learning_rate",
    "evaluation.every",
    "evaluation.prompts",
    "evaluation.samples",
    "safety.max_skipped_in_a_row",
    "checkpoint.every",
)
_TUNED = ("tune.seeds", "tune.steps", "tune.learning_rate")
_SIZES = ("model.width", "model.layers", "model.heads", "model.kv_heads", "model.intermediate")
_NOT_NEGATIVE = (
    "warm_start.steps",
    "sampler.top_k",
    "hyper.kl_coefficient",
    "safety.spike_factor",
    "runs_at_a_time",
    "task.votes",
    "evaluation.start_samples",
)
YARDSTICKS = ("start", "start_greedy", "start_best")
SETTINGS = ("equal", "tuned")
"""Which hyper-parameters arms are compared at: `config.hyper`, or each arm's own best."""

METRICS = ("eval/true_accuracy", "eval/observed_accuracy")
ANSWERS = "eval/answer_log_prob"
"""What arms are tuned for and claims are on, the first by default; the last with `likelihood`."""


def settings(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Those of `SETTINGS` that a run compares: `config.settings`, all where it has none."""
    return tuple(config.get("settings", SETTINGS))


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError, naming the key, the value and what is allowed."""
    check.required(config, "method", "task.dataset", "verifier.fn")
    check.required(config, "optimizer.fn", "loss.fn")
    check.positive(config, *_POSITIVE)
    for path in _NOT_NEGATIVE:
        check.at_least(config, path, 0)
    if "tuned" in settings(config):
        check.required(config, "tune.learning_rate", "tune.kl_coefficient")
        check.positive(config, *_TUNED)
        check.at_least(config, "tune.kl_coefficient", 0)
        _check_metric(config, "tune")
    check.at_least(config, "seed", 0)
    check.at_least(config, "checkpoint.keep", 2)
    check.at_least(config, "group_size", 2, "a group baseline")
    _check_tokens(config, "prompts_per_step", "group_size")
    _check_tokens(config, "evaluation.prompts", "evaluation.samples")
    for name in ("b1", "b2"):
        if name in config.optimizer:
            check.in_range(config, f"optimizer.{name}", 0, 1, "[)")
    for name in ("workers", "timeout_s"):
        if name in config.verifier:
            check.positive(config, f"verifier.{name}")
    check.at_least(config, "sampler.temperature", 1e-6)  # `policies.sampling.COLDEST`
    check.in_range(config, "sampler.top_p", 0, 1, "(]")
    check.in_range(config, "loss.clip_low", 0, 1)
    check.at_least(config, "loss.clip_high", 0)
    check.choice(config, "loss.kl_estimator", ("k1", "k2", "k3"))
    check.choice(config, "loss.objective", ("clip", "cispo", "reinforce"))
    check.choice(config, "loss.ratio", ("token", "sequence", "sequence_token"))
    check.choice(config, "loss.normalize", ("token", "sequence", "constant"))
    if config.prompts_per_step > config.task.prompts:
        raise ConfigError(
            f"config.prompts_per_step = {config.prompts_per_step}; allowed is 1 to task.prompts = "
            f"{config.task.prompts}"
        )
    if config.warm_start.steps:
        check.positive(config, "warm_start.batch_size", "warm_start.learning_rate")
    if "path" in config.model:
        check.choice(config, "model.dtype", ("float32", "bfloat16"))
        check.choice(config, "model.param_dtype", ("float32", "bfloat16"))
        check.at_least(config, "model.lora_rank", 0)
        model_path(config.model.path)
    else:
        check.required(config, "task.alphabet")
        _check_model(config)
    _check_arms(config)
    _check_own(config)
    _check_rates(config)


def model_path(text: str) -> pathlib.Path:
    """Where a pretrained model is: `DIR`, `FILE.gguf`, or `PACKAGE:FILE` of an installed package.

    Raises:
      ConfigError: there is nothing.
    """
    package, colon, inside = text.partition(":")
    path = pathlib.Path(text)
    if colon:
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(
                f"config.model.path = {text!r}: the package {package} is not installed; allowed "
                "are a directory, a .gguf file, and PACKAGE:FILE of one that is"
            )
        path = pathlib.Path(spec.submodule_search_locations[0]) / inside
    if not path.exists():
        raise ConfigError(f"config.model.path = {text!r}: there is no {path}")
    return path


def _check_tokens(config: ml_collections.ConfigDict, prompts: str, samples: str) -> None:
    """JAX counts them in int32."""
    paths = prompts, samples, "sampler.max_new_tokens"
    sizes = [config_lib.get(config, path) for path in paths]
    if None not in sizes and math.prod(sizes) >= 2**31:
        named = " x ".join(f"config.{path} = {size}" for path, size in zip(paths, sizes))
        raise ConfigError(f"{named} tokens at once; allowed are fewer than 2^31")


def _check_model(config: ml_collections.ConfigDict) -> None:
    check.positive(config, *_SIZES)
    model = config.model
    if model.width % model.heads or (model.width // model.heads) % 2:
        raise ConfigError(
            f"config.model.heads = {model.heads}; allowed are numbers that divide model.width = "
            f"{model.width} into even parts"
        )
    if model.heads % model.kv_heads:
        raise ConfigError(
            f"config.model.kv_heads = {model.kv_heads}; allowed are divisors of model.heads = "
            f"{model.heads}"
        )


def _check_arms(config: ml_collections.ConfigDict) -> None:
    if "settings" in config:
        check.required(config, "settings")
        check.choice(config, "settings", SETTINGS)
    if not config.arms:
        raise ConfigError("config.arms is empty; needed is at least one arm")
    for arm in config.arms:
        check.required(config, f"arms.{arm}")
        check.choice(config, f"arms.{arm}", list(config.transforms))
    for arm in config.controls:
        _check_names(config, f"controls.{arm}", (arm, config.controls[arm]))
    _check_names(config, "inert", config.inert)
    for name in config.claims:
        claim = config.claims[name]
        known = YARDSTICKS if config.evaluation.start_samples else ()
        _check_names(config, f"claims.{name}", (claim.better, claim.worse), known)
        check.choice(config, f"claims.{name}.setting", settings(config))
        check.at_least(config, f"claims.{name}.margin", 0)
        _check_metric(config, f"claims.{name}")


def _check_metric(config: ml_collections.ConfigDict, path: str) -> None:
    """`<path>.metric`, where there is one, is measured."""
    if "metric" in config_lib.get(config, path):
        measured = METRICS + ((ANSWERS,) if config.get("likelihood") else ())
        check.choice(config, f"{path}.metric", measured)


def _check_own(config: ml_collections.ConfigDict) -> None:
    """What single arms change are numbers that the config has."""
    own = config.get("own", {})
    _check_names(config, "own", own)
    for arm in own:
        for section in own[arm]:
            if section not in ("loss", "optimizer"):
                raise ConfigError(
                    f"config.own.{arm} changes {section!r}; allowed are 'loss', 'optimizer'"
                )
            for key in own[arm][section]:
                known = config[section].get(key, None)
                if isinstance(known, bool) or not isinstance(known, (int, float)):
                    raise ConfigError(
                        f"config.own.{arm}.{section}.{key}: config.{section} has no number "
                        f"{key!r} to change"
                    )


def _check_names(config: ml_collections.ConfigDict, path: str, names, known=()) -> None:
    for name in names:
        if name not in config.arms and name not in known:
            raise ConfigError(
                f"config.{path} names the arm {name!r}; allowed are {', '.join(config.arms)}"
            )


def _check_rates(config: ml_collections.ConfigDict) -> None:
    """Noise rates are probabilities; where an arm corrects for them, it can work."""
    corrected = bool(config.controls)
    for name in config.transforms:
        transform = config.transforms[name]
        source = f"transforms.{name}.source"
        if "source" in transform and "false_positive" in transform.source:
            paths = (f"{source}.false_positive", f"{source}.false_negative")
            check.rate(config, *paths)
            if corrected:
                check.correctable(config, *paths)
        for key in ("negative_share", "positive_share"):
            if key in transform:
                check.in_range(config, f"transforms.{name}.{key}", 0, 1)


def check_indices(config: ml_collections.ConfigDict, sizes: dict[str, int]) -> None:
    """Every table of rates that an arm uses has an entry for each value of its index.

    Args:
      config: of a runner with `arms` and `transforms`.
      sizes: number of values by entry of `aux`; other entries are not checked.

    Raises:
      ConfigError: one has fewer; what the rest would get is NaN, or no reward.
    """
    for name in dict.fromkeys(stage for arm in config.arms for stage in config.arms[arm]):
        for path, entry, count in _tables(config.transforms[name], f"transforms.{name}"):
            if count < sizes.get(entry, 0):
                raise ConfigError(
                    f"config.{path} has rates for {count} values of {entry!r}; allowed are at "
                    f"least the {sizes[entry]} that there are"
                )


def _tables(section: ml_collections.ConfigDict, path: str):
    """Path, index and length of the tables of rates in a transform's config."""
    if "by" in section and "num" in section and section.by:
        yield f"{path}.num", section.by, section.num
    if "name" in section and isinstance(section.get("false_positive"), (tuple, list)):
        yield f"{path}.false_positive", section.name, len(section.false_positive)
    for key, value in section.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from _tables(value, f"{path}.{key}")
