"""FIND as a whole: noise, learned baseline, clipped ratio to the start (arXiv 2407.19453)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxreward.losses.policy import policy_objective
from jaxreward.losses.regularization import penalized
from jaxreward.policies import noise_prior
from jaxreward.policies.noise_prior import NoisePrior, NoisePrompts
from jaxreward.training.step import make_update_step, sample_key
from jaxreward.transforms.advantage import direct
from jaxreward.transforms.learned_baseline import learned_baseline
from jaxreward.types import make_signal

SIZE = 4
POLICY = noise_prior.noise_prior_policy(1, (SIZE,))
PROMPT = NoisePrompts(jnp.zeros((1,), jnp.int32), None)
START = POLICY.init(jax.random.key(0))


def make_step(transform, optimizer, drift=0.01, old="recomputed"):
    loss = policy_objective(POLICY, objective="clip_always", old=old)
    penalty = lambda params, signal: noise_prior.drift_penalty(params)
    optimizer = optax.chain(optimizer, noise_prior.keep_deviations())
    return make_update_step(penalized(loss, penalty, drift, "noise/drift"), transform, optimizer)


def features(params):
    return jnp.concatenate([params.mean, params.std], axis=1)


def signal_of(state, reward, batch=1):
    trajectories = POLICY.sample(state.params, sample_key(state), PROMPT, batch)
    return make_signal(
        reward(trajectories.actions),
        trajectories=trajectories,
        old_log_probs=POLICY.log_prob(START, trajectories).log_probs,
        baseline_features=features(state.params),
    )


def run(step, reward, steps, start=START):
    def iteration(state, _):
        state, metrics = step.update(state, signal_of(state, reward))
        return state, metrics["policy/clip_fraction"]

    whole = lambda key: jax.lax.scan(iteration, step.init(key, start), length=steps)
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
        return jax.jit(whole)(jax.random.key(0))


def many(step, reward, steps, seeds):
    """`run` for several seeds, compiled once."""

    def iteration(state, _):
        return step.update(state, signal_of(state, reward))[0], None

    whole = jax.jit(lambda key: jax.lax.scan(iteration, step.init(key, START), length=steps)[0])
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
        return [whole(jax.random.key(seed)) for seed in range(seeds)]


def test_a_constant_reward_does_not_drift():
    """Check 6 of the card: a converged baseline leaves no advantage, so nothing moves."""
    constant = lambda noise: jnp.full(noise.shape[:2], 0.7)
    step = make_step(learned_baseline(2 * SIZE, widths=(16,), learning_rate=1e-2), optax.sgd(0.1))

    @jax.jit
    def kept_after(key):
        credited = lambda state, _: (step.credit(state, signal_of(state, constant))[0], None)
        updated = lambda state, _: (step.update(state, signal_of(state, constant))[0], None)
        state, _ = jax.lax.scan(credited, step.init(key, START), length=400)
        return jax.lax.scan(updated, state, length=50)[0].params

    kept = kept_after(jax.random.key(0))
    bare, _ = run(make_step(direct(1.0), optax.sgd(0.1)), constant, 50)
    assert np.max(np.abs(kept.mean)) < 1e-3 and np.max(np.abs(kept.std - 1)) < 1e-3
    assert np.max(np.abs(bare.params.mean)) > 0.02


def test_an_offset_of_the_reward_costs_less_with_a_baseline():
    """At equal samples the mean moves further along the reward."""
    direction = np.full((SIZE,), SIZE**-0.5, np.float32)
    reward = lambda noise: 3.0 + noise @ direction

    def shift(transform):
        step = make_step(transform, optax.adam(1e-2))
        ends = [np.asarray(end.params.mean)[0] for end in many(step, reward, 150, seeds=4)]
        return np.mean([end @ direction for end in ends])

    with_baseline = shift(learned_baseline(2 * SIZE, widths=(16,), learning_rate=1e-2, scale=0.1))
    assert with_baseline > shift(direct(0.1)) + 0.1


def test_the_ratio_to_the_start_bounds_the_drift():
    """Once most ratios are clipped there is no policy gradient; to the behaviour none ever is."""
    far = NoisePrior(jnp.full((1, SIZE), 3.0), jnp.ones((1, SIZE)))
    reward = lambda noise: jnp.sum(noise, axis=2)
    state, clipped = run(make_step(direct(0.1), optax.sgd(0.1), drift=0.0), reward, 20, far)
    np.testing.assert_array_equal(clipped, 1.0)
    np.testing.assert_array_equal(state.params.mean, far.mean)
    step = make_step(direct(0.1), optax.sgd(0.1), drift=0.0, old="behaviour")
    state, clipped = run(step, reward, 20, far)
    np.testing.assert_array_equal(clipped, 0.0)
    assert np.all(state.params.mean != far.mean)


def test_outside_the_clip_the_regulariser_pulls_back():
    far = NoisePrior(jnp.full((1, SIZE), 3.0), jnp.full((1, SIZE), 1.5))
    reward = lambda noise: jnp.sum(noise, axis=2)
    state, _ = run(make_step(direct(0.1), optax.sgd(0.1), drift=1.0), reward, 5, far)
    assert np.all(state.params.mean < 2.9) and np.all(state.params.std < 1.5)


def test_reused_samples_keep_their_own_reward_and_score():
    """A sample of an earlier policy: its ratio is to the policy that drew it."""
    step = make_step(direct(1.0), optax.sgd(0.1), drift=0.0, old="behaviour")

    @jax.jit
    def run(key):
        state = step.init(key, START)
        signal = signal_of(state, lambda noise: noise[:, :, 0], batch=8)
        moved = step.update(state, signal)[0]
        now = POLICY.log_prob(moved.params, signal.trajectories).log_probs
        before = signal.trajectories.log_probs
        return step.update(moved, signal)[1]["policy/ratio_mean"], jnp.mean(jnp.exp(now - before))

    found, expected = run(jax.random.key(0))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(float(expected) - 1) > 1e-5
