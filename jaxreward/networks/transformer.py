"""A decoder-only transformer: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

One parameter leaf stands for one tensor of a Llama-, Qwen2-, Qwen3- or Gemma-3-style
checkpoint; `TransformerConfig` says in what they differ. The network never repeats a prompt
for its group: responses `[P, G, S]` attend to the keys and values of their prompt `[P, L]` and
to their own. Three entries share all layers:

* `encode`: the prompts, once, to hidden states and a cache;
* `extend`: whole responses given the prompts' cache (scoring);
* `decode`: one token of every response given both caches (sampling).

Logits are never formed here: `head_weight` and the hidden states go to
`policies.language`, where log-probabilities are.
"""

import functools
from typing import Any, Callable, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxreward.networks import rotary
from jaxreward.networks.attention import Attention, KeyValues, Segment, norm, projection
from jaxreward.networks.transformer_config import TransformerConfig


Caches = KeyValues | tuple[KeyValues, ...]
"""Of all layers: one each, or with `scan` one whose arrays have a leading axis of layers."""


class Block(nn.Module):
    """Attention and SwiGLU, each after a norm and added to the stream."""

    config: TransformerConfig

    def setup(self):
        c = self.config
        self.input_norm = norm(c)
        self.attention = Attention(c)
        self.post_norm = norm(c)
        self.gate_proj = projection(c, c.intermediate)
        self.up_proj = projection(c, c.intermediate)
        self.down_proj = projection(c, c.width)
        if c.output_norms:
            self.attention_norm = norm(c)
            self.feedforward_norm = norm(c)

    def project(self, x: Array, angles: rotary.Angles) -> tuple[Array, KeyValues]:
        """See `Attention.project`; normalises first."""
        return self.attention.project(self.input_norm(x), angles)

    def finish(
        self, x: Array, queries: Array, shared: Segment | None, own: Segment, decoding: bool = False
    ) -> Array:
        """The block's output given its projections and the keys they may attend to."""
        attended = self.attention.attend(queries, shared, own, decoding)
        x = x + (self.attention_norm(attended) if self.config.output_norms else attended)
        gated = self._gated(self.post_norm(x))
        return x + (self.feedforward_norm(gated) if self.config.output_norms else gated)

    def _gated(self, x: Array) -> Array:
        gelu = functools.partial(nn.gelu, approximate=True)
        activation = {"silu": nn.silu, "gelu_tanh": gelu}[self.config.activation]
        return self.down_proj(activation(self.gate_proj(x)) * self.up_proj(x))


class View(NamedTuple):
    """Where the tokens of a call stand, and what the tokens of one layer see.

    Attributes:
      angles: of their positions.
      own: mask of the call's own keys, see `Segment`.
      shared: mask of their prompts' keys, None without a prefix.
    """

    angles: rotary.Angles
    own: Array
    shared: Array | None


_FAR = 1 << 30  # more tokens than any context holds


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
        self.final_norm = norm(c)
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
        x, caches = self._encode(self._embed(tokens[:, None]), lengths, lambda x, own: own)
        return self.final_norm(x)[:, 0], caches

    def hidden_states(
        self, tokens: Int[Array, "P L"], lengths: Int[Array, "P"], layers: tuple[int, ...]
    ) -> tuple[Float[Array, "P L D"], ...]:
        """States of right-padded texts after the given numbers of blocks.

        0 is the embedding and `config.layers` the last state, after the final norm. With `scan`
        the states of all blocks are kept while it runs.

        Raises:
          ValueError: a layer outside `[0, config.layers]`.
        """
        depth = self.config.layers
        if not all(0 <= layer <= depth for layer in layers):
            raise ValueError(f"layers = {layers}; allowed are 0 to {depth}")
        start = self._embed(tokens[:, None])
        last, blocks = self._encode(start, lengths, lambda x, own: x)
        found = {0: start, depth: self.final_norm(last)}
        return tuple((found[i] if i in found else blocks[i - 1])[:, 0] for i in layers)

    def _encode(self, x: Array, lengths: Array, keep: Callable) -> tuple[Array, Any]:
        """Texts through all blocks, and `keep(state, key and values)` of every block."""
        length = x.shape[2]
        positions = jnp.arange(length, dtype=jnp.int32)
        causal = positions[:, None] >= positions[None, :]
        valid = positions[None, :] < lengths[:, None]

        def view(sliding: bool) -> View:
            seen = causal & self._near(positions[:, None], positions[None, :], sliding)
            mask = seen[None, None] & valid[:, None, None, :]
            return View(self._angles(positions[None, None, :], sliding), mask, None)

        def run(block: Block, view: View, x: Array):
            queries, own = block.project(x, view.angles)
            x = self.stream(block.finish(x, queries, None, Segment(own, view.own)))
            return x, keep(x, KeyValues(own.keys[:, 0], own.values[:, 0]))

        return self._through(run, self._views(view), x)

    def extend(
        self,
        tokens: Int[Array, "P G S"],
        lengths: Int[Array, "P"],
        prefix: Caches,
    ) -> Float[Array, "P G S D"]:
        """Hidden states of whole responses that follow encoded prompts."""
        steps = jnp.arange(tokens.shape[2], dtype=jnp.int32)
        positions = lengths[:, None] + steps[None, :]
        causal = steps[:, None] >= steps[None, :]

        def view(sliding: bool) -> View:
            own = causal & self._near(steps[:, None], steps[None, :], sliding)
            shared = self._prompt_mask(prefix, lengths, positions, sliding)
            return View(self._angles(positions[:, None, :], sliding), own, shared)

        def run(block: Block, view: View, x: Array, cache: KeyValues):
            queries, own = block.project(x, view.angles)
            segments = Segment(cache, view.shared), Segment(own, view.own)
            return self.stream(block.finish(x, queries, *segments)), None

        x, _ = self._through(run, self._views(view), self._embed(tokens), prefix)
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
          own: caches of the responses, see `empty_cache`, filled below `step`.
        """
        positions = (lengths + step)[:, None]
        slots = jnp.arange(jax.tree.leaves(own)[0].shape[-1], dtype=jnp.int32)[None, :]

        def view(sliding: bool) -> View:
            visible = (slots <= step) & self._near(step, slots, sliding)
            shared = self._prompt_mask(prefix, lengths, positions, sliding)
            return View(self._angles(positions[:, None, :], sliding), visible, shared)

        def run(block: Block, view: View, x: Array, cache: KeyValues, write: Callable):
            queries, new = block.project(x, view.angles)
            past, written = write(KeyValues(jnp.swapaxes(new.keys, -1, -2), new.values))
            segments = Segment(cache, view.shared), Segment(past, view.own)
            return self.stream(block.finish(x, queries, *segments, decoding=True)), written

        x, own = (self._decode_scanned if self.config.scan else self._decode)(
            run, self._views(view), self._embed(tokens[:, :, None]), step, prefix, own
        )
        return self.final_norm(x)[:, :, 0], own

    def _decode(self, run, views, x, step, prefix, own):
        """`run` over all blocks, each with a cache of its own."""
        caches = []
        for block, view, cache, past in zip(self.blocks, views, prefix, own):

            def write(new: KeyValues, past: KeyValues = past):
                put = jax.lax.dynamic_update_slice_in_dim
                keys = put(past.keys, new.keys, step, axis=4)
                past = KeyValues(keys, put(past.values, new.values, step, axis=3))
                return past, past

            x, written = run(block, view, x, cache, write)
            caches.append(written)
        return x, tuple(caches)

    def _decode_scanned(self, run, views, x, step, prefix, own):
        """The same in a loop that carries the caches, so that they are written in place."""

        def body(block: Block, carry, cache: KeyValues):
            x, layer, own = carry

            def write(new: KeyValues):
                start = KeyValues((layer, 0, 0, 0, 0, step), (layer, 0, 0, 0, step, 0))
                put, take = jax.lax.dynamic_update_slice, jax.lax.dynamic_index_in_dim
                written = KeyValues(*(put(a, b[None], at) for a, b, at in zip(own, new, start)))
                return jax.tree.map(lambda a: take(a, layer, keepdims=False), written), written

            x, own = run(block, views[0], self.stream(x), cache, write)
            return (x, layer + 1, own), None

        carry = (x, jnp.zeros((), jnp.int32), own)
        (x, _, own), _ = self._scan(body)(self.blocks, carry, prefix)
        return x, own

    def _through(self, run: Callable, views, x: Array, *caches: Caches) -> tuple[Array, Any]:
        """`run(block, view, x, *cache) -> (x, output)` over all blocks, and their outputs."""
        c, outputs = self.config, []
        run = nn.remat(run, prevent_cse=not c.scan) if c.remat else run
        if c.scan:

            def body(block: Block, x: Array, *own: KeyValues):
                # Without `stream` the compiler chooses where what is carried lies.
                return run(block, views[0], self.stream(x), *own)

            return self._scan(body)(self.blocks, x, *caches)
        for block, view, *own in zip(self.blocks, views, *caches):
            x, output = run(block, view, x, *own)
            outputs.append(output)
        return x, tuple(outputs)

    def _scan(self, body: Callable) -> Callable:
        """`body` in a loop over stacked parameters."""
        return nn.scan(
            body, variable_axes={"params": 0}, split_rngs={"params": True},
            length=self.config.layers,
        )  # fmt: skip

    def _embed(self, tokens: Int[Array, "*shape"]) -> Array:
        x = self.embed(tokens)
        if self.config.scale_embeddings:
            x = x * jnp.asarray(self.config.width**0.5, x.dtype)
        return self.stream(x)

    def _views(self, view: Callable[[bool], View]) -> list[View]:
        """`view(sliding)` of every layer, made once for each kind of layer."""
        sliding = [layer in self.config.sliding_layers for layer in range(self.config.layers)]
        kinds = {kind: view(kind) for kind in sorted(set(sliding))}
        return [kinds[kind] for kind in sliding]

    def _angles(self, positions: Int[Array, "*shape"], sliding: bool) -> rotary.Angles:
        c = self.config
        if sliding and c.sliding_rope_theta:
            return rotary.angles(positions, c.size_per_head, c.sliding_rope_theta, None)
        return rotary.angles(positions, c.size_per_head, c.rope_theta, c.rope_scaling)

    def _near(self, queries: Array, keys: Array, sliding: bool) -> Array:
        """Whether keys are inside the window of queries, both given by position."""
        return queries - keys < (self.config.sliding_window if sliding else _FAR)

    def _prompt_mask(self, prefix: Caches, lengths: Array, positions: Array, sliding: bool) -> Array:
        """Of prompts' keys, for queries at `positions [P, S]`: `[P, L]`, or `[P, S, L]`."""
        slots = jnp.arange(jax.tree.leaves(prefix)[0].shape[-2], dtype=jnp.int32)[None, :]
        valid = slots < lengths[:, None]
        if not sliding:
            return valid
        return valid[:, None] & self._near(positions[..., None], slots[None], sliding)


def init(config: TransformerConfig, key: jax.Array) -> dict[str, Any]:
    """Random parameters."""
    tokens, lengths = jnp.zeros((1, 2), jnp.int32), jnp.full((1,), 2, jnp.int32)

    def everything(module: Transformer):
        _, cache = module.encode(tokens, lengths)
        return module.extend(tokens[:, None], lengths, cache), module.head_weight()

    return Transformer(config).init(key, method=everything)["params"]


def stack_blocks(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters for `scan`: those of all blocks in `blocks`, layers leading."""
    rest = {name: own for name, own in params.items() if not name.startswith("blocks_")}
    blocks = [params[f"blocks_{layer}"] for layer in range(len(params) - len(rest))]
    return {**rest, "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def empty_cache(
    config: TransformerConfig, prompts: int, group_size: int, steps: int
) -> Caches:
    """Zeroed response caches of all layers: keys `[P, G, K, d, S]`, values `[P, G, K, S, d]`."""
    lead, depth = (prompts, group_size, config.kv_heads), config.size_per_head

    def empty(*stacked: int) -> KeyValues:
        keys = jnp.zeros(stacked + lead + (depth, steps), config.dtype)
        return KeyValues(keys, jnp.swapaxes(keys, -1, -2))

    if config.scan:
        return empty(config.layers)
    return tuple(empty() for _ in range(config.layers))
