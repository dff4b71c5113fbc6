"""What the studies of noise search share: generators, rewards and a trusted judge.

Everything is trained from a key, in tens of seconds, on digit canvases of 8x16 pixels: the
diffusion model of `generator_studies.digits` told a prompt, a one-step student of it, recognisers
for the rewards on digits of their own, and an ensemble of recognisers on yet others, which judges and is
never optimised against. Noises and images are `[B, 8, 16]`; the generator's states hold pixels in
[-1, 1].
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float, Int

from experiments.generator_studies import digits
from experiments.generator_studies.digits import Generator
from jaxreward.networks.diffusion import Condition
from jaxreward.networks.perceptron import Perceptron
from jaxreward.policies import flow
from jaxreward.rewards import images as image_rewards
from jaxreward.tasks import digit_canvases as canvases
from jaxreward.training.fit import fit, rows

SHAPE = (8, 16)
PIXELS = SHAPE[0] * SHAPE[1]

Ask = Callable[[jax.Array, int], Array]
"""`(key, count) -> prompts [count, 4]`."""


class Banks(NamedTuple):
    """Real digits for generator, rewards and judge; no image is in two of them."""

    train: canvases.Bank
    reward: canvases.Bank
    judge: canvases.Bank


def load_banks() -> Banks:
    """The digits of scikit-learn in three parts."""
    return Banks(*(canvases.load_bank(part) for part in Banks._fields))


# Generators


def condition(prompts: Int[Array, "B 4"], guidance: float = 1.0) -> Condition:
    """What the generator is told; `guidance` is the factor of `policies.flow.guided`."""
    weight = jnp.full(prompts.shape[:1], guidance - 1.0, jnp.float32)
    return Condition(tokens=canvases.tokens(prompts), guidance=weight)


def real_canvases(
    key: jax.Array, bank: canvases.Bank, count: int, ask: Ask = canvases.draw_prompts
) -> tuple[Float[Array, "N 8 16"], Int[Array, "N 4"]]:
    """Real canvases, and the prompts that they satisfy; default of all kinds."""
    keys = jax.random.split(key)
    prompts = ask(keys[0], count)
    draw = jax.vmap(canvases.draw_canvas, in_axes=(0, None, 0))
    return draw(jax.random.split(keys[1], count), bank, prompts), prompts


def build_teacher(c: ml_collections.ConfigDict) -> Generator:
    """The diffusion model, told the words of the prompt, untrained; `c` is `study.generator`.

    A transformer's positions begin with the standard deviation `c.positions`, where it is given.
    """
    base = digits.build(c, *SHAPE, vocabulary=len(canvases.WORDS), prompt_length=3)
    if "positions" not in c:
        return base

    def place(path, leaf):  # the network draws them near 0, where they are slow to matter
        return leaf * (c.positions / 0.02) if path[-1].key == "position" else leaf

    init = lambda key: jax.tree_util.tree_map_with_path(place, base.network.init(key))
    return base._replace(network=base.network._replace(init=init))


def train_teacher(
    key: jax.Array,
    bank: canvases.Bank,
    c: ml_collections.ConfigDict,
    ask: Ask = canvases.draw_prompts,
    tick: Callable[[], None] = lambda: None,
) -> Generator:
    """The same trained on real canvases of the prompts that `ask` draws; a tick for each step."""
    keys = jax.random.split(key)
    images, prompts = real_canvases(keys[0], bank, c.canvases, ask)
    states = (2.0 * images - 1.0)[..., None]
    return digits.pretrain(keys[1], build_teacher(c), c, states, condition(prompts), tick)[0]


def denoiser(generator: Generator, prompts: Array, guidance: float) -> flow.Denoiser:
    """The teacher for a batch of prompts; with guidance 1 one network call, else two."""
    told = condition(prompts, guidance)
    if guidance == 1.0:
        return lambda x, t: generator.denoise(generator.params, x, t, told)
    guided = digits.guided_denoise(generator)
    return lambda x, t: guided(x, t, told)


def estimates(
    generator: Generator, noise: Array, prompts: Array, *, steps: int, guidance: float
) -> Float[Array, "S B 8 16"]:
    """Clean estimates of all steps of the sampler, in [0, 1]; the last ones are the images."""
    times = flow.grid(digits.SCHEDULE, steps)
    denoise = denoiser(generator, prompts, guidance)
    return decode(flow.clean_estimates(denoise, digits.SCHEDULE, noise[..., None], times))


def sample(
    generator: Generator, noise: Array, prompts: Array, *, steps: int, guidance: float
) -> Float[Array, "B 8 16"]:
    """The images that the sampler makes of noises."""
    return estimates(generator, noise, prompts, steps=steps, guidance=guidance)[-1]


def decode(states: Float[Array, "*B 8 16 1"]) -> Float[Array, "*B 8 16"]:
    """Pixels in [0, 1]."""
    return jnp.clip(0.5 * (states[..., 0] + 1.0), 0.0, 1.0)


def train_student(
    key: jax.Array,
    teacher: Generator,
    c: ml_collections.ConfigDict,
    tick: Callable[[], None] = lambda: None,
) -> Generator:
    """The teacher's network, taught to make by one call what its whole sampler makes.

    Regression on pairs of noise and image (arXiv 2101.02388); `c` is `study.student`.
    """
    keys = jax.random.split(key, 3)
    noise = jax.random.normal(keys[0], (c.pairs, *SHAPE))
    prompts = canvases.draw_prompts(keys[1], c.pairs)
    images = sample(teacher, noise, prompts, steps=c.sampler_steps, guidance=c.guidance)

    def loss(params, batch):
        noise, prompts, images = batch
        found = one_step(teacher._replace(params=params), noise, prompts, clip=False)
        return jnp.mean(jnp.square(found - images))

    def draw(key):
        tick()
        return rows((noise, prompts, images), key, c.batch)

    start, optimizer = teacher.params, _optimizer(c, c.steps)
    return teacher._replace(params=fit(keys[2], start, loss, draw, optimizer, steps=c.steps)[0])


def one_step(generator: Generator, noise: Array, prompts: Array, *, clip: bool = True) -> Array:
    """`[B, 8, 16]` images by one call; without `clip` a pixel may leave [0, 1]."""
    told, last = condition(prompts), digits.SCHEDULE.last
    states = generator.function(generator.params, noise[..., None], last, told)
    return decode(states) if clip else 0.5 * (states[..., 0] + 1.0)


def one_step_for(generator: Generator, prompt: Int[Array, "4"]) -> Callable[[Array], Array]:
    """`noise [8, 16] -> image [8, 16]` for one prompt, as the searches of noise want it."""
    return lambda noise: one_step(generator, noise[None], prompt[None])[0]


# Rewards and the judge


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
        dimmed = cells * jax.random.uniform(own[0], (c.batch, 1, 1), minval=1.0 - c.dimming)
        noisy = dimmed + c.augmentation * jax.random.normal(own[1], cells.shape)
        return jnp.clip(noisy, 0.0, 1.0).reshape(c.batch, -1), label

    def loss(params, batch):
        cells, label = batch
        logits = network.apply(params, cells)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, label))

    start = network.init(key, jnp.zeros(image_rewards.SIDE**2))
    return fit(key, start, loss, draw, _optimizer(c, c.steps), steps=c.steps)[0]


def train_recognizers(
    key: jax.Array, bank: canvases.Bank, c: ml_collections.ConfigDict, *, hidden, count: int
) -> Callable[[Array], Array]:
    """`image -> [count, 2, K]` log-probabilities of labels under networks of the same size."""
    network = Perceptron(tuple(hidden), image_rewards.CELL_LABELS)
    learn = lambda key: recognizer_params(key, bank, network, c)
    params = jax.vmap(learn)(jax.random.split(key, count))
    read = lambda params, image: image_rewards.cell_log_probs(network.apply, params, image)
    return lambda image: jax.vmap(read, in_axes=(0, None))(params, image)


def train_judge(
    key: jax.Array, bank: canvases.Bank, c: ml_collections.ConfigDict
) -> Callable[[Array], Array]:
    """An ensemble of recognisers, `image -> [2, K]`: the logarithm of their mean probabilities."""
    members = train_recognizers(key, bank, c, hidden=c.hidden, count=c.members)
    return lambda image: jax.nn.logsumexp(members(image), axis=0) - jnp.log(float(c.members))


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


def _optimizer(c: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(c.learning_rate, steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
