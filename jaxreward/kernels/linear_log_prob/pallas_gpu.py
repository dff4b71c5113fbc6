"""A Pallas Triton kernel for GPUs: forward in tiles, backward in blocks of rows.

* Forward (2 N D V FLOP): a program holds a tile of rows and walks over its share of the
  vocabulary, keeping the running maximum, sum and entropy numerator in registers; the shares
  are joined afterwards. Nothing of size N V is written, not even a block of it.
* Backward (6 N D V): that of `xla`, whose recomputed blocks of logits are few and large.
  d(hidden) of a tile of rows, `[rows, D]`, does not fit a program's registers or shared
  memory for wide models, so a tiled backward would add up through atomics or recompute the
  logits twice (8 N D V); large products through the library are the better start.

It has not been timed on a GPU: it is exact in the interpreter and lowers for CUDA. float32
inputs are multiplied in full float32.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from jaxreward.kernels.linear_log_prob import xla
from jaxreward.kernels.linear_log_prob.blocks import GpuBlocks, Tile
from jaxreward.kernels.linear_log_prob.core import Head, Kernel, Scaling
from jaxreward.kernels.linear_log_prob.statistics import LOWEST, MASKED, Statistics, Terms
from jaxreward.kernels.linear_log_prob.varying import align, shape_like


class Options(NamedTuple):
    """What a compiled kernel depends on besides shapes."""

    blocks: GpuBlocks
    block_rows: int
    interpret: bool


def kernel(blocks: GpuBlocks, block_rows: int, interpret: bool = False) -> Kernel:
    """Tiles of the forward, rows of a block of the backward.

    Raises:
      ValueError: a side of a tile is not a power of two of at least 16.
    """
    for name in ("rows", "columns", "depth"):
        side = getattr(blocks, name)
        if side < 16 or side & (side - 1):
            raise ValueError(f"{name} = {side}; allowed are powers of two from 16")
    return Kernel(tile_statistics, gradients, Options(blocks, block_rows, interpret))


def gradients(
    hidden: Float[Array, "N D"],
    head: Head,
    targets: Int[Array, "N"],
    terms: Terms,
    active: Bool[Array, "N"],
    scaling: Scaling,
    softcap,
    options: Options,
) -> tuple[Float[Array, "N D"], Head]:
    """See `core.Kernel`."""
    tile = Tile(options.block_rows, head.weight.shape[1])
    return xla.block_gradients(hidden, head, targets, terms, active, scaling, softcap, tile)


def tile_statistics(
    hidden: Float[Array, "N D"],
    head: Head,
    targets: Int[Array, "N"],
    valid: Bool[Array, "N"],
    scaling: Scaling,
    softcap,
    options: Options,
) -> Statistics:
    """See `core.Kernel`; every row is visited."""
    del valid
    rows, columns, blocks = hidden.shape[0], head.weight.shape[1], options.blocks
    held = jnp.asarray(columns, jnp.int32)
    real = held if scaling.columns is None else scaling.columns
    real, temperature = align((real[None], scaling.temperature[None]), hidden)
    shares = min(blocks.shares, pl.cdiv(columns, blocks.columns))
    row_tiles = pl.cdiv(rows, blocks.rows)
    shape = (shares, row_tiles * blocks.rows)
    out = shape_like(shape, jnp.float32, hidden)
    parts = pl.pallas_call(
        functools.partial(_kernel, softcap=softcap, blocks=blocks, shape=(rows, columns)),
        grid=(row_tiles, shares),
        out_shape=[out] * len(Statistics._fields),
        compiler_params=triton.CompilerParams(
            num_warps=blocks.num_warps, num_stages=blocks.num_stages
        ),
        interpret=options.interpret,
        name="linear_log_prob_forward_kernel",
    )(real, temperature, hidden, head.weight, head.bias, targets)
    return _join(Statistics(*(part[:, :rows] for part in parts)))


def _join(parts: Statistics) -> Statistics:
    """Of all columns, from the shares in the leading axis."""
    top = jnp.max(parts.top, axis=0)
    below = parts.top - top[None]
    share = jnp.exp(below)
    mean = jnp.sum((parts.mean + parts.total * below) * share, axis=0)
    picked = jnp.sum(parts.picked, axis=0)
    return Statistics(top, jnp.sum(parts.total * share, axis=0), mean, picked)


class _Tile(NamedTuple):
    """References of a program and where its rows are."""

    hidden: Array
    weight: Array
    bias: Array | None
    rows: pl.Slice
    row_exists: Array


def _kernel(
    columns, temperature, hidden, weight, bias, target, *out, softcap, blocks: GpuBlocks, shape
):
    """Grid (row tiles, shares of the vocabulary)."""
    row, share = pl.program_id(0), pl.program_id(1)
    rows = pl.ds(row * blocks.rows, blocks.rows)
    row_exists = row * blocks.rows + jnp.arange(blocks.rows, dtype=jnp.int32) < shape[0]
    tile = _Tile(hidden, weight, bias, rows, row_exists)
    target = triton.load(target.at[rows], mask=row_exists, other=-1)
    columns, inverse = columns[0], 1.0 / temperature[0]

    def step(index, found):
        start = index * blocks.columns
        logits = _head(tile, start, blocks, shape[1])
        if softcap is not None:
            logits = softcap * jnp.tanh(logits / softcap)
        numbers = start + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1)
        logits = jnp.where(numbers < columns, logits * inverse, MASKED)
        return _update(found, logits, numbers == target[:, None])

    tiles = pl.cdiv(shape[1], blocks.columns)
    each = pl.cdiv(tiles, pl.num_programs(1))
    start = (jnp.full((blocks.rows,), LOWEST, jnp.float32),)
    start += (jnp.zeros((blocks.rows,), jnp.float32),) * 3
    last = jnp.minimum((share + 1) * each, tiles)
    found = jax.lax.fori_loop(share * each, last, step, Statistics(*start))
    for ref, value in zip(out, found):
        triton.store(ref.at[share, rows], value)


def _head(tile: _Tile, start, blocks: GpuBlocks, held: int):
    """The tile `hidden @ weight + bias`, float32; anything in columns that do not exist."""
    width, dtype = tile.hidden.shape[1], tile.hidden.dtype
    columns = pl.ds(start, blocks.columns)
    column_exists = start + jnp.arange(blocks.columns, dtype=jnp.int32) < held
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None

    def add(index, total):
        first = index * blocks.depth
        depth = pl.ds(first, blocks.depth)
        exists = first + jnp.arange(blocks.depth, dtype=jnp.int32) < width
        left = triton.load(
            tile.hidden.at[tile.rows, depth],
            mask=tile.row_exists[:, None] & exists[None, :],
            other=0.0,
        )
        right = triton.load(
            tile.weight.at[depth, columns],
            mask=exists[:, None] & column_exists[None, :],
            other=0.0,
        )
        return total + jnp.dot(
            left, right.astype(dtype), precision=precision, preferred_element_type=jnp.float32
        )

    zero = jnp.zeros((blocks.rows, blocks.columns), jnp.float32)
    raw = jax.lax.fori_loop(0, pl.cdiv(width, blocks.depth), add, zero)
    if tile.bias is None:
        return raw
    bias = triton.load(tile.bias.at[columns], mask=column_exists, other=0.0)
    return jnp.maximum(raw + bias.astype(jnp.float32)[None, :], MASKED)  # it may be -inf


def _update(found: Statistics, logits, hot) -> Statistics:
    """Adds a tile of logits to the running statistics of its rows."""
    top = jnp.maximum(found.top, jnp.max(logits, axis=1))
    below = found.top - top
    shrink = jnp.exp(below)
    shifted = logits - top[:, None]
    mass = jnp.exp(shifted)
    return Statistics(
        top,
        found.total * shrink + jnp.sum(mass, axis=1),
        (found.mean + found.total * below) * shrink + jnp.sum(mass * shifted, axis=1),
        found.picked + jnp.sum(jnp.where(hot, logits, 0.0), axis=1),
    )
