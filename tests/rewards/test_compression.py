"""Compressed size as a reward."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxreward.rewards.compression import compressed_bytes


def test_sizes_are_those_of_zlib(key):
    images = jax.random.uniform(key, (2, 3, 8, 8, 1), minval=-1.2, maxval=1.2)
    found = jax.jit(compressed_bytes)(images)
    pixels = np.round((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)
    for i in np.ndindex(2, 3):
        assert found[i] == len(zlib.compress(pixels[i].tobytes(), 9))
    np.testing.assert_array_equal(jax.vmap(compressed_bytes)(images), found)


def test_a_picture_that_is_no_number_is_not_the_smallest(key):
    images = jax.random.uniform(key, (3, 8, 8, 1), minval=-1.0)
    broken = images.at[1].set(jnp.nan)
    found = jax.jit(compressed_bytes)(broken)
    np.testing.assert_array_equal(np.isnan(found), [False, True, False])
    np.testing.assert_array_equal(found[::2], compressed_bytes(images)[::2])


def test_flat_pictures_are_small_and_there_is_no_gradient(key):
    noise = jax.random.uniform(key, (8, 8, 1), minval=-1.0)
    assert compressed_bytes(jnp.zeros((8, 8, 1))) < 0.3 * compressed_bytes(noise)
    np.testing.assert_array_equal(jax.grad(lambda x: compressed_bytes(x))(noise), 0.0)
