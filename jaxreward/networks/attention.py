"""Grouped-query attention to a prompt that a group shares and to each response's own tokens."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreward.networks import dense, rotary
from jaxreward.networks.transformer_config import TransformerConfig


class KeyValues(NamedTuple):
    """Keys (rotated) and values of one layer, `[..., kv_heads, T, head_dim]`.

    What `Transformer.decode` writes has its keys as `[..., kv_heads, head_dim, T]`: a CPU
    multiplies one query with them in half the time.
    """

    keys: Array
    values: Array


class Segment(NamedTuple):
    """Keys that queries may attend to, and which: mask True where visible.

    A prompt's segment holds `[P, K, L, d]` and mask `[P, L]`, or `[P, S, L]` where steps see
    different parts of it, for every sample of its group; a response's own segment
    `[P, G, K, T, d]` and a mask that broadcasts to `[P, G, S, T]`.
    """

    cache: KeyValues
    mask: Array


class RMSNorm(nn.Module):
    """`x / rms(x) * scale`, or with `offset` `* (1 + scale)`, computed in float32."""

    epsilon: float
    param_dtype: str
    offset: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        init = nn.initializers.zeros if self.offset else nn.initializers.ones
        scale = self.param("scale", init, (x.shape[-1],), self.param_dtype)

        def normalize(wide: Array) -> Array:
            mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
            return wide * jax.lax.rsqrt(mean_square + self.epsilon)

        normed = dense.squeezed(normalize, x.astype(jnp.float32))
        scale = scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        return (normed * (1.0 + scale if self.offset else scale)).astype(x.dtype)


def norm(config: TransformerConfig) -> RMSNorm:
    """The norm of a config."""
    return RMSNorm(config.norm_epsilon, config.param_dtype, config.norm_offset)


def projection(config: TransformerConfig, features: int, use_bias: bool = False) -> dense.Dense:
    """A dense layer of a config."""
    return dense.Dense(features, config.dtype, config.param_dtype, use_bias)


class Attention(nn.Module):
    """Grouped-query attention of responses to a shared prefix and to themselves."""

    config: TransformerConfig

    def setup(self):
        c, d = self.config, self.config.size_per_head
        self.q_proj = projection(c, c.heads * d, c.qkv_bias)
        self.k_proj = projection(c, c.kv_heads * d, c.qkv_bias)
        self.v_proj = projection(c, c.kv_heads * d, c.qkv_bias)
        self.o_proj = projection(c, c.width)
        if c.qk_norm:
            self.q_norm = norm(c)
            self.k_norm = norm(c)

    def project(self, x: Array, angles: rotary.Angles) -> tuple[Array, KeyValues]:
        """Rotated, scaled queries `[P, G, H, S, d]` and the keys and values of `x`."""
        c = self.config
        split = x.shape[:-1] + (-1, c.size_per_head)
        q, k, v = (p(x).reshape(split) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        scale = jnp.asarray(c.query_scale, q.dtype)
        q, k = rotary.rotate(q, angles) * scale, rotary.rotate(k, angles)
        q, k, v = (jnp.swapaxes(a, -2, -3) for a in (q, k, v))
        return q, KeyValues(k, v)

    def attend(
        self, queries: Array, shared: Segment | None, own: Segment, decoding: bool = False
    ) -> Array:
        """Output `[P, G, S, D]` of queries `[P, G, H, S, d]`; `decoding`: of one to a cache."""
        kv_heads, steps = self.config.kv_heads, queries.shape[3]
        queried = queries.reshape(queries.shape[:2] + (kv_heads, -1, queries.shape[-1]))
        if decoding:
            out = _attend_apart(queried, shared, own)
        else:
            out = _attend_together(queried, shared, own, steps)
        out = jnp.swapaxes(out.reshape(queries.shape), 2, 3)
        return self.o_proj(out.reshape(out.shape[:3] + (-1,)))


def _attend_together(q: Array, shared: Segment | None, own: Segment, steps: int) -> Array:
    """Attention of whole responses: prompt and own keys side by side, one softmax."""
    mask = own.mask.reshape((1,) * (4 - own.mask.ndim) + own.mask.shape)
    cache = own.cache
    if shared is not None:
        seen = _by_step(shared.mask)
        seen = jnp.broadcast_to(seen, seen.shape[:2] + (steps, seen.shape[-1]))
        mask = jnp.broadcast_to(mask, seen.shape[:1] + (1,) + mask.shape[2:])
        mask = jnp.concatenate([seen, mask], axis=-1)
        cache = jax.tree.map(_side_by_side, shared.cache, cache)
    scores = jnp.einsum("pgkmd,pgktd->pgkmt", q, cache.keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(scores.shape[:3] + (-1, steps, scores.shape[-1]))
    scores = jnp.where(mask[:, :, None, None], scores, _MASKED)
    probs = dense.squeezed(jax.nn.softmax, scores).astype(q.dtype).reshape(q.shape[:4] + (-1,))
    return jnp.einsum("pgkmt,pgktd->pgkmd", probs, cache.values)


def _by_step(mask: Array) -> Array:
    """A prompt's mask as `[P, 1, 1 or S, L]`."""
    return mask.reshape(mask.shape[:1] + (1, -1) + mask.shape[-1:])


def _side_by_side(shared: Array, own: Array) -> Array:
    """A prompt's keys repeated for its group, then each response's own, along time."""
    shape = own.shape[:3] + shared.shape[2:]
    return jnp.concatenate([jnp.broadcast_to(shared[:, None], shape), own], axis=3)


def _attend_apart(q: Array, shared: Segment, own: Segment) -> Array:
    """Attention of one token: the prompt's keys are read once for the whole group."""
    wide = dict(preferred_element_type=jnp.float32)
    mine = jnp.einsum("pgkhd,pgkdt->pgkht", q, own.cache.keys, **wide)
    theirs = jnp.einsum("pgkhd,pktd->pgkht", q, shared.cache.keys, **wide)
    mask = own.mask.reshape((1,) * (4 - own.mask.ndim) + own.mask.shape)
    mine = jnp.where(mask[:, :, None], mine, _MASKED)
    theirs = jnp.where(_by_step(shared.mask)[:, :, None], theirs, _MASKED)
    top = jnp.maximum(jnp.max(mine, -1, keepdims=True), jnp.max(theirs, -1, keepdims=True))
    mine, theirs = jnp.exp(mine - top), jnp.exp(theirs - top)
    total = jnp.sum(mine, -1, keepdims=True) + jnp.sum(theirs, -1, keepdims=True)
    mine, theirs = ((weights / total).astype(q.dtype) for weights in (mine, theirs))
    out = jnp.einsum("pgkht,pgktd->pgkhd", mine, own.cache.values)
    return out + jnp.einsum("pgkht,pktd->pgkhd", theirs, shared.cache.values)


_MASKED = -1e30  # finite, so that a row without visible keys has no NaN
