"""Prompts that are followed: a diffusion transformer told what to draw by a text encoder.

The generator learns from canvases of digits with prompts of three words, of which its network drops
some, and is asked for combinations that it never saw. A judge that no one trains against says which
part of a prompt its canvas fulfils. On top, three ways to spend the same budget on a prompt.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from experiments.generator_figures import BUDGET, CURVE_PANELS, REWARD, TRUSTED
from experiments.image_studies import problem, report, searches
from experiments.studies import Study
from jaxreward import masked
from jaxreward.rewards import images as image_rewards
from jaxreward.search import accounting
from jaxreward.search.accounting import Spent, times
from jaxreward.search.noise_optimization import Climb, best_so_far, nesterov, reno
from jaxreward.tasks import digit_canvases as canvases
from jaxreward.training import check
from jaxreward.training.exits import ConfigError

CATEGORIES = len(canvases.CATEGORIES)


def study(config: ml_collections.ConfigDict) -> Study:
    """The study of `configs/prompted_digits.py`."""
    banks, tables = problem.load_banks(), split_prompts()
    c = config.study

    def prepare(key: jax.Array, tick: Callable[[], None]) -> Any:
        ask = lambda key, count: canvases.draw_balanced(key, tables.seen, count)
        return problem.train_teacher(key, banks.train, c.generator, ask, tick).params

    def run(key: jax.Array, params: Any) -> dict[str, dict[str, Any]]:
        generator = problem.build_teacher(c.generator)._replace(params=params)
        keys = jax.random.split(jax.random.fold_in(key, 1), 4)
        judge = problem.train_judge(keys[0], banks.judge, c.judge)
        reader = problem.train_recognizers(
            keys[1], banks.reward, c.recognizer, hidden=c.reader, count=1
        )
        found = follow(keys[2], generator, judge, tables, c)
        return found | search(keys[3], generator, reader, judge, tables.held_out, c)

    panels = (draw_guidance, *CURVE_PANELS)
    return Study(run, draw=panels, prepare=prepare, preparing=c.generator.steps)


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks what `experiments.generator_checks` cannot know: what keys mean together.

    Raises:
      ConfigError: naming the key, the value and what is allowed.
    """
    own = config.study
    check.choice(config, "study.search.guidance", own.guidances)
    if 1.0 not in own.guidances:
        raise ConfigError(f"config.study.guidances = {own.guidances}; allowed are some with 1.0")
    for path in ("study.tested", "study.search.prompts"):
        check.divisible(config, path, CATEGORIES, "the categories of prompts")
    if climb_steps(own) < 1:
        raise ConfigError(
            f"config.study.search.reno_steps = {own.search.reno_steps}; allowed are so few that "
            f"{own.search.candidates} images of {own.sampler_steps} steps pay for one step of ReNO"
        )
    searches.validate(config)


def arms(c: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Names of what is compared."""
    names = [arm_name(guidance) for guidance in c.guidances]
    followed = [name + part for name in names for part in ("", "_seen", "_shuffled")]
    return (*followed, "best_of_n", "best_of_n_unguided", "reno", "one_long")


class Tables(NamedTuple):
    """Prompts `[N, 4]`: those of training, and combinations that it never shows."""

    seen: Int[np.ndarray, "N 4"]
    held_out: Int[np.ndarray, "M 4"]


def split_prompts() -> Tables:
    """All prompts in two."""
    every = canvases.all_prompts()
    away = canvases.is_held_out(every)
    return Tables(every[~away], every[away])


# What of a prompt is followed


def follow(
    key: jax.Array, generator, judge: Callable, tables: Tables, c: ml_collections.ConfigDict
) -> dict[str, dict[str, Any]]:
    """Arms `guidance_G` on held-out prompts, `..._seen` on those of training, and `..._shuffled`.

    The last are the held-out canvases judged by prompts that they were not made for: what chance
    gets. Guidance 0 does not look at the prompt.
    """
    found, noises = {}, jax.random.normal(key, (c.tested, *problem.SHAPE))
    for guidance in c.guidances:
        name = arm_name(guidance)
        for part, table in tables._asdict().items():
            prompts = canvases.draw_balanced(jax.random.fold_in(key, 1), table, c.tested)
            own = name if part == "held_out" else f"{name}_{part}"
            images = problem.sample(
                generator, noises, prompts, steps=c.sampler_steps, guidance=guidance
            )
            price = Spent(c.sampler_steps * calls(guidance), 1)
            found[own] = {**followed(judge, images, prompts), **report.counted(price)}
            if part == "held_out":
                found[f"{name}_shuffled"] = shuffled(judge, images, prompts)
    return found


def shuffled(judge: Callable, images: Array, prompts: Array) -> dict[str, Array]:
    """`followed` by the prompts of other canvases of the same category.

    Their digits are seldom there, which would leave relations out: these keep their digits, and
    take the word alone from the other.
    """
    other = jnp.roll(prompts, CATEGORIES, axis=0)  # drawn in turn, so of the same category
    word = jnp.where(prompts[:, :1] == canvases.RELATION, prompts.at[:, 3].set(other[:, 3]), other)
    relation = followed(judge, images, word)["follows/relation"]
    return {**followed(judge, images, other), "follows/relation": relation}


def arm_name(guidance: float) -> str:
    """Of the arm on held-out prompts."""
    return f"guidance_{guidance:g}"


def followed(
    judge: Callable, images: Float[Array, "P 8 16"], prompts: Int[Array, "P 4"]
) -> dict[str, Array]:
    """Shares of canvases that fulfil their prompts, whole and in parts, by the judge.

    - `right`, and by category `right/<category>`: all of it;
    - `follows/digits`: the digits asked for and no others, wherever, however many and large;
    - `follows/relation`: of relations with the digits asked for, those in the right order;
    - `follows/count`: of counts, those with as many digits as asked for, whichever;
    - `follows/size`: of sizes, those with digits of that size alone, whichever.
    """
    log_probs = jax.vmap(judge)(images)
    allowed = jax.vmap(canvases.allowed_pairs)(prompts)
    right = image_rewards.fulfilled(log_probs, allowed)
    digits = image_rewards.fulfilled(log_probs, loose_tables(allowed))
    labels = jnp.argmax(log_probs, axis=-1)
    category, option = prompts[:, 0], prompts[:, 3]
    there = labels != image_rewards.BLANK
    count = jnp.sum(there, axis=1, dtype=jnp.int32) == 1 + option
    small = labels > image_rewards.DIGITS
    size = jnp.all(~there | (small == (option == 1)[:, None]), axis=1) & jnp.any(there, axis=1)
    share = lambda holds, among: masked.mean(holds.astype(jnp.float32), among)
    everywhere, of = jnp.ones(right.shape, bool), lambda kind: category == kind
    metrics = {
        "right": share(right, everywhere),
        "follows/digits": share(digits, everywhere),
        "follows/relation": share(right, of(canvases.RELATION) & digits),
        "follows/count": share(count, of(canvases.COUNT)),
        "follows/size": share(size, of(canvases.SIZE)),
        report.SAMPLES: images[: report.SHOWN],
        report.PROMPTS: prompts[: report.SHOWN],
    }
    for kind, name in enumerate(canvases.CATEGORIES):
        metrics[f"right/{name}"] = share(right, of(kind))
    return metrics


def loose_tables(allowed: Bool[Array, "P K K"]) -> Bool[Array, "P K K"]:
    """Tables that see which digits there are, and neither places, numbers nor sizes."""
    counted = image_rewards.count_blind(allowed)
    return image_rewards.position_blind(image_rewards.size_blind(counted))


# The same budget, spent in four ways


def search(
    key: jax.Array, generator, reader, judge, table, c: ml_collections.ConfigDict
) -> dict[str, dict[str, Any]]:
    """Best of n, with and without guidance, ReNO and one long sampling, on held-out prompts.

    The reward is the composition reward under a recogniser; all spend what `candidates` guided
    images cost.
    """
    own, s = jax.random.split(key), c.search
    prompts = canvases.draw_balanced(own[0], table, s.prompts)
    noises = jax.random.normal(own[1], (s.prompts, 2 * s.candidates, *problem.SHAPE))
    found = {}
    for name, guidance, count in (
        ("best_of_n", s.guidance, s.candidates),
        ("best_of_n_unguided", 1.0, s.candidates * calls(s.guidance)),
    ):
        each = jnp.repeat(prompts, count, axis=0)
        images = problem.sample(
            generator, noises[:, :count].reshape(-1, *problem.SHAPE), each,
            steps=c.sampler_steps, guidance=guidance,
        )  # fmt: skip
        images = images.reshape(s.prompts, count, *problem.SHAPE)
        price = Spent(c.sampler_steps * calls(guidance), 1, 1)
        found[name] = chosen(images, prompts, reader, judge, price)
    found["reno"] = climbed(noises[:, 0], prompts, generator, reader, judge, c)
    found["one_long"] = long_sampling(noises[:, 0], prompts, generator, reader, judge, c)
    return found


def calls(guidance: float) -> int:
    """Network calls of a step of the sampler."""
    return 1 if guidance == 1.0 else 2


def score(reader, judge) -> Callable[[Array, Array], tuple[Array, Array]]:
    """`(image, prompt) -> (reward, verdict)`."""

    def both(image, prompt):
        allowed = canvases.allowed_pairs(prompt)
        reward = image_rewards.composition(reader(image)[0], allowed)
        return reward, problem.ask(judge, image, prompt).right

    return both


def chosen(images: Float[Array, "P N 8 16"], prompts, reader, judge, price: Spent):
    """The best of each prompt's images by the reward, judged; curves over their number."""
    one = jax.vmap(score(reader, judge), in_axes=(0, None))
    rewards, right = jax.vmap(one)(images, prompts)
    best = jax.vmap(best_so_far)(-rewards)[:, -1]
    picked = jnp.take_along_axis(images, best[:, None, None, None], axis=1)[:, 0]
    return {
        **followed(judge, picked, prompts),
        **report.counted(times(price, images.shape[1])),
        **report.course(-rewards, rewards, right, price),
    }


def climbed(noises, prompts, generator, reader, judge, c: ml_collections.ConfigDict):
    """ReNO through a short guided sampler: as many steps as the budget pays for."""
    s, both, price = c.search, score(reader, judge), climb_price(c)
    settings = Climb(climb_steps(c), s.clip, s.prior)

    def one(noise, prompt):
        generate = lambda z: problem.sample(
            generator, z[None], prompt[None], steps=s.reno_steps, guidance=s.guidance
        )[0]
        return reno(
            noise, generate, lambda image: -both(image, prompt)[0][None], jnp.ones(1), settings,
            nesterov(s.learning_rate, s.momentum), watch=lambda image: both(image, prompt)[1][None],
        )._replace(spent=Spent())  # fmt: skip

    ended = jax.vmap(one)(noises, prompts)
    totals = ended.losses[:, :, 0]
    return {
        **followed(judge, ended.image, prompts),
        **report.counted(times(price, settings.steps)),
        **report.course(totals, -totals, ended.watched[:, :, 0], price),
    }


def climb_price(c: ml_collections.ConfigDict) -> Spent:
    """What a step of ReNO costs."""
    made = c.search.reno_steps * calls(c.search.guidance)
    return Spent(made, 1, 1, backward_calls=made)


def climb_steps(c: ml_collections.ConfigDict) -> int:
    """How many the budget of `candidates` guided images pays for."""
    images = Spent(c.search.candidates * c.sampler_steps * calls(c.search.guidance))
    return int(accounting.cost(images) // accounting.cost(climb_price(c)))


def long_sampling(noises, prompts, generator, reader, judge, c: ml_collections.ConfigDict):
    """One image with as many steps of the sampler as the budget pays for; at fewer on the way."""
    s, both, points = c.search, jax.vmap(score(reader, judge)), []
    for share in (1, s.candidates):
        steps = share * c.sampler_steps
        images = problem.sample(generator, noises, prompts, steps=steps, guidance=s.guidance)
        price = Spent(steps * calls(s.guidance), 1, 1)
        points.append((accounting.cost(price), *map(jnp.mean, both(images, prompts))))
    columns = [jnp.stack([jnp.float32(x) for x in column]) for column in zip(*points)]
    curves = dict(zip((BUDGET, REWARD, TRUSTED), columns))
    return {**followed(judge, images, prompts), **report.counted(price), **curves}


def draw_guidance(config: Any, found: Any, results: Any, axes: Any) -> None:
    """Shares of held-out prompts that are followed, against guidance; dotted what chance gets."""
    del found
    guidances = list(config.study.guidances)
    parts = ("right", "follows/digits", "follows/relation", "follows/count", "follows/size")
    for number, metric in enumerate(parts):
        for suffix, style in (("", "-"), ("_shuffled", ":")):
            own = [results[arm_name(g) + suffix][metric] for g in guidances]
            mean = [np.nan if entry["mean"] is None else entry["mean"] for entry in own]
            label = None if suffix else metric
            axes.plot(guidances, mean, style, color=f"C{number}", label=label, marker=".")
    axes.set_xlabel("guidance (dotted: shuffled prompts)")
    axes.set_ylabel("share of held-out prompts")
    axes.set_ylim(0, 1)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)
