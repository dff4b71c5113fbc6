"""Consistency distillation guided by a flawed reward or by its latent proxy (arXiv 2403.11027)."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from experiments import generator_checks
from experiments.generator_figures import CURVE_PANELS
from experiments.generator_studies import digits, own_reward
from experiments.studies import Study
from jaxreward import masked
from jaxreward.losses import denoising
from jaxreward.networks import diffusion
from jaxreward.policies import consistency, flow
from jaxreward.search import accounting
from jaxreward.search.accounting import Spent
from jaxreward.training import check, fit
from jaxreward.training.exits import ConfigError

HEIGHT, WIDTH = 4, 12
LATENT = HEIGHT * WIDTH
"""Principal components that are kept of 64 pixels; 32 would keep no checkerboard to exploit."""

KINDS = ("teacher", "lcm", "direct", "proxy")
SHOWN = 10
"""Images of each arm in the figure, one of each class."""


class Codec(NamedTuple):
    """Principal components as an autoencoder.

    Attributes:
      mean: of the pixels.
      basis: orthonormal rows.
      scale: root mean square of a component.
    """

    mean: Float[Array, "1 F"]
    basis: Float[Array, "Z F"]
    scale: float


class Task(NamedTuple):
    """What one seed works with.

    Attributes:
      codec: between pixels and latents.
      teacher: class-conditional, of latents.
      latents: of the training digits, with their classes.
      classifier: the honest part of the reward.
      judge: another classifier, on data that no reward has seen.
      proxy: the latent proxy after its pretraining.
      real: features by the judge of digits that no generator has seen.
      reward: of flat pixels and their classes, which is distilled for; NaN where missing.
    """

    codec: Codec
    teacher: digits.Generator
    latents: digits.Digits
    classifier: Any
    judge: Any
    proxy: Any
    real: Float[Array, "N D"]
    reward: own_reward.Reward


def study(config: ml_collections.ConfigDict) -> Study:
    """The study of a config such as `configs/rg_lcd.py`."""
    settings, splits = config.study, digits.load(config.seed)
    base = digits.build(settings.generator, HEIGHT, WIDTH)
    codec = make_codec(splits.generator.images)
    latents = digits.Digits(encode(codec, splits.generator.images), splits.generator.labels)
    unseen = jnp.concatenate([splits.reward.images, splits.judge.images])

    groups = side_by_side(settings.arms)

    def prepare(key: jax.Array, tick: Callable[[], None]) -> Any:
        of_teacher = jax.random.split(key, 6)[0]
        return digits.pretrain(of_teacher, base, settings.generator, *latents, tick)[0].params

    def run(key: jax.Array, params: Any, tick: Callable[[], None]) -> dict[str, dict[str, Any]]:
        keys, teacher = jax.random.split(key, 6), base._replace(params=params)
        classifier, judge = [
            digits.fit_classifier(k, digits.flat(part.images), part.labels)
            for k, part in zip(keys[1:3], (splits.reward, splits.judge))
        ]
        proxy = pretrain_proxy(keys[3], latents, settings.proxy)
        real = digits.features(judge, digits.flat(unseen))
        reward = make_reward(settings, classifier)
        task = Task(codec, teacher, latents, classifier, judge, proxy, real, reward)
        found = {}
        for arm, betas in groups:
            one = lambda beta, arm=arm: run_arm(*keys[4:], task, arm, beta, settings, tick)
            each = jax.vmap(one)(jnp.asarray(list(betas.values()), jnp.float32))
            for i, name in enumerate(betas):
                found[name] = jax.tree.map(lambda leaf, i=i: leaf[i], each)
        for own in found.values():
            own["samples/before"] = found["lcm"]["samples/after"]
        return found

    learning = sum(arm.kind != "teacher" for arm, _ in groups)
    return Study(
        run,
        draw=(draw, *CURVE_PANELS),
        iterations=learning * settings.distillation.steps,
        prepare=prepare,
        preparing=settings.generator.steps,
    )


def side_by_side(arms: ml_collections.ConfigDict) -> list[tuple[Any, dict[str, float]]]:
    """Arms that differ in the reward's weight alone, to be run as one: an arm, weight by name.

    Distillation alone is direct guidance of weight 0, where there is some.
    """
    direct = any(arm.kind == "direct" for arm in arms.values())
    groups: dict[tuple, tuple[Any, dict[str, float]]] = {}
    for name, arm in arms.items():
        own = dict(arm.items())
        if arm.kind == "lcm" and direct:
            own = dict(kind="direct", beta=0.0)
        beta = own.pop("beta", 0.0)
        key = tuple(sorted(own.items()))
        groups.setdefault(key, (ml_collections.ConfigDict(own), {}))[1][name] = beta
    return list(groups.values())


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks what `experiments.generator_checks` cannot know: what keys mean together.

    Raises:
      ConfigError: naming the key, the value and what is allowed.
    """
    own = config.study
    for path in ("study.distillation.guidance", "study.arms"):
        check.required(config, path)
    weights = tuple(own.distillation.guidance)
    if len(weights) != 2 or not weights[0] <= weights[1]:
        raise ConfigError(
            f"config.study.distillation.guidance = {weights!r}; allowed is a smallest and a "
            "largest weight"
        )
    with generator_checks.named("study.generator"):
        digits.build(own.generator, HEIGHT, WIDTH)
    if "lcm" not in own.arms or own.arms.lcm.kind != "lcm":
        check.choice(config, "study.arms.lcm.kind", KINDS)
        raise ConfigError("config.study.arms.lcm.kind is not 'lcm'; allowed is an arm without reward")
    points = len(digits.distill_points())
    check.in_range(config, "study.sampling_steps", 1, points)
    for name, arm in own.arms.items():
        check.choice(config, f"study.arms.{name}.kind", KINDS)
        if arm.kind == "teacher":
            check.in_range(config, f"study.arms.{name}.steps", 1, points)
        if arm.kind == "proxy":
            check.choice(config, f"study.arms.{name}.labels", denoising.LABELS)
            check.in_range(config, f"study.arms.{name}.rows", 1, own.distillation.batch)
    if "reward" in own:
        own_reward.check(config, [name for name, arm in own.arms.items() if arm.kind == "direct"])


# Latents


def make_codec(images: Float[Array, "N H W C"]) -> Codec:
    """From the principal components of the images."""
    flat = np.asarray(digits.flat(images), np.float64)
    mean = flat.mean(axis=0, keepdims=True)
    basis = np.linalg.svd(flat - mean, full_matrices=False)[2][:LATENT]
    scale = float(np.sqrt(np.mean(np.square((flat - mean) @ basis.T))))
    return Codec(jnp.asarray(mean, jnp.float32), jnp.asarray(basis, jnp.float32), scale)


def encode(codec: Codec, images: Float[Array, "N H W C"]) -> Float[Array, "N h w 1"]:
    """Latents of images."""
    components = (digits.flat(images) - codec.mean) @ codec.basis.T / codec.scale
    return components.reshape(-1, HEIGHT, WIDTH, 1)


def decode(codec: Codec, latents: Float[Array, "N h w 1"]) -> Float[Array, "N F"]:
    """Flat pixels, clipped to [-1, 1] as the released code clips them before the reward."""
    components = latents.reshape(latents.shape[0], LATENT)
    return jnp.clip(codec.mean + codec.scale * components @ codec.basis, -1, 1)


# Rewards


def checkerboard_energy(flat: Float[Array, "N F"]) -> Float[Array, "N"]:
    """Mean square of the checkerboard component of all 2x2 blocks; 1 for a full checkerboard."""
    x = flat.reshape(-1, digits.SIDE, digits.SIDE)
    blocks = x[:, :-1, :-1] - x[:, :-1, 1:] - x[:, 1:, :-1] + x[:, 1:, 1:]
    return jnp.mean(jnp.square(blocks / 4.0), axis=(1, 2))


def make_reward(settings: ml_collections.ConfigDict, classifier: Any) -> own_reward.Reward:
    """Of flat pixels: log-probability of the class and a bonus for checkerboards that nobody meant.

    Or a user's own.
    """
    if "reward" in settings:
        own, shape = own_reward.make(settings.reward), (-1, *own_reward.IMAGE)
        return lambda flat, labels: own(flat.reshape(shape), labels)
    honest = lambda flat, labels: digits.log_prob_of(classifier, flat, labels)
    return lambda flat, labels: honest(flat, labels) + settings.flaw * checkerboard_energy(flat)


def score(task: Task, latents: Array, labels: Int[Array, "N"]) -> Float[Array, "N"]:
    """The reward of latents."""
    return task.reward(decode(task.codec, latents), labels)


def reward_name(settings: ml_collections.ConfigDict) -> str:
    """The metric of the reward that is distilled for."""
    return "reward/own" if "reward" in settings else "reward/flawed"


def proxy_cosine(params: Any, latents: Array, labels: Int[Array, "N"]) -> Float[Array, "N"]:
    """Cosine of the latent's embedding and its class's: the proxy reward."""
    return jnp.take_along_axis(_cosines(params, latents), labels[:, None], axis=1)[:, 0]


def _cosines(params: Any, latents: Array) -> Float[Array, "N classes"]:
    own = digits.features(params, latents.reshape(latents.shape[0], LATENT)) @ params["out"]
    unit = lambda x: x / (jnp.linalg.norm(x, axis=1, keepdims=True) + 1e-6)
    return unit(own) @ unit(params["classes"]).T


def pretrain_proxy(key: jax.Array, data: digits.Digits, config: ml_collections.ConfigDict) -> Any:
    """Trained by contrast among classes, as CLIP is among captions."""
    of_start, of_data = jax.random.split(key)
    keys, init = jax.random.split(of_start, 3), jax.nn.initializers.he_normal()
    start = {
        "first": init(keys[0], (LATENT, 64)),
        "bias": jnp.zeros((1, 64)),
        "out": init(keys[1], (64, 32)),
        "classes": init(keys[2], (digits.CLASSES, 32)),
    }

    def loss(params, batch):
        logits = config.logit_scale * _cosines(params, batch.images)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels))

    sample = lambda key: fit.rows(data, key, config.batch)
    optimizer = optax.adam(config.pretraining_rate)
    return fit.fit(of_data, start, loss, sample, optimizer, steps=config.pretraining)[0]


# Distillation


def train(
    key: jax.Array,
    task: Task,
    arm: ml_collections.ConfigDict,
    beta: Array,
    settings: ml_collections.ConfigDict,
    tick: Callable[[], None],
) -> tuple[Any, Any, Any]:
    """The student's and the proxy's parameters after guided distillation, and its curves."""
    config, own = settings.distillation, settings.proxy
    one = denoising.consistency_distillation(
        task.teacher.function,
        digits.teacher_step(digits.guided_denoise(task.teacher)),
        digits.SCHEDULE,
        digits.distill_points(),
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.learning_rate))
    of_proxy = optax.adam(own.learning_rate)

    def reward(proxy: Any, latents: Array, labels: Array) -> Array:
        if arm.kind == "direct":
            return score(task, latents, labels)
        known = arm.kind == "proxy"
        return proxy_cosine(proxy, latents, labels) if known else jnp.zeros(labels.shape)

    def columns(one: Callable, candidates: list[Array], labels: Array) -> Array:
        return jnp.stack([one(z, labels) for z in candidates], axis=1)

    def proxy_loss(proxy: Any, expert: Array, candidates: list[Array], labels: Array) -> Array:
        ours = columns(lambda z, y: proxy_cosine(proxy, z, y), candidates, labels)
        return preference_loss(own.expert_scale * expert, own.logit_scale * ours, arm.labels)

    def step(state, i: Array):
        tick()
        params, average, opt_state, proxy, proxy_state = state
        of_rows, of_weight, of_loss = jax.random.split(jax.random.fold_in(key, i), 3)
        z, y = fit.rows(task.latents, of_rows, config.batch)
        weight = jax.random.uniform(of_weight, y.shape, jnp.float32, *config.guidance)
        condition = digits.condition(y, weight)

        def loss(p):
            found = one(p, average, of_loss, z, condition)
            rewards = reward(proxy, found.student, y)
            mean = masked.mean(rewards, jnp.isfinite(rewards))
            return denoising.reward_guided(found, mean[None], beta), (found, rewards)

        (_, (found, asked)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
            updates, opt_state = optimizer.update(grads, opt_state)
            params = optax.apply_updates(params, updates)
            average = diffusion.moving_average(average, params, config.decay)
            if arm.kind == "proxy":  # candidates from before the student's update
                student = jax.lax.stop_gradient(found.student)
                candidates = [part[: arm.rows] for part in (student, found.target, z)]
                rows = candidates, y[: arm.rows]
                asked = columns(lambda z, y: score(task, z, y), *rows)
                grads = jax.grad(proxy_loss)(proxy, asked, *rows)
                updates, proxy_state = of_proxy.update(grads, proxy_state)
                proxy = optax.apply_updates(proxy, updates)
        seen = *measure_batch(task, found.student, y), own_reward.missing(asked)
        return (params, average, opt_state, proxy, proxy_state), seen

    student = task.teacher.params
    start = (student, student, optimizer.init(student), task.proxy, of_proxy.init(task.proxy))
    (params, _, _, proxy, _), curves = jax.lax.scan(step, start, jnp.arange(config.steps))
    return params, proxy, curves


def preference_loss(
    expert: Float[Array, "B K"], ours: Float[Array, "B K"], labels: str
) -> Float[Array, ""]:
    """`denoising.proxy_preference_loss` of the rows whose candidates all have a score."""
    whole = jnp.all(jnp.isfinite(expert), axis=1, keepdims=True)
    expert, ours = (jnp.where(whole, logits, 0.0) for logits in (expert, ours))
    all_rows = denoising.proxy_preference_loss(expert, ours, labels=labels)
    return all_rows * (len(whole) / jnp.maximum(masked.count(whole), 1.0))


def spent(arm: ml_collections.ConfigDict, settings: ml_collections.ConfigDict) -> Spent:
    """What one step of distillation spends: student, target, the teacher twice for guidance.

    A reward that is differentiated sees every row; one that teaches a proxy sees three candidates
    of each of the proxy's rows. Weight 0 needs none, but counts as run here: none where no arm
    differentiates the reward.
    """
    batch = settings.distillation.batch
    judged = 3 * arm.rows if arm.kind == "proxy" else batch * (arm.kind == "direct")
    return Spent(4 * batch, decodes=judged, reward_calls=judged, backward_calls=batch)


# Arms and measurement


def run_arm(
    key: jax.Array,
    of_samples: jax.Array,
    task: Task,
    arm: ml_collections.ConfigDict,
    beta: Array,
    settings: ml_collections.ConfigDict,
    tick: Callable[[], None],
) -> dict[str, Any]:
    """Fresh samples of the arm, measured; all arms start from the same noise."""
    labels = jnp.repeat(jnp.arange(digits.CLASSES, dtype=jnp.int32), settings.fresh)
    condition = digits.condition(labels, settings.sampling_guidance)
    of_noise, of_start = jax.random.split(of_samples)
    x = jax.random.normal(of_start, (len(labels), HEIGHT, WIDTH, 1))
    if arm.kind == "teacher":
        denoise = lambda x, t: digits.guided_denoise(task.teacher)(x, t, condition)
        times = jnp.append(jnp.asarray(consistency.grid(arm.steps)), 0.0)
        images = flow.ddim(of_noise, denoise, digits.SCHEDULE, x, times)
        found = measure(task, images, labels, reward_name(settings))
        return {**found, "calls/to_sample": jnp.float32(2 * arm.steps)}
    params, proxy, curves = train(key, task, arm, beta, settings, tick)
    function = lambda x, t: task.teacher.function(params, x, t, condition)
    times = consistency.grid(settings.sampling_steps)
    images = consistency.sample(of_noise, function, digits.SCHEDULE, x, times)
    used, steps = spent(arm, settings), settings.distillation.steps
    found = {
        **measure(task, images, labels, reward_name(settings)),
        **accounting.as_metrics(accounting.times(used, steps)),
        "calls/to_sample": jnp.float32(len(times)),
        "curve/budget": accounting.cost(used) * jnp.arange(1.0, steps + 1.0),
        "curve/reward": curves[0],
        "curve/trusted": curves[1],
        "reward/missing": jnp.sum(curves[2]),
    }
    if arm.kind == "proxy":
        found["reward/proxy"] = jnp.mean(proxy_cosine(proxy, images, labels))
    return found


def measure_batch(task: Task, latents: Array, labels: Array) -> tuple[Array, Array]:
    """Mean reward and mean true score, during training at all noise levels."""
    truth = digits.log_prob_of(task.judge, decode(task.codec, latents), labels)
    return jnp.nanmean(score(task, latents, labels)), jnp.mean(truth)


def measure(task: Task, latents: Array, labels: Array, reward: str) -> dict[str, Any]:
    """The reward, by its name, true score by the judge, distance to real digits, checkerboard energy."""
    flat = decode(task.codec, latents)
    return {
        reward: jnp.nanmean(task.reward(flat, labels)),
        "reward/honest_part": jnp.mean(digits.log_prob_of(task.classifier, flat, labels)),
        "score/true": jnp.mean(digits.log_prob_of(task.judge, flat, labels)),
        "score/accuracy": digits.accuracy(task.judge, flat, labels),
        "frechet": frechet_distance(digits.features(task.judge, flat), task.real),
        "checkerboard": jnp.mean(checkerboard_energy(flat)),
        "samples/after": flat.reshape(SHOWN, -1, digits.SIDE, digits.SIDE)[:, 0],
    }


def frechet_distance(a: Float[Array, "N D"], b: Float[Array, "M D"]) -> Float[Array, ""]:
    """Squared Frechet distance of the normal distributions fitted to two samples."""
    (mean_a, cov_a), (mean_b, cov_b) = ((jnp.mean(x, 0), jnp.cov(x, rowvar=False)) for x in (a, b))
    values, vectors = jnp.linalg.eigh(cov_a)
    root = (vectors * jnp.sqrt(jnp.maximum(values, 0.0))[None, :]) @ vectors.T
    cross = jnp.linalg.eigvalsh(root @ cov_b @ root)
    overlap = jnp.sum(jnp.sqrt(jnp.maximum(cross, 0.0)))
    square = jnp.sum(jnp.square(mean_a - mean_b))
    return square + jnp.trace(cov_a) + jnp.trace(cov_b) - 2.0 * overlap


def draw(config: ml_collections.ConfigDict, found, results, axes) -> None:
    """What the reward sees against how far the samples are from real ones."""
    del results
    reward = reward_name(config.study)
    for name, own in found.items():
        axes.plot(own[reward].mean(), own["frechet"].mean(), "o", label=name)
    axes.set_xlabel(reward.partition("/")[2] + " reward")
    axes.set_ylabel("Frechet distance to real digits")
    axes.legend(fontsize=7)
