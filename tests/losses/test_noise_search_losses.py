import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.losses.noise_search import noise_regression, reward_distillation

PREDICTED, TARGET = jnp.array([0.0, 1.0, 3.0]), jnp.array([1.0, 0.0, 2.0])


def test_squared_error_and_its_gradient():
    value, grads = jax.value_and_grad(reward_distillation, argnums=(0, 1))(PREDICTED, TARGET)
    np.testing.assert_allclose(value, 1.0)
    np.testing.assert_allclose(grads[0], [-2 / 3, 2 / 3, 2 / 3], rtol=1e-6)
    np.testing.assert_array_equal(grads[1], 0.0)


def test_standardized_ignores_units():
    own = reward_distillation(PREDICTED, TARGET, kind="standardized")
    scaled = reward_distillation(5 * PREDICTED - 2, 0.1 * TARGET, kind="standardized")
    np.testing.assert_allclose(own, scaled, rtol=1e-4)
    u = (np.asarray(PREDICTED) - 4 / 3) / np.std(PREDICTED, ddof=1)
    v = (np.asarray(TARGET) - 1) / np.std(TARGET, ddof=1)
    np.testing.assert_allclose(own, np.mean((u - v) ** 2), rtol=1e-5)


def test_preference_counts_every_ordered_pair():
    own = reward_distillation(PREDICTED, TARGET, kind="preference", temperature=0.5)
    pairs = [(2, 0), (2, 1), (0, 1)]
    gaps = [2 * float(PREDICTED[w] - PREDICTED[l]) for w, l in pairs]
    np.testing.assert_allclose(own, np.mean(np.logaddexp(0, -np.array(gaps))), rtol=1e-5)
    assert float(reward_distillation(PREDICTED, jnp.ones(3), kind="preference")) == 0.0


@pytest.mark.parametrize("kind", ["squared", "standardized", "preference"])
def test_gradients_are_finite_where_all_are_equal(kind):
    grad = jax.grad(lambda p: reward_distillation(p, jnp.ones(3), kind=kind))(jnp.zeros(3))
    assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("kind", ["squared", "standardized", "preference"])
def test_a_missing_target_takes_no_part(kind):
    """As in the batch without that sample, in value and gradient; nothing where none is left."""
    predicted, target = jnp.array([0.0, 1.0, 7.0, 3.0]), jnp.array([1.0, 0.0, jnp.nan, 2.0])
    loss = jax.value_and_grad(lambda p, t: reward_distillation(p, t, kind=kind))
    value, grad = loss(predicted, target)
    alone, expected = loss(PREDICTED, TARGET)
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    np.testing.assert_allclose(grad, np.insert(expected, 2, 0.0), rtol=1e-5, atol=1e-7)
    value, grad = loss(predicted, jnp.full(4, jnp.inf))
    assert float(value) == 0.0 and not np.any(grad)


def test_noise_regression_is_the_mean_over_all_entries():
    golden = jnp.arange(12.0).reshape(3, 2, 2)
    np.testing.assert_allclose(noise_regression(golden + 2, golden), 4.0)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="kind = 'x'"):
        reward_distillation(PREDICTED, TARGET, kind="x")
    with pytest.raises(ValueError, match="temperature = 0"):
        reward_distillation(PREDICTED, TARGET, temperature=0)
