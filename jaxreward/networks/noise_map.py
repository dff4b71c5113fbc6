"""NPNet: a learned map from a random noise and a prompt to a golden noise (arXiv 2411.09502).

`x* = f(x) + (2 sigmoid(a) - 1) e + b h(x + e)`: f keeps the singular vectors of the noise and
predicts new singular values, e is the noise modulated by the prompt, h a residual image-to-image
network. At the start a = b = 0.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Bool, Float


def fold(noise: Float[Array, "C H W"]) -> Float[Array, "aH cW"]:
    """Channels side by side as one matrix: `(a c) h w -> (a h) (c w)` with `a = c`.

    Raises:
      ValueError: the number of channels is no square.
    """
    channels, height, width = noise.shape
    side = _side(channels)
    parts = noise.reshape(side, side, height, width).transpose(0, 2, 1, 3)
    return parts.reshape(side * height, side * width)


def unfold(matrix: Float[Array, "aH cW"], channels: int) -> Float[Array, "C H W"]:
    """The inverse of `fold`."""
    side = _side(channels)
    height, width = matrix.shape[0] // side, matrix.shape[1] // side
    parts = matrix.reshape(side, height, side, width).transpose(0, 2, 1, 3)
    return parts.reshape(channels, height, width)


def _side(channels: int) -> int:
    side = round(channels**0.5)
    if side * side != channels:
        raise ValueError(f"channels = {channels}; allowed are squares: 1, 4, 9, ...")
    return side


def shift_singular_values(
    matrix: Float[Array, "H W"], change: Float[Array, "r"]
) -> Float[Array, "H W"]:
    """`U diag(s + change) V^T`; new values need be neither positive nor in order."""
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return (left * (values + change)[None, :]) @ right


class Decomposition(NamedTuple):
    """`left diag(values) right` of a folded noise: no part of it is learned."""

    left: Float[Array, "*B aH r"]
    values: Float[Array, "*B r"]
    right: Float[Array, "*B r cW"]


def decompose(noise: Float[Array, "C H W"]) -> Decomposition:
    """Singular values and vectors of the folded noise; once for a noise that is met often."""
    return Decomposition(*jnp.linalg.svd(fold(noise), full_matrices=False))


def group_norm(noise: Float[Array, "C H W"]) -> Float[Array, "C H W"]:
    """Mean 0 and variance 1 over all channels and pixels, epsilon 1e-6."""
    centred = noise - jnp.mean(noise)
    return centred / jnp.sqrt(jnp.mean(jnp.square(centred)) + 1e-6)


def modulate(
    noise: Float[Array, "C H W"], scale: Float[Array, "C"], shift: Float[Array, "C"]
) -> Float[Array, "C H W"]:
    """`(1 + scale) * group_norm(noise) + shift` by channel."""
    return (1 + scale[:, None, None]) * group_norm(noise) + shift[:, None, None]


class SingularValues(nn.Module):
    """Predicts the change of the singular values of a matrix from its decomposition.

    Attributes:
      hidden: width of the first layers.
      wide: width of the last.
      attention: mix rows by self-attention and average them before the last layers, as the
        authors' inference code does; else average after them, as their training code does.
      heads: of the attention.
    """

    hidden: int = 64
    wide: int = 1024
    attention: bool = False
    heads: int = 8

    @nn.compact
    def __call__(self, left: Array, values: Array, right: Array) -> Array:
        """`[r]` from U `[H, r]`, the values `[r]` and V^T `[r, W]`."""
        rank = values.shape[0]
        if self.attention and rank % self.heads:
            raise ValueError(f"heads = {self.heads}; allowed are divisors of the rank, {rank}")
        mlp = lambda x, width: nn.Dense(rank)(nn.relu(nn.Dense(width)(x)))
        rows = mlp(left.T, self.hidden) + mlp(right, self.hidden) + nn.Dense(rank)(values)[None, :]
        if not self.attention:
            return jnp.mean(mlp(rows, self.wide), axis=0)
        mixed = nn.MultiHeadDotProductAttention(self.heads)(rows)
        return mlp(jnp.mean(mixed, axis=0), self.wide)


class NoiseMap(nn.Module):
    """NPNet for one noise and one prompt; `vmap` it over a batch.

    Attributes:
      svd_attention: as in `SingularValues`; the same choice for training and use.
      hidden: width of the singular-value branch's first layers.
      wide: of its last.
      channels: of the residual branch's hidden layers.
      heads: of the attention; must divide the rank.
      parts: "full", or what is left of it: "svd" alone, "svd+prompt", or "residual" alone.
    """

    svd_attention: bool = False
    hidden: int = 64
    wide: int = 1024
    channels: int = 32
    heads: int = 8
    parts: str = "full"

    @nn.compact
    def __call__(self, noise: Array, prompt: Array, known: Decomposition | None = None) -> Array:
        """Golden noise `[C, H, W]` from noise `[C, H, W]` and the prompt's embedding, any shape.

        `known` is the noise's decomposition, computed here where it is None.
        """
        if self.parts not in PARTS:
            raise ValueError(f"parts = {self.parts!r}; allowed are {', '.join(PARTS)}")
        embedded = self._embedded(noise, prompt)
        a = self.param("a", nn.initializers.zeros, ())
        b = self.param("b", nn.initializers.zeros, ())
        if self.parts == "residual":
            return noise + b * self._residual(noise + embedded)
        mapped = self._decomposed(noise, decompose(noise) if known is None else known)
        if self.parts != "svd":
            mapped = mapped + (2 * nn.sigmoid(a) - 1) * embedded
        return mapped + b * self._residual(noise + embedded) if self.parts == "full" else mapped

    def _embedded(self, noise: Array, prompt: Array) -> Array:
        both = nn.Dense(2 * noise.shape[0], name="modulation")(prompt.reshape(-1))
        scale, shift = jnp.split(both, 2)
        return modulate(noise, scale, shift)

    def _decomposed(self, noise: Array, known: Decomposition) -> Array:
        left, values, right = known
        branch = SingularValues(
            self.hidden, self.wide, self.svd_attention, self.heads, name="values"
        )
        changed = values + branch(left, values, right)
        return unfold((left * changed[None, :]) @ right, noise.shape[0])

    def _residual(self, noise: Array) -> Array:
        x = noise.transpose(1, 2, 0)
        for i in range(2):
            x = nn.silu(_Convolution(self.channels, name=f"conv_{i}")(x))
        return _Convolution(noise.shape[0], name="conv_2")(x).transpose(2, 0, 1)


class _Convolution(nn.Module):
    """A 3x3 convolution as one matrix product, whose gradient is far faster on a CPU."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        height, width, _ = x.shape
        wide = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
        shifts = [wide[i : i + height, j : j + width] for i in range(3) for j in range(3)]
        return nn.Dense(self.features, name="kernel")(jnp.concatenate(shifts, axis=-1))


PARTS = ("full", "svd", "svd+prompt", "residual")
"""What of NPNet is in use: all, or one of its ablations."""


def released_params(trained: Any, start: Any) -> Any:
    """What the authors' inference code runs: trained without attention, applied with it.

    Their two variants name their parameters alike, so weights of the one load into the other.

    Args:
      trained: of a `NoiseMap` without `svd_attention`.
      start: of the same with it, as initialised.

    Returns:
      Parameters for `svd_attention`: those of `trained`, and an attention that nobody trained.
    """
    return unflatten_dict({**flatten_dict(start), **flatten_dict(trained)})


def map_batch(
    apply,
    params,
    noise: Float[Array, "B C H W"],
    prompts: Float[Array, "B *E"],
    known: Decomposition | None = None,
    *,
    as_released: bool | Bool[Array, ""] = False,
) -> Float[Array, "B C H W"]:
    """A `NoiseMap` over a batch, each noise with its own prompt.

    Args:
      apply: of the module: `(params, noise, prompt, known) -> noise`.
      params: of the module.
      noise: batch.
      prompts: their embeddings.
      known: decompositions of the noises, if at hand.
      as_released: give the first prompt to the whole batch, as the authors' training code does.
    """
    prompts = jnp.where(as_released, jnp.broadcast_to(prompts[:1], prompts.shape), prompts)
    return jax.vmap(apply, in_axes=(None, 0, 0, 0))(params, noise, prompts, known)
