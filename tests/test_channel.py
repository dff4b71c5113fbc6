"""Tests of jaxreward.channel."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward import channel as channels
from jaxreward.channel import Channel

RATE = st.floats(0, 0.45)


@hypothesis.given(RATE, RATE)
def test_a_binary_channel_has_its_rates(false_positive, false_negative):
    channel = channels.binary(false_positive, false_negative)
    assert channel.levels == 2
    np.testing.assert_allclose(channel.matrix.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose(channel.matrix[0, 1], false_positive, atol=1e-7)
    np.testing.assert_allclose(channel.matrix[1, 0], false_negative, atol=1e-7)
    np.testing.assert_array_equal(channel.false_positive, channel.matrix[0, 1])
    np.testing.assert_array_equal(channel.false_negative, channel.matrix[1, 0])
    np.testing.assert_allclose(channel.determinant, np.linalg.det(channel.matrix), atol=1e-6)


def test_rates_broadcast_and_channels_expand():
    channel = channels.binary(np.array([0.1, 0.2, 0.3]), 0.05)
    assert channel.matrix.shape == (3, 2, 2)
    np.testing.assert_allclose(channel.determinant, [0.85, 0.75, 0.65], atol=1e-6)
    assert channel.expand(3).matrix.shape == (3, 1, 1, 2, 2)
    assert channels.binary(0.1, 0.2).expand(2).matrix.shape == (1, 1, 2, 2)
    np.testing.assert_array_equal(channel.expand(2).false_positive[:, 0], channel.false_positive)


@pytest.mark.parametrize("rate", [-0.1, 1.2, float("nan"), np.array([0.1, 1.5])])
def test_rates_that_are_no_probability_are_refused(rate):
    for pair, name in (((rate, 0.1), "false_positive"), ((0.1, rate), "false_negative")):
        with pytest.raises(ValueError, match=rf"{name} = .* allowed is \[0, 1\]"):
            channels.binary(*pair)
    with pytest.raises(ValueError, match="rate = "):
        channels.symmetric(rate, 3)


def test_traced_rates_pass():
    matrix = jax.jit(lambda a: channels.binary(a, 0.2).matrix)(jnp.float32(1.2))
    np.testing.assert_allclose(matrix, [[-0.2, 1.2], [0.2, 0.8]], atol=1e-6)
    jax.jit(lambda a: channels.check_correctable(channels.binary(a, 0.9)))(jnp.float32(0.2))


def test_symmetric_channels():
    np.testing.assert_allclose(
        channels.symmetric(0.3, 4).matrix, 0.1 + 0.6 * np.eye(4), atol=1e-6
    )
    np.testing.assert_allclose(
        channels.symmetric(0.3).matrix, channels.binary(0.3, 0.3).matrix, atol=1e-6
    )
    assert channels.symmetric(np.array([0.1, 0.2]), 3).matrix.shape == (2, 3, 3)
    with pytest.raises(ValueError, match="levels = 1; allowed is >= 2"):
        channels.symmetric(0.1, 1)


def test_a_channel_from_a_matrix():
    rows = [[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.0, 0.25, 0.75]]
    np.testing.assert_allclose(channels.from_matrix(rows).matrix, rows, atol=1e-7)
    with pytest.raises(ValueError, match=r"row \(0.1, 0.7, 0.3\); allowed are probabilities"):
        channels.from_matrix([rows[0], [0.1, 0.7, 0.3], rows[2]])
    with pytest.raises(ValueError, match="sum to 1"):
        channels.from_matrix([[1.5, -0.5], [0.0, 1.0]])
    for shape in ((2, 3), (4,), (1, 1)):
        with pytest.raises(ValueError, match=r"allowed is \[..., M, M\] with M >= 2"):
            channels.from_matrix(np.ones(shape))


def test_what_has_other_levels_is_not_binary():
    three = channels.symmetric(0.1, 3)
    with pytest.raises(ValueError, match="a binary channel is needed, this one has 3 levels"):
        _ = three.false_positive
    np.testing.assert_allclose(three.determinant, np.linalg.det(three.matrix), atol=1e-6)


def test_channels_that_cannot_be_corrected_are_refused_by_name():
    with pytest.raises(ValueError, match="false_positive = 0.5 and false_negative = 0.5 cannot"):
        channels.check_correctable(channels.binary(0.5, 0.5))
    with pytest.raises(ValueError, match="false_positive = 0.7 and false_negative = 0.6.*-0.3"):
        channels.check_correctable(channels.binary(np.array([0.1, 0.7]), np.array([0.2, 0.6])))
    channels.check_correctable(channels.binary(0.5, 0.4))
    with pytest.raises(ValueError, match="allowed is >= 0.2"):
        channels.check_correctable(channels.binary(0.5, 0.4), 0.2)
    with pytest.raises(ValueError, match="determinant 0 cannot"):
        channels.check_correctable(Channel(jnp.full((3, 3), 1 / 3, jnp.float32)))
    swapped = np.eye(3)[[1, 0, 2]]  # determinant -1: a renaming, which can be inverted
    channels.check_correctable(channels.from_matrix(swapped))


def test_a_constant_channel_is_checked_under_jit_too():
    bad = channels.binary(0.5, 0.5)
    with pytest.raises(ValueError, match="cannot be corrected"):
        jax.jit(lambda x: channels.check_correctable(bad) or x)(1.0)


@hypothesis.given(RATE, RATE)
def test_correcting_is_unbiased(false_positive, false_negative):
    channel = channels.binary(false_positive, false_negative)
    estimate = channels.correct(jnp.array([0.0, 1.0]), channel)
    np.testing.assert_allclose(channel.matrix @ estimate, [0, 1], atol=1e-5)


def test_the_determinant_is_floored():
    estimate = channels.correct(jnp.array([0.0, 1.0]), channels.binary(0.5, 0.49))
    np.testing.assert_allclose(estimate, [-10, 10], atol=1e-3)


def test_correcting_by_prompt_and_by_sample():
    observed = jnp.array([[0.0, 1, 1], [1, 0, 0]])
    prompt = channels.correct(observed, channels.binary(np.array([0.1, 0.3]), 0.2))
    np.testing.assert_allclose(prompt[0], (observed[0] - 0.1) / 0.7, atol=1e-6)
    np.testing.assert_allclose(prompt[1], (observed[1] - 0.3) / 0.5, atol=1e-6)
    rates = np.linspace(0, 0.25, 6).reshape(2, 3)
    sample = channels.correct(observed, channels.binary(rates, 0.2))
    np.testing.assert_allclose(sample, (observed - rates) / (0.8 - rates), atol=1e-6)


@st.composite
def level_channels(draw):
    levels = draw(st.integers(2, 5))
    noise = draw(hnp.arrays(np.float64, (levels, levels), elements=st.floats(0.01, 1)))
    noise /= noise.sum(-1, keepdims=True)
    share = draw(st.floats(0, 0.3))
    return (1 - share) * np.eye(levels) + share * noise


@hypothesis.given(level_channels(), st.data())
def test_correcting_levels_is_unbiased(matrix, data):
    levels = matrix.shape[0]
    values = data.draw(hnp.arrays(np.float32, levels, elements=st.floats(-3, 3, width=32)))
    channel = channels.from_matrix(matrix)
    estimate = channels.correct_levels(
        jnp.arange(levels), channel, jnp.asarray(values), min_determinant=1e-3
    )
    np.testing.assert_allclose(np.asarray(matrix) @ np.asarray(estimate), values, atol=2e-3)


def test_two_levels_are_the_binary_correction():
    channel = channels.binary(np.array([0.1, 0.3]), np.array([0.2, 0.15]))
    observed = jnp.array([[0, 1, 1], [1, 0, 0]])
    by_level = channels.correct_levels(observed, channel, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(
        by_level, channels.correct(observed.astype(jnp.float32), channel), atol=1e-5
    )


def test_a_singular_channel_of_levels_gives_finite_estimates():
    channel = Channel(jnp.full((3, 3), 1 / 3, jnp.float32))
    estimate = channels.correct_levels(jnp.arange(3), channel, jnp.array([0.0, 0.5, 1.0]))
    assert np.all(np.isfinite(estimate))


@hypothesis.given(RATE, RATE, st.floats(0.02, 0.98))
def test_reliability_is_the_correlation(false_positive, false_negative, p):
    channel = channels.binary(false_positive, false_negative)
    matrix = np.asarray(channel.matrix, np.float64)
    joint = np.array([1 - p, p])[:, None] * matrix
    seen = joint[:, 1].sum()
    correlation = (joint[1, 1] - p * seen) / np.sqrt(p * (1 - p) * seen * (1 - seen))
    p = jnp.float32(p)
    np.testing.assert_allclose(channels.observed_mean(p, channel), seen, rtol=1e-5)
    np.testing.assert_allclose(channels.reliability(p, channel), correlation, rtol=1e-4)


def test_reliability_at_the_ends_is_zero_with_zero_gradient():
    channel = channels.binary(0.0, 0.0)
    ends = jnp.array([0.0, 1.0])
    np.testing.assert_array_equal(channels.reliability(ends, channel), [0, 0])
    grad = jax.grad(lambda p: channels.reliability(p, channel).sum())(ends)
    assert np.all(np.isfinite(grad))
    # The card's values at p = .2, .5 and .9.
    kappa = channels.reliability(jnp.array([0.2, 0.5, 0.9]), channels.binary(0.1, 0.2))
    np.testing.assert_allclose(kappa, [0.6556, 0.7035, 0.4730], atol=1e-4)
