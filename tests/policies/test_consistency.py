"""Consistency functions, their boundary, multistep sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward import schedules
from jaxreward.policies import consistency
from jaxreward.schedules import CLEAN, NOISE, VELOCITY

TABLE = schedules.from_alpha_bar(schedules.scaled_linear_alpha_bar())


def network(params, x, time, condition):
    del condition
    return jnp.tanh(params * x + time.reshape((-1,) + (1,) * (x.ndim - 1)))


def test_lcm_scalings():
    """Check 1 of the card of RG-LCD."""
    skip, out = consistency.lcm_scalings()(jnp.array([0.0, 1.0, 19.0]))
    np.testing.assert_allclose(skip, [1.0, 0.0024938, 6.925e-6], rtol=1e-4)
    np.testing.assert_allclose(out, [0.0, 0.9987523, 0.9999965], rtol=1e-6)


def test_edm_scalings():
    skip, out = consistency.edm_scalings(0.5, 0.002)(jnp.array([0.002, 1.0]))
    np.testing.assert_allclose(skip, [1.0, 0.25 / (0.998**2 + 0.25)], rtol=1e-5)
    np.testing.assert_allclose(out, [0.0, 0.5 * 0.998 / 1.25**0.5], rtol=1e-5)


@pytest.mark.parametrize("parameterization", [NOISE, CLEAN, VELOCITY])
@pytest.mark.parametrize(
    "schedule, scalings, start",
    [
        (TABLE, consistency.lcm_scalings(), 0.0),
        (schedules.exploding(80.0), consistency.edm_scalings(), 0.002),
    ],
)
def test_the_identity_at_the_boundary(key, schedule, scalings, start, parameterization):
    x = jax.random.normal(key, (3, 2, 2))
    function = consistency.consistency_function(network, schedule, parameterization, scalings)
    np.testing.assert_allclose(function(1.3, x, start, None), x, atol=1e-6)
    assert np.max(np.abs(function(1.3, x, 0.9 * schedule.last, None) - x)) > 0.1


def test_function_of_a_noise_network():
    """Check 2 of the card of RG-LCD."""
    schedule = schedules.from_alpha_bar(np.linspace(0.9, 0.3, 20))
    noise = lambda params, x, time, condition: jnp.array([[0.5, -0.3]]) + 0 * x
    function = consistency.consistency_function(noise, schedule, NOISE)
    x = jnp.array([[0.8, -0.6]])
    found = function(None, x, 19.0, None)
    np.testing.assert_allclose(found, [[0.696834, -0.637189]], atol=1e-5)
    np.testing.assert_array_equal(function(None, x, 0.0, None), x)


@pytest.mark.parametrize(
    "steps, times",
    [
        (1, [999]),
        (2, [999, 499]),
        (4, [999, 759, 519, 279]),
        (8, [999, 879, 759, 639, 519, 399, 279, 159]),
    ],
)
def test_times(steps, times):
    """Check 1 of the card of RLCM."""
    np.testing.assert_array_equal(consistency.grid(steps), times)


def test_sixteen_times_end_at_99():
    assert len(consistency.grid(16)) == 16 and consistency.grid(16)[-1] == 99


def test_sampling_with_the_true_function(key):
    """For a single possible clean sample the function is constant, and so is every sample."""
    function = lambda x, t: jnp.full_like(x, 0.4)
    x = jax.random.normal(key, (3, 2))
    for steps in (1, 4):
        found = consistency.sample(key, function, TABLE, x, consistency.grid(steps))
        np.testing.assert_allclose(found, 0.4)


def test_sampling_adds_the_noise_of_each_level(key):
    """With the function "divide by alpha" what is left is the noise-to-signal of the last level."""
    function = lambda x, t: x / TABLE.alpha(t) - 2.0
    times = np.array([500.0, 300.0])
    x = jax.random.normal(key, (20000, 1))
    found = consistency.sample(key, function, TABLE, x, times)
    last = TABLE.sigma(jnp.float32(300.0)) / TABLE.alpha(jnp.float32(300.0))
    np.testing.assert_allclose(jnp.mean(found), -4.0, atol=0.1)
    expected = (1 / TABLE.alpha(jnp.float32(500.0))) ** 2 + last**2
    np.testing.assert_allclose(jnp.var(found), expected, rtol=4 * (2 / 20000) ** 0.5)


def test_next_state(key):
    """Check 5 of the card of RLCM."""
    schedule = schedules.from_alpha_bar(np.array([0.9, 0.64, 0.5]))
    clean = jnp.array([[0.5, -0.5, 1.0]])
    chain = consistency.consistency_chain(lambda p, x, t, c: clean, schedule, np.array([2.0, 1.0]))
    move = chain.move(None, jnp.zeros((1, 3)), jnp.int32(0), None)
    noise = jnp.array([[0.1, -0.2, 0.3]])
    np.testing.assert_allclose(move.mean + move.std * noise, [[0.46, -0.52, 0.98]], atol=1e-6)


def test_chain_actions():
    function = lambda params, x, t, condition: x + t
    exact = consistency.consistency_chain(function, TABLE, consistency.grid(4))
    released = consistency.consistency_chain(
        function, TABLE, consistency.grid(4), last_action=True
    )
    assert (exact.actions, exact.shown) == (3, 3)
    assert (released.actions, released.shown) == (4, 3)
    last = released.move(None, jnp.zeros((1, 2)), jnp.int32(3), None)
    np.testing.assert_allclose(last.std.item(), TABLE.sigma(jnp.float32(279.0)), rtol=1e-6)
    np.testing.assert_allclose(exact.finish(None, jnp.ones((1, 2)), None), 280.0)


def test_bad_inputs():
    with pytest.raises(ValueError, match="1 times leave no action"):
        consistency.consistency_chain(lambda p, x, t, c: x, TABLE, consistency.grid(1))
    with pytest.raises(ValueError, match=r"times = \[1.0, 0.0\]; allowed are descending"):
        consistency.consistency_chain(lambda p, x, t, c: x, schedules.flow(), np.array([1.0, 0.0]))
    for steps in (0, 51):
        with pytest.raises(ValueError, match="steps"):
            consistency.grid(steps)
    with pytest.raises(ValueError, match="data_std = 0"):
        consistency.lcm_scalings(0)
    with pytest.raises(ValueError, match="smallest = -1"):
        consistency.edm_scalings(smallest=-1)
