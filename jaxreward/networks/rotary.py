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
    """Cosines and sines `[..., head_dim // 2]`, float32."""

    cos: Float[Array, "*shape half"]
    sin: Float[Array, "*shape half"]


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
    """Cosines and sines of every position."""
    rate = jnp.asarray(frequencies(head_dim, theta, scaling))
    rate = rate.reshape((1,) * positions.ndim + (-1,))
    radians = positions.astype(jnp.float32)[..., None] * rate
    return Angles(jnp.cos(radians), jnp.sin(radians))


def rotate(x: Float[Array, "*shape heads d"], by: Angles) -> Float[Array, "*shape heads d"]:
    """Rotates each head of `x`; angles broadcast over leading axes and heads.

    The halves change places by a flip, which compilers fuse with what is around it, forward and
    backward; slices laid side by side cost a CPU twice the time.
    """
    cos, sin = (part[..., None, None, :].astype(x.dtype) for part in by)
    halves = x.reshape(x.shape[:-1] + (2, -1))
    turned = jnp.concatenate([-sin, sin], axis=-2) * jnp.flip(halves, axis=-2)
    return (halves * cos + turned).reshape(x.shape)
