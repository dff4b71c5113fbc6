"""Losses of generators: denoising, consistency distillation, a proxy of a reward model."""

import itertools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxreward import schedules
from jaxreward.checks import Number, check_choice, check_number
from jaxreward.schedules import Parameterization, Schedule

Apply = Callable[[Any, Array, Array, Any], Array]
"""`(params, x [B, ...], time [B] in [0, 1], condition) -> [B, ...]`."""

ConsistencyFunction = Callable[[Any, Array, Array, Any], Array]
"""`(params, x [B, ...], t [B], condition) -> clean [B, ...]`; see `policies.consistency`."""

Teacher = Callable[[Array, Array, Array, Any], Array]
"""`(x [B, ...], t [B], earlier [B], condition) -> x at the earlier time`."""

LABELS = ("soft", "smooth", "hard")


class Distilled(NamedTuple):
    """A distillation loss and the predictions it came from.

    Attributes:
      loss: float32 scalar.
      student: prediction of the student, differentiable.
      target: prediction of the target, without gradient.
    """

    loss: Float[Array, ""]
    student: Float[Array, "B *shape"]
    target: Float[Array, "B *shape"]


def denoising_loss(
    apply: Apply, schedule: Schedule, parameterization: Parameterization
) -> Callable[[Any, jax.Array, Array, Any], Float[Array, ""]]:
    """`(params, key, clean [B, ...], condition) -> loss`: squared error at uniform times.

    Args:
      apply: the network.
      schedule: of the noise; times are drawn from [0, last].
      parameterization: what the network predicts.
    """

    def loss(params: Any, key: jax.Array, clean: Array, condition: Any) -> Float[Array, ""]:
        of_time, of_noise = jax.random.split(key)
        time = jax.random.uniform(of_time, clean.shape[:1])
        noise = jax.random.normal(of_noise, clean.shape, clean.dtype)
        x = schedules.add_noise(schedule, clean, noise, time * schedule.last)
        alpha, sigma = schedules.levels(schedule, time * schedule.last, x)
        output = apply(params, x, time, condition)
        return jnp.mean(jnp.square(output - parameterization.target(clean, noise, alpha, sigma)))

    return loss


def pseudo_huber(difference: Float[Array, "..."], width: Number = 0.001) -> Float[Array, ""]:
    """Mean of `sqrt(d^2 + width^2) - width` over all entries (arXiv 2310.14189, eq. 7).

    Raises:
      ValueError: `width` <= 0.
    """
    check_number("width", width, lambda x: x > 0, "> 0")
    return jnp.mean(jnp.sqrt(jnp.square(difference) + width**2) - width)


def consistency_distillation(
    function: ConsistencyFunction,
    teacher: Teacher,
    schedule: Schedule,
    points: Float[np.ndarray | Array, "points"],
    *,
    width: Number = 0.001,
) -> Callable[[Any, Any, jax.Array, Array, Any], Distilled]:
    """`(params, target_params, key, clean [B, ...], condition) -> Distilled` (arXiv 2310.04378).

    A noisy sample at a random point of the grid and what the teacher makes of it at the point
    before (time 0 before the first) shall have the same clean sample, the latter judged by the
    target, an average of earlier students.

    Args:
      function: the consistency function of student and target.
      teacher: a step of the frozen teacher, guided where it shall be.
      schedule: of the noise.
      points: ascending times > 0.
      width: of the pseudo-Huber distance, > 0.
    """
    points = np.asarray(points, np.float32)
    before = np.append(np.float32(0), points[:-1])

    def distill(
        params: Any, target_params: Any, key: jax.Array, clean: Array, condition: Any
    ) -> Distilled:
        of_time, of_noise = jax.random.split(key)
        index = jax.random.randint(of_time, clean.shape[:1], 0, len(points))
        t, earlier = jnp.asarray(points)[index], jnp.asarray(before)[index]
        noise = jax.random.normal(of_noise, clean.shape, clean.dtype)
        x = schedules.add_noise(schedule, clean, noise, t)
        moved = jax.lax.stop_gradient(teacher(x, t, earlier, condition))
        student = function(params, x, t, condition)
        target = jax.lax.stop_gradient(function(target_params, moved, earlier, condition))
        return Distilled(pseudo_huber(student - target, width), student, target)

    return distill


def reward_guided(
    distilled: Distilled, rewards: Float[Array, "B"], weight: Number
) -> Float[Array, ""]:
    """The distillation loss minus `weight` times the mean reward (arXiv 2403.11027, eq. 9).

    Args:
      distilled: of `consistency_distillation`.
      rewards: of `distilled.student`, at whatever times it was made.
      weight: finite; 0 is distillation alone.
    """
    check_number("weight", weight, lambda x: abs(x) < float("inf"), "a finite number")
    return distilled.loss - weight * jnp.mean(rewards)


def proxy_preference_loss(
    expert: Float[Array, "B K"],
    proxy: Float[Array, "B K"],
    *,
    labels: str = "soft",
    as_released: bool = False,
) -> Float[Array, ""]:
    """How far a proxy's preferences among candidates are from an expert's (arXiv 2403.11027).

    For every pair of the `K` candidates `KL(expert || proxy)` of the two-way choice, averaged over
    the batch and summed over pairs. The last candidate is the real sample.

    Args:
      expert: logits; get no gradient.
      proxy: logits.
      labels: "soft", the expert's; "smooth", undecided where the expert prefers a generated
        candidate to the real one; "hard", the cross-entropy to the expert's choice, the real
        candidate always chosen.
      as_released: the authors' "hard" labels, by a mistake taken over the batch: row `i` of a pair
        of generated candidates gets the number of the sample that the expert likes best of all
        with candidate `i`. Runs there, and is allowed here, with as many samples as candidates;
        NaN where the number is none of a pair, at which their code stops.

    Raises:
      ValueError: unknown labels, fewer than two candidates; `as_released` with other labels than
        "hard" or another number of samples.
    """
    check_choice("labels", labels, LABELS)
    batch, count = expert.shape
    if count < 2:
        raise ValueError(f"{count} candidates; allowed are >= 2")
    if as_released and (labels != "hard" or batch != count):
        raise ValueError(
            f"as_released with labels = {labels!r}, {batch} samples and {count} candidates; allowed "
            "are 'hard' and equal numbers"
        )
    expert = jax.lax.stop_gradient(expert)
    best_sample = jnp.argmax(expert, axis=0)  # of each candidate

    def pair(i: int, j: int) -> Float[Array, ""]:
        p = jax.nn.log_softmax(jnp.stack([expert[:, i], expert[:, j]], axis=1), axis=1)
        q = jax.nn.log_softmax(jnp.stack([proxy[:, i], proxy[:, j]], axis=1), axis=1)
        real = j == count - 1
        if labels == "hard":
            choice = best_sample == 1 if as_released else p[:, 1] > p[:, 0]
            second = jnp.ones_like(choice) if real else choice
            chosen = jnp.where(second, q[:, 1], q[:, 0])
            broken = as_released and not real
            return -jnp.mean(jnp.where(best_sample > 1, jnp.nan, chosen) if broken else chosen)
        if labels == "smooth" and real:
            p = jnp.where(p[:, :1] > p[:, 1:], jnp.log(0.5), p)
        return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=1))

    pairs = itertools.combinations(range(count), 2)
    return jnp.sum(jnp.stack([pair(i, j) for i, j in pairs]))
