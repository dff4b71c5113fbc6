"""The distribution of a sampler's initial noise, learned for one prompt (FIND, arXiv 2407.19453)."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.generator_studies import digits
from experiments.studies import Study
from jaxreward.losses.policy import policy_objective
from jaxreward.losses.regularization import penalized
from jaxreward.networks import diffusion
from jaxreward.policies import consistency, flow, noise_prior
from jaxreward.policies import denoising_chain as chains
from jaxreward.policies.noise_prior import NoisePrior, NoisePrompts
from jaxreward.training.step import make_update_step, sample_key
from jaxreward.transforms.advantage import direct, group_relative
from jaxreward.transforms.learned_baseline import learned_baseline
from jaxreward.types import Policy, Trajectories, make_signal

SHAPE = (digits.SIDE, digits.SIDE, 1)
SIZE = digits.SIDE**2
KINDS = ("base", "best_of_n", "noise", "network")


class Task(NamedTuple):
    """What one seed works with.

    Attributes:
      generator: knows digits, and is never told which one is wanted.
      eta: of its stochastic sampler.
      times: of the sampler, descending.
      reward: `(images [..., H, W, C], prompt) -> [...]`, a black box without noise.
      judge: the same attribute by a classifier that no reward looks at, as a probability.
    """

    generator: digits.Generator
    eta: float
    times: np.ndarray
    reward: Callable[[Array, Array], Array]
    judge: Callable[[Array, Array], Array]


def study(config: ml_collections.ConfigDict) -> Study:
    """The study of a config such as `configs/find.py`."""
    settings, splits = config.study, digits.load(config.seed)
    base, data = digits.build(settings.generator), splits.generator
    wanted = jnp.asarray(settings.prompts, jnp.int32)
    bounds = ink_bounds(data)

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        keys = jax.random.split(key, 4)
        generator, _ = digits.pretrain(keys[0], base, settings.generator, *data)
        fits = [
            digits.fit_classifier(k, digits.flat(part.images), part.labels)
            for k, part in zip(keys[1:3], (splits.reward, splits.judge))
        ]
        probability = [
            lambda images, prompt, own=own: attribute(own, bounds, images, prompt) for own in fits
        ]
        reward = lambda images, prompt: quantized(probability[0](images, prompt), settings.levels)
        times = consistency.grid(settings.sampler_steps)
        task = Task(generator, settings.eta, times, reward, probability[1])
        found = {}
        for name, arm in settings.arms.items():
            one = lambda prompt, i, arm=arm: run_arm(
                jax.random.fold_in(keys[3], i), task, arm, settings, prompt
            )
            each = jax.vmap(one)(wanted, jnp.arange(len(wanted)))
            found[name] = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), each)
        return compare(found)

    return Study(run, draw=draw)


# The wanted attribute: a class, drawn with more ink than half of its digits


def ink_bounds(data: digits.Digits) -> Float[Array, "classes"]:
    """The median ink of each class."""
    ink, labels = np.mean(np.asarray(data.images), axis=(1, 2, 3)), np.asarray(data.labels)
    return jnp.asarray([np.median(ink[labels == k]) for k in range(digits.CLASSES)], jnp.float32)


def attribute(classifier: Any, bounds: Array, images: Array, prompt: Array) -> Float[Array, "..."]:
    """Probability of "this digit, drawn thick"."""
    images = jnp.clip(images, -1, 1)
    asked = jnp.broadcast_to(prompt, images.shape[:-3])
    right = jnp.exp(digits.log_prob_of(classifier, digits.flat(images), asked))
    thick = jax.nn.sigmoid((jnp.mean(images, axis=(-3, -2, -1)) - bounds[prompt]) / 0.03)
    return right * thick


def quantized(value: Float[Array, "..."], levels: int) -> Float[Array, "..."]:
    """Rounded to `levels` equal steps of [0, 1], so without gradient."""
    return jnp.round(value * levels) / levels


# Arms


def run_arm(
    key: jax.Array,
    task: Task,
    arm: ml_collections.ConfigDict,
    settings: ml_collections.ConfigDict,
    prompt: Array,
) -> dict[str, Any]:
    """What an arm makes of `settings.calls` sampler calls for one prompt."""
    of_training, of_noise = jax.random.split(key)
    fresh = settings.fresh
    if arm.kind not in KINDS:
        raise ValueError(f"kind = {arm.kind!r}; allowed are {KINDS}")
    if arm.kind == "network":
        params, curve = train(of_training, network_policy(task), task, arm, settings, prompt)
        images = network_policy(task).sample(params, of_noise, _class_prompt(), fresh).outputs[0]
        return measure(task, images, prompt, curve)
    policy = noise_policy(task)
    params, curve = policy.init(key), jnp.zeros((1,))
    if arm.kind == "noise":
        params, curve = train(of_training, policy, task, arm, settings, prompt)
    if arm.kind == "best_of_n":
        params = best_of_n(of_training, task, settings, prompt)
    images = policy.sample(params, of_noise, _prompts(), fresh).outputs[0]
    return {
        **measure(task, images, prompt, curve),
        "prior/mean_abs": jnp.mean(jnp.abs(params.mean)),
        "prior/std": jnp.mean(params.std),
    }


def noise_policy(task: Task) -> Policy:
    """A distribution over initial noise, the whole sampler behind it."""

    def generate(key: jax.Array, noise: Array, condition: diffusion.Condition) -> Array:
        denoise = lambda x, t: task.generator.denoise(task.generator.params, x, t, condition)
        x = flow.ddim(key, denoise, digits.SCHEDULE, noise, jnp.asarray(task.times), eta=task.eta)
        return denoise(x, task.times[-1]).clean

    return noise_prior.noise_prior_policy(1, SHAPE, generate)


def network_policy(task: Task) -> Policy:
    """The same sampler with its steps as decisions of the network (DDPO)."""
    chain = chains.ddim_chain(task.generator.denoise, digits.SCHEDULE, task.times, task.eta)
    return chains.denoising_policy(chain, lambda key: task.generator.params, SHAPE)


def train(
    key: jax.Array,
    policy: Policy,
    task: Task,
    arm: ml_collections.ConfigDict,
    settings: ml_collections.ConfigDict,
    prompt: Array,
) -> tuple[Any, Float[Array, "iterations"]]:
    """Parameters after `settings.calls` samples, and the mean reward of every iteration."""
    of_start, of_steps = jax.random.split(key)
    start = policy.init(of_start)
    on_noise = arm.kind == "noise"
    asked = _prompts() if on_noise else _class_prompt()
    step = make_update_step(make_loss(policy, arm), make_chain(arm), make_optimizer(arm))

    def iteration(state, i: Array):
        of_sample = sample_key(state)
        trajectories = policy.sample(state.params, of_sample, asked, arm.batch)
        clean = task.reward(trajectories.outputs, prompt)
        noise = jax.random.normal(jax.random.fold_in(of_sample, 1), clean.shape)
        signal = make_signal(
            clean + settings.reward_noise * noise,
            trajectories=trajectories,
            **(prior_inputs(policy, start, state.params, trajectories) if on_noise else {}),
        )
        return step.update(state, signal)[0], jnp.mean(clean)

    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
        begin = step.init(of_steps, start)
        state, curve = jax.lax.scan(iteration, begin, jnp.arange(settings.calls // arm.batch))
    return state.params, curve


def prior_inputs(
    policy: Policy, start: NoisePrior, params: NoisePrior, trajectories: Trajectories
) -> dict[str, Array]:
    """What the loss and the baseline of FIND read: the start's scores, the parameters."""
    both = jnp.concatenate([params.mean.reshape(1, -1), params.std.reshape(1, -1)], axis=1)
    return {
        "old_log_probs": policy.log_prob(start, trajectories).log_probs,
        "baseline_features": both,
    }


def make_loss(policy: Policy, arm: ml_collections.ConfigDict):
    """For noise the ratio is to the start ("recomputed", as released) or to the behaviour."""
    if arm.kind == "network":
        return policy_objective(policy, clip_low=arm.clip, clip_high=arm.clip)
    loss = policy_objective(
        policy, objective=arm.objective, old=arm.old, clip_low=arm.clip, clip_high=arm.clip
    )
    penalty = lambda params, signal: noise_prior.drift_penalty(params)
    return penalized(loss, penalty, arm.drift, "noise/drift")


def make_chain(arm: ml_collections.ConfigDict):
    """Rewards to advantages, `reward_weight` times."""
    if arm.kind == "network":
        return group_relative(baseline="leave_one_out", scale="none")
    scale = 1.0 / arm.reward_weight
    if arm.baseline_rate == 0:
        return direct(scale)
    return learned_baseline(2 * SIZE, learning_rate=arm.baseline_rate, scale=scale)


def make_optimizer(arm: ml_collections.ConfigDict) -> optax.GradientTransformation:
    """Adam; no deviation below 1e-4."""
    if arm.kind == "network":
        return optax.chain(optax.clip_by_global_norm(5.0), optax.adam(arm.learning_rate))
    return optax.chain(optax.adam(arm.learning_rate), noise_prior.keep_deviations())


def best_of_n(
    key: jax.Array, task: Task, settings: ml_collections.ConfigDict, prompt: Array
) -> NoisePrior:
    """All weight on the noise whose one image got the highest noisy reward."""
    policy = noise_policy(task)
    tried = policy.sample(policy.init(key), key, _prompts(), settings.calls)
    clean = task.reward(tried.outputs, prompt)[0]
    noise = jax.random.normal(jax.random.fold_in(key, 1), clean.shape)
    best = jnp.argmax(clean + settings.reward_noise * noise)
    return NoisePrior(tried.actions[:, best], jnp.zeros((1, *SHAPE)))


def _class_prompt() -> diffusion.Condition:
    """No class: the generator is not told what is wanted."""
    return diffusion.null(digits.condition(jnp.zeros((1,), jnp.int32)))


def _prompts() -> NoisePrompts:
    return NoisePrompts(jnp.zeros((1,), jnp.int32), _class_prompt())


# Measurement


def measure(task: Task, images: Array, prompt: Array, curve: Array) -> dict[str, Any]:
    """Clean reward, judge and diversity of fresh images."""
    reward = task.reward(images, prompt)
    flat = digits.flat(images)
    square = jnp.sum(jnp.square(flat), axis=1)
    square = square[:, None] + square[None, :] - 2.0 * flat @ flat.T
    distance = jnp.sqrt(jnp.maximum(square, 0.0))
    return {
        "curve/reward": curve,
        "reward": jnp.mean(reward),
        "judge": jnp.mean(task.judge(images, prompt)),
        "diversity": _pairs(distance, jnp.ones_like(reward)),
        "diversity/of_successes": _pairs(distance, reward),
    }


def _pairs(distance: Float[Array, "N N"], weights: Float[Array, "N"]) -> Float[Array, ""]:
    """Mean distance of different samples, each counted by its weight."""
    both = weights[:, None] * weights[None, :] * (1.0 - jnp.eye(len(weights)))
    return jnp.sum(both * distance) / jnp.maximum(jnp.sum(both), 1e-6)


def compare(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Adds gains over the base noise."""
    base = found["base"]
    for own in found.values():
        own["gain"] = own["reward"] - base["reward"]
        own["diversity/kept"] = own["diversity"] / base["diversity"]
    return found


def draw(config: ml_collections.ConfigDict, found, results, axes) -> None:
    """Clean training reward against sampler calls, mean over seeds, smoothed."""
    del results
    for name, own in found.items():
        curve = own["curve/reward"].mean(axis=0)
        if len(curve) < 2:
            continue
        batch = config.study.arms[name].batch
        width = max(1, 40 // batch)
        smooth = np.convolve(curve, np.ones(width) / width, mode="valid")
        axes.plot(batch * (np.arange(len(smooth)) + width), smooth, label=name)
    axes.set_xlabel("sampler calls")
    axes.set_ylabel("clean reward")
    axes.legend(fontsize=7)
