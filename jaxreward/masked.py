"""Reductions over the entries where a mask is True.

Entries under a False mask are selected away, never multiplied: they may hold NaN or
infinity without harm to values or gradients. An empty reduction returns 0 (with
`count` 0), so callers need no special case. `axis_name` adds a cross-device sum, for use
under `shard_map` or `pmap`. Sums are float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

Axis = int | tuple[int, ...] | None


def _psum(value: jax.Array, axis_name: str | tuple[str, ...] | None) -> jax.Array:
    return value if axis_name is None else jax.lax.psum(value, axis_name)


def count(
    mask: Bool[Array, "..."], axis: Axis = None, *, keepdims: bool = False, axis_name=None
) -> Float[Array, "..."]:
    """Number of True entries, float32."""
    return _psum(jnp.sum(mask, axis=axis, keepdims=keepdims, dtype=jnp.float32), axis_name)


def sum(  # pylint: disable=redefined-builtin
    values: Shaped[Array, "..."],
    mask: Bool[Array, "..."],
    axis: Axis = None,
    *,
    keepdims: bool = False,
    axis_name=None,
) -> Float[Array, "..."]:
    """Sum of the selected entries; `mask` has the shape of `values`."""
    values = jnp.where(mask, values, jnp.zeros((), values.dtype)).astype(jnp.float32)
    return _psum(jnp.sum(values, axis=axis, keepdims=keepdims), axis_name)


def mean(
    values: Shaped[Array, "..."],
    mask: Bool[Array, "..."],
    axis: Axis = None,
    *,
    keepdims: bool = False,
    axis_name=None,
) -> Float[Array, "..."]:
    """Mean of the selected entries, 0 where there are none."""
    n = count(mask, axis, keepdims=keepdims, axis_name=axis_name)
    total = sum(values, mask, axis, keepdims=keepdims, axis_name=axis_name)
    return total / jnp.maximum(n, 1.0)


def var(
    values: Shaped[Array, "..."],
    mask: Bool[Array, "..."],
    axis: Axis = None,
    *,
    ddof: int = 0,
    keepdims: bool = False,
    axis_name=None,
) -> Float[Array, "..."]:
    """Variance of the selected entries with `ddof` degrees removed; 0 with `ddof` or fewer.

    Exactly 0 when all selected entries are equal: deviations are taken from the smallest
    selected entry before the mean is, so no rounding of the mean enters.
    """
    values = jnp.where(mask, values.astype(jnp.float32), 0.0)
    n = count(mask, axis, keepdims=True, axis_name=axis_name)
    # The shift does not change the variance, so it takes no part in the gradient.
    low = jax.lax.stop_gradient(jnp.where(mask, values, jnp.inf))
    low = jnp.min(low, axis=axis, keepdims=True, initial=jnp.inf)
    if axis_name is not None:
        low = jax.lax.pmin(low, axis_name)
    shifted = values - jnp.where(jnp.isfinite(low), low, 0.0)
    centre = mean(shifted, mask, axis, keepdims=True, axis_name=axis_name)
    square = sum(jnp.square(shifted - centre), mask, axis, keepdims=True, axis_name=axis_name)
    result = jnp.where(n > ddof, square / jnp.maximum(n - ddof, 1.0), 0.0)
    return result if keepdims else jnp.squeeze(result, axis=_axes(axis, values.ndim))


def std(
    values: Shaped[Array, "..."],
    mask: Bool[Array, "..."],
    axis: Axis = None,
    *,
    ddof: int = 0,
    keepdims: bool = False,
    axis_name=None,
) -> Float[Array, "..."]:
    """Standard deviation of the selected entries; its gradient at 0 is 0."""
    variance = var(values, mask, axis, ddof=ddof, keepdims=keepdims, axis_name=axis_name)
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1.0)), 0.0)


def maximum(
    values: Float[Array, "..."],
    mask: Bool[Array, "..."],
    axis: Axis = None,
    *,
    empty: float = 0.0,
    keepdims: bool = False,
    axis_name=None,
) -> Float[Array, "..."]:
    """Largest selected entry, `empty` where there is none."""
    selected = jnp.where(mask, values, -jnp.inf)
    largest = jnp.max(selected, axis=axis, keepdims=keepdims, initial=-jnp.inf)
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    found = count(mask, axis, keepdims=keepdims, axis_name=axis_name) > 0
    return jnp.where(found, largest, empty)


def minimum(
    values: Float[Array, "..."],
    mask: Bool[Array, "..."],
    axis: Axis = None,
    *,
    empty: float = 0.0,
    keepdims: bool = False,
    axis_name=None,
) -> Float[Array, "..."]:
    """Smallest selected entry, `empty` where there is none."""
    negated = maximum(
        -values, mask, axis, empty=-empty, keepdims=keepdims, axis_name=axis_name
    )
    return -negated


def _axes(axis: Axis, ndim: int) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(ndim))
    return axis if isinstance(axis, tuple) else (axis,)
