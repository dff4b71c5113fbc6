"""CARINOX: rewards weighed by category, clipped apart, climbed from several noises (2509.17458).

Four rewards, each wrong about one category of prompts by construction: one does not see which cell
is which, one does not count, one does not see sizes, and one reads "a 3 and a 7" as an order.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from experiments.image_studies import problem, report, searches
from experiments.studies import Study
from jaxreward import masked
from jaxreward.rewards import images as image_rewards
from jaxreward.search import reward_selection
from jaxreward.search.accounting import Spent, times
from jaxreward.search.noise_optimization import (
    Climb,
    Found,
    best_of_n,
    best_within,
    carinox,
    nesterov,
    reno,
)
from jaxreward.tasks import digit_canvases as canvases

CATEGORIES = len(canvases.CATEGORIES)
FLAWED = (canvases.BOTH, canvases.RELATION, canvases.COUNT, canvases.SIZE)
"""The category about which each of the four rewards is wrong."""


def study(config: ml_collections.ConfigDict) -> Study:
    """The study of `configs/carinox.py`."""
    c = config.study
    return searches.make_study(c, _run, keys=7, iterations=2 * c.steps * (c.seeds + 1))


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks what `experiments.generator_checks` cannot know; raises ConfigError."""
    searches.validate(config)


def arms(c: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Names of what is compared: searches, and rewards where they are wrong and where not."""
    del c
    searched = "start best_of_n best_of_n_weighted reno equal_weights carinox carinox_as_released"
    return (*searched.split(), "wrong_reward", "sound_rewards")


def flawed_tables(prompt: jax.Array) -> jax.Array:
    """`[4, K, K]`: what each reward takes for right."""
    allowed = canvases.allowed_pairs(prompt)
    ordered = canvases.allowed_pairs(
        prompt.at[0].set(jnp.where(prompt[0] == canvases.BOTH, canvases.RELATION, prompt[0]))
    )
    blind = (image_rewards.position_blind, image_rewards.count_blind, image_rewards.size_blind)
    return jnp.stack([ordered, *(see(allowed) for see in blind)])


def make_losses(readers: Callable, prompt: jax.Array, scale: float) -> Callable:
    """Minus the log-probability of each reward's table under its own reader, over `scale`."""
    tables = flawed_tables(prompt)

    def losses(image):
        return -image_rewards.composition(readers(image), tables) / scale

    return losses


def _run(
    c: ml_collections.ConfigDict,
    banks: problem.Banks,
    keys: jax.Array,
    generator: problem.Generator,
    tick: Callable[[], None],
) -> dict[str, Any]:
    readers = problem.train_recognizers(
        keys[1], banks.reward, c.recognizer, hidden=c.reader, count=len(FLAWED)
    )
    people = problem.train_judge(keys[2], banks.train, c.judge)
    judge = problem.train_judge(keys[3], banks.judge, c.judge)
    make = lambda prompt: make_losses(readers, prompt, c.scale)
    table, correlation = _fit_weights(c, keys[4], generator, make, people)
    prompts = canvases.draw_prompts(keys[5], c.prompts)
    budget = c.seeds * c.steps
    noises = jax.random.normal(keys[6], (c.prompts, budget, *problem.SHAPE))
    real, _ = problem.real_canvases(keys[6], banks.judge, c.real)

    def one(noises, prompt):
        generate = problem.one_step_for(generator, prompt)

        def watch(image):
            tick()
            return problem.ask(judge, image, prompt).right[None]

        return _search(c, noises, generate, make(prompt), watch, table[prompt[0]])

    ended = jax.vmap(one)(noises, prompts)
    found = {
        name: {
            **report.judged(judge, own.image, prompts, real),
            **report.counted(times(_price(name), own.totals.shape[1])),
            **report.course(own.totals, -own.totals, own.right, _price(name)),
        }
        for name, own in ended.items()
    }
    return {**found, **_weights_report(table, correlation)}


class Ended(NamedTuple):
    """What an arm found for a prompt, and how.

    Attributes:
      image: chosen.
      totals: mean loss by which the arm chooses, of each candidate in the order of making.
      right: the judge's verdict of each.
    """

    image: jax.Array
    totals: jax.Array
    right: jax.Array


def _ended(found: Found, weights: jax.Array) -> Ended:
    losses = found.losses.reshape(-1, found.losses.shape[-1])
    totals = losses @ weights / jnp.sum(weights)
    return Ended(found.image, totals, found.watched.reshape(-1))


def _search(c, noises, generate, losses, watch, weights) -> dict[str, Ended]:
    """What every arm finds for one prompt; all begin with the same noises."""
    ones = jnp.ones_like(weights)
    optimizer = nesterov(c.learning_rate, c.momentum)
    settings = Climb(c.steps, c.clip, c.prior, clip_each=True)
    joint = Climb(c.seeds * c.steps, c.clip, c.prior)

    def climb(weights, **options) -> Found:
        starts = noises[: c.seeds]
        own = carinox(
            starts, generate, losses, weights, settings, optimizer, watch=watch, **options
        )
        return own._replace(spent=Spent())

    apart = jax.vmap(climb)(jnp.stack([ones, weights]))
    equal, weighted = (jax.tree.map(lambda leaf, i=i: leaf[i], apart) for i in range(2))
    course = best_of_n(noises, generate, losses, ones, watch=watch)

    def explored(weights: jax.Array, count: int) -> Ended:
        index = best_within(course.losses, weights, count)[1]
        own = _ended(course, weights)
        return Ended(generate(noises[index]), own.totals[:count], own.right[:count])

    return {
        "start": explored(ones, 1),
        "best_of_n": explored(ones, len(noises)),
        "best_of_n_weighted": explored(weights, len(noises)),
        "reno": _ended(reno(noises[0], generate, losses, ones, joint, optimizer, watch=watch), ones),
        "equal_weights": _ended(equal, ones),
        "carinox": _ended(weighted, weights),
        "carinox_as_released": _ended(climb(weights, as_released=True), ones),
    }


def _price(arm: str) -> Spent:
    """What an arm spends on one candidate; all but the start make as many.

    Clipping rewards apart takes a backward pass for each of them.
    """
    call = Spent(1, 1, len(FLAWED))
    if arm == "start" or arm.startswith("best_of_n"):
        return call
    return call._replace(backward_calls=1 if arm == "reno" else len(FLAWED))


def _fit_weights(c, key, generator, make: Callable, people: Callable):
    """Weights by category from noisy opinions on images of random noises."""
    keys = jax.random.split(key, 3)
    count = c.opinions * CATEGORIES
    prompts = canvases.draw_prompts(keys[0], count)
    noises = jax.random.normal(keys[1], (count, *problem.SHAPE))

    def one(image, prompt):
        return 1.0 - make(prompt)(image), problem.ask(people, image, prompt).right

    scores, right = jax.vmap(one)(problem.one_step(generator, noises, prompts), prompts)
    opinions = right + c.opinion_noise * jax.random.normal(keys[2], right.shape)
    correlation = reward_selection.correlations(scores, opinions, prompts[:, 0], CATEGORIES)
    return reward_selection.category_weights(correlation), correlation


def _weights_report(table: jax.Array, correlation: jax.Array) -> dict[str, Any]:
    """Mean weight and correlation of the rewards where they are wrong, and where they are not."""
    wrong = jnp.arange(CATEGORIES)[:, None] == jnp.asarray(FLAWED)[None, :]
    report_of = {}
    for name, member in (("wrong_reward", wrong), ("sound_rewards", ~wrong)):
        known = jnp.nan_to_num(correlation)
        means = (masked.mean(table, member), masked.mean(known, member))
        report_of[name] = dict(zip(("weight", "correlation"), means))
    report_of["wrong_reward"]["weights"] = table
    return report_of
