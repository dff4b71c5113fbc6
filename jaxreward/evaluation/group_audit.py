"""The part of the audit that is about groups, given the verifier's rates.

`Conditional` holds groups and rates by the value of one feature (one value: the same rates
everywhere). If the feature is constant within each group its values split the groups into
strata, each with its own rates and its own distribution of true success rates; everything
that differs from prompt to prompt is then averaged over strata and success rates.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from jaxreward.evaluation import advantage_noise
from jaxreward.evaluation.recheck_statistics import quantiles
from jaxreward.rate_estimates import Rates

EDGES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
"""Limits of the buckets of true success rate."""

INFORMATIVE = (0.05, 0.95)
"""Success rates between which the spread of kappa is reported: outside, groups are mostly
dead."""

MAX_DRAWS = 400
"""Draws of the rates used for intervals of quantities that depend on the success rate."""


class Conditional(NamedTuple):
    """Groups and rates by the value of a feature.

    Attributes:
      size: rollouts of each group by value.
      ones: accepted ones among them.
      labels: the `F` values.
      point: estimated rates, `[F]`.
      draws: their bootstrap draws, `[B, F]`.
    """

    size: Float[np.ndarray, "groups F"]
    ones: Float[np.ndarray, "groups F"]
    labels: tuple[str, ...]
    point: Rates
    draws: Rates


class _Stratum(NamedTuple):
    label: str
    share: float
    group_size: int
    mass: np.ndarray  # [K]
    alive: np.ndarray  # [K] probability of an observed group with variance
    kappa: np.ndarray  # [K]
    kappa_draws: np.ndarray  # [B, K]
    factor: np.ndarray  # [K]
    factor_draws: np.ndarray  # [B, K]
    determinant: float
    determinant_draws: np.ndarray  # [B]
    dead: advantage_noise.DeadGroups


def share_entry(
    conditional: Conditional,
    group_cluster: Int[np.ndarray, "groups"],
    weights: Float[np.ndarray, "B C"],
    confidence: float,
    level: str,
) -> dict[str, Any]:
    """The noise share of centred advantages with an interval, and its parts.

    Args:
      conditional: groups and rates.
      group_cluster: cluster of each group.
      weights: bootstrap weights that belong to `conditional.draws`.
      confidence: of the intervals.
      level: "prompt" if the feature is constant within groups, else "output"; then the
        share of flips alone is not defined and left out.
    """
    sums = advantage_noise.group_sums(conditional.size, conditional.ones, group_cluster)
    whole = advantage_noise.GroupSums(*(term.sum(axis=0) for term in sums))
    some = len(weights) if len(conditional.labels) <= 5 else MAX_DRAWS
    drawn = advantage_noise.weighted(sums, weights[:some])
    rates = conditional.point[:2]
    draws = [column[:some] for column in conditional.draws[:2]]
    entry = {
        "share": _entry(
            advantage_noise.noise_share(whole, *rates),
            advantage_noise.noise_share(drawn, *draws),
            confidence,
        )
    }
    if level == "prompt":
        entry["flips"] = _entry(
            advantage_noise.flip_share(whole, *rates),
            advantage_noise.flip_share(drawn, *draws),
            confidence,
        )
        entry["reweighting"] = entry["share"]["estimate"] - entry["flips"]["estimate"]
    return entry


def _entry(estimate, draws: np.ndarray, confidence: float) -> dict[str, float]:
    low, high = quantiles(draws, confidence)
    estimate = float(estimate)  # may lie at the edge, where rates of 0 put it but no draw
    return {"estimate": estimate, "low": min(low, estimate), "high": max(high, estimate)}


def report(conditional: Conditional, confidence: float) -> dict[str, Any]:
    """What differs from prompt to prompt, averaged over strata and true success rates.

    Args:
      conditional: by a feature that is constant within groups.
      confidence: of the intervals.

    Returns:
      `noise.standardized`, the noise share of std-normalised advantages, `1 - kappa^2`
      averaged over groups that are not dead; `kappa` and `factor`, the reliability and the
      exact gradient factor of GRPO at the median group size, as 10%, 50% and 90% quantiles
      over prompts that are not nearly always right or wrong; `buckets`, by true success rate
      the expected gradient relative to the clean one; `strata`, the same by feature value;
      `dead_groups`; `success`, the distribution of true success rates; `curve`, the factor
      against the success rate.
    """
    grid, strata = None, []
    for value in range(len(conditional.labels)):
        grid, stratum = _stratum(conditional, value)
        strata += [] if stratum is None else [stratum]
    total = sum(stratum.share for stratum in strata)
    strata = [stratum._replace(share=stratum.share / total) for stratum in strata]
    return {
        "group_size": int(np.median(conditional.size.sum(axis=1))),
        "noise": {"standardized": _standardized(strata, confidence)},
        "kappa": _spread(grid, strata, [stratum.kappa for stratum in strata]),
        "factor": _spread(grid, strata, [stratum.factor for stratum in strata]),
        "buckets": _buckets(grid, strata, confidence),
        "strata": [_stratum_entry(grid, stratum, confidence) for stratum in strata],
        "dead_groups": _dead(strata),
        "success": {
            "rate": grid.tolist(),
            "probability": _mix(strata, [stratum.mass for stratum in strata]).tolist(),
        },
        "curve": _curve(grid, strata, confidence),
    }


def _stratum(conditional: Conditional, value: int) -> tuple[np.ndarray, _Stratum | None]:
    """The groups with one feature value; None if none has two rollouts."""
    size = conditional.size[:, value].astype(np.int64)
    ones = conditional.ones[:, value].astype(np.int64)
    size, ones = size[size >= 2], ones[size >= 2]
    grid = np.linspace(0.0, 1.0, 41)
    if len(size) == 0:
        return grid, None
    point = Rates(*(float(rate[value]) for rate in conditional.point))
    draws = Rates(*(rate[:MAX_DRAWS, value] for rate in conditional.draws))
    one = Rates(*(np.array([rate]) for rate in point))
    n = int(np.median(size))
    mass = advantage_noise.success_distribution(
        size, ones, np.full(len(size), point.false_positive),
        np.full(len(size), point.false_negative), grid,
    )
    seen = np.clip(point.false_positive + point.determinant * grid, 0.0, 1.0)
    return grid, _Stratum(
        label=conditional.labels[value],
        share=float(len(size)),
        group_size=n,
        mass=mass,
        alive=1.0 - seen**n - (1.0 - seen) ** n,
        kappa=advantage_noise.reliability(grid, *one[:2])[0],
        kappa_draws=advantage_noise.reliability(grid, *draws[:2]),
        factor=advantage_noise.gradient_factor(grid, *one[:2], n)[0],
        factor_draws=advantage_noise.gradient_factor(grid, *draws[:2], n),
        determinant=point.determinant,
        determinant_draws=draws.determinant,
        dead=advantage_noise.dead_groups(size, ones, grid, mass, point),
    )


def _mix(strata: list[_Stratum], terms: list) -> Any:
    return sum(stratum.share * term for stratum, term in zip(strata, terms))


def _standardized(strata: list[_Stratum], confidence: float) -> dict[str, float]:
    """1 - E kappa^2 over alive groups: each has unit variance, so each counts the same."""
    alive = _mix(strata, [stratum.mass @ stratum.alive for stratum in strata])
    weights = [stratum.mass * stratum.alive / alive for stratum in strata]
    point = _mix(strata, [s.kappa**2 @ w for s, w in zip(strata, weights)])
    draws = _mix(strata, [s.kappa_draws**2 @ w for s, w in zip(strata, weights)])
    return _entry(1.0 - point, 1.0 - draws, confidence)


def _spread(grid: np.ndarray, strata: list[_Stratum], terms: list) -> dict[str, Any] | None:
    """Quantiles over informative prompts; None if there are none."""
    inside = (grid >= INFORMATIVE[0]) & (grid <= INFORMATIVE[1])
    values = np.concatenate([term[inside] for term in terms])
    mass = np.concatenate([stratum.share * stratum.mass[inside] for stratum in strata])
    if mass.sum() <= 0:
        return None
    order = np.argsort(values)
    cumulative = np.cumsum(mass[order]) / mass.sum()
    low, median, high = (
        float(values[order][np.searchsorted(cumulative, level - 1e-9)])
        for level in (0.1, 0.5, 0.9)
    )
    return {
        "low": low,
        "median": median,
        "high": high,
        "ratio": high / low if low > 0 else None,
        "share_informative": float(mass.sum()),
    }


def _buckets(grid: np.ndarray, strata: list[_Stratum], confidence: float) -> list[dict]:
    """Rows by true success rate; the last edge belongs to the last bucket."""
    position = np.minimum(np.digitize(grid, EDGES) - 1, len(EDGES) - 2)
    rows = []
    for index, limits in enumerate(zip(EDGES[:-1], EDGES[1:])):
        where = position == index
        share = float(_mix(strata, [stratum.mass[where].sum() for stratum in strata]))
        row = {"low": limits[0], "high": limits[1], "share": share}
        row.update(_factors(strata, where, confidence))
        rows.append(row)
    return rows


def _factors(strata: list[_Stratum], where: np.ndarray, confidence: float) -> dict[str, Any]:
    """Mean gradient factors over the success rates selected, weighted by their share.

    Nearly empty buckets are evaluated at their uniform mixture, as the curve is smooth.
    """
    mass = [stratum.mass[where] + 1e-6 for stratum in strata]
    weights = [m / _mix(strata, [m.sum() for m in mass]) for m in mass]
    sums = [w.sum() for w in weights]
    j = _entry(
        _mix(strata, [s.determinant * w for s, w in zip(strata, sums)]),
        _mix(strata, [s.determinant_draws * w for s, w in zip(strata, sums)]),
        confidence,
    )
    grpo = _entry(
        _mix(strata, [s.factor[where] @ w for s, w in zip(strata, weights)]),
        _mix(strata, [s.factor_draws[:, where] @ w for s, w in zip(strata, weights)]),
        confidence,
    )
    kappa = _mix(strata, [s.kappa[where] @ w for s, w in zip(strata, weights)])
    return {"dr_grpo": j, "rloo": j, "grpo": grpo, "kappa": float(kappa)}


def _stratum_entry(grid: np.ndarray, stratum: _Stratum, confidence: float) -> dict[str, Any]:
    everywhere = np.ones(len(grid), bool)
    return {
        "value": stratum.label,
        "share": stratum.share,
        "success_rate": float(stratum.mass @ grid),
        **_factors([stratum._replace(share=1.0)], everywhere, confidence),
    }


def _dead(strata: list[_Stratum]) -> dict[str, float]:
    observed = _mix(strata, [s.dead.observed for s in strata])
    alive = [1.0 - s.dead.observed for s in strata]
    hidden = _mix(strata, [s.dead.falsely_alive * a for s, a in zip(strata, alive)])
    return {
        "observed": float(observed),
        "true": float(_mix(strata, [s.dead.true for s in strata])),
        "falsely_alive": float(hidden / (1.0 - observed)) if observed < 1 else 0.0,
    }


def _curve(grid: np.ndarray, strata: list[_Stratum], confidence: float) -> list[dict]:
    """The GRPO factor against the true success rate, one line for each stratum."""
    tail = 0.5 - confidence / 2
    return [
        {
            "value": stratum.label,
            "success_rate": grid.tolist(),
            "grpo": stratum.factor.tolist(),
            "low": np.quantile(stratum.factor_draws, tail, axis=0).tolist(),
            "high": np.quantile(stratum.factor_draws, 1 - tail, axis=0).tolist(),
            "dr_grpo": stratum.determinant,
        }
        for stratum in strata
    ]
