"""Rates from the majority of verdicts and from confident predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward import channel as channels
from jaxreward.label_estimates import confident_counts
from jaxreward.transforms import advantage, base, correction, rates_unverified
from jaxreward.types import make_signal


def observed(true, channel, votes, seed=0):
    """Verdicts `[P, G, votes]` on true levels `[P, G]`."""
    draws = np.random.default_rng(seed).random((*true.shape, votes, 1))
    cumulative = np.cumsum(channel.matrix, axis=1)[:, :-1]
    return np.sum(draws > cumulative[true][:, :, None, :], axis=-1).astype(np.float32)


def levels(seed, shape, count):
    return np.random.default_rng(seed).integers(0, count, shape)


def run(transform, signal, state=None):
    """The signal after the transform, and its state."""
    state = transform.init() if state is None else state
    return jax.jit(transform.update)(jax.random.key(0), signal, state)


def test_shares_off_the_majority_by_hand():
    verdicts = jnp.array([[[1.0, 1, 0], [0, 0, 0], [0, 1, jnp.nan], [jnp.nan] * 3]])
    signal = make_signal(verdicts[..., 0], verdicts=verdicts, mask=jnp.array([[True] * 3 + [False]]))
    transform = rates_unverified.off_majority()
    after, counts = run(transform, signal)
    # truth 1: two right, one not; truth 0: three right; the tie counts half for each
    np.testing.assert_array_equal(counts, [[3.5, 0.5], [1.5, 2.5]])
    np.testing.assert_allclose(after.rates.matrix, [[0.9, 0.1], [0.3, 0.7]], rtol=1e-6)
    _, again = run(transform, signal, counts)
    np.testing.assert_array_equal(again, 2 * np.asarray(counts))


def test_many_votes_find_a_channel_of_three_levels_and_few_find_it_too_clean():
    true = levels(1, (100, 20), 3)
    channel = channels.symmetric(0.3, 3)
    found = {}
    for votes in (3, 15):
        verdicts = observed(true, channel, votes)
        signal = make_signal(verdicts[..., 0], verdicts=jnp.asarray(verdicts))
        found[votes] = run(rates_unverified.off_majority((0.0, 1.0, 2.0)), signal)[0].rates
    # 15 votes: 2000 outputs, standard error below .006, majority wrong in under 1 of 100
    np.testing.assert_allclose(found[15].matrix, channel.matrix, atol=0.025)
    assert np.all(np.diag(found[3].matrix) > np.diag(channel.matrix) + 0.02)


def test_three_votes_of_a_binary_verifier_miss_the_wrong_majorities():
    verdicts = observed(levels(3, (200, 20), 2), channels.symmetric(0.3, 2), 3, seed=3)
    signal = make_signal(verdicts[..., 0], verdicts=jnp.asarray(verdicts))
    rates = run(rates_unverified.off_majority(), signal)[0].rates
    # E min(k, 3 - k) / 3 with k binomial(3, .3) is .21; 12000 verdicts
    assert rates.false_positive == pytest.approx(0.21, abs=4 * (0.21 * 0.79 / 4000) ** 0.5)


def test_found_rates_correct_graded_rewards():
    true = levels(2, (200, 20), 3)
    verdicts = observed(true, channels.symmetric(0.3, 3), 15, seed=2) / 2
    values = (0.0, 0.5, 1.0)
    signal = make_signal(verdicts[..., 0], verdicts=jnp.asarray(verdicts))
    chain = base.chain(
        rates_unverified.off_majority(values), correction.backward_levels(values), advantage.rloo()
    )
    corrected = np.asarray(run(chain, signal)[0].rewards)
    for level, value in enumerate(values):
        own = corrected[true == level]
        assert own.mean() == pytest.approx(value, abs=float(4 * own.std() / len(own) ** 0.5 + 0.02))


def test_confident_rates_are_those_of_the_counts():
    rng = np.random.default_rng(0)
    true = rng.random((50, 40)) < 0.5
    logit = 3.0 * (2 * true - 1) + rng.normal(size=true.shape)
    probability = jnp.asarray(1 / (1 + np.exp(-2 * logit)), jnp.float32)
    flip = rng.random(true.shape) < np.where(true, 0.3, 0.1)
    signal = make_signal(jnp.asarray(true ^ flip), predicted=probability)
    found = run(rates_unverified.confident("predicted", pseudo_count=1e-3), signal)[0].rates
    labels = jnp.asarray((true ^ flip).reshape(-1), jnp.int32)
    count = jax.jit(confident_counts)
    counts = count(labels, probability.reshape(-1), jnp.ones(labels.shape, bool))
    assert found.false_positive == pytest.approx(float(counts.false_positive), abs=1e-5)
    assert found.false_negative == pytest.approx(float(counts.false_negative), abs=1e-5)
    assert found.false_negative == pytest.approx(0.3, abs=4 * (0.3 * 0.7 / 1000) ** 0.5)
    assert found.false_positive == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 1000) ** 0.5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: rates_unverified.off_majority((1.0,)), "allowed are at least 2, ascending"),
        (lambda: rates_unverified.off_majority((1.0, 0.0)), "ascending"),
        (lambda: rates_unverified.off_majority(decay=0.0), r"decay = 0.0; allowed is \(0, 1\]"),
        (lambda: rates_unverified.off_majority(pseudo_count=0), "pseudo_count = 0; allowed is > 0"),
        (lambda: rates_unverified.confident("p", decay=2.0), "decay = 2.0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
