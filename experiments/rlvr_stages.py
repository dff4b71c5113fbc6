"""The stages of `experiments.rlvr`: load, warm start, train a population, tune, compare."""

import pathlib
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments.rlvr_problem import Problem
from experiments.verification import Verification
from jaxreward import masked
from jaxreward.policies.language import Prompts
from jaxreward.tasks import pipeline
from jaxreward.training import loop
from jaxreward.training import population as populations
from jaxreward.training.config import build
from jaxreward.training.population import Population
from jaxreward.transforms import noise


class Stage(NamedTuple):
    """One population to train.

    Attributes:
      name: folder of the stage inside the workdir.
      hyper: float32 `[A, M]` by name.
      seed_index: int32 `[M]`.
      seeds: number of different seeds.
      first_seed: the seed of index 0.
      steps: updates per run.
    """

    name: str
    hyper: dict[str, np.ndarray]
    seed_index: np.ndarray
    seeds: int
    first_seed: int
    steps: int


REPORTING, TUNING = 0, 1000
"""First seeds of the two disjoint ranges."""

COMPARE, SETTINGS = "compare", ("equal", "tuned")


def tuning_stage(config: ml_collections.ConfigDict, arms: int) -> Stage:
    """Every arm over the same grid: member = grid point x seed, seed fastest."""
    grid = np.stack(
        np.meshgrid(config.tune.learning_rate, config.tune.kl_coefficient, indexing="ij"), -1
    ).reshape(-1, 2)
    members = np.repeat(grid, config.tune.seeds, axis=0).astype(np.float32)
    hyper = {
        name: np.tile(members[:, column], (arms, 1))
        for column, name in enumerate(("learning_rate", "kl_coefficient"))
    }
    seed_index = np.tile(np.arange(config.tune.seeds, dtype=np.int32), len(grid))
    return Stage("tune", hyper, seed_index, config.tune.seeds, TUNING, config.tune.steps)


def best_by_arm(stage: Stage, accuracy: np.ndarray) -> dict[str, np.ndarray]:
    """For each arm the grid point with the highest mean accuracy over the tuning seeds.

    Args:
      stage: the tuning stage.
      accuracy: float `[A, M]`, final true accuracy.

    Returns:
      `[A]` by hyper-parameter name.
    """
    points = accuracy.reshape(accuracy.shape[0], -1, stage.seeds).mean(axis=-1)
    best = np.argmax(points, axis=1) * stage.seeds
    return {name: value[np.arange(len(best)), best] for name, value in stage.hyper.items()}


def comparison_stage(
    config: ml_collections.ConfigDict, arms: int, tuned: dict[str, np.ndarray]
) -> Stage:
    """Both settings in one population: member = setting x seed, seed fastest."""
    hyper = {}
    for name, best in tuned.items():
        equal = np.full((arms, config.seeds), config.hyper[name], np.float32)
        hyper[name] = np.concatenate([equal, np.repeat(best[:, None], config.seeds, 1)], axis=1)
    seed_index = np.tile(np.arange(config.seeds, dtype=np.int32), len(SETTINGS))
    return Stage(COMPARE, hyper, seed_index, config.seeds, REPORTING, config.steps)


class Context(NamedTuple):
    """What every stage needs.

    Attributes:
      config: of the run.
      problem: task and policy.
      arms: reward chain by arm.
      verification: how samples are judged.
      start: parameters that every run starts from, the KL reference.
      workdir: folder of the run.
    """

    config: ml_collections.ConfigDict
    problem: Problem
    arms: dict[str, Any]
    verification: Verification
    start: Any
    workdir: str


def make_population(context: Context, stage: Stage) -> Population:
    """The population of a stage, from the config's loss and optimizer."""
    config, policy = context.config, context.problem.policy

    def make_loss(hyper):
        return build(config.loss, policy=policy, kl_coefficient=hyper["kl_coefficient"])

    def make_optimizer(hyper):
        return build(config.optimizer, learning_rate=hyper["learning_rate"])

    return populations.make_population(
        policy,
        context.arms,
        make_loss,
        make_optimizer,
        {name: jnp.asarray(value) for name, value in stage.hyper.items()},
        stage.seed_index,
        group_size=config.group_size,
        first_seed=stage.first_seed,
        spike_factor=config.safety.spike_factor,
        runs_at_a_time=config.runs_at_a_time,
        mesh=populations.run_mesh(len(context.arms) * stage.seed_index.size),
    )


def train(context: Context, stage: Stage) -> dict[str, np.ndarray]:
    """Trains a population to the end, or what is left of it.

    Returns:
      The final evaluation by name, `[A, M]`.
    """
    config, population = context.config, make_population(context, stage)
    batches = [
        pipeline.make_pipeline(
            context.problem.train,
            config.prompts_per_step,
            seed=config.seed + stage.first_seed + index,
            fingerprint=context.problem.fingerprint,
        )
        for index in range(stage.seeds)
    ]
    iterators = [iter(each.dataset) for each in batches]
    step_fn, evaluate_fn = make_step(context, population), make_evaluate(context, population)

    def iteration(state, step):
        del step
        rows = _stack([next(iterator) for iterator in iterators])
        state, metrics = step_fn(state, rows)
        return state, named(stage, population, metrics)

    def evaluate(state, step):
        del step
        return named(stage, population, evaluate_fn(state))

    key = jax.random.fold_in(jax.random.key(config.seed), stage.first_seed)
    state = loop.run_loop(
        iteration,
        population.init(key, context.start),
        loop.Schedule(
            stage.steps,
            save_every=config.checkpoint.every,
            keep=config.checkpoint.keep,
            evaluate_every=config.evaluation.every,
        ),
        workdir=pathlib.Path(context.workdir) / stage.name,
        evaluate=evaluate,
        host=_positions(batches, iterators),
        safety=loop.Safety(
            lambda state: populations.skipped_in_a_row(state, population.arms),
            config.safety.max_skipped_in_a_row,
        ),
        name=stage.name,
        show=[f"{population.arms[0]}/reward/true", f"{population.arms[-1]}/reward/true"],
    )
    final = evaluate_fn(state)
    shape = (len(population.arms), population.members)
    rows = jax.device_get([final[arm] for arm in population.arms])
    return {name: np.stack([row[name] for row in rows]).reshape(shape) for name in rows[0]}


def make_step(context: Context, population: Population) -> Callable[..., Any]:
    """`(state, rows) -> (state, metrics)`: rollout, verdicts, update of every run.

    One jitted program where the verifier can be traced, else two with the host between.
    """
    policy, reference = context.problem.policy, context.start

    def rollout(state, rows):
        prompts = Prompts(rows["tokens"], rows["lengths"])
        trajectories = population.rollout(state, prompts)
        score = lambda own: policy.log_prob(reference, own).log_probs
        return trajectories, population.each_run(score, trajectories)

    def update(state, rows, trajectories, reference_log_probs, verdict):
        own = population.per_seed({k: rows[k] for k in ("prompt_id", "prompt_type")})
        aux = {
            **own,
            "true_rewards": verdict.true_rewards,
            "output_form": verdict.form,
            "output_id": jax.vmap(noise.output_id)(trajectories.actions, trajectories.mask),
            "reference_log_probs": reference_log_probs,
        }
        return population.update(state, verdict.rewards, verdict.mask, trajectories, aux)

    return _with_verdicts(context, population, rollout, update)


def _with_verdicts(context: Context, population: Population, rollout, update):
    verification = context.verification

    def whole(state, rows):
        trajectories, scores = rollout(state, rows)
        verdict = _verify(verification, trajectories, population.per_seed(rows))
        return update(state, rows, trajectories, scores, verdict)

    if verification.jittable:
        jitted = jax.jit(whole)
        return lambda state, rows: jitted(state, _numeric(rows))
    first, second = jax.jit(rollout), jax.jit(update)

    def split(state, rows):
        trajectories, scores = first(state, _numeric(rows))
        answers = {"answer": rows["answer"][population.seed_of_run]}
        verdict = _verify(verification, trajectories, answers)
        return second(state, _numeric(rows), trajectories, scores, verdict)

    return split


def _verify(verification: Verification, trajectories, rows):
    lengths = jnp.sum(trajectories.mask, axis=-1, dtype=jnp.int32)
    return verification.verify(trajectories.outputs, lengths, rows)


def make_evaluate(context: Context, population: Population) -> Callable[..., Any]:
    """`(state) -> {arm: {name: [M]}}`: accuracy on the evaluation prompts.

    At the training temperature, on the prompts and with the samples of `config.evaluation`.
    `eval/true_accuracy` and `eval/observed_accuracy` are means over all prompts and samples
    whose verdict is there.
    """
    config, problem, verification = context.config, context.problem, context.verification
    policy, count = problem.policy, config.evaluation.samples
    rows = jax.tree.map(lambda leaf: leaf[None], problem.evaluated)
    runs = len(population.arms) * population.members
    prompts = Prompts(jnp.asarray(rows["tokens"][0]), jnp.asarray(rows["lengths"][0]))
    key = jax.random.key(config.seed + _EVALUATION)

    @jax.jit
    def sample(state):
        draw = lambda params: policy.sample(params, key, prompts, count)
        return population.each_run(draw, state.runs.params)

    def accuracies(verdict):
        true, seen = jnp.asarray(verdict.true_rewards), jnp.asarray(verdict.rewards)
        axes = (1, 2)
        return {
            "eval/true_accuracy": masked.mean(true, jnp.isfinite(true), axes),
            "eval/observed_accuracy": masked.mean(seen, jnp.asarray(verdict.mask), axes),
        }

    def evaluate(state):
        trajectories = sample(state)
        every = {
            name: np.broadcast_to(column, (runs,) + column.shape[1:])
            for name, column in rows.items()
        }
        if verification.jittable:
            every = _numeric(every)
        flat = accuracies(_verify(verification, trajectories, every))
        split = {n: v.reshape(len(population.arms), -1) for n, v in flat.items()}
        return {arm: {n: v[i] for n, v in split.items()} for i, arm in enumerate(population.arms)}

    return evaluate


_EVALUATION = 1 << 21


def named(stage: Stage, population: Population, metrics) -> dict[str, Any]:
    """`{setting/arm/name: mean over seeds}`, and `..._sd` for accuracies and rewards."""
    settings = SETTINGS if stage.name == COMPARE else (stage.name,)
    flat = {}
    for arm in population.arms:
        for name, values in metrics[arm].items():
            parts = values.reshape(len(settings), -1).astype(jnp.float32)
            for setting, part in zip(settings, parts):
                flat[f"{setting}/{arm}/{name}"] = jnp.mean(part)
                if name.startswith(("eval/", "reward/")) and part.shape[0] > 1:
                    flat[f"{setting}/{arm}/{name}_sd"] = jnp.std(part, ddof=1)
    return flat


def _stack(rows: list[pipeline.Batch]) -> pipeline.Batch:
    """The seeds' rows as `[seeds, P, ...]`."""
    return {name: np.stack([own[name] for own in rows]) for name in rows[0]}


def _positions(batches: list[pipeline.Pipeline], iterators: list[Any]) -> loop.HostState:
    """Where every seed's iterator stands, for the checkpoint."""

    def get() -> list[str]:
        pairs = zip(batches, iterators)
        return [pipeline.save_position(each, iterator).decode() for each, iterator in pairs]

    def set_all(positions: list[str]) -> None:
        for each, iterator, position in zip(batches, iterators, positions):
            pipeline.restore_position(each, iterator, position.encode())

    return loop.HostState(get, set_all)


def _numeric(rows: dict[str, Any]) -> dict[str, Any]:
    wanted = ("prompt_id", "prompt_type", "tokens", "lengths", "answer_tokens", "answer_lengths")
    return {name: rows[name] for name in wanted}
