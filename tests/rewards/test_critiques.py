"""Rewards of critiques: the exact checks, their advantages, and the tournament."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.rewards import critiques
from jaxreward.transforms import advantage
from jaxreward.types import make_signal


def bits(*members, size=8):
    return jnp.isin(jnp.arange(size), jnp.array(members, jnp.int32))


grpo = jax.jit(advantage.grpo(ddof=1).update)


def advantages(rewards):
    signal, _ = grpo(jax.random.key(0), make_signal(np.asarray(rewards)[None]), ())
    return np.asarray(signal.advantages)[0]


@pytest.mark.parametrize(
    "own, reference, precision, recall, f1, reward",
    [
        ((0, 1, 2), (0, 1, 3, 4), 2 / 3, 2 / 4, 0.571429, 1),
        ((0, 1, 2, 3), (0, 4), 1 / 4, 1 / 2, 1 / 3, 0),
        ((0, 1), (2, 3), 0, 0, 0, 0),
        ((), (0, 1), 0, 0, 0, 0),
        ((0, 1), (), 0, 0, 0, 0),
        ((), (), 0, 0, 0, 0),
        ((0, 1), (0, 2), 1 / 2, 1 / 2, 0.5, 0),  # at the threshold
        ((0, 1, 2), (0,), 1 / 3, 1, 0.5, 0),
    ],
)
def test_agreement(own, reference, precision, recall, f1, reward):
    found = critiques.argument_agreement(bits(*own), bits(*reference))
    np.testing.assert_allclose(found, (precision, recall, f1), atol=1e-6)
    assert critiques.process_reward(found.f1) == reward


def test_masked_arguments_do_not_count():
    own, reference = bits(0, 1, 2), bits(0, 1, 5)
    mask = ~bits(2, 5)
    np.testing.assert_allclose(critiques.argument_agreement(own, reference, mask), (1, 1, 1))


def test_composite_reward():
    outcome, process = jnp.array([1.0, 1, 0, 1]), jnp.array([1.0, 0, 1, 1])
    parsed = jnp.array([True, True, True, False])
    total = critiques.critique_reward(outcome, process, parsed=parsed)
    np.testing.assert_allclose(total, [1.5, 1, 0, -1])
    ungated = critiques.critique_reward(outcome, process, gate=False, parsed=parsed)
    np.testing.assert_allclose(ungated, [1.5, 1, 0.5, -1])


def test_meta_reward():
    prediction = jnp.array([0.3, 1.0, 1.2, 1.8, 2.4])
    np.testing.assert_allclose(
        critiques.meta_process(prediction), [0, 0, 0.2, 0.8, 1.4], atol=1e-6
    )
    right = critiques.meta_reward(jnp.ones(5), prediction)
    np.testing.assert_allclose(right, [1, 1, 1.1, 1.4, 1.7], atol=1e-6)
    np.testing.assert_allclose(critiques.meta_reward(jnp.zeros(5), prediction), 0)
    none = critiques.meta_reward(jnp.ones(5), prediction, parsed=jnp.zeros(5, bool))
    np.testing.assert_allclose(none, -1)


def test_meta_target():
    target = critiques.meta_target(jnp.array([0.0, 1, 1]), jnp.array([1.0, 0, 1]))
    np.testing.assert_allclose(target, [0, 1, 2])


def test_advantages_of_a_group():
    found = advantages([1.5, 1, 0, -1, 1.5, 0, 1, 0])
    expected = [1.128151, 0.564075, -0.564075, -1.692226, 1.128151, -0.564075, 0.564075, -0.564075]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    outcome = jnp.array([1.0, 1, 0, 0, 1, 0, 1, 0])
    np.testing.assert_allclose(advantages(outcome), 0.935414 * (2 * outcome - 1), atol=1e-5)


def test_weight_zero_is_outcome_only():
    outcome, process = jnp.array([1.0, 1, 0, 0]), jnp.array([1.0, 0, 1, 0])
    total = critiques.critique_reward(outcome, process, weight=0.0)
    np.testing.assert_array_equal(advantages(total), advantages(outcome))


def test_one_sound_critique_among_right_verdicts():
    right = jnp.ones(8)
    none = critiques.critique_reward(right, jnp.zeros(8))
    np.testing.assert_array_equal(advantages(none), 0)
    one = critiques.critique_reward(right, jnp.zeros(8).at[3].set(1.0))
    expected = jnp.full(8, -0.353553).at[3].set(2.474874)
    np.testing.assert_allclose(advantages(one), expected, atol=1e-5)


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="weight = -1"):
        critiques.critique_reward(jnp.ones(2), jnp.ones(2), weight=-1)


tournament = jax.jit(critiques.tournament_scores)


@pytest.mark.parametrize("group", [2, 5, 8])
def test_a_consistent_judge_ranks_the_ends(group):
    quality = np.random.default_rng(3).permutation(group)
    beats = np.broadcast_to(quality[:, None] > quality[None, :], (64, group, group))
    scores = np.asarray(tournament(jax.random.key(0), jnp.asarray(beats)))
    assert np.all((scores >= 0) & (scores <= 1))
    np.testing.assert_allclose(np.mean(scores, axis=1), 0.5, atol=1e-6)
    best, second = np.argmax(quality), np.argsort(quality)[-2]
    np.testing.assert_allclose(scores[:, best], 1.0)
    # The second best loses to the best alone, twice: it is always the other finalist.
    np.testing.assert_allclose(scores[:, second], (group - 2) / (group - 1), atol=1e-6)


def test_a_judge_who_prefers_the_first_is_fair_over_seedings():
    beats = jnp.ones((2000, 4, 4), bool)
    scores = np.asarray(tournament(jax.random.key(0), beats))
    error = np.std(scores, axis=0) / 2000**0.5
    assert np.all(np.abs(np.mean(scores, axis=0) - 0.5) < 4 * error)


def test_a_tournament_needs_two():
    with pytest.raises(ValueError, match="2 answers or more"):
        critiques.tournament_scores(jax.random.key(0), jnp.ones((1, 1, 1), bool))
