"""Estimators of the noise channel. Each sets `signal.rates` and metrics `rates/...`.

* `known`: told.
* `rates_calibrated.calibrated`: from a held-out split with trusted labels, before training.
* `appeals`: a random share of verdicts is re-checked by a trusted verifier; online estimate
  with interval, prior, forgetting, overall or by an index (type of prompt, feature of output).
* `appeals_as_released`: the false-negative estimate of arXiv 2510.00915, as printed there.
* `rates_em.disagreement`: several verdicts and no truth.

Metrics of those with intervals: `rates/false_positive`, `rates/false_negative` and
`rates/determinant` (Youden's J), each with `_low` and `_high`, and `rates/alarm`, 1 while a
lower limit of J is below 0.1: learning is slow at best then, and towards wrong answers below 0
(arXiv 2601.04411). So it is before the first re-checks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreward import channel as channels
from jaxreward import masked
from jaxreward.channel import MIN_DETERMINANT, Channel
from jaxreward.checks import Number, check_choice, check_number
from jaxreward.rate_estimates import Rates
from jaxreward.transforms import recheck_counts, sources
from jaxreward.transforms.base import RewardTransform, Spec, stateless
from jaxreward.transforms.recheck_counts import Estimate, WeightedRechecks
from jaxreward.transforms.sources import ChannelSource
from jaxreward.types import Signal


def known(
    source: ChannelSource, *, min_determinant: float = MIN_DETERMINANT, axis_name=None
) -> RewardTransform:
    """Rates that are given.

    Metrics `rates/implied_success`, the batch's `(mean reward - false_positive) / J`, and
    `rates/stale`: 1 if the mean reward is more than two standard errors below what nothing
    but wrong, or above what nothing but right answers would earn at these rates.

    Args:
      source: the rates.
      min_determinant: smallest J accepted of rates that are known beforehand.
      axis_name: mapped axis that splits the prompts.

    Raises:
      ValueError: rates that cannot be corrected.
    """
    if source.table is not None:
        channels.check_correctable(source.table, min_determinant)

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        signal = signal.replace(rates=source.read(signal))
        return signal.replace(metrics={**signal.metrics, **_plausibility(signal, axis_name)})

    reads = ("rewards", "mask") + source.reads
    spec = Spec("known", "rates", reads, ("rates", "metrics"), rates_vary=source.vary)
    return stateless(update, spec)


def _plausibility(signal: Signal, axis_name) -> dict[str, Array]:
    """Whether the batch's mean reward can come from the signal's rates."""
    rates = signal.rates.expand(signal.rewards.ndim)
    shape = signal.rewards.shape
    wrong, missed = (
        jnp.broadcast_to(rate, shape) for rate in (rates.false_positive, rates.false_negative)
    )
    mean = lambda values: masked.mean(values, signal.mask, axis_name=axis_name)
    count = jnp.maximum(masked.count(signal.mask, axis_name=axis_name), 1.0)
    observed = mean(signal.rewards)
    lowest, highest = mean(wrong), 1.0 - mean(missed)
    below = lowest - 2.0 * jnp.sqrt(mean(wrong * (1.0 - wrong)) / count)
    above = highest + 2.0 * jnp.sqrt(mean(missed * (1.0 - missed)) / count)
    # The allowance is for rounding, where a rate is 0.
    stale = (observed < below - 1e-6) | (observed > above + 1e-6)
    any_reward = masked.count(signal.mask, axis_name=axis_name) > 0
    return {
        "rates/implied_success": mean(channels.correct(signal.rewards, signal.rates)),
        "rates/stale": (stale & any_reward).astype(jnp.float32),
    }


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
    z: Number = 1.959964,
    fix_rewards: bool = False,
    axis_name=None,
) -> RewardTransform:
    """Online rates from re-checked verdicts.

    Reads, of the shape of the rewards, `aux["appealed"]` (bool, a random sample within each
    verdict), `aux["recheck"]` (the trusted verdict there; NaN is missing) and, if it is
    there, `aux["appeal_probability"]` (how likely the appeal was; needed where that differs
    between steps, as under a budget). Weighted counts are accumulated and turned into rates by
    Bayes' rule (`jaxreward.rate_estimates`); what is accumulated stays right while the
    policy improves, as long as the channel itself stays.

    The estimate is moved towards the prior, that of an index towards the one over all
    indices. The interval is of the data alone (95% by default); it assumes that verdicts err
    independently, so with noise fixed by prompt or output it is too narrow.

    Args:
      by: entry of `aux` with an int32 index in `[0, num)`; "" for one pair of rates. An index
        outside is not counted and its rates are NaN, as in `sources.by_index`.
      num: number of indices. Up to 16 have their own metrics, named `rates/..._<index>`.
      per: "prompt" if `by` is `[P]`, "sample" if it is `[P, G]`.
      rechecks_positives: whether accepted samples are appealed too. If not, false_positive is
        taken as `prior_false_positive`; where it is really larger, false_negative is biased low.
      prior_false_positive, prior_false_negative: what the rates are before any re-check.
      prior_strength: >= 0, weight of the prior, in re-checks of each verdict.
      decay: in (0, 1], by which earlier counts shrink at every step; below 1 the estimator
        forgets, because the channel drifts as the policy learns.
      z: normal quantile of the interval.
      fix_rewards: also replace observed rewards by their re-checks. `signal.rates` are then the
        rates that are left: those of the verifier times the share not re-checked.
      axis_name: mapped axis that splits the prompts.

    Metrics beside those of the module: `rates/appeals`, the number of answered ones in this
    batch, and `rates/failed_appeals`.

    Raises:
      ValueError: `num` < 1, `num` without `by`, a number out of range, a prior that cannot be
        corrected.
    """
    _check_appeals(by, num, per, prior_strength, decay, z)
    prior = (prior_false_positive, prior_false_negative)
    channels.check_correctable(channels.binary(*prior))
    prior = Rates(*(jnp.asarray(rate, jnp.float32) for rate in (*prior, 0.0)))

    def infer(counts: WeightedRechecks, towards: Rates) -> Estimate:
        given = None if rechecks_positives else prior.false_positive
        return _infer(counts, towards, prior_strength, given, z)

    def update(key: jax.Array, signal: Signal, counts: WeightedRechecks):
        del key
        index = signal.aux[by] if by else jnp.zeros((1, 1), jnp.int32)
        new = recheck_counts.count_rechecks(signal, index, num)
        if axis_name is not None:
            new = jax.tree.map(lambda leaf: jax.lax.psum(leaf, axis_name), new)
        counts = recheck_counts.accumulate(counts, new, decay)
        overall = estimates = infer(recheck_counts.pooled(counts), prior)
        if num > 1:
            estimates = infer(counts, overall.rates)
        metrics = recheck_counts.estimate_metrics(overall, estimates if by else None)
        metrics |= _numbers(signal, axis_name)
        rates = estimates.rates
        if fix_rewards:
            signal, rates = _fixed(signal), _left(rates, new)
        table = channels.binary(rates.false_positive, rates.false_negative)
        channel = sources.look_up(table, index) if by else Channel(table.matrix[0])
        return signal.replace(rates=channel, metrics={**signal.metrics, **metrics}), counts

    spec = _appeals_spec(by, per, fix_rewards)
    return RewardTransform(lambda: recheck_counts.no_rechecks(num), update, spec)


def _infer(counts: WeightedRechecks, towards: Rates, strength, given, z) -> Estimate:
    """The estimate moved `towards` others; `given` is a false_positive that is not estimated."""
    plain = recheck_counts.effective(counts)
    if given is None:
        estimate = recheck_counts.estimate(plain, z)
    else:
        estimate = recheck_counts.estimate_one_sided(plain, given, z)
    one_sided = given is not None
    rates = recheck_counts.shrink(estimate.rates, plain, towards, strength, one_sided)
    return estimate._replace(rates=rates)


def _appeals_spec(by: str, per: str, fix_rewards: bool) -> Spec:
    reads = ("rewards", "mask", "aux/appealed", "aux/recheck") + ((f"aux/{by}",) if by else ())
    writes = ("rates", "metrics") + (("rewards",) if fix_rewards else ())
    return Spec(
        "appeals",
        "rates",
        reads,
        writes,
        reward_map="nonlinear" if fix_rewards else "none",
        rates_vary=per if by else "step",
    )


def _check_appeals(by: str, num: int, per: str, prior_strength, decay, z) -> None:
    check_choice("per", per, ("prompt", "sample"))
    if num < 1 or (num > 1 and not by):
        raise ValueError(f"num = {num} with by = {by!r}; allowed is >= 1, and 1 without by")
    check_number("prior_strength", prior_strength, lambda v: v >= 0, ">= 0")
    check_number("decay", decay, lambda v: (v > 0) & (v <= 1), "(0, 1]")
    check_number("z", z, lambda v: v > 0, "> 0")


def _fixed(signal: Signal) -> Signal:
    """Re-checks in place of rewards."""
    seen = recheck_counts.answered(signal)
    return signal.replace(rewards=jnp.where(seen, signal.aux["recheck"], signal.rewards))


def _left(rates: Rates, new: WeightedRechecks) -> Rates:
    """What is left of the rates in a batch whose re-checks replace the verdicts.

    A wrong answer stays accepted if it is accepted and not re-checked, and within a verdict
    every rollout of the batch is as likely to have been as any other.
    """
    plain = recheck_counts.effective(new)
    accepted = (plain.accepted_right + plain.accepted_wrong) / jnp.maximum(plain.accepted, 1.0)
    rejected = (plain.rejected_right + plain.rejected_wrong) / jnp.maximum(plain.rejected, 1.0)
    return rates._replace(
        false_positive=rates.false_positive * (1.0 - accepted),
        false_negative=rates.false_negative * (1.0 - rejected),
    )


def _numbers(signal: Signal, axis_name) -> dict[str, Array]:
    seen = recheck_counts.answered(signal)
    failed = signal.mask & signal.aux["appealed"] & ~seen
    return {
        "rates/appeals": masked.count(seen, axis_name=axis_name),
        "rates/failed_appeals": masked.count(failed, axis_name=axis_name),
    }


class _Released(NamedTuple):
    """State of `appeals_as_released`: the rate and whether it has been set."""

    rate: Float[Array, ""]
    started: Array


def appeals_as_released(
    *,
    negative_share: Number,
    decay: Number = 0.9,
    pseudo_count: Number = 1e-5,
    axis_name=None,
) -> RewardTransform:
    """The printed false-negative estimate of arXiv 2510.00915: an average of ratios.

    Per step `FN = flipped / negative_share`, `rate = (FN + c) / (FN + positives + 2 c)`, then an
    exponential average started at the first step with anything to count; a step with no
    positives and no flips is skipped, because the prior would make it 1/2. false_positive is 0.

    Args:
      negative_share: in (0, 1], probability that a rejected sample was appealed.
      decay: in [0, 1), weight of the average so far.
      pseudo_count: > 0, `c`.
      axis_name: mapped axis that splits the prompts.

    Raises:
      ValueError: a number out of range.
    """
    check_number("negative_share", negative_share, lambda v: (v > 0) & (v <= 1), "(0, 1]")
    check_number("decay", decay, lambda v: (v >= 0) & (v < 1), "[0, 1)")
    check_number("pseudo_count", pseudo_count, lambda v: v > 0, "> 0")

    def update(key: jax.Array, signal: Signal, state: _Released):
        del key
        accepted = signal.rewards > 0.5
        flipped = recheck_counts.answered(signal) & ~accepted & (signal.aux["recheck"] > 0.5)
        missed = masked.count(flipped, axis_name=axis_name) / negative_share
        positives = masked.count(signal.mask & accepted, axis_name=axis_name)
        rate = released_rate(missed, positives, pseudo_count)
        averaged = jnp.where(state.started, decay * state.rate + (1.0 - decay) * rate, rate)
        some = missed + positives > 0
        state = _Released(jnp.where(some, averaged, state.rate), state.started | some)
        channel = channels.binary(jnp.zeros((), jnp.float32), state.rate)
        signal = signal.with_metrics(rates__false_negative=state.rate)
        return signal.replace(rates=channel), state

    def init() -> _Released:
        return _Released(jnp.zeros((), jnp.float32), jnp.zeros((), bool))

    reads = ("rewards", "mask", "aux/appealed", "aux/recheck")
    writes = ("rates", "metrics")
    spec = Spec("appeals_as_released", "rates", reads, writes, rates_vary="step")
    return RewardTransform(init, update, spec)


def released_rate(missed, positives, pseudo_count=1e-5):
    """`(FN + c) / (FN + positives + 2 c)`, arXiv 2510.00915 section on appeals."""
    return (missed + pseudo_count) / (missed + positives + 2.0 * pseudo_count)
