"""Tests of jaxreward.transforms.rates_calibrated: rates from a split with trusted labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.transforms import rates_calibrated
from jaxreward.types import make_signal

KEY = jax.random.key(4)


def run(transform, signal):
    return jax.jit(transform.update)(KEY, signal, transform.init())


def both(signal):
    return float(signal.rates.false_positive), float(signal.rates.false_negative)


def test_a_calibration_split():
    found = rates_calibrated.calibrate([53, 20], [47, 180], [7, 40], [93, 160])
    np.testing.assert_allclose(found.rates.false_positive, [0.53, 0.1])
    np.testing.assert_allclose(found.rates.false_negative, [0.07, 0.2])
    large = rates_calibrated.calibrate(0.53 * 750, 0.47 * 750, 0.07 * 750, 0.93 * 750)
    np.testing.assert_allclose(large.relative_half_width, 0.1003, atol=5e-5)
    np.testing.assert_allclose(found.relative_half_width[1], 0.0990, atol=5e-5)


def test_the_rates_of_a_split_are_told():
    signal = make_signal(jnp.zeros((2, 3)), type=jnp.array([1, 0]))
    after, _ = run(
        rates_calibrated.calibrated([10, 20], [90, 180], [20, 40], [80, 60], by="type"), signal
    )
    np.testing.assert_allclose(after.rates.false_positive, [0.1, 0.1], rtol=1e-6)
    np.testing.assert_allclose(after.rates.false_negative, [0.4, 0.2], rtol=1e-6)
    np.testing.assert_allclose(after.metrics["rates/false_negative"], 0.3, rtol=1e-6)
    low, high = (float(after.metrics[f"rates/false_negative_1_{end}"]) for end in ("low", "high"))
    assert low < 0.4 < high
    whole = run(rates_calibrated.calibrated(10, 90, 20, 80), signal)[0]
    np.testing.assert_allclose(both(whole), (0.1, 0.2), rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rates_calibrated.calibrate(1, 2, -3, 4), "counts = .*-3.*allowed are counts >= 0"),
        (lambda: rates_calibrated.calibrate(0, 0, 3, 4), "both classes present"),
        (lambda: rates_calibrated.calibrate([1, 2], [2, 2], [3], [4]), "of equal length"),
        (lambda: rates_calibrated.calibrated(1, 2, 3, 4, by="type"), "by = 'type' with counts 1"),
        (lambda: rates_calibrated.calibrated(60, 40, 50, 50), "cannot be corrected"),
    ],
)
def test_wrong_input_names_the_field_the_value_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
