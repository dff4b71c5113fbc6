"""Convex hulls of a few points, against scipy and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial import ConvexHull

from jaxreward.curation.convex_augmentation import (
    hull_vertices, principal_plane, spanning_subset,
)


VERTICES = jax.jit(hull_vertices)


def vertices(*points):
    points += points[:1] * (6 - len(points))  # a copy is never a vertex, and one shape compiles once
    return np.flatnonzero(VERTICES(jnp.array(points, jnp.float32))).tolist()


def test_by_hand():
    square = [(0, 0), (2, 0), (2, 2), (0, 2)]
    assert vertices(*square, (1, 1)) == [0, 1, 2, 3]
    assert vertices(*square, (1, 0)) == [0, 1, 2, 3]  # on an edge
    assert vertices(*square, (2, 2)) == [0, 1, 2, 3]  # twice the same
    assert vertices((0, 0), (1, 1), (3, 3), (2, 2)) == [0, 2]  # on a line
    assert vertices((1, 1), (1, 1), (1, 1)) == [0]
    assert vertices((1, 1), (2, 1), (1, 1)) == [0, 1]
    assert vertices((4, 4)) == [0]
    np.testing.assert_array_equal(hull_vertices(jnp.ones((1, 2))), [True])


def test_against_scipy(key):
    clouds = jax.random.normal(key, (50, 7, 2))
    found = jax.jit(jax.vmap(hull_vertices))(clouds)
    for cloud, kept in zip(np.asarray(clouds), np.asarray(found)):
        assert set(np.flatnonzero(kept)) == set(ConvexHull(cloud).vertices)


def test_principal_plane(key):
    plane = jax.random.normal(key, (5, 2)) @ jnp.diag(jnp.array([3.0, 1.0]))
    basis = jnp.linalg.qr(jax.random.normal(key, (20, 2)))[0]
    found = jax.jit(principal_plane)(plane @ basis.T + 7.0)
    distances = lambda x: np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.testing.assert_allclose(distances(np.asarray(found)), distances(np.asarray(plane)), atol=1e-4)
    line = jnp.arange(5.0)[:, None] * jnp.ones((1, 8))
    assert (principal_plane(line)[:, 1] == 0).all()
    assert principal_plane(jnp.ones((3, 1))).shape == (3, 2)


def test_subset_spans_the_cloud():
    keep = spanning_subset(jnp.concatenate([jnp.eye(3), jnp.full((1, 3), 1 / 3)]))
    np.testing.assert_array_equal(keep, [True, True, True, False])
