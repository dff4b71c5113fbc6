"""Weighted reductions of per-example losses.

What stands under a weight of 0 is selected away: it may be NaN or infinite without harm to the
value or the gradient, as the terms of `preference` and `pointwise` have none where they are NaN
(`where_known`). With `axis_name` the batch is the one that the devices hold together.
"""

import functools
import operator
from typing import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreward import masked
from jaxreward.checks import Number, check_choice, check_number

DIVISORS = ("weights", "batch")
WEIGHT = "weight/"
"""Metrics of a loss whose names begin so are the denominators of its averages: `weight/loss` of the
loss, `weight/NAME` of the metric NAME. `training.gradient` averages parts of a batch by them."""


def where_known(
    term: Callable[..., Array], *values: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`term(*values)`, elementwise; NaN where one of the values is, and then without a gradient.

    The chain rule would make NaN of a weight of 0 times the slope of a term at NaN, so that one
    label that is not there spoils the gradient of the whole batch behind a finite loss.
    """
    known = ~functools.reduce(operator.or_, map(jnp.isnan, values))
    found = term(*(jnp.where(known, value, 0.0) for value in values))
    return jnp.where(known, found, jnp.nan)


def mean(
    losses: Float[Array, "B"],
    weights: Float[Array, "B"] | None = None,
    *,
    divide_by: str = "weights",
    axis_name=None,
) -> Float[Array, ""]:
    """`sum w l` over the sum of the weights, or over the size of the batch; 0 of nothing.

    Args:
      losses: what stands under a weight of 0 does not count, NaN or not.
      weights: >= 0, None is 1; no gradient reaches them.
      divide_by: "weights" or "batch".
      axis_name: mapped axis that splits the batch.

    Raises:
      ValueError: unknown `divide_by`.
    """
    check_choice("divide_by", divide_by, DIVISORS)
    weights = or_one(losses, weights)
    counted = weights > 0
    total = masked.sum(losses * weights, counted, axis_name=axis_name)
    if divide_by == "batch":
        return total / masked.count(jnp.ones(losses.shape, bool), axis_name=axis_name)
    size = masked.sum(weights, counted, axis_name=axis_name)
    return total / jnp.where(size > 0, size, 1.0)


def soft_minimum(
    losses: Float[Array, "B"],
    weights: Float[Array, "B"] | None = None,
    *,
    temperature: Number,
    axis_name=None,
) -> Float[Array, ""]:
    """Dr.DPO (arXiv 2407.07880): `-b ln mean exp(-l / b)`; high losses fade from the gradient.

    Tends to the mean for large `b` and to the least loss for small. Over the whole batch, also
    where `axis_name` splits it; 0 of nothing.

    Args:
      losses: as of `mean`.
      weights: as of `mean`.
      temperature: `b` > 0.
      axis_name: mapped axis that splits the batch.

    Raises:
      ValueError: a known temperature is not positive.
    """
    check_number("temperature", temperature, lambda x: x > 0, "> 0")
    weights = or_one(losses, weights)
    counted = weights > 0
    least = jax.lax.stop_gradient(losses)
    least = masked.minimum(least, counted, axis_name=axis_name)
    raised = jnp.exp(-(jnp.where(counted, losses, least) - least) / temperature)
    average = mean(raised, weights, axis_name=axis_name)
    return least - temperature * jnp.log(jnp.where(average > 0, average, 1.0))


def with_weight(
    metrics: dict[str, Float[Array, ""]], weight: Float[Array, ""]
) -> dict[str, Float[Array, ""]]:
    """The metrics, all means over so many, with their weights."""
    return {**metrics, **{f"{WEIGHT}{name}": weight for name in metrics}}


def or_one(losses: Float[Array, "B"], weights: Float[Array, "B"] | None) -> Float[Array, "B"]:
    """The weights without gradient, 1 where there are none."""
    if weights is None:
        return jnp.ones(losses.shape, jnp.float32)
    return jax.lax.stop_gradient(weights.astype(jnp.float32))
