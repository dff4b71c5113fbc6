"""FIND's released and replay arms against the card's equations, step by step (2407.19453)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import find as find_config
from experiments.generator_studies import find
from jaxreward.policies import noise_prior
from jaxreward.rewards.opaque import on_host

SIZE = 3
POLICY = noise_prior.noise_prior_policy(1, (SIZE,))
TASK = find.Task(
    None, 1.0, None, lambda noise, prompt: jnp.sum(noise, axis=-1) - prompt,
    lambda noise, prompt: noise[..., 0],
)  # fmt: skip


def arm_of(name):
    """The arm of the config, without the learned baseline, so that the advantage is the reward."""
    arm = find_config.get_config().study.arms[name].copy_and_resolve_references()
    arm.baseline_rate = 0.0
    return arm


def pushed(kept, rewards):
    """A buffer of so many rollouts that has seen these rewards, one sample each."""

    @jax.jit
    def push():
        params = POLICY.init(jax.random.key(0))
        prompts = find.NoisePrompts(jnp.zeros((1,), jnp.int32), None)
        drawn = [
            POLICY.sample(params, jax.random.key(i), prompts, 1) for i in range(len(rewards))
        ]
        past = find.forget(drawn[0], kept)
        for reward, own in zip(rewards, drawn):
            past = find.remember(past, find.Rollouts(jnp.full((1, 1), reward), own))
        return past, drawn

    return push()


def test_the_buffer_is_first_in_first_out():
    past, drawn = pushed(3, [0.1, 0.2])
    np.testing.assert_allclose(past.rewards, [[0.0, 0.1, 0.2]])
    np.testing.assert_array_equal(past.trajectories.mask[0, :, 0], [False, True, True])
    past, drawn = pushed(3, [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(past.rewards, [[0.2, 0.3, 0.4]])
    for place, own in enumerate(drawn[1:]):
        np.testing.assert_array_equal(past.trajectories.actions[0, place], own.actions[0, 0])
        np.testing.assert_array_equal(past.trajectories.log_probs[0, place], own.log_probs[0, 0])


@pytest.mark.parametrize("rewards, oldest", [([0.1, 0.2], 0.1), ([0.1, 0.2, 0.3, 0.4], 0.2)])
def test_released_pairing_takes_the_oldest_reward(rewards, oldest):
    past, drawn = pushed(3, rewards)
    paired = find.oldest_rewards(past, drawn[-1])
    np.testing.assert_allclose(paired.rewards, [[oldest]])
    np.testing.assert_array_equal(paired.trajectories.actions, drawn[-1].actions)


@jax.jit
def log_prob(params, noise):
    """The mean over coordinates, as the card has it."""
    mean, std = params
    z = (noise - mean) / std
    return jnp.mean(-0.5 * z**2 - jnp.log(std) - 0.5 * jnp.log(2 * jnp.pi))


def loss(params, noises, rewards, old):
    """`-w_r mean(A clip(rho, 1 - eps, 1 + eps)) + w_k mean(mu^2 + (sigma - 1)^2)`."""
    ratio = jnp.stack([jnp.exp(log_prob(params, z) - o) for z, o in zip(noises, old)])
    gained = jnp.mean(jnp.asarray(rewards) * jnp.clip(ratio, 0.8, 1.2))
    return -10.0 * gained + 0.01 * jnp.mean(params[0] ** 2 + (params[1] - 1) ** 2)


def used(name, noises, rewards, old_start, recorded):
    """What an arm learns from at its latest iteration: noises, rewards, old scores."""
    if name == "find":
        return noises[-1:], rewards[-1:], old_start[-1:]
    if name == "find_as_released":
        return noises[-1:], rewards[:1], old_start[-1:]  # the buffer holds more than there are
    return noises[-4:], rewards[-4:], recorded[-4:]


@pytest.mark.parametrize("name", ["find", "find_as_released", "find_replay"])
def test_arms_take_the_steps_of_the_card(name):
    """Six iterations by hand: own reward; the oldest of all, as released; the last four replayed."""
    settings = find_config.get_config("smoke").study
    settings.reward_noise = 0.0
    arm, prompt = arm_of(name), jnp.int32(1)
    start, iteration = find.make_iteration(POLICY, TASK, arm, settings, prompt)
    first = (jnp.zeros(SIZE), jnp.ones(SIZE))
    params, optimizer = first, optax.adam(arm.learning_rate)
    state, noises, rewards, old_start, recorded = optimizer.init(params), [], [], [], []

    @jax.jit
    def by_hand(params, state, *seen):
        change, state = optimizer.update(jax.grad(loss)(params, *seen), state)
        return optax.apply_updates(params, change), state

    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
        carry = jax.jit(start)(jax.random.key(5))
        for _ in range(6):
            carry, _ = jax.jit(iteration)(carry)
            noise = np.asarray(carry[1].trajectories.actions)[0, -1]
            noises.append(noise)
            rewards.append(noise.sum() - np.float32(1.0))
            old_start.append(log_prob(first, noise))
            recorded.append(log_prob(params, noise))
            seen = used(name, noises, rewards, old_start, recorded)
            params, state = jax.tree.map(np.asarray, by_hand(params, state, *seen))
            learned = jax.tree.map(np.asarray, carry[0].params)
            np.testing.assert_allclose(learned.mean[0], params[0], atol=2e-5)
            np.testing.assert_allclose(learned.std[0], params[1], atol=2e-5)
    assert np.max(np.abs(params[0])) > 0.01


def test_a_black_box_that_fails_costs_its_own_samples():
    """The step is that of the others alone, the curve their mean, and what failed is counted."""

    def score(noise):
        if noise[0] < 0:
            raise RuntimeError("no picture")
        return noise.sum()

    reward = on_host(score, axes=(1,))
    task = TASK._replace(reward=lambda noise, prompt: reward.score(noise) - prompt)
    settings, arm = find_config.get_config("smoke").study, arm_of("find")
    settings.reward_noise, arm.batch = 0.0, 6
    start, iteration = find.make_iteration(POLICY, task, arm, settings, jnp.int32(1))
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
        (state, past), (curve, _) = jax.jit(lambda key: iteration(start(key)))(jax.random.key(5))
        noises = [z for z in np.asarray(past.trajectories.actions)[0] if z[0] >= 0]
        assert 0 < len(noises) < 6 and reward.missing()["raised"] == 6 - len(noises)
        rewards = [z.sum() - np.float32(1.0) for z in noises]
        first = (jnp.zeros(SIZE), jnp.ones(SIZE))
        old, optimizer = [log_prob(first, z) for z in noises], optax.adam(arm.learning_rate)
        grads = jax.jit(jax.grad(loss))(first, noises, rewards, old)
        change, _ = jax.jit(optimizer.update)(grads, jax.jit(optimizer.init)(first))
    np.testing.assert_allclose(curve, np.mean(rewards), rtol=1e-5)
    np.testing.assert_allclose(state.params.mean[0], change[0], atol=1e-6)
    np.testing.assert_allclose(state.params.std[0], 1.0 + change[1], atol=1e-6)
