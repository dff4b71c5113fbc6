"""Pairs out of items that were judged singly (SoliReward, arXiv 2512.22170).

    wins = draw_pairs(key, passes, ~passes, count)            # a pass against a fail
    ties = draw_pairs(key, passes, passes, count)             # two passes
    targets = preference.pass_fail_targets(passes[ties.first], passes[ties.second])

Items are drawn uniformly within each side, so that both labels weigh the same, and across
prompts, which needs a label that means the same for every prompt.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class ItemPairs(NamedTuple):
    """Indices of the items of `B` pairs, and weight 0 where no such pair exists."""

    first: Int[Array, "B"]
    second: Int[Array, "B"]
    weights: Float[Array, "B"]


def draw_pairs(
    key: jax.Array,
    first: Bool[Array, "N"],
    second: Bool[Array, "N"],
    count: int,
    *,
    prompts: Int[Array, "N"] | None = None,
) -> ItemPairs:
    """Pairs of two different items, with replacement.

    Args:
      key: of the draw.
      first: items that may come first.
      second: items that may come second.
      count: `B` >= 1.
      prompts: if given, both items of a pair belong to the same one; takes `N N` memory.

    Raises:
      ValueError: `count` < 1.
    """
    if count < 1:
        raise ValueError(f"count = {count}; allowed is >= 1")
    of_first, of_second = jax.random.split(key)
    if prompts is not None:
        return _within(of_first, of_second, first, second, count, prompts)
    # An item on both sides has one partner less; without any it must not come first.
    partners = jnp.sum(second) - second.astype(jnp.int32)
    first = first & (partners > 0)
    i = _pick(of_first, first, jnp.broadcast_to(jnp.sum(first), (count,)))
    rank = _draw_below(of_second, partners[i])
    own = jnp.where(second[i], (jnp.cumsum(second) - 1)[i], first.shape[0])
    j = _at_rank(second, jnp.where(rank >= own, rank + 1, rank))
    exists = jnp.broadcast_to(jnp.any(first), (count,))
    return ItemPairs(i, j, exists.astype(jnp.float32))


def _pick(key: jax.Array, allowed: Array, counts: Array) -> Array:
    return _at_rank(allowed, _draw_below(key, counts))


def _draw_below(key: jax.Array, counts: Array) -> Array:
    return jax.random.randint(key, counts.shape, 0, jnp.maximum(counts, 1), jnp.int32)


def _at_rank(allowed: Array, rank: Array) -> Array:
    """The index of the allowed item number `rank`, from 0."""
    index = jnp.searchsorted(jnp.cumsum(allowed), rank + 1).astype(jnp.int32)
    return jnp.minimum(index, allowed.shape[0] - 1)


def _within(of_first, of_second, first, second, count, prompts) -> ItemPairs:
    number = jnp.arange(first.shape[0])
    same = (prompts[:, None] == prompts[None, :]) & (number[:, None] != number[None, :])
    first = first & jnp.any(same & second[None, :], axis=1)
    i = _pick(of_first, first, jnp.broadcast_to(jnp.sum(first), (count,)))
    allowed = same[i] & second[None, :]
    rank = _draw_below(of_second, jnp.sum(allowed, axis=1))
    j = jax.vmap(_at_rank)(allowed, rank)
    exists = jnp.broadcast_to(jnp.any(first), (count,))
    return ItemPairs(i, j, exists.astype(jnp.float32))
