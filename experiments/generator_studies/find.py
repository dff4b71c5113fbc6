"""The distribution of a sampler's initial noise, learned for one prompt (FIND, arXiv 2407.19453)."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments import generator_checks
from experiments.generator_figures import CURVE_PANELS
from experiments.generator_studies import devices, digits, own_reward
from experiments.generator_studies.find_report import compare, correlation, draw, measure
from experiments.studies import Study
from jaxreward.losses.policy import policy_objective
from jaxreward.losses.regularization import penalized
from jaxreward.networks import diffusion
from jaxreward.policies import consistency, flow, noise_prior
from jaxreward.policies import denoising_chain as chains
from jaxreward.policies.noise_prior import NoisePrior, NoisePrompts
from jaxreward.search import accounting
from jaxreward.search.accounting import Spent
from jaxreward.search.noise_optimization import best_so_far
from jaxreward.training import check
from jaxreward.training.step import make_update_step, sample_key
from jaxreward.transforms.advantage import direct, group_relative
from jaxreward.transforms.learned_baseline import learned_baseline
from jaxreward.types import Policy, Trajectories, make_signal

SHAPE = (digits.SIDE, digits.SIDE, 1)
SIZE = digits.SIDE**2
KINDS = ("base", "best_of_n", "noise", "network")
LEARNING = ("noise", "network")
MISSING = "reward/missing"
"""Metric: how many of the rewards that an arm learned or searched by do not exist, of all wishes."""
SHOWN = 3
"""Images of each wish in the figure."""


class Task(NamedTuple):
    """What one seed works with.

    Attributes:
      generator: knows digits, and is never told which one is wanted.
      eta: of its stochastic sampler.
      times: of the sampler, descending.
      reward: `(images [..., H, W, C], prompt) -> [...]`, a black box without noise; NaN where missing.
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
    wanted, mesh = jnp.asarray(settings.wishes, jnp.int32), devices.mesh_over(settings.devices)
    bounds = ink_bounds(data)

    def prepare(key: jax.Array, tick: Callable[[], None]) -> Any:
        of_teacher = jax.random.split(key, 4)[0]
        return digits.pretrain(of_teacher, base, settings.generator, *data, tick)[0].params

    def run(key: jax.Array, params: Any, tick: Callable[[], None]) -> dict[str, dict[str, Any]]:
        keys, generator = jax.random.split(key, 4), base._replace(params=params)
        fits = [
            digits.fit_classifier(k, digits.flat(part.images), part.labels)
            for k, part in zip(keys[1:3], (splits.reward, splits.judge))
        ]
        probability = [
            lambda images, prompt, own=own: attribute(own, bounds, images, prompt) for own in fits
        ]
        reward = make_reward(settings, probability[0])
        times = consistency.grid(settings.sampler_steps)
        task = Task(generator, settings.eta, times, reward, probability[1])
        found = {}
        for name, arm in settings.arms.items():
            one = lambda prompt, i, arm=arm: run_arm(
                jax.random.fold_in(keys[3], i), task, arm, settings, prompt, mesh, tick
            )
            each, images = devices.vmap_over(mesh, one)(wanted, jnp.arange(len(wanted)))
            found[name] = {metric: over_wishes(metric)(own, axis=0) for metric, own in each.items()}
            found[name]["samples/after"] = images[:, :SHOWN].reshape((-1,) + images.shape[2:])
        return compare(found)

    learning = [arm for arm in settings.arms.values() if arm.kind in LEARNING]
    ticks = sum(samples(arm, settings) // arm.batch for arm in learning)
    steps, panels = settings.generator.steps, (draw, *CURVE_PANELS)
    return Study(run, draw=panels, iterations=ticks, prepare=prepare, preparing=steps)


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


def make_reward(settings: ml_collections.ConfigDict, probability: Callable) -> own_reward.Reward:
    """The probability in steps, or a user's own reward of the image and the wanted class."""
    if "reward" in settings:
        return own_reward.make(settings.reward)
    return lambda images, prompt: quantized(probability(images, prompt), settings.levels)


def over_wishes(metric: str) -> Callable[..., Array]:
    """How one number is made of those of the wishes: a curve may miss some of their rewards."""
    return jnp.sum if metric == MISSING else jnp.nanmean if metric.startswith("curve/") else jnp.mean


def quantized(value: Float[Array, "..."], levels: int) -> Float[Array, "..."]:
    """Rounded to `levels` equal steps of [0, 1], so without gradient."""
    return jnp.round(value * levels) / levels


# Arms


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks what `experiments.generator_checks` cannot know: what keys mean together.

    Raises:
      ConfigError: naming the key, the value and what is allowed.
    """
    check.in_range(config, "study.wishes", 0, digits.CLASSES - 1)
    check.in_range(config, "study.sampler_steps", 2, len(digits.distill_points()))
    check.in_range(config, "study.eta", 0, 1)
    with generator_checks.named("study.generator"):
        digits.build(config.study.generator)
    count = len(config.study.wishes)
    splits = lambda devices: count % devices == 0
    check.that(config, "study.devices", splits, f"a divisor of {count}, the number of wishes")
    for name, arm in config.study.arms.items():
        path = f"study.arms.{name}"
        check.choice(config, f"{path}.kind", KINDS)
        if arm.kind == "network":
            check.choice(config, f"{path}.equal", ("calls", "cost"))
            check.in_range(config, f"{path}.eta", 0, 1, "(]")
            check.at_least(config, f"{path}.batch", 2, "a group baseline")
        if arm.kind == "noise":
            check.choice(config, f"{path}.objective", ("clip_always", "clip", "reinforce"))
            check.choice(config, f"{path}.old", ("behaviour", "recomputed"))
        if arm.kind in LEARNING:
            check.in_range(config, f"{path}.batch", 1, affordable(arm, config.study))
    if "reward" in config.study:
        own_reward.check(config)


def run_arm(
    key: jax.Array,
    task: Task,
    arm: ml_collections.ConfigDict,
    settings: ml_collections.ConfigDict,
    prompt: Array,
    mesh: Any = None,
    tick: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Any], Array]:
    """What an arm makes of its sampler calls for one prompt, and fresh images."""
    of_training, of_noise = jax.random.split(key)
    on_network = arm.kind == "network"
    policy = network_policy(task, arm.eta) if on_network else noise_policy(task)
    asked = _class_prompt() if on_network else _prompts()
    params, curves, total = policy.init(key), {}, Spent()
    if arm.kind in LEARNING:
        params, curves = train(of_training, policy, task, arm, settings, prompt, mesh, tick)
        total = accounting.times(spent(arm, settings), samples(arm, settings))
    if arm.kind == "best_of_n":
        params, curves = best_of_n(of_training, task, arm, settings, prompt)
        total = accounting.times(spent(arm, settings), settings.calls)
    images = policy.sample(params, of_noise, asked, settings.fresh).outputs[0]
    judged = measure(images, task.reward(images, prompt), task.judge(images, prompt))
    found = {**judged, **curves, **accounting.as_metrics(total)}
    if not on_network:
        found["prior/mean_abs"] = jnp.mean(jnp.abs(params.mean))
        found["prior/std"] = jnp.mean(params.std)
    if arm.kind == "base":
        found["reward/decided_by_noise"] = decided_by_noise(of_noise, task, settings, prompt)
    return found, images


def spent(arm: ml_collections.ConfigDict, settings: ml_collections.ConfigDict) -> Spent:
    """What one sample costs; learning the network scores and differentiates every decision."""
    steps = settings.sampler_steps
    scored = steps - 1 if arm.kind == "network" else 0
    return Spent(steps + scored, decodes=1, reward_calls=1, backward_calls=scored)


def samples(arm: ml_collections.ConfigDict, settings: ml_collections.ConfigDict) -> int:
    """Samples of a learning arm: what it can afford, in whole batches."""
    return affordable(arm, settings) // arm.batch * arm.batch


def affordable(arm: ml_collections.ConfigDict, settings: ml_collections.ConfigDict) -> int:
    """`settings.calls`, or as many samples as cost what these cost FIND."""
    if arm.kind != "network" or arm.equal != "cost":
        return settings.calls
    paid = settings.calls * settings.sampler_steps
    return int(paid / accounting.cost(spent(arm, settings)))


def noise_policy(task: Task) -> Policy:
    """A distribution over initial noise, the whole sampler behind it."""
    whole = lambda key, noise, condition: generate(task, key, noise, condition)
    return noise_prior.noise_prior_policy(1, SHAPE, whole)


def generate(task: Task, key: jax.Array, noise: Array, condition: diffusion.Condition) -> Array:
    """Images of the frozen sampler."""
    denoise = lambda x, t: task.generator.denoise(task.generator.params, x, t, condition)
    x = flow.ddim(key, denoise, digits.SCHEDULE, noise, jnp.asarray(task.times), eta=task.eta)
    return denoise(x, task.times[-1]).clean


def network_policy(task: Task, eta: float) -> Policy:
    """The stochastic sampler with its steps as decisions of the network (DDPO)."""
    chain = chains.ddim_chain(task.generator.denoise, digits.SCHEDULE, task.times, eta)
    return chains.denoising_policy(chain, lambda key: task.generator.params, SHAPE, shared=True)


def train(
    key: jax.Array,
    policy: Policy,
    task: Task,
    arm: ml_collections.ConfigDict,
    settings: ml_collections.ConfigDict,
    prompt: Array,
    mesh: Any = None,
    tick: Callable[[], None] = lambda: None,
) -> tuple[Any, dict[str, Array]]:
    """Parameters after `samples(arm, settings)` samples, and the curves of training.

    An iteration of which no reward came repeats the reward of the one before.
    """
    start, iteration = make_iteration(policy, task, arm, settings, prompt, mesh)
    count = samples(arm, settings) // arm.batch

    def counted(carry, _):
        tick()
        return iteration(carry)

    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
        (state, _), (reward, seen) = jax.lax.scan(counted, start(key), length=count)
    paid = accounting.cost(spent(arm, settings)) * arm.batch
    budget = paid * jnp.arange(1.0, count + 1.0)
    curves = {"curve/budget": budget, "curve/reward": own_reward.carried(reward)}
    return state.params, {**curves, "curve/trusted": seen[0], MISSING: jnp.sum(seen[1])}


def make_iteration(
    policy: Policy,
    task: Task,
    arm: ml_collections.ConfigDict,
    settings: ml_collections.ConfigDict,
    prompt: Array,
    mesh: Any = None,
) -> tuple[Callable, Callable]:
    """The start `(key) -> carry` and one iteration: sampling, reward, credit and update.

    The iteration maps a carry (state and remembered rollouts) to the next, and to the mean clean
    reward and (the judge's mean, the number of rewards that are missing).
    """
    on_noise = arm.kind == "noise"
    kept = arm.buffer if on_noise else 1
    asked = _prompts() if on_noise else _class_prompt()
    step = make_update_step(make_loss(policy, arm), make_chain(arm), make_optimizer(arm))
    place = lambda tree: devices.place_each(mesh, tree)

    def start(key: jax.Array):
        of_start, of_steps = jax.random.split(key)
        state = step.init(of_steps, policy.init(of_start))
        one = jax.eval_shape(lambda: policy.sample(state.params, key, asked, arm.batch))
        return state, forget(one, kept)

    def iteration(carry):
        state, past = carry
        of_sample = sample_key(state)
        trajectories = place(policy.sample(state.params, of_sample, asked, arm.batch))
        clean = task.reward(trajectories.outputs, prompt)
        noise = jax.random.normal(jax.random.fold_in(of_sample, 1), clean.shape)
        past = remember(past, Rollouts(clean + settings.reward_noise * noise, trajectories))
        used = oldest_rewards(past, trajectories) if on_noise and arm.as_released else past
        inputs = prior_inputs(policy, state.params, used.trajectories) if on_noise else {}
        rows = used.trajectories.mask[:, :, 0]
        signal = make_signal(used.rewards, rows, trajectories=used.trajectories, **inputs)
        seen = jnp.mean(task.judge(trajectories.outputs, prompt)), own_reward.missing(clean)
        return (place(step.update(state, signal)[0]), past), (jnp.nanmean(clean), seen)

    return start, iteration


class Rollouts(NamedTuple):
    """The last rollouts, oldest first; the mask says which exist yet."""

    rewards: Float[Array, "1 G"]
    trajectories: Trajectories


def forget(one: Trajectories, kept: int) -> Rollouts:
    """No rollouts, with room for `kept` of the shape of `one`, outputs left out."""
    many = lambda leaf: jnp.zeros((leaf.shape[0], kept * leaf.shape[1]) + leaf.shape[2:], leaf.dtype)
    log_probs = many(one.log_probs)
    prompts = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), one.prompts)
    mask = many(one.mask)
    empty = Trajectories(prompts, many(one.actions), log_probs, log_probs, mask)
    return Rollouts(log_probs[:, :, 0], empty)


def remember(past: Rollouts, new: Rollouts) -> Rollouts:
    """`new` in the place of the oldest."""
    t = new.trajectories
    count = new.rewards.shape[1]
    push = lambda old, own: jnp.concatenate([old[:, count:], own], axis=1)
    pushed = [
        push(getattr(past.trajectories, name), getattr(t, name))
        for name in ("actions", "log_probs", "mask")
    ]
    kept = Trajectories(t.prompts, pushed[0], pushed[1], pushed[1], pushed[2])
    return Rollouts(push(past.rewards, new.rewards), kept)


def oldest_rewards(past: Rollouts, newest: Trajectories) -> Rollouts:
    """The newest trajectories with the oldest reward in the buffer: the released code's mistake."""
    first = jnp.argmax(past.trajectories.mask[:, :, 0], axis=1)
    oldest = jnp.take_along_axis(past.rewards, first[:, None], axis=1)
    return Rollouts(jnp.broadcast_to(oldest, newest.mask.shape[:2]), newest)


def prior_inputs(
    policy: Policy, params: NoisePrior, trajectories: Trajectories
) -> dict[str, Array]:
    """What the loss and the baseline of FIND read: the start's scores, the parameters."""
    start = NoisePrior(jnp.zeros_like(params.mean), jnp.ones_like(params.std))
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
    key: jax.Array, task: Task, arm: Any, settings: ml_collections.ConfigDict, prompt: Array
) -> tuple[NoisePrior, dict[str, Array]]:
    """All weight on the noise whose one image got the highest noisy reward; the search's curves."""
    policy = noise_policy(task)
    tried = policy.sample(policy.init(key), key, _prompts(), settings.calls)
    clean = task.reward(tried.outputs, prompt)[0]
    noise = jax.random.normal(jax.random.fold_in(key, 1), clean.shape)
    order = best_so_far(-(clean + settings.reward_noise * noise))
    curves = {
        "curve/budget": accounting.cost(spent(arm, settings)) * jnp.arange(1.0, settings.calls + 1.0),
        "curve/reward": clean[order],
        "curve/trusted": task.judge(tried.outputs, prompt)[0, order],
        MISSING: own_reward.missing(clean),
    }
    return NoisePrior(tried.actions[:, order[-1]], jnp.zeros((1, *SHAPE))), curves


def _class_prompt() -> diffusion.Condition:
    """No class: the generator is not told what is wanted."""
    return diffusion.null(digits.condition(jnp.zeros((1,), jnp.int32)))


def _prompts() -> NoisePrompts:
    return NoisePrompts(jnp.zeros((1,), jnp.int32), _class_prompt())


def decided_by_noise(
    key: jax.Array, task: Task, settings: ml_collections.ConfigDict, prompt: Array
) -> Float[Array, ""]:
    """Correlation of the rewards of two samples from the same initial noise.

    The share of the reward's variance that any distribution over that noise can act on.
    """
    noise = jax.random.normal(key, (settings.fresh, *SHAPE))
    condition = chains.repeat(_class_prompt(), settings.fresh)
    one = lambda i: task.reward(
        generate(task, jax.random.fold_in(key, i), noise, condition), prompt
    )
    return correlation(*jax.lax.map(one, jnp.arange(1, 3)))
