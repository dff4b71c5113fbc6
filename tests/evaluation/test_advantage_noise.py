"""The noise share against exact enumeration, simulation, the channel's kappa and the tables of
arXiv 2510.18924's card."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxreward import channel
from jaxreward.evaluation import advantage_noise as an
from jaxreward.rate_estimates import Rates


def expected_sums(size, ones, probability):
    """Expectation of the sums over groups drawn with these probabilities."""
    sums = an.group_sums(size, ones, np.arange(len(size)))
    return an.GroupSums(*(np.tensordot(probability, term, 1) for term in sums))


def enumerate_groups(n, chance):
    """Every group of `n` rollouts (feature, truth, verdict) with its probability.

    `chance[f, t, o]` is the probability of one rollout.
    """
    values = chance.shape[0]
    cells = list(itertools.product(range(values), (0, 1), (0, 1)))
    groups = np.array(list(itertools.product(range(len(cells)), repeat=n)))
    feature, true, seen = (np.array(cells)[groups][..., i] for i in range(3))
    probability = np.prod(chance.reshape(-1)[groups], axis=-1)
    size = np.stack([(feature == f).sum(axis=1) for f in range(values)], axis=1) * 1.0
    ones = np.stack([((feature == f) & (seen == 1)).sum(axis=1) for f in range(values)], axis=1)
    return size, ones * 1.0, true, seen, probability


def chance_table(share, p, a, b):
    """P(feature, truth, verdict) from P(feature), P(true | feature) and rates by feature."""
    right = np.stack([1 - p, p], axis=-1)
    verdict = np.stack([np.stack([1 - a, a], -1), np.stack([b, 1 - b], -1)], axis=-2)
    return share[:, None, None] * right[:, :, None] * verdict


def exact_share(true, seen, probability):
    """The definition: 1 - (E sum A A*)^2 / (E sum A^2 E sum A*^2)."""
    centre = lambda x: x - x.mean(axis=1, keepdims=True)
    a, clean = centre(seen), centre(true)
    mean = lambda x: probability @ x.sum(axis=1)
    return 1 - mean(a * clean) ** 2 / (mean(a * a) * mean(clean * clean))


@given(st.floats(0.05, 0.95), st.floats(0.0, 0.45), st.floats(0.0, 0.45), st.integers(2, 9))
def test_one_prompt_is_one_minus_kappa_squared(p, a, b, n):
    q = a + (1 - a - b) * p
    k = np.arange(n + 1)
    weight = np.exp([np.log(np.prod(np.arange(n, n - i, -1) / np.arange(1, i + 1))) for i in k])
    probability = weight * q**k * (1 - q) ** (n - k)
    sums = expected_sums(np.full((n + 1, 1), float(n)), k[:, None] * 1.0, probability)
    rates = np.array([a]), np.array([b])
    kappa = float(channel.reliability(jnp.float32(p), channel.binary(a, b)))
    np.testing.assert_allclose(an.noise_share(sums, *rates), 1 - kappa**2, atol=2e-5)
    np.testing.assert_allclose(an.flip_share(sums, *rates), 1 - kappa**2, atol=2e-5)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize(
    "a, b", [((0.05, 0.8), (0.2, 0.02)), ((0.1, 0.1), (0.1, 0.4)), ((0.0, 0.0), (0.0, 0.0))]
)
def test_rates_by_output_feature_by_exact_enumeration(n, a, b):
    a, b = np.array(a), np.array(b)
    chance = chance_table(np.array([0.7, 0.3]), np.array([0.4, 0.6]), a, b)
    size, ones, true, seen, probability = enumerate_groups(n, chance)
    np.testing.assert_allclose(probability.sum(), 1)
    found = an.noise_share(expected_sums(size, ones, probability), a, b)
    np.testing.assert_allclose(found, exact_share(true, seen, probability), atol=1e-12)


def test_rates_by_prompt_feature_by_exact_enumeration():
    n, a, b, p = 3, np.array([0.05, 0.4]), np.array([0.1, 0.3]), np.array([0.3, 0.7])
    parts = []
    for f in range(2):  # each prompt has one value: enumerate the two kinds apart
        share = np.eye(2)[f]
        parts.append(enumerate_groups(n, chance_table(share, p, a, b)))
    size, ones, true, seen = (np.concatenate([part[i] for part in parts]) for i in range(4))
    probability = np.concatenate([0.6 * parts[0][4], 0.4 * parts[1][4]])
    sums = expected_sums(size, ones, probability)
    total = exact_share(true, seen, probability)
    np.testing.assert_allclose(an.noise_share(sums, a, b), total, atol=1e-12)
    # Flips alone: what each kind's own multiple of the true advantage leaves.
    seen_square = [w * (a[f] + (1 - a[f] - b[f]) * p[f]) * (1 - a[f] - (1 - a[f] - b[f]) * p[f])
                   for f, w in enumerate((0.6, 0.4))]
    kappa = [float(channel.reliability(jnp.float32(p[f]), channel.binary(a[f], b[f])))
             for f in range(2)]
    expected = 1 - np.dot(seen_square, np.square(kappa)) / np.sum(seen_square)
    flips = an.flip_share(sums, a, b)
    np.testing.assert_allclose(flips, expected, atol=1e-6)
    assert flips < total  # the rest is wrong weights between the kinds


def test_share_is_recovered_from_a_log_of_unequal_groups():
    rng = np.random.default_rng(0)
    groups, a, b = 30000, 0.15, 0.25
    size = rng.integers(1, 12, groups)
    group = np.repeat(np.arange(groups), size)
    true = rng.random(len(group)) < rng.beta(0.5, 0.8, groups)[group]
    seen = np.where(true, rng.random(len(group)) >= b, rng.random(len(group)) < a)
    centre = lambda x: x - (np.bincount(group, x) / size)[group]
    x, y = centre(seen), centre(true)
    truth = 1 - np.dot(x, y) ** 2 / (np.dot(x, x) * np.dot(y, y))
    sums = an.group_sums(size[:, None] * 1.0, np.bincount(group, seen)[:, None], np.arange(groups))
    total = an.GroupSums(*(term.sum(axis=0) for term in sums))
    np.testing.assert_allclose(an.observed_square(total), np.dot(x, x), rtol=1e-9)
    found = an.noise_share(total, np.array([a]), np.array([b]))
    np.testing.assert_allclose(found, truth, atol=0.015)


def test_clean_rewards_have_no_noise_and_a_coin_is_all_noise():
    size, ones = np.full((4, 1), 4.0), np.array([[1.0], [2], [3], [4]])
    sums = an.GroupSums(*(t.sum(axis=0) for t in an.group_sums(size, ones, np.arange(4))))
    assert an.noise_share(sums, np.zeros(1), np.zeros(1)) == 0
    half = np.full(1, 0.5)
    assert an.flip_share(sums, half, half) == 1
    assert an.noise_share(sums, half, half) == 1


def test_weighted_sums_repeat_clusters():
    rng = np.random.default_rng(1)
    size = rng.integers(1, 5, (9, 2)) * 1.0
    sums = an.group_sums(size, np.floor(size * rng.random((9, 2))), np.arange(9) % 3)
    drawn = an.weighted(sums, np.array([[1.0, 0, 2], [0, 1, 1]]))
    for term, whole in zip(sums, drawn):
        np.testing.assert_allclose(whole[0], term[0] + 2 * term[2])
        np.testing.assert_allclose(whole[1], term[1] + term[2])


@pytest.mark.parametrize(
    "p, kappa, clean, noisy",
    [
        (0.2, 0.6556, (1, 1.6578, 2.1067, 2.3462), (0.7, 1.1532, 1.4286, 1.5566)),
        (0.5, 0.7035, (1, 1.6160, 1.8557, 1.9341), (0.7, 1.1320, 1.3035, 1.3601)),
        (0.9, 0.4730, (1, 1.6903, 2.3277, 2.8478), (0.7, 1.1484, 1.3992, 1.5059)),
    ],
)
def test_gradient_gain_and_factor_against_the_published_table(p, kappa, clean, noisy):
    p, a, b = np.array([p]), np.array([0.1]), np.array([0.2])
    for n, before, after in zip((2, 4, 8, 16), clean, noisy):
        np.testing.assert_allclose(an.gradient_gain(p, n), before, atol=1e-4)
        factor = an.gradient_factor(p, a, b, n)[0, 0]
        np.testing.assert_allclose(factor, after / before, atol=1e-4)
    np.testing.assert_allclose(an.reliability(p, a, b), [[kappa]], atol=1e-4)
    np.testing.assert_allclose(an.gradient_factor(p, a, b, 3000)[0, 0], kappa, atol=2e-3)


def test_success_distribution_recovers_functionals():
    rng = np.random.default_rng(2)
    groups, a, b = 20000, 0.1, 0.2
    p = np.where(rng.random(groups) < 0.3, 0.0, rng.beta(2, 2, groups))
    size = rng.integers(4, 13, groups)
    ones = rng.binomial(size, a + (1 - a - b) * p)
    grid = np.linspace(0, 1, 41)
    mass = an.success_distribution(size, ones, np.full(groups, a), np.full(groups, b), grid)
    np.testing.assert_allclose(mass.sum(), 1)
    np.testing.assert_allclose(mass @ grid, p.mean(), atol=0.01)
    np.testing.assert_allclose(mass @ grid**2, np.mean(p**2), atol=0.01)
    kappa = an.reliability(grid, np.array([a]), np.array([b]))[0]
    truth = an.reliability(p[:2000], np.array([a]), np.array([b]))[0]
    np.testing.assert_allclose(mass @ kappa**2, np.mean(truth**2), atol=0.03)


def test_dead_groups_against_simulation():
    rng = np.random.default_rng(3)
    groups, n, a, b = 200000, 6, 0.1, 0.3
    grid, mass = np.array([0.0, 0.5, 0.95, 1.0]), np.array([0.4, 0.2, 0.3, 0.1])
    p = rng.choice(grid, groups, p=mass)
    true = rng.random((groups, n)) < p[:, None]
    seen = np.where(true, rng.random(true.shape) >= b, rng.random(true.shape) < a)
    same = lambda x: x.all(axis=1) | ~x.any(axis=1)
    found = an.dead_groups(np.full(groups, n), seen.sum(axis=1), grid, mass, Rates(a, b, 0.5))
    expected = same(seen).mean(), same(true).mean(), same(true)[~same(seen)].mean()
    np.testing.assert_allclose(found, expected, atol=0.005)
