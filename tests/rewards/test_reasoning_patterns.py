"""The reasoning-pattern reward: the exact checks of arXiv 2505.22653."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.rewards.reasoning_patterns import (
    PHRASES,
    pattern_reward,
    repeats_itself,
    repetition,
    token_pattern_reward,
)


def test_three_distinct_phrases():
    text = "Wait, thus we know that wait thus"
    np.testing.assert_allclose(pattern_reward([text]), 3 / 40)
    np.testing.assert_allclose(pattern_reward([text], as_released=True), 3 / 20)


def test_half_of_the_list_saturates_the_released_form():
    text = " ".join(PHRASES[:25])
    assert pattern_reward([text], as_released=True, ngram=99)[0] == 1.0
    assert 0 < pattern_reward([text], ngram=99)[0] < 1.0


@pytest.mark.parametrize(
    ("text", "ngram", "expected"),
    [("a b c a b c a b c", 3, 3 / 7), (" ".join(["w"] * 25), 20, 1 / 6), ("a b", 20, 0.0)],
)
def test_repetition(text, ngram, expected):
    assert repetition(text, ngram) == pytest.approx(expected)


def test_a_made_up_turn_costs_everything():
    text = " ".join(PHRASES[:20]) + " user: what is 2 + 2?"
    assert pattern_reward([text], as_released=True, ngram=99)[0] == 0.0


def test_a_phrase_inside_a_word_counts_once():
    assert pattern_reward(["enthusiasm thus"])[0] == np.float32(1 / 40)


@hypothesis.given(st.lists(st.text(alphabet="ab wait,thus ", max_size=200), max_size=5))
@hypothesis.settings(max_examples=50, deadline=None)
def test_scores_are_in_the_unit_interval_and_do_not_fall_with_a_phrase(texts):
    scores = pattern_reward(texts, ngram=500)
    assert scores.dtype == np.float32 and scores.shape == (len(texts),)
    assert ((scores >= 0) & (scores <= 1)).all()
    more = pattern_reward([text + " hence" for text in texts], ngram=500)
    assert (more >= scores).all()


@pytest.mark.parametrize("length", [0, 3, 9, 12])
def test_token_ids_give_what_texts_give(length):
    """With words of one letter an id is a word and a character, but for the spaces."""
    ids = np.random.default_rng(length).integers(0, 3, (4, 5, 12))
    mask = np.broadcast_to(np.arange(12) < length, ids.shape)
    texts = [" ".join("abc"[i] for i in row[:length]) for row in ids.reshape(-1, 12)]
    expected = pattern_reward(texts, phrases=("a b", "c c a"), saturation=2, ngram=3)
    found = jax.jit(
        lambda tokens, mask: token_pattern_reward(
            tokens, mask, ((0, 1), (2, 2, 0)), saturation=2, ngram=3
        )
    )(jnp.asarray(ids, jnp.int32), jnp.asarray(mask))
    np.testing.assert_allclose(np.asarray(found).reshape(-1), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [(dict(phrases=()), "phrases"), (dict(saturation=0), "saturation = 0"),
     (dict(ngram=0), "ngram = 0")],
)  # fmt: skip
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        pattern_reward(["wait"], **options)


def test_a_stretch_that_comes_back_too_often():
    stretch = "a b_c d e f g h i j "  # ten words, one behind an underscore
    found = repeats_itself([stretch * 9, stretch * 10, "word " * 19, ""])
    # nineteen equal words hold ten overlapping stretches of ten
    assert found.tolist() == [False, True, True, False]
    assert repeats_itself(["x y x y"], width=2, times=2).tolist() == [True]
    assert repeats_itself(["x y z"], width=2, times=2).tolist() == [False]
    with pytest.raises(ValueError, match="times = 1; allowed is >= 2"):
        repeats_itself(["x"], times=1)
