"""Rewards mended by a second, cheaper signal."""

import jax
import jax.numpy as jnp

from jaxreward.checks import Number, check_number
from jaxreward.transforms.base import RewardTransform, Spec, keep_true_rewards, stateless
from jaxreward.types import Signal


def lift_low_rewards(
    second: str, *, threshold: Number = 0.5, weight: Number = 0.1
) -> RewardTransform:
    """Adds `weight` times a second signal to rewards below a threshold.

    A noisy reward model errs most by giving too little to a right answer; how the answer was
    reasoned about (`rewards.reasoning_patterns`) tells such answers from others that score low
    (arXiv 2505.22653, section 4: threshold 0.5, weight 0.1).

    Args:
      second: entry of `aux`, float32 `[P, G]`.
      threshold: rewards below it are lifted; may be traced.
      weight: >= 0; 0 changes nothing. May be traced.

    Raises:
      ValueError: a negative weight, or a threshold that is no number.
    """
    check_number("threshold", threshold, lambda value: value == value, "a number")
    check_number("weight", weight, lambda value: value >= 0, ">= 0")

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        signal = keep_true_rewards(signal)
        lift = jnp.asarray(weight, jnp.float32) * signal.aux[second].astype(jnp.float32)
        low = signal.mask & (signal.rewards < jnp.asarray(threshold, jnp.float32))
        return signal.replace(rewards=jnp.where(low, signal.rewards + lift, signal.rewards))

    reads = ("rewards", "mask", f"aux/{second}")
    writes = ("rewards", "aux/true_rewards")
    return stateless(
        update, Spec("lift_low_rewards", "calibration", reads, writes, reward_map="nonlinear")
    )


def replace_reward(second: str, *, answered: str = "") -> RewardTransform:
    """Gives `aux[second]` as the reward, whatever the reward was.

    Args:
      second: entry of `aux`, float32 `[P, G]`.
      answered: entry of `aux`, `[P, G]`, that is 0 or False for samples without an answer; they
        get 0. "": all have one.
    """

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        signal = keep_true_rewards(signal)
        given = signal.mask
        if answered:
            given = given & (signal.aux[answered] != 0)
        reward = signal.aux[second].astype(jnp.float32)
        return signal.replace(rewards=jnp.where(given, reward, 0.0))

    reads = ("rewards", "mask", f"aux/{second}") + ((f"aux/{answered}",) if answered else ())
    writes = ("rewards", "aux/true_rewards")
    return stateless(
        update, Spec("replace_reward", "calibration", reads, writes, reward_map="nonlinear")
    )


def warm_up(second: str, *, steps: int) -> RewardTransform:
    """Gives `aux[second]` as the reward for the first `steps` updates, the reward itself after.

    Args:
      second: entry of `aux`, float32 `[P, G]`.
      steps: >= 0.

    Raises:
      ValueError: `steps` < 0.
    """
    if steps < 0:
        raise ValueError(f"steps = {steps}; allowed is >= 0")

    def update(key: jax.Array, signal: Signal, state: jax.Array):
        del key
        signal = keep_true_rewards(signal)
        early = jnp.where(signal.mask, signal.aux[second].astype(jnp.float32), 0.0)
        rewards = jnp.where(state < steps, early, signal.rewards)
        return signal.replace(rewards=rewards), jnp.minimum(state + 1, steps + 1)

    reads = ("rewards", "mask", f"aux/{second}")
    writes = ("rewards", "aux/true_rewards")
    spec = Spec("warm_up", "calibration", reads, writes, reward_map="nonlinear")
    return RewardTransform(lambda: jnp.zeros((), jnp.int32), update, spec)


def blend(second: str, *, weight: Number = 0.1) -> RewardTransform:
    """`(1 - weight)` of the reward and `weight` of a second signal, such as a format flag.

    Affine in the reward only where the second signal is the same for a group (RLPR section 3.1,
    weight 0.1).

    Args:
      second: entry of `aux`, `[P, G]`; numbers or booleans.
      weight: in [0, 1]; 0 changes nothing. May be traced.

    Raises:
      ValueError: a weight outside [0, 1].
    """
    check_number("weight", weight, lambda value: (value >= 0) & (value <= 1), "[0, 1]")

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        signal = keep_true_rewards(signal)
        other = jnp.asarray(signal.aux[second], jnp.float32)
        mixed = (1 - weight) * signal.rewards + weight * other
        return signal.replace(rewards=jnp.where(signal.mask, mixed, 0.0))

    reads = ("rewards", "mask", f"aux/{second}")
    writes = ("rewards", "aux/true_rewards")
    return stateless(update, Spec("blend", "calibration", reads, writes, reward_map="nonlinear"))
