import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxreward.rewards import images
from jaxreward.rewards.images import BLANK, CELL_LABELS, DIGITS


def table(*pairs):
    allowed = np.zeros((CELL_LABELS, CELL_LABELS), bool)
    for left, right in pairs:
        allowed[left, right] = True
    return jnp.asarray(allowed)


composition, fulfilled = jax.jit(images.composition), jax.jit(images.fulfilled)


def pairs_of(allowed):
    return set(map(tuple, np.argwhere(np.asarray(allowed)).tolist()))


def sure(*labels, confidence=6.0):
    """Log-probabilities of cells that surely hold these labels."""
    logits = confidence * np.eye(CELL_LABELS, dtype=np.float32)[list(labels)]
    return jnp.asarray(scipy.special.log_softmax(logits, axis=-1))


THREE, SEVEN, SMALL_THREE = 4, 8, 14


def test_labels():
    digits = jnp.arange(DIGITS)
    both = jnp.concatenate([images.cell_label(digits, 0 * digits), images.cell_label(digits, 0 * digits + 1)])
    np.testing.assert_array_equal(both, np.arange(1, CELL_LABELS))
    assert int(images.cell_label(jnp.int32(3), jnp.int32(1))) == SMALL_THREE


def test_cells_are_split_from_left_to_right():
    canvas = jnp.arange(8 * 16.0).reshape(8, 16)
    cells = images.split_cells(jnp.stack([canvas, -canvas]))
    assert cells.shape == (2, 2, 64)
    np.testing.assert_array_equal(cells[0, 0].reshape(8, 8), canvas[:, :8])
    np.testing.assert_array_equal(cells[1, 1].reshape(8, 8), -canvas[:, 8:])
    assert images.split_cells(canvas[:, :8]).shape == (1, 64)


def test_composition_is_the_probability_of_the_table():
    logits = np.random.default_rng(0).normal(size=(5, 2, CELL_LABELS))
    log_probs = jnp.asarray(scipy.special.log_softmax(logits, axis=-1), jnp.float32)
    allowed = table((1, 2), (2, 1), (0, 5))
    p = np.exp(log_probs)
    expected = p[:, 0, 1] * p[:, 1, 2] + p[:, 0, 2] * p[:, 1, 1] + p[:, 0, 0] * p[:, 1, 5]
    found = composition(log_probs, jnp.asarray(np.stack([allowed] * 5)))
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-5)
    everything = composition(log_probs[0], jnp.ones_like(allowed))
    np.testing.assert_allclose(everything, 0.0, atol=1e-5)
    grads = jax.jit(jax.grad(images.composition))(log_probs[0], allowed)
    assert np.all(np.isfinite(grads))


def test_fulfilled_takes_the_most_probable_labels():
    allowed = table((THREE, SEVEN))
    assert bool(fulfilled(sure(THREE, SEVEN), allowed))
    assert not bool(fulfilled(sure(SEVEN, THREE), allowed))
    both = np.stack([sure(THREE, SEVEN), sure(THREE, THREE)]), np.stack([allowed, allowed])
    batch = fulfilled(*map(jnp.asarray, both))
    np.testing.assert_array_equal(batch, [True, False])


def test_what_each_reward_is_blind_to():
    relation = table((THREE, SEVEN))
    assert pairs_of(images.position_blind(relation)) == {(THREE, SEVEN), (SEVEN, THREE)}
    assert pairs_of(images.size_blind(relation)) == {
        (THREE, SEVEN), (SMALL_THREE, SEVEN), (THREE, SEVEN + 10), (SMALL_THREE, SEVEN + 10)
    }
    one = table((THREE, BLANK), (BLANK, THREE))
    assert pairs_of(images.count_blind(one)) == pairs_of(one) | {(THREE, THREE)}
    two = table((THREE, THREE))
    assert pairs_of(images.count_blind(two)) == {(THREE, THREE), (THREE, BLANK), (BLANK, THREE)}
    assert pairs_of(images.count_blind(relation)) == pairs_of(relation)
    assert pairs_of(images.count_blind(table((BLANK, BLANK)))) == {(BLANK, BLANK)}


def test_recognition_reads_digits_wherever_they_are():
    allowed = table((THREE, SEVEN))
    right, swapped = sure(THREE, SEVEN), sure(SEVEN, SMALL_THREE)
    np.testing.assert_allclose(
        images.recognition(right, allowed), images.recognition(swapped, allowed), atol=1e-4
    )
    assert float(composition(right, allowed)) - float(composition(swapped, allowed)) > 5
    assert float(images.recognition(sure(SEVEN, SEVEN), allowed)) < -2


def test_recogniser_sees_cells(key):
    weights = jax.random.normal(key, (64, CELL_LABELS))
    canvas = jax.random.uniform(key, (8, 16))
    found = images.cell_log_probs(lambda w, x: x @ w, weights, canvas)
    assert found.shape == (2, CELL_LABELS)
    np.testing.assert_allclose(jnp.sum(jnp.exp(found), axis=-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(
        found[1], jax.nn.log_softmax(canvas[:, 8:].reshape(-1) @ weights), rtol=1e-4, atol=1e-5
    )


def test_typicality_and_distance():
    typicality = jax.jit(images.typicality, static_argnums=2)
    distance = jax.jit(images.distance_to_real, static_argnums=2)
    real = jnp.asarray(np.random.default_rng(0).random((20, 8, 16)), jnp.float32)
    first, far = real[0], real[0] + 0.5
    assert float(typicality(first, real[:1], 0.1)) == 0.0
    assert float(typicality(far, real, 0.1)) < float(typicality(first, real, 0.1))
    np.testing.assert_allclose(distance(far, real[:1]), 0.5 * np.sqrt(128), rtol=1e-5)
    assert float(distance(first, real, 1)) == 0.0
    with pytest.raises(ValueError, match="bandwidth = 0"):
        images.typicality(far, real, 0)


def test_flawed_rewards():
    board = jnp.asarray(np.indices((8, 16)).sum(axis=0) % 2, jnp.float32)
    assert float(images.checkerboard(board)) == 0.5
    assert float(images.checkerboard(jnp.ones((8, 16)))) == 0.0
    assert float(images.smoothness(board)) == -1.0
    assert float(images.smoothness(jnp.ones((8, 16)))) == 0.0


def test_black_box_is_quantized_and_has_no_gradient():
    scores = jnp.array([-0.3, 0.26, 0.74])
    np.testing.assert_allclose(images.quantized(scores, 0.25), [-0.5, 0.25, 0.5])
    inside = jax.jit(jax.vmap(lambda s: images.quantized(s, 0.25)))(scores)
    np.testing.assert_allclose(inside, [-0.5, 0.25, 0.5])
    with pytest.raises(ValueError):
        jax.grad(lambda s: images.quantized(s, 0.25))(jnp.float32(0.3))
    with pytest.raises(ValueError, match="step = 0"):
        images.quantized(scores, 0.0)
