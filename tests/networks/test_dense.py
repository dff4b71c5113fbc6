"""The dense and convolution layers give the values and gradients of the plain ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.networks import dense


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 5), (5,)])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("features", [2, 7])
def test_values_and_gradients_are_those_of_the_plain_layer(shape, use_bias, features):
    x = jax.random.normal(jax.random.key(0), shape)
    ours = dense.Dense(features, "float32", "float32", use_bias)
    assert_same(ours, nn.Dense(features, use_bias=use_bias), x)


@pytest.mark.parametrize("shape", [(3, 8, 6, 5), (1, 4, 4, 1), (2, 2, 2, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_is_the_plain_one(shape, stride):
    x = jax.random.normal(jax.random.key(0), shape)
    assert_same(dense.Conv(4, stride), nn.Conv(4, (3, 3), (stride, stride)), x)


def test_convolution_under_vmap():
    x = jax.random.normal(jax.random.key(0), (3, 2, 4, 6, 2))
    layer = dense.Conv(3)
    params = jax.vmap(layer.init)(jax.random.split(jax.random.key(1), 3), x)
    grad = jax.grad(lambda params, x: jnp.sum(jnp.sin(layer.apply(params, x))), argnums=(0, 1))
    together = jax.vmap(grad)(params, x)
    alone = [grad(jax.tree.map(lambda a: a[i], params), x[i]) for i in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together, stacked)


@pytest.mark.parametrize("shape", [(1, 3, 1, 4), (2, 3, 1), (1, 1), (4,), (1,), (2, 0, 1, 3)])
def test_squeezed(shape):
    x = jax.random.normal(jax.random.key(0), shape)
    weights = jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(shape)
    loss = lambda function: jax.grad(lambda x: jnp.sum(weights * function(x)))(x)
    same = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)
    same(dense.squeezed(jax.nn.softmax, x), jax.nn.softmax(x))
    same(loss(lambda x: dense.squeezed(jax.nn.softmax, x)), loss(jax.nn.softmax))


def assert_same(ours, plain, x):
    """Parameters at the start, values and both gradients, with a bias that is not 0."""
    params = plain.init(jax.random.key(1), x)
    jax.tree.map(np.testing.assert_array_equal, ours.init(jax.random.key(1), x), params)
    move = lambda a: a + 0.1 * jnp.linspace(0.0, 1.0, a.size).reshape(a.shape)
    moved = jax.tree.map(move, params)

    def loss(layer):
        return lambda params, x: jnp.sum(jnp.sin(layer.apply(params, x)))

    expected = jax.value_and_grad(loss(plain), argnums=(0, 1))(moved, x)
    found = jax.jit(jax.value_and_grad(loss(ours), argnums=(0, 1)))(moved, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


def test_one_program_for_many_members():
    x = jax.random.normal(jax.random.key(0), (4, 3, 5))
    layer = dense.Dense(2, "float32", "float32")
    params = jax.vmap(layer.init)(jax.random.split(jax.random.key(1), 4), x)
    grad = jax.grad(lambda params, x: jnp.sum(jnp.tanh(layer.apply(params, x))))
    together = jax.vmap(grad)(params, x)
    alone = [grad(jax.tree.map(lambda a: a[i], params), x[i]) for i in range(4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together, stacked)


def test_activations_in_bfloat16_have_float32_parameter_gradients():
    x = jax.random.normal(jax.random.key(0), (6, 5)).astype(jnp.bfloat16)
    layer = dense.Dense(4, "bfloat16", "float32")
    params = layer.init(jax.random.key(1), x)
    value = layer.apply(params, x)
    grads = jax.grad(lambda p: jnp.sum(layer.apply(p, x).astype(jnp.float32)))(params)
    assert value.dtype == jnp.bfloat16
    assert grads["params"]["kernel"].dtype == jnp.float32
