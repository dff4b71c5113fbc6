"""Blocks of rows through plain XLA: any device, the CPU default.

Forward and backward walk over blocks of `block_rows` tokens, so at most
`block_rows * V` logits exist at a time. Two backward schemes:

* `linear_log_prob`: the backward recomputes a block's logits (8 N D V FLOP in all) and
  takes any cotangents. Rows are visited active ones first and the walk stops after the
  last row with a non-zero cotangent, so rows without gradient cost nothing.
* `linear_token_loss`: where a token's loss depends on its own log-prob and entropy only,
  the gradient is formed in the forward pass (6 N D V FLOP, nothing recomputed).
"""

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Outputs = tuple[Float[Array, "N"], Float[Array, "N"], Float[Array, "N"]]


class Head(NamedTuple):
    """The differentiable inputs of the head."""

    weight: Array
    bias: Array | None


def linear_log_prob(
    hidden: Float[Array, "N D"],
    weight: Float[Array, "D V"],
    targets: Int[Array, "N"],
    bias: Float[Array, "V"] | None = None,
    *,
    temperature=1.0,
    logit_softcap: float | None = None,
    block_rows: int = 256,
) -> Outputs:
    """See `api.linear_log_prob`."""
    temperature = jnp.asarray(temperature, jnp.float32)
    block_rows = min(block_rows, hidden.shape[0])
    return _log_prob(hidden, Head(weight, bias), targets, temperature, logit_softcap, block_rows)


def _block_logits(hidden, head: Head, temperature, softcap):
    """float32 logits `[block, V]` and the factor d(logits) / d(head output)."""
    raw = jnp.dot(
        hidden, head.weight.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    if head.bias is not None:
        raw = raw + head.bias.astype(jnp.float32)[None, :]
    if softcap is None:
        return raw / temperature, 1.0 / temperature
    squashed = jnp.tanh(raw / softcap)
    return softcap * squashed / temperature, (1.0 - jnp.square(squashed)) / temperature


def _block_outputs(logits, targets):
    """log-prob, entropy and normaliser of a block; zero at ignored targets."""
    top = jnp.max(logits, axis=-1, keepdims=True)
    shifted = logits - top
    weights = jnp.exp(shifted)
    total = jnp.sum(weights, axis=-1)
    mean = jnp.sum(jnp.where(weights > 0, weights * shifted, 0.0), axis=-1) / total
    log_total = jnp.log(total)
    safe = jnp.maximum(targets, 0)[:, None]
    picked = jnp.take_along_axis(shifted, safe, axis=-1)[:, 0]
    valid = targets >= 0
    log_prob = jnp.where(valid, picked - log_total, 0.0)
    entropy = jnp.where(valid, jnp.maximum(log_total - mean, 0.0), 0.0)
    normalizer = jnp.where(valid, log_total + top[:, 0], 0.0)
    return log_prob, entropy, normalizer


def _block_logit_gradient(logits, targets, outputs, cotangents):
    """d(loss) / d(logits) of a block, given cotangents of its three outputs.

    `dlogits = g_logp (onehot - p) - g_ent p (logits - logZ + entropy) + g_logZ p`.
    """
    _, entropy, normalizer = outputs
    valid = targets[:, None] >= 0
    g_log_prob, g_entropy, g_normalizer = (jnp.where(valid, g[:, None], 0.0) for g in cotangents)
    log_probs = jnp.where(valid, logits - normalizer[:, None], 0.0)
    probs = jnp.exp(log_probs)
    surprise = jnp.where(probs > 0, log_probs + entropy[:, None], 0.0)
    hot = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == targets[:, None]
    gradient = probs * (g_normalizer - g_log_prob - g_entropy * surprise)
    return gradient + jnp.where(hot, g_log_prob, 0.0)


def _accumulate(total, hidden, head: Head, d_raw):
    """Adds a block's share to the head's gradient; returns it and the block's d(hidden)."""
    d_hidden = jnp.dot(
        d_raw.astype(hidden.dtype),
        head.weight.astype(hidden.dtype).T,
        preferred_element_type=jnp.float32,
    )
    d_weight = total.weight + jnp.dot(
        hidden.T, d_raw.astype(hidden.dtype), preferred_element_type=jnp.float32
    )
    d_bias = None if total.bias is None else total.bias + jnp.sum(d_raw, axis=0)
    return Head(d_weight, d_bias), d_hidden.astype(hidden.dtype)


def _zero_gradient(head: Head) -> Head:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), head)


def _blocks(array: Array, block_rows: int, fill) -> Array:
    """`[N, ...]` as `[blocks, block_rows, ...]`, padded at the end."""
    short = -array.shape[0] % block_rows
    pad = [(0, short)] + [(0, 0)] * (array.ndim - 1)
    array = jnp.pad(array, pad, constant_values=fill)
    return array.reshape((-1, block_rows) + array.shape[1:])


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _log_prob(hidden, head, targets, temperature, softcap, block_rows):
    def body(_, block):
        logits, _ = _block_logits(block[0], head, temperature, softcap)
        return None, _block_outputs(logits, block[1])

    blocks = (_blocks(hidden, block_rows, 0), _blocks(targets, block_rows, -1))
    _, outputs = jax.lax.scan(body, None, blocks)
    return tuple(out.reshape(-1)[: hidden.shape[0]] for out in outputs)


def _log_prob_forward(hidden, head, targets, temperature, softcap, block_rows):
    outputs = _log_prob(hidden, head, targets, temperature, softcap, block_rows)
    return outputs, (hidden, head, targets, temperature, outputs)


def _log_prob_backward(softcap, block_rows, residuals, cotangents):
    hidden, head, targets, temperature, outputs = residuals
    rows = hidden.shape[0]
    active = (targets >= 0) & functools.reduce(jnp.logical_or, (g != 0 for g in cotangents))
    order = jnp.argsort(~active, stable=True)
    count = jnp.sum(active, dtype=jnp.int32)
    needed = (count + block_rows - 1) // block_rows
    order = _blocks(order.astype(jnp.int32), block_rows, rows)  # row `rows` is out of range

    def body(index, carry):
        d_head, d_hidden = carry
        where = order[index]
        take = functools.partial(jnp.take, indices=where, axis=0, mode="fill")
        block, own_targets = take(hidden, fill_value=0), take(targets, fill_value=-1)
        logits, slope = _block_logits(block, head, temperature, softcap)
        own = [take(x, fill_value=0) for x in (*outputs, *cotangents)]
        d_logits = _block_logit_gradient(logits, own_targets, own[:3], own[3:])
        d_head, d_block = _accumulate(d_head, block, head, d_logits * slope)
        return d_head, d_hidden.at[where].set(d_block, mode="drop")

    d_head, d_hidden = jax.lax.fori_loop(
        0, needed, body, (_zero_gradient(head), jnp.zeros_like(hidden))
    )
    d_head = jax.tree.map(lambda g, p: g.astype(p.dtype), d_head, head)
    return d_hidden, d_head, None, None


_log_prob.defvjp(_log_prob_forward, _log_prob_backward)

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
    block_rows: int = 1024,
) -> tuple[Float[Array, ""], tuple[Float[Array, "N"], Float[Array, "N"]]]:
    """Sum of a per-token loss, its gradient formed in the forward pass.

    Args:
      hidden, weight, targets, bias, temperature, logit_softcap: as in `linear_log_prob`.
      token_loss: elementwise loss; normalisers and advantages go in through `extras`.
      extras: pytree with leading axis `[N]`, not differentiated.
      block_rows: tokens whose logits exist at a time.

    Returns:
      The sum over valid tokens, float32, and the tokens' (log-prob, entropy), which carry
      no gradient.
    """
    temperature = jnp.asarray(temperature, jnp.float32)
    block_rows = min(block_rows, hidden.shape[0])
    extras = jax.lax.stop_gradient(extras)
    total, aux = _token_loss(
        hidden, Head(weight, bias), targets, extras, temperature, token_loss, logit_softcap,
        block_rows,
    )
    return total, jax.lax.stop_gradient(aux)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _token_loss(hidden, head, targets, extras, temperature, token_loss, softcap, block_rows):
    def body(total, block):
        rows, own_targets, own_extras = block
        logits, _ = _block_logits(rows, head, temperature, softcap)
        log_prob, entropy, _ = _block_outputs(logits, own_targets)
        loss = token_loss(log_prob, entropy, own_extras)
        return total + jnp.sum(jnp.where(own_targets >= 0, loss, 0.0)), (log_prob, entropy)

    blocks = _all_blocks(hidden, targets, extras, block_rows)
    total, aux = jax.lax.scan(body, jnp.zeros((), jnp.float32), blocks)
    return total, tuple(out.reshape(-1)[: hidden.shape[0]] for out in aux)


def _token_loss_forward(
    hidden, head, targets, extras, temperature, token_loss, softcap, block_rows
):
    def body(carry, block):
        total, d_head = carry
        rows, own_targets, own_extras = block
        logits, slope = _block_logits(rows, head, temperature, softcap)
        outputs = _block_outputs(logits, own_targets)

        def loss_of(log_prob, entropy):
            loss = token_loss(log_prob, entropy, own_extras)
            return jnp.sum(jnp.where(own_targets >= 0, loss, 0.0))

        loss, (g_log_prob, g_entropy) = jax.value_and_grad(loss_of, (0, 1))(*outputs[:2])
        cotangents = (g_log_prob, g_entropy, jnp.zeros_like(g_entropy))
        d_logits = _block_logit_gradient(logits, own_targets, outputs, cotangents)
        d_head, d_rows = _accumulate(d_head, rows, head, d_logits * slope)
        return (total + loss, d_head), (d_rows, *outputs[:2])

    blocks = _all_blocks(hidden, targets, extras, block_rows)
    start = (jnp.zeros((), jnp.float32), _zero_gradient(head))
    (total, d_head), (d_hidden, *aux) = jax.lax.scan(body, start, blocks)
    d_hidden = d_hidden.reshape(-1, hidden.shape[1])[: hidden.shape[0]]
    d_head = jax.tree.map(lambda g, p: g.astype(p.dtype), d_head, head)
    aux = tuple(out.reshape(-1)[: hidden.shape[0]] for out in aux)
    return (total, aux), (d_hidden, d_head)


def _token_loss_backward(token_loss, softcap, block_rows, residuals, cotangents):
    scale = cotangents[0]
    d_hidden, d_head = jax.tree.map(lambda g: (g * scale).astype(g.dtype), residuals)
    return d_hidden, d_head, None, None, None


_token_loss.defvjp(_token_loss_forward, _token_loss_backward)


def _all_blocks(hidden, targets, extras, block_rows: int):
    return (
        _blocks(hidden, block_rows, 0),
        _blocks(targets, block_rows, -1),
        jax.tree.map(lambda leaf: _blocks(leaf, block_rows, 0), extras),
    )
