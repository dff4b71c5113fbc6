"""Aggregations of step scores, by hand and at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.rewards.step_scores import AGGREGATIONS, aggregate_steps

pytestmark = pytest.mark.usefixtures("compile_fast")

EXPECTED = dict(
    prod=0.36, geometric_mean=0.711379, mean=0.733333, mean_logit=0.767546, mean_odd=4.666667,
    min=0.5, last=0.5, max=0.9,
)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_by_hand_with_padding(how):
    scores = jnp.array([[0.9, 0.8, 0.5, jnp.nan], [0.9, 0.8, 0.5, 0.0], [1.0, 0.0, 1.0, 1.0]])
    mask = jnp.array([[True] * 3 + [False]] * 2 + [[False] * 4])
    found = aggregate_steps(scores, mask, how)
    np.testing.assert_allclose(found, [EXPECTED[how], EXPECTED[how], 0.5], rtol=2e-6)
    assert aggregate_steps(scores[2], mask[2], how, empty=0.0) == 0


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_scores_of_0_and_1_are_finite(how):
    scores = jnp.array([1.0, 0.0, 1.0])
    mask = jnp.ones(3, bool)
    assert np.isfinite(aggregate_steps(scores, mask, how))
    assert np.isfinite(jax.grad(lambda s: aggregate_steps(s, mask, how))(scores)).all()


def test_only_the_product_falls_with_length():
    short, long = (aggregate_steps(jnp.full(n, 0.9), jnp.ones(n, bool), "prod") for n in (2, 9))
    assert long < short
    short, long = (
        aggregate_steps(jnp.full(n, 0.9), jnp.ones(n, bool), "geometric_mean") for n in (2, 9))
    assert long == pytest.approx(float(short), rel=1e-6)


def test_unknown():
    with pytest.raises(ValueError, match="how = 'sum'"):
        aggregate_steps(jnp.ones(2), jnp.ones(2, bool), "sum")
