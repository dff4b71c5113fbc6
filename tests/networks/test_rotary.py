"""Rotary positions: rotations by the formula, relative only, and the Llama 3 scaling."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.networks import rotary

HEAD_DIM, THETA = 8, 10_000.0


def rotated(x, positions):
    """`x` `[T, d]` rotated at `positions` `[T]`."""
    by = rotary.angles(jnp.asarray(positions, jnp.int32), x.shape[-1], THETA, None)
    return np.asarray(rotary.rotate(jnp.asarray(x, jnp.float32)[:, None], by))[:, 0]


def test_each_pair_of_channels_is_a_complex_number_turned_by_its_angle():
    x = np.random.default_rng(0).normal(size=(5, HEAD_DIM)).astype(np.float32)
    positions = np.asarray([0, 1, 2, 17, 300])
    rate = THETA ** -(np.arange(HEAD_DIM // 2) * 2 / HEAD_DIM)
    turned = (x[:, :4] + 1j * x[:, 4:]) * np.exp(1j * positions[:, None] * rate)
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rotated(x, positions), expected, atol=1e-4)
    np.testing.assert_array_equal(rotated(x, positions)[0], x[0])


@pytest.mark.parametrize("shift", [1, 50, 1000])
def test_products_depend_on_the_distance_only(shift):
    rng = np.random.default_rng(1)
    q, k = (rng.normal(size=(6, HEAD_DIM)) for _ in range(2))
    at, other = np.arange(6), np.arange(6)[::-1].copy()
    near = np.sum(rotated(q, at) * rotated(k, other), axis=-1)
    far = np.sum(rotated(q, at + shift) * rotated(k, other + shift), axis=-1)
    np.testing.assert_allclose(near, far, atol=2e-3)
    moved = np.sum(rotated(q, at + shift) * rotated(k, other), axis=-1)
    assert np.abs(near - moved).max() > 0.1


def test_lengths_are_kept_and_the_inverse_is_the_negative_position():
    x = np.random.default_rng(2).normal(size=(4, HEAD_DIM)).astype(np.float32)
    there = rotated(x, [3, 5, 7, 11])
    np.testing.assert_allclose(np.linalg.norm(there, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(rotated(there, [-3, -5, -7, -11]), x, atol=1e-5)


def test_llama3_scaling_follows_the_formula_band_by_band():
    scaling = rotary.Llama3Scaling(8.0, 1.0, 4.0, 8192)
    found = rotary.frequencies(128, 500_000.0, scaling)
    expected = []
    for i in range(64):
        rate = 500_000.0 ** (-2 * i / 128)
        wavelength = 2 * math.pi / rate
        if wavelength < 8192 / 4.0:
            expected.append(rate)
        elif wavelength > 8192 / 1.0:
            expected.append(rate / 8.0)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            expected.append((1 - smooth) * rate / 8.0 + smooth * rate)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    plain = rotary.frequencies(128, 500_000.0, None)
    ratio = found / plain
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(1 / 8) and np.any((ratio > 0.13) & (ratio < 0.99))


def test_types_are_kept_and_angles_are_float32():
    by = rotary.angles(jnp.arange(3, dtype=jnp.int32), HEAD_DIM, THETA, None)
    assert by.cos.dtype == by.sin.dtype == jnp.float32
    x = jax.random.normal(jax.random.key(0), (3, 2, HEAD_DIM), jnp.bfloat16)
    assert rotary.rotate(x, by).dtype == jnp.bfloat16
