"""KL in the reward: by hand, the sum over tokens, the controller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.transforms import kl_penalty as kl
from jaxreward.types import Trajectories, make_signal

KEY = jax.random.key(0)
MASK = jnp.array([[[True, True, True], [True, False, False]]])
LOG_PROBS = jnp.array([[[-1.0, -2.0, -0.5], [-3.0, jnp.nan, jnp.nan]]])
REFERENCE = jnp.array([[[-1.5, -1.0, -0.5], [-1.0, jnp.nan, -9.0]]])
REWARDS = jnp.array([[2.0, -1.0]])


def signal(mask=None):
    drawn = Trajectories(jnp.zeros(1), MASK, MASK, LOG_PROBS, MASK)
    return make_signal(REWARDS, mask, trajectories=drawn, reference_log_probs=REFERENCE)


def test_by_hand():
    found = kl.token_rewards(REWARDS, LOG_PROBS, REFERENCE, MASK, coefficient=0.1)
    np.testing.assert_allclose(found, [[[-0.05, 0.1, 2.0], [-0.8, 0.0, 0.0]]], atol=1e-6)
    after, state = kl.kl_penalty(0.1).update(KEY, signal(), jnp.float32(0.1))
    np.testing.assert_allclose(after.rewards, jnp.sum(found, axis=2), atol=1e-6)
    # Sums of squares over two: 0.5 (0.25 + 1) and 0.5 * 4.
    np.testing.assert_allclose(after.metrics["kl_penalty/kl"], (0.625 + 2.0) / 2, rtol=1e-6)
    assert float(state) == float(after.metrics["kl_penalty/coefficient"]) == np.float32(0.1)


def test_a_trajectory_without_decisions_has_no_token_reward():
    found = kl.token_rewards(REWARDS, LOG_PROBS, REFERENCE, MASK.at[0, 1, 0].set(False))
    np.testing.assert_array_equal(found[0, 1], 0.0)


def test_coefficient_zero_leaves_the_reward_and_a_missing_one_is_left_out():
    transform = kl.kl_penalty(0.0)
    after, _ = transform.update(KEY, signal(), transform.init())
    np.testing.assert_array_equal(after.rewards, REWARDS)
    after, _ = transform.update(KEY, signal(jnp.array([[True, False]])), transform.init())
    np.testing.assert_allclose(after.metrics["kl_penalty/kl"], 0.625, rtol=1e-6)


def test_its_expected_gradient_is_that_of_the_divergence():
    """REINFORCE on `-(ln pi - ln ref)`, by enumeration, descends KL(pi || ref)."""
    reference = jax.nn.log_softmax(jnp.array([0.3, -0.2, 1.0]))
    logits = jnp.array([1.0, 0.5, -1.0])
    log_pi = jax.nn.log_softmax(logits)
    reward = kl.token_rewards(
        jnp.zeros((1, 3)), log_pi[None, :, None], reference[None, :, None],
        jnp.ones((1, 3, 1), bool), coefficient=1.0,
    )[0, :, 0]
    surrogate = lambda z: jnp.sum(jnp.exp(log_pi) * reward * jax.nn.log_softmax(z))
    divergence = lambda z: jnp.sum(
        jnp.exp(jax.nn.log_softmax(z)) * (jax.nn.log_softmax(z) - reference)
    )
    np.testing.assert_allclose(
        jax.grad(surrogate)(logits), -jax.grad(divergence)(logits), atol=1e-6
    )


def test_the_controller_holds_the_target():
    controller = kl.KLController(target=2.0, horizon=100.0)
    step = lambda c, d: float(
        kl.controlled_coefficient(jnp.float32(c), jnp.float32(d), jnp.float32(50), controller)
    )
    assert step(0.1, 2.0) == pytest.approx(0.1)
    assert step(0.1, 2.2) == pytest.approx(0.1 * (1 + 0.1 * 0.5))
    assert step(0.1, 50.0) == pytest.approx(0.11)  # error cut at 0.2
    assert step(0.1, 0.0) == pytest.approx(0.09)
    transform = kl.kl_penalty(0.1, controller=controller)
    _, state = transform.update(KEY, signal(), transform.init())
    error = np.clip(1.3125 / 2 - 1, -0.2, 0.2)
    assert float(state) == pytest.approx(0.1 * (1 + error * 2 / 100), rel=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: kl.kl_penalty(-0.1), "coefficient = -0.1"),
        (lambda: kl.kl_penalty(controller=kl.KLController(target=0.0)), "controller.target = 0"),
        (lambda: kl.kl_penalty(controller=kl.KLController(horizon=-1)), "controller.horizon = -1"),
        (
            lambda: kl.kl_penalty().update(
                KEY,
                signal().replace(rewards=jnp.zeros((1, 2, 3)), mask=jnp.ones((1, 2, 3), bool)),
                jnp.float32(0.1),
            ),
            r"allowed is \[P, G\]",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
