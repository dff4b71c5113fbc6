"""Whether probabilities, such as `sigmoid(reward difference)`, are as often right as they say."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxreward import masked
from jaxreward.checks import check_number

_HALVINGS = 60  # of the interval that holds the best scale


class Reliability(NamedTuple):
    """A reliability diagram, one entry per bin of equal width.

    Attributes:
      count: predictions in it.
      probability: their mean; 0 where there are none.
      outcome: how often they came true; 0 where there are none.
    """

    count: Float[Array, "bins"]
    probability: Float[Array, "bins"]
    outcome: Float[Array, "bins"]


def reliability_diagram(
    probability: Float[Array, "B"],
    outcome: Float[Array, "B"],
    mask: Bool[Array, "B"] | None = None,
    *,
    bins: int = 10,
) -> Reliability:
    """Predictions sorted into bins of [0, 1]; a prediction of 1 is in the last.

    Args:
      probability: in [0, 1].
      outcome: in [0, 1].
      mask: True where there is a prediction; default everywhere.
      bins: >= 1.
    """
    check_number("bins", bins, lambda n: n >= 1, ">= 1")
    mask = jnp.ones(probability.shape, bool) if mask is None else mask
    index = jnp.clip((probability * bins).astype(jnp.int32), 0, bins - 1)
    inside = (index[None, :] == jnp.arange(bins)[:, None]) & mask[None, :]
    mean = lambda x: masked.mean(jnp.broadcast_to(x, inside.shape), inside, axis=1)
    return Reliability(masked.count(inside, axis=1), mean(probability), mean(outcome))


def expected_calibration_error(diagram: Reliability) -> Float[Array, ""]:
    """Mean distance of probability and frequency over bins, weighted by their counts."""
    gap = jnp.abs(diagram.probability - diagram.outcome)
    return jnp.sum(diagram.count * gap) / jnp.maximum(jnp.sum(diagram.count), 1.0)


def brier_score(
    probability: Float[Array, "B"],
    outcome: Float[Array, "B"],
    mask: Bool[Array, "B"] | None = None,
) -> Float[Array, ""]:
    """Mean squared distance of prediction and outcome; 0.25 for a constant 1/2."""
    mask = jnp.ones(probability.shape, bool) if mask is None else mask
    return masked.mean(jnp.square(probability - outcome), mask)


def preference_confidence(
    margin: Float[Array, "B"], scale: Float[Array, ""] | float = 1.0
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """Confidence in the preferred answer, in [1/2, 1], and whether it is the right one.

    Args:
      margin: reward of the right answer less that of the wrong one; 0 is half right.
      scale: by which rewards are multiplied before the sigmoid.
    """
    right = jnp.where(margin == 0, 0.5, (margin > 0).astype(jnp.float32))
    return jax.nn.sigmoid(jnp.abs(margin) * scale), right


def best_scale(
    margin: Float[Array, "B"],
    mask: Bool[Array, "B"] | None = None,
    *,
    most: float | int = 1e3,
) -> Float[Array, ""]:
    """The scale of rewards under which the right preferences are most likely.

    Maximises the mean of `log sigmoid(scale * margin)`, a concave function, by bisection; at
    most `most` over the mean size of a margin, which is what separable preferences get, and 0
    where wrong preferences outweigh.
    """
    mask = jnp.ones(margin.shape, bool) if mask is None else mask
    unit = masked.mean(jnp.abs(margin), mask)
    relative = jnp.where(mask, margin / jnp.where(unit > 0, unit, 1.0), 0.0)

    def halve(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        rises = masked.sum(relative * jax.nn.sigmoid(-middle * relative), mask) > 0
        return jnp.where(rises, middle, low), jnp.where(rises, high, middle)

    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros(()), jnp.float32(most)))
    return 0.5 * (low + high) / jnp.where(unit > 0, unit, 1.0)
