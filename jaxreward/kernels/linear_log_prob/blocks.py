"""Tile sizes of the kernels: a small table per device, shrunk to what the shape lets fit."""

from typing import NamedTuple

import jax

MIB = 1 << 20


class Tile(NamedTuple):
    """Rows (tokens) and columns (vocabulary) of logits that exist at a time."""

    rows: int
    columns: int


class TpuBlocks(NamedTuple):
    """Tiles of the three TPU kernels.

    Rows are multiples of 16 (8 for float32), columns multiples of 128.

    Attributes:
      forward: tile of the forward kernel.
      hidden: tile of the kernel for d(hidden).
      weight: tile of the kernel for d(weight).
      vmem_limit_bytes: VMEM that a kernel may use.
    """

    forward: Tile
    hidden: Tile
    weight: Tile
    vmem_limit_bytes: int


class GpuBlocks(NamedTuple):
    """Tiles of the forward kernel for GPUs; sides are powers of two of at least 16.

    Attributes:
      rows: rows of a program.
      columns: columns of logits that a program holds at a time.
      depth: how much of D is multiplied at a time.
      shares: into how many parts the vocabulary is split over programs, so that few rows
        fill the device too.
      num_warps, num_stages: of Triton.
    """

    rows: int = 128
    columns: int = 128
    depth: int = 64
    shares: int = 4
    num_warps: int = 8
    num_stages: int = 3


# Rows per tile stay above the chip's FLOP per byte of weight streamed (v5e 241, v5p 166,
# v6e 560), columns above the same bound for the hidden states of the weight kernel.
# The chips have 128, 64 and 128 MiB of VMEM; a share is left to the compiler.
_TPU_TABLE = {
    "TPU v5 lite": TpuBlocks(Tile(1024, 512), Tile(512, 512), Tile(512, 512), 100 * MIB),
    "TPU v5": TpuBlocks(Tile(512, 512), Tile(512, 512), Tile(512, 512), 56 * MIB),
    "TPU v6 lite": TpuBlocks(Tile(1024, 1024), Tile(1024, 512), Tile(512, 1024), 100 * MIB),
    "TPU7x": TpuBlocks(Tile(512, 512), Tile(512, 512), Tile(512, 512), 56 * MIB),
}
_ALIASES = {"TPU v5e": "TPU v5 lite", "TPU v5p": "TPU v5", "TPU v6e": "TPU v6 lite"}
_SMALLEST_TPU = TpuBlocks(Tile(512, 512), Tile(256, 512), Tile(512, 256), 56 * MIB)


def tpu_blocks(
    width: int, hidden_bytes: int, weight_bytes: int, device_kind: str | None = None
) -> TpuBlocks:
    """Tiles for a width and element sizes on a TPU.

    Args:
      width: D.
      hidden_bytes, weight_bytes: bytes per element of hidden states and weight.
      device_kind: as in `jax.Device.device_kind`; None is the device present. A kind that is
        not in the table gets tiles that fit the smallest VMEM of the table.

    Raises:
      ValueError: no tile of this width fits.
    """
    kind = jax.devices()[0].device_kind if device_kind is None else device_kind
    table = _TPU_TABLE.get(_ALIASES.get(kind, kind), _SMALLEST_TPU)
    fitted = {}
    for kernel in ("forward", "hidden", "weight"):
        tile = getattr(table, kernel)
        while vmem_bytes(kernel, tile, width, hidden_bytes, weight_bytes) > table.vmem_limit_bytes:
            tile = _smaller(tile)
            if tile is None:
                raise ValueError(
                    f"hidden width = {width}; no tile fits the "
                    f"{table.vmem_limit_bytes >> 20} MiB of VMEM of {kind!r}; allowed are "
                    "narrower heads, or implementation='xla'"
                )
        fitted[kernel] = tile
    return TpuBlocks(vmem_limit_bytes=table.vmem_limit_bytes, **fitted)


def _smaller(tile: Tile) -> Tile | None:
    """Halves the longer side; None below 128 rows and columns."""
    if tile.rows > tile.columns:
        return Tile(tile.rows // 2, tile.columns)
    if tile.columns > 128:
        return Tile(tile.rows, tile.columns // 2)
    return Tile(tile.rows // 2, tile.columns) if tile.rows > 128 else None


def vmem_bytes(
    kernel: str, tile: Tile, width: int, hidden_bytes: int, weight_bytes: int
) -> int:
    """Estimate of the VMEM a kernel uses, on the high side.

    Inputs and outputs are double-buffered, accumulators single; about six tiles of float32
    logits live at a time; the weight is cast where its type differs.
    """
    rows, columns = tile
    width = -(-width // 128) * 128
    inputs = 2 * width * (rows * hidden_bytes + columns * weight_bytes)
    cast = 2 * width * columns * hidden_bytes
    scratch = 6 * rows * columns * 4 + 8 * rows * 128 * 4
    if kernel == "forward":
        return inputs + cast + scratch
    if kernel == "hidden":
        return inputs + cast + scratch + rows * width * (4 + 4 + 2 * hidden_bytes)
    return inputs + cast + scratch + columns * width * (4 + 4 + 2 * weight_bytes)
