"""The fused noise is that of `jax.random`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.policies import gumbel, sampling


@pytest.mark.parametrize("shape", [(7,), (3, 5, 11), (2, 1, 4099)])
def test_equals_the_noise_of_jax(shape):
    @jax.jit
    def run(key):
        drawn = gumbel.gumbel(key, shape), gumbel._bits(key, shape)
        return drawn, (jax.random.gumbel(key, shape), jax.random.bits(key, shape))

    (drawn, bits), (expected, expected_bits) = run(jax.random.fold_in(jax.random.key(3), 9))
    np.testing.assert_array_equal(bits, expected_bits)
    np.testing.assert_allclose(drawn, expected, rtol=1e-6, atol=1e-6)
    assert drawn.dtype == jnp.float32


def test_under_vmap_every_key_has_its_own_noise():
    @jax.jit
    def run(keys):
        drawn = jax.vmap(lambda key: gumbel.gumbel(key, (6,)))(keys)
        return drawn, jax.lax.map(lambda key: jax.random.gumbel(key, (6,)), keys)

    drawn, expected = run(jax.random.split(jax.random.key(1), 4))
    np.testing.assert_allclose(drawn, expected, rtol=1e-6, atol=1e-6)


def test_other_kinds_of_keys_are_left_to_jax():
    key = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(gumbel.gumbel(key, (5,)), jax.random.gumbel(key, (5,)))


def test_tokens_are_those_of_a_plain_gumbel_maximum():
    @jax.jit
    def run(key):
        log_probs = jax.nn.log_softmax(3 * jax.random.normal(jax.random.key(0), (400, 65)))
        log_probs = jnp.where(jnp.arange(65)[None, :] % 7 == 0, -jnp.inf, log_probs)
        noisy = log_probs + jax.random.gumbel(key, log_probs.shape)
        return sampling.sample(key, log_probs), jnp.argmax(noisy, axis=-1), log_probs

    (tokens, picked), expected, log_probs = jax.device_get(run(jax.random.key(5)))
    np.testing.assert_array_equal(tokens, expected)
    np.testing.assert_array_equal(picked, log_probs[np.arange(400), expected])
