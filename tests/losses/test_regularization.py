"""KL estimators and entropy: values and gradients by enumeration of a small distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxreward.losses import regularization
from jaxreward.losses.regularization import entropy, exact_kl, kl_estimate
from jaxreward.types import make_signal

LOGITS = np.array([0.8, -0.3, 0.1, -1.2, 0.4])
REFERENCE = np.array([-0.2, 0.5, 0.3, -0.4, 0.0])


def log_softmax(logits):
    return logits - scipy.special.logsumexp(logits)


LOG_P, LOG_Q = log_softmax(LOGITS), log_softmax(REFERENCE)
P, Q = np.exp(LOG_P), np.exp(LOG_Q)
FORWARD = float(np.sum(Q * (LOG_Q - LOG_P)))  # KL(ref || pi)
REVERSE = float(np.sum(P * (LOG_P - LOG_Q)))  # KL(pi || ref)


def estimates(logits, estimator, reference=LOG_Q):
    """The estimate at every outcome."""
    log_p = jax.nn.log_softmax(logits)
    everywhere = jnp.ones(log_p.shape, bool)
    return kl_estimate(log_p, jnp.asarray(reference, jnp.float32), everywhere, estimator)


def gradient_as_a_loss(estimator):
    """Expectation over `pi`, held fixed, of the estimate's gradient in the logits."""

    def loss(logits):
        return jnp.sum(jnp.asarray(P, jnp.float32) * estimates(logits, estimator))

    return jax.grad(loss)(jnp.asarray(LOGITS, jnp.float32))


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(estimator):
    values = estimates(jnp.asarray(LOGITS, jnp.float32), estimator)
    np.testing.assert_allclose(np.sum(P * np.asarray(values)), REVERSE, rtol=1e-6)


def test_k2_is_biased_in_the_third_order():
    def bias(size):
        log_q = log_softmax(LOGITS + size * REFERENCE)
        values = 0.5 * (log_q - LOG_P) ** 2  # float64: the bias is far below the value
        ours = estimates(jnp.asarray(LOGITS, jnp.float32), "k2", log_q)
        np.testing.assert_allclose(ours, values, rtol=1e-4, atol=1e-7)
        return np.sum(P * values) - np.sum(P * (LOG_P - log_q))

    assert abs(bias(1.0)) > 1e-4
    np.testing.assert_allclose(bias(0.02) / bias(0.01), 8.0, rtol=0.1)


def test_k3_is_never_negative_and_k1_is():
    logits = jnp.asarray(LOGITS, jnp.float32)
    assert np.all(np.asarray(estimates(logits, "k3")) >= 0)
    assert np.any(np.asarray(estimates(logits, "k1")) < 0)


def test_gradient_of_k1_is_zero():
    np.testing.assert_allclose(gradient_as_a_loss("k1"), np.zeros(5), atol=1e-7)


def test_gradient_of_k2_is_that_of_the_kl():
    # d KL(pi || ref) / d logit_v = p_v (log p_v - log q_v - KL)
    np.testing.assert_allclose(gradient_as_a_loss("k2"), P * (LOG_P - LOG_Q - REVERSE), atol=1e-6)


def test_gradient_of_k3_is_that_of_the_other_kl():
    # d KL(ref || pi) / d logit_v = p_v - q_v, which is another vector.
    np.testing.assert_allclose(gradient_as_a_loss("k3"), P - Q, atol=1e-6)
    assert np.max(np.abs((P - Q) - P * (LOG_P - LOG_Q - REVERSE))) > 0.02


def test_estimates_are_exact_near_zero():
    log_p = jnp.asarray([-1.0, -2.0], jnp.float32)
    log_q = log_p + jnp.asarray([0.0, 1e-3], jnp.float32)
    k3 = kl_estimate(log_p, log_q, jnp.ones(2, bool), "k3")
    difference = np.asarray(log_q, np.float64) - np.asarray(log_p, np.float64)
    np.testing.assert_allclose(k3, np.expm1(difference) - difference, rtol=1e-3, atol=0)
    assert k3[0] == 0


@pytest.mark.parametrize("estimator", regularization.KL_ESTIMATORS)
def test_padding_may_hold_anything(estimator):
    mask = jnp.asarray([True, False, False, False])
    log_p = jnp.asarray([-1.0, -jnp.inf, jnp.nan, -3.0], jnp.float32)
    log_q = jnp.asarray([-1.5, -jnp.inf, -1.0, jnp.inf], jnp.float32)

    def total(log_p):
        return jnp.sum(kl_estimate(log_p, log_q, mask, estimator))

    value, grad = jax.value_and_grad(total)(log_p)
    alone, own = jax.value_and_grad(
        lambda x: jnp.sum(kl_estimate(x, log_q[:1], mask[:1], estimator))
    )(log_p[:1])
    assert value == alone and grad[0] == own[0]
    np.testing.assert_array_equal(grad[1:], np.zeros(3))


def test_half_precision_is_taken_in_float32():
    log_p = jnp.asarray([-1.0], jnp.bfloat16)
    log_q = jnp.asarray([-1.5], jnp.float32)
    mask = jnp.ones(1, bool)
    assert kl_estimate(log_p, log_q, mask, "k1").dtype == jnp.float32


def test_unknown_estimator():
    with pytest.raises(ValueError, match="kl_estimator = 'k4'; allowed are 'k1', 'k2', 'k3'"):
        kl_estimate(jnp.zeros(1), jnp.zeros(1), jnp.ones(1, bool), "k4")


def test_exact_kl_and_entropy_match_scipy():
    log_p, log_q = jnp.asarray(LOG_P, jnp.float32), jnp.asarray(LOG_Q, jnp.float32)
    stacked = exact_kl(jnp.stack([log_p, log_q]), jnp.stack([log_q, log_p]))
    expected = [np.sum(scipy.special.rel_entr(P, Q)), np.sum(scipy.special.rel_entr(Q, P))]
    np.testing.assert_allclose(expected, [REVERSE, FORWARD], rtol=1e-12)
    np.testing.assert_allclose(stacked, expected, rtol=1e-6)
    np.testing.assert_allclose(entropy(log_p), np.sum(scipy.special.entr(P)), rtol=1e-6)


def test_gradient_of_exact_kl_and_entropy():
    reference = jnp.asarray(LOG_Q, jnp.float32)
    logits = jnp.asarray(LOGITS, jnp.float32)
    kl_grad = jax.grad(lambda x: exact_kl(jax.nn.log_softmax(x), reference))(logits)
    np.testing.assert_allclose(kl_grad, P * (LOG_P - LOG_Q - REVERSE), atol=1e-6)
    entropy_grad = jax.grad(lambda x: entropy(jax.nn.log_softmax(x)))(logits)
    own = -np.sum(P * LOG_P)
    np.testing.assert_allclose(entropy_grad, -P * (LOG_P + own), atol=1e-6)


def test_impossible_outcomes():
    log_p = jnp.log(jnp.asarray([0.5, 0.5, 0.0], jnp.float32))
    log_q = jnp.log(jnp.asarray([0.25, 0.25, 0.5], jnp.float32))
    none = jnp.log(jnp.asarray([0.5, 0.5, 0.0], jnp.float32))
    np.testing.assert_allclose(exact_kl(log_p, log_q), np.log(2.0), rtol=1e-6)
    np.testing.assert_allclose(exact_kl(log_p, none), 0.0, atol=1e-7)
    assert np.isinf(exact_kl(log_q, log_p))
    np.testing.assert_allclose(entropy(log_p), np.log(2.0), rtol=1e-6)
    assert np.all(np.isfinite(jax.grad(lambda x: exact_kl(x, log_q) + entropy(x))(log_p)))


def test_penalized_adds_and_records():
    signal = make_signal(jnp.zeros((1, 2)))

    def loss(params, signal):
        return params**2, {"a/b": params}

    def penalty(params, signal):
        return 3.0 * params

    def value_of(params, coefficient):
        return regularization.penalized(loss, penalty, coefficient, "a/kl")(params, signal)

    grad, metrics = jax.jit(jax.grad(value_of, has_aux=True))(jnp.asarray(2.0), jnp.asarray(0.5))
    np.testing.assert_allclose(grad, 2 * 2.0 + 0.5 * 3.0)
    assert metrics == {"a/b": 2.0, "a/kl": 6.0}
    with pytest.raises(ValueError, match="coefficient = nan; allowed is a finite number"):
        regularization.penalized(loss, penalty, float("nan"), "a/kl")
