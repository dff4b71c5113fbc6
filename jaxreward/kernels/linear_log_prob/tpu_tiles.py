"""What the TPU kernels do with one tile of logits in VMEM."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from jaxreward.kernels.linear_log_prob.statistics import MASKED, Terms

LANES = 128


class Scalars(NamedTuple):
    """What the logits of a tile depend on besides the operands."""

    columns: Array
    inverse_temperature: Array
    softcap: float | None
    ragged: bool


def dot(a, b, contract: tuple[int, int]):
    """float32 product of two tiles contracted over one axis of each."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(
        a,
        b,
        (((contract[0],), (contract[1],)), ((), ())),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def by_width(width: int, body) -> None:
    """Calls `body` on equal slices of D, so that a product's code and spills stay small."""
    sizes = [k for k in range(LANES, 1024 + 1, LANES) if width % k == 0]
    size = max(sizes, default=width)

    def step(index, carry):
        body(pl.ds(pl.multiple_of(index * size, size), size))
        return carry

    jax.lax.fori_loop(0, width // size, step, 0)


def head(hidden, weight, logits) -> None:
    """Writes the tile `hidden @ weight` to `logits`, float32."""
    logits[...] = jnp.zeros(logits.shape, jnp.float32)

    def add(at):
        logits[...] += dot(hidden[:, at], weight[at, :].astype(hidden.dtype), (1, 0))

    by_width(hidden.shape[1], add)


def by_group(rows: int, body) -> None:
    """Calls `body` on slices of the rows, few enough for the registers to hold a lane's state."""
    size = math.gcd(rows, 64)

    def step(index, carry):
        body(pl.ds(pl.multiple_of(index * size, size), size))
        return carry

    jax.lax.fori_loop(0, rows // size, step, 0)


def lane_chunks(logits_ref, at, bias, column, scalars: Scalars):
    """Per 128 columns of a tile: first column, their numbers, logits and d(logits) / d(raw).

    `logits_ref` holds the head's output without bias. Columns that do not exist are MASKED
    where the tile is `ragged`.
    """
    rows, width = at.size, logits_ref.shape[1]
    for start in range(0, width, LANES):
        raw = logits_ref[at, start : start + LANES]
        if bias is not None:  # it may be -inf
            own = bias[:, start : start + LANES].astype(jnp.float32)
            raw = jnp.maximum(raw + own, MASKED)
        numbers = jax.lax.broadcasted_iota(jnp.int32, (rows, LANES), 1)
        numbers = numbers + (column * width + start)
        logits, slope = _cap(raw, scalars)
        if scalars.ragged:
            logits = jnp.where(numbers < scalars.columns, logits, MASKED)
        yield start, numbers, logits, slope


def _cap(raw, scalars: Scalars):
    inverse, softcap = scalars.inverse_temperature, scalars.softcap
    if softcap is None:
        return raw * inverse, inverse
    squashed = jnp.tanh(raw * (1.0 / softcap))
    return squashed * (softcap * inverse), (1.0 - squashed * squashed) * inverse


def for_tile(step, active, column, width: int, ints, floats, softcap) -> None:
    """Runs `step(scalars)`, ragged only where the tile reaches past the last real column."""
    inside = (column + 1) * width <= ints[0]
    scalars = Scalars(ints[0], floats[0], softcap, ragged=False)
    pl.when(active & inside)(lambda: step(scalars))
    pl.when(active & ~inside)(lambda: step(scalars._replace(ragged=True)))


def update_lanes(at, chunks, target, top_ref, total_ref, mean_ref, picked_ref) -> None:
    """Adds some rows of a tile to the running statistics of each lane.

    `mean` is the numerator of E[logit - top], so the entropy is a difference of small numbers
    however large the logits are.
    """
    before, total, picked = top_ref[at, :], total_ref[at, :], picked_ref[at, :]
    top = functools.reduce(jnp.maximum, [logits for _, _, logits, _ in chunks], before)
    shrink = jnp.exp(before - top)
    mean = (mean_ref[at, :] + total * (before - top)) * shrink
    total = total * shrink
    for _, numbers, logits, _ in chunks:
        shifted = logits - top
        mass = jnp.exp(shifted)
        total += mass
        mean += mass * shifted
        picked += jnp.where(numbers == target, logits, 0.0)
    top_ref[at, :], total_ref[at, :], mean_ref[at, :] = top, total, mean
    picked_ref[at, :] = picked


def join_lanes(lane_top, lane_total, lane_mean, lane_picked):
    """Statistics of whole rows in lanes 0 to 3 of a `[rows, 128]` tile."""
    top = jnp.max(lane_top, axis=1, keepdims=True)
    share = jnp.exp(lane_top - top)
    total = jnp.sum(lane_total * share, axis=1, keepdims=True)
    mean = jnp.sum((lane_mean + lane_total * (lane_top - top)) * share, axis=1, keepdims=True)
    picked = jnp.sum(lane_picked, axis=1, keepdims=True)
    lane = jax.lax.broadcasted_iota(jnp.int32, lane_top.shape, 1)
    first = jnp.where(lane == 0, top, total)
    return jnp.where(lane < 2, first, jnp.where(lane == 2, mean, picked))


def tile_gradient(logits, gradient, bias, target, stats, column, scalars: Scalars) -> None:
    """Writes d(loss) / d(head output) of a tile, from `logits`, to `gradient`."""

    def group(at):
        per_row = stats[0][at, :]
        columns = (per_row[:, i : i + 1] for i in range(len(Terms._fields)))
        chosen, base, entropy_weight, top, log_total = columns
        for start, numbers, own, slope in lane_chunks(logits, at, bias, column, scalars):
            # exp(-1000) is 0: the bound only keeps 0 * infinity out of the product.
            log_probs = jnp.maximum((own - top) - log_total, -1000.0)
            part = jnp.exp(log_probs) * (base - entropy_weight * log_probs)
            part = (part + jnp.where(numbers == target[at, :], chosen, 0.0)) * slope
            if scalars.ragged:
                part = jnp.where(numbers < scalars.columns, part, 0.0)
            gradient[at, start : start + LANES] = part.astype(gradient.dtype)

    by_group(logits.shape[0], group)
