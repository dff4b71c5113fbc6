"""Sufficient statistics of re-checked verdicts, and rates with intervals from them.

Counts are weighted sums, and sums of squared weights beside them: a re-check weighs the
inverse of the probability with which it was drawn, and every step weighs less than the next
where the estimator forgets. Shares come from the sums. Their precision is that of
`(sum of weights)^2 / (sum of squared weights)` equal weights, so that what
`jaxreward.rate_estimates` says of plain counts holds of weighted ones.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreward import rate_estimates
from jaxreward.rate_estimates import Numbers, Rates, Rechecks
from jaxreward.types import Signal

INTERVALS = ("false_positive", "false_negative", "determinant")

ALARM = 0.1
"""`rates/alarm` is 1 while a lower limit of J is below this."""

NAMED = 16
"""Most indices whose own estimates become metrics."""


class WeightedRechecks(NamedTuple):
    """Sums of weights, and of their squares, of the six kinds of rollouts; `[num]` each."""

    sums: Rechecks
    squares: Rechecks


class Estimate(NamedTuple):
    """Rates, and `{name: (low, high)}` of what `INTERVALS` names, of the shape of the counts.

    A rate that is assumed has no interval.
    """

    rates: Rates
    intervals: dict[str, tuple[Array, Array]]


def no_rechecks(num: int) -> WeightedRechecks:
    """Zeros."""

    def zeros() -> Rechecks:  # own buffers: all can be donated
        return Rechecks(*(jnp.zeros((num,), jnp.float32) for _ in Rechecks._fields))

    return WeightedRechecks(zeros(), zeros())


def answered(signal: Signal) -> Bool[Array, "P G *S"]:
    """Where there is a reward, an appeal and its verdict."""
    return signal.mask & signal.aux["appealed"] & jnp.isfinite(signal.aux["recheck"])


def count_rechecks(signal: Signal, index: Int[Array, "..."], num: int) -> WeightedRechecks:
    """The statistics of one batch by index.

    Args:
      signal: observed binary rewards, `aux["appealed"]` and `aux["recheck"]` of their shape;
        `aux["appeal_probability"]` likewise, if it is there.
      index: int32, leading axes of the rewards; entries outside `[0, num)` are not counted.
      num: number of indices.
    """
    accepted, right = signal.rewards > 0.5, signal.aux["recheck"] > 0.5
    seen, mask = answered(signal), signal.mask
    events = Rechecks(
        mask & accepted,
        mask & ~accepted,
        seen & accepted & right,
        seen & accepted & ~right,
        seen & ~accepted & right,
        seen & ~accepted & ~right,
    )
    one = jnp.ones_like(signal.rewards)
    probability = signal.aux.get("appeal_probability", one)
    inverse = 1.0 / jnp.where(seen & (probability > 0), probability, 1.0)
    weights = Rechecks(one, one, inverse, inverse, inverse, inverse)
    # A negative place would count from the end.
    place = jnp.where(index < 0, num, index).reshape(index.shape + (1,) * (mask.ndim - index.ndim))
    place = jnp.broadcast_to(place, mask.shape).reshape(-1)

    def total(event, weight):
        selected = jnp.where(event, weight, 0.0).reshape(-1)
        return jnp.zeros((num,), jnp.float32).at[place].add(selected, mode="drop")

    return WeightedRechecks(
        jax.tree.map(total, events, weights),
        jax.tree.map(lambda event, weight: total(event, jnp.square(weight)), events, weights),
    )


def accumulate(old: WeightedRechecks, new: WeightedRechecks, decay) -> WeightedRechecks:
    """The statistics after a step, what was there before weighing `decay` of what it did."""
    return WeightedRechecks(
        jax.tree.map(lambda before, now: decay * before + now, old.sums, new.sums),
        jax.tree.map(lambda before, now: decay**2 * before + now, old.squares, new.squares),
    )


def pooled(counts: WeightedRechecks) -> WeightedRechecks:
    """The statistics of all indices together, `[1]`."""
    return jax.tree.map(lambda leaf: jnp.sum(leaf, keepdims=True), counts)


def effective(counts: WeightedRechecks) -> Rechecks:
    """Plain counts of the same shares and the same precision."""
    sums, squares = counts
    result = []
    for i in range(0, len(sums), 2):  # verdicts, then accepted and rejected re-checks
        spread = squares[i] + squares[i + 1]
        factor = (sums[i] + sums[i + 1]) / jnp.where(spread > 0, spread, 1.0)
        result += [sums[i] * factor, sums[i + 1] * factor]
    return Rechecks(*result)


def estimate(counts: Rechecks, z) -> Estimate:
    """Both rates from re-checks of both verdicts, with half a count added to each."""
    rates = rate_estimates.estimate_rates(counts, 0.5)
    intervals = dict(rate_estimates.rate_intervals(counts, z))
    intervals["determinant"] = determinant_interval(rates, intervals, _correlation(counts))
    return Estimate(rates, intervals)


def estimate_one_sided(counts: Rechecks, false_positive, z) -> Estimate:
    """The false-negative rate from re-checks of rejected rollouts, false_positive given.

    With `x = P(observed 0, true 1)` and `y = P(observed 0, true 0)`, `P(true 0)` is
    `y / (1 - false_positive)` and `false_negative = x / (1 - P(true 0))`. The interval is
    symmetric on the logit scale, by the delta method, as those of `rate_estimates`.
    """
    shares = rate_estimates.verdict_shares(counts, 0.5)
    q, missed = shares.accepted, shares.rejected_right
    kept = 1.0 - false_positive
    caught, lost = (1.0 - q) * (1.0 - missed), (1.0 - q) * missed
    # Fewer are accepted than the given rate implies: nothing true seems to be accepted.
    accepted_right = jnp.maximum(1.0 - caught / kept - lost, 1e-6)
    true = accepted_right + lost
    rate = lost / true
    by_missed = 1.0 / missed - (1.0 - q) * (1.0 / kept - 1.0) / accepted_right
    by_q = -1.0 / (1.0 - q) - ((1.0 - missed) / kept + missed) / accepted_right
    rechecks = counts.rejected_right + counts.rejected_wrong + 1.0
    rollouts = counts.accepted + counts.rejected + 1.0
    variance = by_missed**2 * missed * (1.0 - missed) / rechecks
    variance += by_q**2 * q * (1.0 - q) / rollouts
    factor = jnp.exp(z * jnp.sqrt(variance))
    low = jnp.where(counts.rejected_right > 0, rate / (rate + (1.0 - rate) * factor), 0.0)
    seen = counts.rejected_right + counts.rejected_wrong > 0
    high = jnp.where(seen, rate / (rate + (1.0 - rate) / factor), 1.0)
    given = jnp.broadcast_to(jnp.asarray(false_positive, jnp.float32), rate.shape)
    intervals = {
        "false_negative": (low, high),
        "determinant": (1.0 - given - high, 1.0 - given - low),
    }
    return Estimate(Rates(given, rate, true), intervals)


def shrink(rates: Rates, counts: Rechecks, towards: Rates, strength, one_sided: bool) -> Rates:
    """The rates moved `towards` others that are worth `strength` re-checks of each verdict."""
    accepted = counts.accepted_right + counts.accepted_wrong
    rejected = counts.rejected_right + counts.rejected_wrong
    if one_sided:
        number = rejected
    else:  # both rates need both verdicts: the harmonic mean is 0 where one has no re-check
        product = accepted * rejected
        number = 2.0 * product / jnp.where(product > 0, accepted + rejected, 1.0)
    weight = jnp.where(number > 0, number / jnp.where(number > 0, number + strength, 1.0), 0.0)
    moved = [weight * own + (1.0 - weight) * other for own, other in zip(rates[:2], towards[:2])]
    return Rates(*moved, rates.success_rate)


def determinant_interval(rates: Rates, intervals, correlation=0.0) -> tuple[Numbers, Numbers]:
    """The interval of J from those of the rates, by their distances from the estimates.

    That of Zou and Donner (2008) for a sum of two estimates; numpy or jax arrays.

    Args:
      rates: the estimates.
      intervals: `{name: (low, high)}` of both rates.
      correlation: of the estimates of both rates.
    """
    low, high = zip(intervals["false_positive"], intervals["false_negative"])
    down = [end - rate for end, rate in zip(high, rates[:2])]
    up = [rate - end for end, rate in zip(low, rates[:2])]

    def distance(a, b):
        return abs(a**2 + b**2 + 2.0 * correlation * a * b) ** 0.5

    return rates.determinant - distance(*down), rates.determinant + distance(*up)


def _correlation(counts: Rechecks) -> Float[Array, "num"]:
    """Correlation of the estimates of both rates; the same re-checks serve them."""
    parts = rate_estimates.variance_parts(rate_estimates.verdict_shares(counts, 0.5))
    numbers = (
        counts.accepted_right + counts.accepted_wrong + 1.0,
        counts.rejected_right + counts.rejected_wrong + 1.0,
        counts.accepted + counts.rejected + 1.0,
    )
    positive, negative, both = (parts[name].total(*numbers) for name in INTERVALS)
    return (both - positive - negative) / (2.0 * jnp.sqrt(positive * negative))


def estimate_metrics(overall: Estimate, by_index: Estimate | None = None) -> dict[str, Any]:
    """`rates/<name>`, `_low` and `_high` overall, likewise `_<index>`, and `rates/alarm`.

    Args:
      overall: of shape `[1]`.
      by_index: `[num]`, None for no indices.
    """
    metrics = _named(overall, [""])
    if by_index is not None and by_index.rates.false_positive.shape[0] <= NAMED:
        suffixes = [f"_{i}" for i in range(by_index.rates.false_positive.shape[0])]
        metrics |= _named(by_index, suffixes)
    low, _ = (overall if by_index is None else by_index).intervals["determinant"]
    return {**metrics, "rates/alarm": jnp.any(low < ALARM).astype(jnp.float32)}


def _named(estimate: Estimate, suffixes: list[str]) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for i, suffix in enumerate(suffixes):
        for name in INTERVALS:
            metrics[f"rates/{name}{suffix}"] = getattr(estimate.rates, name)[i]
            if name in estimate.intervals:
                low, high = estimate.intervals[name]
                metrics[f"rates/{name}{suffix}_low"] = low[i]
                metrics[f"rates/{name}{suffix}_high"] = high[i]
    return metrics
