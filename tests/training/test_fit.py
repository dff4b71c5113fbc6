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
