"""Which prompts are learned from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreward import masked
from jaxreward.checks import Number, check_number
from jaxreward.transforms.base import RewardTransform, Spec, keep_true_rewards
from jaxreward.types import Signal


class SpreadState(NamedTuple):
    """What the threshold of `spread_filter` is made of.

    Attributes:
      step: int32, updates so far.
      total: float32, sum of the recorded means before filtering starts.
      recorded: int32, how many these are.
      average: float32, the moving average after that.
      last: float32, the mean of the step before.
    """

    step: Int[Array, ""]
    total: Float[Array, ""]
    recorded: Int[Array, ""]
    average: Float[Array, ""]
    last: Float[Array, ""]


def spread_filter(
    *,
    scale: Number = 0.5,
    decay: Number = 0.99,
    record_from: int = 6,
    start: int = 11,
    axis_name: str | None = None,
) -> RewardTransform:
    """Leaves out prompts whose rewards hardly differ, by a threshold that follows their spread.

    At each step the sample standard deviation of every group is averaged over *all* prompts. The
    steps `record_from` to `start - 1` (from 1) only record; at step `start` the threshold is
    `scale` times their plain average, afterwards of `E = decay E + (1 - decay) x` with the mean
    `x` of the step before (RLPR, arXiv 2506.18254 section 3.3, as released). A prompt at the
    threshold is kept. Prompts below it become missing: their advantages are 0. A step in which no
    group has two rewards has no mean and is passed over.

    Args:
      scale: >= 0; 0 keeps all. May be traced.
      decay: in [0, 1]; may be traced.
      record_from: first step that counts, >= 1.
      start: first step that filters, > `record_from`.
      axis_name: mapped axis that the prompts are split over.

    Metrics: `selection/spread`, `selection/threshold`, `selection/kept` (share of prompts).

    Raises:
      ValueError: a number out of its range.
    """
    check_number("scale", scale, lambda x: x >= 0, ">= 0")
    check_number("decay", decay, lambda x: (x >= 0) & (x <= 1), "[0, 1]")
    check_number("record_from", record_from, lambda x: x >= 1, ">= 1")
    check_number("start", start, lambda x: x > record_from, f"> record_from = {record_from}")

    def init() -> SpreadState:
        types = (jnp.int32, jnp.float32, jnp.int32, jnp.float32, jnp.float32)
        return SpreadState(*(jnp.zeros((), dtype) for dtype in types))  # all can be donated

    def update(key: jax.Array, signal: Signal, state: SpreadState):
        del key
        signal = keep_true_rewards(signal)
        spread, counts = group_spread(signal.rewards, signal.mask)
        step = state.step + 1
        first = state.total / jnp.maximum(state.recorded, 1).astype(jnp.float32)
        later = decay * state.average + (1 - decay) * state.last
        average = jnp.where(step == start, first, jnp.where(step > start, later, 0.0))
        average = jnp.asarray(average, jnp.float32)
        threshold = jnp.where(step >= start, scale * average, 0.0)
        kept = spread >= threshold
        mean = masked.mean(spread, counts, axis_name=axis_name)
        known = masked.count(counts, axis_name=axis_name) > 0
        records = (step >= record_from) & (step < start) & known
        total = state.total + jnp.where(records, mean, 0.0)
        recorded = state.recorded + records.astype(jnp.int32)
        by_prompt = kept.reshape(kept.shape + (1,) * (signal.mask.ndim - 1))
        signal = signal.replace(mask=signal.mask & by_prompt)
        metrics = dict(
            selection__spread=mean,
            selection__threshold=threshold,
            selection__kept=masked.mean(kept.astype(jnp.float32), counts, axis_name=axis_name),
        )
        last = jnp.where(known, mean, average)  # which leaves the average as it is
        return signal.with_metrics(**metrics), SpreadState(step, total, recorded, average, last)

    writes = ("mask", "metrics", "aux/true_rewards")
    spec = Spec("spread_filter", "selection", ("rewards", "mask"), writes)
    return RewardTransform(init, update, spec)


def group_spread(
    rewards: Float[Array, "P G *S"], mask: Bool[Array, "P G *S"]
) -> tuple[Float[Array, "P"], Bool[Array, "P"]]:
    """The sample standard deviation of each group, and whether it has two rewards to have one."""
    axes = tuple(range(1, rewards.ndim))
    number = masked.count(mask, axes)
    centre = masked.mean(rewards, mask, axes, keepdims=True)
    squares = masked.sum(jnp.square(rewards - centre), mask, axes)
    return jnp.sqrt(squares / jnp.maximum(number - 1.0, 1.0)), number >= 2
