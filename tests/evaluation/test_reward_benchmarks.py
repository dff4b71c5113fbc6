"""Pairs, one right answer among many, judges, contrasts: values worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.evaluation import reward_benchmarks as benchmarks

ONE_TO_MANY = jax.jit(benchmarks.one_to_many)
NINE = jnp.array([0.1, 0.2, 0.9, 0.3, 0.7, 0.5, 0.6, 0.4, 0.05])


def one(chosen, rejected):
    return ONE_TO_MANY(np.array([chosen], np.float32), np.asarray(rejected, np.float32)[None])


def test_one_right_answer_among_ten():
    found = one(0.7, NINE)
    assert found.accuracy == 0 and found.reciprocal_rank == pytest.approx(1 / 3)  # the tie counts
    assert found.win_rate == pytest.approx(7 / 9) and found.problems == 1
    found = one(0.2, np.full(9, 0.1))
    assert found.accuracy == found.reciprocal_rank == 1
    found = one(0.1, np.full(9, 0.1))
    assert found.reciprocal_rank == pytest.approx(0.1)
    assert (found.accuracy, found.accuracy_with_ties) == (0, 1)


def test_random_scores(key):
    scores = np.asarray(jax.random.normal(key, (20_000, 10)))
    found = ONE_TO_MANY(scores[:, 0], scores[:, 1:])
    assert abs(found.accuracy - 0.1) < 5 * np.sqrt(0.09 / 20_000)
    expected = np.mean(1 / np.arange(1, 11))
    assert expected == pytest.approx(0.292897, abs=1e-6)
    assert abs(found.reciprocal_rank - expected) < 5 * 0.28 / np.sqrt(20_000)


def test_masked_and_missing_scores_take_no_part():
    chosen = jnp.array([1.0, 2.0, jnp.nan, 4.0])
    rejected = jnp.array([[0.0, 9.0], [1.0, jnp.nan], [0.0, 0.0], [9.0, 9.0]])
    mask = jnp.array([[True, False], [True, True], [True, True], [False, False]])
    found = ONE_TO_MANY(chosen, rejected, mask)
    assert found.problems == 2 and found.accuracy == 1 and found.win_rate == 1
    assert found.reciprocal_rank == 1
    won = lambda rejected: jnp.sum(benchmarks.win_rate(chosen[:1], rejected[:1], mask[:1]))
    slopes = jax.jit(jax.grad(won))(rejected)
    assert np.isfinite(slopes).all()
    empty = ONE_TO_MANY(chosen, rejected, np.zeros((4, 2), bool))
    assert empty.problems == 0 and empty.accuracy == 0


def test_ties_of_pairs():
    chosen, rejected = jnp.array([1.0, 1.0, 0.0, 2.0]), jnp.array([[0.0], [1.0], [1.0], [2.0]])
    for ties, expected in (("loss", 0.25), ("half", 0.5), ("win", 0.75)):
        assert benchmarks.wins(chosen, rejected, ties).mean() == expected
    with pytest.raises(ValueError, match="ties = 'draw'"):
        benchmarks.wins(chosen, rejected, "draw")


@pytest.mark.parametrize("lost", [0, 1, 4, 9])
def test_duels(lost):
    won = jnp.asarray(np.arange(9)[None] >= lost)
    found = ONE_TO_MANY(*benchmarks.duel_scores(won))
    assert found.accuracy == float(lost == 0)
    assert found.reciprocal_rank == pytest.approx(1 / (1 + lost))


def test_independent_duels(key):
    for probability, expected in ((0.95, 0.630249), (0.5, 0.001953)):
        assert probability**9 == pytest.approx(expected, abs=1e-6)
        won = jax.random.bernoulli(key, probability, (20_000, 9))
        found = ONE_TO_MANY(*benchmarks.duel_scores(won)).accuracy
        assert abs(found - expected) < 5 * np.sqrt(expected / 20_000)


def test_ties_at_the_top_go_to_the_majority_of_the_tied():
    scores = np.array([1, 3, 3, 3, 2, 2], np.float32)
    top, same = jax.jit(benchmarks.pick_top), np.zeros(6, np.int32)
    pick = lambda scores, answers, *mask: int(top(scores, np.array(answers, np.int32), *mask))
    assert pick(scores, [5, 7, 5, 5, 7, 7]) == 2
    assert pick(scores, [5, 7, 5, 6, 7, 7]) == 1  # all as frequent: the first
    mask = np.array([True, False, False, False, True, True])
    assert pick(scores, [5, 7, 5, 5, 7, 7], mask) == 4
    assert pick(np.where(np.arange(6) == 0, np.float32(np.nan), scores), same) == 1
    assert pick(scores, same, np.zeros(6, bool)) == 0
    many = jax.jit(jax.vmap(benchmarks.pick_top))(np.stack([scores, -scores]), np.stack([same] * 2))
    np.testing.assert_array_equal(many, [1, 0])


def test_contrast_by_hand():
    rewards = jnp.array([[2.0, 2.3], [1.1, 1.9]])
    assert benchmarks.response_consistency(rewards) == 0
    assert benchmarks.instruction_consistency(rewards) == 1
    other = rewards[::-1, ::-1]
    assert benchmarks.response_consistency(other) == 1
    assert benchmarks.instruction_consistency(other) == 0
    for measure in (benchmarks.response_consistency, benchmarks.instruction_consistency):
        assert measure(rewards, both_directions=True) == 0.5


def test_a_reward_that_ignores_the_instruction(key):
    own = jax.random.normal(key, (100, 1, 2))
    rewards = jnp.broadcast_to(own, (100, 2, 2))
    assert (benchmarks.instruction_consistency(rewards) == 0).all()
    assert (benchmarks.response_consistency(rewards, both_directions=True) == 0.5).all()
