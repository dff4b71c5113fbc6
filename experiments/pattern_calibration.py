"""Reward models of several strengths, with and without patterns of reasoning (arXiv 2505.22653).

A response has an answer (features, all that the reward model sees) and a reasoning, of which only
the pattern reward is known. Reward models are regressed on which of two answers is better, from
few to many pairs; a policy over each prompt's candidates then learns from their scores, lifted by
patterns where they are low, or not.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float

from experiments.studies import Study
from jaxreward.losses.policy import policy_objective
from jaxreward.losses.regularization import exact_kl, penalized
from jaxreward.policies import tabular
from jaxreward.training import check, fit
from jaxreward.training.step import make_update_step, sample_key
from jaxreward.transforms import advantage, base, calibration
from jaxreward.types import Signal, make_signal

WITHOUT, RELATED, UNRELATED = "", "_patterns", "_unrelated"
"""What an arm's name ends with."""


class Task(NamedTuple):
    """Candidates `[P, C]`: features of the answer, gold quality in (0, 1), patterns in [0, 1]."""

    features: Float[Array, "P C F"]
    gold: Float[Array, "P C"]
    related: Float[Array, "P C"]
    unrelated: Float[Array, "P C"]


def make_study(config: ml_collections.ConfigDict) -> Study:
    """The study of `config.study`."""
    settings = config.study
    names = ("prompts", "features", "width", "sharpness", "batch_size", "pairs", "steps",
             "learning_rate", "model_learning_rate")  # fmt: skip
    models = (f"models.{name}" for name in settings.models)
    check.positive(config, *(f"study.{name}" for name in (*names, *models)))
    check.at_least(config, "study.candidates", 2)
    check.at_least(config, "study.group_size", 2, "a group baseline")
    check.at_least(config, "study.kl_coefficient", 0)
    check.in_range(config, "study.correlation", 0, 1)

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        task_key, model_key, policy_key = jax.random.split(key, 3)
        teacher = _init(jax.random.fold_in(task_key, 0), settings.features, settings.width)
        task = make_task(task_key, teacher, settings)
        found = {"start": {"gold": jnp.mean(task.gold)}}
        for name in settings.models:
            params = train_model(model_key, teacher, settings.models[name], settings)
            scores = jnp.clip(_score(params, task.features), 0.0, 1.0)
            measured = {
                "pair_accuracy": pair_accuracy(scores, task.gold),
                "score_sd": jnp.std(scores),
                "below_half": jnp.mean((scores < 0.5).astype(jnp.float32)),
            }
            for suffix in (WITHOUT, RELATED, UNRELATED):
                own = _learn(policy_key, task, scores, suffix, settings)
                found[name + suffix] = {**own, **measured}
        return found

    return Study(run)


def make_task(key: jax.Array, teacher: Any, settings) -> Task:
    """Patterns are `correlation` parts of the gold's rank among a prompt's candidates."""
    keys = jax.random.split(key, 3)
    shape = (settings.prompts, settings.candidates)
    features = jax.random.normal(keys[0], shape + (settings.features,), jnp.float32)
    gold = jax.nn.sigmoid(settings.sharpness * _score(teacher, features))
    rank = jnp.argsort(jnp.argsort(gold, axis=1), axis=1).astype(jnp.float32)
    rank = rank / (settings.candidates - 1)
    noise = jax.random.uniform(keys[1], shape, jnp.float32)
    mixed = settings.correlation * rank + (1.0 - settings.correlation) * noise
    unrelated = jax.random.uniform(keys[2], shape, jnp.float32)
    return Task(features, gold, mixed, unrelated)


def train_model(key: jax.Array, teacher: Any, steps: int, settings) -> Any:
    """A reward model regressed on 1 for the better answer of each pair and 0 for the other."""
    keys = jax.random.split(key, 3)
    shape = (settings.pairs, 2, settings.features)
    features = jax.random.normal(keys[0], shape, jnp.float32)
    quality = _score(teacher, features)
    labels = (quality >= jnp.max(quality, axis=1, keepdims=True)).astype(jnp.float32)
    data = {"features": features, "labels": labels}

    def loss(params, batch):
        return jnp.mean((_score(params, batch["features"]) - batch["labels"]) ** 2)

    sample = lambda key: fit.rows(data, key, settings.batch_size)
    start = _init(keys[1], settings.features, settings.width)
    optimizer = optax.adam(settings.model_learning_rate)
    return fit.fit(keys[2], start, loss, sample, optimizer, steps=steps)[0]


def pair_accuracy(scores: Float[Array, "P C"], gold: Float[Array, "P C"]) -> Float[Array, ""]:
    """Share of a prompt's pairs of candidates that the scores order as the gold does."""
    agree = (scores[:, :, None] > scores[:, None]) == (gold[:, :, None] > gold[:, None])
    other = ~jnp.eye(scores.shape[1], dtype=bool)[None]
    other = jnp.broadcast_to(other, agree.shape)
    return jnp.sum(agree & other, dtype=jnp.float32) / jnp.sum(other, dtype=jnp.float32)


def _learn(key: jax.Array, task: Task, scores: Array, suffix: str, settings) -> dict[str, Array]:
    prompts, candidates = scores.shape
    policy = tabular.tabular_policy(prompts, candidates)
    stages = [] if suffix == WITHOUT else [calibration.lift_low_rewards("patterns")]
    chain = base.chain(*stages, advantage.rloo(), provided=("trajectories", "aux/patterns"))
    patterns = {WITHOUT: task.related, RELATED: task.related, UNRELATED: task.unrelated}[suffix]
    ids = jnp.arange(prompts, dtype=jnp.int32)
    uniform = jnp.full(scores.shape, -jnp.log(jnp.float32(candidates)))

    def kl_to_start(params: Any, signal: Signal) -> Float[Array, ""]:
        del signal
        return jnp.mean(exact_kl(tabular.table_log_distribution(params, ids), uniform))

    objective = policy_objective(policy, objective="reinforce", normalize="token")
    loss = penalized(objective, kl_to_start, settings.kl_coefficient, "policy/kl")
    rate = settings.learning_rate * prompts  # every prompt has parameters of its own
    step = make_update_step(loss, chain, optax.sgd(rate))

    def one(state, _):
        own = policy.sample(state.params, sample_key(state), ids, settings.group_size)
        pick = lambda table: jnp.take_along_axis(table, own.actions, axis=1)
        signal = make_signal(pick(scores), trajectories=own, patterns=pick(patterns))
        return step.update(state, signal)[0], None

    state = step.init(key, policy.init(key))
    state, _ = jax.lax.scan(one, state, None, length=settings.steps)
    probability = jax.nn.softmax(state.params, axis=-1)
    return {"gold": jnp.mean(jnp.sum(probability * task.gold, axis=-1))}


def _init(key: jax.Array, features: int, width: int) -> dict[str, Array]:
    first, second = jax.random.split(key)
    scale = lambda n: 1.0 / jnp.sqrt(jnp.float32(n))
    return {
        "first": jax.random.normal(first, (features, width), jnp.float32) * scale(features),
        "bias": jnp.zeros((width,), jnp.float32),
        "second": jax.random.normal(second, (width,), jnp.float32) * scale(width),
        "offset": jnp.zeros((), jnp.float32),
    }


def _score(params: dict[str, Array], features: Float[Array, "*rows F"]) -> Float[Array, "*rows"]:
    bias = params["bias"].reshape((1,) * (features.ndim - 1) + (-1,))
    hidden = jnp.tanh(features @ params["first"] + bias)
    return hidden @ params["second"] + params["offset"]
