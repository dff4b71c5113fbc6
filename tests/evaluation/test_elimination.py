"""Elimination against numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxreward.evaluation import elimination


def test_against_numpy():
    generator = np.random.default_rng(0)
    chains = generator.dirichlet(np.full(12, 0.3), (8, 12)).astype(np.float32)
    matrix = np.eye(12, dtype=np.float32) - np.float32(0.99) * chains
    target = generator.normal(size=(8, 12)).astype(np.float32)
    found = jax.jit(jax.vmap(elimination.solve))(matrix, target)
    expected = np.linalg.solve(matrix.astype(float), target[..., None].astype(float))[..., 0]
    np.testing.assert_allclose(found, expected, atol=3e-5 * np.abs(expected).max())


def test_least_squares_against_numpy():
    generator = np.random.default_rng(1)
    matrix = generator.normal(size=(30, 6)).astype(np.float32)
    matrix[:, 5] = matrix[:, 4] + 0.01 * matrix[:, 5]  # ill conditioned
    target = generator.normal(size=30).astype(np.float32)
    found = jax.jit(elimination.least_squares)(matrix, target)
    expected = np.linalg.lstsq(matrix.astype(float), target.astype(float), rcond=None)[0]
    np.testing.assert_allclose(found, expected, rtol=1e-2)
    slope = jax.jit(jax.grad(lambda t: elimination.least_squares(jnp.asarray(matrix), t).sum()))(target)
    np.testing.assert_allclose(slope @ target, found.sum(), rtol=1e-2)  # linear in the target
