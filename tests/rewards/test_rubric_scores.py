"""Scores of generated rubrics: parsing, rewards and test-time scaling by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.rewards import rubric_scores as rubrics
from jaxreward.transforms import advantage
from jaxreward.types import make_signal

OWN = jnp.array([[6.8, 6.95], [7.0, 6.0], [5.5, 6.5], [8.0, 7.0]])
NEAR = jnp.array([[5.0, 7.0], [6.0, 6.4]])
NOBODY = jnp.zeros((0, 2))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("rubric <scores>[6.8, 7]</scores>", [6.8, 7.0]),
        ("<scores>[1, 2]</scores> no: <scores>[3, 4]</scores>", [3.0, 4.0]),
        ('<scores>{"total": 9, "first": 5, "second": 6.5}</scores>', [5.0, 6.5]),
        ("<scores>[0.4, 6, 7]</scores>", [6.0, 7.0]),
        ('<scores>[6, "seven"]</scores>', [6.0, None]),
        ("<scores>[NaN, 7]</scores>", [None, 7.0]),
        ("<scores>[Infinity, true]</scores>", [None, None]),
        ("<scores>[1" + "0" * 400 + ", 2]</scores>", [None, 2.0]),
        ("<scores>[6]</scores>", [None, None]),
        ("<scores>6, 7</scores>", [None, None]),
        ("<scores>" + "[" * 9000 + "</scores>", [None, None]),
        ("<scores>[1" + "0" * 5000 + ", 2]</scores>", [None, None]),
        ("<scores>[1, 2]", [None, None]),
        ("", [None, None]),
    ],
)
def test_parsing(text, expected):
    assert rubrics.parse_scores(text) == expected


def test_an_unclosed_marker_does_not_hide_the_scores():
    assert rubrics.parse_scores("I write <scores> so: <scores>[1, 2]</scores>") == [1.0, 2.0]
    assert rubrics.parse_scores("{[3]}", 1, start="{", end="}") == [3.0]
    with pytest.raises(ValueError, match="candidates = 0"):
        rubrics.parse_scores("", 0)


def test_a_tie_is_wrong_and_the_first_is_chosen():
    weights = jnp.array([[0.4, 0.2, 0.4]] * 2)
    scores = rubrics.weighted_score(weights, jnp.array([[4.0, 8, 9], [5, 8, 8]]))
    np.testing.assert_allclose(scores, [6.8, 6.8], rtol=1e-6)
    tie = jnp.array([6.8, 6.8])
    assert not bool(rubrics.outcome(tie[0], tie[1]))
    assert int(rubrics.scale_scores(tie[None], NOBODY).choice) == 0


def test_scaling_by_hand():
    own = rubrics.scale_scores(OWN, NOBODY)
    np.testing.assert_allclose(own.scores, [6.825, 6.6125], rtol=1e-6)
    assert int(own.choice) == 0
    near = rubrics.scale_scores(OWN[:0], NEAR)
    np.testing.assert_allclose(near.scores, [5.5, 6.7], rtol=1e-6)
    both = rubrics.scale_scores(OWN, NEAR)
    np.testing.assert_allclose(both.scores, [12.325, 13.3125], rtol=1e-6)
    code = rubrics.scale_scores(OWN, NEAR, weights=(0.5, 0.5))
    np.testing.assert_allclose(code.scores, [6.1625, 6.65625], rtol=1e-6)
    assert int(both.choice) == int(code.choice) == 1


def test_each_candidate_over_its_own_parses():
    nan = jnp.nan
    found = rubrics.scale_scores(
        jnp.array([[6.0, nan]]), jnp.array([[nan, 7.0]]),
        jnp.array([[True, False]]), jnp.array([[False, True]]), weights=(0.5, 0.5),
    )  # fmt: skip
    np.testing.assert_array_equal(found.scores, [6, 7])
    assert int(found.choice) == 1 and bool(jnp.all(found.valid))


def test_whole_samples_and_fallbacks():
    valid = jnp.array([[True, False], [True, True]])
    scores = jnp.array([[10.0, 0.0], [4.0, 5.0]])
    parts = rubrics.scale_scores(scores, NOBODY, valid)
    whole = rubrics.scale_scores(scores, NOBODY, valid, whole_samples=True)
    np.testing.assert_array_equal(parts.scores, [7, 5])
    np.testing.assert_array_equal(whole.scores, [4, 5])
    unparsed = rubrics.scale_scores(OWN, NEAR, None, jnp.zeros((2, 2), bool), weights=(0.5, 0.5))
    np.testing.assert_allclose(unparsed.scores, [6.825, 6.6125], rtol=1e-6)
    nothing = rubrics.scale_scores(NOBODY, NOBODY)
    assert not bool(jnp.any(nothing.valid)) and int(nothing.choice) == 0
    with pytest.raises(ValueError, match="weights = -1"):
        rubrics.scale_scores(OWN, NEAR, weights=(0.5, -1))


def test_rewards_and_advantages_by_hand():
    persona = jnp.array([0.8, 0.2, 0.9, 0.0])
    right, valid = jnp.array([True, True, False, False]), jnp.array([True, True, True, False])
    rewards = rubrics.composite_reward(persona, right, valid)
    np.testing.assert_allclose(rewards, [1.4, 1.1, 0.45, -0.1], rtol=1e-6)
    transform = advantage.grpo()  # the population's deviation
    signal, _ = transform.update(jax.random.key(0), make_signal(rewards[None]), transform.init())
    expected = [[1.182591, 0.666551, -0.451535, -1.397607]]
    np.testing.assert_allclose(signal.advantages, expected, atol=1e-5)
