"""Rates without any truth, from how several verdicts on one output disagree.

Two-class Dawid and Skene (1979): given the truth, verdicts err independently. Three verdicts
identify all rates up to a swap of the classes, which is resolved by a start at the majority,
that is, by taking the verifiers as better than chance on the whole. Where verifiers share
their errors (the same model asked twice, the same reference answer) the errors they share
count as truth, and the rates come out too small: re-checks (`rates.appeals`) do not have
this weakness.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxreward import channel as channels
from jaxreward.checks import Number, check_number
from jaxreward.rate_estimates import Rates
from jaxreward.transforms.base import RewardTransform, Spec
from jaxreward.transforms.recheck_counts import Estimate, determinant_interval, estimate_metrics
from jaxreward.types import Signal


class DawidSkene(NamedTuple):
    """Rates of `K` verifiers and the share of outputs that are right."""

    false_positive: Float[Array, "K"]
    false_negative: Float[Array, "K"]
    success_rate: Float[Array, ""]


class PatternCounts(NamedTuple):
    """Discounted counts of the `2^K` patterns of verdicts, and of squared weights."""

    counts: Float[Array, "patterns"]
    squares: Float[Array, ""]


def disagreement(
    *,
    verifiers: int,
    repeated: bool = False,
    decay: Number = 1.0,
    iterations: int = 100,
    z: Number = 1.959964,
    axis_name=None,
) -> RewardTransform:
    """Rates of the first of several verdicts on each output, from how they disagree.

    Reads `aux["verdicts"]`, `[P, G, K]`, bool or 0/1 with NaN for a missing one, whose first
    column is the verifier of the reward. An output with a missing verdict is not counted.
    The state holds counts of patterns, so it does not grow. Metrics: those of
    `transforms.rates`, and `rates/success_rate`. The intervals are of the likelihood's
    curvature; they assume that verdicts err independently.

    Args:
      verifiers: `K`, 3 to 8.
      repeated: whether the columns are one random verifier asked `K` times, with one pair of
        rates. A verifier that always gives the same answer says nothing about itself.
      decay: in (0, 1], by which earlier counts shrink at every step.
      iterations: >= 1, EM steps from the majority's vote, at every update.
      z: normal quantile of the intervals.
      axis_name: mapped axis that splits the prompts.

    Raises:
      ValueError: a number out of range; when traced, `verdicts` of another shape.
    """
    check_number("verifiers", verifiers, lambda v: (v >= 3) & (v <= 8), "3 to 8")
    check_number("decay", decay, lambda v: (v > 0) & (v <= 1), "(0, 1]")
    check_number("iterations", iterations, lambda v: v >= 1, ">= 1")
    check_number("z", z, lambda v: v > 0, "> 0")

    def init() -> PatternCounts:
        return PatternCounts(jnp.zeros((2**verifiers,), jnp.float32), jnp.zeros((), jnp.float32))

    def update(key: jax.Array, signal: Signal, state: PatternCounts):
        del key
        new = count_patterns(signal, verifiers)
        if axis_name is not None:
            new = jax.lax.psum(new, axis_name)
        squares = decay**2 * state.squares + jnp.sum(new)
        state = PatternCounts(decay * state.counts + new, squares)
        # As many equal weights as give the same precision, see `recheck_counts`.
        scale = jnp.sum(state.counts) / jnp.where(squares > 0, squares, 1.0)
        counts = state.counts * scale
        found = dawid_skene(counts, verifiers, iterations=iterations, repeated=repeated)
        metrics = estimate_metrics(_first(found, counts, repeated, z))
        metrics["rates/success_rate"] = found.success_rate
        rates = channels.binary(found.false_positive[0], found.false_negative[0])
        return signal.replace(rates=rates, metrics={**signal.metrics, **metrics}), state

    reads, writes = ("mask", "aux/verdicts"), ("rates", "metrics")
    spec = Spec("disagreement", "rates", reads, writes, rates_vary="step")
    return RewardTransform(init, update, spec)


def verdict_patterns(verifiers: int) -> Float[Array, "patterns K"]:
    """Row `i` holds the bits of `i`, lowest first."""
    bits = np.arange(2**verifiers)[:, None] >> np.arange(verifiers)
    return jnp.asarray(bits & 1, jnp.float32)


def count_patterns(signal: Signal, verifiers: int) -> Float[Array, "patterns"]:
    """How often each pattern stands in `aux["verdicts"]`."""
    verdicts = signal.aux["verdicts"].astype(jnp.float32)
    if verdicts.shape != signal.rewards.shape[:2] + (verifiers,):
        raise ValueError(
            f"aux/verdicts has shape {verdicts.shape}; allowed is "
            f"{signal.rewards.shape[:2] + (verifiers,)}"
        )
    counted = signal.mask & jnp.all(jnp.isfinite(verdicts), axis=-1)
    bits = (verdicts > 0.5).astype(jnp.int32) << jnp.arange(verifiers)[None, None]
    place = jnp.sum(bits, axis=-1).reshape(-1)
    zeros = jnp.zeros((2**verifiers,), jnp.float32)
    return zeros.at[place].add(counted.reshape(-1).astype(jnp.float32))


def dawid_skene(
    counts: Float[Array, "patterns"], verifiers: int, *, iterations: int, repeated: bool = False
) -> DawidSkene:
    """EM for conditionally independent binary verifiers from counts of patterns.

    Half a count is added to every cell of each M-step, so estimates stay inside (0, 1).

    Args:
      counts: `[2^K]`, in the order of `verdict_patterns`; real numbers are allowed.
      verifiers: `K`.
      iterations: number of EM steps.
      repeated: whether all verifiers share one pair of rates.
    """
    patterns = verdict_patterns(verifiers)

    def share(weights):  # P(accept) by verifier among outputs that weigh `weights`
        accepted, total = weights @ patterns, jnp.sum(weights)
        if repeated:
            whole = (jnp.sum(accepted) + 0.5) / (verifiers * total + 1.0)
            return jnp.full((verifiers,), whole)
        return (accepted + 0.5) / (total + 1.0)

    def step(posterior, _):
        true = counts * posterior
        found = DawidSkene(
            false_positive=share(counts - true),
            false_negative=1.0 - share(true),
            success_rate=(jnp.sum(true) + 0.5) / (jnp.sum(counts) + 1.0),
        )
        up, down = _log_joint(patterns, found)
        return jax.nn.sigmoid(up - down), found

    _, trace = jax.lax.scan(step, jnp.mean(patterns, axis=1), None, length=iterations)
    return jax.tree.map(lambda leaf: leaf[-1], trace)


def _log_joint(patterns: Array, rates: DawidSkene) -> tuple[Array, Array]:
    """Log-probability of each pattern together with the truth 1 and 0."""
    rejects = 1.0 - patterns
    hit, miss = jnp.log1p(-rates.false_negative), jnp.log(rates.false_negative)
    alarm, quiet = jnp.log(rates.false_positive), jnp.log1p(-rates.false_positive)
    up = jnp.log(rates.success_rate) + patterns @ hit + rejects @ miss
    down = jnp.log1p(-rates.success_rate) + patterns @ alarm + rejects @ quiet
    return up, down


def _first(found: DawidSkene, counts: Array, repeated: bool, z) -> Estimate:
    """The first verifier's rates, `[1]`, with intervals from the curvature on the logit scale."""
    verifiers = found.false_positive.shape[0]
    free = jax.tree.map(lambda x: x[:1], found[:2]) if repeated else found[:2]
    logits = jax.scipy.special.logit(jnp.concatenate([*free, found.success_rate[None]]))

    def log_posterior(logits):
        p = jax.nn.sigmoid(logits)
        pair = [jnp.broadcast_to(part, (verifiers,)) for part in jnp.split(p[:-1], 2)]
        joint = jnp.logaddexp(*_log_joint(verdict_patterns(verifiers), DawidSkene(*pair, p[-1])))
        prior = 0.5 * jnp.sum(jax.nn.log_sigmoid(logits) + jax.nn.log_sigmoid(-logits))
        return counts @ joint + prior

    second = (logits.shape[0] - 1) // 2  # place of the first verifier's false_negative
    covariance = jnp.linalg.inv(-jax.hessian(log_posterior)(logits))
    variance = jnp.diagonal(covariance)
    # Short of a maximum the curvature says nothing.
    error = jnp.sqrt(jnp.where(variance > 0, variance, jnp.inf))
    correlation = jnp.clip(covariance[0, second] / (error[0] * error[second]), -1.0, 1.0)
    intervals = {
        name: tuple(jax.nn.sigmoid(logits[i] + sign * z * error[i])[None] for sign in (-1, 1))
        for name, i in (("false_positive", 0), ("false_negative", second))
    }
    rates = Rates(found.false_positive[:1], found.false_negative[:1], found.success_rate[None])
    intervals["determinant"] = determinant_interval(rates, intervals, correlation)
    return Estimate(rates, intervals)
