"""Pruning of candidates while they are being generated (TTSnap, arXiv 2511.22242).

Candidates are scored by their clean estimates at a few steps of the sampler, each time only the
best are kept, and the choice among those that reach the end is made by the reward itself. Counts
are Python integers, so every shape is static. A score or reward that is NaN is the worst of all.
"""

from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxreward.checks import Number, check_number
from jaxreward.search.accounting import Spent


class Schedule(NamedTuple):
    """When to prune, and how much.

    Attributes:
      steps: indices of the sampler's steps, ascending from 0, after whose clean estimate candidates
        are dropped.
      keep: share of the candidates kept there, each in (0, 1].
    """

    steps: tuple[int, ...] = (2, 6, 11)
    keep: tuple[float, ...] = (0.4, 0.4, 0.5)


def check_schedule(schedule: Schedule, total: int) -> None:
    """Raises ValueError unless the schedule fits a sampler of `total` steps."""
    steps, keep = schedule
    ascending = all(a < b for a, b in zip((-1, *steps), steps))
    if not ascending or any(step >= total or step != int(step) for step in steps):
        raise ValueError(f"steps = {steps}; allowed are ascending integers in 0 .. {total - 1}")
    if len(keep) != len(steps) or not all(0 < share <= 1 for share in keep):
        raise ValueError(f"keep = {keep}; allowed are {len(steps)} shares in (0, 1]")


def survivors(count: int, keep: Sequence[float]) -> tuple[int, ...]:
    """How many candidates are left after each stage; halves round to even, at least one stays.

    Raises:
      ValueError: no candidate to begin with.
    """
    check_number("count", count, lambda v: v >= 1, ">= 1 candidates")
    left = []
    for share in keep:
        count = max(1, round(share * count))
        left.append(count)
    return tuple(left)


def cost_per_candidate(
    schedule: Schedule,
    total: int,
    denoise_cost: Number,
    reward_cost: Number,
    *,
    as_released: bool = False,
) -> float:
    """Expected cost per initial candidate, in the units of the costs given.

    Args:
      schedule: of the pruning; empty for none.
      total: steps of the sampler.
      denoise_cost: of one step.
      reward_cost: of scoring one image, with its decoding.
      as_released: charge `s` steps for the estimate of step `s`, as the authors' code does, though
        it needs `s + 1`: each candidate is charged one step too few.
    """
    check_schedule(schedule, total)
    cost, share, last = 0.0, 1.0, 0 if as_released else -1
    for step, kept in zip(*schedule):
        cost += share * ((step - last) * denoise_cost + reward_cost)
        share, last = share * kept, step
    return cost + share * ((total - 1 - last) * denoise_cost + reward_cost)


def affordable(budget: Number, per_candidate: Number) -> int:
    """How many candidates a budget pays for, `floor(budget / per_candidate)`; may be none.

    Raises:
      ValueError: a cost that is not positive, or a budget below 0 or infinite.
    """
    check_number("per_candidate", per_candidate, lambda v: v > 0, "> 0")
    check_number("budget", budget, lambda v: (v >= 0) & (v < np.inf), ">= 0 and finite")
    return int(np.floor(budget / per_candidate * (1.0 + 1e-9)))  # 3 * 199.2 / 199.2 is below 3


def spent(count: int, schedule: Schedule, total: int, rewards: int = 1) -> Spent:
    """What a pruned search over `count` candidates spends, counted exactly."""
    check_schedule(schedule, total)
    network = images = 0
    last, left = -1, (count, *survivors(count, schedule.keep))
    for alive, step in zip(left, (*schedule.steps, total - 1)):
        network += alive * (step - last)
        images += alive
        last = step
    return Spent(network, images, images * rewards)


def rank_sum(rewards: Float[Array, "N M"]) -> Float[Array, "N"]:
    """Sum over rewards of the rank among the candidates, 0 for the worst; ties in order."""
    ranks = jnp.argsort(jnp.argsort(_known(rewards), axis=0), axis=0)
    return jnp.sum(ranks, axis=1).astype(jnp.float32)


class Pruned(NamedTuple):
    """The outcome for one prompt.

    Attributes:
      winner: index of the candidate chosen.
      score: its reward.
      kept: indices of the survivors of each stage, ascending.
    """

    winner: Int[Array, ""]
    score: Float[Array, ""]
    kept: tuple[Int[Array, "_"], ...]


def prune_table(
    stages: Float[Array, "N J"], final: Float[Array, "N"], keep: Sequence[float]
) -> Pruned:
    """Pruning replayed on scores that are known: for simulation.

    Args:
      stages: score of every candidate at every stage.
      final: reward of the finished candidates.
      keep: shares, one for each stage.

    Raises:
      ValueError: `keep` has another length than there are stages, a share is out of (0, 1], or
        there is no candidate.
    """
    check_schedule(Schedule(tuple(range(stages.shape[1])), tuple(keep)), max(stages.shape[1], 1))
    alive, kept = jnp.arange(stages.shape[0], dtype=jnp.int32), []
    for stage, count in enumerate(survivors(stages.shape[0], keep)):
        alive = alive[_best(stages[alive, stage], count)]
        kept.append(alive)
    winner = alive[jnp.argmax(_known(final)[alive])]
    return Pruned(winner, final[winner], tuple(kept))


def pruned_search(
    noises: Float[Array, "N ..."],
    advance: Callable[[Any, int], tuple[Any, Array]],
    score: Callable[[Array, int], Array],
    reward: Callable[[Array], Array],
    schedule: Schedule,
    total: int,
) -> tuple[Array, Pruned]:
    """Generates candidates, dropping some on the way.

    Args:
      noises: starts of the candidates.
      advance: `(states, s) -> (states, clean estimates)`, one step of the sampler for a batch; the
        clean estimates of the last step are the images.
      score: `(clean estimates, stage) -> [n]` scores at a stage.
      reward: `(images) -> [n]`, which alone decides in the end.
      schedule: of the pruning.
      total: steps of the sampler.

    Returns:
      The image chosen, and how.
    """
    check_schedule(schedule, total)
    counts = survivors(noises.shape[0], schedule.keep)
    states, estimates = noises, noises
    alive, kept = jnp.arange(noises.shape[0], dtype=jnp.int32), []
    for step in range(total):
        states, estimates = advance(states, step)
        if step in schedule.steps:
            stage = schedule.steps.index(step)
            index = _best(score(estimates, stage), counts[stage])
            states, estimates = jax.tree.map(lambda leaf: leaf[index], (states, estimates))
            alive = alive[index]
            kept.append(alive)
    final = reward(estimates)
    best = jnp.argmax(_known(final))
    return estimates[best], Pruned(alive[best], final[best], tuple(kept))


def relative_increase(
    budgets: Sequence[Number], searched: Float[Array, "B"], baseline: Float[Array, "B"]
) -> Float[Array, ""]:
    """How much more area than the baseline's a reward-against-budget curve has, in percent.

    Areas by Simpson's rule over the baseline's value at the first budget; infinite where the
    baseline has no area.
    """
    from scipy.integrate import simpson  # slow to import

    grid = np.asarray(budgets, np.float64)
    weights = jnp.asarray(simpson(np.eye(len(grid)), x=grid), jnp.float32)
    first, second = (jnp.dot(weights, curve - baseline[0]) for curve in (searched, baseline))
    return jnp.where(second == 0, jnp.inf, 100 * (first - second) / jnp.where(second == 0, 1, second))


def kendall(scores: Float[Array, "N"], target: Float[Array, "N"]) -> Float[Array, ""]:
    """Kendall's tau-b between two scores of the same candidates; NaN where one does not vary."""
    first, second = (jnp.sign(s[:, None] - s[None, :]) for s in (scores, target))
    agreement = jnp.sum(first * second)
    pairs = jnp.sum(jnp.square(first)) * jnp.sum(jnp.square(second))
    return jnp.where(pairs > 0, agreement / jnp.sqrt(jnp.where(pairs > 0, pairs, 1.0)), jnp.nan)


def kept_best(
    scores: Float[Array, "N"], target: Float[Array, "N"], share: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Whether the best candidate is among the top `share` by score (1 or 0), and the reward lost.

    The cut keeps `max(1, floor(share * N))`.
    """
    count, target = max(1, int(np.floor(share * scores.shape[0]))), _known(target)
    best = jnp.max(target[_best(scores, count)])
    gap = jnp.max(target) - best
    return (gap == 0).astype(jnp.float32), gap


def _best(scores: Array, count: int) -> Array:
    """Indices of the `count` largest, ascending; the earlier on ties."""
    return jnp.sort(jnp.argsort(-_known(scores))[:count]).astype(jnp.int32)


def _known(scores: Array) -> Array:
    return jnp.where(jnp.isnan(scores), -jnp.inf, scores)
