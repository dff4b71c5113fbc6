"""Golden noise: a learned map from a noise to one that suits the prompt (arXiv 2411.09502)."""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float

from experiments.generator_studies import digits
from experiments.image_studies import problem, report, searches
from experiments.studies import Study
from jaxreward.losses.noise_search import noise_regression
from jaxreward.networks import diffusion
from jaxreward.networks.noise_map import NoiseMap, decompose, fold, map_batch, unfold
from jaxreward.policies import flow
from jaxreward.rewards import images as image_rewards
from jaxreward.search import golden_noise
from jaxreward.search.accounting import Spent, add
from jaxreward.tasks import digit_canvases as canvases
from jaxreward.training.exits import ConfigError
from jaxreward.training.fit import fit


def study(config: ml_collections.ConfigDict) -> Study:
    """The study of `configs/golden_noise.py`."""
    c = config.study
    return searches.make_study(c, _run, keys=8, iterations=len(MAPS) * c.map.steps)


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks what `experiments.generator_checks` cannot know: what keys mean together.

    Raises:
      ConfigError: naming the key, the value and what is allowed.
    """
    searches.validate(config)
    most = config.study.redenoise_guidance
    if config.study.inversion_guidance > most:
        raise ConfigError(
            f"config.study.inversion_guidance = {config.study.inversion_guidance}; allowed is at "
            f"most redenoise_guidance = {most}"
        )


def arms(c: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Names of what is compared."""
    del c
    return ("start", "redenoised", *MAPS, "random_move")


def _run(
    c: ml_collections.ConfigDict,
    banks: problem.Banks,
    keys: jax.Array,
    generator: problem.Generator,
    tick: Callable[[], None],
) -> dict[str, Any]:
    reader = problem.train_recognizers(
        keys[1], banks.reward, c.recognizer, hidden=c.reader, count=1
    )
    judge = problem.train_judge(keys[2], banks.judge, c.judge)
    prompts = canvases.draw_prompts(keys[3], c.pairs)
    noise = jax.random.normal(keys[4], (c.pairs, *problem.SHAPE))
    improve = _improver(generator, c)
    pairs = golden_noise.collect(
        noise, lambda z: improve(z, prompts), _noisy_reward(generator, reader, prompts, c),
        keys[5], c.margin,
    )  # fmt: skip
    learned = _learn_all(keys[6], pairs, prompts, c, tick)

    def variants(key, start, prompts):
        found = {"start": start, "redenoised": improve(start, prompts)}
        found |= dict(zip(MAPS, learned(start, prompts)))
        return found | {"random_move": _random_move(key, start, found["golden_noise"])}

    fresh = canvases.draw_prompts(keys[7], c.tested)
    start = jax.random.normal(jax.random.fold_in(keys[7], 1), (c.tested, *problem.SHAPE))
    noises = variants(jax.random.fold_in(keys[7], 2), start, fresh)
    real, _ = problem.real_canvases(keys[7], banks.judge, c.real)
    found = _reported(noises, start, fresh, generator, judge, real, pairs, c)
    curves = _best_of_n(
        jax.random.fold_in(keys[7], 3), variants, fresh[:SEARCHED], generator, reader, judge, c
    )
    return {name: {**own, **curves[name]} for name, own in found.items()}


SEARCHED, CANDIDATES = 100, 8
"""Prompts and noises for each of the curves: best of n on top of every kind of noise."""


def _best_of_n(key, variants: Callable, prompts, generator, reader, judge, c):
    """By arm: reward and judge of the best of n noises against what they cost."""
    keys = jax.random.split(key)
    each = jnp.repeat(prompts, CANDIDATES, axis=0)
    start = jax.random.normal(keys[0], (len(each), *problem.SHAPE))
    noises = variants(keys[1], start, each)
    tables = jax.vmap(canvases.allowed_pairs)(each)

    def scored(own):
        images = _images(generator, own, each, c)
        reward = image_rewards.composition(jax.vmap(reader)(images)[:, 0], tables)
        right = jax.vmap(lambda image, prompt: problem.ask(judge, image, prompt).right)(images, each)
        return reward.reshape(-1, CANDIDATES), right.reshape(-1, CANDIDATES)

    rewards, right = jax.lax.map(scored, jnp.stack(list(noises.values())))
    return {
        name: report.course(-rewards[i], rewards[i], right[i], _price(name, c))
        for i, name in enumerate(noises)
    }


def _price(arm: str, c: ml_collections.ConfigDict) -> Spent:
    """What an image of an arm costs; re-denoising its noise comes on top."""
    calls = Spent((1 if c.guidance == 1.0 else 2) * c.sampler_steps, 1)
    return add(calls, golden_noise.REDENOISE_SPENT) if arm == "redenoised" else calls


def _images(generator, noises: Array, prompts: Array, c: ml_collections.ConfigDict) -> Array:
    """The sampler's images of a batch of noises."""
    return problem.sample(generator, noises, prompts, steps=c.sampler_steps, guidance=c.guidance)


def _improver(generator, c: ml_collections.ConfigDict) -> Callable[[Array, Array], Array]:
    """Re-denoised noises of a batch: one step of the sampler and back."""
    time, after = flow.grid(digits.SCHEDULE, c.sampler_steps)[:2]
    at = lambda t: (digits.SCHEDULE.alpha(t), digits.SCHEDULE.sigma(t))

    def improve(noise, prompts):
        told = problem.condition(prompts)

        def predict(x, conditional):
            own = told if conditional else diffusion.null(told)
            return generator.denoise(generator.params, x[..., None], time, own).noise[..., 0]

        return golden_noise.redenoise(
            noise, predict, golden_noise.Levels(*at(time), *at(after)),
            guidance=c.redenoise_guidance, inversion_guidance=c.inversion_guidance,
        )[0]  # fmt: skip

    return improve


def _noisy_reward(generator, reader, prompts: Array, c: ml_collections.ConfigDict):
    """`(key, noises) -> [N]`: log-probability of the prompt in the image, observed with noise."""

    def reward(key, noises):
        images = _images(generator, noises, prompts, c)
        tables = jax.vmap(canvases.allowed_pairs)(prompts)
        clean = image_rewards.composition(jax.vmap(reader)(images)[:, 0], tables)
        return clean + c.reward_noise * jax.random.normal(key, clean.shape)

    return reward


MAPS = {"golden_noise": (True, False), "golden_noise_unfiltered": (False, False),
        "golden_noise_as_released": (True, True)}  # fmt: skip
"""By arm: whether only kept pairs are learned from, and whether from the batch's first prompt."""


def _learn_all(key: jax.Array, pairs, prompts: Array, c, tick) -> Callable[[Array, Array], Array]:
    """Noise maps fitted to the pairs: `(noises, prompts) -> [3, noises]`, in the order of `MAPS`."""
    network = NoiseMap(hidden=c.map.hidden, wide=c.map.wide, channels=c.map.channels)
    noise, golden, told = _channels(pairs.noise), _channels(pairs.golden), _embed(prompts)
    data = (golden, noise, told, jax.vmap(decompose)(noise))
    start = network.init(key, noise[0], told[0])
    rate = optax.cosine_decay_schedule(c.map.learning_rate, c.map.steps)

    def learn(arm):
        filtered, first_prompt = arm

        def draw(key):
            tick()
            index = golden_noise.draw_kept(key, pairs.kept | ~filtered, c.map.batch)
            return jax.tree.map(lambda leaf: leaf[index], data)

        def loss(params, batch):
            golden, *given = batch
            mapped = map_batch(network.apply, params, *given, as_released=first_prompt)
            return noise_regression(mapped, golden)

        return fit(key, start, loss, draw, optax.adamw(rate), steps=c.map.steps)[0]

    # one after the other: side by side, convolutions are far slower on a CPU
    params = jax.lax.map(learn, tuple(jnp.asarray(flags) for flags in zip(*MAPS.values())))

    def mapped(noises, prompts):
        given = (_channels(noises), _embed(prompts))
        known = jax.vmap(decompose)(given[0])
        own = lambda params: jax.vmap(fold)(map_batch(network.apply, params, *given, known))
        return jax.lax.map(own, params)

    return mapped


CHANNELS = 16


def _channels(noises: Float[Array, "B 8 16"]) -> Float[Array, "B 16 2 4"]:
    """Noises as of a latent with that many channels: a prompt moves two numbers of each channel."""
    return jax.vmap(lambda noise: unfold(noise, CHANNELS))(noises)


def _embed(prompts: Array) -> Array:
    """`[B, 3, E]` indicators of the words of prompts."""
    return jax.nn.one_hot(canvases.tokens(prompts), len(canvases.WORDS))


def _random_move(key: jax.Array, start: Array, moved: Array) -> Array:
    """Noises moved as far as `moved`, each in a random direction."""
    direction = jax.random.normal(key, start.shape)
    size = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True))
    return start + direction * size(moved - start) / size(direction)


def _reported(noises, start, prompts, generator, judge, real, pairs, c) -> dict[str, Any]:
    size = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2)))

    def measured(own):
        images = _images(generator, own, prompts, c)
        moved = jnp.mean(size(own - start) / size(start))
        return {**report.judged(judge, images, prompts, real), "noise/moved": moved}

    every = jax.lax.map(measured, jnp.stack(list(noises.values())))
    found = {
        name: {
            **jax.tree.map(lambda leaf, i=i: leaf[i], every),
            **report.counted(_price(name, c)),
        }
        for i, name in enumerate(noises)
    }
    found["golden_noise"]["pairs/kept"] = jnp.mean(pairs.kept.astype(jnp.float32))
    return found
