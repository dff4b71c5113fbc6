"""The gradient of a whole batch from those of its parts: micro-batches, and devices.

A loss says by what it was divided, its weight, and so the average over a batch is the weighted
average of those over its parts. The same holds for each of its metrics.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

from jaxreward.losses.reduction import WEIGHT
from jaxreward.training import sharding
from jaxreward.types import Signal

LossFn = Callable[[Any, Signal], tuple[jax.Array, dict[str, jax.Array]]]
"""`(params, signal) -> (float32 scalar, metrics)`; see `losses.policy.policy_objective`.

The metric `weight/loss`, if there, is the denominator of the loss's average, and `weight/NAME`
that of the metric NAME, which otherwise has that of the loss (1 without one)."""

_SMALL = 1 << 18
"""Entries of an array below which it is summed over devices together with others: a sum costs a
fixed time as well, on CPUs 55 us, and a copy of large arrays costs more than that saves."""


class _Sums(NamedTuple):
    """What parts of a batch add up to; all float32.

    Attributes:
      loss: loss and gradient times the weight of the loss.
      means: each metric times its weight.
      weight: of the loss.
      weights: of the metrics.
    """

    loss: tuple[jax.Array, Any]
    means: dict[str, jax.Array]
    weight: jax.Array
    weights: dict[str, jax.Array]


def average_gradient(
    loss: LossFn, params: Any, signal: Signal, parts: int = 1, mesh: sharding.AnyMesh | None = None
) -> tuple[jax.Array, dict[str, jax.Array], Any]:
    """Loss, metrics and gradient of the whole batch.

    Args:
      loss: see `LossFn`. What it says of a part in which nothing counts, NaN or not, is not used.
      params: differentiated; the gradient has their types, sums are float32.
      signal: credited, `[P, ...]`; its `metrics` and `rates` are hidden from the loss where the
        batch is in parts.
      parts: micro-batches, one after the other.
      mesh: devices that hold the parameters whole and differentiate the loss of their own prompts,
        all micro-batches of it, before anything is summed over them.

    Returns:
      `(loss, metrics, gradient)`. A metric whose name ends in `_max` is the largest of the parts.

    Raises:
      ValueError: the number of prompts is not divisible by `parts` times the devices.
    """
    if parts == 1 and mesh is None:
        (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, signal)
        return value, {k: v for k, v in metrics.items() if not k.startswith(WEIGHT)}, grads
    signal = signal.replace(metrics={}, rates=None)
    if mesh is None:
        sums, largest = _add_up(loss, params, signal, parts)
    else:
        sums, largest = _add_up_over(mesh, loss, params, signal, parts)
    over = lambda x, weight: x / jnp.where(weight > 0, weight, 1.0)
    value, grads = jax.tree.map(lambda x: over(x, sums.weight), sums.loss)
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
    return value, {**jax.tree.map(over, sums.means, sums.weights), **largest}, grads


def split_prompts(signal: Signal, parts: int) -> Signal:
    """The signal with prompts split into a new leading axis of `parts`; metrics dropped.

    Part `i` holds prompts `i, i + parts, ...`: prompts sharded over devices stay where they are.

    Raises:
      ValueError: the number of prompts is not divisible by `parts`.
    """
    return _split(signal.replace(metrics={}, rates=None), parts)


def map_in_parts(function: Callable[[Any], Any], tree: Any, parts: int) -> Any:
    """`function(tree)` computed for `parts` micro-batches one after the other.

    Args:
      function: of a tree with leading axis `[P]` to one with the same leading axis, each prompt
        for itself, such as the reference's log-probabilities of trajectories.
      tree: its argument.
      parts: number of micro-batches, as for `split_prompts`.

    Raises:
      ValueError: the number of prompts is not divisible by `parts`.
    """
    if parts == 1:
        return function(tree)
    made = jax.lax.map(function, _split(tree, parts))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape((-1,) + x.shape[2:]), made)


def _split(tree: Any, parts: int) -> Any:
    prompts = jax.tree.leaves(tree)[0].shape[0]
    if prompts % parts:
        raise ValueError(
            f"{prompts} prompts cannot be split into {parts} micro-batches; allowed are divisors"
        )
    split = lambda x: x.reshape((prompts // parts, parts) + x.shape[1:])
    return jax.tree.map(lambda x: jnp.swapaxes(split(x), 0, 1), tree)


def _add_up(loss: LossFn, params: Any, signal: Signal, parts: int):
    """`(_Sums, largest)` over micro-batches."""
    weigh = lambda part: _weigh(loss, params, part)
    if parts == 1:
        return weigh(signal)

    def body(total, part):
        (sums, largest), (own, new) = total, weigh(part)
        larger = jax.tree.map(jnp.maximum, largest, new)
        return (jax.tree.map(jnp.add, sums, own), larger), None

    micro = _split(signal, parts)
    shapes = jax.eval_shape(weigh, jax.tree.map(lambda x: x[0], micro))
    start = tuple(
        jax.tree.map(lambda s, fill=fill: jnp.full(s.shape, fill, s.dtype), tree)
        for tree, fill in zip(shapes, (0.0, -jnp.inf))
    )
    return jax.lax.scan(body, start, micro)[0]


def _weigh(loss: LossFn, params: Any, signal: Signal):
    """What one micro-batch adds, and its largest values."""
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(params, signal)
    told = {k.removeprefix(WEIGHT): v for k, v in metrics.items() if k.startswith(WEIGHT)}
    weight = jnp.asarray(told.get("loss", 1.0), jnp.float32)
    largest = {k: v for k, v in metrics.items() if k.endswith("_max")}
    means = {
        k: v for k, v in metrics.items() if k not in largest and not k.startswith(WEIGHT)
    }
    weights = {k: jnp.asarray(told.get(k, weight), jnp.float32) for k in means}
    times = lambda x, w: jnp.where(w > 0, x.astype(jnp.float32) * w, 0.0)
    scaled = jax.tree.map(lambda x: times(x, weight), (value, grads))
    return _Sums(scaled, jax.tree.map(times, means, weights), weight, weights), largest


def _add_up_over(mesh: sharding.AnyMesh, loss: LossFn, params: Any, signal: Signal, parts: int):
    """`_add_up` of every device's own prompts, summed over the mesh."""
    sharding.check_batch(mesh, jax.tree.leaves(signal)[0].shape[0], parts)

    def own(params: Any, signal: Signal):
        sums, largest = _add_up(loss, params, signal, parts)
        return _sum_over(sums, sharding.BATCH), jax.lax.pmax(largest, sharding.BATCH)

    whole, by_prompt = PartitionSpec(), PartitionSpec(sharding.BATCH)
    specs = dict(in_specs=(whole, by_prompt), out_specs=whole, check_vma=False)
    return jax.shard_map(own, mesh=mesh, **specs)(params, signal)


def _sum_over(tree: Any, axes: tuple[str, ...]) -> Any:
    """The tree summed over mapped axes, its small arrays as one."""
    leaves, structure = jax.tree.flatten(tree)
    small = [np.prod(leaf.shape) < _SMALL for leaf in leaves]
    flat, restore = ravel_pytree([leaf for leaf, one in zip(leaves, small) if one])
    together = iter(restore(jax.lax.psum(flat, axes)))
    summed = [next(together) if s else jax.lax.psum(x, axes) for x, s in zip(leaves, small)]
    return jax.tree.unflatten(structure, summed)
