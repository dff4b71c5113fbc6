"""From logits to tokens: filters by hand, and frequencies against exact probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.policies import sampling

PROBS = np.asarray([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS = jnp.asarray(np.log(PROBS) + 3.0, jnp.float32)


def processed(logits=LOGITS, **settings):
    return np.exp(np.asarray(sampling.processed_log_probs(logits, **settings)))


@pytest.mark.parametrize(
    "settings, kept",
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [1, 3, 4]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.39}, [1]),
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 0.69}, [1, 3]),
        ({"top_p": 0.71}, [1, 3, 4]),
        ({"top_p": 1e-6}, [1]),
        ({"top_k": 3, "top_p": 0.8}, [1, 3]),  # 0.4 / 0.85 + 0.3 / 0.85 > 0.8
        ({"top_k": 3, "top_p": 0.83}, [1, 3, 4]),
    ],
)
def test_filters_keep_these_tokens_and_renormalise(settings, kept):
    expected = np.zeros(5)
    expected[kept] = PROBS[kept] / PROBS[kept].sum()
    np.testing.assert_allclose(processed(**settings), expected, rtol=1e-5)


def test_temperature_comes_before_the_filters():
    hot = PROBS**0.5 / np.sum(PROBS**0.5)
    np.testing.assert_allclose(processed(temperature=2.0), hot, rtol=1e-5)
    border = hot[1] + hot[3]  # about 0.58, where the untempered sum is 0.7
    expected = np.where(np.isin(np.arange(5), [1, 3, 4]), hot, 0)
    found = processed(temperature=2.0, top_p=float(border) + 0.01)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-5)


def test_ties_at_the_border_are_kept_and_rows_are_independent():
    tied = jnp.log(jnp.asarray([[0.3, 0.3, 0.3, 0.1], [0.1, 0.2, 0.3, 0.4]]))
    np.testing.assert_allclose(
        processed(tied, top_k=2), [[1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 3 / 7, 4 / 7]], rtol=1e-5
    )
    np.testing.assert_allclose(
        processed(tied, top_p=0.5), [[1 / 3, 1 / 3, 1 / 3, 0], [0, 0, 3 / 7, 4 / 7]], rtol=1e-5
    )


def test_traced_temperature_equals_the_constant():
    traced = jax.jit(lambda t: sampling.processed_log_probs(LOGITS, temperature=t, top_k=3))
    np.testing.assert_allclose(np.exp(traced(0.7)), processed(temperature=0.7, top_k=3), rtol=1e-5)


def test_draws_have_the_probabilities_and_the_log_probs():
    rows, count = 2, 100_000
    probs = np.stack([PROBS, [0.0, 0.25, 0.0, 0.7, 0.05]])
    log_probs = jnp.log(jnp.broadcast_to(jnp.asarray(probs, jnp.float32), (count, rows, 5)))
    tokens, picked = sampling.sample(jax.random.key(3), log_probs)
    assert tokens.dtype == jnp.int32 and tokens.shape == picked.shape == (count, rows)
    for row in range(rows):
        frequency = np.bincount(np.asarray(tokens[:, row]), minlength=5) / count
        error = np.sqrt(probs[row] * (1 - probs[row]) / count)
        assert np.all(np.abs(frequency - probs[row]) <= 4.5 * error)
        np.testing.assert_allclose(picked[:, row], np.log(probs[row][tokens[:, row]]), rtol=1e-5)
    both = np.mean((np.asarray(tokens) == 1).all(axis=1))  # rows draw independently
    assert abs(both - 0.1) <= 4.5 * np.sqrt(0.1 * 0.9 / count)


def test_a_token_without_probability_is_never_drawn():
    log_probs = jnp.log(jnp.asarray([0.0, 1.0, 0.0]))
    drawn, _ = sampling.sample(jax.random.key(0), jnp.broadcast_to(log_probs, (5000, 3)))
    np.testing.assert_array_equal(drawn, 1)


def test_most_probable_takes_the_first_of_equals():
    log_probs = jnp.log(jnp.asarray([[0.2, 0.4, 0.4], [0.9, 0.05, 0.05]]))
    tokens, picked = sampling.most_probable(log_probs)
    assert tokens.dtype == jnp.int32
    np.testing.assert_array_equal(tokens, [1, 0])
    np.testing.assert_allclose(np.exp(picked), [0.4, 0.9], rtol=1e-6)


@pytest.mark.parametrize(
    "temperature, top_k, top_p, name",
    [
        (-0.1, 0, 1.0, "temperature"),
        (float("nan"), 0, 1.0, "temperature"),
        (float("inf"), 0, 1.0, "temperature"),
        (1e-20, 0, 1.0, "temperature"),  # logits over it are not finite
        (1.0, -1, 1.0, "top_k"),
        (1.0, 0, 0.0, "top_p"),
        (1.0, 0, 1.1, "top_p"),
        (1.0, 0, float("nan"), "top_p"),
        (np.float32(-1), 0, 1.0, "temperature"),
    ],
)
def test_settings_that_mean_nothing_are_refused(temperature, top_k, top_p, name):
    with pytest.raises(ValueError, match=f"{name} = .*allowed is"):
        sampling.check(temperature, top_k, top_p)


def test_good_and_traced_settings_pass():
    sampling.check(0.0, 0, 1.0)
    sampling.check(0.7, 5, 0.1)
    jax.eval_shape(lambda t: sampling.check(t, 0, 1.0), jnp.ones(()))
