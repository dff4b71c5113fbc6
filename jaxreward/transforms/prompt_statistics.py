"""Advantages from each prompt's own recent rewards (arXiv 2305.13301, appendix; 2404.03673)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxreward import masked
from jaxreward.checks import Number, check_number
from jaxreward.transforms.base import RewardTransform, Spec
from jaxreward.types import Signal


class RecentRewards(NamedTuple):
    """The last rewards of every prompt, first in first out.

    Attributes:
      rewards: row of each of `N` prompts.
      seen: int32, how many rewards each prompt ever had.
    """

    rewards: Float[Array, "N buffer"]
    seen: Int[Array, "N"]


def prompt_statistics(
    num_prompts: int,
    *,
    buffer: int = 32,
    min_count: int = 16,
    epsilon: Number = 1e-6,
    clip: Number = 10.0,
) -> RewardTransform:
    """Advantage `(reward - mean) / (std + epsilon)` over the prompt's last `buffer` rewards.

    The new rewards are in the buffer first, in the order of the batch, also where a prompt stands
    in several rows. A prompt with fewer than `min_count`, or with an id outside
    `[0, num_prompts)`, uses mean and deviation of the batch.
    Deviations are the population's; where one is 0 the advantage is exactly 0.

    Args:
      num_prompts: ids lie in `[0, num_prompts)`.
      buffer: rewards kept for each prompt.
      min_count: in [1, buffer].
      epsilon: >= 0.
      clip: > 0, the largest advantage.

    Raises:
      ValueError: a number out of its range; when traced, dense rewards.
    """
    check_number("num_prompts", num_prompts, lambda x: x >= 1, ">= 1")
    check_number("buffer", buffer, lambda x: x >= 1, ">= 1")
    check_number("min_count", min_count, lambda x: (x >= 1) & (x <= buffer), f"[1, {buffer}]")
    check_number("epsilon", epsilon, lambda x: (x >= 0) & (x < float("inf")), ">= 0 and finite")
    check_number("clip", clip, lambda x: x > 0, "> 0")

    def init() -> RecentRewards:
        zeros = jnp.zeros((num_prompts, buffer), jnp.float32)
        return RecentRewards(zeros, jnp.zeros((num_prompts,), jnp.int32))

    def update(
        key: jax.Array, signal: Signal, state: RecentRewards
    ) -> tuple[Signal, RecentRewards]:
        del key
        if signal.rewards.ndim != 2:
            raise ValueError(f"rewards have shape {signal.rewards.shape}; allowed is [P, G]")
        shape = signal.rewards.shape
        ids = jnp.repeat(signal.aux["prompt_id"], shape[1])
        ids = jnp.where((ids < 0) | (ids >= num_prompts), num_prompts, ids)  # a row of its own
        rewards, there = signal.rewards.reshape(-1), signal.mask.reshape(-1)
        state = _append(state, ids, rewards, there)
        mean, variance = _statistics(state, ids, rewards, there, min_count)
        alive = there & (variance > 0)
        std = jnp.sqrt(jnp.where(alive, variance, 1.0))
        found = jnp.where(alive, jnp.clip((rewards - mean) / (std + epsilon), -clip, clip), 0.0)
        return signal.replace(advantages=found.reshape(shape)), state

    spec = Spec("prompt_statistics", "advantage", writes=("advantages",), ignores_common="run")
    return RewardTransform(init, update, spec)


def _append(state: RecentRewards, ids: Array, rewards: Array, there: Array) -> RecentRewards:
    count, buffer = state.rewards.shape
    place = jnp.arange(ids.shape[0])
    same = (ids[:, None] == ids[None, :]) & there[None, :]
    earlier = jnp.sum(same & (place[None, :] < place[:, None]), axis=1, dtype=jnp.int32)
    total = jnp.sum(same, axis=1, dtype=jnp.int32)
    # Of more than `buffer` new rewards of a prompt only the last are written, each to its place.
    written = there & (earlier >= total - buffer)
    slot = (state.seen[ids] + earlier) % buffer
    row = jnp.where(written, ids, count)
    table = state.rewards.at[row, slot].set(rewards, mode="drop")
    seen = state.seen.at[jnp.where(there, ids, count)].add(1, mode="drop")
    return RecentRewards(table, seen)


def _statistics(
    state: RecentRewards, ids: Array, rewards: Array, there: Array, min_count: int
) -> tuple[Array, Array]:
    """Mean and variance for each reward: of its prompt's buffer, or of the batch."""
    buffer = state.rewards.shape[1]
    kept, seen = state.rewards[ids], state.seen[ids]
    filled = jnp.arange(buffer, dtype=jnp.int32)[None, :] < seen[:, None]
    enough = (seen >= min_count) & (ids < state.seen.shape[0])
    choose = lambda own, batch: jnp.where(enough, own, batch)
    mean = choose(masked.mean(kept, filled, axis=1), masked.mean(rewards, there))
    variance = choose(masked.var(kept, filled, axis=1), masked.var(rewards, there))
    return mean, variance
