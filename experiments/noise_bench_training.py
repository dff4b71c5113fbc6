"""The noise bench's runs: one noise for each member, one remedy for each arm, one program.

Two such programs: every remedy is tuned under every noise over learning rates x KL coefficients,
on seeds of its own, and then run at its best on the seeds that are reported.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import tqdm

from experiments import digits_training
from experiments.digits_training import Problem
from jaxreward.training.config import build
from jaxreward.training.exits import ConfigError
from jaxreward.transforms import advantage, base
from jaxreward.transforms.base import RewardTransform
from jaxreward.types import Signal, make_signal

CALL = 50  # updates between two lines of progress

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


def train(config: ml_collections.ConfigDict, arms: dict[str, RewardTransform]) -> Outcome:
    """Tunes every remedy under every noise, and trains it at its best."""
    grid = candidates(config, len(arms))
    tuned = _success(config, arms, grid, range(config.seeds, config.seeds + config.tuning_seeds))
    chosen = best(grid, tuned)
    success = _success(config, arms, chosen, range(config.seeds))
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


def make_hyper(
    config: ml_collections.ConfigDict, settings: Settings, seeds: int
) -> dict[str, jax.Array]:
    """Knobs of every run, `[A, M]`: noise x candidate x seed, seed fastest."""
    shape = settings.learning_rate.shape + (seeds,)
    told = np.asarray([config.noises[name].rates for name in config.noises], np.float32)
    columns = {
        "learning_rate": settings.learning_rate.astype(np.float32)[..., None],
        "kl_coefficient": settings.kl_coefficient.astype(np.float32)[..., None],
        "seed": np.arange(seeds, dtype=np.int32)[None, None, None, :],
        "false_positive": told[:, 0][None, :, None, None],
        "false_negative": told[:, 1][None, :, None, None],
    }
    return {
        name: jnp.asarray(np.broadcast_to(value, shape).reshape(shape[0], -1))
        for name, value in columns.items()
    }


def _success(
    config, arms: dict[str, RewardTransform], settings: Settings, seeds: range
) -> np.ndarray:
    """Final test success `[arms, noises, C, seeds]` on the seeds with these numbers."""
    optimizer = ml_collections.ConfigDict(dict(config.optimizer, steps=config.steps))
    changes = dict(seeds=seeds.stop, optimizer=optimizer)
    own = ml_collections.ConfigDict({**dict(config.items()), **changes})
    problem = digits_training.load_problem(own)
    problem = problem._replace(
        train=problem.train[seeds.start :],
        test=problem.test[seeds.start :],
        starts=jax.tree.map(lambda leaf: leaf[seeds.start :], problem.starts),
    )
    hyper = make_hyper(config, settings, len(seeds))
    population = digits_training.make_population(own, problem, arms, hyper)
    many = make_step(config, problem, population, hyper, seeds)
    state = digits_training.start_state(own, problem, population)
    calls = max(config.steps // CALL, 1)
    what = "tune" if seeds.start else "compare"
    for done in tqdm.trange(calls, desc=f"noise bench, {what}", unit="call", mininterval=10.0):
        state = many(state, config.steps // calls + (done < config.steps % calls))
    found = digits_training.make_evaluate(problem, population)(state)
    shape = settings.learning_rate.shape[1:] + (len(seeds),)
    return np.stack([np.asarray(found[a]["eval/success"]).reshape(shape) for a in arms])


def make_step(config, problem: Problem, population, hyper, seeds: range):
    """`(state, updates) -> state`."""
    prompts, numbers = config.prompts_per_step, jnp.arange(seeds.start, seeds.stop)
    rows = jnp.arange(len(seeds))
    told = {
        name: jnp.broadcast_to(hyper[name].reshape(-1, 1), (hyper[name].size, prompts))
        for name in ("false_positive", "false_negative")
    }
    data_key = jax.random.fold_in(jax.random.key(config.seed), 1)
    corrupt = make_corruption(config, population)

    def draw(row, seed, step):
        key = jax.random.fold_in(jax.random.fold_in(data_key, seed), step)
        train = problem.train[row]
        return train[jax.random.randint(key, (prompts,), 0, train.shape[0])]

    def ask_start(key, params, features):
        log_p = digits_training.log_distribution(params, features)
        draws = jax.random.categorical(key, log_p, shape=(REFERENCES, prompts))
        return draws.T.astype(jnp.int32)

    def one(state):
        step = state.runs.step[0]
        index = jax.vmap(draw, in_axes=(0, 0, None))(rows, numbers, step)
        features = problem.features[index]
        trajectories = population.rollout(state, features)
        keys = jax.random.split(jax.random.fold_in(data_key, step + (1 << 20)), 3 + len(seeds))
        references = population.per_seed(jax.vmap(ask_start)(keys[3:], problem.starts, features))
        ids, answers = population.per_seed(index), population.per_seed(problem.answers[index])
        aux = describe(keys[0], ids, answers, trajectories.actions)
        aux |= told | describe_references(keys[1], ids, answers, references)
        rewards, mask, found = corrupt(keys[2], aux)
        return population.update(state, rewards, mask, trajectories, aux | found)[0]

    def run(state, updates):
        return jax.lax.fori_loop(0, updates, lambda _, own: one(own), state)

    return jax.jit(run, donate_argnums=0)


def make_corruption(config, population):
    """`(key, aux of all runs) -> (rewards, mask, aux of the noise)`: each noise on its own runs."""
    noises = [observe(build(config.noises[name].transform)) for name in config.noises]
    arms, members = len(population.arms), population.members
    by_noise = lambda x: x.reshape((arms, len(noises), members // len(noises)) + x.shape[1:])

    def corrupt(key, aux):
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(population.seed_of_run))
        keys, aux = by_noise(keys), jax.tree.map(by_noise, aux)
        found = []
        for i, noise in enumerate(noises):
            clean = jax.vmap(jax.vmap(lambda own: make_signal(own["true_rewards"], **own)))
            own = clean(jax.tree.map(lambda x: x[:, i], aux))
            after = jax.vmap(jax.vmap(noise))(keys[:, i], own)
            found.append((after.rewards, after.mask, {name: after.aux[name] for name in SET}))
        join = lambda *leaves: jnp.stack(leaves, axis=1).reshape((-1,) + leaves[0].shape[2:])
        return jax.tree.map(join, *found)

    return corrupt


SET = ("verdicts", "reference_rewards")
"""Entries of `aux` that `observe` sets."""


BY_SAMPLE = (
    "true_rewards", "answer_id", "output_id", "hit", "by_sample_false_positive",
    "by_sample_false_negative",
)  # fmt: skip
"""What `describe` says of answers, and noises look at."""


def describe_references(key, ids, answers, references) -> dict[str, Any]:
    """`describe` of the reference answers `[R, P, M]`, under names of their own."""
    found = describe(key, ids, answers, references)
    return {REFERENCE + name: found[name] for name in BY_SAMPLE}


def describe(
    key: jax.Array, ids: jax.Array, answers: jax.Array, actions: jax.Array
) -> dict[str, Any]:
    """What the noises and remedies look at, for ids and answers `[R, P]`, actions `[R, P, G]`.

    Prompts with an odd id have a false negative rate of .6, the others none, and .3 and .1 of false
    positives; samples likewise by whether the digit they name is odd. The verifier with a
    hole accepts every 0. `second` is another judge, right with probability .7, and `predicted`
    the P(right) of a model that sees the truth through Gaussian noise (its best guess is right with
    probability .84).
    """
    true = (actions == answers[:, :, None]).astype(jnp.float32)
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
