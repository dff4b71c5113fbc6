"""REINFORCE mixed with the exact KL: the exact checks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.losses import kl_reinforce, preference
from jaxreward.losses.regularization import exact_kl

POLICY, REFERENCE = jnp.array([0.5, 0.3, 0.2]), jnp.array([0.4, 0.4, 0.2])
ONES = jnp.ones((1, 2), bool)


def test_the_exact_kl_is_not_the_printed_sum():
    assert float(exact_kl(jnp.log(POLICY), jnp.log(REFERENCE))) == pytest.approx(0.025267, abs=1e-6)
    printed = jnp.sum(jnp.log(POLICY) - jnp.log(REFERENCE))
    assert float(printed) == pytest.approx(-0.064539, abs=1e-6)


def test_two_steps():
    log_probs = jnp.log(jnp.array([[0.5, 0.3]]))
    returns = kl_reinforce.reward_to_go(jnp.array([[0.0, 1.2]]), ONES)
    np.testing.assert_allclose(returns, [[1.2, 1.2]])
    baseline, kl = jnp.array([[0.9, 1.0]]), jnp.array([[0.0305, 0.012]])
    value = kl_reinforce.mixed_objective(log_probs, returns, baseline, kl, ONES, alpha=0.1)
    assert float(value) == pytest.approx(-0.408115, abs=1e-6)
    assert float(kl_reinforce.baseline_loss(baseline, returns, ONES)) == pytest.approx(0.13)


def objective(logits, alpha, reference=REFERENCE, action=0):
    """Of one step with return 1.2 and baseline 0.9."""
    log_p = jax.nn.log_softmax(logits)
    kl = exact_kl(log_p, jnp.log(reference))
    parts = (log_p[action], jnp.float32(1.2), jnp.float32(0.9), kl)
    parts = [jnp.reshape(x, (1, 1)) for x in parts]
    return kl_reinforce.mixed_objective(*parts, jnp.ones((1, 1), bool), alpha=alpha)


def test_alpha_zero_is_reinforce():
    gradient = jax.grad(objective)(jnp.log(POLICY), 0.0)
    np.testing.assert_allclose(gradient, 0.3 * (jnp.array([1.0, 0, 0]) - POLICY), atol=1e-6)


def test_alpha_one_returns_to_the_reference():
    climb = jax.jit(lambda logits: logits + jax.grad(objective)(logits, 1.0))
    logits = jnp.log(POLICY)
    for _ in range(200):
        logits = climb(logits)
    np.testing.assert_allclose(jax.nn.softmax(logits), REFERENCE, atol=1e-5)


def test_no_kl_gradient_at_the_reference():
    gradient = jax.grad(objective)(jnp.log(POLICY), 1.0, POLICY)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-7)


def test_the_optimum_is_the_tilted_reference():
    # (1 - alpha) r - alpha KL is greatest at ref exp((1 - alpha) r / alpha).
    alpha, rewards = 0.3, jnp.array([0.2, 1.0, -0.5])

    def expected(logits):  # the mean over actions, the sampling distribution held fixed
        weights = jax.lax.stop_gradient(jax.nn.softmax(logits))
        log_p = jax.nn.log_softmax(logits)
        kl = exact_kl(log_p, jnp.log(REFERENCE))
        each = [
            kl_reinforce.mixed_objective(
                log_p[a].reshape(1, 1), rewards[a].reshape(1, 1), jnp.full((1, 1), 0.3),
                kl.reshape(1, 1), jnp.ones((1, 1), bool), alpha=alpha,
            )
            for a in range(3)
        ]  # fmt: skip
        return jnp.dot(weights, jnp.stack(each))

    optimum = jnp.log(REFERENCE) + (1 - alpha) / alpha * rewards
    np.testing.assert_allclose(jax.grad(expected)(optimum), 0.0, atol=1e-6)
    assert float(jnp.max(jnp.abs(jax.grad(expected)(jnp.log(REFERENCE))))) > 0.01


def test_padding_does_not_count():
    mask = jnp.array([[True, True, False]])
    junk = jnp.array([[0.0, 1.0, jnp.nan]])
    np.testing.assert_allclose(kl_reinforce.reward_to_go(junk, mask), [[1, 1, 0]])
    assert float(kl_reinforce.baseline_loss(jnp.zeros((1, 3)), junk, mask)) == 1.0
    parts = (junk, junk, jnp.zeros((1, 3)), junk)
    assert float(kl_reinforce.mixed_objective(*parts, mask, alpha=0.5)) == 0.0


def test_alpha_is_a_share():
    with pytest.raises(ValueError, match="alpha = 1.5"):
        objective(jnp.zeros(3), 1.5)


def test_preference_loss_of_users():
    loss = preference.bradley_terry(jnp.array([1.3 - 0.4]), jnp.ones(1))
    assert float(loss[0]) == pytest.approx(0.341154, abs=1e-6)
