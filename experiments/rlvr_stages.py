"""The stages of `experiments.rlvr`: tune and compare, each a population that trains."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import rlvr_model
from experiments.rlvr_config import settings
from experiments.rlvr_programs import Context, Programs, arm_knobs, make_population
from jaxreward.tasks import pipeline
from jaxreward.training import loop
from jaxreward.training import population as populations


class Stage(NamedTuple):
    """One population to train.

    Attributes:
      name: folder of the stage inside the workdir.
      hyper: float32 `[A, M]` by name.
      seed_index: int32 `[M]`.
      seeds: number of different seeds.
      first_seed: the seed of index 0.
      steps: updates per run.
      settings: whose members follow each other; empty while tuning.
    """

    name: str
    hyper: dict[str, np.ndarray]
    seed_index: np.ndarray
    seeds: int
    first_seed: int
    steps: int
    settings: tuple[str, ...] = ()


REPORTING, TUNING = 0, 1000
"""First seeds of the two disjoint ranges."""

COMPARE = "compare"

HYPER = ("learning_rate", "kl_coefficient")
"""What is tuned."""


def tuning_stage(config: ml_collections.ConfigDict, arms: int) -> Stage:
    """Every arm over the same grid: member = grid point x seed, seed fastest."""
    grid = np.stack(
        np.meshgrid(config.tune.learning_rate, config.tune.kl_coefficient, indexing="ij"), -1
    ).reshape(-1, 2)
    members = np.repeat(grid, config.tune.seeds, axis=0).astype(np.float32)
    hyper = {
        name: np.tile(members[:, column], (arms, 1))
        for column, name in enumerate(HYPER)
    }
    seed_index = np.tile(np.arange(config.tune.seeds, dtype=np.int32), len(grid))
    return Stage("tune", hyper, seed_index, config.tune.seeds, TUNING, config.tune.steps)


def best_by_arm(stage: Stage, accuracy: np.ndarray) -> dict[str, np.ndarray]:
    """For each arm the grid point with the highest mean accuracy over the tuning seeds.

    Args:
      stage: the tuning stage.
      accuracy: float `[A, M]`, final true accuracy, or what else is tuned for.

    Returns:
      `[A]` by hyper-parameter name.
    """
    points = accuracy.reshape(accuracy.shape[0], -1, stage.seeds).mean(axis=-1)
    best = np.argmax(points, axis=1) * stage.seeds
    return {name: value[np.arange(len(best)), best] for name, value in stage.hyper.items()}


def comparison_stage(
    config: ml_collections.ConfigDict, arms: int, tuned: dict[str, np.ndarray]
) -> Stage:
    """All settings in one population: member = setting x seed, seed fastest."""
    hyper, compared = {}, settings(config)
    for name in HYPER:
        columns = {"equal": np.full((arms, config.seeds), config.hyper[name], np.float32)}
        if "tuned" in compared:
            columns["tuned"] = np.repeat(tuned[name][:, None], config.seeds, 1)
        hyper[name] = np.concatenate([columns[setting] for setting in compared], axis=1)
    seed_index = np.tile(np.arange(config.seeds, dtype=np.int32), len(compared))
    return Stage(COMPARE, hyper, seed_index, config.seeds, REPORTING, config.steps, compared)


def tune(context: Context, programs: Programs) -> dict[str, np.ndarray]:
    """Each arm's best of the tuning stage, see `best_by_arm`; empty where nothing compares it."""
    if "tuned" not in settings(context.config):
        return {}
    stage = tuning_stage(context.config, len(context.arms))
    metric = context.config.tune.get("metric", "eval/true_accuracy")
    return best_by_arm(stage, train(context, programs, stage)[metric])


def train(context: Context, programs: Programs, stage: Stage) -> dict[str, np.ndarray]:
    """Trains a population to the end, or what is left of it.

    Returns:
      The final evaluation by name, `[A, M]`.
    """
    config = context.config
    hyper = {n: jnp.asarray(value) for n, value in arm_knobs(config, stage.hyper).items()}
    population = make_population(context, hyper, stage.seed_index, stage.first_seed)
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

    def iteration(state, step):
        del step
        rows = _by_member([next(iterator) for iterator in iterators], stage.seed_index)
        state, metrics = programs.step(hyper, state, rows)
        return state, named(stage, population, metrics)

    def evaluate(state, step):
        del step
        return named(stage, population, programs.evaluate(state))

    key = jax.random.fold_in(jax.random.key(config.seed), stage.first_seed)
    policy = context.problem.policy
    state = loop.run_loop(
        iteration,
        population.init(key, rlvr_model.first_params(config, policy, context.start)),
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
    final = programs.evaluate(state)
    shape = (len(population.arms), population.members)
    rows = jax.device_get([final[arm] for arm in population.arms])
    return {name: np.stack([row[name] for row in rows]).reshape(shape) for name in rows[0]}


def named(stage: Stage, population: populations.Population, metrics) -> dict[str, Any]:
    """`{setting/arm/name: mean over seeds}`, and `..._sd` for accuracies and rewards."""
    names = stage.settings or (stage.name,)
    flat = {}
    for arm in population.arms:
        for name, values in metrics[arm].items():
            parts = values.reshape(len(names), -1).astype(jnp.float32)
            for setting, part in zip(names, parts):
                flat[f"{setting}/{arm}/{name}"] = jnp.mean(part)
                if name.startswith(("eval/", "reward/")) and part.shape[0] > 1:
                    flat[f"{setting}/{arm}/{name}_sd"] = jnp.std(part, ddof=1)
    return flat


def _by_member(rows: list[pipeline.Batch], seed_index: np.ndarray) -> pipeline.Batch:
    """The seeds' rows as those of every member, `[M, P, ...]`."""
    return {name: np.stack([own[name] for own in rows])[seed_index] for name in rows[0]}


def _positions(batches: list[pipeline.Pipeline], iterators: list[Any]) -> loop.HostState:
    """Where every seed's iterator stands, for the checkpoint."""

    def get() -> list[str]:
        pairs = zip(batches, iterators)
        return [pipeline.save_position(each, iterator).decode() for each, iterator in pairs]

    def set_all(positions: list[str]) -> None:
        for each, iterator, position in zip(batches, iterators, positions):
            pipeline.restore_position(each, iterator, position.encode())

    return loop.HostState(get, set_all)
