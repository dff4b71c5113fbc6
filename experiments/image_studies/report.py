"""What the studies of noise search report: the judge's verdicts, counts and sample grids."""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.generator_figures import BUDGET, CURVE_PANELS, PROMPTS, REWARD, SAMPLES, TRUSTED
from experiments.image_studies.problem import ask
from jaxreward import masked
from jaxreward.rewards.images import distance_to_real
from jaxreward.search.accounting import Spent, cost
from jaxreward.search.noise_optimization import best_so_far
from jaxreward.tasks.digit_canvases import CATEGORIES


def judged(judge: Callable, images: Array, prompts: Array, real: Array) -> dict[str, Any]:
    """Metrics of `[P, 8, 16]` images, one for each prompt `[P, 4]`."""
    verdict = jax.vmap(lambda image, prompt: ask(judge, image, prompt))(images, prompts)
    away = jax.vmap(lambda image: distance_to_real(image, real))(images)
    metrics = {
        "judge/accuracy": jnp.mean(verdict.right),
        "judge/log_prob": jnp.mean(verdict.log_prob),
        "real/distance": jnp.mean(away),
        SAMPLES: images[:SHOWN],
        PROMPTS: prompts[:SHOWN],
    }
    for index, name in enumerate(CATEGORIES):
        metrics[f"judge/accuracy/{name}"] = masked.mean(verdict.right, prompts[:, 0] == index)
    return metrics


SHOWN = 12
"""Canvases of each arm in the figure."""


def counted(spent: Spent) -> dict[str, Array]:
    """The accountant's counts as metrics, and their cost with a backward pass at two calls."""
    named = {f"spent/{name}": count for name, count in spent._asdict().items()}
    return {k: jnp.float32(v) for k, v in {**named, "spent/cost": cost(spent)}.items()}


def course(
    totals: Float[Array, "P N"],
    rewards: Float[Array, "P N"],
    right: Float[Array, "P N"],
    each: Spent,
) -> dict[str, Array]:
    """Curves against budget of the best candidate so far, mean over prompts.

    Args:
      totals: loss by which a search chooses, of each candidate in the order in which it was made.
      rewards: the training reward of each.
      right: the judge's verdict of each.
      each: what one candidate costs.
    """
    best = jax.vmap(best_so_far)(totals)
    mean = lambda values: jnp.mean(jnp.take_along_axis(values, best, axis=1), axis=0)
    made = jnp.arange(1.0, totals.shape[1] + 1.0)
    budget = jnp.float32(cost(each)) * made
    return {BUDGET: budget, REWARD: mean(rewards), TRUSTED: mean(right)}


def draw_samples(config: Any, found: Any, results: Any, axes: Any) -> None:
    """The first seed's canvases, one row for each arm that has some."""
    del config, results
    rows = {arm: own[SAMPLES][0] for arm, own in found.items() if SAMPLES in own}
    if not rows:
        axes.set_axis_off()
        return
    strips = [np.concatenate([np.pad(x, 1, constant_values=0.5) for x in row], axis=1)
              for row in rows.values()]
    grid = np.concatenate(strips, axis=0)
    axes.imshow(grid, cmap="gray", vmin=0, vmax=1, aspect="equal", interpolation="nearest")
    height = strips[0].shape[0]
    axes.set_yticks([height * (i + 0.5) for i in range(len(rows))], list(rows))
    axes.set_xticks([])
    axes.set_title("the same prompts, before and after")


PANELS = (draw_samples, *CURVE_PANELS)
"""What the report of a noise search shows beside its bars."""
