"""Pairs of singly judged items: who meets whom, how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.curation.item_pairs import draw_pairs

PASSES = jnp.array([True, False, False, True, False, True])
PROMPTS = jnp.array([0, 0, 1, 1, 2, 3])
DRAW = jax.jit(draw_pairs, static_argnames="count")


def counts(pairs):
    table = np.zeros((6, 6))
    np.add.at(table, (np.asarray(pairs.first), np.asarray(pairs.second)), 1)
    return table


def test_wins_are_uniform_over_passes_and_fails(key):
    table = counts(DRAW(key, PASSES, ~PASSES, 9000))
    allowed = np.outer(PASSES, ~PASSES)
    assert table[~allowed].sum() == 0
    # binomial: standard error sqrt(9000 / 9 * 8 / 9) = 30
    np.testing.assert_allclose(table[allowed], 1000, atol=4 * 30)


def test_ties_are_between_two_different_passes(key):
    table = counts(DRAW(key, PASSES, PASSES, 6000))
    allowed = np.outer(PASSES, PASSES) & ~np.eye(6, dtype=bool)
    assert table[~allowed].sum() == 0
    np.testing.assert_allclose(table[allowed], 1000, atol=4 * 29)


def test_within_prompts(key):
    pairs = DRAW(key, PASSES, ~PASSES, 500, prompts=PROMPTS)
    table = counts(pairs)
    assert table[0, 1] + table[3, 2] == 500 and min(table[0, 1], table[3, 2]) > 150
    assert np.all(pairs.weights == 1)
    none = DRAW(key, PASSES, PASSES, 5, prompts=PROMPTS)
    np.testing.assert_array_equal(none.weights, np.zeros(5))


@pytest.mark.parametrize(
    "first, second, exists",
    [
        (jnp.zeros(6, bool), PASSES, 0.0),
        (PASSES, jnp.zeros(6, bool), 0.0),
        (jnp.arange(6) == 2, jnp.arange(6) == 2, 0.0),
        (jnp.arange(6) == 2, jnp.arange(6) == 4, 1.0),
        (jnp.arange(6) >= 4, jnp.arange(6) == 4, 1.0),
    ],
)
def test_pairs_that_do_not_exist_have_no_weight(key, first, second, exists):
    pairs = DRAW(key, first, second, 7)
    np.testing.assert_array_equal(pairs.weights, np.full(7, exists))
    if exists:
        assert np.all(first[pairs.first]) and np.all(second[pairs.second])
        assert np.all(pairs.first != pairs.second)


def test_bad_count(key):
    with pytest.raises(ValueError, match="count = 0"):
        draw_pairs(key, PASSES, PASSES, 0)
