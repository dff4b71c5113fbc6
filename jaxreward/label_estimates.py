"""Who labels wrongly, and which labels are wrong, without trusted labels.

`confident_counts` looks at a classifier's out-of-fold probabilities (confident learning, arXiv
1911.00068), `annotator_posterior` at the margin of a preference model (RPO, arXiv 2509.24159),
`anchor_rates` at the items that a model of the labels is surest of (CausalRM, arXiv 2603.18736).
Pure functions of arrays, for use inside `jit` and outside.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreward import channel as channels
from jaxreward import masked
from jaxreward.channel import Channel
from jaxreward.checks import Number, check_number


class Confident(NamedTuple):
    """What confident learning says of binary labels.

    Attributes:
      joint: `P(label i, true j)`, rows labels; its margin over truths is the labels' share.
      false_positive: P(label 1 | true 0); NaN where no item is truly 0.
      false_negative: P(label 0 | true 1); NaN where no item is truly 1.
      prune: items to leave out, as many of each kind of error as the joint says there are,
        those with the largest margin against their label.
    """

    joint: Float[Array, "2 2"]
    false_positive: Float[Array, ""]
    false_negative: Float[Array, ""]
    prune: Bool[Array, "N"]


class ConfidentCounts(NamedTuple):
    """Numbers of items by label (rows) and likely truth (columns).

    Attributes:
      scaled: expected numbers, whose rows sum to the numbers of the labels.
      probabilities: of 0 and of 1.
    """

    scaled: Float[Array, "2 2"]
    probabilities: Float[Array, "N 2"]


def confident_truth(
    labels: Int[Array, "N"],
    probability: Float[Array, "N"],
    mask: Bool[Array, "N"],
    *,
    axis_name=None,
) -> ConfidentCounts:
    """How often each label stands on each likely truth; see `confident_counts`.

    Args:
      labels: 0 or 1.
      probability: of 1.
      mask: items that count.
      axis_name: mapped axis that splits the items.
    """
    total = lambda x: x if axis_name is None else jax.lax.psum(x, axis_name)
    probabilities = jnp.stack([1 - probability, probability], axis=-1).astype(jnp.float32)
    is_label = jax.nn.one_hot(labels, 2, dtype=jnp.float32) * mask[:, None].astype(jnp.float32)
    number = total(jnp.sum(is_label, axis=0))
    thresholds = total(jnp.sum(is_label * probabilities, axis=0)) / jnp.maximum(number, 1.0)
    reaches = probabilities >= thresholds[None, :]
    likely = jnp.argmax(jnp.where(reaches, probabilities, -1.0), axis=-1)
    counted = mask & jnp.any(reaches, axis=-1)
    truth = jax.nn.one_hot(likely, 2, dtype=jnp.float32) * counted[:, None].astype(jnp.float32)
    counts = total(jnp.einsum("ni,nj->ij", is_label, truth, precision="highest"))
    rows = jnp.sum(counts, axis=1, keepdims=True)
    # a label of which nothing was counted is taken as right
    shares = jnp.where(rows > 0, counts / jnp.maximum(rows, 1.0), jnp.eye(2, dtype=jnp.float32))
    return ConfidentCounts(shares * number[:, None], probabilities)


def confident_counts(
    labels: Int[Array, "N"], probability: Float[Array, "N"], mask: Bool[Array, "N"]
) -> Confident:
    """Both noise rates of binary labels from a model's P(1), and the labels to prune.

    The threshold of a class is the mean probability of it over the items with that label. An item
    counts as truly `j` if its probability of `j` reaches the threshold of `j`, the more probable
    class where both do; the counts are scaled to the number of each label.

    Args:
      labels: 0 or 1.
      probability: of 1, from a model that did not see the item (in-sample ones find nothing).
      mask: items that count.
    """
    scaled, probabilities = confident_truth(labels, probability, mask)
    joint = scaled / jnp.maximum(jnp.sum(scaled), 1.0)
    of_truth = jnp.sum(joint, axis=0)
    rate = lambda wrong, j: jnp.where(of_truth[j] > 0, wrong / of_truth[j], jnp.nan)
    return Confident(
        joint,
        rate(joint[1, 0], 0),
        rate(joint[0, 1], 1),
        _prune(labels, probabilities, mask, jnp.stack([scaled[0, 1], scaled[1, 0]])),
    )


def _prune(labels, probabilities, mask, wrong) -> Bool[Array, "N"]:
    """The `wrong[i]` items (rounded) of label `i` that speak most against it."""
    margin = probabilities[:, 1] - probabilities[:, 0]
    margin = jnp.where(labels == 1, -margin, margin)
    found = jnp.zeros(labels.shape, bool)
    for label in (0, 1):
        own = mask & (labels == label)
        score = jnp.where(own, margin, -jnp.inf)
        rank = jnp.argsort(jnp.argsort(-score))
        found = found | (own & (rank < jnp.round(wrong[label]).astype(rank.dtype)))
    return found


def annotator_posterior(
    margin: Float[Array, "*shape"], reliability: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """P(the label is right) of pairs, with the gradient stopped (RPO's E-step).

        w = eta s(z) / (eta s(z) + (1 - eta) s(-z))

    Bayes' rule where the label is right with prior probability eta and a right label has
    probability s(z). A pair loss becomes `w l(z) + (1 - w) l(-z)`.

    Args:
      margin: `z`, in the label's direction.
      reliability: `eta` of the pair's annotator, in [0, 1].
    """
    eta = reliability.astype(jnp.float32)
    odds = jax.nn.log_sigmoid(margin) - jax.nn.log_sigmoid(-margin)
    logit = jnp.log(eta) - jnp.log1p(-eta) + odds.astype(jnp.float32)
    return jax.lax.stop_gradient(jax.nn.sigmoid(logit))


def update_reliability(
    reliability: Float[Array, "K"],
    posterior: Float[Array, "N"],
    annotator: Int[Array, "N"],
    mask: Bool[Array, "N"],
    *,
    decay: Number = 0.9,
    warming_up: bool | Bool[Array, ""] = False,
) -> Float[Array, "K"]:
    """RPO's M-step: each annotator's mean posterior, as a moving average.

    An over-confident model confirms itself; keep eta fixed (`warming_up`) until it has learned
    something. An annotator without a pair in the batch keeps its value.

    Args:
      reliability: eta of `K` annotators.
      posterior: from `annotator_posterior`.
      annotator: of each pair, in [0, K).
      mask: pairs that count.
      decay: in [0, 1], share of the old value that is kept.
      warming_up: True leaves all as they are.

    Raises:
      ValueError: `decay` outside [0, 1].
    """
    check_number("decay", decay, lambda x: (x >= 0) & (x <= 1), "[0, 1]")
    own = (annotator[None, :] == jnp.arange(reliability.shape[0])[:, None]) & mask[None, :]
    mean = masked.mean(jnp.broadcast_to(posterior[None, :], own.shape), own, axis=1)
    new = decay * reliability + (1 - decay) * mean
    return jnp.where(jnp.any(own, axis=1) & ~jnp.asarray(warming_up), new, reliability)


class AnchorRates(NamedTuple):
    """Noise rates at anchors: P(label 1) of the surest negatives, P(label 0) of the positives."""

    false_positive: Float[Array, ""]
    false_negative: Float[Array, ""]


def anchor_rates(
    logits: Float[Array, "N"],
    mask: Bool[Array, "N"] | None = None,
    *,
    quantile: Number = 0.97,
    most: Number = 0.49,
) -> AnchorRates:
    """Noise rates from a model of the *observed* labels (arXiv 1411.7718; 2603.18736, step 4).

    Where an item is surely negative, the probability that its label is 1 is the rate of false
    positives; likewise at the other end. The ends are the quantiles `1 - quantile` and `quantile`
    of the logits, interpolated linearly between order statistics, and the sigmoid comes after.
    Where few items are sure, both rates come out too large; where the model is not calibrated,
    anything may.

    Args:
      logits: of P(label 1), of items drawn from the population (not of the observed ones alone);
        NaN does not count.
      mask: items that count; default all. Without any the rates are `most`.
      quantile: in (1/2, 1]; may be traced.
      most: in (0, 1/2), each rate is cut there, so that a correction stays possible.

    Raises:
      ValueError: a known number is out of range.
    """
    check_number("quantile", quantile, lambda x: (x > 0.5) & (x <= 1), "(1/2, 1]")
    check_number("most", most, lambda x: (x > 0) & (x < 0.5), "(0, 1/2)")
    mask = jnp.ones(logits.shape, bool) if mask is None else mask
    end = jnp.asarray(quantile, jnp.float32)
    ends = jnp.stack([1.0 - end, end])
    low, high = jnp.nanquantile(jnp.where(mask, logits, jnp.nan), ends)
    rates = jnp.stack([jax.nn.sigmoid(low), jax.nn.sigmoid(-high)])
    rates = jnp.where(jnp.isnan(rates), most, jnp.minimum(rates, most))
    return AnchorRates(*jax.lax.stop_gradient(rates))


def clean_probability(
    observed: Float[Array, "*shape"], channel: Channel
) -> Float[Array, "*shape"]:
    """P(true 1) from P(label 1), `clip((observed - false_positive) / J, 0, 1)`.

    What a doubly robust estimate has to impute where labels are noisy: a model of the labels as
    they are is right only where no noise is (arXiv 2603.18736, imputation).
    """
    return jnp.clip(channels.correct(observed, channel), 0.0, 1.0)
