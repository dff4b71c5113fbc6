"""Pallas kernels for TPUs: the logits exist only as tiles in VMEM.

* Forward (2 N D V FLOP): columns stream past a tile of rows. Each of the 128 lanes keeps
  its own running maximum, sum and entropy numerator, so the inner loop has no reduction
  across lanes; the lanes are joined once, at the last column tile.
* Backward (4 N D V for each of two kernels): both recompute the tile of logits from the
  saved normaliser. One keeps d(hidden) of a row tile in VMEM while columns stream past, the
  other d(weight) of a column tile while rows stream past: no accumulator travels to memory
  and back. Rows without a cotangent are moved to the end and their tiles skipped.

float32 inputs are multiplied in full float32. Tiles at the edges of N and V are masked by
selection, so both may have any size.
"""

import functools
from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float, Int

from jaxreward.kernels.linear_log_prob import rows as row_order
from jaxreward.kernels.linear_log_prob import tpu_tiles as tiles
from jaxreward.kernels.linear_log_prob.blocks import Tile, TpuBlocks
from jaxreward.kernels.linear_log_prob.core import Head, Kernel, Scaling
from jaxreward.kernels.linear_log_prob.statistics import FILL, LOWEST, Statistics, Terms
from jaxreward.kernels.linear_log_prob.tpu_tiles import LANES
from jaxreward.kernels.linear_log_prob.varying import align, shape_like


class Options(NamedTuple):
    """What a compiled kernel depends on besides shapes."""

    blocks: TpuBlocks
    interpret: bool


def kernel(blocks: TpuBlocks, interpret: bool = False) -> Kernel:
    """Tiles and the VMEM they may use; `interpret` runs in Pallas' interpreter."""
    return Kernel(tile_statistics, tile_gradients, Options(blocks, interpret))


def _forward_kernel(
    ints, floats, hidden, weight, bias, target, _, out, logits, top, total, mean, picked, *, softcap
):
    """Grid (row tiles, column tiles); the last four references are the running statistics."""
    column = pl.program_id(1)

    @pl.when(column == 0)
    def start():
        top[...] = jnp.full(top.shape, LOWEST, jnp.float32)
        for ref in (total, mean, picked):
            ref[...] = jnp.zeros(ref.shape, jnp.float32)

    tiles.head(hidden, weight, logits)

    def step(scalars: tiles.Scalars):
        def update(at):
            chunks = list(tiles.lane_chunks(logits, at, bias, column, scalars))
            tiles.update_lanes(at, chunks, target[at, :], top, total, mean, picked)

        tiles.by_group(logits.shape[0], update)

    tiles.for_tile(step, True, column, weight.shape[1], ints, floats, softcap)

    @pl.when(column == pl.num_programs(1) - 1)
    def finish():
        out[...] = tiles.join_lanes(top[...], total[...], mean[...], picked[...])


def _hidden_kernel(
    ints, floats, hidden, weight, bias, target, terms, out, logits, gradient, total, *, softcap
):
    """d(hidden), grid (row tiles, column tiles)."""
    row, column = pl.program_id(0), pl.program_id(1)

    @pl.when(column == 0)
    def start():
        total[...] = jnp.zeros(total.shape, jnp.float32)

    def step(scalars: tiles.Scalars):
        tiles.head(hidden, weight, logits)
        tiles.tile_gradient(logits, gradient, bias, target, terms, column, scalars)

        def add(at):
            part = weight[at, :].astype(hidden.dtype)
            if scalars.ragged:  # what lies past the edge of the weight may be NaN
                numbers = jax.lax.broadcasted_iota(jnp.int32, part.shape, 1)
                numbers = numbers + column * part.shape[1]
                part = jnp.where(numbers < scalars.columns, part, jnp.zeros_like(part))
            total[:, at] += tiles.dot(gradient[...], part, (1, 1))

        tiles.by_width(hidden.shape[1], add)

    tiles.for_tile(step, row < ints[1], column, weight.shape[1], ints, floats, softcap)

    @pl.when(column == pl.num_programs(1) - 1)
    def finish():
        out[...] = total[...].astype(out.dtype)


def _weight_kernel(
    ints, floats, hidden, weight, bias, target, terms, out, out_bias, logits, gradient, total,
    total_bias, *, softcap
):  # fmt: skip
    """d(weight) and d(bias), grid (column tiles, row tiles).

    The accumulator is transposed: turning the small tile of gradients at every step is
    cheaper than turning the tile of hidden states, and the sum itself is turned once.
    """
    column, row = pl.program_id(0), pl.program_id(1)

    @pl.when(row == 0)
    def start():
        total[...] = jnp.zeros(total.shape, jnp.float32)
        if out_bias is not None:
            total_bias[...] = jnp.zeros(total_bias.shape, jnp.float32)

    def step(scalars: tiles.Scalars):
        tiles.head(hidden, weight, logits)
        tiles.tile_gradient(logits, gradient, bias, target, terms, column, scalars)

        def add(at):
            total[:, at] += tiles.dot(gradient[...], hidden[:, at], (0, 0))

        tiles.by_width(hidden.shape[1], add)
        if out_bias is not None:
            own = gradient[...].astype(jnp.float32)
            total_bias[...] += jnp.sum(own, axis=0, keepdims=True)

    tiles.for_tile(step, row < ints[1], column, weight.shape[1], ints, floats, softcap)

    @pl.when(row == pl.num_programs(1) - 1)
    def finish():
        out[...] = total[...].T.astype(out.dtype)
        if out_bias is not None:
            out_bias[...] = total_bias[...]


class _Operands(NamedTuple):
    """Arrays of a kernel in the order of its arguments; the first two are scalars in SMEM."""

    ints: Int[Array, "2"]  # real columns, row tiles to visit
    floats: Float[Array, "1"]  # 1 / temperature
    hidden: Float[Array, "M D"]
    weight: Float[Array, "D V"]
    bias: Float[Array, "1 V"] | None
    target: Int[Array, "M 1"]
    terms: tuple[Float[Array, "M 5"], ...] = ()


class _Out(NamedTuple):
    """An output of a kernel and how its grid walks over it."""

    shape: tuple[int, ...]
    dtype: jnp.dtype
    spec: pl.BlockSpec


def _in_specs(operands: _Operands, tile: Tile, row, column) -> list:
    """Block specs of the operands after the scalars; `row` and `column` map a grid index."""

    def by_row(width):
        return pl.BlockSpec((tile.rows, width), lambda *at: (row(*at), 0))

    def by_column(height):
        return pl.BlockSpec((height, tile.columns), lambda *at: (0, column(*at)))

    width = operands.hidden.shape[1]
    bias = None if operands.bias is None else by_column(1)
    terms = tuple(by_row(len(Terms._fields)) for _ in operands.terms)
    return [by_row(width), by_column(width), bias, by_row(1), terms]


class _Launch(NamedTuple):
    """A kernel, its grid and what it is compiled for."""

    kernel: Callable[..., None]
    grid: tuple[int, int]
    passes: int  # products of N D V
    softcap: Any
    options: Options


def _call(launch: _Launch, operands: _Operands, specs, outputs, scratch) -> Sequence[Array | None]:
    """`pallas_call`; `outputs` holds `_Out` or None, `scratch` (shape, dtype) or None."""
    hidden, weight = operands.hidden, operands.weight
    name = launch.kernel.__name__.strip("_")
    return pl.pallas_call(
        functools.partial(launch.kernel, softcap=launch.softcap),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=launch.grid,
            in_specs=specs,
            out_specs=[out and out.spec for out in outputs],
            scratch_shapes=[kind and pltpu.VMEM(*kind) for kind in scratch],
        ),
        out_shape=[out and shape_like(out.shape, out.dtype, hidden) for out in outputs],
        cost_estimate=_cost(launch, hidden, weight),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"),
            vmem_limit_bytes=launch.options.blocks.vmem_limit_bytes,
        ),
        interpret=launch.options.interpret,
        name=f"linear_log_prob_{name}",
    )(*operands)


def _cost(launch: _Launch, hidden, weight) -> pl.CostEstimate:
    logits = hidden.shape[0] * weight.shape[1]
    return pl.CostEstimate(
        flops=2 * launch.passes * logits * hidden.shape[1],
        transcendentals=logits,
        bytes_accessed=hidden.nbytes + weight.nbytes * launch.grid[0],
    )


def _clip(tile: Tile, rows: int, columns: int) -> Tile:
    """A tile no larger than the array, in units of the chip's registers."""
    most_rows, most_columns = pl.cdiv(rows, 16) * 16, pl.cdiv(columns, LANES) * LANES
    return Tile(min(tile.rows, most_rows), min(tile.columns, most_columns))


def _operands(hidden, head: Head, targets, scaling: Scaling, terms=()) -> _Operands:
    held = jnp.asarray(head.weight.shape[1], jnp.int32)
    columns = held if scaling.columns is None else scaling.columns
    ints = jnp.stack(align((columns, jnp.zeros((), jnp.int32)), hidden))
    floats = align(1.0 / scaling.temperature[None], hidden)
    bias = None if head.bias is None else head.bias[None, :]
    return _Operands(ints, floats, hidden, head.weight, bias, targets[:, None], terms)


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
    rows, columns = hidden.shape[0], head.weight.shape[1]
    tile = _clip(options.blocks.forward, rows, columns)
    grid = (pl.cdiv(rows, tile.rows), pl.cdiv(columns, tile.columns))
    operands = _operands(hidden, head, targets, scaling)
    specs = _in_specs(operands, tile, lambda n, v, *_: n, lambda n, v, *_: v)
    lanes = (tile.rows, LANES)
    out = _Out((rows, LANES), jnp.float32, pl.BlockSpec(lanes, lambda n, v, *_: (n, 0)))
    scratch = [(tile, jnp.float32)] + [(lanes, jnp.float32)] * 4
    launch = _Launch(_forward_kernel, grid, 1, softcap, options)
    (packed,) = _call(launch, operands, specs, [out], scratch)
    return Statistics(*(packed[:, i] for i in range(4)))


def tile_gradients(
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
    unit = max(options.blocks.hidden.rows, options.blocks.weight.rows)
    unit = _clip(Tile(unit, LANES), hidden.shape[0], LANES).rows
    order = row_order.active_first(active, unit)
    take = functools.partial(row_order.take, index=order.index)
    own_terms = jnp.stack([take(x, fill=fill) for x, fill in zip(terms, FILL)], axis=1)
    own_targets = take(targets, fill=-1)
    operands = _operands(take(hidden), head, own_targets, scaling, (own_terms,))
    d_hidden = _d_hidden(operands, order.count, softcap, options)
    d_weight, d_bias = _d_weight(operands, order.count, softcap, options)
    d_hidden = row_order.put_all(d_hidden, order.index, hidden.shape[0])
    d_bias = None if head.bias is None else d_bias[0].astype(head.bias.dtype)
    return d_hidden, Head(d_weight, d_bias)


def _visit(operands: _Operands, count, tile: Tile) -> _Operands:
    """Says in the scalars how many row tiles hold `count` rows."""
    tiles = (count + tile.rows - 1) // tile.rows
    return operands._replace(ints=operands.ints.at[1].set(tiles))


def _d_hidden(operands: _Operands, count, softcap, options: Options):
    rows, width = operands.hidden.shape
    tile = _clip(options.blocks.hidden, rows, operands.weight.shape[1])
    grid = (pl.cdiv(rows, tile.rows), pl.cdiv(operands.weight.shape[1], tile.columns))

    def column(n, v, ints, _):  # a skipped row tile fetches nothing new
        return jnp.where(n < ints[1], v, 0)

    specs = _in_specs(operands, tile, lambda n, v, *_: n, column)
    block = (tile.rows, width)
    dtype = operands.hidden.dtype
    out = _Out((rows, width), dtype, pl.BlockSpec(block, lambda n, v, *_: (n, 0)))
    operands = _visit(operands, count, tile)
    scratch = [(tile, jnp.float32), (tile, dtype), (block, jnp.float32)]
    launch = _Launch(_hidden_kernel, grid, 2, softcap, options)
    return _call(launch, operands, specs, [out], scratch)[0]


def _d_weight(operands: _Operands, count, softcap, options: Options):
    (rows, width), columns = operands.hidden.shape, operands.weight.shape[1]
    tile = _clip(options.blocks.weight, rows, columns)
    grid = (pl.cdiv(columns, tile.columns), pl.cdiv(rows, tile.rows))

    def row(v, n, ints, _):
        return jnp.maximum(jnp.minimum(n, ints[1] - 1), 0)

    specs = _in_specs(operands, tile, row, lambda v, n, *_: v)

    def out(height, dtype):
        spec = pl.BlockSpec((height, tile.columns), lambda v, n, *_: (0, v))
        return _Out((height, columns), dtype, spec)

    outputs = [out(width, operands.weight.dtype), None]
    scratch = [(tile, jnp.float32), (tile, operands.hidden.dtype)]
    scratch += [((tile.columns, width), jnp.float32), None]
    if operands.bias is not None:
        outputs[1], scratch[3] = out(1, jnp.float32), ((1, tile.columns), jnp.float32)
    operands = _visit(operands, count, tile)
    launch = _Launch(_weight_kernel, grid, 2, softcap, options)
    return _call(launch, operands, specs, outputs, scratch)
