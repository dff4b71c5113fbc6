"""What the study of FIND measures of images, and its figure."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from experiments.generator_studies import digits
from jaxreward import masked


def measure(
    images: Float[Array, "N H W C"], rewards: Float[Array, "N"], judged: Float[Array, "N"]
) -> dict[str, Array]:
    """Clean reward, judge and diversity of fresh images; a reward that is missing does not count."""
    flat = digits.flat(images)
    square = jnp.sum(jnp.square(flat), axis=1)
    square = square[:, None] + square[None, :] - 2.0 * flat @ flat.T
    distance = jnp.sqrt(jnp.maximum(square, 0.0))
    successes = jnp.clip(jnp.nan_to_num(rewards, nan=0.0), 0.0, 1.0)
    return {
        "reward": jnp.nanmean(rewards),
        "judge": jnp.mean(judged),
        "diversity": _pairs(distance, jnp.ones_like(rewards)),
        "diversity/of_successes": _pairs(distance, successes),
    }


def _pairs(distance: Float[Array, "N N"], weights: Float[Array, "N"]) -> Float[Array, ""]:
    """Mean distance of different samples, each counted by its weight."""
    both = weights[:, None] * weights[None, :] * (1.0 - jnp.eye(len(weights)))
    return jnp.sum(both * distance) / jnp.maximum(jnp.sum(both), 1e-6)


def correlation(first: Float[Array, "N"], second: Float[Array, "N"]) -> Float[Array, ""]:
    """Of pairs of which both exist."""
    there = jnp.isfinite(first) & jnp.isfinite(second)
    first, second = (x - masked.mean(x, there) for x in (first, second))
    squares = masked.mean(jnp.square(first), there) * masked.mean(jnp.square(second), there)
    return masked.mean(first * second, there) / jnp.maximum(jnp.sqrt(squares), 1e-6)


def compare(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Adds gains over the base noise."""
    base = found["base"]
    for own in found.values():
        own["gain"] = own["reward"] - base["reward"]
        own["diversity/kept"] = own["diversity"] / base["diversity"]
        own["samples/before"] = base["samples/after"]
    return found


def draw(config: Any, found: Any, results: Any, axes: Any) -> None:
    """Clean reward of fresh samples against what was spent, a point for each arm and seed."""
    del config, results
    for name, own in found.items():
        axes.plot(own["spent/cost"], own["reward"], "o", label=name, alpha=0.7)
    axes.set_xlabel("network calls, a backward pass as two")
    axes.set_ylabel("clean reward of fresh samples")
    axes.legend(fontsize=7)
