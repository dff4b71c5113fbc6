"""From a config to the reward chains of its arms."""

from typing import Sequence

import jax.numpy as jnp
import ml_collections

from experiments import answer_scores
from jaxreward import masked
from jaxreward.training.config import build
from jaxreward.training.exits import ConfigError
from jaxreward.transforms import advantage, base
from jaxreward.transforms.base import RewardTransform
from jaxreward.types import Signal

PROVIDED = (
    "trajectories",
    "aux/prompt_type",
    "aux/output_id",
    "aux/output_form",
    "aux/answer_id",
    "aux/reference_id",
    "aux/true_rewards",
)
"""What the rlvr runner puts into the signal beside the rewards."""


def provided(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """`PROVIDED`, and what the config asks for beside it."""
    votes = ("aux/initial_majority_id",) if config.task.votes else ()
    scores = answer_scores.PROVIDED if config.get("likelihood") else ()
    asked = (*config.get("features", ()), *scores)
    return PROVIDED + votes + tuple(f"aux/{name}" for name in asked)


def build_arms(
    config: ml_collections.ConfigDict, provided: Sequence[str] = PROVIDED
) -> dict[str, RewardTransform]:
    """The chain of every arm.

    An arm is a tuple of names of `config.transforms`, in the order of the chain. What comes
    after its noise is compared with the same part of its `config.controls` arm on the same
    rewards (metrics `audit/...`), and the observed and true success rates are recorded.

    Args:
      config: of a runner with `arms`, `transforms`, `controls` and `inert`.
      provided: what the runner puts into the signal beside the rewards.

    Raises:
      ValueError: an arm names a transform that is not there, or its chain cannot work.
    """
    provided = tuple(provided)
    return {name: _build_arm(config, name, provided) for name in config.arms}


def _build_arm(
    config: ml_collections.ConfigDict, name: str, provided: tuple[str, ...]
) -> RewardTransform:
    noise, tail = _split(config, name)
    control = config.controls.get(name)
    on_inert = "allow" if name in config.inert else "error"
    try:
        after = base.chain(*tail, provided=provided + _written(noise), on_inert=on_inert)
        if control:
            _, control_tail = _split(config, control)
            after = advantage.audited(after, base.chain(*control_tail, provided=provided))
        seen = base.record("reward/observed", _observed)
        true = base.record("reward/true", _true, reads=("aux/true_rewards",))
        measured = [
            _measured_rates(config.transforms[stage].by, config.transforms[stage].num)
            for stage in config.arms[name]
            if "by" in config.transforms[stage]
        ]
        chain = (*noise, seen, true, *measured, after)
        return base.chain(*chain, provided=provided, on_inert="allow")
    except ValueError as error:
        raise ConfigError(f"config.arms.{name} = {tuple(config.arms[name])}: {error}") from error


def _split(config: ml_collections.ConfigDict, name: str):
    """The transforms of an arm: those that make the observed reward, and the rest."""
    for stage in config.arms[name]:
        if stage not in config.transforms:
            raise ValueError(
                f"arms.{name} names {stage!r}; allowed are {', '.join(config.transforms)}"
            )
    built = [build(config.transforms[stage]) for stage in config.arms[name]]
    count = sum(1 for transform in built if transform.spec.role == "noise")
    return built[:count], built[count:]


def _written(transforms: list[RewardTransform]) -> tuple[str, ...]:
    return tuple(field for transform in transforms for field in transform.spec.writes)


def _observed(signal: Signal):
    return masked.mean(signal.rewards, signal.mask)


def _true(signal: Signal):
    true = signal.aux["true_rewards"]
    return masked.mean(true, jnp.isfinite(true))


def _measured_rates(by: str, num: int) -> RewardTransform:
    """Records the batch's real error rates by index, to hold estimates against.

    Metrics `channel/false_positive_<i>` and `channel/false_negative_<i>`, 0 where the batch has
    no sample of that truth; `..._errors` over `..._count` is the rate of several batches.
    """

    def update(key, signal: Signal) -> Signal:
        del key
        true, index = signal.aux["true_rewards"], signal.aux[by]
        index = index if index.ndim == 2 else index[:, None]
        wrong = (signal.rewards > 0.5) != (true > 0.5)
        known = signal.mask & jnp.isfinite(true)
        found = {}
        for i in range(num):
            for name, truth in (("false_positive", true <= 0.5), ("false_negative", true > 0.5)):
                mask = known & truth & (index == i)
                found[f"channel/{name}_{i}"] = masked.mean(wrong.astype(jnp.float32), mask)
                found[f"channel/{name}_{i}_errors"] = masked.count(mask & wrong)
                found[f"channel/{name}_{i}_count"] = masked.count(mask)
        return signal.replace(metrics={**signal.metrics, **found})

    reads = ("rewards", "mask", "aux/true_rewards", f"aux/{by}")
    return base.stateless(update, base.Spec("measured_rates", "record", reads, ("metrics",)))
