import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.training.noise_aware import distill_levels

START = jnp.zeros(2)


def score(params, estimates, prompts):
    return estimates @ params + 0 * prompts


def data(key):
    clean = jax.random.normal(key, (64, 2))
    target = clean @ jnp.array([1.0, -2.0])
    # the noisiest level has lost the second coordinate's sign
    estimates = jnp.stack([clean * jnp.array([[1.0, -1.0]]), clean])
    return estimates, jnp.zeros(64), target


def learn(key, steps, **options):
    return distill_levels(
        key, START, score, *data(key), steps=steps, batch=64, learning_rate=0.05, **options
    )


def test_every_level_learns_its_own_reward(key):
    learned = learn(key, 300)
    np.testing.assert_allclose(learned, [[1.0, 2.0], [1.0, -2.0]], atol=0.1)


def test_order_decides_where_a_level_starts(key):
    down, up, apart = (learn(key, 3, order=o) for o in ("descending", "ascending", "none"))
    alone = 0.05 * 3  # the most that three steps of AdamW go
    assert np.max(np.abs(apart)) <= alone + 1e-3
    assert float(down[0, 0]) > alone and float(up[1, 0]) > alone  # went on from the other level
    np.testing.assert_allclose(down[1], apart[1], rtol=1e-5)
    np.testing.assert_allclose(up[0], apart[0], rtol=1e-5)


def test_bad_input_is_refused(key):
    with pytest.raises(ValueError, match="order = 'random'"):
        learn(key, 1, order="random")
    with pytest.raises(ValueError, match="steps = 0"):
        learn(key, 0)
