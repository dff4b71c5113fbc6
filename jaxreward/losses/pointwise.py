"""Losses of reward models on single items: terms of a logit, a score or a verdict.

Cross-entropy, `squared` and `verdict` are affine in the label,

    term(z, label) = label l(z) + (1 - label) l(-z)

so that label noise and missing feedback are a change of the label, which may leave [0, 1]. With
the noise-corrected label `y = channel.correct(label, channel)` of observed items,

    CausalRM (arXiv 2603.18736)   per-example value                       reduced by
    noise-aware                   term(z, y)                              reduction.mean
    inverse propensity            inverse_propensity(term(z, y), ...)     mean over the batch
    doubly robust                 term(z, doubly_robust_label(y, ...))    mean over the batch

"Over the batch" is `reduction.mean(..., divide_by="batch")`, unobserved items included. A loss of
labels outside [0, 1] is unbounded below: stop early. A loss is NaN where a label, a logit or a
score is, and has no gradient there.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxreward import masked
from jaxreward.checks import Number, check_number
from jaxreward.losses import reduction
from jaxreward.losses.preference import by_target

Values = Float[Array, "*shape"]


def cross_entropy(logits: Values, label: Values) -> Values:
    """`-label ln s(z) - (1 - label) ln s(-z)`; the label may leave [0, 1]."""
    return by_target(lambda z: jax.nn.softplus(-z), logits, label)


def squared(logits: Values, label: Values) -> Values:
    """`label (1 - p)^2 + (1 - label) p^2` with `p = s(z)`.

    Affine in the label, as corrections need; the gradient is that of `(p - label)^2`.
    """
    return by_target(lambda z: jnp.square(jax.nn.sigmoid(-z)), logits, label)


def regression(scores: Values, target: Values, *, huber: Number = jnp.inf) -> Values:
    """`(score - target)^2 / 2`, linear beyond errors of `huber` > 0.

    Raises:
      ValueError: a known `huber` is not positive.
    """
    check_number("huber", huber, lambda x: x > 0, "> 0")

    def term(scores: Array, target: Array) -> Array:
        error = jnp.abs(scores - target).astype(jnp.float32)
        inside = jnp.minimum(error, huber)
        return inside * (error - 0.5 * inside)

    return reduction.where_known(term, scores, target)


def gaussian(mean: Values, log_std: Values, target: Values) -> Values:
    """Negative log-likelihood of a Gaussian score, in nats, without `ln(2 pi) / 2`."""
    term = lambda m, s, t: 0.5 * jnp.square((t - m) * jnp.exp(-s)) + s
    return reduction.where_known(term, mean, log_std, target)


def quantile(
    quantiles: Float[Array, "B Q"], target: Float[Array, "B"], levels: Float[Array, "Q"]
) -> Float[Array, "B"]:
    """Pinball loss of predicted quantiles, mean over the levels (Koenker and Bassett 1978).

    Args:
      quantiles: predicted.
      target: seen.
      levels: in (0, 1), of the quantiles.
    """
    level = levels[None, :]

    def term(quantiles: Array, target: Array) -> Array:
        error = target - quantiles
        return jnp.maximum(level * error, (level - 1.0) * error)

    target = jnp.broadcast_to(target[:, None], quantiles.shape)
    return jnp.mean(reduction.where_known(term, quantiles, target), axis=1)


def verdict(log_yes: Values, log_no: Values, label: Values) -> Values:
    """Next-token loss of a generative judge: `-label ln P(yes) - (1 - label) ln P(no)`.

    Args:
      log_yes: log-probability of "yes" over the whole vocabulary.
      log_no: of "no".
      label: 1, 0 or a correction of them.
    """
    term = lambda yes, no, label: -(label * yes + (1.0 - label) * no)
    return reduction.where_known(term, *(x.astype(jnp.float32) for x in (log_yes, log_no, label)))


def token(log_probs: Float[Array, "B S"], mask: Bool[Array, "B S"]) -> Float[Array, "B"]:
    """Mean negative log-probability of each example's written tokens; 0 where there are none."""
    return -masked.mean(log_probs, mask, axis=1)


def inverse_propensity(
    losses: Float[Array, "B"],
    observed: Bool[Array, "B"],
    propensity: Float[Array, "B"],
    *,
    clip: Number = 0.1,
) -> Float[Array, "B"]:
    """`o l / clip(p, clip, 1)`; reduce by `reduction.mean(..., divide_by="batch")` over all items.

    Unbiased for the mean loss over observed and unobserved items if the propensities are right
    and above `clip` (arXiv 2603.18736, eq. of CausalRM-IPS). No gradient reaches `propensity`.

    Args:
      losses: of each item, for example `cross_entropy` of corrected labels; any value where
        nothing was observed.
      observed: `o`.
      propensity: `p = P(observed | item)`.
      clip: in (0, 1], the least propensity that is divided by; heavy clips bias to the
        unweighted loss.

    Raises:
      ValueError: a known `clip` is outside (0, 1].
    """
    # Selected before the product too, so that a NaN of an unobserved item reaches no gradient.
    own, chance = jnp.where(observed, losses, 0.0), jnp.where(observed, propensity, 1.0)
    return own * _inverse(chance, clip)


def doubly_robust(
    losses: Float[Array, "B"],
    imputed: Float[Array, "B"],
    observed: Bool[Array, "B"],
    propensity: Float[Array, "B"],
    *,
    clip: Number = 0.1,
) -> Float[Array, "B"]:
    """`e + o (l - e) / clip(p, clip, 1)`; arguments as of `inverse_propensity`.

    Unbiased if the propensities *or* the imputed losses `e` are right. With a loss that is
    affine in its label it is the loss at `doubly_robust_label`.
    """
    return imputed + inverse_propensity(losses - imputed, observed, propensity, clip=clip)


def doubly_robust_label(
    label: Float[Array, "B"],
    imputed: Float[Array, "B"],
    observed: Bool[Array, "B"],
    propensity: Float[Array, "B"],
    *,
    clip: Number = 0.1,
) -> Float[Array, "B"]:
    """The pseudo-label `m + o (y - m) / clip(p, clip, 1)`, without gradient.

    Args:
      label: `y`, corrected for noise; any value where nothing was observed.
      imputed: `m`, an estimate of P(true label 1).
      observed: `o`.
      propensity: `p`.
      clip: see `inverse_propensity`.
    """
    return jax.lax.stop_gradient(
        doubly_robust(label, imputed, observed, propensity, clip=clip)
    )


def _inverse(propensity: Array, clip: Number) -> Array:
    check_number("clip", clip, lambda x: (x > 0) & (x <= 1), "(0, 1]")
    return 1.0 / jax.lax.stop_gradient(jnp.clip(propensity, clip, 1.0))
