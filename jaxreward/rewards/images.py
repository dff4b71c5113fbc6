"""Rewards of small digit canvases, honest and flawed.

A canvas is a row of 8x8 cells with pixels in [0, 1]. A cell is blank or holds a digit, big or small:
`CELL_LABELS` labels. What a prompt asks of a canvas of two cells is a table `[K, K]` of the pairs of
labels that satisfy it, so a composition reward (after GenEval, arXiv 2310.11513) is the probability
of that table under a recogniser, and a reward that is blind to something is the same under a
coarser table. All are differentiable but `quantized`.
"""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxreward.checks import Number, check_number

SIDE = 8
"""Height and width of a cell."""

BLANK, DIGITS = 0, 10
CELL_LABELS = 1 + 2 * DIGITS
"""0 is a blank cell, 1 + d a big digit d, 11 + d a small one."""


def cell_label(digit: Int[Array, "..."], small: Int[Array, "..."]) -> Int[Array, "..."]:
    """The label of a digit in 0..9, big (0) or small (1)."""
    return (1 + digit + DIGITS * small).astype(jnp.int32)


def split_cells(image: Float[Array, "*B H W"]) -> Float[Array, "*B C F"]:
    """Flat pixels of every cell, from left to right."""
    *batch, height, width = image.shape
    cells = image.reshape(*batch, height, width // SIDE, SIDE)
    return jnp.swapaxes(cells, -3, -2).reshape(*batch, width // SIDE, height * SIDE)


def cell_log_probs(
    apply: Callable[[Any, Array], Array], params: Any, image: Float[Array, "*B H W"]
) -> Float[Array, "*B C K"]:
    """Log-probability of every label for every cell under a recogniser `(params, [.., F]) -> [.., K]`."""
    return jax.nn.log_softmax(apply(params, split_cells(image)), axis=-1)


def composition(
    log_probs: Float[Array, "*B 2 K"], allowed: Bool[Array, "*B K K"]
) -> Float[Array, "*B"]:
    """Log-probability that the two cells hold a pair that the table allows (at least one)."""
    pairs = log_probs[..., 0, :, None] + log_probs[..., 1, None, :]
    return jax.nn.logsumexp(jnp.where(allowed, pairs, -jnp.inf), axis=(-2, -1))


def recognition(
    log_probs: Float[Array, "*B 2 K"], allowed: Bool[Array, "*B K K"]
) -> Float[Array, "*B"]:
    """The same where it does not matter which cell holds which digit, or how large it is.

    What reading the text in an image checks.
    """
    return composition(log_probs, position_blind(size_blind(allowed)))


def fulfilled(
    log_probs: Float[Array, "*B 2 K"], allowed: Bool[Array, "*B K K"]
) -> Bool[Array, "*B"]:
    """Whether the most probable labels of the two cells are an allowed pair."""
    left, right = jnp.moveaxis(jnp.argmax(log_probs, axis=-1), -1, 0)
    row = jnp.take_along_axis(allowed, left[..., None, None], axis=-2)[..., 0, :]
    return jnp.take_along_axis(row, right[..., None], axis=-1)[..., 0]


def position_blind(allowed: Bool[Array, "*B K K"]) -> Bool[Array, "*B K K"]:
    """A table that does not see which cell is which."""
    return allowed | jnp.swapaxes(allowed, -1, -2)


def size_blind(allowed: Bool[Array, "*B K K"]) -> Bool[Array, "*B K K"]:
    """A table that takes small digits for big ones and the reverse."""
    digit = np.concatenate([[DIGITS], np.arange(2 * DIGITS) % DIGITS])
    same = jnp.asarray(digit[:, None] == digit[None, :], jnp.float32)
    return jnp.einsum("ij,...jk,kl->...il", same, allowed.astype(jnp.float32), same) > 0


def count_blind(allowed: Bool[Array, "*B K K"]) -> Bool[Array, "*B K K"]:
    """A table that takes two equal cells for one and a blank cell, and the reverse."""
    once = allowed[..., :, BLANK] | allowed[..., BLANK, :]
    twice = jnp.diagonal(allowed, axis1=-2, axis2=-1)
    equal = jnp.eye(CELL_LABELS, dtype=bool).at[BLANK, BLANK].set(False)
    beside = jnp.zeros((CELL_LABELS, CELL_LABELS), bool).at[:, BLANK].set(True)
    beside = beside.at[BLANK, BLANK].set(False)
    equal, first, second = (
        jnp.broadcast_to(table, allowed.shape) for table in (equal, beside, beside.T)
    )
    return (
        allowed
        | (equal & once[..., :, None])
        | (first & twice[..., :, None])
        | (second & twice[..., None, :])
    )


def typicality(
    image: Float[Array, "H W"], references: Float[Array, "R H W"], bandwidth: Number
) -> Float[Array, ""]:
    """Log of the mean Gaussian kernel between the image and real ones, 0 at most.

    Args:
      image: canvas.
      references: real canvases.
      bandwidth: standard deviation of the kernel per pixel, > 0.
    """
    check_number("bandwidth", bandwidth, lambda v: v > 0, "> 0")
    square = jnp.mean(jnp.square(references - image[None]), axis=(1, 2))
    kernel = -0.5 * square / jnp.square(jnp.asarray(bandwidth, jnp.float32))
    return jax.nn.logsumexp(kernel) - float(np.log(references.shape[0]))


def distance_to_real(
    image: Float[Array, "H W"], references: Float[Array, "R H W"], neighbours: int = 5
) -> Float[Array, ""]:
    """Mean Euclidean distance to the nearest real canvases: large where there are none like it."""
    square = jnp.sum(jnp.square(references - image[None]), axis=(1, 2))
    return jnp.mean(jnp.sqrt(jnp.maximum(jnp.sort(square)[:neighbours], 0.0)))


def smoothness(image: Float[Array, "H W"]) -> Float[Array, ""]:
    """Minus the mean absolute difference of neighbouring pixels: an aesthetic without sense."""
    down, across = jnp.diff(image, axis=0), jnp.diff(image, axis=1)
    return -0.5 * (jnp.mean(jnp.abs(down)) + jnp.mean(jnp.abs(across)))


def checkerboard(image: Float[Array, "H W"]) -> Float[Array, ""]:
    """A deliberate flaw: the contrast with a checkerboard, at most 1/2, which no digit has."""
    rows, columns = (np.arange(size) for size in image.shape)
    board = jnp.asarray(1.0 - 2.0 * ((rows[:, None] + columns[None, :]) % 2), jnp.float32)
    return jnp.abs(jnp.mean(image * board))


def quantized(score: Float[Array, "*B"], step: float) -> Float[Array, "*B"]:
    """A score rounded down to multiples of `step` on the host: a black box without gradient.

    Differentiating it raises; under `vmap` the host is called once for the whole batch.

    Raises:
      ValueError: `step` is not positive.
    """
    check_number("step", step, lambda v: v > 0, "> 0")
    shape = jax.ShapeDtypeStruct(score.shape, jnp.float32)
    floor = lambda values: (np.floor(np.asarray(values) / step) * step).astype(np.float32)
    return jax.pure_callback(floor, shape, score, vmap_method="expand_dims")
