"""Advantages against a learned prediction of the reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.transforms import learned_baseline as learned
from jaxreward.types import make_signal

KEY = jax.random.key(0)


def run(transform, rewards, features, steps):
    signal = make_signal(rewards, baseline_features=features)

    def step(state, _):
        after, state = transform.update(KEY, signal, state)
        return state, (after.advantages, after.metrics["advantage/baseline_error"])

    return jax.jit(lambda s: jax.lax.scan(step, s, length=steps))(transform.init())


def test_a_constant_reward_ends_without_advantage():
    """Check 6 of the card of FIND."""
    transform = learned.learned_baseline(3, widths=(16,), learning_rate=0.01)
    features = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    _, (advantages, error) = run(transform, jnp.full((2, 4), 0.7), features, 400)
    advantages, error = np.asarray(advantages), np.asarray(error)
    assert np.all(np.abs(advantages[-1]) < 1e-3) and error[-1] < 1e-5
    assert error[0] > 0.05


def test_prompts_are_told_apart_by_their_features():
    transform = learned.learned_baseline(2, widths=(16,), learning_rate=0.01, scale=0.5)
    rewards = jnp.array([[1.0, 3.0], [-4.0, -2.0]])
    _, (advantages, _) = run(transform, rewards, jnp.eye(2), 600)
    np.testing.assert_allclose(advantages[-1], [[-2.0, 2.0], [-2.0, 2.0]], atol=0.02)


def test_the_step_comes_before_the_advantage():
    """The prediction subtracted is that of the network after the step."""
    transform = learned.learned_baseline(1, widths=(), learning_rate=0.1)
    state, (advantages, error) = run(transform, jnp.ones((1, 1)), jnp.zeros((1, 1)), 1)
    np.testing.assert_allclose(error, 1.0)
    np.testing.assert_allclose(advantages[0], 1.0 - 0.1, rtol=1e-5)  # Adam's first step
    np.testing.assert_allclose(state[0][0]["bias"], 0.1, rtol=1e-5)


def test_without_rewards_nothing_is_learned():
    transform = learned.learned_baseline(2, widths=(4,))
    missing = jnp.full((2, 3), jnp.nan)
    state, (advantages, _) = run(transform, missing, jnp.ones((2, 2)), 2)
    np.testing.assert_array_equal(advantages, 0.0)
    for new, old in zip(jax.tree.leaves(state), jax.tree.leaves(transform.init())):
        np.testing.assert_array_equal(new, old)


def test_no_gradient_reaches_the_features():
    transform = learned.learned_baseline(2, widths=(4,))

    def total(features):
        signal = make_signal(jnp.ones((2, 2)), baseline_features=features)
        return jnp.sum(transform.update(KEY, signal, transform.init())[0].advantages)

    np.testing.assert_array_equal(jax.jit(jax.grad(total))(jnp.ones((2, 2))), 0.0)


def test_bad_inputs():
    for name in ("num_features", "learning_rate", "scale"):
        with pytest.raises(ValueError, match=f"{name} = 0"):
            learned.learned_baseline(**{"num_features": 2, name: 0})
    transform = learned.learned_baseline(2)
    signal = make_signal(jnp.ones((2, 2)), baseline_features=jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="features"):
        transform.update(KEY, signal, transform.init())
