"""Every kernel against the float64 oracle, values and gradients."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxreward.kernels.linear_log_prob import api, reference, xla

BLOCKED = [name for name in api.IMPLEMENTATIONS if name != "reference"]


def _inputs(rng, rows, width, vocabulary, scale=1.0):
    hidden = rng.standard_normal((rows, width)) * scale
    weight = rng.standard_normal((width, vocabulary)) / np.sqrt(width)
    targets = rng.integers(-1, vocabulary, rows).astype(np.int32)
    bias = rng.standard_normal(vocabulary)
    cotangents = rng.standard_normal((3, rows)) * (rng.random((3, rows)) > 0.3)
    return hidden, weight, targets, bias, cotangents


def _value_and_gradient(function, hidden, weight, bias, cotangents):
    def total(hidden, weight, bias):
        return sum(jnp.sum(g * out) for g, out in zip(cotangents, function(hidden, weight, bias)))

    outputs = function(hidden, weight, bias)
    return outputs, jax.grad(total, (0, 1, 2))(hidden, weight, bias)


def _oracle(hidden, weight, targets, bias, cotangents, **options):
    with jax.enable_x64(True):
        arrays = [jnp.asarray(x, jnp.float64) for x in (hidden, weight, bias, cotangents)]

        def function(h, w, b):
            return reference.linear_log_prob(h, w, jnp.asarray(targets), b, **options)

        result = _value_and_gradient(function, *arrays)
        return jax.tree.map(np.asarray, result)


@pytest.mark.parametrize("implementation", BLOCKED)
@given(
    rows=st.integers(1, 40),
    vocabulary=st.sampled_from([1, 2, 7, 130]),
    block_rows=st.sampled_from([1, 8, 64]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    softcap=st.sampled_from([None, 4.0]),
    seed=st.integers(0, 2**16),
)
def test_values_and_gradients(implementation, rows, vocabulary, block_rows, temperature, softcap, seed):
    hidden, weight, targets, bias, cotangents = _inputs(
        np.random.default_rng(seed), rows, 5, vocabulary
    )
    options = dict(temperature=temperature, logit_softcap=softcap)
    expected = _oracle(hidden, weight, targets, bias, cotangents, **options)

    def function(h, w, b):
        return api.linear_log_prob(
            h, w, jnp.asarray(targets), b,
            implementation=implementation, block_rows=block_rows, **options,
        )

    arrays = [jnp.asarray(x, jnp.float32) for x in (hidden, weight, bias, cotangents)]
    actual = _value_and_gradient(function, *arrays)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, e, rtol=2e-5, atol=2e-5)
    log_prob, entropy, _ = actual[0]
    assert np.all(np.asarray(log_prob) <= 0)
    assert np.all(np.asarray(entropy) >= 0)
    assert np.all(np.asarray(entropy) <= np.log(vocabulary) + 1e-5)


@pytest.mark.parametrize("implementation", BLOCKED)
@pytest.mark.parametrize("size", [1e4, -1e4, 0.0])
def test_extreme_logits(implementation, size):
    hidden = jnp.full((4, 2), size, jnp.float32)
    weight = jnp.asarray([[1.0, 0.0, 1.0], [0.0, 0.5, 0.0]], jnp.float32)
    targets = jnp.asarray([0, 1, 2, -1], jnp.int32)

    def total(h, w):
        outputs = api.linear_log_prob(h, w, targets, implementation=implementation)
        return sum(jnp.sum(out) for out in outputs), outputs

    (_, actual), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(hidden, weight)
    with jax.enable_x64(True):
        exact = [jnp.asarray(np.asarray(x), jnp.float64) for x in (hidden, weight)]
        expected = [np.asarray(x) for x in reference.linear_log_prob(*exact, targets)]
    for a, e in zip(actual, expected):
        np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-5)
    assert all(np.all(np.isfinite(g)) for g in gradients)
    assert float(actual[0][3]) == 0.0
    np.testing.assert_array_equal(gradients[0][3], 0.0)


def test_bfloat16_accumulates_in_float32():
    rng = np.random.default_rng(3)
    hidden, weight, targets, _, _ = _inputs(rng, 64, 256, 1000, scale=1.5)
    hidden, weight = (jnp.asarray(x, jnp.bfloat16) for x in (hidden, weight))
    log_prob, _, _ = api.linear_log_prob(hidden, weight, jnp.asarray(targets))
    assert log_prob.dtype == jnp.float32
    exact, _, _ = reference.linear_log_prob(
        hidden.astype(jnp.float32), weight.astype(jnp.float32), jnp.asarray(targets)
    )
    np.testing.assert_allclose(log_prob, exact, atol=1e-4)


def test_gradient_formed_in_the_forward_equals_recomputation():
    rng = np.random.default_rng(4)
    hidden, weight, targets, bias, cotangents = _inputs(rng, 37, 8, 53)
    hidden, weight, bias = (jnp.asarray(x, jnp.float32) for x in (hidden, weight, bias))
    targets, extras = jnp.asarray(targets), jnp.asarray(cotangents[0], jnp.float32)

    def token_loss(log_prob, entropy, advantage):
        return -advantage * jnp.exp(log_prob) + 0.1 * entropy

    def fused(h, w, b):
        total, _ = xla.linear_token_loss(h, w, targets, token_loss, extras, b, block_rows=8)
        return 2.0 * total

    def plain(h, w, b):
        log_prob, entropy, _ = reference.linear_log_prob(h, w, targets, b)
        loss = jnp.where(targets >= 0, token_loss(log_prob, entropy, extras), 0.0)
        return 2.0 * jnp.sum(loss)

    actual = jax.value_and_grad(fused, (0, 1, 2))(hidden, weight, bias)
    expected = jax.value_and_grad(plain, (0, 1, 2))(hidden, weight, bias)
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


def test_no_buffer_holds_all_logits():
    rows, width, vocabulary = 2048, 8, 4096

    def total(h, w, t):
        log_prob, entropy, _ = api.linear_log_prob(h, w, t, block_rows=64)
        return jnp.sum(log_prob + entropy)

    shapes = (
        jax.ShapeDtypeStruct((rows, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocabulary), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    compiled = jax.jit(jax.grad(total, (0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < rows * vocabulary * 4 / 8


def test_refusals():
    hidden, weight = jnp.zeros((3, 2)), jnp.zeros((2, 5))
    targets = jnp.zeros((3,), jnp.int32)
    with pytest.raises(ValueError, match="implementation = 'magic'; allowed are"):
        api.linear_log_prob(hidden, weight, targets, implementation="magic")
    with pytest.raises(ValueError, match="block_rows = 0; allowed is >= 1"):
        api.linear_log_prob(hidden, weight, targets, block_rows=0)
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="weight"):
        api.linear_log_prob(hidden, weight.T, targets)
