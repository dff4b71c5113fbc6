"""Losses of what a search over noise learns: noise-aware rewards and noise maps."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreward import masked
from jaxreward.checks import Number, check_choice, check_number

DISTILLATION = ("squared", "standardized", "preference")


def reward_distillation(
    predicted: Float[Array, "B"],
    target: Float[Array, "B"],
    *,
    kind: str = "squared",
    temperature: Number = 0.5,
) -> Float[Array, ""]:
    """Distance of a noise-aware reward from the clean reward of the same trajectory's end.

    TTSnap (arXiv 2511.22242). `target` takes no gradient; samples where it is NaN or infinite are
    missing, and take no part.

    Args:
      predicted: by the learned reward, of the clean estimates of one step.
      target: by the original reward, of the finished images.
      kind: "squared" error in raw units; "standardized": of both after removal of the batch's mean
        and division by its standard deviation (n - 1); "preference": cross-entropy of every pair's
        order with the given temperature.
      temperature: > 0.
    """
    check_choice("kind", kind, DISTILLATION)
    check_number("temperature", temperature, lambda v: v > 0, "> 0")
    target = jax.lax.stop_gradient(target)
    known = jnp.isfinite(target)
    target = jnp.where(known, target, 0.0)
    if kind == "squared":
        return masked.mean(jnp.square(predicted - target), known)
    if kind == "standardized":
        parts = (_standardized(values, known) for values in (predicted, target))
        return masked.mean(jnp.square(jnp.subtract(*parts)), known)
    ahead = (target[:, None] > target[None, :]) & known[:, None] & known[None, :]
    gaps = (predicted[:, None] - predicted[None, :]) / temperature
    return masked.mean(jax.nn.softplus(-gaps), ahead)


def noise_regression(
    mapped: Float[Array, "B *N"], golden: Float[Array, "B *N"]
) -> Float[Array, ""]:
    """Mean squared error over all entries of mapped and golden noises (arXiv 2411.09502)."""
    return jnp.mean(jnp.square(mapped - golden))


def _standardized(values: Array, known: Array) -> Array:
    centred = jnp.where(known, values - masked.mean(values, known), 0.0)
    square = jnp.sum(jnp.square(centred)) / jnp.maximum(masked.count(known) - 1.0, 1.0)
    std = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return centred / (std + 1e-10)
