"""RL of consistency models against RL of the diffusion model itself (arXiv 2404.03673)."""

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
from jaxreward.losses.relative import relative_objective
from jaxreward.policies import consistency
from jaxreward.policies import denoising_chain as chains
from jaxreward.rewards.compression import compressed_bytes
from jaxreward.training.step import make_update_step, sample_key, split_prompts
from jaxreward.transforms.prompt_statistics import prompt_statistics
from jaxreward.types import Policy, make_signal

SHAPE = (digits.SIDE, digits.SIDE, 1)
SHOWN_STEPS = (1, 2, 4, 8)
"""Numbers of sampling steps at which the trained models are compared."""


class Task(NamedTuple):
    """What one seed works with.

    Attributes:
      generator: the teacher.
      student: parameters of the consistency model.
      reward: `(images [P, G, H, W, C], labels [P, G]) -> [P, G]`.
      judge: parameters of a classifier that no reward looks at.
    """

    generator: digits.Generator
    student: Any
    reward: Callable[[Array, Array], Array]
    judge: Any


def study(config: ml_collections.ConfigDict) -> Study:
    """The study of a config such as `configs/rlcm.py`."""
    settings, splits = config.study, digits.load(config.seed)
    base = digits.build(settings.generator)
    data = splits.generator

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        keys = jax.random.split(key, 5)
        generator, _ = digits.pretrain(keys[0], base, settings.generator, *data)
        student = digits.distill(keys[1], generator, settings.distillation, *data)
        fits = [
            digits.fit_classifier(k, digits.flat(part.images), part.labels)
            for k, part in zip(keys[2:4], (splits.reward, splits.judge))
        ]
        task = Task(generator, student, make_reward(settings.reward, fits[0]), fits[1])
        found = {
            name: train(keys[4], task, arm, settings) for name, arm in settings.arms.items()
        }
        return compare(found, settings)

    return Study(run, draw=draw)


def make_reward(name: str, classifier: Any) -> Callable[[Array, Array], Array]:
    """"compressibility" (bytes saved, a black box), "ink" or "class" (log-probability)."""
    if name == "compressibility":
        return lambda images, labels: -compressed_bytes(images)
    if name == "ink":
        return lambda images, labels: jnp.mean(jnp.clip(images, -1, 1), axis=(-3, -2, -1))
    if name == "class":
        return lambda images, labels: digits.log_prob_of(classifier, digits.flat(images), labels)
    raise ValueError(f"study.reward = {name!r}; allowed are 'compressibility', 'ink', 'class'")


def make_policy(task: Task, arm: ml_collections.ConfigDict) -> Policy:
    """The sampler of an arm as a policy that starts from the pretrained parameters."""
    times, generator = consistency.grid(arm.steps), task.generator
    if arm.sampler == "consistency":
        chain = consistency.consistency_chain(
            generator.function, digits.SCHEDULE, times, last_action=arm.last_action
        )
        return chains.denoising_policy(chain, lambda key: task.student, SHAPE)
    chain = chains.ddim_chain(generator.denoise, digits.SCHEDULE, times, 1.0)
    return chains.denoising_policy(chain, lambda key: generator.params, SHAPE)


def train(
    key: jax.Array, task: Task, arm: ml_collections.ConfigDict, settings: ml_collections.ConfigDict
) -> dict[str, Any]:
    """The arm's rewards at every iteration, what they cost, and what it is in the end."""
    policy = make_policy(task, arm)
    step = make_update_step(
        _loss(policy, arm),
        prompt_statistics(digits.CLASSES, **settings.tracker),
        _optimizer(arm.learning_rate, settings),
    )
    labels = jnp.arange(digits.CLASSES, dtype=jnp.int32)
    prompts, group = digits.condition(labels), settings.group_size
    asked = jnp.broadcast_to(labels[:, None], (digits.CLASSES, group))

    def iteration(state, _):
        trajectories = policy.sample(state.params, sample_key(state), prompts, group)
        rewards = task.reward(trajectories.outputs, asked)
        signal = make_signal(rewards, trajectories=trajectories)
        state, signal = step.credit(state, signal)
        parts = split_prompts(signal, settings.updates)
        state, metrics = jax.lax.scan(step.learn, state, parts)
        return state, (jnp.mean(rewards), metrics["policy/log_ratio_abs_mean"])

    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
        start = step.init(key, policy.init(key))
        state, (rewards, ratio) = jax.lax.scan(iteration, start, length=settings.iterations)
    images = policy.sample(state.params, jax.random.fold_in(key, 1), prompts, 20).outputs
    asked = jnp.broadcast_to(labels[:, None], images.shape[:2])
    found = {
        "curve/reward": rewards,
        "reward/final": jnp.mean(task.reward(images, asked)),
        "policy/log_ratio": jnp.mean(ratio),
        "class_accuracy": digits.accuracy(task.judge, digits.flat(images), asked),
        **calls(arm, settings),
    }
    if arm.sampler == "consistency":
        found.update(_by_steps(jax.random.fold_in(key, 2), task, state.params))
    return found


def _loss(policy: Policy, arm: ml_collections.ConfigDict):
    if arm.loss == "rebel":
        return relative_objective(policy)
    return policy_objective(policy, clip_low=arm.clip, clip_high=arm.clip)


def _optimizer(learning_rate: Any, settings: ml_collections.ConfigDict):
    """Adam behind a clip, its rate falling towards a third of what three runs would end at."""
    updates = 3 * settings.iterations * settings.updates
    schedule = optax.linear_schedule(learning_rate, 0.0, updates)
    return optax.chain(optax.clip_by_global_norm(5.0), optax.adam(schedule))


def calls(arm: ml_collections.ConfigDict, settings: ml_collections.ConfigDict) -> dict[str, float]:
    """What one iteration spends: network calls of sampling and of scoring, and reward calls.

    Scoring evaluates the network once for each action, and differentiates it.
    """
    samples = digits.CLASSES * settings.group_size
    actions = arm.steps - 1 + int(arm.last_action)
    return {
        "calls/network": float(samples * (arm.steps + actions)),
        "calls/reward": float(samples),
    }


def _by_steps(key: jax.Array, task: Task, params: Any) -> dict[str, Array]:
    """The reward of a consistency model at other numbers of steps."""
    labels = jnp.repeat(jnp.arange(digits.CLASSES, dtype=jnp.int32), 20)
    found = {}
    for count in SHOWN_STEPS:
        times, of_start = consistency.grid(count), jax.random.fold_in(key, count)
        x = jax.random.normal(of_start, (len(labels), *SHAPE))
        function = lambda x, t: task.generator.function(params, x, t, digits.condition(labels))
        images = consistency.sample(key, function, digits.SCHEDULE, x, times)
        found[f"reward/at_{count}_steps"] = jnp.mean(task.reward(images, labels))
    return found


def compare(found: dict[str, dict[str, Any]], settings: ml_collections.ConfigDict):
    """Adds what compares arms: rewards at the network calls that the cheapest full run spends."""
    budget = min(own["calls/network"] for own in found.values()) * settings.iterations
    goal = _smooth(found[settings.slow]["curve/reward"])[-1]
    for own in found.values():
        curve, per_iteration = _smooth(own["curve/reward"]), own["calls/network"]
        reached = max(int(budget / per_iteration), 1)
        own["reward/start"] = own["curve/reward"][0]
        own["reward/end_of_training"] = curve[-1]
        own["reward/at_equal_calls"] = curve[reached - 1]
        own["gain/at_equal_calls"] = curve[reached - 1] - own["curve/reward"][0]
        own["gain/end_of_training"] = curve[-1] - own["curve/reward"][0]
        there = curve >= goal
        first = jnp.where(jnp.any(there), jnp.argmax(there) + 1, settings.iterations)
        own["calls/to_goal"] = first.astype(jnp.float32) * per_iteration
        own["goal_reached"] = jnp.any(there).astype(jnp.float32)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), found)


def _smooth(curve: Float[Array, "steps"], window: int = 5) -> Float[Array, "steps"]:
    """Mean of the last `window` entries up to each."""
    total = jnp.cumsum(curve)
    before = jnp.concatenate([jnp.zeros((window,)), total[:-window]])
    count = jnp.minimum(jnp.arange(len(curve)) + 1, window).astype(jnp.float32)
    return (total - before) / count


def draw(config: ml_collections.ConfigDict, found, results, axes) -> None:
    """Training reward against network calls, mean over seeds."""
    del results
    for name, own in found.items():
        curve = own["curve/reward"].mean(axis=0)
        spent = own["calls/network"].mean() * np.arange(1, len(curve) + 1)
        axes.plot(spent, curve, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("network calls")
    axes.set_ylabel(f"training reward ({config.study.reward})")
    axes.legend(fontsize=7)
