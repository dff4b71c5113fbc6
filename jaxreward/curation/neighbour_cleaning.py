"""Labels that nearest neighbours contradict, removed or replaced (TACRED noise, arXiv 2311.12298).

Label 0 is the negative class (no relation, wrong answer), 1, ..., C - 1 are positives. Two
strategies find suspicious examples by cosine similarity. The *intrinsic* one takes positives for
clean: a positive that a model predicts as negative is an anchor, and the negatives near it have
misled the model. The *extrinsic* one looks at the neighbours of an example in a clean reference.
What was found is then eliminated or relabelled.

Pure functions of arrays; masks instead of shapes that depend on the data. Predictions and
features of training examples must come from models that were not trained on them (`folds`): in
the sample a model repeats the wrong labels, and features cluster by them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreward import masked
from jaxreward.checks import Number, check_choice, check_number

RULES = ("all", "majority")


class Neighbours(NamedTuple):
    """The nearest candidates of every query, nearest first, of equal ones the first.

    Attributes:
      index: into the candidates.
      similarity: cosine, -inf where there is no further candidate.
      valid: False where there is no further candidate.
    """

    index: Int[Array, "N K"]
    similarity: Float[Array, "N K"]
    valid: Bool[Array, "N K"]


class Found(NamedTuple):
    """Examples whose label is in doubt.

    Attributes:
      flagged: the suspicious examples.
      agreed: those of them that have one proposed label.
      labels: the proposed label where `agreed`, else the given one.
    """

    flagged: Bool[Array, "N"]
    agreed: Bool[Array, "N"]
    labels: Int[Array, "N"]


class Cleaned(NamedTuple):
    """Labels, and which examples to train on."""

    labels: Int[Array, "N"]
    keep: Bool[Array, "N"]


def folds(key: jax.Array, examples: int, count: int = 5) -> Int[Array, "N"]:
    """A random fold of every example, sizes equal up to one.

    Raises:
      ValueError: `count` outside [2, examples].
    """
    check_number("count", count, lambda x: (x >= 2) & (x <= examples), f"[2, {examples}]")
    return jax.random.permutation(key, jnp.arange(examples, dtype=jnp.int32) % count)


def cosine(queries: Float[Array, "N D"], candidates: Float[Array, "M D"]) -> Float[Array, "N M"]:
    """Cosine similarity, 0 with a vector of zeros."""
    unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return unit(queries) @ unit(candidates).T


def nearest(
    similarity: Float[Array, "N M"], allowed: Bool[Array, "N M"], *, k: int = 3
) -> Neighbours:
    """The `k` most similar allowed candidates, or all where there are fewer.

    Raises:
      ValueError: `k` < 1.
    """
    check_number("k", k, lambda x: x >= 1, ">= 1")
    ranked = jnp.where(allowed, similarity, -jnp.inf)
    values, index = jax.lax.top_k(ranked, min(k, similarity.shape[1]))
    return Neighbours(index.astype(jnp.int32), values, values > -jnp.inf)


def intrinsic(
    features: Float[Array, "N D"],
    labels: Int[Array, "N"],
    predictions: Int[Array, "N"],
    mask: Bool[Array, "N"] | None = None,
    *,
    classes: int,
    k: int = 3,
) -> Found:
    """Negatives near positives that a model takes for negatives; details reconstructed.

    Every one of them has a proposed label: the most frequent one of the anchors that selected
    it, of equally frequent ones that of the most similar anchor.

    Args:
      features: of all examples.
      labels: given, in [0, classes).
      predictions: out of fold, in [0, classes).
      mask: the examples that exist; default all.
      classes: with the negative one.
      k: negatives that an anchor selects.
    """
    there = jnp.ones(labels.shape, bool) if mask is None else mask
    anchors = there & (labels > 0) & (predictions == 0)
    allowed = anchors[:, None] & (there & (labels == 0))[None, :]
    similarity = cosine(features, features)
    near = nearest(similarity, allowed, k=k)
    rows = jnp.arange(labels.shape[0])[:, None]
    selected = jnp.zeros(allowed.shape, bool).at[rows, near.index].max(near.valid)
    flagged = jnp.any(selected, axis=0)
    proposed = _vote(jnp.where(selected, similarity, -jnp.inf), labels, classes)
    return Found(flagged, flagged, jnp.where(flagged, proposed, labels))


def _vote(similarity: Float[Array, "A N"], labels: Int[Array, "A"], classes: int) -> Array:
    """Most frequent label of the voters (similarity > -inf); ties by the most similar voter."""

    def of_class(label: Array):
        own = jnp.where((labels == label)[:, None], similarity, -jnp.inf)
        return jnp.sum(own > -jnp.inf, axis=0), jnp.max(own, axis=0)

    votes, closest = jax.lax.map(of_class, jnp.arange(classes, dtype=labels.dtype))
    most = votes == jnp.max(votes, axis=0, keepdims=True)
    return jnp.argmax(jnp.where(most, closest, -jnp.inf), axis=0).astype(labels.dtype)


def extrinsic(
    features: Float[Array, "N D"],
    labels: Int[Array, "N"],
    clean_features: Float[Array, "M D"],
    clean_labels: Int[Array, "M"],
    allowed: Bool[Array, "N M"] | None = None,
    *,
    k: int = 3,
    rule: str = "all",
    positives: bool = False,
) -> Found:
    """Examples whose clean neighbours carry other labels; the rule is reconstructed.

    The proposed label is that of the neighbours if they agree; it may be 0 for a positive. An
    example without neighbours is not flagged.

    Args:
      features: of the examples to be cleaned.
      labels: given.
      clean_features: of the clean reference.
      clean_labels: of the clean reference.
      allowed: False where the two are the same example, see `different`; default all.
      k: neighbours.
      rule: "all" neighbours differ, or the "majority" (more than half of them).
      positives: whether to look at positives too (ENP, RNP), or at negatives only (EN, RN).

    Raises:
      ValueError: an unknown rule, or `k` < 1.
    """
    check_choice("rule", rule, RULES)
    similarity = cosine(features, clean_features)
    everything = jnp.ones(similarity.shape, bool) if allowed is None else allowed
    near = nearest(similarity, everything, k=k)
    theirs = clean_labels[near.index]
    other = near.valid & (theirs != labels[:, None])
    differing, count = jnp.sum(other, axis=-1), jnp.sum(near.valid, axis=-1)
    noisy = (differing == count) & (count > 0) if rule == "all" else 2 * differing > count
    flagged = noisy if positives else noisy & (labels == 0)
    same = jnp.all(~near.valid | (theirs == theirs[:, :1]), axis=-1)
    agreed = flagged & same
    return Found(flagged, agreed, jnp.where(agreed, theirs[:, 0].astype(labels.dtype), labels))


def different(ids: Int[Array, "N"], clean_ids: Int[Array, "M"]) -> Bool[Array, "N M"]:
    """Pairs of different examples, for `allowed`."""
    return ids[:, None] != clean_ids[None, :]


def lowest(
    scores: Float[Array, "N"], candidates: Bool[Array, "N"], count: Number
) -> Bool[Array, "N"]:
    """The `count` candidates of the lowest score, or all: baselines of equal size.

    Random numbers as scores give random elimination, the probability of the given label gives
    elimination by confidence. Of equal scores the first.

    Args:
      scores: of the examples.
      candidates: who may be taken.
      count: >= 0; may be traced.
    """
    check_number("count", count, lambda x: x >= 0, ">= 0")
    order = jnp.argsort(jnp.where(candidates, scores, jnp.inf), stable=True)
    rank = jnp.argsort(order, stable=True)
    return candidates & (rank < count)


def eliminate(
    labels: Int[Array, "N"], found: Found, mask: Bool[Array, "N"] | None = None
) -> Cleaned:
    """Drops what was flagged (E, EN, ENP)."""
    keep = ~found.flagged
    return Cleaned(labels, keep if mask is None else keep & mask)


def relabel(
    labels: Int[Array, "N"], found: Found, mask: Bool[Array, "N"] | None = None
) -> Cleaned:
    """Gives what was flagged its proposed label, and drops it where there is none (R, RN, RNP)."""
    keep = ~found.flagged | found.agreed
    return Cleaned(
        jnp.where(found.agreed, found.labels, labels), keep if mask is None else keep & mask
    )


class MicroF1(NamedTuple):
    """Over positives; each is 0 where its denominator is."""

    precision: Float[Array, ""]
    recall: Float[Array, ""]
    f1: Float[Array, ""]


def micro_f1(
    gold: Int[Array, "N"], predicted: Int[Array, "N"], mask: Bool[Array, "N"] | None = None
) -> MicroF1:
    """Precision, recall and their harmonic mean where right means `gold = predicted > 0`."""
    there = jnp.ones(gold.shape, bool) if mask is None else mask
    right = masked.count(there & (gold > 0) & (gold == predicted))
    precision = right / jnp.maximum(masked.count(there & (predicted > 0)), 1.0)
    recall = right / jnp.maximum(masked.count(there & (gold > 0)), 1.0)
    total = precision + recall
    return MicroF1(precision, recall, 2 * precision * recall / jnp.where(total > 0, total, 1.0))


def confusion(
    labels: Int[Array, "N"],
    predictions: Int[Array, "N"],
    mask: Bool[Array, "N"] | None = None,
    *,
    classes: int,
) -> Float[Array, "C C"]:
    """Percent of the examples of a label (row) that got a prediction (column); 0 without any."""
    rows = jax.nn.one_hot(labels, classes)
    rows = rows if mask is None else rows * mask.astype(jnp.float32)[:, None]
    counts = rows.T @ jax.nn.one_hot(predictions, classes)
    return 100.0 * counts / jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1.0)


class Character(NamedTuple):
    """Where the errors of the positives go; the negative class is never marked.

    Attributes:
      missed: at most half are right and more than 20% are predicted negative (false negatives).
      confused: at most half are right and some other positive has more than 20%.
    """

    missed: Bool[Array, "C"]
    confused: Bool[Array, "C"]


def characterize(percent: Float[Array, "C C"]) -> Character:
    """Marks labels by their row of `confusion` (released notebooks).

    If `confused` vanishes in a model trained and tested without negatives, the noise is in the
    negatives.
    """
    classes = percent.shape[0]
    label = jnp.arange(classes)
    weak = (jnp.diagonal(percent) <= 50) & (label > 0)
    other = (label[:, None] != label[None, :]) & (label > 0)[None, :]
    highest = jnp.max(jnp.where(other, percent, 0.0), axis=1)
    return Character(weak & (percent[:, 0] > 20), weak & (highest > 20))


def overlap(first: Bool[Array, "N"], second: Bool[Array, "N"]) -> Float[Array, ""]:
    """Shared part of the union of two flagged sets (two seeds, two models); 0 if both are empty."""
    return masked.count(first & second) / jnp.maximum(masked.count(first | second), 1.0)
