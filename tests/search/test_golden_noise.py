import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.search import golden_noise
from jaxreward.search.golden_noise import Levels

LEVELS = Levels(np.sqrt(0.1), np.sqrt(0.9), np.sqrt(0.9), np.sqrt(0.1))
NOISE, PROMPT = jnp.array([1.0, -0.5]), jnp.array([0.4, 0.8])


def linear(x, conditional):
    return 0.5 * x - 0.2 * PROMPT if conditional else 0.5 * x


def constant(_, conditional):
    free = jnp.array([0.3, -0.1])
    return free - 0.2 * PROMPT if conditional else free


def levels32():
    return Levels(*map(float, LEVELS))


def test_linear_network_of_the_card():
    moved, between = golden_noise.redenoise(NOISE, linear, levels32())
    np.testing.assert_allclose(golden_noise.move_factor(levels32()), 0.8432740, atol=1e-7)
    np.testing.assert_allclose(between, [2.848211, 1.358699], atol=5e-6)
    np.testing.assert_allclose(moved, [2.082853, 0.890854], atol=5e-6)
    first = golden_noise.guided(linear, NOISE, 5.5)
    second = golden_noise.guided(linear, between, 1.0)
    closed = NOISE + golden_noise.move_factor(levels32()) * (second - first)
    np.testing.assert_allclose(moved, closed, atol=2e-6)


def test_constant_network_of_the_card():
    moved, _ = golden_noise.redenoise(NOISE, constant, levels32())
    np.testing.assert_allclose(moved, [1.303579, 0.107157], atol=2e-6)
    same, _ = golden_noise.redenoise(NOISE, constant, levels32(), inversion_guidance=5.5)
    np.testing.assert_allclose(same, NOISE, atol=1e-6)


def test_only_preferred_pairs_are_kept(key):
    noise = jnp.array([[0.0], [1.0], [2.0], [3.0]])
    improve = lambda x: jnp.where(x < 2, x + 1, x)
    pairs = golden_noise.collect(noise, improve, lambda _, x: x[:, 0], key)
    np.testing.assert_array_equal(pairs.kept, [True, True, False, False])  # a tie is not kept
    np.testing.assert_array_equal(pairs.golden[:, 0], [1, 2, 2, 3])
    assert not np.any(golden_noise.collect(noise, improve, lambda _, x: x[:, 0], key, 1.0).kept)


def test_noisy_reward_gets_two_keys(key):
    noise = jnp.zeros((200, 1))
    reward = lambda k, x: jax.random.normal(k, (x.shape[0],))
    pairs = golden_noise.collect(noise, lambda x: x, reward, key)
    assert not np.any(np.isclose(pairs.before, pairs.after))
    assert abs(float(jnp.mean(pairs.kept)) - 0.5) < 4 * 0.5 / np.sqrt(200)


def test_batches_hold_kept_pairs_only(key):
    kept = jnp.array([False, True, False, True])
    drawn = golden_noise.draw_kept(key, kept, 400)
    counts = np.bincount(drawn, minlength=4)
    assert counts[0] == counts[2] == 0 and abs(counts[1] - 200) < 4 * 10
    assert np.all(np.bincount(golden_noise.draw_kept(key, jnp.zeros(4, bool), 400)) > 50)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="inversion_guidance = 6.0"):
        golden_noise.redenoise(NOISE, linear, levels32(), inversion_guidance=6.0)
    with pytest.raises(ValueError, match="alpha = 0.0"):
        golden_noise.redenoise(NOISE, linear, levels32()._replace(alpha=0.0))
