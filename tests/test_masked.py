"""Tests of jaxreward.masked against numpy.ma."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward import masked

SHAPE = (3, 4)
VALUES = hnp.arrays(np.float32, SHAPE, elements=st.floats(-100, 100, width=32))
MASKS = hnp.arrays(bool, SHAPE)
AXES = st.sampled_from([None, 0, 1, (0, 1), -1])
HIDDEN = st.sampled_from([np.nan, np.inf, -np.inf, 1e30])


REDUCTIONS = (masked.sum, masked.mean, masked.var, masked.std, masked.maximum, masked.minimum)


def hide(values, mask, hidden):
    """The values, with `hidden` where the mask is False."""
    return jnp.asarray(np.where(mask, values, np.float32(hidden))), jnp.asarray(mask)


def plain(name, values, mask, axis, keepdims, **kwargs):
    """The reduction of numpy.ma in float64, 0 where it is empty."""
    array = np.ma.masked_array(values.astype(np.float64), ~mask)
    result = getattr(array, name)(axis=axis, keepdims=keepdims, **kwargs)
    return np.ma.filled(np.ma.asarray(result), 0.0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (masked.sum, "sum"),
        (masked.mean, "mean"),
        (masked.maximum, "max"),
        (masked.minimum, "min"),
        (masked.var, "var"),
        (masked.std, "std"),
    ],
)
@hypothesis.given(VALUES, MASKS, AXES, st.booleans(), HIDDEN)
def test_reductions_are_those_of_numpy(ours, theirs, values, mask, axis, keepdims, hidden):
    result = ours(*hide(values, mask, hidden), axis, keepdims=keepdims)
    expected = plain(theirs, values, mask, axis, keepdims)
    assert result.shape == expected.shape and result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-3)


@hypothesis.given(VALUES, MASKS, AXES, st.integers(0, 2))
def test_degrees_of_freedom(values, mask, axis, ddof):
    result = np.asarray(masked.var(*hide(values, mask, np.nan), axis, ddof=ddof))
    count = np.asarray(mask.sum(axis=axis))
    population = plain("var", values, mask, axis, False)
    expected = np.where(count > ddof, population * count / np.maximum(count - ddof, 1), 0)
    np.testing.assert_allclose(result, expected, rtol=1e-4, atol=2e-3)


@hypothesis.given(MASKS, AXES)
def test_count(mask, axis):
    count = masked.count(jnp.asarray(mask), axis)
    assert count.dtype == jnp.float32
    np.testing.assert_array_equal(count, mask.sum(axis=axis))


@hypothesis.given(st.floats(-1e6, 1e6, width=32), MASKS)
def test_equal_entries_have_exactly_no_variance(value, mask):
    values, mask = hide(np.full(SHAPE, value, np.float32), mask, np.nan)
    np.testing.assert_array_equal(masked.var(values, mask, 1), 0)
    np.testing.assert_array_equal(masked.std(values, mask, None, ddof=1), 0)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool_, jnp.bfloat16])
def test_other_dtypes_sum_in_float32(dtype):
    values = jnp.array([[1, 0, 1], [1, 1, 0]]).astype(dtype)
    mask = jnp.array([[True, True, False], [True, True, True]])
    for reduce in (masked.sum, masked.mean, masked.var, masked.std):
        result = reduce(values, mask, 1)
        assert result.dtype == jnp.float32
        np.testing.assert_allclose(result, reduce(values.astype(jnp.float32), mask, 1))


def test_long_sums_of_short_floats_are_exact():
    ones = jnp.ones(10_000, jnp.bfloat16)
    assert float(masked.sum(ones, jnp.ones(10_000, bool))) == 10_000


def test_empty_reductions():
    values, mask = hide(np.ones(SHAPE, np.float32), np.zeros(SHAPE, bool), np.nan)
    for reduce in (masked.sum, masked.mean, masked.var, masked.std):
        np.testing.assert_array_equal(reduce(values, mask, 1), np.zeros(3))
    np.testing.assert_array_equal(masked.maximum(values, mask, 1, empty=-7.0), np.full(3, -7))
    np.testing.assert_array_equal(masked.minimum(values, mask, 1, empty=-7.0), np.full(3, -7))


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("hidden", [np.nan, np.inf])
def test_hidden_entries_do_not_enter_gradients(reduce, hidden):
    rows = np.array([[1, 2, 4, 9], [3, 3, 3, 9], [5, 9, 9, 9], [9, 9, 9, 9]], np.float32)
    mask = np.array([[1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    values, _ = hide(rows, mask, hidden)

    @jax.jit
    def gradients(values):
        whole = jax.grad(lambda v: reduce(v, jnp.asarray(mask), 1).sum())(values)
        exposed = jax.grad(lambda v: reduce(v, jnp.ones((1, 3), bool), 1).sum())
        return whole, exposed(values[:1, :3])

    grad, exposed = map(np.asarray, gradients(values))
    assert np.all(np.isfinite(grad))
    np.testing.assert_array_equal(grad[~mask], 0)
    np.testing.assert_allclose(grad[:1, :3], exposed, rtol=1e-6)


def test_gradient_of_the_variance():
    values = np.array([1.0, 2.0, 6.0], np.float32)
    grad = jax.jit(jax.grad(lambda v: masked.var(v, jnp.ones(3, bool))))(values)
    np.testing.assert_allclose(grad, 2 / 3 * (values - 3), rtol=1e-6)
    grad = jax.jit(jax.grad(lambda v: masked.std(v, jnp.ones(3, bool))))(jnp.full(3, 2.0))
    np.testing.assert_array_equal(grad, 0)


@jax.jit
def over_all_and_over_rows(values, mask):
    """Each reduction of the whole, and by mapped rows; the counts by mapped rows."""
    both = []
    for reduce in REDUCTIONS:
        by_rows = jax.vmap(lambda v, m: reduce(v, m, axis_name="rows"), axis_name="rows")
        both.append((reduce(values, mask), by_rows(values, mask)))
    counts = jax.vmap(lambda m: masked.count(m, axis_name="rows"), axis_name="rows")(mask)
    return both, counts


@hypothesis.given(VALUES, MASKS)
def test_a_mapped_axis_is_reduced_too(values, mask):
    both, counts = over_all_and_over_rows(*hide(values, mask, np.nan))
    for whole, parts in both:
        np.testing.assert_allclose(parts, np.full(3, whole), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(counts, np.full(3, mask.sum()))


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_an_axis_without_entries(reduce):
    values, mask = jnp.zeros((0, 4)), jnp.ones((0, 4), bool)
    assert reduce(values, mask) == 0.0
    np.testing.assert_array_equal(reduce(values, mask, axis=0), np.zeros(4))
    assert reduce(values, mask, axis=1).shape == (0,)
