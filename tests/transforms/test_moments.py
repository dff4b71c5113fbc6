"""Tests of jaxreward.transforms.moments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.channel import binary
from jaxreward.transforms import advantage, base, correction
from jaxreward.transforms.moments import moments, safe_sqrt
from jaxreward.types import make_signal

ONE = np.float32(1.1)


def ulps(value, n):
    """`value` moved up by `n` of its last bits."""
    return (np.asarray(value).view(np.int32) + n).view(np.float32)


def test_values_that_differ_in_their_last_bits_are_equal():
    mask = jnp.ones((1, 3), bool)
    near = moments(jnp.asarray([[ONE, ulps(ONE, 2), ONE]]), mask)
    assert np.all(np.asarray(near.centred) == 0) and near.variance == 0
    np.testing.assert_allclose(near.mean, [[ONE]], rtol=1e-6)
    apart = moments(jnp.asarray([[ONE, ulps(ONE, 40), ONE]]), mask)
    assert apart.variance > 0
    np.testing.assert_allclose(apart.centred.sum(), 0, atol=1e-7)


@pytest.mark.parametrize("group_size", [3, 5, 6, 8])
def test_a_compiled_correction_of_a_group_without_spread_is_zero(group_size):
    """`(r - a) / J`, rounded differently in two fused loops, must not become a z-score."""
    chain = base.chain(
        correction.backward(), advantage.grpo(), provided=("rates",), on_inert="allow"
    )
    groups = np.tril(np.ones((2 * group_size, group_size))).astype(np.float32)

    def update(pair, row):
        signal = make_signal(row[None]).replace(rates=binary(*pair))
        return chain.update(jax.random.key(0), signal, chain.init())[0].advantages[0]

    pairs = jnp.asarray([(a / 40, b / 40) for a in range(18) for b in range(18)], jnp.float32)
    over_groups = jax.vmap(update, in_axes=(None, 0))
    result = jax.jit(jax.vmap(over_groups, in_axes=(0, None)))(pairs, jnp.asarray(groups))
    flat = np.ptp(groups, axis=1) == 0
    assert flat.sum() == group_size + 1
    assert np.all(np.asarray(result)[:, flat] == 0)
    assert np.all(np.abs(np.asarray(result)[:, ~flat]).max(axis=-1) > 0.3)


def test_weighted_moments():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(2, 6)).astype(np.float32)
    weights = rng.uniform(0.1, 2, size=(2, 6)).astype(np.float32)
    mask = rng.uniform(size=(2, 6)) < 0.7
    result = moments(jnp.asarray(values), jnp.asarray(mask), jnp.asarray(weights), ddof=1)
    for row in range(2):
        v, w = values[row][mask[row]].astype(float), weights[row][mask[row]].astype(float)
        mean = np.average(v, weights=w)
        effective = w.sum() ** 2 / (w**2).sum()
        variance = np.average((v - mean) ** 2, weights=w) * effective / (effective - 1)
        for measured, expected in (
            (result.mean, mean), (result.variance, variance), (result.effective, effective),
            (result.total, w.sum()),
        ):
            np.testing.assert_allclose(measured[row, 0], expected, rtol=1e-5)
        np.testing.assert_allclose(result.centred[row][mask[row]], v - mean, atol=1e-6)
        assert np.all(np.asarray(result.centred)[row][~mask[row]] == 0)


def test_nothing_selected():
    empty = moments(jnp.full((2, 3), jnp.nan), jnp.zeros((2, 3), bool))
    for leaf in empty:
        assert np.all(np.asarray(leaf) == 0)


def test_the_root_has_gradient_zero_at_zero():
    assert jax.grad(lambda x: safe_sqrt(x))(0.0) == 0.0
    np.testing.assert_allclose(safe_sqrt(jnp.asarray([-1.0, 0.0, 4.0])), [0, 0, 2])
