"""The function and its derivative, for any kernel and for a vocabulary split over a mesh axis.

A kernel says what the columns it holds contribute to each row, and what gradients they give
once the statistics of the whole row are known. All else is here, once.
"""

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxreward.kernels.linear_log_prob import statistics
from jaxreward.kernels.linear_log_prob.statistics import Outputs
from jaxreward.kernels.linear_log_prob.varying import align


class Head(NamedTuple):
    """The differentiable inputs of the head."""

    weight: Float[Array, "D V"]
    bias: Float[Array, "V"] | None


class Scaling(NamedTuple):
    """What turns the head's output into logits, without gradient.

    Attributes:
      temperature: float32.
      columns: int32, how many leading columns of the weight are real; None is all.
    """

    temperature: Float[Array, ""]
    columns: Int[Array, ""] | None


class Span(NamedTuple):
    """Where the columns held lie in the whole vocabulary.

    Attributes:
      first: token id of the first column.
      vocabulary: real columns of the whole.
    """

    first: Int[Array, ""]
    vocabulary: Int[Array, ""]


class Kernel(NamedTuple):
    """One way to compute; hashable.

    Attributes:
      statistics: `(hidden, head, targets, valid, scaling, softcap, options) -> Statistics`;
        targets count from the first column held; rows that are not `valid` may be left out.
      gradients: `(hidden, head, targets, terms, active, scaling, softcap, options) ->
        (d_hidden, d_head)`; the head's in its own types, zero rows where not `active`.
      options: tiles and the like.
    """

    statistics: Callable[..., statistics.Statistics]
    gradients: Callable[..., tuple[Array, Head]]
    options: Any


class _Static(NamedTuple):
    kernel: Kernel
    softcap: Any
    axis: str | None


def linear_log_prob(
    kernel: Kernel,
    hidden: Float[Array, "N D"],
    weight: Float[Array, "D V"],
    targets: Int[Array, "N"],
    bias: Float[Array, "V"] | None = None,
    *,
    temperature=1.0,
    logit_softcap: float | None = None,
    vocabulary: int | Int[Array, ""] | None = None,
    axis: str | None = None,
) -> Outputs:
    """See `api.linear_log_prob`.

    Args:
      axis: mesh axis over which the columns are split, in equal parts, where this runs under
        `shard_map`; targets and `vocabulary` then count over the whole.
    """
    scaling, span = _place(weight, temperature, vocabulary, axis)
    hidden, head = align((hidden, Head(weight, bias)), (targets, scaling, span))
    static = _Static(kernel, logit_softcap, axis)
    return _log_prob(hidden, head, targets, scaling, span, static)


def scale(temperature, vocabulary) -> Scaling:
    """The arrays of a `Scaling` for a weight held whole."""
    columns = None if vocabulary is None else jnp.asarray(vocabulary, jnp.int32)
    return Scaling(jnp.asarray(temperature, jnp.float32), columns)


def _place(weight, temperature, vocabulary, axis) -> tuple[Scaling, Span]:
    held = weight.shape[1]
    whole = held if axis is None else held * jax.lax.axis_size(axis)
    first = 0 if axis is None else jax.lax.axis_index(axis) * held
    real = whole if vocabulary is None else vocabulary
    span = Span(jnp.asarray(first, jnp.int32), jnp.asarray(real, jnp.int32))
    columns = None if vocabulary is None else jnp.clip(span.vocabulary - span.first, 0, held)
    return Scaling(jnp.asarray(temperature, jnp.float32), columns), span


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _log_prob(hidden, head, targets, scaling, span, static):
    return _forward(hidden, head, targets, scaling, span, static)[0]


def _forward(hidden, head, targets, scaling, span, static):
    kernel, softcap, axis = static
    operands = align((hidden, head, targets - span.first, targets >= 0, scaling))
    found = kernel.statistics(*operands, softcap, kernel.options)
    if axis is not None:
        found = statistics.join(found, axis)
    results, saved = statistics.outputs(found, targets, span.vocabulary)
    return results, (hidden, head, targets, scaling, span, saved)


def _backward(static, residuals, cotangents):
    kernel, softcap, axis = static
    hidden, head, targets, scaling, span, saved = residuals
    if axis is not None:
        cotangents = tuple(_each_has(g, head.weight, axis) for g in cotangents)
    terms, active = statistics.terms(saved, targets, tuple(cotangents))
    operands = align((hidden, head, targets - span.first, terms, active, scaling))
    d_hidden, d_head = kernel.gradients(*operands, softcap, kernel.options)
    return d_hidden, d_head, None, None, None


_log_prob.defvjp(_forward, _backward)


def _each_has(cotangent: Array, operand: Array, axis: str) -> Array:
    """The cotangent of each part of a sum along an axis: the transpose of `psum`."""
    part = jnp.zeros_like(operand, cotangent.dtype, shape=cotangent.shape)
    return jax.vjp(lambda x: jax.lax.psum(x, axis), part)[1](cotangent)[0]
