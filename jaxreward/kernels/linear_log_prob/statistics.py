"""What a part of the vocabulary says about a row, how parts join, what the gradient needs.

Everything is kept relative to the row's largest logit, so that log-probability and entropy
are differences of small numbers however large the logits are.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LOWEST = -1e30
"""Below any logit; `exp(LOWEST - anything)` is 0."""

MASKED = -3e38
"""In place of a logit that does not exist: below LOWEST, so that it never has mass."""

Outputs = tuple[Float[Array, "N"], Float[Array, "N"], Float[Array, "N"]]


class Statistics(NamedTuple):
    """Of the logits of some columns.

    Attributes:
      top: the largest logit, at least LOWEST.
      total: sum of exp(logit - top).
      mean: sum of exp(logit - top) (logit - top).
      picked: the target's logit, 0 where the target is not among the columns.
    """

    top: Float[Array, "N"]
    total: Float[Array, "N"]
    mean: Float[Array, "N"]
    picked: Float[Array, "N"]


class Terms(NamedTuple):
    """What the gradient of a row's logits needs.

    With `lp = (logits - top) - log_total`,
    `d(logits) = exp(lp) (base - entropy_weight lp) + onehot chosen`.
    """

    chosen: Float[Array, "N"]
    base: Float[Array, "N"]
    entropy_weight: Float[Array, "N"]
    top: Float[Array, "N"]
    log_total: Float[Array, "N"]


FILL = Terms(0.0, 0.0, 0.0, -LOWEST, 0.0)
"""Terms of a row without gradient: `exp(lp)` is 0 whatever its logits."""


class Saved(NamedTuple):
    """Of a whole row, for its gradient."""

    top: Float[Array, "N"]
    log_total: Float[Array, "N"]
    entropy: Float[Array, "N"]


def of_logits(logits: Float[Array, "N V"], targets: Int[Array, "N"]) -> Statistics:
    """Statistics of logits; a target outside `[0, V)` picks nothing."""
    top = jnp.maximum(jnp.max(logits, axis=-1), LOWEST)
    shifted = logits - top[:, None]
    weights = jnp.exp(shifted)
    mean = jnp.sum(jnp.where(weights > 0, weights * shifted, 0.0), axis=-1)
    here = (targets >= 0) & (targets < logits.shape[1])
    safe = jnp.where(here, targets, 0)[:, None]
    picked = jnp.take_along_axis(logits, safe, axis=-1)[:, 0]
    return Statistics(top, jnp.sum(weights, axis=-1), mean, jnp.where(here, picked, 0.0))


def join(statistics: Statistics, axis: str) -> Statistics:
    """Of all columns, from those of the parts held along a mesh axis."""
    top = jax.lax.pmax(statistics.top, axis)
    parts = (*_relative_to(top, statistics), statistics.picked)
    return Statistics(top, *jax.lax.psum(parts, axis))


def add(first: Statistics, second: Statistics) -> Statistics:
    """Of the columns of both."""
    top = jnp.maximum(first.top, second.top)
    parts = zip(_relative_to(top, first), _relative_to(top, second))
    return Statistics(top, *(a + b for a, b in parts), first.picked + second.picked)


def of_nothing(like: Float[Array, "N"]) -> Statistics:
    """Of no column; varies over the mesh axes that `like` does."""
    zero = jnp.zeros_like(like, jnp.float32)
    return Statistics(zero + LOWEST, zero, zero, zero)


def _relative_to(top: Float[Array, "N"], statistics: Statistics) -> tuple[Array, Array]:
    """`total` and `mean` for a larger `top`."""
    below = statistics.top - top
    share = jnp.exp(below)
    mean = statistics.mean + statistics.total * below
    return statistics.total * share, mean * share


def outputs(
    statistics: Statistics, targets: Int[Array, "N"], columns: Int[Array, ""]
) -> tuple[Outputs, Saved]:
    """`(log_prob, entropy, log_normalizer)`, 0 where ignored, and what the gradient needs.

    A target past the `columns` that exist has no probability: its log-prob is -inf.
    """
    total = jnp.maximum(statistics.total, 1.0)  # the largest logit alone adds 1
    log_total = jnp.log(total)
    most = jnp.log(columns.astype(jnp.float32))
    entropy = jnp.clip(log_total - statistics.mean / total, 0.0, most)
    log_prob = jnp.minimum((statistics.picked - statistics.top) - log_total, 0.0)
    log_prob = jnp.where(targets < columns, log_prob, -jnp.inf)
    results = mask(targets >= 0, (log_prob, entropy, statistics.top + log_total))
    return results, Saved(statistics.top, log_total, entropy)


def mask(rows: Bool[Array, "N"], values: tuple) -> tuple:
    """Zero outside the rows."""
    return tuple(jnp.where(rows, value, 0.0) for value in values)


def terms(
    saved: Saved, targets: Int[Array, "N"], cotangents: tuple
) -> tuple[Terms, Bool[Array, "N"]]:
    """Terms of the gradient for the cotangents of the outputs, and which rows have one."""
    cotangents = mask(targets >= 0, cotangents)
    g_log_prob, g_entropy, g_normalizer = cotangents
    active = functools.reduce(jnp.logical_or, (g != 0 for g in cotangents))  # NaN counts
    base = g_normalizer - g_log_prob - g_entropy * saved.entropy
    return Terms(g_log_prob, base, g_entropy, saved.top, saved.log_total), active


def logit_gradient(
    logits: Float[Array, "N V"], targets: Int[Array, "N"], terms: Terms
) -> Float[Array, "N V"]:
    """d(loss) / d(logits)."""
    chosen, base, entropy_weight, top, log_total = (term[:, None] for term in terms)
    # exp(-1000) is 0: the bound only keeps 0 * infinity out of the product.
    log_probs = jnp.maximum((logits - top) - log_total, -1000.0)
    gradient = jnp.exp(log_probs) * (base - entropy_weight * log_probs)
    hot = jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) == targets[:, None]
    return gradient + jnp.where(hot, chosen, 0.0)
