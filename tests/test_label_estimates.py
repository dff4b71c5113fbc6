"""Wrong labels and their authors, from probabilities alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward import label_estimates
from jaxreward.label_estimates import annotator_posterior, update_reliability

confident_counts = jax.jit(label_estimates.confident_counts)


def test_posterior_of_the_published_numbers():
    margin = jnp.asarray([1.5, -0.5, -3.0], jnp.float32)
    found = annotator_posterior(margin, jnp.full(3, 0.8, jnp.float32))
    np.testing.assert_allclose(found, [0.9472, 0.7081, 0.1661], atol=1e-4)


def test_posterior_is_bayes_rule_and_has_no_gradient():
    z, eta = np.linspace(-4.0, 4.0, 9, dtype=np.float32), jnp.full(9, 0.7, jnp.float32)
    right, wrong = 0.7 / (1 + np.exp(-z)), 0.3 / (1 + np.exp(z))
    found = annotator_posterior(jnp.asarray(z), eta)
    np.testing.assert_allclose(found, right / (right + wrong), rtol=1e-5)
    assert not np.any(jax.jit(jax.grad(lambda z: jnp.sum(annotator_posterior(z, eta))))(z))


def test_em_finds_who_flips():
    """Three annotators with known margins: the fixed point is their share of right labels."""
    rng = np.random.default_rng(0)
    annotator = jnp.asarray(rng.integers(0, 3, 6000), jnp.int32)
    rates = np.array([0.0, 0.2, 0.4])
    flipped = rng.random(6000) < rates[np.asarray(annotator)]
    # margins drawn from the model itself: P(first wins | z) = s(z)
    z = rng.normal(0, 3, 6000)
    wins = rng.random(6000) < 1 / (1 + np.exp(-z))
    label = wins ^ flipped
    margin = jnp.asarray(np.where(label, z, -z), jnp.float32)
    eta, everyone = jnp.full(3, 0.75, jnp.float32), jnp.ones(6000, bool)
    step = jax.jit(
        lambda eta: update_reliability(
            eta, annotator_posterior(margin, eta[annotator]), annotator, everyone, decay=0.0
        )
    )
    for _ in range(60):
        eta = step(eta)
    np.testing.assert_allclose(eta, 1 - rates, atol=4 * 0.5 / np.sqrt(2000 * 0.3))


def test_warming_up_and_annotators_without_pairs_keep_their_value():
    eta, posterior = jnp.asarray([0.8, 0.6]), jnp.asarray([0.5, 0.9])
    first = jnp.zeros(2, jnp.int32)
    moved = update_reliability(eta, posterior, first, jnp.asarray([True, False]), decay=0.5)
    np.testing.assert_allclose(moved, [0.65, 0.6])
    kept = update_reliability(eta, posterior, first, jnp.ones(2, bool), warming_up=True)
    np.testing.assert_array_equal(kept, eta)
    with pytest.raises(ValueError, match="decay = 2"):
        update_reliability(eta, posterior, first, jnp.ones(2, bool), decay=2)


def test_confident_learning_by_hand():
    """Thresholds .7 (of 0) and .72 (of 1); one 0 that is a 1, no 1 that is a 0."""
    labels = jnp.asarray([0, 0, 0, 0, 1, 1, 1, 1, 1], jnp.int32)
    probability = jnp.asarray([0.1, 0.1, 0.2, 0.8, 0.9, 0.8, 0.8, 0.7, 0.4], jnp.float32)
    found = confident_counts(labels, probability, jnp.ones(9, bool))
    # counted: labels 0 -> true 0: items 0, 1, 2; true 1: item 3; labels 1 -> true 1: items 4, 5, 6
    np.testing.assert_allclose(found.joint, np.array([[3, 1], [0, 5]]) / 9, atol=1e-6)
    np.testing.assert_allclose(found.false_negative, 1 / 6, atol=1e-6)
    np.testing.assert_allclose(found.false_positive, 0, atol=1e-6)
    np.testing.assert_array_equal(np.flatnonzero(found.prune), [3])


def test_masked_items_change_nothing():
    labels = jnp.asarray([0, 0, 0, 0, 1, 1, 1, 1, 1], jnp.int32)
    probability = jnp.asarray([0.1, 0.1, 0.2, 0.8, 0.9, 0.8, 0.8, 0.7, 0.4], jnp.float32)
    plain = confident_counts(labels, probability, jnp.ones(9, bool))
    more = confident_counts(
        jnp.asarray(np.concatenate([labels, 1 - np.asarray(labels)])),
        jnp.asarray(np.concatenate([probability, probability])),
        jnp.asarray(np.arange(18) < 9),
    )
    np.testing.assert_allclose(more.joint, plain.joint, rtol=1e-6)
    prune = np.asarray(more.prune)
    np.testing.assert_array_equal(prune[:9], plain.prune)
    assert not np.any(prune[9:])


def test_rates_of_flipped_labels_are_found_with_a_calibrated_model():
    rng = np.random.default_rng(1)
    truth = rng.random(20_000) < 0.5
    flip = np.where(truth, 0.3, 0.1)
    labels = truth ^ (rng.random(20_000) < flip)
    sure = rng.uniform(0.9, 1.0, 20_000)  # nearly separable, as the method assumes
    probability = np.where(truth, sure, 1 - sure)
    found = confident_counts(
        jnp.asarray(labels, jnp.int32), jnp.asarray(probability, jnp.float32), jnp.ones(20_000, bool)
    )
    error = 5 * np.sqrt(0.25 / 10_000)
    np.testing.assert_allclose(found.false_negative, 0.3, atol=error)
    np.testing.assert_allclose(found.false_positive, 0.1, atol=error)


def test_anchor_rates_by_hand():
    logits = jnp.array([-3, -2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3])
    low, high = jnp.quantile(logits, jnp.array([0.03, 0.97]))
    np.testing.assert_allclose([low, high], [-2.73, 2.73], atol=1e-5)
    found = label_estimates.anchor_rates(logits)
    np.testing.assert_allclose(found, [0.061226, 0.061226], atol=1e-6)
    some = label_estimates.anchor_rates(
        jnp.append(logits, jnp.nan), jnp.arange(11) < 10, quantile=0.97
    )
    np.testing.assert_array_equal(some, found)
    near = label_estimates.anchor_rates(jnp.array([-0.01, 0.01]))
    np.testing.assert_allclose(near, 0.49)  # where a correction is still possible
