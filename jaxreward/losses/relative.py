"""Regression of log-probability ratios on differences of reward (REBEL, arXiv 2404.16767)."""

from typing import Any, Callable

import jax
import jax.numpy as jnp

from jaxreward import masked
from jaxreward.checks import Number, check_number
from jaxreward.losses.reduction import with_weight
from jaxreward.types import Policy, Signal


def relative_objective(
    policy: Policy, *, eta: Number = 1.0
) -> Callable[[Any, Signal], tuple[jax.Array, dict[str, jax.Array]]]:
    """The loss of a policy, as `training.step.make_update_step` takes it.

    For samples `y = 2 j` and `y' = 2 j + 1` of a prompt's group, with log-ratios summed over
    decisions, the mean over pairs of

        (eta (log pi(y) / old(y) - log pi(y') / old(y')) - (A(y) - A(y')))^2

    Reads `trajectories`, `advantages` `[P, G]` and `mask`; a pair of which a reward is missing
    does not count.

    Args:
      policy: what is trained.
      eta: > 0.

    Raises:
      ValueError: `eta` <= 0; when traced, an odd group or dense advantages.
    """
    check_number("eta", eta, lambda x: x > 0, "> 0")

    def loss(params: Any, signal: Signal) -> tuple[jax.Array, dict[str, jax.Array]]:
        shape = signal.advantages.shape
        if len(shape) != 2 or shape[1] % 2:
            raise ValueError(f"advantages of shape {shape}; allowed are [P, G] with G even")
        trajectories = signal.trajectories
        scores = policy.log_prob(params, trajectories)
        old = jnp.where(trajectories.mask, trajectories.log_probs, 0.0)
        ratio = jnp.where(trajectories.mask, scores.log_probs, 0.0) - old
        ratio = masked.sum(ratio, trajectories.mask, axis=2)
        gap = lambda x: x[:, 0::2] - x[:, 1::2]
        both = signal.mask[:, 0::2] & signal.mask[:, 1::2]
        off = eta * gap(ratio) - gap(jax.lax.stop_gradient(signal.advantages))
        size = {"policy/log_ratio_abs_mean": masked.mean(jnp.abs(ratio), signal.mask)}
        metrics = with_weight(size, masked.count(signal.mask))
        return masked.mean(jnp.square(off), both), {**metrics, "weight/loss": masked.count(both)}

    return loss
