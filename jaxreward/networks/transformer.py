"""A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

One parameter leaf stands for one tensor of a Llama-, Qwen2- or Qwen3-style checkpoint. The
network never repeats a prompt for its group: responses `[P, G, S]` attend to the keys and
values of their prompt `[P, L]` and to their own. Three entries share all layers:

* `encode`: the prompts, once, to hidden states and a cache;
* `extend`: whole responses given the prompts' cache (scoring);
* `decode`: one token of every response given both caches (sampling).

Logits are never formed here: `head_weight` and the hidden states go to
`policies.language`, where log-probabilities are.
"""

import dataclasses
from typing import Any, Callable, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreward.networks import dense, rotary


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and variants.

    Attributes:
      vocab_size: `V`.
      width: `D`.
      layers: number of blocks.
      heads: query heads `H`.
      kv_heads: key and value heads; divides `heads`.
      intermediate: width inside the SwiGLU.
      head_dim: of one head; 0 means `width // heads`.
      rope_theta: base of the rotary frequencies.
      rope_scaling: None, or `rotary.Llama3Scaling`.
      norm_epsilon: added to the mean square in RMSNorm.
      qkv_bias: biases on query, key and value (Qwen2).
      qk_norm: RMSNorm of each query and key head (Qwen3).
      tie_embeddings: the head is the transposed embedding.
      dtype: of activations; parameters are cast to it where they are used.
      param_dtype: of parameters at initialisation.
      remat: keep only the input of each block for the backward pass of `encode` and `extend`,
        and compute the block again there.
      scan: one loop over the blocks instead of one after the other, which compiles in a time
        that does not depend on their number. Parameters are those of `stack_blocks`.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    head_dim: int = 0
    rope_theta: float = 10_000.0
    rope_scaling: rotary.Llama3Scaling | None = None
    norm_epsilon: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "intermediate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; allowed is >= 1")
        if self.head_dim < 0:
            raise ValueError(f"head_dim = {self.head_dim}; allowed is >= 1, or 0")
        if not self.rope_theta > 0:
            raise ValueError(f"rope_theta = {self.rope_theta}; allowed is > 0")
        if not self.norm_epsilon >= 0:
            raise ValueError(f"norm_epsilon = {self.norm_epsilon}; allowed is >= 0")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads = {self.kv_heads}; allowed are divisors of {self.heads}")
        if not self.head_dim and self.width % self.heads:
            raise ValueError(f"heads = {self.heads}; allowed are divisors of width = {self.width}")
        if self.size_per_head % 2:
            raise ValueError(f"head_dim = {self.size_per_head}; allowed is an even number")

    @property
    def size_per_head(self) -> int:
        """`head_dim`, resolved."""
        return self.head_dim or self.width // self.heads


class KeyValues(NamedTuple):
    """Keys (rotated) and values of one layer, `[..., kv_heads, T, head_dim]`."""

    keys: Array
    values: Array


Caches = KeyValues | tuple[KeyValues, ...]
"""Of all layers: one each, or with `scan` one whose arrays have a leading axis of layers."""


class Segment(NamedTuple):
    """Keys that queries may attend to, and which: mask True where visible.

    A prompt's segment holds `[P, K, L, d]` and mask `[P, L]`, for every sample of its group;
    a response's own segment `[P, G, K, T, d]` and a mask that broadcasts to `[P, G, S, T]`.
    """

    cache: KeyValues
    mask: Array


class RMSNorm(nn.Module):
    """`x / rms(x) * scale`, computed in float32."""

    epsilon: float
    param_dtype: str

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), self.param_dtype)
        wide = x.astype(jnp.float32)
        mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(mean_square + self.epsilon)
        scale = scale.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        return (normed * scale).astype(x.dtype)


def _dense(config: TransformerConfig, features: int, use_bias: bool = False) -> nn.Dense:
    return dense.dense(features, config.dtype, config.param_dtype, use_bias)


class Attention(nn.Module):
    """Grouped-query attention of responses to a shared prefix and to themselves."""

    config: TransformerConfig

    def setup(self):
        c, d = self.config, self.config.size_per_head
        self.q_proj = _dense(c, c.heads * d, c.qkv_bias)
        self.k_proj = _dense(c, c.kv_heads * d, c.qkv_bias)
        self.v_proj = _dense(c, c.kv_heads * d, c.qkv_bias)
        self.o_proj = _dense(c, c.width)
        if c.qk_norm:
            self.q_norm = RMSNorm(c.norm_epsilon, c.param_dtype)
            self.k_norm = RMSNorm(c.norm_epsilon, c.param_dtype)

    def project(self, x: Array, angles: rotary.Angles) -> tuple[Array, KeyValues]:
        """Rotated, scaled queries `[P, G, H, S, d]` and the keys and values of `x`."""
        c = self.config
        split = x.shape[:-1] + (-1, c.size_per_head)
        q, k, v = (p(x).reshape(split) for p in (self.q_proj, self.k_proj, self.v_proj))
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        scale = jnp.asarray(c.size_per_head**-0.5, q.dtype)
        q, k = rotary.rotate(q, angles) * scale, rotary.rotate(k, angles)
        q, k, v = (jnp.swapaxes(a, -2, -3) for a in (q, k, v))
        return q, KeyValues(k, v)

    def attend(self, queries: Array, shared: Segment | None, own: Segment) -> Array:
        """Output `[P, G, S, D]` of queries `[P, G, H, S, d]`."""
        kv_heads, steps = self.config.kv_heads, queries.shape[3]
        grouped = queries.shape[:2] + (kv_heads, -1, queries.shape[-1])
        apply = _attend_apart if shared is not None and steps == 1 else _attend_together
        out = apply(queries.reshape(grouped), shared, own, steps)
        out = jnp.swapaxes(out.reshape(queries.shape), 2, 3)
        return self.o_proj(out.reshape(out.shape[:3] + (-1,)))


def _attend_together(q: Array, shared: Segment | None, own: Segment, steps: int) -> Array:
    """Attention of whole responses: prompt and own keys side by side, one softmax."""
    mask = own.mask.reshape((1,) * (4 - own.mask.ndim) + own.mask.shape)
    cache = own.cache
    if shared is not None:
        prompts, length = shared.mask.shape
        seen = jnp.broadcast_to(shared.mask[:, None, None, :], (prompts, 1, steps, length))
        mask = jnp.broadcast_to(mask, seen.shape[:1] + (1,) + mask.shape[2:])
        mask = jnp.concatenate([seen, mask], axis=-1)
        cache = jax.tree.map(_side_by_side, shared.cache, cache)
    scores = jnp.einsum("pgkmd,pgktd->pgkmt", q, cache.keys, preferred_element_type=jnp.float32)
    scores = scores.reshape(scores.shape[:3] + (-1, steps, scores.shape[-1]))
    scores = jnp.where(mask[:, :, None, None], scores, _MASKED)
    probs = jax.nn.softmax(scores, axis=-1).astype(q.dtype).reshape(q.shape[:4] + (-1,))
    return jnp.einsum("pgkmt,pgktd->pgkmd", probs, cache.values)


def _side_by_side(shared: Array, own: Array) -> Array:
    """A prompt's keys repeated for its group, then each response's own, along time."""
    shape = own.shape[:3] + shared.shape[2:]
    return jnp.concatenate([jnp.broadcast_to(shared[:, None], shape), own], axis=3)


def _attend_apart(q: Array, shared: Segment, own: Segment, steps: int) -> Array:
    """Attention of one token: the prompt's keys are read once for the whole group."""
    del steps
    wide = dict(preferred_element_type=jnp.float32)
    mine = jnp.einsum("pgkhd,pgktd->pgkht", q, own.cache.keys, **wide)
    theirs = jnp.einsum("pgkhd,pktd->pgkht", q, shared.cache.keys, **wide)
    mask = own.mask.reshape((1,) * (4 - own.mask.ndim) + own.mask.shape)
    mine = jnp.where(mask[:, :, None], mine, _MASKED)
    theirs = jnp.where(shared.mask[:, None, None, None, :], theirs, _MASKED)
    top = jnp.maximum(jnp.max(mine, -1, keepdims=True), jnp.max(theirs, -1, keepdims=True))
    mine, theirs = jnp.exp(mine - top), jnp.exp(theirs - top)
    total = jnp.sum(mine, -1, keepdims=True) + jnp.sum(theirs, -1, keepdims=True)
    mine, theirs = ((weights / total).astype(q.dtype) for weights in (mine, theirs))
    out = jnp.einsum("pgkht,pgktd->pgkhd", mine, own.cache.values)
    return out + jnp.einsum("pgkht,pktd->pgkhd", theirs, shared.cache.values)


_MASKED = -1e30  # finite, so that a row without visible keys has no NaN


class Block(nn.Module):
    """Attention and SwiGLU, each after a norm and added to the stream."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        self.input_norm = RMSNorm(c.norm_epsilon, c.param_dtype)
        self.attention = Attention(c)
        self.post_norm = RMSNorm(c.norm_epsilon, c.param_dtype)
        self.gate_proj = _dense(c, c.intermediate)
        self.up_proj = _dense(c, c.intermediate)
        self.down_proj = _dense(c, c.width)

    def project(self, x: Array, angles: rotary.Angles) -> tuple[Array, KeyValues]:
        """See `Attention.project`; normalises first."""
        return self.attention.project(self.input_norm(x), angles)

    def finish(self, x: Array, queries: Array, shared: Segment | None, own: Segment) -> Array:
        """The block's output given its projections and the keys they may attend to."""
        x = x + self.attention.attend(queries, shared, own)
        y = self.post_norm(x)
        return x + self.down_proj(nn.silu(self.gate_proj(y)) * self.up_proj(y))


def _same(x: Array) -> Array:
    return x


class Transformer(nn.Module):
    """See the module docstring.

    Attributes:
      config: sizes and variants.
      stream: applied to the hidden states `[P, G, S, D]` after the embedding and after every
        block; on several devices it says how they are split.
    """

    config: TransformerConfig
    stream: Callable[[Array], Array] = _same

    def setup(self):
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.width, dtype=c.dtype, param_dtype=c.param_dtype)
        self.blocks = Block(c) if c.scan else [Block(c) for _ in range(c.layers)]
        self.final_norm = RMSNorm(c.norm_epsilon, c.param_dtype)
        if not c.tie_embeddings:
            init = nn.initializers.normal(c.width**-0.5)
            self.head = self.param("head", init, (c.width, c.vocab_size), c.param_dtype)

    def head_weight(self) -> Float[Array, "D V"]:
        """The output matrix."""
        return self.embed.embedding.T if self.config.tie_embeddings else self.head

    def encode(
        self, tokens: Int[Array, "P L"], lengths: Int[Array, "P"]
    ) -> tuple[Float[Array, "P L D"], Caches]:
        """Hidden states and cache of right-padded prompts."""
        length = tokens.shape[1]
        positions = jnp.arange(length, dtype=jnp.int32)
        angles = self._angles(positions[None, None, :])
        causal = positions[:, None] >= positions[None, :]
        valid = positions[None, :] < lengths[:, None]
        mask = causal[None, None] & valid[:, None, None, :]

        def run(block: Block, x: Array):
            queries, own = block.project(x, angles)
            x = self.stream(block.finish(x, queries, None, Segment(own, mask)))
            return x, KeyValues(own.keys[:, 0], own.values[:, 0])

        x, caches = self._through(run, self.stream(self.embed(tokens)[:, None]))
        return self.final_norm(x)[:, 0], caches

    def extend(
        self,
        tokens: Int[Array, "P G S"],
        lengths: Int[Array, "P"],
        prefix: Caches,
    ) -> Float[Array, "P G S D"]:
        """Hidden states of whole responses that follow encoded prompts."""
        steps = jnp.arange(tokens.shape[2], dtype=jnp.int32)
        angles = self._angles((lengths[:, None] + steps[None, :])[:, None, :])
        causal = steps[:, None] >= steps[None, :]

        def run(block: Block, x: Array, cache: KeyValues):
            queries, own = block.project(x, angles)
            shared = self._shared(cache, lengths)
            return self.stream(block.finish(x, queries, shared, Segment(own, causal))), None

        x, _ = self._through(run, self.stream(self.embed(tokens)), prefix)
        return self.final_norm(x)

    def decode(
        self,
        tokens: Int[Array, "P G"],
        step: Int[Array, ""],
        lengths: Int[Array, "P"],
        prefix: Caches,
        own: Caches,
    ) -> tuple[Float[Array, "P G D"], Caches]:
        """Hidden state after response token number `step`, and the caches with it written.

        Args:
          tokens: the response token at `step`.
          step: its position in the response, the same for all samples.
          lengths: of the prompts.
          prefix: cache of the prompts.
          own: caches `[P, G, K, S, d]` of the responses, filled below `step`.
        """
        angles = self._angles((lengths + step)[:, None, None])
        x = self.stream(self.embed(tokens)[:, :, None])
        slots = jax.tree.leaves(own)[0].shape[-2]
        visible = jnp.arange(slots, dtype=jnp.int32)[None, :] <= step

        def run(block: Block, x: Array, cache: KeyValues, write: Callable):
            queries, new = block.project(x, angles)
            past, written = write(new)
            shared = self._shared(cache, lengths)
            return self.stream(block.finish(x, queries, shared, Segment(past, visible))), written

        x, own = (self._decode_scanned if self.config.scan else self._decode)(
            run, x, step, prefix, own
        )
        return self.final_norm(x)[:, :, 0], own

    def _decode(self, run, x, step, prefix, own):
        """`run` over all blocks, each with a cache of its own."""
        caches = []
        for block, cache, past in zip(self.blocks, prefix, own):

            def write(new: KeyValues, past: KeyValues = past):
                put = jax.lax.dynamic_update_slice_in_dim
                past = jax.tree.map(lambda a, b: put(a, b, step, axis=3), past, new)
                return past, past

            x, written = run(block, x, cache, write)
            caches.append(written)
        return x, tuple(caches)

    def _decode_scanned(self, run, x, step, prefix, own):
        """The same in a loop that carries the caches, so that they are written in place."""

        def body(block: Block, carry, cache: KeyValues):
            x, layer, own = carry

            def write(new: KeyValues):
                start = (layer, 0, 0, 0, step, 0)
                put, take = jax.lax.dynamic_update_slice, jax.lax.dynamic_index_in_dim
                written = jax.tree.map(lambda a, b: put(a, b[None], start), own, new)
                return jax.tree.map(lambda a: take(a, layer, keepdims=False), written), written

            x, own = run(block, self.stream(x), cache, write)
            return (x, layer + 1, own), None

        carry = (x, jnp.zeros((), jnp.int32), own)
        (x, _, own), _ = self._scan(body)(self.blocks, carry, prefix)
        return x, own

    def _through(self, run: Callable, x: Array, *caches: Caches) -> tuple[Array, Any]:
        """`run(block, x, *cache) -> (x, output)` over all blocks, and their outputs."""
        c, outputs = self.config, []
        run = nn.remat(run, prevent_cse=not c.scan) if c.remat else run
        if c.scan:

            def body(block: Block, x: Array, *own: KeyValues):
                return run(block, self.stream(x), *own)  # or the compiler places what is carried

            return self._scan(body)(self.blocks, x, *caches)
        for block, *own in zip(self.blocks, *caches):
            x, output = run(block, x, *own)
            outputs.append(output)
        return x, tuple(outputs)

    def _scan(self, body: Callable) -> Callable:
        """`body` in a loop over stacked parameters."""
        return nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True},
            length=self.config.layers,
        )  # fmt: skip

    def _angles(self, positions: Int[Array, "*shape"]) -> rotary.Angles:
        c = self.config
        return rotary.angles(positions, c.size_per_head, c.rope_theta, c.rope_scaling)

    def _shared(self, cache: KeyValues, lengths: Int[Array, "P"]) -> Segment:
        slots = jnp.arange(cache.keys.shape[2], dtype=jnp.int32)
        return Segment(cache, slots[None, :] < lengths[:, None])


def stack_blocks(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters for `scan`: those of all blocks in `blocks`, layers leading."""
    rest = {name: own for name, own in params.items() if not name.startswith("blocks_")}
    blocks = [params[f"blocks_{layer}"] for layer in range(len(params) - len(rest))]
    return {**rest, "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def empty_cache(
    config: TransformerConfig, prompts: int, group_size: int, steps: int
) -> Caches:
    """Zeroed response caches of all layers."""
    shape = (prompts, group_size, config.kv_heads, steps, config.size_per_head)
    if config.scan:
        stacked = jnp.zeros((config.layers,) + shape, config.dtype)
        return KeyValues(stacked, stacked)
    zeros = jnp.zeros(shape, config.dtype)
    return tuple(KeyValues(zeros, zeros) for _ in range(config.layers))
