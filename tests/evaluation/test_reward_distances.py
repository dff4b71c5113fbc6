"""STARC, EPIC and DARD: values worked out by hand, invariances, bounds."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.evaluation import finite_mdp, reward_distances
from jaxreward.evaluation.finite_mdp import FiniteMDP
from jaxreward.evaluation.reward_distances import reward_distance, reward_metric
from jaxreward.tasks import random_mdps

STARC = ("VAL-2-2", "Minimal-2-2", "MinimalWeighted-weighted_2-weighted_2")
ALL = (*STARC, "EPIC-2-2", "DARD-2-2")


@pytest.fixture(name="toy")
def switch():
    """Two states, stay or switch; switching from 0 to 1 earns 1."""
    transitions = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]])
    return finite_mdp.make_mdp(transitions, 0.9), only(0, 1, 1)


def only(*transition):
    """The reward that is 1 on one transition."""
    reward = np.zeros((2, 2, 2), np.float32)
    reward[transition] = 1
    return jnp.asarray(reward)


def dense(seed, *leading):
    return jax.random.normal(jax.random.key(seed), (*leading, 8, 3, 8))


@jax.jit
def distances(mdp, first, second):
    """By every metric, so that one program serves all tests of a shape."""
    names = (*ALL, "VAL-1-inf", "VAL-weighted_1-1")
    return {name: reward_distance(mdp, first, second, reward_metric(name)) for name in names}


@jax.jit
def canonical_rewards(mdp, reward):
    return {name: function(mdp, reward) for name, function in reward_distances.CANONICAL.items()}


def distance(mdp, first, second, name):
    return float(distances(mdp, first, second)[name])


def test_value_adjusted_by_hand(toy):
    mdp, reward = toy
    values = jax.jit(
        lambda reward: finite_mdp.state_values(mdp, reward, finite_mdp.uniform_policy(mdp))
    )(reward)
    np.testing.assert_allclose(values, [2.75, 2.25], rtol=1e-5)
    canonical = canonical_rewards(mdp, reward)["VAL"]
    expected = np.array([[-0.275, 0.275], [-0.225, 0.225]])
    np.testing.assert_allclose(canonical, expected[:, :, None].repeat(2, 2), atol=1e-6)
    assert reward_distances.entrywise_norm(canonical, 2) == pytest.approx(0.710634, abs=1e-6)


def test_epic_and_dard_by_hand(toy):
    expected = [-0.1375, -0.3625, -0.1375, 0.6375, 0.1125, -0.1125, 0.1125, -0.1125]
    np.testing.assert_allclose(canonical_rewards(*toy)["EPIC"].ravel(), expected, atol=1e-6)
    expected = [-0.05, -0.5, -0.05, 0.5, 0, 0, 0, 0]
    np.testing.assert_allclose(canonical_rewards(*toy)["DARD"].ravel(), expected, atol=1e-6)


def test_minimal_by_hand(toy):
    canonical = canonical_rewards(*toy)["Minimal"]
    assert reward_distances.entrywise_norm(canonical, 2) == pytest.approx(0.501379, abs=1e-6)
    expected = [[-0.276243, 0.251381], [-0.223757, 0.248619]]
    np.testing.assert_allclose(canonical.sum(-1), expected, atol=1e-6)
    weighted = canonical_rewards(*toy)["MinimalWeighted"]
    np.testing.assert_allclose(weighted[:, :, 0], expected, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_equivalent_and_opposite_rewards(toy, name):
    mdp, reward = toy
    other = reward_distances.shape(2.5 * reward, jnp.array([3.0, -1.0]), 0.9)
    assert distance(mdp, reward, other, name) < 2e-6
    assert distance(mdp, reward, -reward, name) == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize(
    "name, expected",
    [("VAL-2-2", 0), ("Minimal-2-2", 0), ("EPIC-2-2", 1.754127), ("DARD-2-2", 1.842432)],
)
def test_impossible_transitions(toy, name, expected):
    mdp, reward = toy
    other = reward.at[0, 0, 1].set(5.0).at[1, 0, 0].set(-4.0)
    assert distance(mdp, reward, other, name) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    "name, expected",
    [("VAL-2-2", 0.199007), ("Minimal-2-2", 0.148250), ("EPIC-2-2", 1.266803),
     ("DARD-2-2", 1.414214)],
)
def test_the_other_switch(toy, name, expected):
    mdp, reward = toy
    other = only(1, 1, 0)
    assert distance(mdp, reward, other, name) == pytest.approx(expected, abs=2e-6)


def test_epic_is_one_minus_correlation(toy):
    mdp, reward = toy
    other = only(1, 1, 0)
    pair = [np.ravel(canonical_rewards(mdp, r)["EPIC"]) for r in (reward, other)]
    correlation = np.corrcoef(*pair)[0, 1]
    assert correlation == pytest.approx(0.197605, abs=1e-5)
    half = 0.5 * distance(mdp, reward, other, "EPIC-2-2")
    assert half == pytest.approx(math.sqrt((1 - correlation) / 2), abs=1e-5)


def test_impossible_transitions_may_be_anything_where_they_do_not_count(toy):
    mdp, reward = toy
    wild = reward.at[0, 0, 1].set(jnp.nan).at[1, 0, 0].set(jnp.inf)
    found, expected = canonical_rewards(mdp, wild), canonical_rewards(mdp, reward)
    for name in ("VAL", "Minimal", "MinimalWeighted"):
        np.testing.assert_array_equal(found[name], expected[name])


def test_trivial_rewards(toy):
    mdp, reward = toy
    trivial = reward_distances.shape(jnp.full((2, 2, 2), 0.3), jnp.array([3.1, -1.7]), 0.9)
    for name in STARC:
        assert distance(mdp, trivial, jnp.zeros((2, 2, 2)), name) == 0
        assert distance(mdp, reward, trivial, name) == pytest.approx(1.0, abs=1e-5)


def equivalents(seed):
    """An MDP, a reward and two equivalent ones."""
    return _equivalents(seed, jnp.float32)


@functools.partial(jax.jit, static_argnums=1)
def _equivalents(seed, dtype, states=8, actions=3):
    keys = jax.random.split(jax.random.key(seed), 5)
    mdp = random_mdps.random_mdp(keys[0], states, actions, 0.95, dtype=dtype)
    reward = random_mdps.random_reward(keys[1], mdp)
    potential = 5.0 * jax.random.normal(keys[2], (states,), dtype)
    change = 5.0 * jax.random.normal(keys[3], reward.shape, dtype)
    scale = jax.random.uniform(keys[4], (), dtype, 0.1, 10.0)
    shaped = reward_distances.shape(scale * reward, potential, 0.95)
    mdp = mdp._replace(discount=jnp.asarray(0.95, dtype))
    return mdp, reward, shaped, reward_distances.redistribute(mdp, shaped, change)


def test_invariances_in_double_precision():
    metrics = [reward_metric(name) for name in STARC]
    with jax.enable_x64(True):

        def far(seed):
            mdp, reward, *others = _equivalents(seed, jnp.float64)
            apart = lambda other: [reward_distance(mdp, reward, other, m) for m in metrics]
            return jnp.array([apart(other) for other in (*others, -reward)])

        found = np.asarray(jax.jit(jax.vmap(far))(jnp.arange(200)))  # [seeds, others, metrics]
        trivial = np.isclose(found[:, 2, 0], 0)  # a reward without a possible entry above 3
        assert trivial.sum() < 40
        np.testing.assert_allclose(found[:, :2], 0.0, atol=1e-9)
        np.testing.assert_allclose(found[~trivial, 2], 2.0, atol=1e-9)


def test_epic_and_dard_see_redistribution():
    mdp, reward, shaped, redistributed = equivalents(3)
    for name in ("EPIC-2-2", "DARD-2-2"):
        assert distance(mdp, reward, shaped, name) < 1e-4
        assert distance(mdp, reward, redistributed, name) > 0.05


def test_the_least_norm_is_least():
    mdp, reward = equivalents(1)[0], dense(7)
    found = canonical_rewards(mdp, reward)
    minimal = found["Minimal"]
    least = reward_distances.entrywise_norm(minimal, 2)
    for name in ("VAL", "MinimalPotential", "MinimalWeighted"):
        assert reward_distances.entrywise_norm(found[name], 2) >= least * (1 - 1e-5)
    weights = mdp.transitions
    least = reward_distances.entrywise_norm(found["MinimalWeighted"], 2, weights)
    assert reward_distances.entrywise_norm(minimal, 2, weights) >= least * (1 - 1e-5)
    shaped = [reward_distances.entrywise_norm(found[name], 2)
              for name in ("MinimalPotential", "VALPotential")]
    assert shaped[0] <= shaped[1]


def test_canonical_rewards_are_equivalent_to_their_reward():
    mdp, reward = equivalents(2)[0], dense(7)
    worst = jax.jit(finite_mdp.worst_case_regret)
    for name in ("VAL", "Minimal", "MinimalWeighted", "VALPotential", "EPIC"):
        canonical = canonical_rewards(mdp, reward)[name]
        assert worst(mdp, reward, canonical) < 1e-3
        again = canonical_rewards(mdp, canonical)[name]
        np.testing.assert_allclose(again, canonical, atol=2e-4)


def test_distance_bounds_regret_on_both_sides():
    def one(seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        mdp = random_mdps.random_mdp(keys[0], 4, 3, 0.7)
        first, second = (random_mdps.random_reward(k, mdp) for k in keys[1:])
        lower, upper = reward_distances.regret_bounds(mdp)
        apart = reward_distance(mdp, first, second, reward_metric("VAL-2-2"))
        matters = finite_mdp.return_range(mdp, first) > 0
        regret = finite_mdp.worst_case_regret(mdp, first, second)
        return jnp.where(matters, lower * apart, 0.0), regret, upper * apart

    lower, regret, upper = jax.jit(jax.vmap(one))(jnp.arange(60))
    assert (lower <= regret + 1e-3).all() and (regret <= upper + 1e-3).all()
    assert (lower > 0.005).any() and np.std(regret) > 0.1


def test_norms():
    values = jnp.array([3.0, -4.0]).reshape(1, 2, 1)
    weights = jnp.array([0.5, 0.25]).reshape(1, 2, 1)
    norm = reward_distances.entrywise_norm
    assert norm(values, 1) == 7 and norm(values, 2) == pytest.approx(5)
    assert norm(values, math.inf) == 4 and norm(0 * values, 2) == 0
    assert norm(values, 1, weights) == pytest.approx(2.5)
    assert norm(values, 2, weights) == pytest.approx(math.sqrt(0.5 * 9 + 0.25 * 16))
    assert norm(values, math.inf, weights) == pytest.approx(1.5)
    assert norm(jnp.full((1, 1, 2), 1e30), 2) == pytest.approx(1e30 * math.sqrt(2))


def test_pseudometric():
    mdp, a, _, _ = equivalents(4)
    b, c = (random_mdps.random_reward(jax.random.key(i), mdp) for i in (11, 12))
    for name in (*ALL, "VAL-1-inf", "VAL-weighted_1-1"):
        ab, bc, ac = (distance(mdp, *p, name) for p in ((a, b), (b, c), (a, c)))
        assert distance(mdp, a, a, name) == 0
        assert ab == pytest.approx(distance(mdp, b, a, name), rel=1e-5)
        assert ac <= ab + bc + 1e-5 and ab > 1e-4


def test_vmap_over_mdps_and_gradients():
    mdps = [equivalents(seed)[0] for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *mdps)
    stacked = stacked._replace(discount=jnp.float32(0.95))
    rewards, other = np.asarray(dense(8, 3)), dense(9)
    apart = jax.jit(lambda m, r: reward_distance(m, r, other, reward_metric("VAL-2-2")))
    together = jax.jit(jax.vmap(apart, (FiniteMDP(0, 0, None), 0)))(stacked, rewards)
    np.testing.assert_allclose(together, [apart(m, r) for m, r in zip(mdps, rewards)], atol=1e-5)
    slope = jax.jit(jax.grad(apart, argnums=1))
    found = np.asarray(slope(mdps[0], rewards[0]))
    assert np.abs(found).max() > 1e-3
    assert abs((found * rewards[0]).sum()) < 1e-4  # scale is no matter
    assert np.isfinite(slope(mdps[0], np.zeros_like(rewards[0]))).all()


@pytest.mark.parametrize("name", ["VAL-2-2", "VAL-2-inf", "VAL-1-1", "EPIC-2-2"])
def test_gradients_are_finite(name):
    """On many worlds at once: a maximum that is computed twice may round in two ways."""

    @jax.jit
    def slopes(keys):
        def one(key):
            mdp = random_mdps.random_mdp(key, 8, 3, 0.9)
            first, second = (random_mdps.random_reward(jax.random.fold_in(key, i), mdp) for i in (0, 1))
            distance = lambda reward: reward_distance(mdp, reward, second, reward_metric(name))
            return jax.grad(distance)(first)

        return jax.vmap(one)(keys)

    assert np.isfinite(slopes(jax.random.split(jax.random.key(0), 200))).all()


@pytest.mark.parametrize(
    "name, message",
    [("VAL-2", "metric = 'VAL-2'"), ("VALUE-2-2", "canonicalisation = 'VALUE'"),
     ("VAL-3-2", "norm = '3'"), ("VAL-2-0", "norm = '0'")],
)
def test_bad_names(name, message):
    with pytest.raises(ValueError, match=message):
        reward_metric(name)


def test_random_rewards_and_what_lies_between():
    @jax.jit
    def run(key):
        mdp = random_mdps.random_mdp(key, 16, 4, 0.95)
        keys = jax.random.split(jax.random.key(1), 300)
        rewards = jax.vmap(lambda key: random_mdps.random_reward(key, mdp))(keys)
        return mdp.transitions, rewards, random_mdps.between(rewards[0], rewards[1], 4)

    transitions, rewards, path = jax.device_get(run(jax.random.key(0)))
    np.testing.assert_allclose(transitions.sum(-1), 1.0, atol=1e-5)
    assert 0.7 < (transitions == 0).mean() < 0.95
    entries = rewards.reshape(300, -1)
    # Sparse and not shaped: with probability 0.1, and then nearly all entries are equal.
    equal = (entries == np.median(entries, axis=1, keepdims=True)).mean(1) > 0.9
    assert abs(equal.mean() - 0.1) < 5 * math.sqrt(0.09 / 300)
    np.testing.assert_allclose(path[-1], rewards[1], atol=1e-4)
    np.testing.assert_allclose(path[1], 0.5 * (rewards[0] + rewards[1]), atol=1e-4)
    with pytest.raises(ValueError, match="discount = 1.5"):
        random_mdps.random_mdp(jax.random.key(0), 3, 2, 1.5)
