"""Losses of reward models on pairs of items: per-example terms of the margin.

A pair has the margin `d = score(first) - score(second)` and a target: 1 where the first is
preferred, 0 where the second is, 1/2 for a tie. Every term is affine in the target,

    term(d, target) = target l(d) + (1 - target) l(-d)

so that label noise is a change of the target, the same as of a reward:

    method                            term                  target
    Bradley-Terry                     bradley_terry         as labelled
    conservative DPO, smoothing       bradley_terry         smoothed_target(target, rate)
    robust DPO (arXiv 2403.00409)     bradley_terry         channel.correct(target, channel)
    RPO (2509.24159)                  any                   label_estimates.annotator_posterior
    win-tie (2512.22170)              win_tie               pass_fail_targets
    IPO (2310.12036)                  identity_preference   as labelled
    SymPO (2505.24709)                sigmoid, ramp, unhinged
    ROPO (2404.04102)                 ropo
    Dr.DPO (2407.07880)               any, reduced by `reduction.soft_minimum`

A target outside [0, 1] makes a loss that is unbounded below: stop early, or bound the margins.
Values are float32 and not reduced; `pair_loss` and `reduction` do that, `pointwise` has the
losses of single items.
"""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxreward import channel as channels
from jaxreward import masked
from jaxreward.checks import Number, check_number
from jaxreward.losses import reduction

Values = Float[Array, "*shape"]
Term = Callable[[Values, Values], Values]
"""`(margins, target) -> losses`, elementwise."""


def by_target(loss: Callable[[Array], Array], margins: Values, target: Values) -> Values:
    """`target loss(d) + (1 - target) loss(-d)`; see `reduction.where_known` for NaN."""
    margins, target = margins.astype(jnp.float32), target.astype(jnp.float32)
    affine = lambda d, t: t * loss(d) + (1.0 - t) * loss(-d)
    return reduction.where_known(affine, margins, target)


def bradley_terry(margins: Values, target: Values, *, margin: Number = 0.0) -> Values:
    """`-target ln s(d - margin) - (1 - target) ln s(-d - margin)`.

    With a margin the preferred item must lead by it; a tie then costs the same from -margin to
    margin, nearly, and is pulled to 0 only from outside.

    Args:
      margins: `d`.
      target: 1, 1/2 (tie), 0, or anything a correction makes of them.
      margin: finite.

    Raises:
      ValueError: `margin` is known and not finite.
    """
    check_number("margin", margin, lambda x: abs(x) < float("inf"), "a finite number")
    return by_target(lambda d: jax.nn.softplus(margin - d), margins, target)


def win_tie(
    margins: Values, target: Values, *, margin: Number = 0.0, tie_weight: Number = 1.0
) -> Values:
    """Bradley-Terry with win-tie (arXiv 2512.22170): ties pull two good items together.

    The paper has margin 0 and tie weight 1 (each half of a tie counts 1/2); the released code
    has margin 3, which leaves ties inside it almost without a gradient, and tie weight 2. The
    floor of a tie is `tie_weight ln(2)` at margin 0, so totals of variants do not compare.

    Args:
      margins: `d`.
      target: 1, 1/2 (tie) or 0.
      margin: finite.
      tie_weight: >= 0, of pairs whose target is exactly 1/2.

    Raises:
      ValueError: a known number is out of range.
    """
    check_number("tie_weight", tie_weight, lambda x: x >= 0, ">= 0")
    return jnp.where(target == 0.5, tie_weight, 1.0) * bradley_terry(
        margins, target, margin=margin
    )


def identity_preference(margins: Values, target: Values, *, tau: Number) -> Values:
    """IPO, `(h - 1 / (2 tau))^2` (arXiv 2310.12036, eq. 17): margins stay near `1 / (2 tau)`.

    Args:
      margins: `h`, not scaled by a temperature.
      target: 1, 1/2 or 0.
      tau: > 0.

    Raises:
      ValueError: a known `tau` is not positive.
    """
    check_number("tau", tau, lambda x: x > 0, "> 0")
    return by_target(lambda h: jnp.square(h - 0.5 / tau), margins, target)


def sigmoid(margins: Values, target: Values) -> Values:
    """`s(-d)`, symmetric: `l(d) + l(-d)` is constant (SymPO, arXiv 2505.24709)."""
    return by_target(lambda d: jax.nn.sigmoid(-d), margins, target)


def ramp(margins: Values, target: Values) -> Values:
    """`clip(1/2 - d/2, 0, 1)`, symmetric (SymPO; `clip(1 - d, 0, 1)` would not be)."""
    return by_target(lambda d: jnp.clip(0.5 - 0.5 * d, 0.0, 1.0), margins, target)


def unhinged(margins: Values, target: Values) -> Values:
    """`1 - d`, symmetric and unbounded: bound the margins (SymPO clips each reward to ±10)."""
    return by_target(lambda d: 1.0 - d, margins, target)


def hinge(margins: Values, target: Values, *, margin: Number = 1.0) -> Values:
    """`max(0, margin - d)` (SLiC, arXiv 2305.10425)."""
    return by_target(lambda d: jax.nn.relu(margin - d), margins, target)


def ropo(margins: Values, target: Values, *, alpha: Number = 14.0) -> Values:
    """ROPO (arXiv 2404.04102): `4a/(1+a)^2 (-ln s(d)) + 4a^2/(1+a)^2 s(-d)`.

    Mostly the bounded sigmoid term, with a logarithm that keeps hard pairs learnable.

    Args:
      margins: `d`.
      target: 1, 1/2 or 0.
      alpha: `a` > 0.

    Raises:
      ValueError: a known `alpha` is not positive.
    """
    check_number("alpha", alpha, lambda x: x > 0, "> 0")
    scale = 4.0 * alpha / (1.0 + alpha) ** 2

    def loss(d: Array) -> Array:
        return scale * (jax.nn.softplus(-d) + alpha * jax.nn.sigmoid(-d))

    return by_target(loss, margins, target)


def thurstone(margins: Values, target: Values, std: Values) -> Values:
    """`-ln Phi(d / std)`: pairs of Gaussian scores (Thurstone 1927, case V).

    Args:
      margins: difference of the means.
      target: 1, 1/2 or 0.
      std: standard deviation of the difference, > 0: `sqrt(std_first^2 + std_second^2)`.
    """
    return by_target(lambda z: -jax.scipy.stats.norm.logcdf(z), margins / std, target)


def implicit_margins(
    first: Values, second: Values, *, beta: Number, bound: Number = jnp.inf
) -> Values:
    """The margin of two responses under a policy's implicit reward (DPO, arXiv 2305.18290).

    Args:
      first: `log policy - log reference` of the first response, in nats.
      second: of the second.
      beta: > 0, of the reward `beta * log ratio`.
      bound: each reward is clipped to `[-bound, bound]`; > 0.

    Raises:
      ValueError: a known number is out of range.
    """
    check_number("beta", beta, lambda x: x > 0, "> 0")
    check_number("bound", bound, lambda x: x > 0, "> 0")
    return jnp.clip(beta * first, -bound, bound) - jnp.clip(beta * second, -bound, bound)


def smoothed_target(target: Values, rate: Number) -> Values:
    """`(1 - rate) target + rate (1 - target)`: what a flip with that rate is expected to show.

    Args:
      target: in [0, 1].
      rate: in [0, 1/2).

    Raises:
      ValueError: a known rate is outside [0, 1/2).
    """
    check_number("rate", rate, lambda x: (x >= 0) & (x < 0.5), "[0, 1/2)")
    return channels.observed_mean(target.astype(jnp.float32), channels.symmetric(rate))


class PairTargets(NamedTuple):
    """Of pairs of items that were judged singly.

    Attributes:
      target: 1, 1/2 or 0.
      weights: 1, or 0 for pairs that are left out.
    """

    target: Values
    weights: Values


def pass_fail_targets(
    first: Bool[Array, "*shape"], second: Bool[Array, "*shape"], *, lose_tie: bool = False
) -> PairTargets:
    """Targets of pairs from whether each item passes (arXiv 2512.22170).

    Pass against fail is a win; two passes tie; two fails say nothing and are left out, unless
    `lose_tie` makes them a tie as well.
    """
    target = 0.5 + 0.5 * (first.astype(jnp.float32) - second.astype(jnp.float32))
    counted = first | second | lose_tie
    return PairTargets(target, counted.astype(jnp.float32))


def score_penalty(first: Values, second: Values) -> Values:
    """`(first^2 + second^2) / 2`: keeps raw scores near 0, which pairs alone leave free."""
    return 0.5 * (jnp.square(first) + jnp.square(second)).astype(jnp.float32)


class Ranking(NamedTuple):
    """Of several responses to each of `B` prompts.

    Attributes:
      loss: mean over the pairs of a prompt.
      counted: False where no pair has a winner; the loss is 0 there.
    """

    loss: Float[Array, "B"]
    counted: Bool[Array, "B"]


def ranking(
    scores: Float[Array, "B R"],
    ranks: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    term: Term = bradley_terry,
) -> Ranking:
    """The mean of a term over all pairs of responses of different rank (arXiv 2403.01197).

    Args:
      scores: of the responses; those of no pair may be anything.
      ranks: 1 is best; equal ranks tie and make no pair, nor does NaN, a response that nobody
        ranked.
      mask: False for padding.
      term: of pairs.
    """
    scores = jnp.where(mask, scores, 0.0)
    better = ranks[:, :, None] < ranks[:, None, :]
    pairs = better & mask[:, :, None] & mask[:, None, :]
    margins = jnp.where(pairs, scores[:, :, None] - scores[:, None, :], 0.0)
    losses = term(margins, jnp.ones(margins.shape, jnp.float32))
    return Ranking(masked.mean(losses, pairs, axis=(1, 2)), jnp.any(pairs, axis=(1, 2)))


def pair_loss(
    margins: Float[Array, "B"],
    target: Float[Array, "B"],
    weights: Float[Array, "B"] | None = None,
    *,
    term: Term = bradley_terry,
    axis_name=None,
) -> Float[Array, ""]:
    """The weighted mean of a term; a pair of weight 0 reaches neither value nor gradient.

    Args:
      margins: of the pairs; NaN or infinite under weight 0 does no harm.
      target: of the pairs.
      weights: >= 0, None is 1.
      term: of pairs, see the module docstring.
      axis_name: mapped axis that splits the batch.
    """
    counted = reduction.or_one(margins, weights) > 0
    losses = term(jnp.where(counted, margins, 0.0), jnp.where(counted, target, 0.5))
    return reduction.mean(losses, weights, axis_name=axis_name)
