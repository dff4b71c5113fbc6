"""ReNO: optimise the noise of a one-step generator against several rewards (arXiv 2406.04312)."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from experiments.image_studies import problem, report, searches
from experiments.studies import Study
from jaxreward.rewards import images as image_rewards
from jaxreward.search.accounting import Spent, times
from jaxreward.search.noise_optimization import (
    Climb,
    best_of_n,
    best_within,
    nesterov,
    reno,
)
from jaxreward.tasks import digit_canvases as canvases


def study(config: ml_collections.ConfigDict) -> Study:
    """The study of `configs/reno.py`."""
    c = config.study
    return searches.make_study(c, _run, keys=6, iterations=c.steps * c.backward_price + c.steps)


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks what `experiments.generator_checks` cannot know; raises ConfigError."""
    searches.validate(config)


def _run(
    c: ml_collections.ConfigDict,
    banks: problem.Banks,
    keys: jax.Array,
    generator: problem.Generator,
    tick: Callable[[], None],
) -> dict[str, Any]:
    readers = [
        problem.train_recognizers(own, banks.reward, c.recognizer, hidden=hidden, count=1)
        for own, hidden in zip(jax.random.split(keys[1], len(c.readers)), c.readers)
    ]
    judge = problem.train_judge(keys[2], banks.judge, c.judge)
    prompts = canvases.draw_prompts(keys[3], c.prompts)
    wide = c.steps * c.backward_price
    noises = jax.random.normal(keys[4], (c.prompts, wide, *problem.SHAPE))
    real, _ = problem.real_canvases(keys[5], banks.judge, c.real)
    explored, climbs = _explorations(c), _climbs(c, len(readers))

    def one(noises, prompt):
        generate = problem.one_step_for(generator, prompt)
        losses = make_losses(readers, prompt)

        def watch(image):
            tick()
            return problem.ask(judge, image, prompt).right[None]

        chosen = _explore(noises, generate, losses, watch, climbs["reno"].weights, explored)
        return {**chosen, **_climb_all(noises[0], generate, losses, watch, climbs, c)}

    found = jax.vmap(one)(noises, prompts)
    each = Spent(1, 1, len(readers) + 2)
    prices = {name: each._replace(backward_calls=int(name in climbs)) for name in found}
    return {
        name: {
            **report.judged(judge, own.image, prompts, real),
            **report.counted(times(prices[name], own.totals.shape[1])),
            **report.course(own.totals, -own.totals, own.right, prices[name]),
            "noise/norm_error": jnp.mean(jnp.abs(own.norm - float(problem.PIXELS - 1) ** 0.5)),
            **_own(own.image, prompts, readers),
        }
        for name, own in found.items()
    }


class Ended(NamedTuple):
    """What an arm found for a prompt, and how.

    Attributes:
      image, norm: chosen, and the norm of its noise.
      totals: mean loss by the arm's own weights, of each candidate.
      right: the judge's verdict of each.
    """

    image: jax.Array
    norm: jax.Array
    totals: jax.Array
    right: jax.Array


def make_losses(readers: list[Callable], prompt: jax.Array) -> Callable:
    """Minus the log-probability of the prompt under every reader, smoothness and checkerboard."""
    allowed = canvases.allowed_pairs(prompt)

    def losses(image):
        read = [-image_rewards.composition(reader(image)[0], allowed) for reader in readers]
        flawed = (image_rewards.smoothness(image), image_rewards.checkerboard(image))
        return jnp.stack([*read, *(-score for score in flawed)])

    return losses


def arms(c: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Names of what is compared."""
    return (*_explorations(c), *_climbs(c, len(c.readers)))


def _explorations(c: ml_collections.ConfigDict) -> dict[str, int]:
    """By arm: how many noises it tries."""
    wide = c.steps * c.backward_price
    return {"start": 1, "best_of_n": c.steps, "best_of_n_equal_compute": wide}


class Own(NamedTuple):
    """What climbs differ in."""

    weights: jax.Array
    learning_rate: float
    prior: float


def _climbs(c: ml_collections.ConfigDict, readers: int) -> dict[str, Own]:
    """By arm: its settings."""
    weights = jnp.asarray([1.0] * readers + [c.smoothness, 0.0])
    own = {
        "reno": Own(weights, c.learning_rate, c.prior),
        "reno_no_prior": Own(weights, c.learning_rate, 0.0),
        "reno_one_reward": Own(jnp.zeros_like(weights).at[0].set(1.0), c.learning_rate, c.prior),
        "reno_checkerboard": Own(weights.at[-1].set(c.checkerboard), c.learning_rate, c.prior),
    }
    return own | {f"reno_rate_{rate:g}": Own(weights, rate, c.prior) for rate in c.sweep}


def _explore(noises, generate, losses, watch, weights, explored: dict[str, int]):
    """The best of the first so many noises, one search for all arms."""
    course = best_of_n(noises, generate, losses, weights, watch=watch)
    totals, right = course.losses @ weights / jnp.sum(weights), course.watched[:, 0]

    def ended(count: int) -> Ended:
        noise = noises[best_within(course.losses, weights, count)[1]]
        return Ended(generate(noise), _norm(noise), totals[:count], right[:count])

    return {name: ended(count) for name, count in explored.items()}


def _climb_all(noise, generate, losses, watch, climbs: dict[str, Own], c) -> dict[str, Ended]:
    """Every climb, side by side."""
    own = jax.tree.map(lambda *leaves: jnp.stack([jnp.asarray(x) for x in leaves]), *climbs.values())

    def climb(own: Own) -> Ended:
        settings = Climb(steps=c.steps, clip=c.clip, prior=own.prior)
        optimizer = nesterov(own.learning_rate, c.momentum)
        found = reno(noise, generate, losses, own.weights, settings, optimizer, watch=watch)
        totals = found.losses @ own.weights / jnp.sum(own.weights)
        return Ended(found.image, _norm(found.noise), totals, found.watched[:, 0])

    every = jax.vmap(climb)(own)
    return {name: jax.tree.map(lambda leaf, i=i: leaf[i], every) for i, name in enumerate(climbs)}


def _own(images, prompts, readers) -> dict[str, jax.Array]:
    """What the search itself saw: the first reward, the mean over readers, and the flawed bonus."""
    each = jax.vmap(lambda image, prompt: make_losses(readers, prompt)(image))(images, prompts)
    return {
        "reward/first": -jnp.mean(each[:, 0]),
        "reward/readers": -jnp.mean(each[:, : len(readers)]),
        "reward/checkerboard": -jnp.mean(each[:, -1]),
    }


def _norm(noise: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(noise)))
