"""The digits bandit: data, start, and the training of every run of the grid at once."""

import dataclasses
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Int

from jaxreward.losses.policy import policy_objective
from jaxreward.losses.regularization import exact_kl, penalized
from jaxreward.policies import tabular
from jaxreward.training import loop
from jaxreward.training import population as populations
from jaxreward.training.config import build
from jaxreward.training.population import Population, PopulationState
from jaxreward.transforms.base import RewardTransform
from jaxreward.types import Signal

PROVIDED = ("trajectories", "aux/true_rewards", "aux/false_positive", "aux/false_negative")
"""What is in the signal beside the rewards."""

PIXELS, ANSWERS = 64, 10
POLICY = tabular.linear_softmax_policy(PIXELS, ANSWERS)
log_distribution = tabular.linear_log_distribution

Params = dict[str, Array]


class Problem(NamedTuple):
    """The digits, split for each seed, and where each seed starts.

    Attributes:
      features: pixels in [0, 1].
      answers: the digit.
      train: indices of the prompts that are learned from.
      test: indices of the others.
      starts: warm-started parameters, stacked by seed; also the KL reference.
    """

    features: Float[Array, "N F"]
    answers: Int[Array, "N"]
    train: Int[Array, "seeds P"]
    test: Int[Array, "seeds Q"]
    starts: Params


class Cell(NamedTuple):
    """One setting of the grid."""

    false_positive: float
    false_negative: float
    kl_coefficient: float

    @property
    def determinant(self) -> float:
        """Youden's J."""
        return 1.0 - self.false_positive - self.false_negative


class Grid(NamedTuple):
    """The members of every arm: cells x seeds, seed fastest."""

    cells: tuple[Cell, ...]
    seeds: int


def make_grid(config: ml_collections.ConfigDict) -> Grid:
    """Every pair of rates with every KL coefficient."""
    pairs = zip(config.grid.false_positive, config.grid.false_negative)
    cells = [Cell(a, b, kl) for a, b in pairs for kl in config.grid.kl_coefficient]
    return Grid(tuple(cells), config.seeds)


def load_problem(config: ml_collections.ConfigDict) -> Problem:
    """The 1,797 digits of scikit-learn; each seed has its own split, labels and start."""
    from sklearn.datasets import load_digits  # slow to import

    digits = load_digits()
    features = jnp.asarray(digits.data / 16.0, jnp.float32)
    answers = jnp.asarray(digits.target, jnp.int32)
    orders = jnp.asarray(
        [
            np.random.default_rng((config.seed, seed)).permutation(len(digits.target))
            for seed in range(config.seeds)
        ],
        jnp.int32,
    )
    count, labelled = config.task.train_prompts, orders[:, : config.task.labels]
    settings = config.warm_start

    def warm_start(rows):
        return _warm_start(features[rows], answers[rows], settings.learning_rate, settings.steps)

    starts = jax.jit(jax.vmap(warm_start))(labelled)
    return Problem(features, answers, orders[:, :count], orders[:, count:], starts)


def _warm_start(
    features: Float[Array, "n F"], answers: Int[Array, "n"], learning_rate: Any, steps: int
) -> Params:
    """Full-batch gradient descent on the cross-entropy, from the uniform policy."""

    def loss(params):
        log_p = log_distribution(params, features)
        return -jnp.mean(jnp.take_along_axis(log_p, answers[:, None], axis=1))

    def body(params, _):
        grads = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - learning_rate * g, params, grads), None

    return jax.lax.scan(body, POLICY.init(jax.random.key(0)), None, length=steps)[0]


def make_hyper(
    config: ml_collections.ConfigDict, arms: dict[str, Any], grid: Grid
) -> dict[str, Array]:
    """The traced knobs of every run, `[A, M]`."""
    determinant = np.array([cell.determinant for cell in grid.cells])
    rescaled = np.array([arm in config.rescaled for arm in arms])
    factor = np.where(rescaled[:, None], determinant, 1.0)  # [A, cells]
    coefficient = np.array([cell.kl_coefficient for cell in grid.cells])
    by_cell_of_arm = {
        "learning_rate": config.learning_rate / factor,
        "kl_coefficient": coefficient * factor,
        "false_positive": np.array([cell.false_positive for cell in grid.cells]) + 0 * factor,
        "false_negative": np.array([cell.false_negative for cell in grid.cells]) + 0 * factor,
    }
    hyper = {
        name: jnp.asarray(np.repeat(values, grid.seeds, axis=1), jnp.float32)
        for name, values in by_cell_of_arm.items()
    }
    seeds = np.tile(np.arange(grid.seeds, dtype=np.int32), (len(arms), len(grid.cells)))
    return {**hyper, "seed": jnp.asarray(seeds)}


def make_population(
    config: ml_collections.ConfigDict,
    problem: Problem,
    arms: dict[str, RewardTransform],
    hyper: dict[str, Array],
    first_seed: int | Int[Array, ""] = 0,
) -> Population:
    """All runs; each is penalised by the exact KL to the start of its seed."""
    options = config.loss.to_dict()

    def make_loss(own):
        start = jax.tree.map(lambda leaf: leaf[own["seed"]], problem.starts)

        def kl_to_start(params: Params, signal: Signal) -> Float[Array, ""]:
            prompts = signal.trajectories.prompts
            log_p, log_q = log_distribution(params, prompts), log_distribution(start, prompts)
            return jnp.mean(exact_kl(log_p, log_q))

        loss = policy_objective(POLICY, **options)
        return penalized(loss, kl_to_start, own["kl_coefficient"], "policy/kl")

    def make_optimizer(own):
        return build(config.optimizer, learning_rate=own["learning_rate"])

    seed_index = np.asarray(hyper["seed"][0])
    sizes = dict(group_size=config.group_size, first_seed=first_seed)
    return populations.make_population(
        POLICY, arms, make_loss, make_optimizer, hyper, seed_index, **sizes
    )


def make_step(
    config: ml_collections.ConfigDict,
    problem: Problem,
    population: Population,
    hyper: dict[str, Array],
) -> Callable[[PopulationState], tuple[PopulationState, dict[str, Any]]]:
    """`config.evaluation.every` updates of every run; metrics are their means."""
    prompts, seeds = config.prompts_per_step, config.seeds
    rates = {name: hyper[name].reshape(-1, 1) for name in ("false_positive", "false_negative")}
    rates = {k: jnp.broadcast_to(v, (v.shape[0], prompts)) for k, v in rates.items()}
    prompt_id = jnp.broadcast_to(
        jnp.arange(prompts, dtype=jnp.int32), rates["false_positive"].shape
    )
    data_key = jax.random.fold_in(jax.random.key(config.seed), 1)

    def draw(seed, step):
        key = jax.random.fold_in(jax.random.fold_in(data_key, seed), step)
        return problem.train[seed][jax.random.randint(key, (prompts,), 0, problem.train.shape[1])]

    def one(state, _):
        index = jax.vmap(draw, in_axes=(0, None))(jnp.arange(seeds), state.runs.step[0])
        trajectories = population.rollout(state, problem.features[index])
        answers = population.per_seed(problem.answers[index])
        true = (trajectories.actions == answers[:, :, None]).astype(jnp.float32)
        aux = {**rates, "prompt_id": prompt_id, "true_rewards": true}
        return population.update(state, true, jnp.ones(true.shape, bool), trajectories, aux)

    def many(state):
        state, metrics = jax.lax.scan(one, state, None, length=config.evaluation.every)
        return state, jax.tree.map(lambda x: jnp.mean(x.astype(jnp.float32), axis=0), metrics)

    return jax.jit(many)


def make_evaluate(
    problem: Problem, population: Population
) -> Callable[[PopulationState], dict[str, dict[str, Array]]]:
    """`(state) -> {arm: {name: [M]}}`: exact test success and KL to the start."""
    names, seeds = population.arms, jnp.asarray(population.seed_of_run)

    def one(params, seed, problem):
        test = problem.test[seed]
        start = jax.tree.map(lambda leaf: leaf[seed], problem.starts)
        log_p = log_distribution(params, problem.features[test])
        success = jnp.take_along_axis(jnp.exp(log_p), problem.answers[test][:, None], axis=1)
        kl = exact_kl(log_p, log_distribution(start, problem.features[test]))
        return {"eval/success": jnp.mean(success), "eval/kl": jnp.mean(kl)}

    @jax.jit
    def evaluate(params, problem):  # the problem is an argument, or it would be folded
        flat = jax.vmap(one, in_axes=(0, 0, None))(params, seeds, problem)
        split = {name: values.reshape(len(names), -1) for name, values in flat.items()}
        return {
            arm: {name: values[i] for name, values in split.items()}
            for i, arm in enumerate(names)
        }

    return lambda state: evaluate(state.runs.params, problem)


def start_state(
    config: ml_collections.ConfigDict, problem: Problem, population: Population
) -> PopulationState:
    """Every run at the start of its seed."""
    key = jax.random.fold_in(jax.random.key(config.seed), 0)
    state = population.init(key, POLICY.init(key))
    runs = dataclasses.replace(state.runs, params=population.per_seed(problem.starts))
    return dataclasses.replace(state, runs=runs)


def train(
    config: ml_collections.ConfigDict,
    problem: Problem,
    arms: dict[str, RewardTransform],
    grid: Grid,
    workdir: str,
) -> dict[str, dict[str, np.ndarray]]:
    """Trains to the end, or what is left of it.

    Returns:
      `{arm: {name: [cells, seeds]}}` of the final evaluation, and of the start as arm "start".
    """
    hyper = make_hyper(config, arms, grid)
    population = make_population(config, problem, arms, hyper)
    step_fn = make_step(config, problem, population, hyper)
    evaluate_fn = make_evaluate(problem, population)
    start = start_state(config, problem, population)

    def iteration(state, step):
        del step
        state, metrics = step_fn(state)
        return state, by_cell(metrics, grid)

    state = loop.run_loop(
        iteration,
        start,
        loop.Schedule(
            config.steps // config.evaluation.every,
            save_every=config.checkpoint.every,
            keep=config.checkpoint.keep,
            evaluate_every=1,
        ),
        workdir=workdir,
        evaluate=lambda state, step: by_cell(evaluate_fn(state), grid),
        safety=loop.Safety(
            lambda state: populations.skipped_in_a_row(state, population.arms),
            config.safety.max_skipped_in_a_row,
        ),
        name=f"{config.method}, {config.evaluation.every} updates a step",
        show=[f"{arm}/eval/success" for arm in (population.arms[0], population.arms[-1])],
    )
    final = {**evaluate_fn(state), "start": evaluate_fn(start)[population.arms[0]]}
    return {  # jax sorts the keys of dicts; this is the order of the config
        arm: {name: np.asarray(x).reshape(-1, grid.seeds) for name, x in final[arm].items()}
        for arm in (*population.arms, "start")
    }


def by_cell(metrics: dict[str, dict[str, Array]], grid: Grid) -> dict[str, Array]:
    """`{arm/name: [cells]}`, means over seeds, and `..._sd` for evaluations."""
    flat = {}
    for arm, named in metrics.items():
        for name, values in named.items():
            values = values.astype(jnp.float32).reshape(len(grid.cells), grid.seeds)
            flat[f"{arm}/{name}"] = jnp.mean(values, axis=1)
            if name.startswith("eval/") and grid.seeds > 1:
                flat[f"{arm}/{name}_sd"] = jnp.std(values, axis=1, ddof=1)
    return flat
