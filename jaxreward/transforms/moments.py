"""Weighted moments of rewards, exact where all values are equal."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxreward import masked
from jaxreward.types import Signal


EQUAL_WITHIN = 4 * float(jnp.finfo(jnp.float32).eps)
"""Relative spread up to which the values of a group count as equal."""


class Moments(NamedTuple):
    """Weighted moments of the selected entries along an axis, which is kept with length 1.

    Attributes:
      centred: value minus mean, 0 where masked; exactly 0 where all values are equal (to
        within `EQUAL_WITHIN`).
      mean: weighted mean, 0 where nothing is selected.
      variance: weighted variance; exactly 0 where all values are equal.
      effective: effective number `(sum w)^2 / sum w^2`, the count where weights are equal.
      total: sum of the weights.
    """

    centred: Float[Array, "..."]
    mean: Float[Array, "..."]
    variance: Float[Array, "..."]
    effective: Float[Array, "..."]
    total: Float[Array, "..."]


def moments(
    values: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"],
    weights: Float[Array, "*shape"] | None = None,
    axis: int | None = 1,
    *,
    ddof: int = 0,
    axis_name=None,
) -> Moments:
    """Moments of `values` where `mask`, exact when all values are equal.

    Args:
      values: float32.
      mask: True where an entry counts.
      weights: >= 0, default 1; only their ratios matter.
      axis: axis to reduce, None for all.
      ddof: degrees removed from the variance; with weights, `effective - ddof` are left.
      axis_name: mapped axis over which to reduce as well.
    """
    weights = jnp.where(mask, jnp.ones_like(values) if weights is None else weights, 0.0)
    over = dict(axis=axis, keepdims=True, axis_name=axis_name)
    total = masked.sum(weights, mask, **over)
    square = masked.sum(jnp.square(weights), mask, **over)
    counted = mask & (weights > 0)
    low, high = masked.minimum(values, counted, **over), masked.maximum(values, counted, **over)
    # A compiler may round one expression differently in two places, so that equal values
    # computed from equal ones differ in the last bits; a spread of that size is none.
    tolerance = EQUAL_WITHIN * jnp.maximum(jnp.abs(low), jnp.abs(high))
    equal = counted & (high - low <= tolerance)
    shifted = jnp.where(mask & ~equal, values - low, 0.0)
    safe_total = jnp.where(total > 0, total, 1.0)
    mean = masked.sum(weights * shifted, mask, **over) / safe_total
    centred = jnp.where(mask, shifted - mean, 0.0)
    variance = masked.sum(weights * jnp.square(centred), mask, **over) / safe_total
    effective = jnp.square(total) / jnp.where(square > 0, square, 1.0)
    left = effective - ddof
    unbiased = jnp.where(left > 0, variance * effective / jnp.where(left > 0, left, 1.0), 0.0)
    return Moments(centred, low + mean, unbiased if ddof else variance, effective, total)


def signal_moments(
    signal: Signal, axis: int | None = 1, *, ddof: int = 0, axis_name=None
) -> Moments:
    """Moments of a signal's rewards under its mask and weights."""
    return moments(
        signal.rewards, signal.mask, sample_weights(signal), axis, ddof=ddof, axis_name=axis_name
    )


def sample_weights(signal: Signal) -> Float[Array, "P G *S"] | None:
    """The signal's weights in the shape of its rewards, None where it has none."""
    if signal.weights is None:
        return None
    shape = signal.weights.shape + (1,) * (signal.rewards.ndim - 2)
    return jnp.broadcast_to(signal.weights.reshape(shape), signal.rewards.shape)


def safe_sqrt(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Square root, 0 (with gradient 0) where `x` is not positive."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1.0)), 0.0)


def check_group_size(signal: Signal, baseline: str) -> None:
    """Raises ValueError if a baseline taken from the group has a group of one."""
    if baseline != "none" and signal.rewards.shape[1] < 2:
        raise ValueError(
            f"baseline = {baseline!r} with group size {signal.rewards.shape[1]}; allowed is >= 2"
        )
