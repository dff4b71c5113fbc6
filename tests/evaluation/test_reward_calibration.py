"""Calibration of probabilities and of rewards as log-odds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.evaluation import reward_calibration as calibration


def test_reliability_by_hand():
    probability = jnp.array([0.1, 0.15, 0.9, 1.0, 0.9])
    outcome = jnp.array([0.0, 1.0, 1.0, 1.0, 0.0])
    mask = jnp.array([True, True, True, True, False])
    diagram = calibration.reliability_diagram(probability, outcome, mask, bins=5)
    np.testing.assert_array_equal(diagram.count, [2, 0, 0, 0, 2])
    np.testing.assert_allclose(diagram.probability, [0.125, 0, 0, 0, 0.95])
    np.testing.assert_allclose(diagram.outcome, [0.5, 0, 0, 0, 1])
    error = calibration.expected_calibration_error(diagram)
    assert error == pytest.approx(0.5 * 0.375 + 0.5 * 0.05)
    squares = [0.01, 0.85**2, 0.01, 0.0]
    assert calibration.brier_score(probability, outcome, mask) == pytest.approx(np.mean(squares))
    with pytest.raises(ValueError, match="bins = 0"):
        calibration.reliability_diagram(probability, outcome, bins=0)


def test_calibrated_predictions_have_little_error(key):
    keys = jax.random.split(key)
    probability = jax.random.uniform(keys[0], (20_000,))
    outcome = jax.random.bernoulli(keys[1], probability).astype(jnp.float32)
    error = lambda p: calibration.expected_calibration_error(
        calibration.reliability_diagram(p, outcome))
    assert error(probability) < 0.02
    assert error(probability**3) > 0.1


def test_the_scale_of_rewards_is_found(key):
    keys = jax.random.split(key)
    true = 2.0 * jax.random.normal(keys[0], (20_000,))
    right = jax.random.bernoulli(keys[1], jax.nn.sigmoid(true))
    margin = jnp.where(right, true, -true) * 7.0  # the reward is 7 times the log-odds
    scale = calibration.best_scale(margin)
    assert scale == pytest.approx(1 / 7, rel=0.05)
    found = calibration.preference_confidence(margin, scale)
    diagram = calibration.reliability_diagram(*found)
    assert calibration.expected_calibration_error(diagram) < 0.02
    assert diagram.count[:5].sum() == 0  # confidence is at least 1/2
    masked = jnp.concatenate([margin, jnp.full(10, jnp.nan)])
    assert calibration.best_scale(masked, jnp.isfinite(masked)) == pytest.approx(float(scale))


def test_scale_at_its_limits():
    assert calibration.best_scale(jnp.array([2.0, 4.0]), most=10) == pytest.approx(10 / 3)
    assert calibration.best_scale(jnp.array([-2.0, -4.0])) == pytest.approx(0.0, abs=1e-6)
    assert np.isfinite(calibration.best_scale(jnp.zeros(3)))


def test_a_tie_is_half_right():
    confidence, right = calibration.preference_confidence(jnp.array([0.0, 1.0, -1.0]))
    np.testing.assert_allclose(confidence, [0.5, 0.731059, 0.731059], rtol=1e-5)
    np.testing.assert_array_equal(right, [0.5, 1.0, 0.0])
