"""Values, optimal policies and regret of finite MDPs, against enumeration and linear programs."""

import functools
import itertools

import jax
import numpy as np
import pytest
from scipy.optimize import linprog

from jaxreward.evaluation import finite_mdp
from jaxreward.evaluation.finite_mdp import FiniteMDP
from jaxreward.tasks import random_mdps

WORST = jax.jit(finite_mdp.worst_case_regret)
OPTIMAL = jax.jit(finite_mdp.optimal_policy_regret)
EXTREME = jax.jit(finite_mdp.extreme_policies)
BEST = jax.jit(finite_mdp.optimal_policy)
RETURN = jax.jit(finite_mdp.policy_return)
SWITCH = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], np.float32)  # stay, switch


@functools.partial(jax.jit, static_argnums=1)
def drawn(seed, discount=0.9):
    """An MDP of 5 states and 3 actions, and two rewards."""
    keys = jax.random.split(jax.random.key(seed), 3)
    mdp = random_mdps.random_mdp(keys[0], 5, 3, discount)
    return mdp, *(jax.random.normal(k, mdp.transitions.shape) for k in keys[1:])


def returns(mdp, reward):
    """J of every deterministic policy, in numpy."""
    transitions, reward = np.asarray(mdp.transitions, float), np.asarray(reward, float)
    one_step = (transitions * reward).sum(-1)
    states, actions = one_step.shape
    index = np.arange(states)
    return np.array([
        mdp.start @ np.linalg.solve(
            np.eye(states) - mdp.discount * transitions[index, choice], one_step[index, choice])
        for choice in map(list, itertools.product(range(actions), repeat=states))
    ])


def worst_case_by_program(mdp, first, second):
    """The largest loss over pairs of occupancies, as a linear program."""
    transitions = np.asarray(mdp.transitions, float)
    states, actions, _ = transitions.shape
    flows = np.repeat(np.eye(states), actions, axis=0).T
    flows = flows - mdp.discount * transitions.reshape(states * actions, states).T
    gain = [(transitions * np.asarray(r, float)).sum(-1).ravel() for r in (first, second)]
    zero = np.zeros_like(flows)
    found = linprog(
        np.concatenate([-gain[0], gain[0]]),
        A_ub=np.concatenate([gain[1], -gain[1]])[None], b_ub=[0.0],
        A_eq=np.block([[flows, zero], [zero, flows]]), b_eq=np.tile(mdp.start, 2),
    )
    return -found.fun


def test_values_solve_their_equation():
    mdp, reward, _ = drawn(0)

    @jax.jit
    def run(mdp, reward):
        policy = jax.nn.softmax(jax.random.normal(jax.random.key(5), (5, 3)), axis=-1)
        values = finite_mdp.state_values(mdp, reward, policy)
        expected = finite_mdp.expected_reward(mdp, reward) + 0.9 * mdp.transitions @ values
        return policy, values, expected, finite_mdp.action_advantages(mdp, reward, policy)

    policy, values, expected, advantages = jax.device_get(run(mdp, reward))
    np.testing.assert_allclose(values, (policy * expected).sum(-1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(advantages, expected - values[:, None], atol=2e-3)
    np.testing.assert_allclose((policy * advantages).sum(-1), 0.0, atol=1e-3)


def test_a_large_constant_costs_no_precision():
    mdp, reward, _ = drawn(1, 0.99)
    reward = np.round(reward)  # so that adding the constant is exact
    advantages = jax.jit(
        lambda reward: finite_mdp.action_advantages(mdp, reward, finite_mdp.uniform_policy(mdp))
    )
    np.testing.assert_allclose(advantages(reward + 1024), advantages(reward), atol=2e-3)


@pytest.mark.parametrize("seed", range(4))
def test_optimal_policies_against_all_deterministic_ones(seed):
    mdp, reward, _ = drawn(seed)
    every = returns(mdp, reward)
    best, worst = (RETURN(mdp, reward, policy) for policy in EXTREME(mdp, reward))
    scale = np.ptp(every) + 1e-6
    assert abs(best - every.max()) < 1e-4 * scale + 1e-4
    assert abs(worst - every.min()) < 1e-4 * scale + 1e-4


@pytest.mark.parametrize("seed", range(6))
def test_worst_case_regret_is_that_of_the_linear_program(seed):
    mdp, first, second = drawn(seed)
    every = returns(mdp, first)
    expected = worst_case_by_program(mdp, first, second) / np.ptp(every)
    found = WORST(mdp, first, second)
    assert abs(found - expected) < 2e-3
    assert 0.01 < expected < 1.01  # the check is about something


def test_regret_of_equal_opposite_and_trivial_rewards():
    mdp, reward, _ = drawn(3)
    reward = np.asarray(reward)
    constant = np.ones_like(reward)
    for regret in (OPTIMAL, WORST):
        assert regret(mdp, reward, 3 * reward) < 1e-4
        assert regret(mdp, reward, -reward) == pytest.approx(1.0, abs=1e-4)
    assert WORST(mdp, reward, constant) == pytest.approx(1.0, abs=1e-4)


def test_regret_of_optimal_policies_by_hand():
    """Always switching earns 1 in one of two steps; always staying earns nothing."""
    mdp = finite_mdp.make_mdp(SWITCH, 0.5)
    first, second = np.zeros((2, 2, 2, 2), np.float32)
    first[0, 1, 1], second[0, 0, 0] = 1, 1
    best = 0.5 * (1 + 0.5 * 0) / (1 - 0.25) + 0.5 * 0.5 / (1 - 0.25)
    assert RETURN(mdp, first, BEST(mdp, first)) == pytest.approx(best, rel=1e-5)
    # Optimal for the second: stay in 0, from 1 switch to 0; under the first that earns nothing.
    # Optimal for the first: always switch; under the second that earns nothing.
    assert OPTIMAL(mdp, first, second) == pytest.approx(1.0)


def test_ends_after_many_ties():
    mdp = finite_mdp.make_mdp(np.full((6, 4, 6), 1 / 6), 0.99)
    assert np.isfinite(BEST(mdp, np.full((6, 4, 6), 0.1, np.float32))).all()
    assert jax.jit(finite_mdp.return_range)(mdp, np.zeros((6, 4, 6), np.float32)) == 0


def test_vmap_over_mdps():
    many = [drawn(seed) for seed in range(3)]
    mdps, first, second = jax.tree.map(lambda *leaves: np.stack(leaves), *many)
    stacked = mdps._replace(discount=0.9)
    axes = (FiniteMDP(0, 0, None), 0, 0)
    together = jax.jit(jax.vmap(finite_mdp.worst_case_regret, axes))(stacked, first, second)
    alone = [WORST(*row) for row in many]
    np.testing.assert_allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(transitions=np.ones((2, 2))), "transitions have shape"),
        (dict(transitions=np.ones((2, 1, 2))), "transitions have a row"),
        (dict(discount=1.0), "discount = 1.0; allowed is"),
        (dict(start=np.ones(3) / 3), "start has shape"),
        (dict(start=np.array([2.0, -1.0])), "start have a row"),
    ],
)
def test_bad_mdps(change, message):
    given = dict(transitions=SWITCH, discount=0.9)
    with pytest.raises(ValueError, match=message):
        finite_mdp.make_mdp(**{**given, **change})
