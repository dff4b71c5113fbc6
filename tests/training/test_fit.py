"""The small training loop finds a minimum, is the same under vmap, and refuses no steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreward.training import fit

DATA = {"x": jnp.linspace(-1.0, 1.0, 64), "y": 3.0 * jnp.linspace(-1.0, 1.0, 64) + 0.5}


def squared_error(params, batch):
    return jnp.mean((params["w"] * batch["x"] + params["b"] - batch["y"]) ** 2)


def line(key, steps=300):
    params = {"w": jnp.zeros(()), "b": jnp.zeros(())}
    sample = lambda key: fit.rows(DATA, key, 16)
    return fit.fit(key, params, squared_error, sample, optax.adam(0.05), steps=steps)


def test_finds_the_line(key):
    params, losses = line(key)
    np.testing.assert_allclose([params["w"], params["b"]], [3.0, 0.5], atol=0.02)
    assert losses.shape == (300,) and losses.dtype == jnp.float32 and losses[-1] < 1e-3 < losses[0]


def test_many_at_once_are_the_single_ones():
    keys = jax.random.split(jax.random.key(1), 3)
    many, _ = jax.jit(jax.vmap(lambda key: line(key, 20)))(keys)
    one, _ = jax.jit(lambda key: line(key, 20))(keys[2])
    np.testing.assert_allclose(many["w"][2], one["w"], rtol=1e-5)
    assert many["w"][0] != many["w"][1]


def test_rows_belong_together(key):
    batch = fit.rows(DATA, key, 8)
    np.testing.assert_allclose(batch["y"], 3.0 * batch["x"] + 0.5, rtol=1e-6)


def test_no_steps_are_refused(key):
    with pytest.raises(ValueError, match="steps = 0"):
        line(key, 0)


def best(key, validate, steps=60, every=20):
    """`fit_best` on the line, all of it in every batch."""
    params = {"w": jnp.zeros(()), "b": jnp.zeros(())}
    return fit.fit_best(
        key, params, squared_error, lambda key: DATA, optax.adam(0.05),
        validate=validate, steps=steps, every=every,
    )  # fmt: skip


def test_the_best_parameters_are_returned(key):
    """Validation wants w near 1, which training passes on its way to 3."""
    want = lambda p: jnp.abs(p["w"] - 1.0)
    params, values = best(key, want, steps=100, every=5)
    assert values.shape == (21,) and values[0] == 1.0
    assert jnp.argmin(values) not in (0, 20)
    np.testing.assert_allclose(want(params), jnp.min(values), rtol=1e-6)


def test_without_a_better_one_the_start_is_returned(key):
    for validate in (lambda p: jnp.abs(p["w"]), lambda p: p["w"] * jnp.nan):
        params, _ = best(key, validate)
        assert params["w"] == 0


def test_the_last_is_that_of_fit(key):
    both = best(key, lambda p: -p["w"], steps=40, every=20)[0]
    sample, loss = lambda key: DATA, squared_error
    start = {"w": jnp.zeros(()), "b": jnp.zeros(())}
    plain, _ = fit.fit(key, start, loss, sample, optax.adam(0.05), steps=40)
    np.testing.assert_allclose(both["w"], plain["w"], rtol=1e-5)


def test_bad_every(key):
    with pytest.raises(ValueError, match=r"every = 61; allowed is \[1, steps = 60\]"):
        best(key, lambda p: p["w"], every=61)
