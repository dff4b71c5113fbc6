"""RL of consistency models against RL of the diffusion model itself (arXiv 2404.03673)."""

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float

from experiments import generator_checks
from experiments.generator_figures import CURVE_PANELS
from experiments.generator_studies import devices, digits, own_reward
from experiments.studies import Study
from jaxreward.losses.policy import policy_objective
from jaxreward.losses.relative import relative_objective
from jaxreward.policies import consistency
from jaxreward.policies import denoising_chain as chains
from jaxreward.rewards.compression import compressed_bytes
from jaxreward.search import accounting
from jaxreward.search.accounting import Spent
from jaxreward.training import check
from jaxreward.training.exits import ConfigError
from jaxreward.training.gradient import split_prompts
from jaxreward.training.step import make_update_step, sample_key
from jaxreward.transforms.prompt_statistics import prompt_statistics
from jaxreward.types import Policy, make_signal

SHAPE = (digits.SIDE, digits.SIDE, 1)
SHOWN_STEPS = (1, 2, 4, 8)
"""Numbers of sampling steps at which the trained models are compared."""
REWARDS = ("compressibility", "ink", "class")
JUDGED = 20
"""Samples of each class that are judged in the end."""


class Task(NamedTuple):
    """What one seed works with.

    Attributes:
      generator: the teacher.
      student: parameters of the consistency model.
      reward: `(images [P, G, H, W, C], labels [P, G]) -> [P, G]`, NaN where missing.
      judge: parameters of a classifier that no reward looks at.
    """

    generator: digits.Generator
    student: Any
    reward: own_reward.Reward
    judge: Any


def study(config: ml_collections.ConfigDict) -> Study:
    """The study of a config such as `configs/rlcm.py`."""
    settings, splits = config.study, digits.load(config.seed)
    base, mesh = digits.build(settings.generator), devices.mesh_over(settings.devices)
    data = splits.generator

    def prepare(key: jax.Array, tick: Callable[[], None]) -> tuple[Any, Any]:
        keys = jax.random.split(key, 5)
        teacher, _ = digits.pretrain(keys[0], base, settings.generator, *data, tick)
        return teacher.params, digits.distill(keys[1], teacher, settings.distillation, *data, tick)

    def run(key: jax.Array, given: Any, tick: Callable[[], None]) -> dict[str, dict[str, Any]]:
        keys, (params, student) = jax.random.split(key, 5), given
        generator = base._replace(params=params)
        fits = [
            digits.fit_classifier(k, digits.flat(part.images), part.labels)
            for k, part in zip(keys[2:4], (splits.reward, splits.judge))
        ]
        task = Task(generator, student, make_reward(settings.reward, fits[0]), fits[1])
        found = {
            name: train(keys[4], task, arm, settings, mesh, tick)
            for name, arm in settings.arms.items()
        }
        return compare(found, settings)

    return Study(
        run,
        draw=CURVE_PANELS,
        iterations=len(settings.arms) * settings.iterations,
        prepare=prepare,
        preparing=settings.generator.steps + settings.distillation.steps,
    )


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks what `experiments.generator_checks` cannot know: what keys mean together.

    Raises:
      ConfigError: naming the key, the value and what is allowed.
    """
    own = config.study
    if own_reward.is_own(own.reward):
        own_reward.check(config)
    else:
        check.choice(config, "study.reward", REWARDS + own_reward.FORMS)
    check.choice(config, "study.slow", own.arms)
    check.in_range(config, "study.tracker.min_count", 1, own.tracker.buffer)
    with generator_checks.named("study.generator"):
        digits.build(own.generator)
    prompts, samples = own.prompts_per_step, own.prompts_per_step * own.group_size
    if prompts % own.updates:
        raise ConfigError(
            f"config.study.prompts_per_step = {prompts}; allowed are multiples of updates = "
            f"{own.updates}"
        )
    if samples // own.updates % own.devices:
        raise ConfigError(
            f"config.study.devices = {own.devices}; allowed are divisors of "
            f"{samples // own.updates}, the samples of an update"
        )
    for name, arm in own.arms.items():
        path = f"study.arms.{name}"
        check.choice(config, f"{path}.sampler", ("consistency", "ddim"))
        check.choice(config, f"{path}.loss", ("clip", "rebel"))
        check.in_range(config, f"{path}.steps", 2, len(digits.distill_points()))
        check.at_least(config, "study.group_size", 2 if arm.loss == "rebel" else 1, "pairs")
        if arm.loss == "clip":
            check.positive(config, f"{path}.clip")


def make_reward(name: str, classifier: Any) -> own_reward.Reward:
    """"compressibility" (bytes saved, a black box), "ink", "class" (log-probability) or a user's."""
    if own_reward.is_own(name):
        return own_reward.make(name)
    if name == "compressibility":
        return lambda images, labels: -compressed_bytes(images)
    if name == "ink":
        return lambda images, labels: jnp.mean(jnp.clip(images, -1, 1), axis=(-3, -2, -1))
    if name == "class":
        return lambda images, labels: digits.log_prob_of(classifier, digits.flat(images), labels)
    raise ValueError(f"study.reward = {name!r}; allowed are {', '.join(REWARDS)}")


def make_policy(task: Task, arm: ml_collections.ConfigDict, mesh: Any = None) -> Policy:
    """The sampler of an arm as a policy that starts from the pretrained parameters.

    With a mesh all samples, and all their steps when they are scored, lie split over its devices.
    """
    times, generator = consistency.grid(arm.steps), task.generator
    options = dict(shared=True, place=functools.partial(devices.place_rows, mesh))
    if arm.sampler == "consistency":
        chain = consistency.consistency_chain(
            generator.function, digits.SCHEDULE, times, last_action=arm.last_action
        )
        return chains.denoising_policy(chain, lambda key: task.student, SHAPE, **options)
    chain = chains.ddim_chain(generator.denoise, digits.SCHEDULE, times, 1.0)
    return chains.denoising_policy(chain, lambda key: generator.params, SHAPE, **options)


def train(
    key: jax.Array,
    task: Task,
    arm: ml_collections.ConfigDict,
    settings: ml_collections.ConfigDict,
    mesh: Any = None,
    tick: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The arm's rewards at every iteration, what they cost, and what it is in the end."""
    policy = make_policy(task, arm, mesh)
    trusted = lambda images, asked: digits.accuracy(task.judge, digits.flat(images), asked)
    start, iteration = make_iteration(policy, task.reward, arm, settings, trusted)

    def counted(state, _):
        tick()
        return iteration(state)

    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
        begin = start(key)
        state, curves = jax.lax.scan(counted, begin, length=settings.iterations)
    labels = jnp.arange(digits.CLASSES, dtype=jnp.int32)
    shown = lambda params: policy.sample(
        params, jax.random.fold_in(key, 1), digits.condition(labels), JUDGED
    ).outputs
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), begin.params, state.params)
    before, images = jax.vmap(shown)(both)
    asked = jnp.broadcast_to(labels[:, None], images.shape[:2])
    used = spent(arm, settings)
    found = {
        "curve/reward": curves["reward"],
        "curve/trusted": curves["trusted"],
        "curve/budget": accounting.cost(used) * jnp.arange(1.0, settings.iterations + 1.0),
        "reward/final": jnp.nanmean(task.reward(images, asked)),
        "reward/missing": jnp.sum(curves["missing"]),
        "policy/log_ratio": jnp.mean(curves["log_ratio"]),
        "class_accuracy": trusted(images, asked),
        "samples/before": before[:, 0],
        "samples/after": images[:, 0],
        **calls(used),
        **accounting.as_metrics(accounting.times(used, settings.iterations)),
    }
    if arm.sampler == "consistency":
        found.update(_by_steps(jax.random.fold_in(key, 2), task, state.params))
    return found


def make_iteration(
    policy: Policy,
    reward: own_reward.Reward,
    arm: ml_collections.ConfigDict,
    settings: ml_collections.ConfigDict,
    trusted: Callable[[Array, Array], Array] | None = None,
) -> tuple[Callable, Callable]:
    """The start `(key) -> state` and one iteration: sampling, reward, credit and updates.

    The iteration maps a state to the next, and to the means of the `reward`, of the absolute
    `log_ratio` and, where it is given, of what a `trusted` judge says, and to how many rewards
    are `missing`.
    """
    step = make_update_step(
        _loss(policy, arm),
        prompt_statistics(digits.CLASSES, **settings.tracker),
        _optimizer(arm.learning_rate, settings),
    )
    labels = jnp.arange(settings.prompts_per_step, dtype=jnp.int32) % digits.CLASSES
    asked = jnp.broadcast_to(labels[:, None], (len(labels), settings.group_size))

    def iteration(state):
        prompts, key = digits.condition(labels), sample_key(state)
        trajectories = policy.sample(state.params, key, prompts, settings.group_size)
        rewards = reward(trajectories.outputs, asked)
        signal = make_signal(rewards, prompt_id=labels, trajectories=trajectories)
        state, signal = step.credit(state, signal)
        parts = split_prompts(signal, settings.updates)
        state, metrics = jax.lax.scan(step.learn, state, parts)
        found = {"reward": jnp.nanmean(rewards), "missing": own_reward.missing(rewards)}
        found["log_ratio"] = metrics["policy/log_ratio_abs_mean"]
        if trusted is not None:
            found["trusted"] = trusted(trajectories.outputs, asked)
        return state, found

    return lambda key: step.init(key, policy.init(key)), iteration


def _loss(policy: Policy, arm: ml_collections.ConfigDict):
    if arm.loss == "rebel":
        return relative_objective(policy)
    return policy_objective(policy, clip_low=arm.clip, clip_high=arm.clip)


def _optimizer(learning_rate: Any, settings: ml_collections.ConfigDict):
    """Adam behind a clip; its rate falls as if three runs would end at 0, so two thirds are left."""
    updates = 3 * settings.iterations * settings.updates
    schedule = optax.linear_schedule(learning_rate, 0.0, updates)
    return optax.chain(optax.clip_by_global_norm(5.0), optax.adam(schedule))


def spent(arm: ml_collections.ConfigDict, settings: ml_collections.ConfigDict) -> Spent:
    """What one iteration spends: every action is scored, and differentiated, once."""
    actions = arm.steps - 1 + int(arm.last_action)
    each = Spent(arm.steps + actions, decodes=1, reward_calls=1, backward_calls=actions)
    return accounting.times(each, settings.prompts_per_step * settings.group_size)


def calls(iteration: Spent) -> dict[str, float]:
    """Network calls, sampling and scoring, and reward calls of one iteration."""
    return {
        "calls/network": float(iteration.network_calls),
        "calls/reward": float(iteration.reward_calls),
    }


def _by_steps(key: jax.Array, task: Task, params: Any) -> dict[str, Array]:
    """The reward of a consistency model at other numbers of steps."""
    labels = jnp.repeat(jnp.arange(digits.CLASSES, dtype=jnp.int32), JUDGED)
    found = {}
    for count in SHOWN_STEPS:
        times, of_start = consistency.grid(count), jax.random.fold_in(key, count)
        x = jax.random.normal(of_start, (len(labels), *SHAPE))
        function = lambda x, t: task.generator.function(params, x, t, digits.condition(labels))
        images = consistency.sample(key, function, digits.SCHEDULE, x, times)
        found[f"reward/at_{count}_steps"] = jnp.nanmean(task.reward(images, labels))
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
        needed = first.astype(jnp.float32) * per_iteration
        own["calls/to_goal"] = jnp.where(jnp.isfinite(goal), needed, jnp.nan)
        own["goal_reached"] = jnp.any(there).astype(jnp.float32)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), found)


def _smooth(curve: Float[Array, "steps"], window: int = 5) -> Float[Array, "steps"]:
    """Mean of the last `window` entries up to each; NaN where there are none but NaN."""
    there = jnp.isfinite(curve)

    def last(values: Float[Array, "steps"]) -> Float[Array, "steps"]:
        total = jnp.cumsum(values)
        return total - jnp.concatenate([jnp.zeros((min(window, len(curve)),)), total[:-window]])

    return last(jnp.where(there, curve, 0.0)) / last(there.astype(jnp.float32))
