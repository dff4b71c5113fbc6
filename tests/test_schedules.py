"""Schedules and parameterizations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward import schedules
from jaxreward.schedules import CLEAN, FLOW, NOISE, VELOCITY

ALL = {
    "flow": schedules.flow(),
    "cosine": schedules.cosine(),
    "exploding": schedules.exploding(5.0),
    "table": schedules.from_alpha_bar(schedules.scaled_linear_alpha_bar()),
}


@pytest.mark.parametrize("name", ALL)
def test_ends_and_order(name):
    schedule = ALL[name]
    t = jnp.linspace(0.0, schedule.last, 41)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    np.testing.assert_allclose(alpha[0], 1.0, atol=1e-3)
    np.testing.assert_allclose(sigma[0], 0.0, atol=0.03)
    assert np.all(np.diff(sigma) > 0) and np.all(np.diff(alpha) <= 0)


@pytest.mark.parametrize("name", ["cosine", "table"])
def test_variance_is_preserved(name):
    t = jnp.linspace(0.0, ALL[name].last, 23)
    total = ALL[name].alpha(t) ** 2 + ALL[name].sigma(t) ** 2
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)


@pytest.mark.parametrize("parameterization", [NOISE, CLEAN, VELOCITY, FLOW])
@pytest.mark.parametrize("name", ALL)
def test_target_gives_back_clean_and_noise(key, name, parameterization):
    schedule = ALL[name]
    clean, noise = jax.random.normal(key, (2, 5, 3))
    t = jnp.linspace(0.1, 0.9, 5) * schedule.last
    x = schedules.add_noise(schedule, clean, noise, t)
    alpha, sigma = schedules.levels(schedule, t, x)
    output = parameterization.target(clean, noise, alpha, sigma)
    back = parameterization.clean(output, x, alpha, sigma)
    np.testing.assert_allclose(back, clean, atol=2e-4)
    np.testing.assert_allclose(parameterization.noise(output, x, alpha, sigma), noise, atol=2e-4)


def test_noise_that_cannot_be_told_is_zero_and_has_a_gradient():
    x, alpha, sigma = jnp.ones((2, 3)), jnp.ones((2, 1)), jnp.zeros((2, 1))
    noise = lambda clean: jnp.sum(CLEAN.noise(clean, x, alpha, sigma))
    assert noise(x) == 0.0
    np.testing.assert_array_equal(jax.grad(noise)(x), 0.0)


@pytest.mark.parametrize("name", ALL)
def test_slopes_are_differences(name):
    schedule, h = ALL[name], 1e-3 * ALL[name].last
    t, x = 0.4 * schedule.last + 0.1 * h, jnp.zeros((1, 2))
    rates = schedules.slopes(schedule, t, x)
    for rate, level in zip(rates, (schedule.alpha, schedule.sigma)):
        up, down = level(jnp.float32(t + 0.3 * h)), level(jnp.float32(t - 0.05 * h))
        np.testing.assert_allclose(rate.item(), (up - down) / (0.35 * h), rtol=2e-2, atol=1e-6)


def test_for_rows():
    levels, x = jnp.array([1.0, 2.0]), jnp.zeros((4, 3))
    np.testing.assert_array_equal(schedules.for_rows(levels, x), [1, 2, 1, 2])
    assert schedules.for_rows(levels, x[:2]) is levels
    assert schedules.for_rows(levels[:0], x[:0]).shape == (0,)
    for given, batch in ((levels, x[:3]), (levels[:0], x)):
        with pytest.raises(ValueError, match="rows for a batch of .; allowed are divisors of"):
            schedules.for_rows(given, batch)


def test_levels_broadcast_over_the_batch():
    x = jnp.zeros((3, 2, 2))
    alpha, sigma = schedules.levels(schedules.flow(), jnp.array([0.0, 0.5, 1.0]), x)
    assert alpha.shape == sigma.shape == (3, 1, 1)
    np.testing.assert_allclose(alpha[:, 0, 0], [1.0, 0.5, 0.0])


def test_bad_inputs():
    with pytest.raises(ValueError, match="largest = 0"):
        schedules.exploding(0.0)
    for table in ([0.5], [0.5, 0.6], [1.2, 0.5], [0.5, 0.0]):
        with pytest.raises(ValueError, match="alpha_bar"):
            schedules.from_alpha_bar(np.array(table))
    with pytest.raises(ValueError, match="steps = 1"):
        schedules.scaled_linear_alpha_bar(1)
    with pytest.raises(ValueError, match="last = 1.0"):
        schedules.scaled_linear_alpha_bar(last=1.0)


def test_a_table_is_read_linearly_between_whole_times():
    table = schedules.scaled_linear_alpha_bar(20)
    schedule = schedules.from_alpha_bar(table)
    times = np.array([-1.0, 0.0, 0.25, 3.0, 17.5, 18.999, 19.0, 25.0], np.float32)
    for found, row in ((schedule.alpha, table), (schedule.sigma, 1.0 - table)):
        expected = np.sqrt(np.interp(times, np.arange(20), row))
        np.testing.assert_allclose(found(times), expected, rtol=1e-6)
    assert np.isnan(schedule.alpha(np.float32(np.nan)))
