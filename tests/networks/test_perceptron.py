import jax
import jax.numpy as jnp
import numpy as np

from jaxreward.networks.perceptron import Perceptron, time_features


def test_layers_and_residuals(key):
    network = Perceptron((5, 5), 2)
    x = jax.random.normal(key, (4, 3))
    params = network.init(key, x)["params"]
    dense = lambda i, x: x @ params[f"Dense_{i}"]["kernel"] + params[f"Dense_{i}"]["bias"][None]
    h = jax.nn.silu(dense(0, x))
    h = h + jax.nn.silu(dense(1, h))
    np.testing.assert_allclose(network.apply({"params": params}, x), dense(2, h), rtol=1e-5)


def test_time_features_tell_times_apart():
    times = jnp.linspace(0, 1, 33)
    features = time_features(times)
    assert features.shape == (33, 16)
    gaps = jnp.linalg.norm(features[1:] - features[:-1], axis=1)
    assert float(jnp.min(gaps)) > 0.1
    np.testing.assert_allclose(features[0], [1.0] * 8 + [0.0] * 8, atol=1e-6)
