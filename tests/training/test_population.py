"""Populations: every run equals the same run on its own, arms share randomness."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import processes
import pytest

from jaxreward.losses.policy import policy_objective
from jaxreward.policies import tabular
from jaxreward.training import population as populations
from jaxreward.training.step import make_update_step, sample_key
from jaxreward.transforms import advantage, base, noise, sources
from jaxreward.types import make_signal

POLICY = tabular.tabular_policy(5, 4)
IDS = jnp.asarray([[0, 1, 2], [2, 3, 4]], jnp.int32)  # [seeds, P]
CHAIN = base.chain(noise.class_conditional(sources.constant(0.1, 0.2)), advantage.rloo())


def _rewards(trajectories, ids):
    actions = trajectories.actions.reshape(trajectories.actions.shape[: ids.ndim + 1])
    return (actions == ids[..., None] % 4).astype(jnp.float32)


def _population(arms, rates, runs_at_a_time=0, mesh=None):
    hyper = {"learning_rate": jnp.asarray(rates, jnp.float32)}
    return populations.make_population(
        POLICY,
        arms,
        lambda h: policy_objective(POLICY),
        lambda h: optax.sgd(h["learning_rate"]),
        hyper,
        np.array([0, 1], np.int32),
        group_size=4,
        first_seed=7,
        runs_at_a_time=runs_at_a_time,
        mesh=mesh,
    )


def _run(population, steps=3):
    @jax.jit
    def iteration(state):
        trajectories = population.rollout(state, IDS)
        ids = population.per_seed(IDS)
        rewards = _rewards(trajectories, ids)
        mask = jnp.ones(rewards.shape, bool)
        return population.update(state, rewards, mask, trajectories, {"prompt_id": ids})

    start = jax.jit(lambda: population.init(jax.random.key(3), POLICY.init(jax.random.key(1))))
    state = start()
    for _ in range(steps):
        state, metrics = iteration(state)
    _run.compiled = iteration._cache_size()
    return state, metrics


ARMS, RATES = {"a": CHAIN, "b": advantage.grpo()}, [[0.5, 1.0], [0.25, 2.0]]


@functools.cache
def side_by_side():
    """Parameters of all runs."""
    state, _ = _run(_population(ARMS, RATES))
    return jax.device_get(state.runs.params)


@pytest.mark.parametrize("runs_at_a_time", [1, 2, 3])
def test_runs_in_turn_equal_runs_side_by_side(runs_at_a_time):
    in_turn, _ = _run(_population(ARMS, RATES, runs_at_a_time))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    jax.tree.map(close, in_turn.runs.params, side_by_side())


def test_runs_at_a_time_is_not_negative():
    with pytest.raises(ValueError, match="runs_at_a_time = -1"):
        _population({"a": CHAIN}, [[0.5, 1.0]], -1)


def test_each_run_equals_the_run_alone():
    together = side_by_side()
    for arm, chain in enumerate(ARMS.values()):
        run = jax.jit(functools.partial(_alone, chain))
        for member in range(2):
            alone = run(np.float32(RATES[arm][member]), 7 + member, np.asarray(IDS)[member])
            own = jax.tree.map(lambda leaf: leaf[2 * arm + member], together)
            for x, y in zip(jax.tree.leaves(alone), jax.tree.leaves(own)):
                np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)


def _alone(chain, rate, seed, ids, steps=3):
    """Parameters of one run."""
    update = make_update_step(policy_objective(POLICY), chain, optax.sgd(rate))

    def one(state, _):
        trajectories = POLICY.sample(state.params, sample_key(state), ids, 4)
        signal = make_signal(
            _rewards(trajectories, ids), prompt_id=ids, trajectories=trajectories
        )
        return update.update(state, signal)[0], None

    key = jax.random.fold_in(jax.random.key(3), seed)
    state = update.init(key, POLICY.init(jax.random.key(1)))
    return jax.lax.scan(one, state, length=steps)[0].params


def test_arms_share_their_random_numbers():
    state, metrics = _run(_population({"a": CHAIN, "b": CHAIN}, [[0.5, 0.5], [0.5, 0.5]]))
    for leaf in jax.tree.leaves(jax.device_get(state.runs.params)):
        np.testing.assert_array_equal(leaf[:2], leaf[2:])
        assert np.any(leaf[0] != leaf[1])
    assert set(metrics) == {"a", "b"}
    np.testing.assert_array_equal(metrics["a"]["train/loss"], metrics["b"]["train/loss"])


def test_dense_and_outcome_advantages_share_a_population():
    from jaxreward.transforms import credit

    dense = base.chain(advantage.rloo(), credit.broadcast())
    state, _ = _run(_population({"a": advantage.rloo(), "b": dense}, [[0.5, 0.5], [0.5, 0.5]]))
    for leaf in jax.tree.leaves(jax.device_get(state.runs.params)):
        np.testing.assert_allclose(leaf[:2], leaf[2:], rtol=1e-6, atol=1e-7)


def test_skipped_steps_are_counted_by_arm():
    population = _population({"a": CHAIN, "b": CHAIN}, [[0.5, 0.5], [np.nan, 0.5]])
    state, _ = _run(population)
    counts = populations.skipped_in_a_row(state, population.arms)
    assert int(counts["a"]) == 0
    assert int(counts["b"]) == 3


def test_runs_on_eight_devices_equal_runs_on_one():
    """In a process of its own, which sees eight CPU devices."""
    code = """
import jax, numpy as np
import sys; sys.path.insert(0, "tests/training")
import test_population as here
arms, rates = {"a": here.CHAIN, "b": here.advantage.grpo()}, [[0.5, 1.0], [0.25, 2.0]]
mesh = here.populations.run_mesh(4)
assert jax.device_count() == 8 and mesh.size == 4, (jax.device_count(), mesh)
split, _ = here._run(here._population(arms, rates, 0, mesh))
one, _ = here._run(here._population(arms, rates))
assert len(jax.tree.leaves(split.runs.params)[0].sharding.device_set) == 4
for a, b in zip(jax.tree.leaves(split.runs.params), jax.tree.leaves(one.runs.params)):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6, atol=1e-7)
print(here._run.compiled)
"""
    done = processes.python("-c", code, devices=8)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["1"]


def test_mesh_has_one_axis():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "runs"))
    with pytest.raises(ValueError, match="divides 2 runs"):
        _population({"a": CHAIN}, [[0.5, 1.0]], 0, mesh)


def test_several_updates_of_one_rollout_equal_a_loop():
    arms = {"noisy": CHAIN}
    hyper = {"learning_rate": jnp.full((1, 2), 0.5, jnp.float32)}

    def make(updates):
        return populations.make_population(
            POLICY, arms, lambda h: policy_objective(POLICY), lambda h: optax.sgd(h["learning_rate"]),
            hyper, np.array([0, 1], np.int32), group_size=4, updates=updates,
        )  # fmt: skip

    thrice = make(3)
    step = make_update_step(policy_objective(POLICY), CHAIN, optax.sgd(0.5))

    def in_a_loop(run, rewards, mask, trajectories, aux):
        run = run.__class__(**{**vars(run), "chain_state": CHAIN.init()})
        run, signal = step.credit(run, make_signal(rewards, mask, trajectories=trajectories, **aux))
        for _ in range(3):
            run, _ = step.learn(run, signal)
        return run.params

    @jax.jit
    def both():
        state = thrice.init(jax.random.key(3), POLICY.init(jax.random.key(1)))
        trajectories, ids = thrice.rollout(state, IDS), thrice.per_seed(IDS)
        rewards = _rewards(trajectories, ids)
        inputs = (rewards, jnp.ones(rewards.shape, bool), trajectories, {"prompt_id": ids})
        expected = jax.lax.map(lambda own: in_a_loop(*own), (state.runs, *inputs))
        return *thrice.update(state, *inputs), expected

    after, metrics, expected = both()
    np.testing.assert_array_equal(after.runs.step, [1, 1])
    assert np.abs(np.asarray(metrics["noisy"]["policy/ratio_max"]) - 1).max() > 1e-3
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    jax.tree.map(close, after.runs.params, expected)
    with pytest.raises(ValueError, match="updates = 0"):
        make(0)
