"""The distribution over initial noise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreward.losses.policy import policy_loss, policy_objective
from jaxreward.losses.regularization import penalized
from jaxreward.policies import noise_prior
from jaxreward.policies.noise_prior import NoisePrior, NoisePrompts
from jaxreward.training.step import make_update_step, sample_key
from jaxreward.transforms import advantage
from jaxreward.types import Trajectories, make_signal

POLICY = noise_prior.noise_prior_policy(1, (4,))
PROMPT = NoisePrompts(jnp.zeros((1,), jnp.int32), None)
NOISE = jnp.array([0.5, -1.0, 2.0, 0.0])
START = NoisePrior(jnp.zeros((1, 4)), jnp.ones((1, 4)))
MOVED = NoisePrior(jnp.array([[0.1, -0.1, 0.1, 0.0]]), jnp.array([[1.0, 0.9, 1.1, 1.0]]))


def log_prob(params, noise=NOISE, policy=POLICY):
    noise = noise[None, None]
    zero = jnp.zeros((1, 1, 1))
    trajectories = Trajectories(PROMPT, noise, noise, zero, jnp.ones((1, 1, 1), bool))
    return policy.log_prob(params, trajectories).log_probs


def objective(params, value, noise=NOISE, objective="clip_always"):
    """The policy loss of FIND against the start, with reward weight 10."""
    old = log_prob(START, noise)
    mask = jnp.ones((1, 1, 1), bool)
    advantages = jnp.full((1, 1), 10.0 * value)
    return policy_loss(log_prob(params, noise), old, advantages, mask, objective=objective)[0]


def test_log_probabilities():
    """Check 1 of the card of FIND."""
    np.testing.assert_allclose(log_prob(START).item(), -1.5751885, rtol=1e-6)
    np.testing.assert_allclose(log_prob(MOVED).item(), -1.4343598, rtol=1e-6)
    ratio = jnp.exp(log_prob(MOVED) - log_prob(START))
    np.testing.assert_allclose(ratio.item(), 1.1512274, rtol=1e-6)
    total = noise_prior.noise_prior_policy(1, (4,), reduction="sum")
    ratio = jnp.exp(log_prob(MOVED, policy=total) - log_prob(START, policy=total))
    np.testing.assert_allclose(ratio.item(), 1.7564853, rtol=1e-5)


def test_loss():
    """Check 2 of the card of FIND."""
    penalty = noise_prior.drift_penalty(MOVED)
    np.testing.assert_allclose(penalty, 0.0125, rtol=1e-5)
    divergence = 0.5 * (MOVED.std**2 + MOVED.mean**2 - 1) - jnp.log(MOVED.std)
    np.testing.assert_allclose(jnp.mean(divergence), 0.0087626, rtol=1e-4)  # which it stands for
    loss = objective(MOVED, 0.9 - 0.4) + 0.01 * penalty
    np.testing.assert_allclose(loss, -5.7560121, rtol=1e-6)


def test_gradient_at_the_start():
    """Check 3 of the card of FIND."""
    grads = jax.jit(jax.grad(objective))(START, 0.5)
    np.testing.assert_allclose(grads.mean[0], [-0.625, 1.25, -2.5, 0.0], atol=1e-5)
    np.testing.assert_allclose(grads.std[0], [0.9375, 0.0, -3.75, 1.25], atol=1e-5)


def test_outside_the_clip_there_is_no_gradient():
    """Check 4 of the card of FIND."""
    params = NoisePrior(jnp.full((1, 4), 0.15), jnp.ones((1, 4)))

    @functools.partial(jax.jit, static_argnums=1)
    def run(value, how="clip_always"):
        noise = jnp.full((4,), 2.0)
        ratio = jnp.exp(log_prob(params, noise) - log_prob(START, noise))
        return ratio, *jax.value_and_grad(objective)(params, value, noise, how)

    for value in (0.1, -0.1):
        ratio, loss, grads = run(value)
        np.testing.assert_allclose(ratio.item(), 1.3347580, rtol=1e-6)
        np.testing.assert_allclose(loss, -1.2 * 10 * value, rtol=1e-6)
        for leaf in grads:
            np.testing.assert_array_equal(leaf, 0.0)
    _, loss, grads = run(-0.1, "clip")
    np.testing.assert_allclose(loss, 1.3347580, rtol=1e-6)
    assert np.all(grads.mean != 0)


def test_small_deviations_are_raised():
    """Check 5 of the card of FIND."""
    params = NoisePrior(jnp.zeros((1, 2)), jnp.array([[0.5, 1.0]]))
    updates = NoisePrior(jnp.ones((1, 2)), jnp.array([[0.00001 - 0.5, 0.0]]))
    link = noise_prior.keep_deviations()
    kept, _ = link.update(updates, link.init(params), params)
    after = optax.apply_updates(params, kept)
    np.testing.assert_allclose(after.std, [[1e-4, 1.0]], rtol=1e-2)
    np.testing.assert_array_equal(after.mean, 1.0)
    small = NoisePrior(jnp.zeros((1, 4)), jnp.full((1, 4), -3.0))
    floor = NoisePrior(jnp.zeros((1, 4)), jnp.full((1, 4), 1e-4))
    np.testing.assert_array_equal(log_prob(small), log_prob(floor))


def make_step(weight):
    loss = policy_objective(POLICY, objective="clip_always", old="recomputed")
    penalty = lambda params, signal: noise_prior.drift_penalty(params)
    loss = penalized(loss, penalty, 0.01, "noise/drift")
    optimizer = optax.chain(optax.adamw(1e-2, weight_decay=0.0), noise_prior.keep_deviations())
    return make_update_step(loss, advantage.direct(1.0), optimizer), weight


def run(weight, steps):
    step, weight = make_step(weight)

    def iteration(state, _):
        trajectories = POLICY.sample(state.params, sample_key(state), PROMPT, 8)
        rewards = weight * jnp.sum(trajectories.actions, axis=2)
        old = POLICY.log_prob(START, trajectories).log_probs
        signal = make_signal(rewards, trajectories=trajectories, old_log_probs=old)
        return step.update(state, signal)[0], None

    state = step.init(jax.random.key(0), POLICY.init(jax.random.key(1)))
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
        return jax.jit(lambda s: jax.lax.scan(iteration, s, length=steps)[0])(state).params


def test_without_reward_nothing_moves():
    """Check 6 of the card of FIND."""
    params = run(0.0, 20)
    np.testing.assert_array_equal(params.mean, 0.0)
    np.testing.assert_array_equal(params.std, 1.0)


def test_the_mean_moves_to_the_reward():
    assert np.all(run(1.0, 60).mean > 0.1)


def test_sampling(key):
    """Each prompt has its own distribution; the sampler sees noise, key and condition."""
    policy = noise_prior.noise_prior_policy(
        3, (2,), lambda key, noise, condition: 2.0 * noise + condition[:, None]
    )
    params = NoisePrior(
        jnp.array([[0.0, 0.0], [5.0, 5.0], [-5.0, 5.0]]), jnp.full((3, 2), 0.1)
    )
    prompts = NoisePrompts(jnp.array([2, 1]), jnp.array([100.0, 0.0]))

    @jax.jit
    def run(key):
        found = policy.sample(params, key, prompts, 500)
        return found, policy.log_prob(params, found)

    found, scores = jax.device_get(run(key))
    noise = found.actions
    margin = 4 * 0.1 / 500**0.5
    np.testing.assert_allclose(np.mean(noise, axis=1), [[-5.0, 5.0], [5.0, 5.0]], atol=margin)
    expected = 2 * noise + np.array([100.0, 0.0])[:, None, None]
    np.testing.assert_allclose(found.outputs, expected, rtol=1e-6)
    np.testing.assert_allclose(scores.log_probs, found.log_probs, atol=1e-5)
    assert found.log_probs.shape == (2, 500, 1)


def test_bad_inputs():
    with pytest.raises(ValueError, match="num_prompts = 0"):
        noise_prior.noise_prior_policy(0, (2,))
    with pytest.raises(ValueError, match="reduction = 'max'"):
        noise_prior.noise_prior_policy(1, (2,), reduction="max")
    with pytest.raises(ValueError, match="smallest = 0"):
        noise_prior.keep_deviations(0.0)
    link = noise_prior.keep_deviations()
    with pytest.raises(ValueError, match="params is None"):
        link.update(START, link.init(START))
