"""Golden noise: a learned map from a noise to one that suits the prompt (arXiv 2411.09502)."""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array

from experiments.image_studies import problem, report
from experiments.studies import Study
from jaxreward.losses.noise_search import noise_regression
from jaxreward.networks.noise_map import NoiseMap, map_batch
from jaxreward.rewards import images as image_rewards
from jaxreward.search import golden_noise
from jaxreward.search.accounting import Spent, add
from jaxreward.tasks import digit_canvases as canvases
from jaxreward.training.fit import fit


def study(config: ml_collections.ConfigDict) -> Study:
    """The study of `configs/golden_noise.py`."""
    banks = problem.load_banks()
    return Study(lambda key: _run(config.study, banks, key), draw=report.draw_samples)


def _run(c: ml_collections.ConfigDict, banks: problem.Banks, key: jax.Array) -> dict[str, Any]:
    keys = jax.random.split(key, 8)
    generator = problem.train_generator(keys[0], banks.train, c.generator, student=False)
    reader = problem.train_recognizer(keys[1], banks.reward, tuple(c.reader), c.recognizer)
    judge = problem.train_judge(keys[2], banks.judge, c.judge)
    prompts = canvases.draw_prompts(keys[3], c.pairs)
    noise = jax.random.normal(keys[4], (c.pairs, *problem.SHAPE))
    improve = _improver(generator, c)
    pairs = golden_noise.collect(
        noise, lambda z: improve(z, prompts), _noisy_reward(generator, reader, prompts, c),
        keys[5], c.margin,
    )  # fmt: skip
    kept = jnp.ones_like(pairs.kept)
    maps = {
        "golden_noise": _learn(keys[6], pairs, pairs.kept, prompts, c),
        "golden_noise_unfiltered": _learn(keys[6], pairs, kept, prompts, c),
        "golden_noise_as_released": _learn(keys[6], pairs, pairs.kept, prompts, c, as_released=True),
    }
    fresh = canvases.draw_prompts(keys[7], c.tested)
    start = jax.random.normal(jax.random.fold_in(keys[7], 1), (c.tested, *problem.SHAPE))
    noises = {"start": start, "redenoised": improve(start, fresh)}
    noises |= {name: mapped(start, fresh) for name, mapped in maps.items()}
    noises["random_move"] = _random_move(jax.random.fold_in(keys[7], 2), start, noises["golden_noise"])
    real = problem.real_canvases(keys[7], banks.judge, c.real)
    return _reported(noises, start, fresh, generator, judge, real, pairs, c)


def _images(generator, noises: Array, prompts: Array, c: ml_collections.ConfigDict) -> Array:
    """The sampler's images of a batch of noises."""

    def one(pair):
        noise, prompt = pair
        condition = canvases.embed(prompt)
        field = lambda x, t: generator.guided(x, t, condition, c.guidance)
        return problem.decode(problem.sample(field, noise, c.sampler_steps)[0])

    return jax.lax.map(one, (noises, prompts), batch_size=250)


def _improver(generator, c: ml_collections.ConfigDict) -> Callable[[Array, Array], Array]:
    """Re-denoised noises of a batch: one step of the sampler and back."""
    time, after = problem.times(c.sampler_steps)[:2]
    levels = golden_noise.Levels(*problem.scales(time), *problem.scales(after))

    def one(noise, prompt):
        condition = canvases.embed(prompt)

        def predict(x, conditional):
            velocity = generator.predict(x, time, condition, float(conditional))
            return problem.clean_and_noise(velocity, x, time)[1]

        return golden_noise.redenoise(
            noise, predict, levels, guidance=c.redenoise_guidance,
            inversion_guidance=c.inversion_guidance,
        )[0]  # fmt: skip

    return jax.vmap(one)


def _noisy_reward(generator, reader, prompts: Array, c: ml_collections.ConfigDict):
    """`(key, noises) -> [N]`: log-probability of the prompt in the image, observed with noise."""

    def reward(key, noises):
        images = _images(generator, noises, prompts, c)
        tables = jax.vmap(canvases.allowed_pairs)(prompts)
        clean = image_rewards.composition(jax.vmap(reader)(images), tables)
        return clean + c.reward_noise * jax.random.normal(key, clean.shape)

    return reward


def _learn(key, pairs, kept: Array, prompts: Array, c, *, as_released: bool = False) -> Callable:
    """A noise map fitted to the kept pairs: `(noises, prompts) -> noises`."""
    network = NoiseMap(hidden=c.map.hidden, wide=c.map.wide, channels=c.map.channels)
    condition = canvases.embed(prompts)
    start = network.init(key, pairs.noise[:1], condition[0])

    def draw(key):
        index = golden_noise.draw_kept(key, kept, c.map.batch)
        return pairs.noise[index][:, None], pairs.golden[index][:, None], condition[index]

    def loss(params, batch):
        noise, golden, condition = batch
        mapped = map_batch(network.apply, params, noise, condition, as_released=as_released)
        return noise_regression(mapped, golden)

    rate = optax.cosine_decay_schedule(c.map.learning_rate, c.map.steps)
    params, _ = fit(key, start, loss, draw, optax.adamw(rate), steps=c.map.steps)

    def mapped(noises, prompts):
        return map_batch(network.apply, params, noises[:, None], canvases.embed(prompts))[:, 0]

    return mapped


def _random_move(key: jax.Array, start: Array, moved: Array) -> Array:
    """Noises moved as far as `moved`, each in a random direction."""
    direction = jax.random.normal(key, start.shape)
    size = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True))
    return start + direction * size(moved - start) / size(direction)


def _reported(noises, start, prompts, generator, judge, real, pairs, c) -> dict[str, Any]:
    found = {}
    sampler = Spent(2 * c.sampler_steps, 1)
    extra = {"redenoised": golden_noise.REDENOISE_SPENT}
    for name, own in noises.items():
        images = _images(generator, own, prompts, c)
        size = lambda x: jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2)))
        found[name] = {
            **report.judged(judge, images, prompts, real),
            **report.counted(add(sampler, extra.get(name, Spent()))),
            "noise/moved": jnp.mean(size(own - start) / size(start)),
        }
    found["golden_noise"]["pairs/kept"] = jnp.mean(pairs.kept.astype(jnp.float32))
    return found
