"""What the studies of generators share: digits, a classifier, a teacher and its distillation."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from jaxreward import schedules
from jaxreward.losses import denoising
from jaxreward.networks import diffusion
from jaxreward.networks.diffusion import Condition, DiffusionConfig
from jaxreward.policies import consistency, flow
from jaxreward.training import fit

CLASSES, SIDE = 10, 8
SCHEDULE = schedules.from_alpha_bar(schedules.scaled_linear_alpha_bar())
PARAMETERIZATION = schedules.VELOCITY


class Digits(NamedTuple):
    """Images `[N, 8, 8, 1]` in [-1, 1] and their classes."""

    images: Float[Array, "N H W C"]
    labels: Int[Array, "N"]


class Splits(NamedTuple):
    """Disjoint parts of the 1,797 digits of scikit-learn.

    Attributes:
      generator: what generators learn from.
      reward: what reward models learn from.
      judge: what the judge, never optimised against, learns from.
    """

    generator: Digits
    reward: Digits
    judge: Digits


def load(seed: int) -> Splits:
    """1,000 digits for generators, the others shared by rewards and judge."""
    from sklearn.datasets import load_digits  # slow to import

    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    images = jnp.asarray(digits.images[order, :, :, None] / 8.0 - 1.0, jnp.float32)
    labels = jnp.asarray(digits.target[order], jnp.int32)
    bounds = ((0, 1000), (1000, 1400), (1400, len(digits.target)))
    return Splits(*(Digits(images[a:b], labels[a:b]) for a, b in bounds))


# A classifier: one hidden layer, which also serves as features


def fit_classifier(
    key: jax.Array, inputs: Float[Array, "N F"], labels: Int[Array, "N"], steps: int = 300
) -> Any:
    """Parameters of a small perceptron, trained on slightly noisy inputs."""
    first, second, data = jax.random.split(key, 3)
    init = jax.nn.initializers.he_normal()
    params = {
        "first": init(first, (inputs.shape[1], 64)),
        "bias": jnp.zeros((1, 64)),
        "second": init(second, (64, CLASSES)),
    }

    def sample(key: jax.Array):
        of_rows, of_noise = jax.random.split(key)
        x, y = fit.rows((inputs, labels), of_rows, 64)
        return x + 0.2 * jax.random.normal(of_noise, x.shape), y

    def loss(params, batch):
        log_p = class_log_probs(params, batch[0])
        return -jnp.mean(jnp.take_along_axis(log_p, batch[1][:, None], axis=1))

    optimizer = optax.adamw(3e-3, weight_decay=1e-2)
    return fit.fit(data, params, loss, sample, optimizer, steps=steps)[0]


def features(params: Any, inputs: Float[Array, "*B F"]) -> Float[Array, "*B D"]:
    """The hidden layer of a classifier."""
    flat = inputs.reshape(-1, inputs.shape[-1])
    hidden = jax.nn.relu(flat @ params["first"] + params["bias"])
    return hidden.reshape(inputs.shape[:-1] + (-1,))


def class_log_probs(params: Any, inputs: Float[Array, "*B F"]) -> Float[Array, "*B K"]:
    """Log-probability of each class."""
    return jax.nn.log_softmax(features(params, inputs) @ params["second"], axis=-1)


def log_prob_of(params: Any, inputs: Float[Array, "*B F"], labels: Int[Array, "*B"]) -> Array:
    """Log-probability of the class that was asked for."""
    return jnp.take_along_axis(class_log_probs(params, inputs), labels[..., None], axis=-1)[..., 0]


def accuracy(params: Any, inputs: Float[Array, "*B F"], labels: Int[Array, "*B"]) -> Array:
    """Share of inputs whose most probable class is the one that was asked for."""
    right = jnp.argmax(class_log_probs(params, inputs), axis=-1) == labels
    return jnp.mean(right.astype(jnp.float32))


def flat(images: Float[Array, "*B H W C"]) -> Float[Array, "*B F"]:
    """Pixels in one row."""
    return images.reshape(images.shape[:-3] + (-1,))


# Generators


class Generator(NamedTuple):
    """A class-conditional teacher and functions on its parameters.

    Attributes:
      params: of the teacher.
      network: `init` and `apply`, the same for students.
      denoise: `(params, x, t, condition) -> Estimate`.
      function: the consistency function of a network.
    """

    params: Any
    network: diffusion.Network
    denoise: Callable[..., flow.Estimate]
    function: consistency.ConsistencyFunction


def build(
    config: ml_collections.ConfigDict, height: int = SIDE, width: int = SIDE, **condition: int
) -> Generator:
    """The functions, with parameters still to be trained.

    Args:
      config: `study.generator`, with `kind` and those fields of `DiffusionConfig` that it needs.
      height: of the image.
      width: of the image.
      **condition: what the network is told, as fields of `DiffusionConfig`; default the class.
    """
    own = {name: config[name] for name in DiffusionConfig._fields if name in config}
    told = condition or dict(classes=CLASSES)
    network = diffusion.make_network(DiffusionConfig(height, width, **own, **told), config.kind)
    denoise = flow.make_denoiser(network.apply, SCHEDULE, PARAMETERIZATION)
    function = consistency.consistency_function(network.apply, SCHEDULE, PARAMETERIZATION)
    return Generator(None, network, denoise, function)


def condition(labels: Int[Array, "B"], guidance: Any = 0.0) -> Condition:
    """The condition "this class", with a guidance weight for networks that look at it."""
    weight = jnp.broadcast_to(jnp.asarray(guidance, jnp.float32), labels.shape)
    return Condition(labels=labels, guidance=weight)


def pretrain(
    key: jax.Array,
    generator: Generator,
    config: ml_collections.ConfigDict,
    images: Float[Array, "N H W C"],
    asked: Int[Array, "N"] | Condition,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Generator, Float[Array, "steps"]]:
    """Trains the teacher; its condition is dropped now and then, so it knows the null one too.

    `asked` says what is on the images: their classes, or conditions of another kind. `tick` is
    called at every step.
    """
    of_start, of_data = jax.random.split(key)
    loss = denoising.denoising_loss(generator.network.apply, SCHEDULE, PARAMETERIZATION)
    asked = asked if isinstance(asked, Condition) else condition(asked)

    def sample(key: jax.Array):
        tick()
        of_rows, of_drop, of_loss = jax.random.split(key, 3)
        x, asked_of_rows = fit.rows((images, asked), of_rows, config.batch)
        return of_loss, x, diffusion.drop(of_drop, asked_of_rows, config.drop)

    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))
    start = generator.network.init(of_start)
    params, losses = fit.fit(
        of_data, start, lambda p, batch: loss(p, *batch), sample, optimizer, steps=config.steps
    )
    return generator._replace(params=params), losses


def guided_denoise(generator: Generator) -> Callable[[Array, Array, Condition], flow.Estimate]:
    """The teacher with the guidance `1 + w` of each condition; two network calls."""

    def denoise(x: Array, t: Array, c: Condition) -> flow.Estimate:
        apply = flow.guided(generator.network.apply, diffusion.null, 1.0 + c.guidance)
        return flow.make_denoiser(apply, SCHEDULE, PARAMETERIZATION)(generator.params, x, t, c)

    return denoise


def teacher_step(denoise: Callable[[Array, Array, Condition], flow.Estimate]) -> denoising.Teacher:
    """A deterministic DDIM step of a denoiser `(x, t, condition)`."""

    def step(x: Array, t: Array, earlier: Array, c: Condition) -> Array:
        return flow.ddim_move(SCHEDULE, x, denoise(x, t, c), t, earlier).mean

    return step


def distill_points() -> np.ndarray:
    """The fifty times of latent consistency models, ascending."""
    return consistency.grid(50)[::-1].copy()


def distill(
    key: jax.Array,
    generator: Generator,
    config: ml_collections.ConfigDict,
    images: Float[Array, "N H W C"],
    labels: Int[Array, "N"],
    tick: Callable[[], None] = lambda: None,
) -> Any:
    """Parameters of a consistency model of the unguided teacher, from the teacher's own.

    `config` is `study.distillation`, with `steps`, `batch`, `learning_rate` and `decay`. `tick` is
    called at every step.
    """
    plain = lambda x, t, c: generator.denoise(generator.params, x, t, c)
    points = distill_points()
    one = denoising.consistency_distillation(
        generator.function, teacher_step(plain), SCHEDULE, points
    )
    optimizer = optax.adam(config.learning_rate)

    def step(state, i: Array):
        tick()
        params, average, opt_state = state
        of_rows, of_loss = jax.random.split(jax.random.fold_in(key, i))
        x, y = fit.rows((images, labels), of_rows, config.batch)
        loss = lambda p: one(p, average, of_loss, x, condition(y)).loss
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
            updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        params = optax.apply_updates(params, updates)
        return (params, diffusion.moving_average(average, params, config.decay), opt_state), None

    start = (generator.params, generator.params, optimizer.init(generator.params))
    (params, _, _), _ = jax.lax.scan(step, start, jnp.arange(config.steps))
    return params
