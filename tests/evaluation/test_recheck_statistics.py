"""Intervals that cover with correlated rollouts, tests of the right size, plans that suffice."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxreward import rate_estimates
from jaxreward.evaluation import recheck_statistics as rs
from jaxreward.rate_estimates import Rates, Rechecks

RUNS, DRAWS = 1000, 500


def simulate(rng, prompts, group, shares, a, b, spread=0.0, runs=RUNS):
    """Counts `[runs, prompts, 6]`; `spread` > 0 lets rates vary between prompts (Beta)."""
    shape = (runs, prompts, 1)
    p = rng.beta(0.5, 0.5, shape)
    if spread:
        a, b = (rng.beta(r * spread, (1 - r) * spread, shape) for r in (a, b))
    true = rng.random((runs, prompts, group)) < p
    draw = rng.random(true.shape)
    seen = np.where(true, draw >= b, draw < a)
    checked = rng.random(true.shape) < np.where(seen, *shares)
    kinds = (seen, ~seen, seen & true & checked, seen & ~true & checked,
             ~seen & true & checked, ~seen & ~true & checked)
    return np.stack([kind.sum(axis=-1) for kind in kinds], axis=-1).astype(np.float64)


def coverage(counts, truth, rng, clustered=True):
    """Share of runs whose interval holds the truth, by rate."""
    prompts = counts.shape[1]
    weights = rs.bootstrap_weights(rng, DRAWS, prompts, prompts, 0.95)
    if not clustered:
        counts = counts.sum(axis=1, keepdims=True)
    hits = dict.fromkeys(truth, 0)
    of_runs = rs.rate_draws(rng, weights, counts.swapaxes(0, 1)) if clustered else None
    for run, table in enumerate(counts):
        if clustered:
            draws = Rates(*(column[:, run] for column in of_runs))
        else:  # rollouts taken as independent: the Jeffreys posterior of each share
            x = table[0] + 0.5
            beta = lambda i, j: rng.beta(x[i], x[j], DRAWS)
            draws = rate_estimates.rates_from_shares(
                rate_estimates.Shares(beta(0, 1), beta(2, 3), beta(4, 5)))
        for name, interval in rs.rate_intervals(table.sum(axis=0), draws, 0.95).items():
            if name in truth:
                hits[name] += interval.low <= truth[name] <= interval.high
    return {name: count / len(counts) for name, count in hits.items()}


@pytest.mark.parametrize(
    "prompts, group, shares, a, b",
    [
        (1500, 1, (0.15, 0.15), 0.1, 0.2),  # independent rollouts
        (200, 8, (0.15, 0.15), 0.1, 0.2),  # correlated through the prompt's success rate
        (200, 8, (0.1, 0.4), 0.03, 0.3),  # verdicts re-checked with different probability
    ],
)
def test_intervals_cover(prompts, group, shares, a, b):
    rng = np.random.default_rng(0)
    runs = RUNS if group > 1 else 400
    counts = simulate(rng, prompts, group, shares, a, b, runs=runs)
    truth = {"false_positive": a, "false_negative": b, "determinant": 1 - a - b,
             "success_rate": 0.5}
    margin = 3.3 * np.sqrt(0.95 * 0.05 / runs)
    for name, share in coverage(counts, truth, rng).items():
        assert 0.945 - margin <= share <= 0.955 + margin, (name, share)


def test_intervals_cover_when_rates_vary_between_prompts_and_simple_ones_do_not():
    rng = np.random.default_rng(1)
    counts = simulate(rng, 150, 16, (0.5, 0.5), 0.1, 0.2, spread=4.0, runs=600)
    truth = {"false_positive": 0.1, "false_negative": 0.2, "determinant": 0.7}
    margin = 3.3 * np.sqrt(0.95 * 0.05 / 600)
    for share in coverage(counts, truth, rng).values():
        assert 0.935 - margin <= share <= 0.96 + margin
    simple = coverage(counts, truth, rng, clustered=False)
    assert max(simple.values()) < 0.9
    effect, _ = rs.design_effects(counts[0])["false_positive"]
    assert effect > 1.5


def test_no_error_seen_means_lower_limit_zero():
    table = np.array([[300.0, 300, 50, 0, 5, 45]])
    draws = rs.rate_draws(np.random.default_rng(0), np.ones((500, 1)), table[:, None])
    found = rs.rate_intervals(table[0], Rates(*(c[:, 0] for c in draws)), 0.95)
    assert found["false_positive"].estimate == 0 and found["false_positive"].low == 0
    assert 0.0 < found["false_positive"].high < 0.1


def test_unknown_without_rechecks():
    table = np.array([300.0, 300, 0, 0, 5, 45])
    draws = rs.rate_draws(np.random.default_rng(0), np.ones((500, 1)), table[None, None])
    found = rs.rate_intervals(table, Rates(*(c[:, 0] for c in draws)), 0.95)
    assert np.isnan(found["false_negative"].estimate)
    assert found["false_negative"][1:] == (0.0, 1.0)


def test_cluster_counts_against_a_loop():
    rng = np.random.default_rng(3)
    n = 400
    cluster, value = rng.integers(0, 7, n), rng.integers(0, 3, n)
    cluster[:7], value[:3] = range(7), range(3)
    seen, recheck = rng.random(n) < 0.5, rng.integers(-1, 2, n)
    weight, checked_weight = rng.random(n), rng.random(n)
    expected = np.zeros((7, 3, 6))
    for i in range(n):
        cell = expected[cluster[i], value[i]]
        cell[0 if seen[i] else 1] += weight[i]
        if recheck[i] >= 0:
            cell[(2 if seen[i] else 4) + (1 - recheck[i])] += checked_weight[i]
    found = rs.cluster_counts(cluster, value, seen, recheck, weight, checked_weight)
    np.testing.assert_allclose(found, expected)


def feature_p_values(rng, a, b, runs=400, prompts=300, group=8):
    """P-values of the variation test of false positives for a feature of four values."""
    weights = rs.bootstrap_weights(rng, DRAWS, prompts, prompts, 0.95)
    result = []
    for _ in range(runs):
        value = rng.integers(0, 4, (prompts, group))
        true = rng.random((prompts, group)) < rng.beta(0.7, 0.7, (prompts, 1))
        seen = np.where(true, rng.random(true.shape) >= b, rng.random(true.shape) < a[value])
        recheck = np.where(rng.random(true.shape) < 0.25, true, -1)
        prompt = np.repeat(np.arange(prompts), group)
        ones = np.ones(prompts * group)
        table = rs.cluster_counts(prompt, value.ravel(), seen.ravel(), recheck.ravel(), ones, ones)
        draws = rs.rate_draws(rng, weights, table)
        point = rs.point_rates(table.sum(axis=0) + 0.5)
        result.append(rs.variation_test(point.false_positive, draws.false_positive, prompts))
    return np.array(result)


def test_variation_test_has_its_size_and_power():
    rng = np.random.default_rng(4)
    same = feature_p_values(rng, np.full(4, 0.1), 0.2)
    margin = 3.3 * np.sqrt(0.05 * 0.95 / len(same))
    assert 0.05 - margin <= np.mean(same < 0.05) <= 0.05 + margin
    differ = feature_p_values(rng, np.array([0.05, 0.05, 0.1, 0.3]), 0.2, runs=50)
    assert np.mean(differ < 0.05) > 0.9


def test_overdispersion_test_has_its_size_and_power():
    rng = np.random.default_rng(5)
    def p_value(spread):
        rate = rng.beta(0.2 * spread, 0.8 * spread, (200, 1)) if spread else 0.2
        error = rng.random((200, 6)) < rate
        return rs.overdispersion_test(
            np.repeat(np.arange(200), 6), error.ravel() - error.mean())
    size = np.mean([p_value(0) < 0.05 for _ in range(1000)])
    assert 0.02 <= size <= 0.05 + 3.3 * np.sqrt(0.05 * 0.95 / 1000)
    assert np.mean([p_value(3.0) < 0.05 for _ in range(100)]) > 0.95
    assert rs.overdispersion_test(np.arange(5), np.ones(5)) == 1.0  # no pairs


def test_holm():
    np.testing.assert_allclose(rs.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    assert rs.holm([0.9, 0.8]) == [1.0, 1.0]


@given(st.floats(0.02, 0.3), st.floats(0.02, 0.3), st.floats(0.2, 0.8))
def test_plan_is_feasible_and_cheapest(a, b, p):
    q = a + (1 - a - b) * p
    single = np.array([q, 1 - q, (1 - b) * p, a * (1 - p), b * p, (1 - a) * (1 - p)])
    counts = np.tile(single * [20, 20, 0.05, 0.05, 0.05, 0.05], (5000, 1))
    width = 0.03
    plan = rs.plan_rechecks(counts, width, 0.95)
    shares = rate_estimates.verdict_shares(Rechecks(*counts.sum(axis=0)), 0.5)
    parts = rate_estimates.variance_parts(shares)
    effects = rs.design_effects(counts)
    def widest(x, y):
        return max(
            1.959964 * np.sqrt(
                max(effects[name][0], 1) * parts[name].total(x, y, np.inf) + effects[name][1])
            for name in ("false_positive", "false_negative"))
    assert widest(plan.accepted, plan.rejected) <= width * 1.0001
    total = plan.accepted + plan.rejected
    have = counts[:, 2:4].sum(), counts[:, 4:6].sum()
    for share in np.linspace(0.02, 0.98, 49):  # no other split does with 1% less
        x, y = 0.99 * total * share, 0.99 * total * (1 - share)
        assert x < have[0] or y < have[1] or widest(x, y) > width


def test_plan_delivers_the_half_width():
    rng = np.random.default_rng(6)
    pilot = simulate(rng, 2000, 8, (0.03, 0.03), 0.1, 0.2, runs=1)[0]
    plan = rs.plan_rechecks(pilot, 0.025, 0.95)
    shares = plan.accepted / pilot[:, 0].sum(), plan.rejected / pilot[:, 1].sum()
    widths, weights = [], rs.bootstrap_weights(rng, 400, 2000, 2000, 0.95)
    for table in simulate(rng, 2000, 8, shares, 0.1, 0.2, runs=20):
        draws = rs.rate_draws(rng, weights, table[:, None])
        draws = Rates(*(column[:, 0] for column in draws))
        found = rs.rate_intervals(table.sum(axis=0), draws, 0.95)
        widths.append(max(
            (found[name].high - found[name].low) / 2 for name in ("false_positive",
                                                                  "false_negative")))
    assert 0.8 * 0.025 < np.mean(widths) < 1.2 * 0.025  # the pilot's rates are estimates


def test_plan_is_infinite_when_prompts_are_the_limit():
    pilot = simulate(np.random.default_rng(7), 20, 8, (1.0, 1.0), 0.1, 0.2, runs=1)[0]
    assert rs.plan_rechecks(pilot, 0.001, 0.95).accepted == np.inf


def test_worst_case_plan_suffices_for_all_rates_in_its_range():
    q, width = 0.4, 0.05
    plan = rs.worst_case_rechecks(q, (0.25, 0.4), width, 0.95)
    for a in (0.01, 0.1, 0.25):
        for b in (0.01, 0.2, 0.4):
            p = (q - a) / (1 - a - b)
            shares = rate_estimates.Shares(q, (1 - b) * p / q, b * p / (1 - q))
            for name in ("false_positive", "false_negative"):
                parts = rate_estimates.variance_parts(shares)[name]
                variance = parts.total(plan.accepted, plan.rejected, np.inf)
                assert 1.959964 * np.sqrt(variance) <= width * 1.02


def test_bounds_without_rechecks_hold_the_truth():
    rng, a, b = np.random.default_rng(8), 0.08, 0.15
    held, bounds = [], []
    for _ in range(200):
        p = rng.beta(0.3, 0.3, 300)
        size = rng.integers(2, 9, 300)
        ones = rng.binomial(size, a + (1 - a - b) * p)
        bounds.append(rs.bounds_without_rechecks(size * 1.0, ones * 1.0, 300, 0.95))
        held.append((bounds[-1][0] >= a, bounds[-1][1] >= b))
    assert np.mean(held, axis=0).min() >= 0.95
    assert np.mean(bounds) < 0.6  # and they say something
    assert rs.bounds_without_rechecks(
        np.full(10, 4.0), np.full(10, 2.0), 10, 0.95) == (1.0, 1.0)


@pytest.mark.parametrize("state", ["accepted", "rejected"])
def test_one_verdict_bounds_hold_the_truth(state):
    truth = Rates(np.array([0.1]), np.array([0.2]), np.array([0.4]))
    low, high = rs.one_verdict_bounds(truth, state)
    for bound, value, other in zip(low, truth, high):
        assert bound[0] <= value[0] <= other[0]
    known = "false_positive" if state == "accepted" else "false_negative"
    assert getattr(low, known)[0] > 0.0


def test_selection_test():
    rng = np.random.default_rng(9)
    prompt = np.repeat(np.arange(300), 4)
    mean = np.repeat(rng.random(300), 4)
    fair = [rs.selection_test(prompt, mean, rng.random(1200) < 0.2)[1] for _ in range(300)]
    assert np.mean(np.array(fair) < 0.05) <= 0.05 + 3.3 * np.sqrt(0.05 * 0.95 / 300)
    gap, p_value = rs.selection_test(prompt, mean, rng.random(1200) < 0.4 * mean)
    assert gap > 0.1 and p_value < 1e-3
    assert rs.selection_test(prompt, mean, np.zeros(1200, bool)) == (0.0, 1.0)
