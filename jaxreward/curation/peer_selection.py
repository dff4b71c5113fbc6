"""Two reward models that choose each other's training pairs (CRM, arXiv 2505.10597).

A pair that a model finds hard is more often mislabelled; a model that filters its own data
confirms its own errors. So each of two models trains on the small-loss part of a batch as the
*other* sees it, on a share `keep_ratio` of the batch that shrinks while they learn. Orders of the
epoch from easy to hard keep the two in step.

Pure functions of losses and margins, for any per-example loss (`losses.preference`); selections
are masks, to be used as weights of the loss.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxreward.checks import Number, check_choice, check_number

ORDERS = ("random", "sorted", "pool", "stratified")


def keep_ratio(time: Number, rate: Number, warm_up: Number) -> Float[Array, ""]:
    """`1 - rate min(time / warm_up, 1)`: everything at first, the clean share in the end.

    Args:
      time: >= 0, in the unit of `warm_up` (steps or epochs); may be traced.
      rate: in [0, 1), the assumed share of wrong labels; may be traced.
      warm_up: > 0.

    Raises:
      ValueError: a known number is out of range.
    """
    check_number("time", time, lambda x: x >= 0, ">= 0")
    check_number("rate", rate, lambda x: (x >= 0) & (x < 1), "[0, 1)")
    check_number("warm_up", warm_up, lambda x: x > 0, "> 0")
    elapsed = jnp.asarray(time, jnp.float32) / jnp.asarray(warm_up, jnp.float32)
    return 1.0 - jnp.asarray(rate, jnp.float32) * jnp.minimum(elapsed, 1.0)


def small_loss(losses: Float[Array, "B"], keep: Number) -> Bool[Array, "B"]:
    """The `floor(keep B)` smallest losses; of equal ones the first in the batch.

    No gradient passes. A loss that is not a number counts as the largest.

    Args:
      losses: of the pairs.
      keep: in [0, 1]; may be traced. A product within 1e-4 below an integer is that integer.

    Raises:
      ValueError: a known `keep` is outside [0, 1].
    """
    check_number("keep", keep, lambda x: (x >= 0) & (x <= 1), "[0, 1]")
    order = jnp.argsort(jax.lax.stop_gradient(losses), stable=True)
    rank = jnp.argsort(order, stable=True)
    count = jnp.floor(jnp.asarray(keep, jnp.float32) * losses.shape[0] + 1e-4)
    return rank.astype(jnp.float32) < count


class Exchange(NamedTuple):
    """Which pairs each of two models is trained on."""

    first: Bool[Array, "B"]
    second: Bool[Array, "B"]


def peer_exchange(
    first_losses: Float[Array, "B"], second_losses: Float[Array, "B"], keep: Number
) -> Exchange:
    """Each model gets the pairs of small loss to the *other*; both before either is updated.

    Args:
      first_losses: of the first model.
      second_losses: of the second.
      keep: see `small_loss`.
    """
    return Exchange(small_loss(second_losses, keep), small_loss(first_losses, keep))


def epoch_order(
    key: jax.Array,
    easiness: Float[Array, "J"],
    *,
    order: str = "pool",
    batch: int,
    fraction: Number = 1.0,
) -> Int[Array, "J"]:
    """In which order an epoch walks through the pairs, in batches of `batch`.

    "random" shuffles. "sorted" goes from easy to hard; its last batches hold little but wrong
    labels, of which a share kept per batch keeps too many: use a threshold of the epoch's losses.
    "pool" shuffles the easiest `fraction` and walks through it again and again until the epoch is
    full. "stratified" gives every batch one pair of each of `batch` strata of the sorted list.

    Args:
      key: of the shuffles.
      easiness: larger is easier, such as the mean of both models' margins.
      order: one of `ORDERS`.
      batch: >= 1.
      fraction: in (0, 1], for "pool"; may be traced.

    Raises:
      ValueError: an unknown order, or a number out of range.
    """
    check_choice("order", order, ORDERS)
    check_number("batch", batch, lambda x: x >= 1, ">= 1")
    check_number("fraction", fraction, lambda x: (x > 0) & (x <= 1), "(0, 1]")
    size = easiness.shape[0]
    place = jax.random.permutation(key, size)
    easiest = jnp.argsort(-easiness, stable=True)
    if order == "random":
        return place
    if order == "sorted":
        return easiest
    return _pool(easiest, place, fraction) if order == "pool" else _strata(key, easiest, batch)


def _pool(easiest: Array, place: Array, fraction: Number) -> Int[Array, "J"]:
    """The easiest `fraction`, shuffled by `place`, repeated to fill the epoch."""
    size = easiest.shape[0]
    count = jnp.ceil(jnp.asarray(fraction, jnp.float32) * size - 1e-4).astype(jnp.int32)
    count = jnp.clip(count, 1, size)
    inside = place < count
    shuffled = place[jnp.argsort(~inside, stable=True)]  # the first `count` are the pool
    return easiest[shuffled[jnp.arange(size) % count]]


def _strata(key: jax.Array, easiest: Array, batch: int) -> Int[Array, "J"]:
    """Batch `i` has the `i`-th of each stratum, shuffled in itself; the rest, at random, last."""
    size = easiest.shape[0]
    batches = size // batch
    within = easiest[: batches * batch].reshape(batch, batches)
    keys = jax.random.split(key, 2)
    shuffled = jax.random.permutation(keys[0], within, axis=1, independent=True)
    rest = jax.random.permutation(keys[1], easiest[batches * batch :])
    return jnp.concatenate([shuffled.T.reshape(-1), rest])


class Difficulty(NamedTuple):
    """How a pair fared over epochs.

    Attributes:
      hardness: mean loss.
      fluctuation: variance of the loss.
    """

    hardness: Float[Array, "J"]
    fluctuation: Float[Array, "J"]


def pair_difficulty(losses: Float[Array, "E J"]) -> Difficulty:
    """Mean and variance over `E` epochs of each pair's loss."""
    return Difficulty(jnp.mean(losses, axis=0), jnp.var(losses, axis=0))


def thirds(values: Shaped[Array, "J"]) -> Int[Array, "J"]:
    """0, 1 or 2: whether a value is in the lowest, middle or highest third; ties by position."""
    rank = jnp.argsort(jnp.argsort(values, stable=True), stable=True)
    return (3 * rank // values.shape[0]).astype(jnp.int32)
