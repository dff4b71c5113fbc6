"""The dense and convolution layers give the values and gradients of the plain ones."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.networks import dense


def normal(shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 5), (5,)])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("features", [2, 7])
def test_values_and_gradients_are_those_of_the_plain_layer(shape, use_bias, features):
    ours = dense.Dense(features, "float32", "float32", use_bias)
    assert_same(ours, nn.Dense(features, use_bias=use_bias), normal(shape))


@pytest.mark.parametrize("shape", [(3, 8, 6, 5), (1, 4, 4, 1), (2, 2, 2, 3)])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_is_the_plain_one(shape, stride):
    assert_same(dense.Conv(4, stride), nn.Conv(4, (3, 3), (stride, stride)), normal(shape))


def assert_same(ours, plain, x):
    """Parameters at the start, values and both gradients, with a bias that is not 0."""
    move = lambda a: a + 0.1 * jnp.linspace(0.0, 1.0, a.size).reshape(a.shape)
    key = jax.random.key(1)

    def results(layer):
        loss = lambda params, x: jnp.sum(jnp.sin(layer.apply(params, x)))
        moved = jax.tree.map(move, plain.init(key, x))
        return layer.init(key, x), jax.value_and_grad(loss, argnums=(0, 1))(moved, x)

    (start, found), (plain_start, expected) = jax.jit(lambda: (results(ours), results(plain)))()
    jax.tree.map(np.testing.assert_array_equal, start, plain_start)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), found, expected)


@pytest.mark.parametrize(
    "layer, shape",
    [(dense.Conv(3), (3, 2, 4, 6, 2)), (dense.Dense(2, "float32", "float32"), (4, 3, 5))],
    ids=["convolution", "dense"],
)
def test_one_program_for_many_members(layer, shape):
    """Under `vmap` over parameters and inputs the gradients are those of a loop."""
    x, keys = normal(shape), jax.random.split(jax.random.key(1), shape[0])

    @jax.jit
    def run(keys, x):
        params = jax.vmap(layer.init)(keys, x)
        loss = lambda params, x: jnp.sum(jnp.sin(layer.apply(params, x)))
        grad = jax.grad(loss, argnums=(0, 1))
        return jax.vmap(grad)(params, x), jax.lax.map(lambda one: grad(*one), (params, x))

    together, alone = run(keys, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together, alone)


@pytest.mark.parametrize("shape", [(1, 3, 1, 4), (2, 3, 1), (1, 1), (4,), (1,), (2, 0, 1, 3)])
def test_squeezed(shape):
    x = normal(shape)
    weights = jnp.asarray(np.cos(np.arange(x.size, dtype=np.float32)).reshape(shape))

    def both(function):
        return function(x), jax.grad(lambda x: jnp.sum(weights * function(x)))(x)

    ours = lambda x: dense.squeezed(jax.nn.softmax, x)
    found, expected = jax.jit(lambda: (both(ours), both(jax.nn.softmax)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_activations_in_bfloat16_have_float32_parameter_gradients():
    layer = dense.Dense(4, "bfloat16", "float32")

    @jax.jit
    def run(x):
        x = x.astype(jnp.bfloat16)
        params = layer.init(jax.random.key(1), x)
        loss = lambda params: jnp.sum(layer.apply(params, x).astype(jnp.float32))
        return layer.apply(params, x), jax.grad(loss)(params)

    value, grads = run(normal((6, 5)))
    assert value.dtype == jnp.bfloat16
    assert grads["params"]["kernel"].dtype == jnp.float32
