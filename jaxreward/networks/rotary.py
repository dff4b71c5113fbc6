"""Rotary position embedding (arXiv 2104.09864), halves rotated as in Llama checkpoints."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Llama3Scaling(NamedTuple):
    """Frequency scaling of Llama 3.1: long wavelengths are slowed by `factor`."""

    factor: float = 8.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_length: int = 8192


class LinearScaling(NamedTuple):
    """Positions divided by `factor` (Gemma 3 from 4B on)."""

    factor: float


Scaling = Llama3Scaling | LinearScaling


class Angles(NamedTuple):
    """What each channel is multiplied with, float32: itself with `cos`, its partner with `sin`."""

    cos: Float[Array, "*shape d"]
    sin: Float[Array, "*shape d"]


def frequencies(head_dim: int, theta: float, scaling: Scaling | None) -> np.ndarray:
    """Radians per position of each pair of channels, float32 `[head_dim // 2]`."""
    base = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if scaling is None:
        return base.astype(np.float32)
    if isinstance(scaling, LinearScaling):
        return (base / scaling.factor).astype(np.float32)
    wavelength = 2 * math.pi / base
    ratio = scaling.original_length / wavelength
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    smooth = np.clip((ratio - low) / (high - low), 0.0, 1.0)
    return ((1 - smooth) * base / scaling.factor + smooth * base).astype(np.float32)


def angles(
    positions: Int[Array, "*shape"], head_dim: int, theta: float, scaling: Scaling | None
) -> Angles:
    """Of every position.

    Both halves of the channels are written out, so that a CPU reads them where it would compute a
    cosine anew for every channel of every head.
    """
    rate = jnp.asarray(frequencies(head_dim, theta, scaling))
    rate = rate.reshape((1,) * positions.ndim + (-1,))
    radians = positions.astype(jnp.float32)[..., None] * rate
    cos, sin = jnp.cos(radians), jnp.sin(radians)
    return Angles(jnp.concatenate([cos, cos], -1), jnp.concatenate([-sin, sin], -1))


def rotate(x: Float[Array, "*shape heads d"], by: Angles) -> Float[Array, "*shape heads d"]:
    """Rotates each head of `x`; angles broadcast over leading axes and heads."""
    cos, sin = (part[..., None, :].astype(x.dtype) for part in by)
    # A flip fuses with what is around it, forward and backward; slices laid side by side do not.
    turned = jnp.flip(x.reshape(x.shape[:-1] + (2, -1)), axis=-2).reshape(x.shape)
    return x * cos + turned * sin
