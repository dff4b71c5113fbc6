"""Samplers, on distributions whose denoiser is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from known_denoisers import MIXTURE, SINGLE, data, denoiser
from scipy import stats

from jaxreward import schedules
from jaxreward.policies import flow
from jaxreward.schedules import FLOW, NOISE

STRAIGHT, COSINE = schedules.flow(), schedules.cosine()
TABLE = schedules.from_alpha_bar(schedules.scaled_linear_alpha_bar())
COUNT = 3000


def same(first, second):
    """p-value of the two-sample Kolmogorov-Smirnov test."""
    return stats.ks_2samp(np.asarray(first), np.asarray(second)).pvalue


def normal(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


@pytest.mark.parametrize("mixture", [SINGLE, MIXTURE])
@pytest.mark.parametrize("schedule", [STRAIGHT, COSINE])
def test_ode_sde_and_ddim_have_the_marginals_of_the_data(key, schedule, mixture):
    denoise = denoiser(schedule, mixture)
    level = lambda t: 1.5 * jnp.sqrt(schedule.sigma(t))

    @jax.jit
    def run(key):
        keys = jax.random.split(key, 5)
        noise = jax.random.normal(keys[0], (4, COUNT))
        times = flow.grid(schedule, 200, 1e-3)
        ode = flow.solve_ode(denoise, schedule, noise[0], times, method="heun")
        return data(keys[1], mixture, COUNT), ode, {
            "sde": flow.solve_sde(keys[2], denoise, schedule, noise[1], times, level),
            "ddim": flow.ddim(keys[3], denoise, schedule, noise[2], times),
            "ancestral": flow.ddim(keys[4], denoise, schedule, noise[3], times, eta=1.0),
        }

    truth, ode, found = jax.device_get(run(key))
    assert same(ode, truth) > 1e-3
    for name, samples in found.items():
        assert same(samples, truth) > 1e-3, name
        assert same(samples, ode) > 1e-3, name
    # the test sees errors of the size that a wrong drift makes
    assert same(ode + 0.1, truth) < 1e-3 and same(1.3 * (ode - 0.2) + 0.2, truth) < 1e-3


def test_without_diffusion_the_sde_is_the_ode(key):
    @jax.jit
    def run(x):
        denoise, times = denoiser(STRAIGHT, MIXTURE), flow.grid(STRAIGHT, 10, 0.01)
        ode = flow.solve_ode(denoise, STRAIGHT, x, times)
        return flow.solve_sde(key, denoise, STRAIGHT, x, times, jnp.zeros_like), ode

    sde, ode = run(normal(8))
    np.testing.assert_allclose(sde, ode, atol=1e-6)


@pytest.mark.parametrize("method, order", [("euler", 1), ("heun", 2)])
def test_orders_of_convergence(method, order):
    """The flow of a normal distribution carries `x` at time 1 to `mean + std x`."""
    (mean,), (std,), _ = SINGLE
    x = np.linspace(-2.0, 2.0, 9, dtype=np.float32)
    solve = lambda x, steps: flow.solve_ode(
        denoiser(COSINE, SINGLE), COSINE, x, flow.grid(COSINE, steps), method=method
    )
    both = jax.jit(lambda x: [solve(x, steps) for steps in (20, 40)])(x)
    coarse, fine = (np.max(np.abs(found - (mean + std * x))) for found in both)
    assert 0.8 * 2**order < coarse / fine < 1.3 * 2**order


def test_ddim_is_exact_for_a_point(key):
    """With a single possible clean sample any number of steps arrives there."""

    def point(x, t):
        return flow.Estimate(jnp.full_like(x, 0.3), (x - 0.3 * TABLE.alpha(t)) / TABLE.sigma(t))

    @jax.jit
    def run(x, times):
        found = [flow.ddim(key, point, TABLE, x, times, eta=eta) for eta in (0.0, 1.0)]
        return jnp.stack(found), TABLE.sigma(times[-1])

    found, last = run(normal(5), jnp.array([999.0, 400.0, 0.0]))
    np.testing.assert_allclose(found, 0.3, atol=6 * last)


def test_clean_estimates_lead_to_the_sample(key):
    known = denoiser(STRAIGHT, MIXTURE)

    @jax.jit
    def run(x):
        times = flow.grid(STRAIGHT, 8)
        found = flow.clean_estimates(known, STRAIGHT, x, times)
        return found, known(x, times[0]).clean, flow.ddim(key, known, STRAIGHT, x, times)

    found, first, last = jax.device_get(run(normal(6)))
    assert found.shape == (8, 6)
    np.testing.assert_allclose(found[0], first, rtol=1e-5)
    np.testing.assert_allclose(found[-1], last, rtol=1e-5)


def test_ddim_move_against_the_published_formula():
    x, noise = np.asarray(normal(2, 4))
    t, after, eta = 619.0, 579.0, 0.7
    bar, bar_after = (float(TABLE.alpha(jnp.float32(s))) ** 2 for s in (t, after))
    clean = (x - np.sqrt(1 - bar) * noise) / np.sqrt(bar)
    std = eta * np.sqrt((1 - bar_after) / (1 - bar)) * np.sqrt(1 - bar / bar_after)
    mean = np.sqrt(bar_after) * clean + np.sqrt(1 - bar_after - std**2) * noise
    run = lambda x, *estimate: flow.ddim_move(TABLE, x, flow.Estimate(*estimate), t, after, eta)
    move = jax.jit(run)(x, np.float32(clean), noise)
    np.testing.assert_allclose(move.mean, mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(move.std, std, rtol=1e-3)


@pytest.mark.parametrize("schedule, end", [(STRAIGHT, 0.0), (COSINE, 0.0), (TABLE, 1.0)])
def test_inversion_returns_to_its_start(key, schedule, end):
    """Also from pure noise, of which the noise estimate says nothing."""
    denoise = denoiser(schedule, MIXTURE)

    @jax.jit
    def run(x):
        times = jnp.linspace(schedule.last, end, 41, dtype=jnp.float32)
        show = lambda x: flow.ddim(key, denoise, schedule, x, times)
        shown = show(x)
        rough, exact = (
            flow.ddim_invert(denoise, schedule, shown, times, refine=refine) for refine in (0, 30)
        )
        return shown, rough, exact, show(exact)

    x = normal(64)
    shown, rough, exact, again = jax.device_get(run(x))
    assert np.max(np.abs(exact - x)) < 1e-4 < np.max(np.abs(rough - x)) < 0.5
    np.testing.assert_allclose(again, shown, atol=1e-4)


def test_a_table_that_starts_at_one_is_steep_there():
    """Sigma is the root of a table there, whose slope is infinite."""
    table = schedules.from_alpha_bar(np.cos(np.linspace(0.0, 1.5, 100)) ** 2)

    @jax.jit
    def run(x):
        denoise, times = denoiser(table, SINGLE), flow.grid(table, 400)
        solve = lambda x, times, how="heun": flow.solve_ode(denoise, table, x, times, method=how)
        shown = solve(x, times)
        return shown, solve(x, times, "euler"), solve(shown, times[::-1])

    x = normal(8)
    shown, euler, back = run(x)
    np.testing.assert_allclose(shown, euler, atol=2e-2)
    np.testing.assert_allclose(back, x, atol=2e-2)


def test_ode_runs_both_ways():
    @jax.jit
    def run(x):
        denoise, times = denoiser(COSINE, MIXTURE), flow.grid(COSINE, 200)
        there = flow.solve_ode(denoise, COSINE, x, times, method="heun")
        return flow.solve_ode(denoise, COSINE, there, times[::-1], method="heun")

    x = normal(16)
    np.testing.assert_allclose(run(x), x, atol=5e-3)


def linear(params, x, time, condition):
    """A network that is easy to compute by hand."""
    return params * x + (time + condition["c"])[:, None]


def test_guidance():
    null = lambda condition: {"c": jnp.zeros_like(condition["c"])}
    x, time = jnp.ones((2, 3)), jnp.array([0.5, 0.25])
    condition = {"c": jnp.array([1.0, 2.0])}

    @jax.jit
    def run(scale):
        asked = (2.0, x, time, condition)
        return flow.guided(linear, null, scale)(*asked), linear(*asked)

    for scale in (1.0, 0.0, 6.0, np.array([2.0, 3.0], np.float32)):
        found, plain = run(scale)
        expected = plain + ((scale - np.ones(2)) * condition["c"])[:, None]
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_make_denoiser():
    """Check 2 of the card of RG-LCD, without boundary scalings; time reaches the network scaled."""
    table = np.linspace(0.9, 0.3, 20)
    schedule = schedules.from_alpha_bar(table)
    seen = lambda params, x, time, condition: jnp.array([[0.5, -0.3]]) + 0 * time[:, None] * x
    denoise = flow.make_denoiser(seen, schedule, NOISE)
    found = denoise(None, jnp.array([[0.8, -0.6]]), 19.0, None)
    np.testing.assert_allclose(found.clean, [[0.696834, -0.637189]], atol=2e-5)
    times = lambda params, x, time, condition: x * 0 + time[:, None]
    output = flow.make_denoiser(times, schedule, FLOW)(None, jnp.zeros((1, 2)), 9.5, None)
    alpha, sigma = schedule.alpha(jnp.float32(9.5)), schedule.sigma(jnp.float32(9.5))
    np.testing.assert_allclose(output.noise - output.clean, 0.5, rtol=1e-5)
    np.testing.assert_allclose(alpha * output.clean + sigma * output.noise, 0.0, atol=1e-6)


def test_bad_inputs():
    x, times = jnp.zeros((2,)), flow.grid(STRAIGHT, 2)
    denoise = denoiser(STRAIGHT, SINGLE)
    with pytest.raises(ValueError, match="method = 'midpoint'"):
        flow.solve_ode(denoise, STRAIGHT, x, times, method="midpoint")
    with pytest.raises(ValueError, match="refine = -1"):
        flow.ddim_invert(denoise, STRAIGHT, x, times, refine=-1)
    with pytest.raises(ValueError, match="steps = 0"):
        flow.grid(STRAIGHT, 0)
    with pytest.raises(ValueError, match="end = 1"):
        flow.grid(STRAIGHT, 5, 1.0)
