"""A verifier's error rates from a log with trusted re-checks: intervals, tests, planning.

Rollouts of one prompt are correlated, so the prompt is the unit of every resampling here.
Intervals are quantiles of a Bayesian bootstrap over prompts (Rubin 1981) in which each of
the six counts of `jaxreward.rate_estimates.Rechecks` carries half a pseudo rollout: with
one rollout per prompt this is exactly the Jeffreys posterior of each share, and with
correlated rollouts it widens as the correlation demands. The spread of the weights is
enlarged by the ratio of Student's to the normal quantile at the number of prompts with
re-checks. The target is the rate over the population the prompts are drawn from.

Letters: `C` clusters (prompts, or random unions of prompts), `F` values of a feature,
`B` bootstrap draws, `N` rollouts. Everything is numpy in float64, on the host.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy import stats

from jaxreward import rate_estimates
from jaxreward.rate_estimates import Rates, Rechecks

CELLS = len(Rechecks._fields)


class Interval(NamedTuple):
    """An estimate with its confidence limits; NaN and [0, 1] where the log says nothing."""

    estimate: float
    low: float
    high: float


class Requirement(NamedTuple):
    """Numbers of re-checks, of accepted and of rejected rollouts, that reach a half-width."""

    half_width: float
    accepted: float
    rejected: float


def cluster_counts(
    cluster: Int[np.ndarray, "N"],
    value: Int[np.ndarray, "N"],
    observed: Bool[np.ndarray, "N"],
    recheck: Int[np.ndarray, "N"],
    weight: Float[np.ndarray, "N"],
    recheck_weight: Float[np.ndarray, "N"],
) -> Float[np.ndarray, "C F 6"]:
    """The six re-check counts for every cluster and feature value.

    Args:
      cluster: index of the prompt or union of prompts, in `[0, C)`.
      value: index of the feature value, in `[0, F)`.
      observed: True where the verifier accepted.
      recheck: 1 right, 0 wrong, -1 not re-checked.
      weight: rollouts that each row stands for (1 in a complete log).
      recheck_weight: weight of a re-check among those of its verdict.
    """
    clusters, values = int(cluster.max()) + 1, int(value.max()) + 1
    kinds = [
        (observed, weight),
        (~observed, weight),
        (observed & (recheck == 1), recheck_weight),
        (observed & (recheck == 0), recheck_weight),
        (~observed & (recheck == 1), recheck_weight),
        (~observed & (recheck == 0), recheck_weight),
    ]
    cell = cluster * values + value
    columns = [
        np.bincount(cell[where], amount[where], minlength=clusters * values)
        for where, amount in kinds
    ]
    return np.stack(columns, axis=-1).reshape(clusters, values, CELLS)


def bootstrap_weights(
    rng: np.random.Generator, draws: int, clusters: int, informative: int, confidence: float
) -> Float[np.ndarray, "B C"]:
    """Weights of the clusters in each draw, mean 1.

    Args:
      rng: source of randomness.
      draws: `B`.
      clusters: `C`.
      informative: number of prompts with re-checks; sets the degrees of freedom.
      confidence: of the intervals, in (0, 1).
    """
    tail = 0.5 + confidence / 2
    ratio = stats.norm.ppf(tail) / stats.t.ppf(tail, max(informative - 1, 1))
    return rng.gamma(ratio**2, ratio**-2, size=(draws, clusters))


def rate_draws(
    rng: np.random.Generator,
    weights: Float[np.ndarray, "B C"],
    counts: Float[np.ndarray, "C F 6"],
) -> Rates:
    """Bootstrap draws of the rates of each feature value, arrays `[B, F]`."""
    sums = weights @ counts.reshape(counts.shape[0], -1)
    sums = sums.reshape(len(weights), *counts.shape[1:])
    sums = sums + rng.gamma(0.5, size=sums.shape)
    return rate_estimates.estimate_rates(Rechecks(*np.moveaxis(sums, -1, 0)))


def point_rates(counts: Float[np.ndarray, "... 6"]) -> Rates:
    """Maximum likelihood rates; NaN where a verdict was never re-checked."""
    with np.errstate(divide="ignore", invalid="ignore"):
        counts = Rechecks(*np.moveaxis(counts, -1, 0))
        shares = rate_estimates.verdict_shares(counts)
        # A verdict that never occurred needs no re-check.
        shares = shares._replace(
            accepted_right=np.where(counts.accepted > 0, shares.accepted_right, 0.0),
            rejected_right=np.where(counts.rejected > 0, shares.rejected_right, 0.0),
        )
        return rate_estimates.rates_from_shares(shares)


def rate_intervals(
    counts: Float[np.ndarray, "6"], draws: Rates, confidence: float
) -> dict[str, Interval]:
    """Intervals of the rates, of Youden's J and of the success rate of one feature value.

    Args:
      counts: its six counts, summed over clusters.
      draws: its bootstrap draws, arrays `[B]`.
      confidence: in (0, 1).
    """
    point, cells = point_rates(counts), Rechecks(*counts)
    limits = {
        "false_positive": (cells.accepted_wrong > 0, cells.rejected_wrong > 0),
        "false_negative": (cells.rejected_right > 0, cells.accepted_right > 0),
        "determinant": (True, True),
        "success_rate": (True, True),
    }
    result = {}
    for name, (errors, successes) in limits.items():
        low, high = quantiles(getattr(draws, name), confidence)
        floor = -1.0 if name == "determinant" else 0.0
        value = float(getattr(point, name))
        if np.isnan(value):
            low, high = floor, 1.0
        else:
            low, high = (low if errors else floor), (high if successes else 1.0)
        result[name] = Interval(value, low, high)
    return result


def quantiles(draws: Float[np.ndarray, "B"], confidence: float) -> tuple[float, float]:
    """The equal-tailed interval of bootstrap draws."""
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def design_effects(counts: Float[np.ndarray, "C 6"]) -> dict[str, tuple[float, float]]:
    """How much the correlation within prompts inflates each variance.

    Returns:
      For `false_positive`, `false_negative` and `determinant` the pair (variance of the
      part that re-checks reduce, relative to independent rollouts; variance of the part
      that they do not reduce, that of the share accepted).
    """
    total = Rechecks(*counts.sum(axis=0))
    shares = rate_estimates.verdict_shares(total, 0.5)
    n_accepted = total.accepted_right + total.accepted_wrong + 1.0
    n_rejected = total.rejected_right + total.rejected_wrong + 1.0
    cell = Rechecks(*counts.T)
    right = _residual(cell.accepted_right, cell.accepted_wrong, shares.accepted_right)
    missed = _residual(cell.rejected_right, cell.rejected_wrong, shares.rejected_right)
    share = _residual(cell.accepted, cell.rejected, shares.accepted)
    result = {}
    slopes, parts = rate_estimates.rate_slopes(shares), rate_estimates.variance_parts(shares)
    for name, slope in slopes.items():
        checked = slope.accepted_right * right / n_accepted
        checked = checked + slope.rejected_right * missed / n_rejected
        single = parts[name].total(n_accepted, n_rejected, np.inf)
        fixed = np.sum((slope.accepted * share) ** 2) / np.sum(counts[:, :2]) ** 2
        result[name] = float(np.sum(checked**2) / single), float(fixed)
    return result


def _residual(hits, misses, share):
    return hits - share * (hits + misses)


def variation_test(
    rate: Float[np.ndarray, "F"], draws: Float[np.ndarray, "B F"], clusters: int
) -> float:
    """P-value of the hypothesis that a rate is the same for all feature values.

    Wald test with the bootstrap covariance, in Hotelling's form, of twice the arcsine of the
    square root of the rates: that scale has its size also with few errors, which the logit
    has not.

    Args:
      rate: estimates with pseudo count 1/2, one for each of `F >= 2` values.
      draws: their joint bootstrap draws.
      clusters: prompts with re-checks.
    """
    contrasts = np.diff(_stabilized(rate))
    spread = np.cov(np.diff(_stabilized(draws), axis=1), rowvar=False).reshape(len(contrasts), -1)
    statistic = float(contrasts @ np.linalg.solve(spread, contrasts))
    degrees = len(contrasts)
    rest = max(clusters - 1 - degrees, 1)
    scaled = statistic * rest / (degrees * (rest + degrees - 1))
    return float(stats.f.sf(scaled, degrees, rest))


def overdispersion_test(
    prompt: Int[np.ndarray, "N"], residual: Float[np.ndarray, "N"]
) -> float:
    """P-value of the hypothesis that errors within a prompt are no more alike than others.

    One-sided z-test of the sum over pairs of rollouts of a prompt of the product of their
    residuals (observed minus the rate, weighted by the inverse chance of a re-check).

    Args:
      prompt: prompt index of each re-checked rollout of one true class.
      residual: mean 0 under the hypothesis.
    """
    pairs = np.bincount(prompt, residual) ** 2 - np.bincount(prompt, residual**2)
    scale = np.sqrt(np.sum(pairs**2))
    return float(stats.norm.sf(np.sum(pairs) / scale)) if scale > 0 else 1.0


def holm(p_values: list[float]) -> list[float]:
    """P-values adjusted for their number (Holm 1979), in the given order."""
    order = np.argsort(p_values)
    scaled = np.asarray(p_values)[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


def selection_test(
    prompt: Int[np.ndarray, "N"],
    sibling_mean: Float[np.ndarray, "N"],
    checked: Bool[np.ndarray, "N"],
) -> tuple[float, float]:
    """Are the re-checked rollouts of one verdict like the others of that verdict?

    Args:
      prompt: cluster of each rollout.
      sibling_mean: mean observed reward of the rest of its group, NaN without siblings.
      checked: True where re-checked.

    Returns:
      The difference of the means (re-checked minus rest) and its two-sided p-value, with
      variances clustered by prompt; (0, 1) where there is nothing to compare.
    """
    known = ~np.isnan(sibling_mean)
    prompt, sibling_mean, checked = prompt[known], sibling_mean[known], checked[known]
    if checked.all() or not checked.any():
        return 0.0, 1.0
    means = [sibling_mean[~checked].mean(), sibling_mean[checked].mean()]
    counts = [np.sum(~checked), np.sum(checked)]
    index = checked.astype(np.int64)
    influence = (2 * index - 1) * (sibling_mean - np.take(means, index)) / np.take(counts, index)
    spread = np.sqrt(np.sum(np.bincount(prompt, influence) ** 2))
    gap = float(means[1] - means[0])
    return gap, float(2 * stats.norm.sf(abs(gap) / spread)) if spread > 0 else 1.0


def one_verdict_bounds(draws: Rates, state: str) -> tuple[Rates, Rates]:
    """Least and largest rates if only the verdict `state` was re-checked, by draw.

    The share that is right among the other verdict can then be anything in [0, 1].

    Args:
      draws: bootstrap draws of the rates, `[B]`, which determine those of the known share.
      state: "accepted" or "rejected", the verdict that was re-checked.
    """
    a, b, p = draws
    q = a + (1.0 - a - b) * p
    known = (1.0 - b) * p / q if state == "accepted" else b * p / (1.0 - q)

    def at(other):
        other = np.full_like(known, other)
        pair = (known, other) if state == "accepted" else (other, known)
        return rate_estimates.rates_from_shares(rate_estimates.Shares(q, *pair))

    ends = at(0.0), at(1.0)
    low = Rates(*(np.minimum(x, y) for x, y in zip(*ends)))
    high = Rates(*(np.maximum(x, y) for x, y in zip(*ends)))
    return low, high


def plan_rechecks(
    counts: Float[np.ndarray, "C 6"],
    half_width: float,
    confidence: float,
    rates: tuple[str, ...] = ("false_positive", "false_negative"),
) -> Requirement:
    """The fewest re-checks after which every named interval has the half-width.

    Minimises `n_accepted + n_rejected`, neither below what the log has, subject to
    `accepted / n_accepted + rejected / n_rejected <= (half_width / z)^2 - share` for each
    rate, where the parts are those of `rate_estimates.variance_parts` times the log's
    design effect. Infinite where the number of rollouts, not of re-checks, is the limit.
    """
    total = Rechecks(*counts.sum(axis=0))
    parts = rate_estimates.variance_parts(rate_estimates.verdict_shares(total, 0.5))
    effects = design_effects(counts)
    bound = (half_width / stats.norm.ppf(0.5 + confidence / 2)) ** 2
    constraints = []
    for name in rates:
        effect, fixed = max(effects[name][0], 1.0), effects[name][1]
        constraints.append((parts[name].accepted * effect, parts[name].rejected * effect,
                            bound - fixed))
    have = (total.accepted_right + total.accepted_wrong,
            total.rejected_right + total.rejected_wrong)
    accepted, rejected = _cheapest(constraints, have)
    return Requirement(half_width, accepted, rejected)


def _cheapest(
    constraints: list[tuple[float, float, float]], have: tuple[float, float]
) -> tuple[float, float]:
    """Least `x + y` with `x >= have[0]`, `y >= have[1]` and all `a / x + b / y <= c`."""
    if any(c <= 0 for _, _, c in constraints):
        return np.inf, np.inf
    least = max(a / c for a, _, c in constraints)
    x = np.maximum(np.geomspace(max(least, 1.0), 1e4 * max(least, 1.0), 20001), have[0])
    y = np.full_like(x, max(have[1], 1.0))
    for a, b, c in constraints:
        room = c - a / x
        y = np.maximum(y, np.where(room > 0, b / np.where(room > 0, room, 1.0), np.inf))
    best = int(np.argmin(x + y))
    return float(np.ceil(x[best])), float(np.ceil(y[best]))


def worst_case_rechecks(
    share_accepted: float, largest: tuple[float, float], half_width: float, confidence: float
) -> Requirement:
    """Re-checks of each verdict that reach a half-width whatever the rates turn out to be.

    For planning before both verdicts have re-checks: equal numbers of both, the largest
    variance over all rates up to `largest` (false-positive, false-negative) that the share
    accepted allows, for independent rollouts. Infinite if it allows none.
    """
    a, b = np.meshgrid(*(np.linspace(0.005, max(limit, 0.01), 60) for limit in largest))
    j = 1.0 - a - b
    p = (share_accepted - a) / np.where(j > 0.05, j, np.nan)
    possible = (p > 0.01) & (p < 0.99)
    a, b, p = a[possible], b[possible], p[possible]
    q = np.full_like(p, share_accepted)
    shares = rate_estimates.Shares(q, (1.0 - b) * p / q, b * p / (1.0 - q))
    parts = rate_estimates.variance_parts(shares)
    worst = max(
        float(np.max(parts[name].accepted + parts[name].rejected, initial=0.0))
        for name in ("false_positive", "false_negative")
    )
    count = np.ceil(worst * (stats.norm.ppf(0.5 + confidence / 2) / half_width) ** 2)
    count = float(count) if len(p) else np.inf
    return Requirement(half_width, count, count)


def bounds_without_rechecks(
    size: Float[np.ndarray, "groups"],
    accepted: Float[np.ndarray, "groups"],
    prompts: int,
    confidence: float,
) -> tuple[float, float]:
    """Largest false-positive and false-negative rate that the verdicts alone allow.

    If the rates are the same for all prompts and J > 0, a group of `n` is all rejected with
    probability `(1 - q)^n <= (1 - false_positive)^n`, so many all-rejected groups mean few
    false positives; all-accepted groups bound the false negatives in the same way.

    Args:
      size: rollouts of each group, at least 1.
      accepted: how many of them were accepted.
      prompts: number of distinct prompts, the effective number of groups.
      confidence: of each bound, one-sided.
    """
    rate = np.linspace(0.0, 1.0, 10001)
    sizes, multiplicity = np.unique(size, return_counts=True)
    expected = (1.0 - rate[:, None]) ** sizes @ (multiplicity / len(size))
    bounds = []
    for extreme in (accepted == 0, accepted == size):
        share = float(np.mean(extreme))
        low = stats.beta.ppf(1.0 - confidence, share * prompts, (1.0 - share) * prompts + 1.0)
        low = 0.0 if share == 0 else float(low)
        bounds.append(float(np.max(rate[expected >= low])))
    return bounds[0], bounds[1]


def _stabilized(x: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
    return 2.0 * np.arcsin(np.sqrt(np.clip(x, 0.0, 1.0)))
