"""A per-token loss with its gradient formed in the forward pass: 6 N D V FLOP, not 8.

Where a token's loss depends on its own log-prob and entropy only, a block of logits serves
the loss and the gradient and is never recomputed. Blocks whose tokens have no gradient stop
after their logits.
"""

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxreward.kernels.linear_log_prob import rows, statistics
from jaxreward.kernels.linear_log_prob.core import Head, scale
from jaxreward.kernels.linear_log_prob.varying import align
from jaxreward.kernels.linear_log_prob.xla import accumulate, block_logits, zero_gradient

TokenLoss = Callable[[Array, Array, Any], Array]
"""`(log_prob [n], entropy [n], extras [n, ...]) -> loss [n]`, row by row."""


def linear_token_loss(
    hidden: Float[Array, "N D"],
    weight: Float[Array, "D V"],
    targets: Int[Array, "N"],
    token_loss: TokenLoss,
    extras: Any,
    bias: Float[Array, "V"] | None = None,
    *,
    temperature=1.0,
    logit_softcap: float | None = None,
    vocabulary: int | Int[Array, ""] | None = None,
    block_rows: int,
) -> tuple[Float[Array, ""], tuple[Float[Array, "N"], Float[Array, "N"]]]:
    """See `api.linear_token_loss`."""
    extras = jax.lax.stop_gradient(extras)
    last = jnp.asarray(weight.shape[1] if vocabulary is None else vocabulary, jnp.int32)
    operands = (hidden, Head(weight, bias), targets, extras, scale(temperature, vocabulary), last)
    block_rows = max(1, min(block_rows, hidden.shape[0]))
    static = (token_loss, logit_softcap, block_rows)
    total, aux = _token_loss(*align(operands), static)
    return total, jax.lax.stop_gradient(aux)


def _block(block, head, scaling, columns, softcap):
    """Logits of a block, their slope, its outputs and what its gradient needs."""
    hidden, targets, _ = block
    logits, slope = block_logits(hidden, head, scaling, softcap)
    found = statistics.of_logits(logits, targets)
    return logits, slope, *statistics.outputs(found, targets, columns)


def _sum(token_loss, targets, log_prob, entropy, extras):
    loss = token_loss(log_prob, entropy, extras)
    return jnp.sum(jnp.where(targets >= 0, loss, 0.0))


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _token_loss(hidden, head, targets, extras, scaling, columns, static):
    token_loss, softcap, block_rows = static

    def body(total, block):
        _, _, results, _ = _block(block, head, scaling, columns, softcap)
        loss = _sum(token_loss, block[1], *results[:2], block[2])
        return total + loss, results[:2]

    total, aux = jax.lax.scan(body, _zero(hidden), _blocks(hidden, targets, extras, block_rows))
    return total, tuple(out.reshape(-1)[: hidden.shape[0]] for out in aux)


def _forward(hidden, head, targets, extras, scaling, columns, static):
    token_loss, softcap, block_rows = static

    def body(carry, block):
        total, d_head = carry
        own_hidden, own_targets, own_extras = block
        logits, slope, results, saved = _block(block, head, scaling, columns, softcap)
        loss_of = lambda *scores: _sum(token_loss, own_targets, *scores, own_extras)
        loss, pulled = jax.value_and_grad(loss_of, (0, 1))(*results[:2])
        cotangents = (*pulled, jnp.zeros_like(pulled[0]))
        terms, active = statistics.terms(saved, own_targets, cotangents)

        def visit(d_head):
            d_logits = statistics.logit_gradient(logits, own_targets, terms)
            d_head, d_rows = accumulate(d_head, own_hidden, head, d_logits * slope)
            return d_head, d_rows.astype(own_hidden.dtype)

        skip = lambda d_head: (d_head, jnp.zeros_like(own_hidden))
        d_head, d_rows = jax.lax.cond(jnp.any(active), visit, skip, d_head)
        return (total + loss, d_head), (d_rows, *results[:2])

    start = (_zero(hidden), zero_gradient(head))
    blocks = _blocks(hidden, targets, extras, block_rows)
    (total, d_head), (d_hidden, *aux) = jax.lax.scan(body, start, blocks)
    d_hidden = d_hidden.reshape(-1, hidden.shape[1])[: hidden.shape[0]]
    d_head = jax.tree.map(lambda g, p: g.astype(p.dtype), d_head, head)
    aux = tuple(out.reshape(-1)[: hidden.shape[0]] for out in aux)
    return (total, aux), (d_hidden, d_head)


def _backward(static, residuals, cotangents):
    scale = cotangents[0]
    scaled = lambda g: (g.astype(jnp.float32) * scale).astype(g.dtype)
    d_hidden, d_head = jax.tree.map(scaled, residuals)
    return d_hidden, d_head, None, None, None, None


_token_loss.defvjp(_forward, _backward)


def _zero(operand) -> Array:
    return jnp.zeros_like(operand, jnp.float32, shape=())


def _blocks(hidden, targets, extras, block_rows: int):
    return (
        rows.pad(hidden, block_rows),
        rows.pad(targets, block_rows, -1),
        jax.tree.map(lambda leaf: rows.pad(leaf, block_rows), extras),
    )
