"""How well pictures compress: a reward without gradient (after arXiv 2305.13301)."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def compressed_bytes(images: Float[Array | np.ndarray, "*batch H W C"]) -> Float[Array, "*batch"]:
    """Size in bytes, float32, of each picture as zlib (level 9) packs its 8-bit pixels.

    NaN for a picture that holds one: there is nothing to pack. Safe under `jit` and `vmap`;
    computed on the host, without gradient.

    Args:
      images: values in [-1, 1]; others are clipped.
    """
    shape = jax.ShapeDtypeStruct(images.shape[:-3], jnp.float32)
    images = jax.lax.stop_gradient(jnp.asarray(images))
    return jax.pure_callback(compressed_sizes, shape, images, vmap_method="broadcast_all")


def compressed_sizes(images: Any) -> np.ndarray:
    """The same on the host, for anything that numpy takes for an array."""
    images = np.asarray(images)
    unknown = np.isnan(images)
    shown = np.where(unknown, 0.0, np.clip(images, -1.0, 1.0))
    pixels = np.round((shown + 1.0) * 127.5).astype(np.uint8)
    flat = pixels.reshape((-1,) + pixels.shape[-3:])
    sizes = [len(zlib.compress(picture.tobytes(), 9)) for picture in flat]
    found = np.asarray(sizes, np.float32).reshape(images.shape[:-3])
    return np.where(np.any(unknown, axis=(-3, -2, -1)), np.float32(np.nan), found)
