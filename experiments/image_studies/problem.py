"""What the studies of noise search share: generators, rewards and a trusted judge.

Everything is trained from a key, in tens of seconds, on digit canvases of 8x16 pixels: a diffusion
model of perceptrons with classifier-free guidance, a one-step student of it, recognisers for the
rewards on digits of their own, and an ensemble of recognisers on yet others, which judges and is
never optimised against. States of the generators hold pixels in [-1, 1].
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float, Int

from jaxreward.networks.perceptron import Perceptron, time_features
from jaxreward.rewards import images as image_rewards
from jaxreward.tasks import digit_canvases as canvases
from jaxreward.training.fit import fit, rows

SHAPE = (8, 16)
PIXELS = SHAPE[0] * SHAPE[1]
LAST = 0.98
"""The time of pure noise; at 1 the signal would be gone and the step back undefined."""


class Banks(NamedTuple):
    """Real digits for generator, rewards and judge; no image is in two of them."""

    train: canvases.Bank
    reward: canvases.Bank
    judge: canvases.Bank


def load_banks() -> Banks:
    """The digits of scikit-learn in three parts."""
    return Banks(*(canvases.load_bank(part) for part in Banks._fields))


# Diffusion with alpha = cos, sigma = sin, in the velocity parameterisation


def scales(time: Array) -> tuple[Array, Array]:
    """Scales of signal and noise at a time in [0, 1]."""
    return jnp.cos(0.5 * jnp.pi * time), jnp.sin(0.5 * jnp.pi * time)


def times(steps: int) -> Array:
    """`[steps + 1]` times of a sampler, from noise to image."""
    return jnp.linspace(LAST, 0.0, steps + 1)


def make_velocity(network: Perceptron) -> Callable[..., Array]:
    """`(params, x [8, 16], time, condition [E], conditional) -> [8, 16]`; without prompt, zeros."""

    def velocity(params, x, time, condition, conditional=1.0):
        shown = jnp.append(condition, 1.0) * conditional
        features = jnp.concatenate([x.reshape(-1), time_features(time), shown])
        return network.apply(params, features).reshape(SHAPE)

    return velocity


def clean_and_noise(velocity: Array, x: Array, time: Array) -> tuple[Array, Array]:
    """Estimates of the image and of the noise in `x`."""
    alpha, sigma = scales(time)
    return alpha * x - sigma * velocity, sigma * x + alpha * velocity


def ddim_step(velocity: Callable, x: Array, time: Array, after: Array) -> tuple[Array, Array]:
    """State at `after`, and the clean estimate; `velocity` is of `(x, time)`."""
    clean, noise = clean_and_noise(velocity(x, time), x, time)
    alpha, sigma = scales(after)
    return alpha * clean + sigma * noise, clean


def sample(velocity: Callable, noise: Array, steps: int) -> tuple[Array, Array]:
    """The last state, which is the image, and the clean estimates `[steps, 8, 16]`."""
    grid = times(steps)

    def step(x, pair):
        return ddim_step(velocity, x, *pair)

    return jax.lax.scan(step, noise, (grid[:-1], grid[1:]))


def decode(x: Array) -> Array:
    """Pixels in [0, 1]."""
    return jnp.clip(0.5 * (x + 1.0), 0.0, 1.0)


# Training


class Generator(NamedTuple):
    """A frozen generator and the functions that use it.

    Attributes:
      guided: `(x, time, condition, guidance) -> velocity`.
      predict: `(x, time, condition, conditional) -> velocity`.
      one_step: `(noise, condition) -> image in [0, 1]`, by one call; None where there is no student.
    """

    guided: Callable[..., Array]
    predict: Callable[..., Array]
    one_step: Callable[[Array, Array], Array] | None


def train_teacher(key: jax.Array, bank: canvases.Bank, c: ml_collections.ConfigDict):
    """The diffusion model: velocity function and parameters. Conditions are dropped at times."""
    network = Perceptron(tuple(c.hidden), PIXELS)
    velocity = make_velocity(network)
    params = network.init(key, jnp.zeros(PIXELS + 16 + 27))

    def draw(key):
        keys = jax.random.split(key, 5)
        prompts = canvases.draw_prompts(keys[0], c.batch)
        each = jax.random.split(keys[1], c.batch)
        real = jax.vmap(canvases.draw_canvas, in_axes=(0, None, 0))(each, bank, prompts)
        noise = jax.random.normal(keys[2], real.shape)
        time = jax.random.uniform(keys[3], (c.batch,), maxval=LAST)
        shown = jax.random.bernoulli(keys[4], 0.9, (c.batch,)).astype(jnp.float32)
        return 2 * real - 1, noise, time, canvases.embed(prompts), shown

    def loss(params, batch):
        def one(real, noise, time, condition, shown):
            alpha, sigma = scales(time)
            found = velocity(params, alpha * real + sigma * noise, time, condition, shown)
            return jnp.mean(jnp.square(found - (alpha * noise - sigma * real)))

        return jnp.mean(jax.vmap(one)(*batch))

    params, _ = fit(key, params, loss, draw, _optimizer(c, c.steps), steps=c.steps)
    return velocity, params


def train_student(key, velocity: Callable, teacher: Any, c: ml_collections.ConfigDict):
    """`(noise, condition) -> image`: one call that imitates the teacher's whole sampler."""
    network = Perceptron(tuple(c.hidden), PIXELS)
    keys = jax.random.split(key, 3)

    def finish(noise, condition):
        def field(x, t):
            return guide(lambda *a: velocity(teacher, *a), x, t, condition, c.guidance)

        return sample(field, noise, c.sampler_steps)[0]

    noise = jax.random.normal(keys[0], (c.pairs, *SHAPE))
    condition = canvases.embed(canvases.draw_prompts(keys[1], c.pairs))
    images = jax.lax.map(lambda pair: finish(*pair), (noise, condition), batch_size=256)

    def predict(params, noise, condition):
        features = jnp.concatenate([noise.reshape(-1), condition])
        return network.apply(params, features).reshape(SHAPE)

    def loss(params, batch):
        noise, condition, images = batch
        found = jax.vmap(predict, in_axes=(None, 0, 0))(params, noise, condition)
        return jnp.mean(jnp.square(found - images))

    start = network.init(keys[2], jnp.zeros(PIXELS + 26))
    draw = lambda key: rows((noise, condition, images), key, c.batch)
    optimizer = _optimizer(c, c.student_steps)
    params, _ = fit(keys[2], start, loss, draw, optimizer, steps=c.student_steps)
    return lambda noise, condition: decode(predict(params, noise, condition))


def guide(predict: Callable, x: Array, time: Array, condition: Array, guidance) -> Array:
    """Velocity with classifier-free guidance."""
    free = predict(x, time, condition, 0.0)
    return free + guidance * (predict(x, time, condition, 1.0) - free)


def train_generator(
    key: jax.Array, bank: canvases.Bank, c: ml_collections.ConfigDict, *, student: bool
) -> Generator:
    """Teacher and, if wanted, its one-step student."""
    keys = jax.random.split(key)
    velocity, params = train_teacher(keys[0], bank, c)
    predict = lambda *args: velocity(params, *args)
    guided = lambda x, time, condition, guidance: guide(predict, x, time, condition, guidance)
    one_step = train_student(keys[1], velocity, params, c) if student else None
    return Generator(guided, predict, one_step)


def recognizer_params(
    key: jax.Array, bank: canvases.Bank, network: Perceptron, c: ml_collections.ConfigDict
) -> Any:
    """Parameters of a network that labels cells; learned from noisy, dimmed real ones."""

    def draw(key):
        keys = jax.random.split(key, 5)
        digit = jax.random.randint(keys[0], (c.batch,), 0, image_rewards.DIGITS)
        label = image_rewards.cell_label(digit, jax.random.randint(keys[1], (c.batch,), 0, 2))
        label = jnp.where(jax.random.bernoulli(keys[2], 0.1, (c.batch,)), 0, label)
        each = jax.random.split(keys[3], c.batch)
        cells = jax.vmap(canvases.draw_cell, in_axes=(0, None, 0))(each, bank, label)
        own = jax.random.split(keys[4])
        dimmed = cells * jax.random.uniform(own[0], (c.batch, 1, 1), minval=0.6)
        noisy = dimmed + c.augmentation * jax.random.normal(own[1], cells.shape)
        return jnp.clip(noisy, 0.0, 1.0).reshape(c.batch, -1), label

    def loss(params, batch):
        cells, label = batch
        logits = network.apply(params, cells)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))

    start = network.init(key, jnp.zeros(image_rewards.SIDE**2))
    return fit(key, start, loss, draw, _optimizer(c, c.steps), steps=c.steps)[0]


def train_recognizer(
    key: jax.Array, bank: canvases.Bank, hidden: tuple[int, ...], c: ml_collections.ConfigDict
) -> Callable[[Array], Array]:
    """`image -> [2, K]` log-probabilities of labels."""
    network = Perceptron(hidden, image_rewards.CELL_LABELS)
    params = recognizer_params(key, bank, network, c)
    return lambda image: image_rewards.cell_log_probs(network.apply, params, image)


def train_judge(
    key: jax.Array, bank: canvases.Bank, c: ml_collections.ConfigDict
) -> Callable[[Array], Array]:
    """An ensemble of recognisers: the mean of their probabilities."""
    members = [
        train_recognizer(own, bank, tuple(c.hidden), c) for own in jax.random.split(key, c.members)
    ]

    def judge(image):
        each = jnp.stack([member(image) for member in members])
        return jax.nn.logsumexp(each, axis=0) - jnp.log(float(c.members))

    return judge


class Verdict(NamedTuple):
    """What the trusted judge says of an image.

    Attributes:
      right: 1 where it shows what the prompt asks, else 0.
      log_prob: natural log of the judge's probability of that.
    """

    right: Array
    log_prob: Array


def ask(judge: Callable, image: Array, prompt: Int[Array, "4"]) -> Verdict:
    """The judge's verdict."""
    log_probs, allowed = judge(image), canvases.allowed_pairs(prompt)
    right = image_rewards.fulfilled(log_probs, allowed).astype(jnp.float32)
    return Verdict(right, image_rewards.composition(log_probs, allowed))


def real_canvases(key: jax.Array, bank: canvases.Bank, count: int) -> Float[Array, "N 8 16"]:
    """Real canvases with all kinds of prompts, to measure distances to."""
    keys = jax.random.split(key)
    prompts = canvases.draw_prompts(keys[0], count)
    draw = jax.vmap(canvases.draw_canvas, in_axes=(0, None, 0))
    return draw(jax.random.split(keys[1], count), bank, prompts)


def _optimizer(c: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(c.learning_rate, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
