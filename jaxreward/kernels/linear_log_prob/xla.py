"""Tiles of logits through plain XLA: any device, the CPU default.

Forward and backward walk over blocks of rows (tokens) and for each over blocks of columns
(vocabulary), so one tile of logits exists at a time (8 N D V FLOP in all: the backward
recomputes them). The forward visits rows that are not ignored, the backward rows with a
non-zero cotangent; the walk stops after the last of them, so the others cost nothing.

float32 inputs are multiplied in full float32 on every device.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreward.kernels.linear_log_prob import rows, statistics
from jaxreward.kernels.linear_log_prob.blocks import Tile
from jaxreward.kernels.linear_log_prob.core import Head, Kernel, Scaling
from jaxreward.kernels.linear_log_prob.statistics import FILL, Statistics, Terms


def kernel(tile: Tile) -> Kernel:
    """Tiles of at most so many rows and columns."""
    return Kernel(block_statistics, block_gradients, tile)


def dot(a, b):
    """float32 product."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def block_logits(hidden, head: Head, scaling: Scaling, softcap):
    """float32 logits `[block, V]` and the factor d(logits) / d(head output)."""
    raw = dot(hidden, head.weight.astype(hidden.dtype))
    if head.bias is not None:
        raw = raw + head.bias.astype(jnp.float32)[None, :]
    logits, slope = raw, jnp.ones((), jnp.float32)
    if softcap is not None:
        squashed = jnp.tanh(raw / softcap)
        logits, slope = softcap * squashed, 1.0 - jnp.square(squashed)
    logits, slope = logits / scaling.temperature, slope / scaling.temperature
    if scaling.columns is not None:
        numbers = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        logits = jnp.where(numbers < scaling.columns, logits, -jnp.inf)
    return logits, slope


def accumulate(total: Head, hidden, head: Head, d_raw):
    """Adds a tile's share to its head's gradient; returns it and the tile's float32 d(hidden)."""
    d_raw_cast = d_raw.astype(hidden.dtype)
    d_hidden = dot(d_raw_cast, head.weight.astype(hidden.dtype).T)
    d_weight = total.weight + dot(hidden.T, d_raw_cast)
    d_bias = None if total.bias is None else total.bias + jnp.sum(d_raw, axis=0)
    return Head(d_weight, d_bias), d_hidden


def zero_gradient(head: Head) -> Head:
    """Where a head's gradient is summed up."""
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.float32), head)


class _Columns(NamedTuple):
    """A block of the head's columns.

    Attributes:
      start: number of its first column.
      head: its part of the head.
      scaling: for its logits.
      targets: counted from its first column, -1 where they are not the block's own.
      fresh: number within the block of the first column that no earlier block had; None: 0.
    """

    start: Int[Array, ""]
    head: Head
    scaling: Scaling
    targets: Int[Array, "n"]
    fresh: Int[Array, ""] | None

    def logits(self, hidden, softcap):
        """As `block_logits`, -inf where an earlier block had the column."""
        logits, slope = block_logits(hidden, self.head, self.scaling, softcap)
        if self.fresh is not None:
            numbers = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
            logits = jnp.where(numbers < self.fresh, -jnp.inf, logits)
        return logits, slope


def _columns(head: Head, scaling: Scaling, targets, number, count: int) -> _Columns:
    """Block `number` of `count` columns; the last one reaches back so that it is as wide."""
    vocabulary = head.weight.shape[1]
    first = number * count
    start = jnp.minimum(first, vocabulary - count)
    fresh = first - start if vocabulary % count else None
    own = _cut(head, start, count)
    columns = None if scaling.columns is None else scaling.columns - start
    targets = jnp.where(targets >= first, targets - start, -1)
    return _Columns(start, own, scaling._replace(columns=columns), targets, fresh)


def _cut(head: Head, start, count: int) -> Head:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, count, -1), head)


def _paste(head: Head, part: Head, start) -> Head:
    put = lambda x, own: jax.lax.dynamic_update_slice_in_dim(x, own, start, -1)
    return jax.tree.map(put, head, part)


def _each_block(head: Head, width: int, body, start):
    """The carry after `body(count, number, carry)` of every block of `count` columns."""
    vocabulary = head.weight.shape[1]
    count = min(width, vocabulary)
    return jax.lax.fori_loop(0, -(-vocabulary // count), partial(body, count), start)


def block_statistics(
    hidden: Float[Array, "N D"],
    head: Head,
    targets: Int[Array, "N"],
    valid: Bool[Array, "N"],
    scaling: Scaling,
    softcap,
    tile: Tile,
) -> Statistics:
    """See `core.Kernel`."""
    block_rows = min(tile.rows, hidden.shape[0])
    order = rows.active_first(valid, block_rows)
    index = order.index.reshape(-1, block_rows)

    def body(step, found):
        own = index[step]
        block, own_targets = rows.take(hidden, own), rows.take(targets, own, -1)

        def visit(count, number, before):
            columns = _columns(head, scaling, own_targets, number, count)
            logits, _ = columns.logits(block, softcap)
            return statistics.add(before, statistics.of_logits(logits, columns.targets))

        new = _each_block(head, tile.columns, visit, statistics.of_nothing(block[:, 0]))
        return jax.tree.map(lambda all_rows, x: rows.put(all_rows, own, x), found, new)

    zero = jnp.zeros_like(hidden, jnp.float32, shape=hidden.shape[:1])
    return jax.lax.fori_loop(0, rows.blocks(order, block_rows), body, Statistics(*[zero] * 4))


def block_gradients(
    hidden: Float[Array, "N D"],
    head: Head,
    targets: Int[Array, "N"],
    terms: Terms,
    active: Bool[Array, "N"],
    scaling: Scaling,
    softcap,
    tile: Tile,
) -> tuple[Float[Array, "N D"], Head]:
    """See `core.Kernel`."""
    block_rows = min(tile.rows, hidden.shape[0])
    order = rows.active_first(active, block_rows)
    index = order.index.reshape(-1, block_rows)

    def body(step, carry):
        d_head, d_hidden = carry
        own = index[step]
        block, own_targets = rows.take(hidden, own), rows.take(targets, own, -1)
        own_terms = Terms(*(rows.take(x, own, fill) for x, fill in zip(terms, FILL)))

        def visit(count, number, carry):
            d_head, d_block = carry
            columns = _columns(head, scaling, own_targets, number, count)
            logits, slope = columns.logits(block, softcap)
            d_logits = statistics.logit_gradient(logits, columns.targets, own_terms)
            before = _cut(d_head, columns.start, count)
            after, more = accumulate(before, block, columns.head, d_logits * slope)
            return _paste(d_head, after, columns.start), d_block + more

        start = (d_head, jnp.zeros_like(block, jnp.float32))
        d_head, d_block = _each_block(head, tile.columns, visit, start)
        return d_head, rows.put(d_hidden, own, d_block.astype(hidden.dtype))

    start = (zero_gradient(head), jnp.zeros_like(hidden))
    d_head, d_hidden = jax.lax.fori_loop(0, rows.blocks(order, block_rows), body, start)
    return d_hidden, jax.tree.map(lambda g, p: g.astype(p.dtype), d_head, head)
