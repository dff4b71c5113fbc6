"""Kernels under `shard_map`: every operand varies over the same mesh axes."""

from typing import TypeVar

import jax

_T = TypeVar("_T")


def align(operands: _T, others=()) -> _T:
    """Casts the arrays of a pytree to vary over the union of the mesh axes they vary over.

    The cast's transpose is the sum over those axes, so a gradient with respect to a
    replicated operand is summed over the devices that used it. Identity outside `shard_map`.

    Args:
      operands: what to cast.
      others: arrays whose axes count too.
    """
    axes = frozenset().union(*(_axes(leaf) for leaf in jax.tree.leaves((operands, others))))

    def cast(leaf):
        missing = tuple(sorted(axes - _axes(leaf)))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, operands)


def _axes(leaf) -> frozenset:
    return jax.typeof(leaf).manual_axis_type.varying


def shape_like(shape: tuple[int, ...], dtype, operand: jax.Array) -> jax.ShapeDtypeStruct:
    """The type of an output that varies as `operand` does."""
    kind = jax.typeof(operand).manual_axis_type
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)
