"""Denoising samplers as policies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreward import schedules
from jaxreward.losses.policy import policy_loss, policy_objective
from jaxreward.networks import diffusion
from jaxreward.policies import consistency, flow
from jaxreward.policies import denoising_chain as chains
from jaxreward.schedules import CLEAN, FLOW
from jaxreward.training.step import make_update_step, sample_key
from jaxreward.transforms import advantage
from jaxreward.transforms.prompt_statistics import prompt_statistics
from jaxreward.types import make_signal

SHAPE, GROUP = (2, 3), 4
TABLE = schedules.from_alpha_bar(schedules.scaled_linear_alpha_bar())
STRAIGHT = schedules.flow()
PROMPTS = {"shift": jnp.array([0.5, -0.5])}


def network(params, x, time, condition):
    moved = params["scale"] * x + condition["shift"][:, None, None] * time[:, None, None]
    return jnp.tanh(moved + params["bias"][None])


def init(key):
    return {"scale": jnp.float32(0.3), "bias": 0.1 * jax.random.normal(key, SHAPE)}


def all_chains():
    function = consistency.consistency_function(network, TABLE, CLEAN)
    denoise = flow.make_denoiser(network, STRAIGHT, FLOW)
    times = flow.grid(STRAIGHT, 4, 0.1)[1:]
    return {
        "consistency": consistency.consistency_chain(function, TABLE, consistency.grid(3)),
        "released": consistency.consistency_chain(
            function, TABLE, consistency.grid(3), last_action=True
        ),
        "ddim": chains.ddim_chain(denoise, STRAIGHT, times),
        "sde": chains.sde_chain(denoise, STRAIGHT, times, lambda t: 0.7 * jnp.sqrt(t)),
    }


CHAINS = all_chains()


COUNT = 800


@functools.cache
def sampled(name):
    """A policy's samples, its scores of them, of the last prompt alone, and by its parameter."""
    policy = chains.denoising_policy(CHAINS[name], init, SHAPE)

    @jax.jit
    def run(key):
        params = policy.init(key)
        trajectories = policy.sample(params, key, PROMPTS, COUNT)

        def per_sample(scale):
            found = policy.log_prob({**params, "scale": scale}, trajectories)
            return jnp.sum(found.log_probs, axis=2).reshape(-1), found

        slopes, scores = jax.jacfwd(per_sample, has_aux=True)(params["scale"])
        alone = policy.log_prob(params, jax.tree.map(lambda leaf: leaf[1:], trajectories))
        return trajectories, scores, alone, slopes

    return jax.device_get(run(jax.random.key(0)))


@pytest.mark.parametrize("name", CHAINS)
def test_log_probs_are_those_of_sampling(name):
    trajectories, scores, alone, _ = sampled(name)
    count = trajectories.actions.shape[2] - 1
    assert trajectories.log_probs.shape == (2, COUNT, count)
    assert trajectories.outputs.shape == (2, COUNT, *SHAPE) and trajectories.mask.all()
    np.testing.assert_allclose(scores.log_probs, trajectories.log_probs, atol=1e-5)
    np.testing.assert_allclose(alone.log_probs, scores.log_probs[1:], atol=1e-5)


@pytest.mark.parametrize("name", CHAINS)
def test_entropy_is_minus_the_mean_log_probability(name):
    _, scores, _, _ = sampled(name)
    off = scores.log_probs + scores.entropies
    # the mean of 6 squared normals over 6 has variance 2 / 6, halved: 1 / 12
    margin = 4 * (1 / 12 / 1600) ** 0.5
    np.testing.assert_allclose(np.mean(off, axis=(0, 1)), 0.0, atol=margin)


@pytest.mark.parametrize("name", CHAINS)
def test_the_score_has_mean_zero(name):
    """The gradient of the log-probability averages to 0 over the policy's own samples."""
    *_, slopes = sampled(name)
    assert abs(np.mean(slopes)) < 4 * np.std(slopes) / 1600**0.5
    assert np.std(slopes) > 1e-3


def test_sum_and_mean(key):
    params = init(key)
    make = lambda reduction: chains.denoising_policy(
        CHAINS["sde"], init, SHAPE, reduction=reduction
    )
    sample = lambda key: [make(how).sample(params, key, PROMPTS, GROUP) for how in chains.REDUCTIONS]
    mean, total = jax.jit(sample)(key)
    np.testing.assert_allclose(total.log_probs, 6 * mean.log_probs, rtol=1e-5)
    np.testing.assert_array_equal(total.outputs, mean.outputs)


def test_released_last_action_changes_no_picture(key):
    @jax.jit
    def run(key):
        params = init(key)
        made = [
            chains.denoising_policy(CHAINS[name], init, SHAPE).sample(params, key, PROMPTS, GROUP)
            for name in ("consistency", "released")
        ]
        # another number of actions starts from other noise; from the same noise all is the same
        states, condition = made[1].actions.reshape((8, 4) + SHAPE), chains.repeat(PROMPTS, GROUP)
        return made, CHAINS["consistency"].finish(params, states[:, 2], condition)

    (own, released), shown = run(key)
    assert own.log_probs.shape[2] + 1 == released.log_probs.shape[2] == 3
    np.testing.assert_allclose(released.outputs.reshape((8,) + SHAPE), shown, atol=1e-6)


def test_log_density():
    """Check 2 of the card of RLCM."""
    after, std = jnp.array([[0.6, -0.1, 0.9]]), jnp.float32(0.6)
    clean = jnp.array([[0.5, -0.5, 1.0]])
    density = lambda f, how: chains.log_density(flow.Gaussian(0.8 * f, std), after, how)
    old, new = (density(f, "mean") for f in (clean, clean + 0.01))
    np.testing.assert_allclose([old[0], new[0]], [-0.4729277, -0.4685722], atol=2e-6)
    np.testing.assert_allclose(jnp.exp(new - old), 1.0043651, rtol=1e-5)
    ratio = jnp.exp(density(clean + 0.01, "sum") - density(clean, "sum"))
    np.testing.assert_allclose(ratio, 1.0131524, rtol=1e-5)


@pytest.mark.parametrize("advantage_, loss, slope", [(2.0, -2.0002, 0.0), (-2.0, 2.0087301, 1.0)])
def test_the_clip_of_rlcm(advantage_, loss, slope):
    """Check 3 of the card of RLCM."""
    zero, mask = jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1), bool)
    value = lambda x: policy_loss(
        x, zero, jnp.full((1, 1), advantage_), mask, clip_low=1e-4, clip_high=1e-4
    )[0]
    log_ratio = np.full((1, 1, 1), np.log(1.0043651), np.float32)
    found, slope_found = jax.jit(jax.value_and_grad(value))(log_ratio)
    np.testing.assert_allclose(found, loss, rtol=2e-6)
    np.testing.assert_allclose(slope_found.item(), 2.0087301 * slope, rtol=1e-5)


@pytest.mark.parametrize("name", ["consistency", "ddim", "sde"])
def test_learns_by_the_update_step_of_language_models(name):
    """Brighter pictures are rewarded, and brighter they become."""
    policy = chains.denoising_policy(CHAINS[name], init, SHAPE)
    loss = policy_objective(policy, clip_low=0.05, clip_high=0.05)
    step = make_update_step(loss, advantage.grpo(), optax.adam(0.02))

    def iteration(state, _):
        trajectories = policy.sample(state.params, sample_key(state), PROMPTS, 32)
        rewards = jnp.mean(trajectories.outputs, axis=(2, 3))
        return step.update(state, make_signal(rewards, trajectories=trajectories))[0], rewards

    state = step.init(jax.random.key(0), policy.init(jax.random.key(1)))
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
        state, rewards = jax.jit(lambda s: jax.lax.scan(iteration, s, length=30))(state)
    assert state.skipped == 0
    first, last = jnp.mean(rewards[:5]), jnp.mean(rewards[-5:])
    error = (jnp.var(rewards[:5]) / rewards[:5].size) ** 0.5
    assert last > first + 8 * error


@jax.jit
def first_minibatch(rewards):
    """Gradients at the policy that sampled, of both losses and by hand, and the advantages."""
    policy = chains.denoising_policy(CHAINS["consistency"], init, SHAPE)
    params = policy.init(jax.random.key(1))
    trajectories = policy.sample(params, jax.random.key(2), PROMPTS, GROUP)
    signal = make_signal(rewards, prompt_id=jnp.arange(2), trajectories=trajectories)
    normalised = prompt_statistics(2, buffer=4, min_count=4)
    signal, _ = normalised.update(jax.random.key(3), signal, normalised.init())

    def loss(objective):
        made = policy_objective(policy, objective=objective, clip_low=1e-4, clip_high=1e-4)
        return lambda params: made(params, signal)[0]

    def by_hand(params):
        scores = policy.log_prob(params, trajectories)
        return -jnp.mean(signal.advantages[:, :, None] * scores.log_probs)

    losses = (loss("clip"), loss("reinforce"), by_hand)
    return [jax.grad(each)(params) for each in losses], signal.advantages


def test_on_the_first_minibatch_ppo_is_reinforce():
    """Check 7 of the card of RLCM: there the ratio is 1, so normalised rewards weigh the scores."""
    rewards = jnp.array([[1.0, 3.0, 5.0, 2.0], [0.0, 4.0, 1.0, 1.0]])
    (clipped, plain, by_hand), _ = first_minibatch(rewards)
    for name in ("scale", "bias"):
        assert np.any(clipped[name] != 0)
        np.testing.assert_allclose(clipped[name], plain[name], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(clipped[name], by_hand[name], rtol=1e-4, atol=1e-6)


def test_equal_rewards_in_a_full_buffer_update_nothing():
    """Check 7 of the card of RLCM."""
    (clipped, *_), advantages = first_minibatch(jnp.full((2, GROUP), 0.3))
    np.testing.assert_array_equal(advantages, 0.0)
    for leaf in jax.tree.leaves(clipped):
        np.testing.assert_array_equal(leaf, 0.0)


def test_learning_rate_of_the_card():
    """Check 6 of the card of RLCM: after 100 of 300 linear steps 2/3 is left."""
    np.testing.assert_allclose(optax.linear_schedule(1.0, 0.0, 300)(100), 2 / 3, rtol=1e-6)


def test_sharing_conditions_changes_nothing(key):
    """Samples, scores and gradients, of a network that can encode them once for a group."""
    config = diffusion.DiffusionConfig(
        height=2, width=2, features=8, layers=1, heads=1, patch=1, classes=3
    )
    network, shape = diffusion.make_network(config), (2, 2, 1)
    function = consistency.consistency_function(network.apply, TABLE, CLEAN)
    chain = consistency.consistency_chain(function, TABLE, consistency.grid(3))
    prompts = diffusion.Condition(labels=jnp.array([0, 2, 1]))

    def run(params, shared):
        policy = chains.denoising_policy(chain, network.init, shape, shared=shared)
        trajectories = policy.sample(params, key, prompts, GROUP)
        score = lambda params: policy.log_prob(params, trajectories).log_probs
        total = lambda params: (jnp.sum(score(params)), score(params))
        return trajectories, *jax.grad(total, has_aux=True)(params)

    rng = np.random.default_rng(0)
    moved = lambda p: np.asarray(p) + 0.3 * rng.standard_normal(p.shape, np.float32)
    params = jax.tree.map(moved, jax.jit(network.init)(key))
    both = jax.jit(lambda params: [run(params, shared) for shared in (False, True)])(params)
    for trajectories, _, scores in both:
        np.testing.assert_allclose(scores, trajectories.log_probs, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), *both)
    shown = both[0][0].outputs
    assert shown.shape == (3, GROUP, *shape) and len(np.unique(shown)) == shown.size


def test_bad_inputs():
    with pytest.raises(ValueError, match="reduction = 'max'"):
        chains.denoising_policy(CHAINS["ddim"], init, SHAPE, reduction="max")
    with pytest.raises(ValueError, match="1 times leave no action"):
        chains.ddim_chain(lambda *_: None, TABLE, np.array([999.0]))
    for eta in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"eta = {eta}; allowed is"):
            chains.ddim_chain(lambda *_: None, TABLE, np.array([999.0, 99.0]), eta)
    for times in ([1.0, 0.5, 0.0], [0.5, 1.0]):  # no noise, or the wrong way
        with pytest.raises(ValueError, match="allowed are descending ones at which sigma > 0"):
            chains.ddim_chain(lambda *_: None, STRAIGHT, np.array(times))
        with pytest.raises(ValueError, match="allowed are descending ones at which sigma > 0"):
            chains.sde_chain(lambda *_: None, STRAIGHT, np.array(times), jnp.sqrt)
