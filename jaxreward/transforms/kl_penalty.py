"""The divergence from a reference as a part of the reward, decision by decision."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxreward import masked
from jaxreward.checks import Number, check_number
from jaxreward.transforms.base import RewardTransform, Spec
from jaxreward.types import Signal


class KLController(NamedTuple):
    """Keeps a KL divergence near a target (arXiv 1909.08593, section 2.2).

    Attributes:
      target: > 0, nats per trajectory.
      horizon: > 0, trajectories over which the coefficient reacts.
    """

    target: Number = 6.0
    horizon: Number = 10000.0


def controlled_coefficient(
    coefficient: Float[Array, ""],
    kl: Float[Array, ""],
    trajectories: Float[Array, ""],
    controller: KLController,
) -> Float[Array, ""]:
    """`coefficient (1 + clip(kl / target - 1, -0.2, 0.2) trajectories / horizon)`, at least 0.

    Args:
      coefficient: before.
      kl: of the batch, nats per trajectory.
      trajectories: in the batch.
      controller: target and horizon.
    """
    error = jnp.clip(kl / controller.target - 1.0, -0.2, 0.2)
    return jnp.maximum(coefficient * (1.0 + error * trajectories / controller.horizon), 0.0)


def token_rewards(
    rewards: Float[Array, "P G"],
    log_probs: Float[Array, "P G S"],
    reference_log_probs: Float[Array, "P G S"],
    mask: Bool[Array, "P G S"],
    *,
    coefficient: Number = 0.1,
) -> Float[Array, "P G S"]:
    """`-coefficient (ln pi - ln ref)` of each decision, and the outcome at the last one.

    The per-token reward of policy optimisation from preferences (arXiv 1909.08593, 2310.02743),
    for a return with discount. Its sum is the reward of `kl_penalty`.

    Args:
      rewards: of the outcome, finite.
      log_probs: of the decisions, under the policy that took them.
      reference_log_probs: under the reference.
      mask: False for padding, which gets 0.
      coefficient: >= 0; may be traced.

    Raises:
      ValueError: a known coefficient is negative.
    """
    check_number("coefficient", coefficient, lambda x: x >= 0, ">= 0")
    after = jnp.cumsum(mask[:, :, ::-1], axis=2, dtype=jnp.int32)[:, :, ::-1]
    outcome = jnp.where(mask & (after == 1), rewards[:, :, None], 0.0)
    return outcome - coefficient * _log_ratio(log_probs, reference_log_probs, mask)


def kl_penalty(
    coefficient: Number = 0.1, *, controller: KLController | None = None, axis_name=None
) -> RewardTransform:
    """The outcome less `coefficient (ln pi - ln ref)` of the whole trajectory.

    Reads log-probabilities under the behaviour policy from the trajectories and those under the
    reference from `aux["reference_log_probs"]`, `[P, G, S]`; process rewards are refused.

    Args:
      coefficient: >= 0, where it starts; may be traced.
      controller: adapts the coefficient after every batch, in the state; None keeps it.
      axis_name: mapped axis of the prompts.

    Metrics: `kl_penalty/coefficient` in use; `kl_penalty/kl`, mean over trajectories of the sum
    of `(ln pi - ln ref)^2 / 2`, which is never negative.

    Raises:
      ValueError: a number out of range; when traced, rewards that are not `[P, G]`.
    """
    check_number("coefficient", coefficient, lambda x: x >= 0, ">= 0")
    for name in KLController._fields if controller else ():
        check_number(f"controller.{name}", getattr(controller, name), lambda x: x > 0, "> 0")

    def update(key: jax.Array, signal: Signal, state: Array):
        del key
        if signal.rewards.ndim != 2:
            raise ValueError(f"rewards have shape {signal.rewards.shape}; allowed is [P, G]")
        own = signal.trajectories
        ratio = _log_ratio(own.log_probs, signal.aux["reference_log_probs"], own.mask)
        rewards = signal.rewards - state * jnp.sum(ratio, axis=2)
        each = 0.5 * jnp.sum(jnp.square(ratio), axis=2)
        kl = masked.mean(each, signal.mask, axis_name=axis_name)
        signal = signal.replace(rewards=jnp.where(signal.mask, rewards, 0.0))
        signal = signal.with_metrics(kl_penalty__coefficient=state, kl_penalty__kl=kl)
        if controller is not None:
            count = masked.count(signal.mask, axis_name=axis_name)
            state = controlled_coefficient(state, kl, count, controller)
        return signal, state

    reads = ("rewards", "mask", "trajectories", "aux/reference_log_probs")
    spec = Spec("kl_penalty", "calibration", reads, ("rewards", "metrics"), reward_map="nonlinear")
    return RewardTransform(lambda: jnp.asarray(coefficient, jnp.float32), update, spec)


def _log_ratio(log_probs: Array, reference: Array, mask: Array) -> Float[Array, "P G S"]:
    return jnp.where(mask, (log_probs - reference).astype(jnp.float32), 0.0)
