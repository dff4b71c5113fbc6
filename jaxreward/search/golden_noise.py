"""Pairs of noises for a learned noise map: denoise one step, invert it (arXiv 2411.09502).

The step is taken with strong guidance and inverted with weak, so the noise moves along the
guidance direction. Only pairs whose second image a reward prefers are kept.
"""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxreward.checks import Number, check_number
from jaxreward.search.accounting import Spent

Predict = Callable[[Array, bool], Array]
"""`(x, conditional) -> predicted noise` at the first timestep, with or without the prompt."""


class Levels(NamedTuple):
    """Scales of signal (alpha) and noise (sigma) at the first timestep and at the next.

    Each > 0; for alpha-bar schedules they are `sqrt(ab)` and `sqrt(1 - ab)`.
    """

    alpha: Number
    sigma: Number
    next_alpha: Number
    next_sigma: Number


def move_factor(levels: Levels) -> Number:
    """`kappa = sigma - alpha next_sigma / next_alpha` of `x' = x + kappa (e2 - e1)`."""
    return levels.sigma - levels.alpha * levels.next_sigma / levels.next_alpha


def guided(
    predict: Predict, x: Float[Array, "..."], guidance: Number
) -> Float[Array, "..."]:
    """`eps(x) + guidance * (eps(x | prompt) - eps(x))`."""
    free = predict(x, False)
    return free + guidance * (predict(x, True) - free)


def redenoise(
    noise: Float[Array, "..."],
    predict: Predict,
    levels: Levels,
    *,
    guidance: Number = 5.5,
    inversion_guidance: Number = 1.0,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """One DDIM step with `guidance`, and its inversion with `inversion_guidance`.

    The inversion asks the network at the first timestep too.

    Returns:
      The re-denoised noise, and the state between.

    Raises:
      ValueError: a level is not positive, or `inversion_guidance` exceeds `guidance`.
    """
    for name, value in levels._asdict().items():
        check_number(name, value, lambda v: v > 0, "> 0")
    if isinstance(guidance, (int, float)) and isinstance(inversion_guidance, (int, float)):
        if inversion_guidance > guidance:
            raise ValueError(
                f"inversion_guidance = {inversion_guidance}; allowed is at most guidance, {guidance}"
            )
    alpha, sigma, next_alpha, next_sigma = levels
    first = guided(predict, noise, guidance)
    clean = (noise - sigma * first) / alpha
    between = next_alpha * clean + next_sigma * first
    second = guided(predict, between, inversion_guidance)
    return alpha * (between - next_sigma * second) / next_alpha + sigma * second, between


REDENOISE_SPENT = Spent(network_calls=4)
"""Of `redenoise` for one noise: two guided evaluations, each of two calls."""


def preferred(
    before: Float[Array, "N"], after: Float[Array, "N"], margin: Number = 0.0
) -> Bool[Array, "N"]:
    """Pairs to keep: the reward of the second image exceeds the first's by more than `margin`."""
    return after > before + margin


class Pairs(NamedTuple):
    """Noises and their golden counterparts.

    Attributes:
      noise: random.
      golden: re-denoised.
      before: reward of the image from `noise`.
      after: of the image from `golden`.
      kept: which pairs the reward approves.
    """

    noise: Float[Array, "N ..."]
    golden: Float[Array, "N ..."]
    before: Float[Array, "N"]
    after: Float[Array, "N"]
    kept: Bool[Array, "N"]


def collect(
    noise: Float[Array, "N ..."],
    improve: Callable[[Array], Array],
    reward: Callable[[Array, Array], Array],
    key: jax.Array,
    margin: Number = 0.0,
) -> Pairs:
    """Pairs for training.

    Args:
      noise: random noises.
      improve: a batch of noises to golden ones, such as a vmapped `redenoise`.
      reward: `(key, noises) -> [N]`, of the images that the sampler makes of them; it may be noisy.
      key: of the reward; the two calls get keys of their own.
      margin: of `preferred`.
    """
    golden = improve(noise)
    keys = jax.random.split(key)
    before, after = reward(keys[0], noise), reward(keys[1], golden)
    return Pairs(noise, golden, before, after, preferred(before, after, margin))


def draw_kept(
    key: jax.Array, kept: Bool[Array, "N"], batch: int
) -> Array:
    """Indices of `batch` kept pairs, uniformly with replacement; any pair where none is kept."""
    kept = kept | ~jnp.any(kept)
    reached = jnp.cumsum(kept.astype(jnp.int32))  # the r-th kept pair is where r is first reached
    rank = jax.random.randint(key, (batch,), 1, reached[-1] + 1)
    return jnp.searchsorted(reached, rank).astype(jnp.int32)
