"""Rewards of audio clips: windows, adherence, quality, and win rates of ratings."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.evaluation.paired_ratings import decided_win_rate
from jaxreward.rewards import audio


def test_windows_of_thirty_seconds():
    assert audio.windows(30, 20, 2) == ((0, 20), (10, 30))
    assert audio.windows(30, 10, 3) == ((0, 10), (10, 20), (20, 30))
    assert audio.windows(30, 20, 1) == ((0, 20),)
    assert audio.windows(20, 20, 2) == ((0, 20), (0, 20))


@pytest.mark.parametrize(
    "arguments, message",
    [((30, 31, 1), "length = 31"), ((30, 10, 0), "count = 0"), ((30, 20, 4), "count = 4")],
)
def test_windows_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        audio.windows(*arguments)


def test_quality_is_normalised_before_it_is_mixed():
    scores = jnp.array([[3.0, 4.0], [4.6, 4.6]])
    quality = audio.opinion_score(scores)
    np.testing.assert_allclose(quality, [0.625, 0.9], atol=1e-6)
    with pytest.raises(ValueError, match="high - low"):
        audio.opinion_score(scores, 5.0, 1.0)


def test_adherence_is_the_mean_cosine():
    cosines = jnp.array([0.55, 0.60, 0.62])
    segments = 3.0 * jnp.stack([cosines, jnp.sqrt(1 - cosines**2)], axis=-1)  # any length
    found = audio.adherence(jnp.array([[2.0, 0.0]]), segments[None])
    np.testing.assert_allclose(found, [0.59], atol=1e-6)
    total = found + audio.opinion_score(jnp.array([[3.5, 3.5]]))
    np.testing.assert_allclose(total, [1.215], atol=1e-6)


def test_silence_adheres_to_nothing():
    found = audio.adherence(jnp.array([1.0, 0.0]), jnp.array([[1.0, 0.0], [0.0, 0.0]]))
    assert float(found) == pytest.approx(0.5)


def test_ties_are_dropped_from_win_rates():
    first, second = jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 1.0, 1.0])
    rate = decided_win_rate(first, second, jnp.array([65.0, 22.1, 12.9]))
    assert float(rate) == pytest.approx(0.834403, abs=1e-6)
    assert float(decided_win_rate(first, second)) == 0.5
    assert float(decided_win_rate(second, second)) == 0.5
