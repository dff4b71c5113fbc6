"""Blocks of rows through plain XLA: any device, the CPU default.

Forward and backward walk over blocks of `block_rows` tokens, so at most `block_rows * V`
logits exist at a time (8 N D V FLOP in all: the backward recomputes them). The forward visits
rows that are not ignored, the backward rows with a non-zero cotangent; the walk stops after
the last of them, so the others cost nothing.

float32 inputs are multiplied in full float32 on every device.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreward.kernels.linear_log_prob import rows
from jaxreward.kernels.linear_log_prob.core import Head, Kernel, Scaling
from jaxreward.kernels.linear_log_prob.statistics import (
    FILL,
    Statistics,
    Terms,
    logit_gradient,
    of_logits,
)


def kernel(block_rows: int) -> Kernel:
    """Blocks of at most `block_rows` rows."""
    return Kernel(block_statistics, block_gradients, block_rows)


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
    """Adds a block's share to the head's gradient; returns it and the block's d(hidden)."""
    d_raw_cast = d_raw.astype(hidden.dtype)
    d_hidden = dot(d_raw_cast, head.weight.astype(hidden.dtype).T)
    d_weight = total.weight + dot(hidden.T, d_raw_cast)
    d_bias = None if total.bias is None else total.bias + jnp.sum(d_raw, axis=0)
    return Head(d_weight, d_bias), d_hidden.astype(hidden.dtype)


def zero_gradient(head: Head) -> Head:
    """Where a head's gradient is summed up."""
    return jax.tree.map(lambda leaf: jnp.zeros_like(leaf, jnp.float32), head)


def block_statistics(
    hidden: Float[Array, "N D"],
    head: Head,
    targets: Int[Array, "N"],
    valid: Bool[Array, "N"],
    scaling: Scaling,
    softcap,
    block_rows: int,
) -> Statistics:
    """See `core.Kernel`."""
    count = hidden.shape[0]
    block_rows = min(block_rows, count)
    order = rows.active_first(valid, block_rows)
    index = order.index.reshape(-1, block_rows)

    def body(step, found):
        own = index[step]
        logits, _ = block_logits(rows.take(hidden, own), head, scaling, softcap)
        block = of_logits(logits, rows.take(targets, own, -1))
        return jax.tree.map(lambda all_rows, x: rows.put(all_rows, own, x), found, block)

    zero = jnp.zeros_like(hidden, jnp.float32, shape=(count,))
    return jax.lax.fori_loop(0, rows.blocks(order, block_rows), body, Statistics(*[zero] * 4))


def block_gradients(
    hidden: Float[Array, "N D"],
    head: Head,
    targets: Int[Array, "N"],
    terms: Terms,
    active: Bool[Array, "N"],
    scaling: Scaling,
    softcap,
    block_rows: int,
) -> tuple[Float[Array, "N D"], Head]:
    """See `core.Kernel`."""
    block_rows = min(block_rows, hidden.shape[0])
    order = rows.active_first(active, block_rows)
    index = order.index.reshape(-1, block_rows)

    def body(step, carry):
        d_head, d_hidden = carry
        own = index[step]
        block, own_targets = rows.take(hidden, own), rows.take(targets, own, -1)
        own_terms = Terms(*(rows.take(x, own, fill) for x, fill in zip(terms, FILL)))
        logits, slope = block_logits(block, head, scaling, softcap)
        d_logits = logit_gradient(logits, own_targets, own_terms)
        d_head, d_block = accumulate(d_head, block, head, d_logits * slope)
        return d_head, rows.put(d_hidden, own, d_block)

    start = (zero_gradient(head), jnp.zeros_like(hidden))
    d_head, d_hidden = jax.lax.fori_loop(0, rows.blocks(order, block_rows), body, start)
    return d_hidden, jax.tree.map(lambda g, p: g.astype(p.dtype), d_head, head)
