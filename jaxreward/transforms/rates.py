"""Estimators of the noise channel. Each sets `signal.rates` and metrics `rates/...`.

* `known`: told.
* `appeals`: a random share of verdicts is re-checked by a trusted verifier; online estimate
  with interval, prior, forgetting, overall or by an index (type of prompt, feature of output).
* `appeals_as_released`: the false-negative estimate of arXiv 2510.00915, as printed there.
* `disagreement`: several verifiers and no truth; two-class Dawid-Skene by EM.
* `calibrated`: counts from a held-out split with trusted labels, before training.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxreward import channel as channels
from jaxreward import masked
from jaxreward.channel import Channel
from jaxreward.checks import Number, check_number
from jaxreward.rate_estimates import Rates, Rechecks, estimate_rates, rate_intervals
from jaxreward.transforms.base import RewardTransform, Spec, stateless
from jaxreward.transforms.sources import ChannelSource, constant
from jaxreward.types import Signal

ALARM = 0.1
"""`rates/alarm` is 1 while the lower limit of J is below this: stop and fix the verifier."""


def known(source: ChannelSource) -> RewardTransform:
    """Rates that are given. Records `rates/stale`: the share of impossible success rates.

    The observed mean implies a true success rate `(mean - false_positive) / J`; if that is
    outside [0, 1] for the whole batch by more than sampling noise, the rates are stale.
    """

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        rates = source.read(signal)
        signal = signal.replace(rates=rates)
        return signal.with_metrics(rates__stale=_stale(signal, rates))

    spec = Spec("known", "rates", ("rewards", "mask") + source.reads, ("rates",))
    return stateless(update, spec._replace(rates_vary=source.vary))


def _stale(signal: Signal, rates: Channel) -> Float[Array, ""]:
    """1 if the batch's mean reward cannot come from these rates (two standard errors)."""
    implied = channels.correct(signal.rewards, rates)
    mean = masked.mean(implied, signal.mask)
    error = masked.std(implied, signal.mask) / jnp.sqrt(
        jnp.maximum(masked.count(signal.mask), 1.0)
    )
    return ((mean < -2.0 * error) | (mean > 1.0 + 2.0 * error)).astype(jnp.float32)


def appeals(
    *,
    by: str = "",
    num: int = 1,
    per: str = "prompt",
    rechecks_positives: bool = False,
    prior_false_positive: Number = 0.0,
    prior_false_negative: Number = 0.0,
    prior_strength: Number = 10.0,
    decay: Number = 1.0,
    z: float = 1.959964,
    fix_rewards: bool = False,
    axis_name=None,
) -> RewardTransform:
    """Online rates from re-checked verdicts.

    Reads `aux["appealed"]` (bool `[P, G]`, a random sample within each verdict) and
    `aux["recheck"]` (the trusted verdict there; NaN is missing). Counts are accumulated, each
    step's total discounted by `decay`, and turned into rates by Bayes' rule
    (`jaxreward.rate_estimates`), shrunk towards the prior.

    Args:
      by: entry of `aux` with an int32 index in `[0, num)`; "" for one pair of rates.
      num: number of indices.
      per: "prompt" if `by` is `[P]`, "sample" if it is `[P, G]`.
      rechecks_positives: whether accepted samples are appealed too. If not, they are all taken
        as right, false_positive is estimated as 0, and false_negative is biased low by a
        verifier that has false positives.
      prior_false_positive, prior_false_negative: what the rates are before any re-check.
      prior_strength: weight of the prior, in re-checks.
      decay: in (0, 1]; below 1 the estimator forgets, because the channel drifts as the
        policy learns.
      z: normal quantile of the interval.
      fix_rewards: also replace the observed reward by the re-check where there is one.
      axis_name: sum counts over this mapped axis.

    Raises:
      ValueError: `num` < 1, `by` without `num`, or a number out of range.
    """
    _check_appeals(by, num, prior_strength, decay)
    prior = (prior_false_positive, prior_false_negative)
    channels.check_correctable(channels.binary(*prior))

    def init() -> Rechecks:
        return Rechecks(*(jnp.zeros((num,), jnp.float32) for _ in Rechecks._fields))

    def update(key: jax.Array, signal: Signal, counts: Rechecks):
        del key
        index = _index(signal, by)
        new = _count(signal, index, num, rechecks_positives)
        if axis_name is not None:
            new = jax.tree.map(lambda leaf: jax.lax.psum(leaf, axis_name), new)
        counts = jax.tree.map(lambda old, extra: decay * old + extra, counts, new)
        rates = shrunk_rates(counts, *prior, prior_strength)
        table = channels.binary(rates.false_positive, rates.false_negative).matrix
        channel = Channel(table[signal.aux[by]] if by else table[0])
        metrics = _metrics(rates, counts, z, by)
        appealed = signal.aux["appealed"] & signal.mask & jnp.isfinite(signal.aux["recheck"])
        metrics["rates/appeals"] = masked.count(appealed)
        signal = signal.replace(rates=channel, metrics={**signal.metrics, **metrics})
        if fix_rewards:
            fixed = jnp.where(appealed, signal.aux["recheck"], signal.rewards)
            signal = signal.replace(rewards=fixed)
        return signal, counts

    reads = ("rewards", "mask", "aux/appealed", "aux/recheck") + ((f"aux/{by}",) if by else ())
    writes = ("rates",) + (("rewards",) if fix_rewards else ())
    spec = Spec("appeals", "rates", reads, writes, rates_vary=per if by else "prompt")
    spec = spec._replace(reward_map="nonlinear" if fix_rewards else "none")
    return RewardTransform(init, update, spec)


def shrunk_rates(
    counts: Rechecks, prior_false_positive, prior_false_negative, strength
) -> Rates:
    """Rates from counts, moved towards a prior worth `strength` re-checks."""
    plain = estimate_rates(counts, 0.5)
    rechecks = sum(counts[2:])
    weight = rechecks / (rechecks + strength)
    false_positive = weight * plain.false_positive + (1.0 - weight) * prior_false_positive
    false_negative = weight * plain.false_negative + (1.0 - weight) * prior_false_negative
    return Rates(false_positive, false_negative, plain.success_rate)


def _count(signal: Signal, index, num: int, rechecks_positives: bool) -> Rechecks:
    """This batch's counts by index, `[num]` each."""
    accepted = signal.rewards > 0.5
    recheck, mask = signal.aux["recheck"], signal.mask
    seen = mask & signal.aux["appealed"] & jnp.isfinite(recheck)
    right = recheck > 0.5
    if rechecks_positives:
        accepted_right, accepted_wrong = seen & accepted & right, seen & accepted & ~right
    else:
        accepted_right, accepted_wrong = mask & accepted, jnp.zeros_like(mask)
    events = Rechecks(
        mask & accepted,
        mask & ~accepted,
        accepted_right,
        accepted_wrong,
        seen & ~accepted & right,
        seen & ~accepted & ~right,
    )
    flat = jnp.broadcast_to(index, mask.shape).reshape(-1)
    zeros = jnp.zeros((num,), jnp.float32)
    return Rechecks(*(zeros.at[flat].add(e.reshape(-1).astype(jnp.float32)) for e in events))


def _index(signal: Signal, by: str) -> Int[Array, "..."]:
    if not by:
        return jnp.zeros((1, 1), jnp.int32)
    index = signal.aux[by]
    return index if index.ndim == 2 else index[:, None]


def _metrics(rates: Rates, counts: Rechecks, z: float, by: str) -> dict[str, Array]:
    """Estimates and interval limits, by index where there are several."""
    intervals = rate_intervals(counts, z)
    metrics: dict[str, Any] = {}
    for name, (low, high) in intervals.items():
        for i in range(low.shape[0]):
            suffix = f"_{i}" if by else ""
            metrics[f"rates/{name}{suffix}"] = getattr(rates, name)[i]
            metrics[f"rates/{name}{suffix}_low"] = low[i]
            metrics[f"rates/{name}{suffix}_high"] = high[i]
    highs = (intervals["false_positive"][1], intervals["false_negative"][1])
    low = jnp.min(1.0 - highs[0] - highs[1])
    metrics["rates/determinant_low"] = low
    metrics["rates/alarm"] = (low < ALARM).astype(jnp.float32)
    return metrics


class _Released(NamedTuple):
    """State of `appeals_as_released`: the rate and whether it has been set."""

    rate: Float[Array, ""]
    started: Array


def appeals_as_released(
    *, negative_share: Number, decay: Number = 0.9, pseudo_count: Number = 1e-5
) -> RewardTransform:
    """The printed false-negative estimate of arXiv 2510.00915: an average of ratios.

    Per step `FN = flipped / negative_share`, `rate = (FN + c) / (FN + positives + 2 c)`, then an
    exponential average started at the first step with anything to count; a step with no
    positives and no flips is skipped, because the prior would make it 1/2. false_positive is 0.
    """
    check_number("negative_share", negative_share, lambda v: (v > 0) & (v <= 1), "(0, 1]")

    def init() -> _Released:
        return _Released(jnp.zeros((), jnp.float32), jnp.zeros((), bool))

    def update(key: jax.Array, signal: Signal, state: _Released):
        del key
        counts = _count(signal, jnp.zeros((1, 1), jnp.int32), 1, False)
        missed = counts.rejected_right[0] / negative_share
        total = missed + counts.accepted[0]
        rate = released_rate(missed, counts.accepted[0], pseudo_count)
        averaged = jnp.where(state.started, decay * state.rate + (1.0 - decay) * rate, rate)
        state = _Released(
            jnp.where(total > 0, averaged, state.rate), state.started | (total > 0)
        )
        channel = channels.binary(jnp.zeros((), jnp.float32), state.rate)
        signal = signal.with_metrics(rates__false_negative=state.rate)
        return signal.replace(rates=channel), state

    reads = ("rewards", "mask", "aux/appealed", "aux/recheck")
    return RewardTransform(init, update, Spec("appeals_as_released", "rates", reads, ("rates",)))


def released_rate(missed, positives, pseudo_count=1e-5):
    """`(FN + c) / (FN + positives + 2 c)`, arXiv 2510.00915 section on appeals."""
    return (missed + pseudo_count) / (missed + positives + 2.0 * pseudo_count)


def disagreement(
    *, verifiers: int, decay: Number = 1.0, iterations: int = 50, axis_name=None
) -> RewardTransform:
    """Rates of the first of several verifiers, from how they disagree, without any truth.

    Reads `aux["verdicts"]`, bool `[P, G, K]`, whose first column is the reward's verifier.
    Given the truth the verifiers must err independently (Dawid & Skene 1979); three suffice
    to identify all rates, up to a swap of the classes that is resolved by taking the verifiers
    as better than chance on the whole. Sufficient statistics are the counts of the `2^K`
    patterns, so the state does not grow.

    Args:
      verifiers: `K`, 3 to 8.
      decay: per step of the counts, in (0, 1].
      iterations: EM steps from majority vote, per update.
      axis_name: sum counts over this mapped axis.
    """
    check_number("verifiers", verifiers, lambda v: (v >= 3) & (v <= 8), "3 to 8")
    patterns = np.array(
        [[(i >> k) & 1 for k in range(verifiers)] for i in range(2**verifiers)], np.float32
    )

    def update(key: jax.Array, signal: Signal, counts: Float[Array, "patterns"]):
        del key
        verdicts = signal.aux["verdicts"].astype(jnp.int32)
        place = jnp.sum(verdicts << jnp.arange(verifiers, dtype=jnp.int32)[None, None], axis=-1)
        new = jnp.zeros_like(counts).at[place.reshape(-1)].add(
            signal.mask.reshape(-1).astype(jnp.float32)
        )
        counts = decay * counts + (new if axis_name is None else jax.lax.psum(new, axis_name))
        false_positive, false_negative, success = dawid_skene(
            jnp.asarray(patterns), counts, iterations
        )
        signal = signal.with_metrics(
            rates__false_positive=false_positive[0],
            rates__false_negative=false_negative[0],
            rates__success=success,
        )
        return signal.replace(rates=channels.binary(false_positive[0], false_negative[0])), counts

    reads = ("rewards", "mask", "aux/verdicts")
    spec = Spec("disagreement", "rates", reads, ("rates",))
    return RewardTransform(lambda: jnp.zeros((2**verifiers,), jnp.float32), update, spec)


def dawid_skene(
    patterns: Float[Array, "patterns K"], counts: Float[Array, "patterns"], iterations: int
) -> tuple[Float[Array, "K"], Float[Array, "K"], Float[Array, ""]]:
    """EM for `K` conditionally independent binary verifiers from pattern counts.

    Half a count is added to every cell of each M-step, so estimates stay inside (0, 1).

    Returns:
      false_positive `[K]`, false_negative `[K]`, success rate.
    """

    def step(posterior, _):
        true, false = counts * posterior, counts * (1.0 - posterior)
        hits = (true @ patterns + 0.5) / (jnp.sum(true) + 1.0)
        alarms = (false @ patterns + 0.5) / (jnp.sum(false) + 1.0)
        success = (jnp.sum(true) + 0.5) / (jnp.sum(counts) + 1.0)
        up = jnp.log(success) + _log_likelihood(patterns, hits)
        down = jnp.log1p(-success) + _log_likelihood(patterns, alarms)
        return jax.nn.sigmoid(up - down), (alarms, 1.0 - hits, success)

    start = jnp.mean(patterns, axis=1)
    _, trace = jax.lax.scan(step, start, None, length=iterations)
    return jax.tree.map(lambda leaf: leaf[-1], trace)


def _log_likelihood(patterns: Array, accept: Array) -> Array:
    return patterns @ jnp.log(accept) + (1.0 - patterns) @ jnp.log1p(-accept)


class Calibration(NamedTuple):
    """Rates from a calibration split, and 95% intervals `(low, high)` by rate."""

    source: ChannelSource
    false_positive: tuple[float, float]
    false_negative: tuple[float, float]


def calibrated(
    false_positives: int, true_negatives: int, false_negatives: int, true_positives: int
) -> Calibration:
    """Rates from trusted labels of a held-out split (arXiv 2510.18924), Jeffreys intervals.

    Args:
      false_positives: observed 1, true 0.
      true_negatives: observed 0, true 0.
      false_negatives: observed 0, true 1.
      true_positives: observed 1, true 1.

    Raises:
      ValueError: a count is negative, a class is empty, or the rates cannot be corrected.
    """
    from scipy import stats  # slow to import

    cells = (false_positives, true_negatives, false_negatives, true_positives)
    if min(cells) < 0 or min(cells[0] + cells[1], cells[2] + cells[3]) == 0:
        raise ValueError(f"counts = {cells}; allowed are >= 0 with both classes present")
    rates, intervals = [], []
    for wrong, right in (cells[:2], cells[2:]):
        rates.append(wrong / (wrong + right))
        ends = stats.beta(wrong + 0.5, right + 0.5).ppf([0.025, 0.975])
        low = 0.0 if wrong == 0 else float(ends[0])
        intervals.append((low, 1.0 if right == 0 else float(ends[1])))
    channels.check_correctable(channels.binary(*rates))
    return Calibration(constant(*rates), *intervals)


def _check_appeals(by: str, num: int, prior_strength, decay) -> None:
    if num < 1 or (num > 1 and not by):
        raise ValueError(f"num = {num} with by = {by!r}; allowed is >= 1, and 1 without by")
    check_number("prior_strength", prior_strength, lambda v: v >= 0, ">= 0")
    check_number("decay", decay, lambda v: (v > 0) & (v <= 1), "(0, 1]")
