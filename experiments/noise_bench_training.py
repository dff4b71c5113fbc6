"""The noise bench's runs: one noise for each member, one remedy for each arm, one program."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from experiments import digits_training
from experiments.digits_training import Problem
from jaxreward.training.config import build
from jaxreward.training.exits import ConfigError
from jaxreward.transforms import advantage, base
from jaxreward.transforms.base import RewardTransform, Spec
from jaxreward.types import Signal

CALL = 50  # updates between two lines of progress

VERDICTS = 3
"""Verifiers of the disagreement estimate: the reward's and further draws of the same noise."""

PROVIDED = digits_training.PROVIDED + tuple(
    f"aux/{name}"
    for name in (
        "noise", "answer_id", "reference_id", "output_id", "hit", "second",
        "by_prompt_false_positive", "by_prompt_false_negative",
        "by_sample_false_positive", "by_sample_false_negative",
    )
)  # fmt: skip


def one_of(noises: list[RewardTransform]) -> RewardTransform:
    """The noise with number `aux["noise"]`, so that runs with different noises share a program.

    Also sets `aux["verdicts"]` `[P, G, 3]`: whether the reward exceeds a half, for this draw and two
    more; NaN where it is missing.
    """

    def drawn(key: jax.Array, signal: Signal) -> tuple[jax.Array, jax.Array]:
        found = [
            noise.update(jax.random.fold_in(key, i), signal, noise.init())[0]
            for i, noise in enumerate(noises)
        ]
        pick = lambda leaves: jnp.stack(leaves)[signal.aux["noise"][0]]
        return pick([own.rewards for own in found]), pick([own.mask for own in found])

    def update(key: jax.Array, signal: Signal) -> Signal:
        signal = base.keep_true_rewards(signal)
        draws = [drawn(jax.random.fold_in(key, i), signal) for i in range(VERDICTS)]
        seen = [jnp.where(m, (r > 0.5).astype(jnp.float32), jnp.nan) for r, m in draws]
        rewards, mask = draws[0]
        signal = signal.with_aux(verdicts=jnp.stack(seen, axis=-1))
        return signal.replace(rewards=jnp.where(mask, rewards, 0.0), mask=mask)

    reads = {field for noise in noises for field in noise.spec.reads} | {"aux/noise"}
    writes = ("rewards", "mask", "aux/true_rewards", "aux/verdicts")
    spec = Spec("one_of", "noise", tuple(sorted(reads)), writes, reward_map="nonlinear")
    return base.stateless(update, spec)


def build_arms(config: ml_collections.ConfigDict) -> dict[str, RewardTransform]:
    """The chain of every remedy, and of the user's transforms.

    Raises:
      ConfigError: a transform cannot be built, or a chain cannot work.
    """
    noise = one_of([build(config.noises[name].transform) for name in config.noises])
    stages = {
        name: [build(config.transforms[stage]) for stage in config.remedies[name]]
        for name in config.remedies
    }
    stages |= {_label(path): _users_own(path) for path in config.extra}
    arms = {}
    for name, own in stages.items():
        try:
            arms[name] = base.chain(noise, *own, provided=PROVIDED)
        except ValueError as error:
            raise ConfigError(f"remedy {name}: {error}") from error
    return arms


def _label(path: str) -> str:
    return path.rsplit(":", 1)[-1]


def _users_own(path: str) -> list[RewardTransform]:
    """The transform of `PATH:FACTORY`, followed by RLOO if it sets no advantages."""
    try:
        found = build(ml_collections.ConfigDict(dict(fn=path)))
    except (ConfigError, ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"transform {path!r}: {error}; allowed is PATH:FACTORY of a function without "
            "arguments that returns a RewardTransform"
        ) from error
    if not isinstance(found, RewardTransform):
        raise ConfigError(f"transform {path!r} gives {type(found).__name__}, not RewardTransform")
    return [found] if "advantages" in found.spec.writes else [found, advantage.rloo()]


def make_hyper(config: ml_collections.ConfigDict, arms: int) -> dict[str, jax.Array]:
    """Knobs of every run, `[A, M]`: noise x learning rate x seed, seed fastest."""
    noises, rates = len(config.noises), config.learning_rates
    seeds = config.seeds + config.tuning_seeds
    shape = (noises, len(rates), seeds)
    told = np.asarray([config.noises[name].rates for name in config.noises], np.float32)
    columns = {
        "noise": np.arange(noises, dtype=np.int32)[:, None, None],
        "learning_rate": np.asarray(rates, np.float32)[None, :, None],
        "seed": np.arange(seeds, dtype=np.int32)[None, None, :],
        "kl_coefficient": np.full((1, 1, 1), config.kl_coefficient, np.float32),
        "false_positive": told[:, 0][:, None, None],
        "false_negative": told[:, 1][:, None, None],
    }
    flat = {name: np.broadcast_to(value, shape).reshape(-1) for name, value in columns.items()}
    return {name: jnp.asarray(np.tile(value, (arms, 1))) for name, value in flat.items()}


def train(config: ml_collections.ConfigDict, arms: dict[str, RewardTransform]) -> np.ndarray:
    """Final test success `[arms, noises, learning rates, seeds]`; the last seeds are to tune on."""
    own = ml_collections.ConfigDict(dict(config.items()))
    own.seeds = config.seeds + config.tuning_seeds
    problem = digits_training.load_problem(own)
    hyper = make_hyper(config, len(arms))
    population = digits_training.make_population(own, problem, arms, hyper)
    many = make_step(own, problem, population, hyper)
    state = digits_training.start_state(own, problem, population)
    calls = max(own.steps // CALL, 1)
    for done in tqdm.trange(calls, desc="noise bench", unit="call", mininterval=10.0):
        state = many(state, own.steps // calls + (done < own.steps % calls))
    found = digits_training.make_evaluate(problem, population)(state)
    shape = (len(config.noises), len(config.learning_rates), own.seeds)
    return np.stack([np.asarray(found[a]["eval/success"]).reshape(shape) for a in arms])


def make_step(config, problem: Problem, population, hyper):
    """`(state, updates) -> state`."""
    prompts, seeds = config.prompts_per_step, config.seeds
    by_run = {
        name: jnp.broadcast_to(hyper[name].reshape(-1, 1), (hyper[name].size, prompts))
        for name in ("false_positive", "false_negative", "noise")
    }
    data_key = jax.random.fold_in(jax.random.key(config.seed), 1)

    def draw(seed, step):
        key = jax.random.fold_in(jax.random.fold_in(data_key, seed), step)
        return problem.train[seed][jax.random.randint(key, (prompts,), 0, problem.train.shape[1])]

    def one(state):
        index = jax.vmap(draw, in_axes=(0, None))(jnp.arange(seeds), state.runs.step[0])
        trajectories = population.rollout(state, problem.features[index])
        ids, answers = population.per_seed(index), population.per_seed(problem.answers[index])
        key = jax.random.fold_in(data_key, state.runs.step[0] + (1 << 20))
        aux = {**by_run, **describe(key, ids, answers, trajectories.actions)}
        true = aux["true_rewards"]
        mask = jnp.ones(true.shape, bool)
        return population.update(state, true, mask, trajectories, aux)[0]

    def run(state, updates):
        return jax.lax.fori_loop(0, updates, lambda _, own: one(own), state)

    return jax.jit(run, donate_argnums=0)


def describe(key: jax.Array, ids: jax.Array, answers: jax.Array, actions: jax.Array) -> dict[str, Any]:
    """What the noises and remedies look at, for ids and answers `[R, P]`, actions `[R, P, G]`.

    Prompts with an odd id have a false negative rate of .6, the others none, and .3 and .1 of false
    positives; samples likewise by whether the digit they name is odd. The verifier with a
    hole accepts every 0. `second` is another judge, right with probability .7.
    """
    true = (actions == answers[:, :, None]).astype(jnp.float32)
    odd_id, odd = ids % 2 == 1, actions % 2 == 1
    right = jax.random.bernoulli(key, 0.7, true.shape)
    number = actions.astype(jnp.uint32)
    return {
        "prompt_id": ids.astype(jnp.int32),
        "true_rewards": true,
        "answer_id": number + jnp.uint32(1),
        "reference_id": answers.astype(jnp.uint32) + jnp.uint32(1),
        "output_id": number,
        "hit": actions == 0,
        "second": jnp.where(right, true, 1.0 - true),
        "by_prompt_false_positive": jnp.where(odd_id, 0.3, 0.1).astype(jnp.float32),
        "by_prompt_false_negative": jnp.where(odd_id, 0.6, 0.0).astype(jnp.float32),
        "by_sample_false_positive": jnp.where(odd, 0.3, 0.1).astype(jnp.float32),
        "by_sample_false_negative": jnp.where(odd, 0.5, 0.0).astype(jnp.float32),
    }
