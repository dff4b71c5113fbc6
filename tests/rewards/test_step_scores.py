"""Aggregations of step scores, by hand and at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.rewards.step_scores import AGGREGATIONS, aggregate_steps, step_ends

EXPECTED = dict(
    prod=0.36, geometric_mean=0.711379, mean=0.733333, mean_logit=0.767546, mean_odd=4.666667,
    min=0.5, last=0.5, max=0.9,
)


aggregate = jax.jit(aggregate_steps, static_argnums=2, static_argnames="empty")
find_ends = jax.jit(step_ends, static_argnums=2)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_by_hand_with_padding(how):
    scores = jnp.array([[0.9, 0.8, 0.5, jnp.nan], [0.9, 0.8, 0.5, 0.0], [1.0, 0.0, 1.0, 1.0]])
    mask = jnp.array([[True] * 3 + [False]] * 2 + [[False] * 4])
    found = aggregate(scores, mask, how)
    np.testing.assert_allclose(found, [EXPECTED[how], EXPECTED[how], 0.5], rtol=2e-6)
    assert aggregate(scores[2], mask[2], how, empty=0.0) == 0


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_scores_of_0_and_1_are_finite(how):
    scores = jnp.array([1.0, 0.0, 1.0])
    mask = jnp.ones(3, bool)
    found = jax.jit(jax.value_and_grad(lambda s: aggregate_steps(s, mask, how)))(scores)
    assert all(np.isfinite(part).all() for part in found)


def test_only_the_product_falls_with_length():
    scores, mask = jnp.full((2, 9), 0.9), jnp.asarray(np.arange(9) < np.array([[2], [9]]))
    short, long = aggregate(scores, mask, "prod").tolist()
    assert long < short
    short, long = aggregate(scores, mask, "geometric_mean").tolist()
    assert long == pytest.approx(short, rel=1e-6)


def test_unknown():
    with pytest.raises(ValueError, match="how = 'sum'"):
        aggregate_steps(jnp.ones(2), jnp.ones(2, bool), "sum")


SPLIT = 9


@pytest.mark.parametrize(
    "tokens, span, ends",
    [
        ([1, 2, SPLIT, 3, SPLIT, 4, 5, 0], (0, 7), [2, 4, 6]),  # the rest is a step
        ([1, 2, SPLIT, 3, SPLIT, 0, 0, 0], (0, 5), [2, 4]),
        ([1, SPLIT, SPLIT, 3, 8, SPLIT, 0, 0], (0, 6), [1, 4]),  # two kinds; none is empty
        ([1, SPLIT, 2, SPLIT, 3, 7, SPLIT, 0], (3, 5), [4]),  # those around the response are none
        ([1, SPLIT, SPLIT, 0, 0, 0, 0, 0], (1, 3), []),
        ([0] * 8, (0, 0), []),
    ],
)
def test_steps_end_at_separators_of_the_response(tokens, span, ends):
    found = find_ends(jnp.array([tokens], jnp.int32), jnp.array([span], jnp.int32), (8, SPLIT))
    (found,) = found.tolist()
    assert [x for x in found if x >= 0] == ends
    assert all(x in (-1, place) for place, x in enumerate(found))
