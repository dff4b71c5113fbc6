"""Regression of ratios on differences of reward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.losses.relative import relative_objective
from jaxreward.types import Policy, Signal, StepScores, Trajectories

POLICY = Policy(
    init=lambda key: jnp.zeros(()),
    sample=lambda *_: None,
    log_prob=lambda params, t: StepScores(t.actions * params, jnp.zeros_like(t.log_probs)),
)


def signal(actions, advantages, mask=None):
    """Log-probabilities are `params` times the actions, old ones 0."""
    actions = jnp.asarray(actions, jnp.float32)
    advantages = jnp.asarray(advantages, jnp.float32)
    zeros, there = jnp.zeros_like(actions), jnp.ones(actions.shape, bool)
    mask = jnp.ones(advantages.shape, bool) if mask is None else jnp.asarray(mask)
    trajectories = Trajectories(jnp.zeros((1,)), actions, actions, zeros, there)
    return Signal(advantages, mask, advantages, trajectories=trajectories)


def test_one_pair():
    """Check 6 of the card of RLCM."""
    pair = signal([[[0.01, 0.03], [0.01, 0.01]]], [[1.0, -0.5]])
    loss, metrics = relative_objective(POLICY)(jnp.float32(1.0), pair)
    np.testing.assert_allclose(loss, 2.1904, rtol=1e-6)
    assert metrics["weight/loss"] == 1.0


def test_at_the_old_policy_the_gradient_is_that_of_the_policy_gradient():
    """Twice the REINFORCE gradient with the pair's mean as baseline, up to the factor 2."""
    rng = np.random.default_rng(0)
    pairs = signal(rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 4)))
    found = jax.grad(lambda p: relative_objective(POLICY)(p, pairs)[0])(jnp.float32(0.0))
    scores = np.asarray(pairs.trajectories.actions).sum(axis=2)
    gap = lambda x: np.asarray(x)[:, 0::2] - np.asarray(x)[:, 1::2]
    np.testing.assert_allclose(found, np.mean(-2 * gap(pairs.advantages) * gap(scores)), rtol=1e-5)


def test_a_pair_with_a_missing_reward_does_not_count():
    actions = [[[0.5], [0.2], [0.7], [-0.4]]]
    whole = signal(actions, [[1.0, 0.0, 3.0, 1.0]], [[True, False, True, True]])
    part = signal([actions[0][2:]], [[3.0, 1.0]])
    objective = relative_objective(POLICY, eta=2.0)
    for at in (0.3, 1.0):
        expected = objective(jnp.float32(at), part)[0]
        np.testing.assert_allclose(objective(jnp.float32(at), whole)[0], expected, rtol=1e-6)


def test_bad_inputs():
    with pytest.raises(ValueError, match="eta = 0"):
        relative_objective(POLICY, eta=0)
    with pytest.raises(ValueError, match="G even"):
        relative_objective(POLICY)(jnp.float32(1.0), signal([[[1.0]] * 3], [[1.0, 2.0, 3.0]]))
