"""Rewards mended by a second, cheaper signal."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreward import masked
from jaxreward.checks import Number, check_choice, check_number
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
        update, Spec("replace_reward", "calibration", reads, writes, reward_map="replaced")
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


def subtract(second: str, *, weight: Number = 1.0) -> RewardTransform:
    """Takes `weight` times a second signal off the reward, such as a flag of repetition.

    Args:
      second: entry of `aux`, `[P, G]`; numbers or booleans.
      weight: finite; 0 changes nothing. May be traced.

    Raises:
      ValueError: a weight that is not finite.
    """
    check_number("weight", weight, lambda value: abs(value) < float("inf"), "a finite number")

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        signal = keep_true_rewards(signal)
        penalty = jnp.asarray(weight, jnp.float32) * jnp.asarray(signal.aux[second], jnp.float32)
        return signal.replace(rewards=jnp.where(signal.mask, signal.rewards - penalty, 0.0))

    reads = ("rewards", "mask", f"aux/{second}")
    writes = ("rewards", "aux/true_rewards")
    return stateless(
        update, Spec("subtract", "calibration", reads, writes, reward_map="nonlinear")
    )


SQUASHES = ("identity", "sigmoid", "log_sigmoid", "clip")


def center_on_reference(squash: str = "sigmoid", *, bound: Number = 1.0) -> RewardTransform:
    """The mean over reference answers of `squash(reward - reference reward)`.

    "sigmoid" is PAR (arXiv 2502.18770), bounded and steep where the answer is as good as the
    reference; "log_sigmoid" that of arXiv 2402.00742; "identity" the contrastive reward of arXiv
    2403.07708, and "clip" the same within `bound`. Centring alone is one shift for a group, which
    every group baseline cancels; the squash is what remains.

    Reads `aux["reference_rewards"]`, float32 `[P, M]`: rewards of `M` answers of a reference policy
    to each prompt, NaN where there is none. A prompt without any is missing.

    Args:
      squash: one of `SQUASHES`.
      bound: > 0, for "clip"; may be traced.

    Raises:
      ValueError: an unknown squash, or `bound` <= 0.
    """
    check_choice("squash", squash, SQUASHES)
    check_number("bound", bound, lambda value: value > 0, "> 0")
    squashed = {
        "identity": lambda gap: gap,
        "sigmoid": jax.nn.sigmoid,
        "log_sigmoid": jax.nn.log_sigmoid,
        "clip": lambda gap: jnp.clip(gap, -bound, bound),
    }[squash]

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        signal = keep_true_rewards(signal)
        references = signal.aux["reference_rewards"].astype(jnp.float32)
        shape = (references.shape[0],) + (1,) * (signal.rewards.ndim - 1) + references.shape[1:]
        references = references.reshape(shape)
        there = jnp.isfinite(references)
        gap = jnp.where(there, signal.rewards[..., None] - references, 0.0)
        there = jnp.broadcast_to(there, gap.shape)
        mask = signal.mask & jnp.any(there, axis=-1)
        rewards = masked.mean(squashed(gap), there, axis=-1)
        return signal.replace(rewards=jnp.where(mask, rewards, 0.0), mask=mask)

    reads = ("rewards", "mask", "aux/reference_rewards")
    writes = ("rewards", "mask", "aux/true_rewards")
    maps = "shift" if squash == "identity" else "nonlinear"
    return stateless(
        update, Spec("center_on_reference", "calibration", reads, writes, reward_map=maps)
    )


def peer_reward(weight: Number = 1.0, *, axis_name: str | None = None) -> RewardTransform:
    """The reward minus `weight` times that of a random sample of a random other prompt.

    Peer rewards (arXiv 2010.01748). The expected peer term is one number for all samples, so the
    expected advantage under any baseline is unchanged and only variance is added; without a
    baseline it takes out the offset that false positives give, and the factor J stays.

    Args:
      weight: finite; may be traced. 0 changes nothing.
      axis_name: mapped axis that the prompts are split over.

    Raises:
      ValueError: a weight that is not finite.
    """
    check_number("weight", weight, lambda value: abs(value) < float("inf"), "a finite number")

    def update(key: jax.Array, signal: Signal) -> Signal:
        signal = keep_true_rewards(signal)
        own = signal.aux["prompt_id"]
        samples = math.prod(signal.rewards.shape[1:])
        given = (signal.rewards.reshape(-1, samples), signal.mask.reshape(-1, samples), own)
        if axis_name is not None:
            given = jax.lax.all_gather(given, axis_name, axis=0, tiled=True)
        # keyed by prompt and counted in their order, so that neither rows nor devices matter
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, own)
        uniform = jax.vmap(lambda key: jax.random.uniform(key, (samples,), jnp.float32))(keys)
        peer = _peers(uniform, own, *given).reshape(signal.rewards.shape)
        rewards = signal.rewards - jnp.asarray(weight, jnp.float32) * peer
        return signal.replace(rewards=jnp.where(signal.mask, rewards, 0.0))

    reads, writes = ("rewards", "mask"), ("rewards", "aux/true_rewards")
    return stateless(
        update, Spec("peer_reward", "calibration", reads, writes, reward_map="nonlinear")
    )


def _peers(
    uniform: Float[Array, "P n"],
    own: Int[Array, "P"],
    rewards: Float[Array, "Q n"],
    present: Bool[Array, "Q n"],
    ids: Int[Array, "Q"],
) -> Float[Array, "P n"]:
    """For each sample of the prompts `own` a draw among the present rewards of others, else 0."""
    order = jnp.argsort(ids)
    rewards, present, ids = rewards[order].reshape(-1), present[order], ids[order]
    until = jnp.cumsum(jnp.sum(present, axis=1, dtype=jnp.int32))  # present up to each prompt
    until = jnp.concatenate([jnp.zeros((1,), jnp.int32), until])
    first = until[jnp.searchsorted(ids, own)][:, None]
    past = until[jnp.searchsorted(ids, own, side="right")][:, None]
    others = until[-1] - (past - first)
    rank = jnp.minimum((uniform * others.astype(jnp.float32)).astype(jnp.int32), others - 1)
    rank = jnp.where(rank < first, rank, rank + (past - first))  # over the prompt's own
    place = jnp.searchsorted(jnp.cumsum(present.reshape(-1), dtype=jnp.int32), rank + 1)
    return jnp.where(others > 0, rewards[jnp.minimum(place, rewards.shape[0] - 1)], 0.0)
