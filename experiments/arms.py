"""From a config to the reward chains of its arms."""

from typing import Sequence

import jax.numpy as jnp
import ml_collections

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
    "aux/true_rewards",
)
"""What the rlvr runner puts into the signal beside the rewards."""


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
        return base.chain(*noise, seen, true, after, provided=provided, on_inert="allow")
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
