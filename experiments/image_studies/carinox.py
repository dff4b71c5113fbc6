"""CARINOX: rewards weighed by category, clipped apart, climbed from several noises (2509.17458).

Four rewards, each wrong about one category of prompts by construction: one does not see which cell
is which, one does not count, one does not see sizes, and one reads "a 3 and a 7" as an order.
"""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import ml_collections

from experiments.image_studies import problem, report
from experiments.studies import Study
from jaxreward import masked
from jaxreward.rewards import images as image_rewards
from jaxreward.search import reward_selection
from jaxreward.search.accounting import Spent, times
from jaxreward.search.noise_optimization import (
    Climb,
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
    banks = problem.load_banks()
    return Study(lambda key: _run(config.study, banks, key), draw=report.draw_samples)


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


def _run(c: ml_collections.ConfigDict, banks: problem.Banks, key: jax.Array) -> dict[str, Any]:
    keys = jax.random.split(key, 7)
    teacher = problem.train_teacher(keys[0], banks.train, c.generator)
    generator = problem.train_student(jax.random.fold_in(keys[0], 1), teacher, c.student)
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
        return _search(c, noises, generate, make(prompt), table[prompt[0]])

    images = jax.vmap(one)(noises, prompts)
    found = {
        name: {**report.judged(judge, own, prompts, real), **report.counted(_spent(c, name))}
        for name, own in images.items()
    }
    return {**found, **_weights_report(table, correlation)}


def _search(c, noises, generate, losses, weights) -> dict[str, jax.Array]:
    """The image that every arm finds for one prompt; all begin with the same noises."""
    ones = jnp.ones_like(weights)
    optimizer = nesterov(c.learning_rate, c.momentum)
    settings = Climb(c.steps, c.clip, c.prior, clip_each=True)
    joint = Climb(c.seeds * c.steps, c.clip, c.prior)

    def climb(weights, **options):
        starts = noises[: c.seeds]
        return carinox(starts, generate, losses, weights, settings, optimizer, **options).image

    apart = jax.vmap(climb)(jnp.stack([ones, weights]))
    course = best_of_n(noises, generate, losses, ones).losses
    explored = {"start": (ones, 1), "best_of_n": (ones, len(noises))}
    explored["best_of_n_weighted"] = (weights, len(noises))
    chosen = {name: best_within(course, w, n)[1] for name, (w, n) in explored.items()}
    return {
        **{name: generate(noises[index]) for name, index in chosen.items()},
        "reno": reno(noises[0], generate, losses, ones, joint, optimizer).image,
        "equal_weights": apart[0],
        "carinox": apart[1],
        "carinox_as_released": climb(weights, as_released=True),
    }


def _spent(c: ml_collections.ConfigDict, arm: str) -> Spent:
    """What an arm spends on one prompt: all but the start make as many generator calls.

    Clipping rewards apart takes a backward pass for each of them.
    """
    calls = times(Spent(1, 1, len(FLAWED)), 1 if arm == "start" else c.seeds * c.steps)
    if arm == "start" or arm.startswith("best_of_n"):
        return calls
    passes = 1 if arm == "reno" else len(FLAWED)
    return calls._replace(backward_calls=c.seeds * c.steps * passes)


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
