"""A normal distribution over a sampler's initial noise as a policy (arXiv 2407.19453).

The sampler behind it, however many steps it has, is part of the environment: one decision for
each sample, `S = 1`.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxreward.checks import check_choice, check_number
from jaxreward.policies import denoising_chain as chains
from jaxreward.policies.flow import Gaussian, draw
from jaxreward.types import Policy, StepScores, Trajectories

SMALLEST = 1e-4
"""Deviations below this are raised to it."""


class NoisePrior(NamedTuple):
    """Mean and deviation of the noise of each of `N` prompts."""

    mean: Float[Array, "N *shape"]
    std: Float[Array, "N *shape"]


class NoisePrompts(NamedTuple):
    """Prompts of such a policy.

    Attributes:
      index: int32, the row of the parameters.
      condition: pytree with leading axis `[P]`, for the sampler.
    """

    index: Int[Array, "P"]
    condition: Any


Generate = Callable[[jax.Array, Array, Any], Array]
"""`(key, noise [B, ...], condition) -> what is shown [B, ...]`."""


def noise_prior_policy(
    num_prompts: int,
    shape: tuple[int, ...],
    generate: Generate | None = None,
    *,
    reduction: str = "mean",
) -> Policy:
    """A distribution over noise for each prompt; starts as the standard normal one.

    Prompts are `NoisePrompts`, actions the noise `[P, G, *shape]`, outputs what `generate` makes
    of it (the noise itself without it). Deviations are clamped wherever they are used; keep the
    parameters themselves there with `keep_deviations`.

    Args:
      num_prompts: >= 1.
      shape: of the noise.
      generate: the frozen sampler; may be stochastic.
      reduction: as in `denoising_chain.denoising_policy`; the "mean" is the paper's.

    Raises:
      ValueError: `num_prompts` < 1 or an unknown reduction.
    """
    check_number("num_prompts", num_prompts, lambda x: x >= 1, ">= 1")
    check_choice("reduction", reduction, chains.REDUCTIONS)

    def init(key: jax.Array) -> NoisePrior:
        del key
        full = (num_prompts, *shape)
        return NoisePrior(jnp.zeros(full, jnp.float32), jnp.ones(full, jnp.float32))

    def distribution(params: NoisePrior, index: Array, group: int) -> Gaussian:
        std = jnp.maximum(params.std[index], SMALLEST)
        return Gaussian(*chains.repeat((params.mean[index], std), group))

    def sample(
        params: NoisePrior, key: jax.Array, prompts: NoisePrompts, group_size: int
    ) -> Trajectories:
        of_noise, of_sampler = jax.random.split(key)
        own = distribution(params, prompts.index, group_size)
        noise = draw(of_noise, own)
        log_probs = chains.log_density(own, noise, reduction)
        shown = noise
        if generate is not None:
            condition = chains.repeat(prompts.condition, group_size)
            shown = generate(of_sampler, noise, condition)
        split = lambda leaf: leaf.reshape((-1, group_size) + leaf.shape[1:])
        log_probs = split(log_probs)[:, :, None]
        mask = jnp.ones(log_probs.shape, bool)
        return Trajectories(prompts, split(noise), split(shown), log_probs, mask)

    def log_prob(params: NoisePrior, trajectories: Trajectories) -> StepScores:
        mask, noise = trajectories.mask, trajectories.actions
        own = distribution(params, trajectories.prompts.index, mask.shape[1])
        found = (
            chains.log_density(own, noise.reshape(own.mean.shape), reduction),
            chains.entropy(own, reduction),
        )
        return StepScores(*(jnp.where(mask, leaf.reshape(mask.shape), 0.0) for leaf in found))

    return Policy(init, sample, log_prob)


def drift_penalty(params: NoisePrior) -> Float[Array, ""]:
    """Mean over coordinates of `mean^2 + (std - 1)^2`, the paper's stand-in for a divergence."""
    return jnp.mean(jnp.square(params.mean) + jnp.square(params.std - 1.0))


def keep_deviations(smallest: float = SMALLEST) -> optax.GradientTransformation:
    """The last link of an optimizer of a `NoisePrior`: no deviation falls below `smallest`."""
    check_number("smallest", smallest, lambda x: x > 0, "> 0")

    def update(updates: NoisePrior, state: Any, params: NoisePrior | None = None):
        if params is None:
            raise ValueError("params is None; keep_deviations needs the parameters")
        std = jnp.maximum(params.std + updates.std, smallest) - params.std
        return updates._replace(std=std), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)
