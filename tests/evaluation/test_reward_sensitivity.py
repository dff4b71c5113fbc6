"""Correlations against scipy, effects of length and format by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxreward.evaluation import reward_sensitivity as sensitivity

PEARSON, SPEARMAN = jax.jit(sensitivity.correlation), jax.jit(sensitivity.rank_correlation)
LENGTH, FORMAT = jax.jit(sensitivity.length_effect), jax.jit(sensitivity.format_effect)


def drawn(key):
    keys = jax.random.split(key, 3)
    x = jax.random.normal(keys[0], (60,))
    y = 0.5 * x + jax.random.normal(keys[1], (60,))
    return x, y, jnp.round(2 * x + y), jax.random.bernoulli(keys[2], 0.7, (60,))


def test_against_scipy(key):
    x, y, z, mask = drawn(key)
    kept = np.asarray(mask)
    hidden = jnp.where(mask, x, jnp.nan)
    for ours, theirs in (
        (PEARSON, stats.pearsonr), (SPEARMAN, stats.spearmanr)
    ):
        for a, b in ((hidden, y), (hidden, z), (z, y)):
            expected = theirs(np.asarray(a)[kept], np.asarray(b)[kept]).statistic
            assert ours(a, b, mask) == pytest.approx(expected, abs=2e-5)
    np.testing.assert_allclose(sensitivity.ranks(z), stats.rankdata(z))


def test_partial_correlation_is_that_of_residuals(key):
    x, y, z, _ = drawn(key)
    left = [v - np.polyval(np.polyfit(np.asarray(z), np.asarray(v), 1), np.asarray(z)) for v in (x, y)]
    expected = np.corrcoef(*left)[0, 1]
    partial = jax.jit(sensitivity.partial_correlation)
    assert partial(x, y, z) == pytest.approx(expected, abs=1e-4)
    assert partial(x, y, x) == 0  # nothing is left


def test_constants_have_no_correlation():
    x = jnp.arange(5.0)
    for measure in (PEARSON, SPEARMAN):
        assert measure(x, jnp.full(5, 0.1)) == 0
        assert measure(x, x, jnp.zeros(5, bool)) == 0


def test_length_effect():
    margin = jnp.array([1.0, 2.0, -1.0, 0.0, 1.0, -3.0])
    length = jnp.array([5.0, 1.0, 2.0, -3.0, -1.0, -9.0])
    found = LENGTH(margin, length)
    assert found.accuracy_longer == pytest.approx(2 / 3)
    assert found.accuracy_shorter == pytest.approx(1 / 3)
    assert found.bias == pytest.approx(1 / 3) and (found.longer, found.shorter) == (3, 3)
    assert found.correlation == pytest.approx(np.corrcoef(margin, length)[0, 1], abs=1e-5)
    only_longer = LENGTH(margin, length, length > 0)
    assert only_longer.bias == 0 and only_longer.shorter == 0


def test_wording_effect():
    nan = jnp.nan
    margins = jnp.array([[1.0, -1.0, 0.0], [2.0, nan, nan], [nan, nan, nan], [1.0, nan, nan]])
    reworded = jnp.array([
        [[0.5, -2.0, 0.0], [-1.0, 1.0, 1.0]],
        [[3.0, 1.0, nan], [nan, 1.0, nan]],
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]],
        [[nan, nan, nan], [nan, nan, nan]],
    ])  # fmt: skip
    found = jax.jit(sensitivity.wording_effect)(margins, reworded)
    np.testing.assert_array_equal(found.known, [True, True, False, False])
    np.testing.assert_allclose(found.kept[:2], [3 / 6, 1])
    np.testing.assert_allclose(found.right[:2], [3 / 6, 1])


def test_format_effect():
    rewards = jnp.array([[1.0, 3.0, jnp.nan], [5.0, 7.0, 6.0], [2.0, jnp.nan, jnp.nan]])
    found = FORMAT(rewards, jnp.array([2.0, 4.0, 0.0]))
    assert found.answers == 2 and found.flips == 0.5
    within = np.mean([2.0, 1.0])
    assert found.spread == pytest.approx(np.sqrt(within) / np.std([2.0, 6.0], ddof=1), rel=1e-5)
    same = FORMAT(jnp.ones((3, 2)) * jnp.arange(3.0)[:, None], jnp.zeros(3))
    assert same.spread == 0 and same.flips == 0
