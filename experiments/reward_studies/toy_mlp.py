"""A multilayer perceptron as two functions, for studies that train many at once."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Params = list[tuple[Array, Array]]
"""Kernel and bias of each layer."""


def init(key: jax.Array, sizes: tuple[int, ...]) -> Params:
    """Layers between `sizes`, the inputs first, scaled for ReLU."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (jax.random.normal(k, (a, b)) * (2.0 / a) ** 0.5, jnp.zeros(b))
        for k, a, b in zip(keys, sizes[:-1], sizes[1:])
    ]


def apply(params: Params, x: Float[Array, "*B D"]) -> Float[Array, "*B F"]:
    """ReLU between layers, none after the last."""
    for number, (kernel, bias) in enumerate(params):
        bias = bias.reshape((1,) * (x.ndim - 1) + (-1,))
        x = (jax.nn.relu(x) if number else x) @ kernel + bias
    return x
