"""Closed-form rates from re-checks: Bayes' rule, derivatives, coverage, numpy and jax alike."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxreward import rate_estimates
from jaxreward.rate_estimates import Rechecks, Shares

inside = st.floats(0.05, 0.95)


def shares_of(p, a, b) -> Shares:
    q = a + (1 - a - b) * p
    return Shares(*(np.asarray(x) for x in (q, (1 - b) * p / q, b * p / (1 - q))))


@given(inside, st.floats(0.01, 0.45), st.floats(0.01, 0.45))
def test_bayes_rule_inverts_the_channel(p, a, b):
    rates = rate_estimates.rates_from_shares(shares_of(p, a, b))
    np.testing.assert_allclose(rates, (a, b, p), rtol=1e-9)
    np.testing.assert_allclose(rates.determinant, 1 - a - b, rtol=1e-9)


def test_estimate_from_a_table_worked_by_hand():
    # 40 of 100 accepted, 1 of 10 re-checked accepted wrong: 36 right, 4 wrong accepted.
    # 60 rejected, 3 of 20 re-checked right: 9 right, 51 wrong rejected.
    rates = rate_estimates.estimate_rates(Rechecks(*np.array([40.0, 60, 9, 1, 3, 17])))
    np.testing.assert_allclose(rates, (4 / 55, 9 / 45, 0.45), rtol=1e-12)


@given(inside, inside, inside)
def test_slopes_are_derivatives(q, right, missed):
    with jax.enable_x64(True):
        point = Shares(*(jnp.float64(x) for x in (q, right, missed)))
        slopes = rate_estimates.rate_slopes(Shares(q, right, missed))
        for name, slope in slopes.items():
            grad = jax.grad(lambda s: getattr(rate_estimates.rates_from_shares(s), name))(point)
            np.testing.assert_allclose(slope, grad, rtol=1e-9, atol=1e-12)


def test_variance_parts_match_simulation():
    rng = np.random.default_rng(0)
    p, a, b, n, checked = 0.4, 0.15, 0.25, 20000, (300, 500)
    shares = shares_of(p, a, b)
    accepted = rng.binomial(n, shares.accepted, 40000)
    right = rng.binomial(checked[0], shares.accepted_right, 40000)
    missed = rng.binomial(checked[1], shares.rejected_right, 40000)
    counts = (accepted, n - accepted, right, checked[0] - right, missed, checked[1] - missed)
    rates = rate_estimates.estimate_rates(Rechecks(*(np.asarray(c, float) for c in counts)))
    for name, parts in rate_estimates.variance_parts(shares).items():
        expected = parts.total(*checked, n)
        np.testing.assert_allclose(np.var(getattr(rates, name)), expected, rtol=0.05)


@pytest.mark.parametrize(
    "p, a, b, n, checked",
    [
        (0.5, 0.1, 0.2, 2000, (100, 100)),
        (0.2, 0.02, 0.3, 4000, (100, 200)),
        (0.9, 0.3, 0.05, 4000, (150, 100)),
        (0.5, 0.0, 0.2, 2000, (100, 100)),
    ],
)
def test_closed_form_intervals_cover(p, a, b, n, checked):
    rng, runs = np.random.default_rng(1), 20000
    shares = shares_of(p, a, b)
    accepted = rng.binomial(n, shares.accepted, runs)
    first, second = np.minimum(checked[0], accepted), np.minimum(checked[1], n - accepted)
    right = rng.binomial(first, shares.accepted_right)
    missed = rng.binomial(second, shares.rejected_right)
    counts = (accepted, n - accepted, right, first - right, missed, second - missed)
    intervals = rate_estimates.rate_intervals(Rechecks(*(np.asarray(c, float) for c in counts)))
    for name, truth in (("false_positive", a), ("false_negative", b)):
        low, high = intervals[name]
        coverage = np.mean((low <= truth) & (truth <= high))
        margin = 4 * np.sqrt(0.95 * 0.05 / runs)
        assert coverage >= 0.94 - margin
        assert truth == 0 or coverage <= 0.97 + margin


def test_design_effect_widens_the_interval():
    counts = Rechecks(*np.array([400.0, 600, 90, 10, 20, 180]))
    single = rate_estimates.rate_intervals(counts)["false_positive"]
    double = rate_estimates.rate_intervals(counts, design_effect=4.0)["false_positive"]
    logit = lambda x: np.log(x / (1 - x))
    width = [logit(high) - logit(low) for low, high in (single, double)]
    np.testing.assert_allclose(width[1], 2 * width[0], rtol=1e-9)


def test_same_numbers_in_jax_under_jit_and_vmap():
    counts = np.random.default_rng(2).integers(1, 200, (6, 5)).astype(np.float32)
    plain = rate_estimates.rate_intervals(Rechecks(*counts))
    traced = jax.jit(jax.vmap(lambda c: rate_estimates.rate_intervals(Rechecks(*c))))(
        jnp.asarray(counts.T)
    )
    for name, limits in plain.items():
        np.testing.assert_allclose(np.stack(traced[name]), np.stack(limits), rtol=2e-4)
