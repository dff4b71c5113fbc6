"""The head over many devices: tokens split, the vocabulary split, or both.

* Token-parallel: every device scores its own rows with the whole weight; the gradient of the
  weight is summed over the devices.
* Vocabulary-parallel: every device holds some columns and sees every row of its group. Three
  numbers per row travel: the largest logit, then the sums and the target's logit; in the
  backward d(hidden) is summed. No logits and no weights travel.

`linear_log_prob` is `shard_map` over a mesh around the kernels; `core.linear_log_prob` with
`axis` is the same for a caller that is under `shard_map` already.
"""

from typing import Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from jaxreward.kernels.linear_log_prob import api, core
from jaxreward.kernels.linear_log_prob.blocks import GpuBlocks, TpuBlocks


def linear_log_prob(
    hidden: Float[Array, "N D"],
    weight: Float[Array, "D V"],
    targets: Int[Array, "N"],
    bias: Float[Array, "V"] | None = None,
    *,
    mesh: Mesh,
    token_axes: Sequence[str] = (),
    vocabulary_axis: str | None = None,
    temperature=1.0,
    logit_softcap: float | None = None,
    vocabulary: int | Int[Array, ""] | None = None,
    implementation: str | None = None,
    block_rows: int | None = None,
    block_columns: int | None = None,
    blocks: TpuBlocks | GpuBlocks | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "N"], Float[Array, "N"], Float[Array, "N"]]:
    """`api.linear_log_prob` over a mesh, with the same values and gradients.

    N and V need not divide by the axes: rows are filled with ignored ones and columns with
    ones that are not real. Filling the columns copies the weight, so a weight meant for this
    is better stored padded, its real columns given as `vocabulary`.

    Args:
      mesh: the devices.
      token_axes: axes over which rows are split, in this order; the outputs are too.
      vocabulary_axis: axis over which columns are split; None: every device of a row's group
        has all of them.

    The other arguments, results and errors are those of `api.linear_log_prob`.

    Raises:
      ValueError: an axis is not in the mesh or is named twice.
    """
    api.check(hidden, weight, targets, bias, temperature, logit_softcap, vocabulary, block_rows)
    _check_axes(mesh, tuple(token_axes), vocabulary_axis)
    if hidden.shape[0] == 0:
        return api.linear_log_prob(hidden, weight, targets, bias, implementation="reference")
    rows, real = hidden.shape[0], weight.shape[1] if vocabulary is None else vocabulary
    parts = 1 if vocabulary_axis is None else mesh.shape[vocabulary_axis]
    groups = 1
    for axis in token_axes:
        groups *= mesh.shape[axis]
    hidden, targets = _fill(hidden, 0, groups, 0), _fill(targets, 0, groups, -1)
    short = -weight.shape[1] % parts
    weight = _fill(weight, 1, parts, 0)
    bias = None if bias is None else _fill(bias, 0, parts, 0)
    options = (implementation, block_rows, block_columns, blocks, interpret)

    def part(hidden, weight, targets, bias, temperature, real):
        kernel = _kernel(hidden, weight, *options)
        return core.linear_log_prob(
            kernel, hidden, weight, targets, bias, temperature=temperature,
            logit_softcap=logit_softcap, axis=vocabulary_axis,
            vocabulary=None if vocabulary is None and not short else real,
        )  # fmt: skip

    tokens, columns = PartitionSpec(tuple(token_axes)), PartitionSpec(vocabulary_axis)
    whole = PartitionSpec()
    specs = (tokens, PartitionSpec(None, vocabulary_axis), tokens, columns, whole, whole)
    scored = jax.shard_map(
        part, mesh=mesh, in_specs=specs, out_specs=(tokens,) * 3, check_vma=not interpret
    )
    scalars = jnp.asarray(temperature, jnp.float32), jnp.asarray(real, jnp.int32)
    return tuple(out[:rows] for out in scored(hidden, weight, targets, bias, *scalars))


def _kernel(hidden, weight, implementation, *tiling) -> core.Kernel:
    """The kernel for one device's shapes."""
    if implementation is None:
        implementation = api.choose(*hidden.shape, weight.shape[1])
    api.check_implementation(implementation, *tiling)
    return api.make_kernel(implementation, hidden, weight, *tiling)


def _fill(array: Array, axis: int, parts: int, value) -> Array:
    """Padded at the end of an axis to a multiple of `parts`."""
    short = -array.shape[axis] % parts
    if not short:
        return array
    widths = [(0, short if i == axis else 0) for i in range(array.ndim)]
    return jnp.pad(array, widths, constant_values=value)


def _check_axes(mesh: Mesh, token_axes: tuple[str, ...], vocabulary_axis: str | None) -> None:
    named = token_axes if vocabulary_axis is None else (*token_axes, vocabulary_axis)
    for axis in named:
        if axis not in mesh.axis_names:
            raise ValueError(f"axis {axis!r} is not in the mesh; allowed are {mesh.axis_names}")
    if len(set(named)) < len(named):
        raise ValueError(f"axes {named}; allowed is each axis once")
