"""ConvexDA: of many perturbations of a text keep those that span the others (arXiv 2309.16155).

A loss that is convex in the embedding is greatest on the vertices of the convex hull, so that
training on them covers what lies between.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_SAME = 1e-5  # of the largest spread: closer points are one, thinner clouds are a line
_STRAIGHT = 1e-3  # radians by which an angle must exceed a straight one


def principal_plane(embeddings: Float[Array, "N D"]) -> Float[Array, "N 2"]:
    """Coordinates along the two directions of greatest variance; 0 along one that has none."""
    centred = embeddings - jnp.mean(embeddings, axis=0, keepdims=True)
    left, spread, _ = jnp.linalg.svd(centred, full_matrices=False)
    spread = jnp.where(spread > _SAME * spread[:1], spread, 0.0)
    plane = left[:, :2] * spread[None, :2]
    return jnp.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))


def hull_vertices(points: Float[Array, "N 2"]) -> Bool[Array, "N"]:
    """Which points are vertices of the convex hull; of equal points only the first.

    Of points on a line these are its two ends, and of a single point that one. A point is a
    vertex if all others are seen from it within less than a straight angle.
    """
    offsets = points[None, :, :] - points[:, None, :]
    distance = jnp.sqrt(jnp.sum(jnp.square(offsets), axis=-1))
    same = distance <= _SAME * jnp.max(distance)
    first = jnp.argmax(same, axis=1) == jnp.arange(points.shape[0])
    return first & jax.vmap(_sees_less_than_half)(offsets, first[None, :] & ~same)


def _sees_less_than_half(offsets: Array, mask: Array) -> Array:
    angles = jnp.arctan2(offsets[:, 1], offsets[:, 0])
    some = angles[jnp.argmax(mask)]  # stands in for the points that are not there
    angles = jnp.sort(jnp.where(mask, angles, some))
    around = jnp.concatenate([jnp.diff(angles), angles[:1] + 2 * jnp.pi - angles[-1:]])
    return ~jnp.any(mask) | (jnp.max(around) > jnp.pi + _STRAIGHT)


def spanning_subset(embeddings: Float[Array, "N D"]) -> Bool[Array, "N"]:
    """Which of `N` perturbations of one text to train on: the vertices in their principal plane.

    `vmap` it over texts.
    """
    return hull_vertices(principal_plane(embeddings))
