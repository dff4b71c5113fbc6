"""The audit of a verifier from the log of a training run: one call, one nested dictionary.

What a log of (prompt, observed reward, optional trusted re-check, optional features) says
about the reward's noise, what share of the group-relative signal it is, and what correcting
it would change. `jaxreward.evaluation.recheck_statistics` has the rates, their intervals
and the tests, `advantage_noise` the noise share, `correction_advice` the decision.

Assumptions, repeated in every report: the re-check is right; within a verdict, re-checked
rollouts are a random sample (or their inclusion probabilities are given); prompts are a
sample of those one cares about.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from jaxreward.evaluation import advantage_noise, group_audit, recheck_statistics, rollout_log
from jaxreward.evaluation.rollout_log import Rollouts
from jaxreward.rate_estimates import Rates, Rechecks

MAX_CLUSTERS = 2048
"""Prompts beyond this number are united at random for the bootstrap (random groups)."""

MIN_RECHECKS = 5
"""Re-checks of a verdict below which a feature value is left out of the tests."""

HALF_WIDTHS = (0.1, 0.05, 0.03, 0.02, 0.01)
"""Of the intervals that re-checks are planned for, beside the one asked for."""

RATES = ("false_positive", "false_negative")


class Settings(NamedTuple):
    """Choices of the audit.

    Attributes:
      confidence: of all intervals and, as `1 - confidence`, level of all tests.
      half_width: of the interval that the plan of re-checks aims at.
      draws: of the bootstrap.
      seed: of the bootstrap.
    """

    confidence: float = 0.95
    half_width: float = 0.05
    draws: int = 2000
    seed: int = 0


class _Sample(NamedTuple):
    """What the parts of the audit share: the log and how to resample it."""

    rollouts: Rollouts
    settings: Settings
    cluster: np.ndarray  # [N]
    group_cluster: np.ndarray  # [groups]
    recheck_weight: np.ndarray  # [N]
    boot: np.ndarray  # [B, C]
    rng: np.random.Generator
    prompts_checked: int


def audit(rollouts: Rollouts, settings: Settings = Settings()) -> dict[str, Any]:
    """The whole audit as plain Python values, `None` for what the log cannot say.

    Keys: `log` (counts), `state` (which verdicts were re-checked), `rates` (overall),
    `features` (rates by value), `tests` (of constant rates), `groups` (noise shares,
    gradient factors, dead groups), `plan` (re-checks for tighter intervals), `bounds`
    (what the verdicts alone allow), `warnings`.

    Raises:
      ValueError: no rollouts, one verdict only, or no group of two.
    """
    sample = _prepare(rollouts, settings)
    result = {"log": rollout_log.describe(rollouts), "settings": settings._asdict()}
    table = _counts(sample, np.zeros(len(rollouts.prompt), np.int64))
    draws = recheck_statistics.rate_draws(sample.rng, sample.boot, table)
    total = table[:, 0].sum(axis=0)
    result["state"] = recheck_state(total)
    result["rates"] = _value_entry(sample, table[:, 0], _of(draws, 0))
    result["features"] = {name: _feature_entry(sample, name) for name in rollouts.features}
    result["tests"] = _tests(sample, result["features"], total)
    result["bounds"] = _bounds(sample)
    result["plan"] = _plan(sample, table[:, 0], result)
    result["warnings"] = _warnings(sample)
    result["groups"] = None
    if known_rates(result) and rollouts.weight is None:
        result["groups"] = _group_part(sample, total, _of(draws, 0), result)
    return result


def known_rates(result: dict[str, Any]) -> bool:
    """True if both rates have an estimate: both verdicts re-checked, both truths found."""
    return all(result["rates"][rate]["estimate"] is not None for rate in RATES)


def recheck_state(counts: Float[np.ndarray, "6"]) -> str:
    """Which verdicts have re-checks: "both", "accepted", "rejected" or "none"."""
    cell = Rechecks(*counts)
    accepted = cell.accepted_right + cell.accepted_wrong > 0
    rejected = cell.rejected_right + cell.rejected_wrong > 0
    return ("none", "rejected", "accepted", "both")[2 * int(accepted) + int(rejected)]


def _prepare(rollouts: Rollouts, settings: Settings) -> _Sample:
    rollout_log.check(rollouts)
    rng = np.random.default_rng(settings.seed)
    clusters = min(rollouts.prompts, MAX_CLUSTERS)
    cluster = (rng.permutation(rollouts.prompts) % clusters)[rollouts.prompt]
    group_cluster = np.zeros(int(rollouts.group.max()) + 1, np.int64)
    group_cluster[rollouts.group] = cluster
    checked = len(np.unique(rollouts.prompt[rollouts.checked]))
    return _Sample(
        rollouts=rollouts,
        settings=settings,
        cluster=cluster,
        group_cluster=group_cluster,
        recheck_weight=rollout_log.recheck_weight(rollouts),
        boot=recheck_statistics.bootstrap_weights(
            rng, settings.draws, clusters, checked, settings.confidence
        ),
        rng=rng,
        prompts_checked=checked,
    )


def _counts(sample: _Sample, code: np.ndarray) -> np.ndarray:
    rollouts = sample.rollouts
    weight = np.ones(len(code)) if rollouts.weight is None else rollouts.weight
    return recheck_statistics.cluster_counts(
        sample.cluster, code, rollouts.observed, rollouts.recheck, weight, sample.recheck_weight
    )


def _of(draws: Rates, value: int) -> Rates:
    return Rates(*(column[:, value] for column in draws))


def _value_entry(sample: _Sample, table: np.ndarray, draws: Rates) -> dict[str, Any]:
    """Rates with intervals of one feature value; `table` is `[C, 6]`."""
    total = table.sum(axis=0)
    intervals = recheck_statistics.rate_intervals(total, draws, sample.settings.confidence)
    state = recheck_state(total)
    if state in ("accepted", "rejected") and total[:2].min() > 0:
        intervals.update(_one_sided(sample, draws, state))
    entry = {name: interval_entry(interval) for name, interval in intervals.items()}
    entry["counts"] = dict(zip(Rechecks._fields, (float(x) for x in total)))
    entry["observed_success"] = float(total[0] / max(total[:2].sum(), 1.0))
    if state == "both":
        effects = recheck_statistics.design_effects(table)
        entry["design_effect"] = {name: effects[name][0] for name in RATES}
    return entry


def _one_sided(sample: _Sample, draws: Rates, state: str) -> dict[str, Any]:
    """Bounds of the rates when only one verdict was re-checked, whatever the other holds."""
    low, high = recheck_statistics.one_verdict_bounds(draws, state)
    ends = {name: (getattr(low, name), getattr(high, name)) for name in Rates._fields}
    # Both rates fall together as the unknown share moves, so J is largest where they are least.
    ends["determinant"] = (high.determinant, low.determinant)
    return {
        name: recheck_statistics.Interval(
            float("nan"),
            recheck_statistics.quantiles(lower, sample.settings.confidence)[0],
            recheck_statistics.quantiles(upper, sample.settings.confidence)[1],
        )
        for name, (lower, upper) in ends.items()
    }


def interval_entry(interval: recheck_statistics.Interval) -> dict[str, float | None]:
    """An interval for a report; the estimate is None where there is none."""
    estimate = None if np.isnan(interval.estimate) else float(interval.estimate)
    return {"estimate": estimate, "low": float(interval.low), "high": float(interval.high)}


def _feature_entry(sample: _Sample, name: str) -> dict[str, Any]:
    feature = sample.rollouts.features[name]
    table = _counts(sample, feature.code)
    draws = recheck_statistics.rate_draws(sample.rng, sample.boot, table)
    values = {
        label: _value_entry(sample, table[:, index], _of(draws, index))
        for index, label in enumerate(feature.labels)
    }
    total = table.sum(axis=0)
    usable = _usable(total)
    entry = {
        "level": rollout_log.level(sample.rollouts, feature),
        "values": values,
        "tested_values": int(usable.sum()),
    }
    point = recheck_statistics.point_rates(total[usable] + 0.5)
    entry["p_value"] = {
        rate: recheck_statistics.variation_test(
            getattr(point, rate), getattr(draws, rate)[:, usable], sample.prompts_checked
        )
        if usable.sum() >= 2
        else None
        for rate in RATES
    }
    return entry


def _usable(total: np.ndarray) -> np.ndarray:
    """Feature values with enough re-checks of each verdict that occurs, `[F]`."""
    checked = np.stack([total[:, 2:4].sum(axis=1), total[:, 4:6].sum(axis=1)], axis=1)
    return ((checked >= MIN_RECHECKS) | (total[:, :2] == 0)).all(axis=1)


def _tests(sample: _Sample, features: dict, total: np.ndarray) -> list[dict[str, Any]]:
    """Every test of constant rates, with p-values adjusted for their number."""
    tests = [
        {"feature": name, "rate": rate, "p_value": p}
        for name, entry in features.items()
        for rate, p in entry["p_value"].items()
        if p is not None
    ]
    point = recheck_statistics.point_rates(total)
    if recheck_state(total) == "both" and not np.isnan(point).any():
        for rate in RATES:
            p = _overdispersion(sample, total, rate, float(getattr(point, rate)))
            tests.append({"feature": None, "rate": rate, "p_value": p})
    adjusted = recheck_statistics.holm([test["p_value"] for test in tests]) if tests else []
    level = 1.0 - sample.settings.confidence
    return [
        {**test, "adjusted": p, "varies": bool(p < level)} for test, p in zip(tests, adjusted)
    ]


def _overdispersion(sample: _Sample, total: np.ndarray, rate: str, value: float) -> float:
    rollouts = sample.rollouts
    true = 0 if rate == "false_positive" else 1
    where = rollouts.recheck == true
    observed = rollouts.observed[where]
    scale = (total[1] / total[4:6].sum(), total[0] / total[2:4].sum())
    weight = np.where(observed, scale[1], scale[0]) * sample.recheck_weight[where]
    error = observed if true == 0 else ~observed
    return recheck_statistics.overdispersion_test(
        rollouts.prompt[where], weight * (error - value)
    )


def _bounds(sample: _Sample) -> dict[str, float] | None:
    """What the verdicts alone allow; None for a log thinned by verdict."""
    if sample.rollouts.weight is not None:
        return None
    size, ones = rollout_log.group_counts(sample.rollouts, rollout_log.constant(sample.rollouts))
    a, b = recheck_statistics.bounds_without_rechecks(
        size[:, 0], ones[:, 0], sample.rollouts.prompts, sample.settings.confidence
    )
    sums = advantage_noise.group_sums(size, ones, np.zeros(len(size), np.int64))
    share = advantage_noise.flip_share(sums, np.array([[a]]), np.array([[b]]))
    return {"false_positive": a, "false_negative": b, "noise_share": float(share[0])}


def _plan(sample: _Sample, table: np.ndarray, result: dict) -> list[dict[str, Any]]:
    confidence = sample.settings.confidence
    target = sample.settings.half_width
    widths = sorted({*HALF_WIDTHS, target}, reverse=True)
    if result["state"] == "both":
        rows = [recheck_statistics.plan_rechecks(table, width, confidence) for width in widths]
    else:
        share = float(table[:, 0].sum() / table[:, :2].sum())
        largest = tuple(result["bounds"][rate] if result["bounds"] else 0.5 for rate in RATES)
        rows = [
            recheck_statistics.worst_case_rechecks(share, largest, width, confidence)
            for width in widths
        ]
    total = table.sum(axis=0)
    have = (total[2:4].sum(), total[4:6].sum())
    return [_plan_entry(row, have, total) for row in rows]


def _plan_entry(row, have, total) -> dict[str, Any]:
    if not np.isfinite(row.accepted + row.rejected):
        return {"half_width": row.half_width, "accepted": None, "rejected": None,
                "more_accepted": None, "more_rejected": None, "in_log": False}
    return {
        "half_width": row.half_width,
        "accepted": int(row.accepted),
        "rejected": int(row.rejected),
        "more_accepted": int(max(np.ceil(row.accepted - have[0]), 0)),
        "more_rejected": int(max(np.ceil(row.rejected - have[1]), 0)),
        "in_log": bool(row.accepted <= total[0] and row.rejected <= total[1]),
    }


def _warnings(sample: _Sample) -> list[str]:
    rollouts = sample.rollouts
    found = []
    if rollouts.inclusion is None and rollouts.weight is None:
        siblings = rollout_log.sibling_mean(rollouts)
        for verdict, name in ((True, "accepted"), (False, "rejected")):
            where = rollouts.observed == verdict
            gap, p = recheck_statistics.selection_test(
                rollouts.prompt[where],
                siblings[where],
                rollouts.recheck[where] >= 0,
            )
            if p < 1e-3 and abs(gap) > 0.05:
                found.append(
                    f"re-checked {name} rollouts come from groups whose other rollouts are "
                    f"accepted {gap:+.2f} more often than those of the rest: not a random "
                    "sample within the verdict, so the rates are biased (give the inclusion "
                    "probabilities)"
                )
    return found


def _group_part(sample: _Sample, total, draws: Rates, result: dict) -> dict[str, Any]:
    """Everything about groups, given rates: noise shares, gradient factors, dead groups."""
    everywhere = rollout_log.constant(sample.rollouts)
    whole = group_audit.Conditional(
        *rollout_log.group_counts(sample.rollouts, everywhere),
        everywhere.labels,
        recheck_statistics.point_rates(total[None]),
        Rates(*(column[:, None] for column in draws)),
    )
    varying = {
        name: _conditional(sample, name, result, whole)
        for name in sample.rollouts.features
        if any(test["feature"] == name and test["varies"] for test in result["tests"])
    }
    by_prompt = [name for name in varying if result["features"][name]["level"] == "prompt"]
    p_value = {test["feature"]: test["p_value"] for test in reversed(result["tests"])}
    strata = min(by_prompt, key=p_value.get) if by_prompt else None
    report = group_audit.report(
        whole if strata is None else varying[strata], sample.settings.confidence
    )
    report["strata_feature"] = strata
    report["noise"]["centred"] = group_audit.share_entry(
        whole, sample.group_cluster, sample.boot, sample.settings.confidence, "prompt"
    )
    report["noise"]["by_feature"] = {
        name: group_audit.share_entry(
            conditional, sample.group_cluster, sample.boot, sample.settings.confidence,
            result["features"][name]["level"],
        )
        for name, conditional in varying.items()
    }
    return report


def _conditional(
    sample: _Sample, name: str, result: dict, whole: group_audit.Conditional
) -> group_audit.Conditional:
    """Rates by value of a feature; those of all rollouts where a value has no re-checks."""
    feature = sample.rollouts.features[name]
    table = _counts(sample, feature.code)
    point = recheck_statistics.point_rates(table.sum(axis=0))
    usable = _usable(table.sum(axis=0)) & ~np.isnan(point).any(axis=0)
    draws = recheck_statistics.rate_draws(sample.rng, sample.boot, table)
    return group_audit.Conditional(
        *rollout_log.group_counts(sample.rollouts, feature),
        feature.labels,
        Rates(*(np.where(usable, own, all_) for own, all_ in zip(point, whole.point))),
        Rates(*(np.where(usable, own, all_) for own, all_ in zip(draws, whole.draws))),
    )
