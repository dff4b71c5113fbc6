"""Losses of single items: CausalRM's numbers, unbiasedness by enumeration, other terms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward import channel as channels
from jaxreward.losses import pointwise, reduction

CHANNEL = channels.binary(0.1, 0.2)


def array(*values):
    return jnp.asarray(values, jnp.float32)


Z, R = array(0.7, -0.3, 1.2, -2, 0.4), array(1, 0, 1, 0, 0)
OBSERVED = jnp.array([True, True, True, False, False])
P, M = array(0.5, 0.25, 0.04, 0.3, 0.8), array(0.8, 0.3, 0.9, 0.2, 0.6)


def over_batch(losses):
    return float(reduction.mean(losses, divide_by="batch"))


# CausalRM (arXiv 2603.18736)


def test_noise_aware_losses_of_one_item():
    z = array(0.7, 0.7)
    labels = channels.correct(array(1.0, 0.0), CHANNEL)
    np.testing.assert_allclose(labels, [1.285714, -0.142857], atol=1e-6)
    clean = pointwise.cross_entropy(z, array(1.0, 0.0))
    noisy = pointwise.cross_entropy(z, labels)
    np.testing.assert_allclose(clean, [0.403186, 1.103186], atol=1e-6)
    np.testing.assert_allclose(noisy, [0.203186, 1.203186], atol=1e-6)
    means = 0.8 * noisy[0] + 0.2 * noisy[1], 0.1 * noisy[0] + 0.9 * noisy[1]
    np.testing.assert_allclose(means, clean, atol=1e-6)


def test_inverse_propensity():
    corrected = pointwise.cross_entropy(Z, channels.correct(R, CHANNEL))
    expected = [0.203186, 0.511498, -0.079575, -0.158786, 0.970158]
    np.testing.assert_allclose(corrected, expected, atol=1e-6)
    plain = pointwise.cross_entropy(Z, R)
    found = [
        over_batch(pointwise.inverse_propensity(corrected, OBSERVED, P)),
        over_batch(pointwise.inverse_propensity(plain, OBSERVED, P)),
        float(reduction.mean(plain, OBSERVED.astype(jnp.float32))),
    ]
    np.testing.assert_allclose(found, [0.331324, 1.131324, 0.406941], atol=2e-6)


def test_doubly_robust():
    label = channels.correct(R, CHANNEL)
    pseudo = pointwise.doubly_robust_label(label, M, OBSERVED, P)
    np.testing.assert_allclose(pseudo, [1.771429, -1.471429, 4.757143, 0.2, 0.6], atol=2e-6)

    def by_losses(z):
        corrected, imputed = (pointwise.cross_entropy(z, y) for y in (label, M))
        return pointwise.doubly_robust(corrected, imputed, OBSERVED, P)

    items = by_losses(Z)
    expected = [-0.136814, 0.112927, -4.245289, 0.526928, 0.673015]
    np.testing.assert_allclose(items, expected, atol=5e-6)
    assert over_batch(items) == pytest.approx(-0.613847, abs=2e-6)
    for term in (pointwise.cross_entropy,):
        np.testing.assert_allclose(term(Z, pseudo), items, atol=5e-6)
        here = jax.grad(lambda z: jnp.mean(by_losses(z)))(Z)
        there = jax.grad(lambda z: jnp.mean(term(z, pseudo)))(Z)
        np.testing.assert_allclose(here, there, atol=2e-6)


@pytest.mark.parametrize("term", [pointwise.cross_entropy, pointwise.squared])
def test_limits(term):
    everything, one = jnp.ones(5, bool), jnp.ones(5)
    plain = term(Z, R)
    ips = pointwise.inverse_propensity(plain, everything, one)
    robust = pointwise.doubly_robust(plain, term(Z, M), everything, one)
    np.testing.assert_allclose(ips, plain, atol=1e-6)
    np.testing.assert_allclose(robust, plain, atol=1e-6)
    nothing = jnp.zeros(5, bool)
    assert over_batch(pointwise.inverse_propensity(plain, nothing, P)) == 0
    imputed = term(Z, M)
    np.testing.assert_allclose(pointwise.doubly_robust(plain, imputed, nothing, P), imputed)


@pytest.mark.parametrize("term", [pointwise.cross_entropy, pointwise.squared])
@pytest.mark.parametrize("wrong", ["nothing", "imputation", "propensity", "both"])
def test_unbiased_by_enumeration_if_either_model_is_right(term, wrong):
    """Over every outcome of feedback and flip of one item with P(true 1) = .65."""
    true, p = 0.65, 0.3
    used_p = 0.6 if wrong in ("propensity", "both") else p
    imputed = 0.2 if wrong in ("imputation", "both") else true
    ideal = true * term(Z, jnp.ones(5)) + (1 - true) * term(Z, jnp.zeros(5))
    expected = {"ips": 0.0, "robust": 0.0}
    for observed, bit in itertools.product((False, True), (0.0, 1.0)):
        chance = {0.0: true * 0.2 + (1 - true) * 0.9, 1.0: true * 0.8 + (1 - true) * 0.1}[bit]
        chance *= p if observed else 1 - p
        mask, propensity = jnp.full(5, observed), jnp.full(5, used_p)
        label = channels.correct(jnp.full(5, bit), CHANNEL)
        target = pointwise.doubly_robust_label(label, jnp.full(5, imputed), mask, propensity)
        expected["robust"] += chance * term(Z, target)
        ips = pointwise.inverse_propensity(term(Z, label), mask, propensity)
        expected["ips"] += chance * ips
    bias = {name: float(jnp.max(jnp.abs(own - ideal))) for name, own in expected.items()}
    assert (bias["robust"] < 1e-5) == (wrong != "both")
    assert (bias["ips"] < 1e-5) == (wrong in ("nothing", "imputation"))


def test_what_was_not_observed_may_be_anything():
    losses = jnp.where(OBSERVED, pointwise.cross_entropy(Z, R), jnp.nan)
    propensity = jnp.where(OBSERVED, P, jnp.nan)
    found = pointwise.doubly_robust(losses, M, OBSERVED, propensity)
    assert np.all(np.isfinite(found))
    grad = jax.grad(
        lambda l: over(pointwise.inverse_propensity(l, OBSERVED, propensity))
    )(losses)
    assert np.all(np.isfinite(grad))


def over(losses):
    return reduction.mean(losses, divide_by="batch")


def test_no_gradient_reaches_the_propensity():
    losses = pointwise.cross_entropy(Z, R)
    loss = lambda p: over(pointwise.doubly_robust(losses, M, OBSERVED, p))
    np.testing.assert_array_equal(jax.grad(loss)(P), np.zeros(5))


# Other terms


def test_squared_has_the_gradient_of_the_squared_error():
    label = array(1.3, -0.2, 0.5, 1.0, 0.0)
    here = jax.grad(lambda z: jnp.sum(pointwise.squared(z, label)))(Z)
    there = jax.grad(lambda z: jnp.sum(jnp.square(jax.nn.sigmoid(z) - label)))(Z)
    np.testing.assert_allclose(here, there, atol=1e-6)


def test_regression():
    scores, target = array(1.0, 5.0), array(0.0, 0.0)
    np.testing.assert_allclose(pointwise.regression(scores, target), [0.5, 12.5])
    np.testing.assert_allclose(pointwise.regression(scores, target, huber=2), [0.5, 8.0])


def test_gaussian_is_least_at_the_moments():
    seen = array(1.0, 2.0, 6.0)

    def loss(parameters):
        ones = jnp.ones(3)
        return jnp.mean(pointwise.gaussian(parameters[0] * ones, parameters[1] * ones, seen))

    moments = array(3.0, 0.5 * np.log(14 / 3))
    np.testing.assert_allclose(jax.grad(loss)(moments), [0.0, 0.0], atol=1e-6)


def test_quantile_is_least_at_the_quantile():
    seen, levels = jnp.arange(100.0), array(0.1, 0.5)
    def loss(q):
        guesses = jnp.broadcast_to(q, (100, 2))
        return jnp.mean(pointwise.quantile(guesses, seen, levels))

    at_best = loss(array(9.5, 49.5))
    for worse in (array(14.0, 49.5), array(5.0, 49.5), array(9.5, 40.0)):
        assert float(loss(worse)) > float(at_best)
    one = pointwise.quantile(jnp.zeros((1, 2)), array(2.0), levels)
    np.testing.assert_allclose(one, [(0.2 + 1.0) / 2], rtol=1e-6)


def test_verdicts():
    yes, no = jnp.log(array(0.6)), jnp.log(array(0.1))
    assert float(pointwise.verdict(yes, no, array(1.0))[0]) == pytest.approx(-np.log(0.6))
    assert float(pointwise.verdict(yes, no, array(0.0))[0]) == pytest.approx(-np.log(0.1))


def test_tokens():
    log_probs = jnp.array([[-1.0, -3.0, jnp.nan], [jnp.nan, jnp.nan, jnp.nan]])
    mask = jnp.array([[True, True, False], [False, False, False]])
    np.testing.assert_allclose(pointwise.token(log_probs, mask), [2.0, 0.0])


@pytest.mark.parametrize("clip", [0, 1.5, -0.1])
def test_bad_clips(clip):
    with pytest.raises(ValueError, match=f"clip = {clip}"):
        pointwise.inverse_propensity(Z, OBSERVED, P, clip=clip)


def test_bad_huber():
    with pytest.raises(ValueError, match="huber = 0"):
        pointwise.regression(Z, Z, huber=0)
