"""Which rows a pass visits: active ones in their order, the rest never read."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class RowOrder(NamedTuple):
    """The active rows, padded to whole blocks.

    Attributes:
      index: row numbers of the active rows, then numbers from `N` on, each one once.
      count: how many rows are active.
    """

    index: Int[Array, "M"]
    count: Int[Array, ""]


def active_first(active: Bool[Array, "N"], block_rows: int) -> RowOrder:
    """Numbers the active rows for blocks of `block_rows`."""
    rows = active.shape[0]
    length = rows + -rows % block_rows
    place = jnp.where(active, jnp.cumsum(active.astype(jnp.int32)) - 1, length)
    numbers = jnp.arange(rows, dtype=jnp.int32)
    index = rows + jnp.arange(length, dtype=jnp.int32)
    index = index.at[place].set(numbers, mode="drop")
    return RowOrder(index, jnp.sum(active, dtype=jnp.int32))


def blocks(order: RowOrder, block_rows: int) -> Int[Array, ""]:
    """How many blocks hold all active rows."""
    return (order.count + block_rows - 1) // block_rows


def take(array: Array, index: Int[Array, "M"], fill=0) -> Array:
    """`array[index]`, `fill` where the index is past the end."""
    return jnp.take(array, index, axis=0, mode="fill", fill_value=fill)


def put(array: Array, index: Int[Array, "M"], values: Array) -> Array:
    """`array` with `values` at `index`; what is past the end is dropped."""
    return array.at[index].set(values, mode="drop", unique_indices=True)


def put_all(values: Array, index: Int[Array, "M"], rows: int) -> Array:
    """`[rows, ...]` with `values` at `index` and zero elsewhere."""
    zeros = jnp.zeros_like(values, shape=(rows,) + values.shape[1:])
    return put(zeros, index, values)


def pad(array: Array, block_rows: int, fill=0) -> Array:
    """`[N, ...]` as `[blocks, block_rows, ...]`."""
    short = -array.shape[0] % block_rows
    widths = [(0, short)] + [(0, 0)] * (array.ndim - 1)
    array = jnp.pad(array, widths, constant_values=fill)
    return jax.lax.reshape(array, (array.shape[0] // block_rows, block_rows) + array.shape[1:])
