"""Noise-aware rewards: one per step of a sampler, learned from the last step back to pure noise."""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxreward.checks import Number, check_choice, check_number
from jaxreward.losses.noise_search import reward_distillation
from jaxreward.training.fit import fit, rows

ORDERS = ("descending", "ascending", "none")


def distill_levels(
    key: jax.Array,
    params: Any,
    score: Callable[[Any, Array, Any], Array],
    estimates: Float[Array, "L N ..."],
    prompts: Any,
    target: Float[Array, "N"],
    *,
    steps: int,
    batch: int,
    learning_rate: Number,
    order: str = "descending",
    kind: str = "squared",
) -> Any:
    """Fine-tunes a reward to every noise level in turn (TTSnap, arXiv 2511.22242).

    Each level has an AdamW of its own whose step size falls linearly to half, and starts from the
    weights of the level before it.

    Args:
      key: of the batches.
      params: of the clean reward, where the first level starts.
      score: `(params, clean estimates, prompts) -> [B]`.
      estimates: clean estimates by level, from the noisiest, of N trajectories.
      prompts: pytree with leading axis `[N]`.
      target: clean reward of each trajectory's finished image.
      steps: updates for each level.
      batch: trajectories in each, drawn with replacement.
      learning_rate: at the start of each level, > 0.
      order: "descending", from nearly clean to pure noise; "ascending", the reverse; "none", every
        level starts from the clean reward.
      kind: of `reward_distillation`.

    Returns:
      Parameters with leading axis `[L]`, in the order of `estimates`.
    """
    check_choice("order", order, ORDERS)
    check_number("learning_rate", learning_rate, lambda v: v > 0, "> 0")
    schedule = optax.linear_schedule(learning_rate, 0.5 * learning_rate, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adamw(schedule, weight_decay=0.01))

    def level(current: Any, item: tuple):
        index, own = item

        def loss(params: Any, drawn: tuple):
            images, prompts, target = drawn
            return reward_distillation(score(params, images, prompts), target, kind=kind)

        start = params if order == "none" else current
        data = (own, prompts, target)
        learned, _ = fit(
            jax.random.fold_in(key, index), start, loss, lambda k: rows(data, k, batch), optimizer,
            steps=steps,
        )
        return learned, learned

    numbers = jnp.arange(estimates.shape[0])
    reverse = order == "descending"
    return jax.lax.scan(level, params, (numbers, estimates), reverse=reverse)[1]
