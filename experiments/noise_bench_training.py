"""The noise bench's runs: one noise for each member, one remedy for each arm, one program.

Every remedy is tuned under every noise over learning rates x KL coefficients, on seeds of its own,
and then run at its best on the seeds that are reported.
"""

import math
import pathlib
from functools import partial
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import tqdm

from experiments import digits_training
from experiments.digits_training import Problem
from jaxreward.training import files
from jaxreward.training import population as populations
from jaxreward.training.config import build
from jaxreward.training.exits import ConfigError
from jaxreward.transforms import advantage, base
from jaxreward.transforms.base import RewardTransform
from jaxreward.types import Signal, make_signal

BLOCK = 5  # seeds of a block, at most

VERDICTS = 3
"""Verifiers of the disagreement estimate: the reward's and further draws of the same noise."""

PROVIDED = digits_training.PROVIDED + tuple(
    f"aux/{name}"
    for name in (
        "answer_id", "reference_id", "output_id", "hit", "second", "verdicts",
        "by_prompt_false_positive", "by_prompt_false_negative",
        "by_sample_false_positive", "by_sample_false_negative", "predicted", "reference_rewards",
    )
)  # fmt: skip

REFERENCES = 4
"""Answers of the start that a prompt's rewards are centred on."""

REFERENCE = "reference/"
"""Entries of `aux` that describe them."""


def observe(noise: RewardTransform) -> Callable[[jax.Array, Signal], Signal]:
    """`(key, signal) -> signal` after the noise.

    Also sets `aux["verdicts"]` `[P, G, 3]`: whether the reward exceeds a half, for this draw and
    two more; and `aux["reference_rewards"]` `[P, M]`, what the noise makes of the reference
    answers. NaN where missing.
    """

    def drawn(key: jax.Array, number: int, signal: Signal) -> Signal:
        return noise.update(jax.random.fold_in(key, number), signal, noise.init())[0]

    def update(key: jax.Array, signal: Signal) -> Signal:
        draws = [drawn(key, i, signal) for i in range(VERDICTS)]
        seen = [jnp.where(d.mask, (d.rewards > 0.5).astype(jnp.float32), jnp.nan) for d in draws]
        references = drawn(key, VERDICTS, _references(signal))
        signal = signal.with_aux(
            verdicts=jnp.stack(seen, axis=-1),
            reference_rewards=jnp.where(references.mask, references.rewards, jnp.nan),
        )
        rewards, mask = draws[0].rewards, draws[0].mask
        return signal.replace(rewards=jnp.where(mask, rewards, 0.0), mask=mask)

    return update


def _references(signal: Signal) -> Signal:
    """The signal of the reference answers."""
    own = {
        name.removeprefix(REFERENCE): value
        for name, value in signal.aux.items()
        if name.startswith(REFERENCE)
    }
    true = own["true_rewards"]
    aux = {**signal.aux, **own}
    return signal.replace(rewards=true, mask=jnp.ones(true.shape, bool), aux=aux)


def build_arms(config: ml_collections.ConfigDict) -> dict[str, RewardTransform]:
    """The chain of every remedy, and of the user's transforms, behind the noise.

    Raises:
      ConfigError: a transform cannot be built, or a chain cannot work.
    """
    stages = {
        name: [build(config.transforms[stage]) for stage in config.remedies[name]]
        for name in config.remedies
    }
    stages |= {_label(path): _users_own(path) for path in config.extra}
    arms = {}
    for name, own in stages.items():
        try:
            arms[name] = base.chain(*own, provided=PROVIDED)
        except ValueError as error:
            raise ConfigError(f"remedy {name}: {error}") from error
    return arms


def decaying_sgd(learning_rate: jax.Array, steps: int) -> optax.GradientTransformation:
    """SGD whose learning rate falls linearly to 0, so that the last parameters are not a draw."""
    return optax.sgd(lambda count: learning_rate * (1.0 - count.astype(jnp.float32) / steps))


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


class Settings(NamedTuple):
    """What each remedy is trained with under each noise: `[arms, noises, C]`."""

    learning_rate: np.ndarray
    kl_coefficient: np.ndarray


class Outcome(NamedTuple):
    """Test success `[arms, noises, seeds]` and the settings chosen for it, `C` = 1."""

    success: np.ndarray
    chosen: Settings


def train(
    config: ml_collections.ConfigDict, arms: dict[str, RewardTransform], workdir: str
) -> Outcome:
    """Tunes every remedy under every noise, and trains it at its best, or what is left of it."""
    run = make_runs(config, arms, pathlib.Path(workdir))
    grid = candidates(config, len(arms))
    tuned = run("tune", grid, range(config.seeds, config.seeds + config.tuning_seeds))
    chosen = best(grid, tuned)
    success = run("compare", chosen, range(config.seeds))
    return Outcome(success[:, :, 0], chosen)


def candidates(config: ml_collections.ConfigDict, arms: int) -> Settings:
    """Every learning rate with every KL coefficient, for each remedy and noise."""
    pairs = np.meshgrid(config.learning_rates, config.kl_coefficients, indexing="ij")
    shape = (arms, len(config.noises), pairs[0].size)
    return Settings(*(np.broadcast_to(own.reshape(-1), shape) for own in pairs))


def best(grid: Settings, success: np.ndarray) -> Settings:
    """The candidates, `C` = 1, with the highest mean of `success` `[arms, noises, C, seeds]`."""
    place = np.argmax(success.mean(axis=-1), axis=-1)[..., None]
    return Settings(*(np.take_along_axis(own, place, axis=-1) for own in grid))


def make_runs(
    config: ml_collections.ConfigDict, arms: dict[str, RewardTransform], root: pathlib.Path
) -> Callable[[str, Settings, range], np.ndarray]:
    """`(title, settings, seeds) -> success [arms, noises, C, seeds]`, block by block.

    A block is every remedy under every noise, each at one of its settings, on a few seeds: small
    enough for a cache, and one compiled program for tuning and for the comparison. Each device
    takes one at a time; what is found is kept in `root`, where the same call goes on.
    """
    shared, devices = math.gcd(config.seeds, config.tuning_seeds), len(jax.devices())
    count = max(n for n in range(1, BLOCK + 1) if shared % n == 0)
    settings_of = lambda **own: ml_collections.ConfigDict({**dict(config.items()), **own})
    problem = digits_training.load_problem(settings_of(seeds=config.seeds + config.tuning_seeds))
    small = settings_of(seeds=count, optimizer=dict(config.optimizer, steps=config.steps))
    mesh = populations.run_mesh(devices)

    @jax.jit
    def side_by_side(problem, *blocks):
        one = partial(run_block, small, arms, problem)
        return populations.map_runs(one, blocks, 1, mesh)

    # What cannot work fails here, also where all was found before.
    each = jax.ShapeDtypeStruct((devices, len(arms), len(config.noises)), jnp.float32)
    number = jax.ShapeDtypeStruct((devices,), jnp.int32)
    jax.eval_shape(side_by_side, problem, each, each, number)

    def run(title: str, settings: Settings, seeds: range) -> np.ndarray:
        first, path = np.array(seeds[::count]), root / f"{title}.npy"
        shape = (*settings.learning_rate.shape, len(first), count)
        found = np.load(path) if path.exists() else np.full(shape, np.nan)
        places = np.stack(np.meshgrid(*map(np.arange, shape[2:4]), indexing="ij"))
        places = places[:, np.isnan(found).any(axis=(0, 1, 4))]  # [2, blocks that are left]
        each = tqdm.trange(0, places.shape[1], devices, desc=f"noise bench, {title}", unit="round")
        for start in each:
            candidate, part = places[:, start : start + devices]
            padded = np.resize(candidate, devices)
            values = [np.moveaxis(own[..., padded], -1, 0).astype(np.float32) for own in settings]
            numbers = np.resize(first[part], devices).astype(np.int32)
            success = np.asarray(side_by_side(problem, *values, numbers))[: len(part)]
            found[:, :, candidate, part] = np.moveaxis(success, 0, 2)
            with files.atomic_path(path) as temporary:
                np.save(temporary, found)
        return found.reshape(*shape[:3], len(seeds))

    return run


def run_block(
    config: ml_collections.ConfigDict,
    arms: dict[str, RewardTransform],
    problem: Problem,
    learning_rate: jax.Array,
    kl_coefficient: jax.Array,
    first: jax.Array,
) -> jax.Array:
    """Trains a block from its start to its end.

    Args:
      config: whose `seeds` is the number of seeds in a block, `S`.
      arms: the remedies.
      problem: with all seeds.
      learning_rate: of each remedy under each noise, `[A, N]`.
      kl_coefficient: likewise.
      first: number of the block's first seed.

    Returns:
      Final test success `[A, N, S]`.
    """
    take = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, first, config.seeds)
    problem = problem._replace(
        train=take(problem.train),
        test=take(problem.test),
        starts=jax.tree.map(take, problem.starts),
    )
    hyper = make_hyper(config, learning_rate, kl_coefficient)
    population = digits_training.make_population(
        config, problem, arms, hyper, first_seed=first
    )
    one = make_update(config, problem, population, hyper, first)
    state = digits_training.start_state(config, problem, population)
    state = jax.lax.fori_loop(0, config.steps, lambda _, own: one(own), state)
    found = digits_training.make_evaluate(problem, population)(state)
    shape = learning_rate.shape[1:] + (config.seeds,)
    return jnp.stack([found[arm]["eval/success"].reshape(shape) for arm in arms])


def make_hyper(
    config: ml_collections.ConfigDict, learning_rate: jax.Array, kl_coefficient: jax.Array
) -> dict[str, Any]:
    """Knobs of a block's runs, `[A, M]`: noise x seed, seed fastest; of settings `[A, N]`."""
    shape = learning_rate.shape + (config.seeds,)
    told = np.asarray([config.noises[name].rates for name in config.noises], np.float32)
    columns = {
        "learning_rate": learning_rate[..., None],
        "kl_coefficient": kl_coefficient[..., None],
        "false_positive": told[None, :, :1],
        "false_negative": told[None, :, 1:],
    }
    flat = lambda own: jnp.broadcast_to(own, shape).reshape(shape[0], -1)
    seed = np.broadcast_to(np.arange(config.seeds, dtype=np.int32), shape)
    return {name: flat(own) for name, own in columns.items()} | {
        "seed": seed.reshape(shape[0], -1)  # known when tracing: it says which start is whose
    }


def make_update(config, problem: Problem, population, hyper, first: jax.Array):
    """`(state) -> state`, one update of every run of a block. Runs of a seed see the same draws."""
    prompts, rows = config.prompts_per_step, jnp.arange(config.seeds)
    told = {
        name: jnp.broadcast_to(hyper[name].reshape(-1, 1), (hyper[name].size, prompts))
        for name in ("false_positive", "false_negative")
    }
    data_key = jax.random.fold_in(jax.random.key(config.seed), 1)
    observed = make_observed(config, population)

    def draw(key, row):
        train = problem.train[row]
        return train[jax.random.randint(key, (prompts,), 0, train.shape[0])]

    def ask_start(key, params, features):
        log_p = digits_training.log_distribution(params, features)
        draws = jax.random.categorical(key, log_p, shape=(REFERENCES, prompts))
        return draws.T.astype(jnp.int32)

    def one(state):
        of_seed = jax.vmap(jax.random.fold_in, (None, 0))(data_key, first + rows)
        keys = jax.vmap(jax.random.fold_in, (0, None))(of_seed, state.runs.step[0])
        data, start, noise = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
        index = jax.vmap(draw)(data, rows)
        features, answers = problem.features[index], problem.answers[index]
        trajectories = population.rollout(state, features)
        references = jax.vmap(ask_start)(start, problem.starts, features)
        given = (noise, index, answers, references)
        rewards, mask, aux = observed(*given, trajectories.actions)
        return population.update(state, rewards, mask, trajectories, aux | told)[0]

    return one


def make_observed(config, population):
    """`(keys [S], ids, answers, references, actions) -> (rewards, mask, aux)` of all runs.

    Each noise on its own runs. All but the actions have the leading axis `[S]`: what is random is
    drawn once for all runs of a seed.
    """
    noises = [observe(build(config.noises[name].transform)) for name in config.noises]
    shape = (len(population.arms), len(noises), config.seeds)

    def one(noise, key, ids, answers, references, actions):
        keys = jax.random.split(key, 3)
        aux = describe(keys[0], ids, answers, actions)
        also = describe_references(keys[1], ids, answers, references)
        after = noise(keys[2], make_signal(aux["true_rewards"], **aux, **also))
        return after.rewards, after.mask, aux | {name: after.aux[name] for name in SEEN}

    def observed(*of_seeds_and_runs):
        *of_seeds, actions = of_seeds_and_runs
        actions = actions.reshape(shape + actions.shape[1:])
        found = []
        for i, noise in enumerate(noises):
            each_arm = jax.vmap(partial(one, noise), (None, None, None, None, 0))
            each = jax.vmap(each_arm, (0, 0, 0, 0, 1), 1)
            found.append(each(*of_seeds, actions[:, i]))
        join = lambda *leaves: jnp.stack(leaves, axis=1).reshape((-1,) + leaves[0].shape[2:])
        return jax.tree.map(join, *found)

    return observed


SEEN = ("verdicts", "reference_rewards")
"""Entries of `aux` that `observe` sets."""

BY_SAMPLE = (
    "true_rewards", "answer_id", "output_id", "hit", "by_sample_false_positive",
    "by_sample_false_negative",
)  # fmt: skip
"""What `describe` says of answers, and noises look at."""


def describe_references(key, ids, answers, references) -> dict[str, Any]:
    """`describe` of the reference answers `[P, M]`, under names of their own."""
    found = describe(key, ids, answers, references)
    return {REFERENCE + name: found[name] for name in BY_SAMPLE}


def describe(
    key: jax.Array, ids: jax.Array, answers: jax.Array, actions: jax.Array
) -> dict[str, Any]:
    """What the noises and remedies look at, for ids and answers `[P]`, actions `[P, G]`.

    Prompts with an odd id have a false negative rate of .6, the others none, and .3 and .1 of false
    positives; samples likewise by whether the digit they name is odd. The verifier with a
    hole accepts every 0. `second` is another judge, right with probability .7, and `predicted`
    the P(right) of a model that sees the truth through Gaussian noise (its best guess is right with
    probability .84).
    """
    true = (actions == answers[:, None]).astype(jnp.float32)
    odd_id, odd = ids % 2 == 1, actions % 2 == 1
    judge, model = jax.random.split(key)
    right = jax.random.bernoulli(judge, 0.7, true.shape)
    seen = 2.0 * true - 1.0 + jax.random.normal(model, true.shape, jnp.float32)
    number = actions.astype(jnp.uint32)
    return {
        "prompt_id": ids.astype(jnp.int32),
        "true_rewards": true,
        "answer_id": number + jnp.uint32(1),
        "reference_id": answers.astype(jnp.uint32) + jnp.uint32(1),
        "output_id": number,
        "hit": actions == 0,
        "second": jnp.where(right, true, 1.0 - true),
        "predicted": jax.nn.sigmoid(2.0 * seen),
        "by_prompt_false_positive": jnp.where(odd_id, 0.3, 0.1).astype(jnp.float32),
        "by_prompt_false_negative": jnp.where(odd_id, 0.6, 0.0).astype(jnp.float32),
        "by_sample_false_positive": jnp.where(odd, 0.3, 0.1).astype(jnp.float32),
        "by_sample_false_negative": jnp.where(odd, 0.5, 0.0).astype(jnp.float32),
    }
