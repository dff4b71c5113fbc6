"""Best-of-n from stored samples, against enumeration of all draws."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.evaluation import best_of_n as bon

BEST, WEIGHTS = jax.jit(bon.best_of_n), jax.jit(bon.best_of_n_weights)
PROXY, GOLD = jnp.array([0.2, 0.9, 0.5, 0.7, 0.1]), jnp.array([0.0, 1.0, 0.0, 1.0, 1.0])


def by_enumeration(proxy, values, n):
    """All subsets; among equal scores the mean."""
    picked = []
    for subset in map(list, itertools.combinations(range(len(proxy)), n)):
        top = proxy[subset] == proxy[subset].max()
        picked.append(values[subset][top].mean())
    return np.mean(picked)


def test_kl():
    expected = [0, 0.193147, 0.636294, 1.835089, 3.174508, 4.549084]
    found = bon.best_of_n_kl(jnp.array([1, 2, 4, 16, 64, 256]))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with pytest.raises(ValueError, match="n = 0"):
        bon.best_of_n_kl(0)


def test_kl_of_many():
    found = bon.best_of_n_kl(jnp.array([1024, 12500]))
    np.testing.assert_allclose(found, [5.932448, 8.433564], atol=1e-5)


def test_numbers_of_ensembles():
    """Of arXiv 2310.02743."""
    proxy, gold = jnp.array([0.1, 0.9, 0.4, 0.7, -0.2]), jnp.array([1, -1, 0.5, 2, 0])
    at = lambda values: [float(BEST(proxy, values, n)) for n in (1, 2, 3, 5)]
    np.testing.assert_allclose(at(gold), [0.5, 0.4, 0.05, -1], atol=1e-6)
    np.testing.assert_allclose(at(proxy), [0.38, 0.66, 0.79, 0.9], atol=1e-6)


def test_weights_of_twelve_thousand_samples(key):
    proxy = jax.random.permutation(key, 12_600).astype(jnp.float32)
    weights = np.asarray(WEIGHTS(proxy, 6144), np.float64)
    assert abs(weights.sum() - 1) < 1e-9
    ordered = weights[np.argsort(proxy)]
    for rank in (12_600, 12_599, 12_590):
        exact = Fraction(math.comb(rank - 1, 6143), math.comb(12_600, 6144))
        assert ordered[rank - 1] == pytest.approx(float(exact), rel=1e-5)


def test_by_hand():
    weights = WEIGHTS(PROXY, 2)
    np.testing.assert_allclose(weights, [0.1, 0.4, 0.2, 0.3, 0.0], atol=1e-6)
    assert BEST(PROXY, GOLD, 2) == pytest.approx(0.7, abs=1e-6)
    assert BEST(PROXY, GOLD, 1) == pytest.approx(0.6, abs=1e-6)
    assert BEST(PROXY, GOLD, 9) == pytest.approx(1.0)  # the best of all


@pytest.mark.parametrize("n", range(1, 8))
def test_against_enumeration_with_ties(n):
    generator = np.random.default_rng(n)
    proxy = generator.integers(0, 4, 7).astype(np.float32)
    values = generator.normal(size=7).astype(np.float32)
    found = BEST(proxy, values, n)
    if (len(set(proxy)) == 7) or n == 1:
        assert found == pytest.approx(by_enumeration(proxy, values, n), abs=1e-5)
    # A draw with ties picks one of the tied at random; over draws that is the mean of the level.
    level = np.array([values[proxy == p].mean() for p in proxy])
    assert found == pytest.approx(by_enumeration(proxy, level, n), abs=1e-5)


def test_masked_samples_are_as_if_absent(key):
    proxy, values = np.asarray(jax.random.normal(key, (2, 12)))
    mask, nan = np.arange(12) % 3 > 0, np.float32(np.nan)
    for n in (1, 3, 8):
        expected = BEST(proxy[mask], values[mask], n)
        hidden = np.where(mask, values, nan)
        assert BEST(proxy, hidden, n, mask) == pytest.approx(float(expected), abs=1e-6)
        missing = np.where(mask, proxy, nan)
        assert BEST(missing, hidden, n) == pytest.approx(float(expected), abs=1e-6)
    assert BEST(proxy, values, 2, np.zeros(12, bool)) == 0


def test_weights_sum_to_1_for_many_samples(key):
    proxy = jax.random.normal(key, (5, 1024))
    sizes = jnp.array([1, 2, 16, 512, 1024])
    weights = jax.jit(jax.vmap(bon.best_of_n_weights))(proxy, sizes)  # a traced n
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-4)
    assert (weights >= 0).all()
    assert weights[4, jnp.argmax(proxy[4])] == pytest.approx(1.0)


def test_over_optimization_of_a_parabola():
    kl = jnp.array([0.0, 0.25, 1.0, 2.25, 4.0])
    root = jnp.sqrt(kl)
    found = bon.over_optimization(kl, 0.3 + root * (1.0 - 0.4 * root))
    assert found.alpha == pytest.approx(1.0, abs=1e-4)
    assert found.beta == pytest.approx(0.4, abs=1e-4)
    assert found.peak == 2 and found.collapse == pytest.approx(0.6 - 0.4, abs=1e-6)


def test_up_to_a_kl():
    kl, gold = jnp.array([0.0, 1.0, 3.0, 7.0]), jnp.array([0.0, 2.0, 1.0, -9.0])
    found = bon.up_to_kl(kl, gold, 4.0)  # a quarter of the way from 3 to 7
    np.testing.assert_allclose(found, [-1.5, 2.0, 3.5, 4.0], atol=1e-6)
    whole = bon.up_to_kl(kl, gold, 10.0)
    np.testing.assert_allclose(whole, [-9.0, 2.0, 11.0, 7.0], atol=1e-6)
    beyond = bon.up_to_kl(kl + 5.0, gold, 4.0)
    np.testing.assert_allclose(beyond, [0.0, 0.0, 0.0, 5.0], atol=1e-6)
    back = bon.up_to_kl(jnp.array([0.0, 5.0, 1.0]), jnp.array([0.0, 1.0, 9.0]), 4.0)
    np.testing.assert_allclose(back.gold, 0.8, atol=1e-6)  # what comes after counts no more
    with pytest.raises(ValueError, match="budget = 0"):
        bon.up_to_kl(kl, gold, 0)
