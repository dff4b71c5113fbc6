"""Does a benchmark of reward models predict what policies make of them? (arXiv 2410.01729)

Problems are sums of a few digits modulo a base; a solution writes the running totals in a style,
detailed or terse. Reward models of differing quality (data, label noise, taste for terse
solutions, which human solutions have) are scored by benchmarks and by best-of-n of a policy.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.reward_studies import toy_mlp
from experiments.studies import Study
from jaxreward.evaluation import best_of_n, reward_benchmarks, reward_sensitivity
from jaxreward.tasks import preference_draws
from jaxreward.training import check, fit

DETAILED, TERSE = 1.0, 0.0


class Solutions(NamedTuple):
    """Solutions of problems; leading axes are free.

    Attributes:
      digits: the problem.
      totals: the running totals that are written.
      style: `DETAILED` or `TERSE`.
    """

    digits: Int[Array, "*B D"]
    totals: Int[Array, "*B D"]
    style: Float[Array, "*B"]


class Pairs(NamedTuple):
    """Training pairs, the labelled winner first."""

    winner: Solutions
    loser: Solutions


class Dials(NamedTuple):
    """What makes a reward model good or bad.

    Attributes:
      size: training pairs.
      noise: share of flipped labels.
      shortcut: share of pairs that set a terse right solution against a detailed wrong one.
    """

    size: Int[Array, "K"]
    noise: Float[Array, "K"]
    shortcut: Float[Array, "K"]


def make(config: ml_collections.ConfigDict) -> Study:
    """The study.

    `config.study`: models, digits, base, pairs_least, pairs_most, noise_most, width, steps, batch,
    learning_rate, weight_decay, problems, rejected, samples, prompts, best_of, step_accuracy,
    detailed_share, tilt.
    """
    study = config.study
    _check(config)

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        keys = jax.random.split(key, 4)
        dials = _dials(keys[0], study)
        trained = jax.vmap(lambda k, d: _train(k, d, study))
        params = trained(jax.random.split(keys[1], study.models), dials)
        benchmarks = jax.vmap(lambda p: _benchmarks(p, keys[2], study))(params)
        used = jax.vmap(lambda p: _policy_use(p, keys[3], study))(params)
        return _results(benchmarks, used, study)

    return Study(run, draw=_draw)


def _check(config: ml_collections.ConfigDict) -> None:
    study = config.study
    names = ("digits", "pairs_least", "width", "steps", "batch", "learning_rate", "problems",
             "rejected", "samples", "prompts", "tilt")  # fmt: skip
    check.positive(config, *(f"study.{name}" for name in names))
    check.at_least(config, "study.models", 3, "thirds")
    check.at_least(config, "study.base", 2)
    check.at_least(config, "study.pairs_most", study.pairs_least, "study.pairs_least")
    check.at_least(config, "study.weight_decay", 0)
    check.in_range(config, "study.noise_most", 0, 0.5)
    check.in_range(config, "study.step_accuracy", 0, 1)
    check.in_range(config, "study.detailed_share", 0, 1)
    check.choice(config, "study.best_of", _sizes(study))


def _dials(key: jax.Array, study) -> Dials:
    keys = jax.random.split(key, 3)
    draw = lambda k, low, high: jax.random.uniform(k, (study.models,), jnp.float32, low, high)
    size = jnp.exp(draw(keys[0], math.log(study.pairs_least), math.log(study.pairs_most)))
    return Dials(
        size.astype(jnp.int32), draw(keys[1], 0.0, study.noise_most), draw(keys[2], 0.0, 1.0)
    )


# Solutions


def answer(solutions: Solutions) -> Int[Array, "*B"]:
    """The last total."""
    return solutions.totals[..., -1]


def is_right(solutions: Solutions, base: int) -> Bool[Array, "*B"]:
    """Whether the answer is the sum of the digits."""
    return answer(solutions) == jnp.sum(solutions.digits, axis=-1) % base


def write(
    key: jax.Array, digits: Int[Array, "*B D"], accuracy: Float[Array, "*B"] | float, base: int
) -> Int[Array, "*B D"]:
    """Running totals of a solver who adds each digit rightly with probability `accuracy`.

    An error is carried on.
    """
    wrong_key, by_key = jax.random.split(key)
    accuracy = jnp.broadcast_to(jnp.asarray(accuracy, jnp.float32)[..., None], digits.shape)
    wrong = ~jax.random.bernoulli(wrong_key, accuracy)
    off = jax.random.randint(by_key, digits.shape, 1, base)
    return jnp.cumsum(digits + jnp.where(wrong, off, 0), axis=-1) % base


def wrong_totals(
    key: jax.Array, digits: Int[Array, "*B D"], accuracy: Float[Array, "*B"] | float, base: int
) -> Int[Array, "*B D"]:
    """Running totals that end in a wrong answer: if they do not, one step is put off by one."""
    own, step_key = jax.random.split(key)
    totals = write(own, digits, accuracy, base)
    right = totals[..., -1] == jnp.sum(digits, axis=-1) % base
    first = jax.random.randint(step_key, right.shape, 0, digits.shape[-1])
    after = jnp.broadcast_to(jnp.arange(digits.shape[-1]), digits.shape) >= first[..., None]
    return (totals + (after & right[..., None]).astype(jnp.int32)) % base


def _problems(key: jax.Array, shape: tuple[int, ...], study) -> Int[Array, "*B D"]:
    return jax.random.randint(key, (*shape, study.digits), 0, study.base)


def _right(digits: Array, style: Array | float, study) -> Solutions:
    style = jnp.broadcast_to(jnp.asarray(style, jnp.float32), digits.shape[:-1])
    return Solutions(digits, jnp.cumsum(digits, axis=-1) % study.base, style)


def _wrong(key: jax.Array, digits: Array, study) -> Solutions:
    """Detailed wrong solutions by solvers of all kinds."""
    own, kind = jax.random.split(key)
    accuracy = jax.random.uniform(kind, digits.shape[:-1], jnp.float32, 0.5, 0.95)
    totals = wrong_totals(own, digits, accuracy, study.base)
    return Solutions(digits, totals, jnp.full(digits.shape[:-1], DETAILED))


# Reward models


def score(params: toy_mlp.Params, solutions: Solutions, base: int) -> Float[Array, "*B"]:
    """Sum over steps of a network that sees the total before, the digit, the total, the style."""
    before = jnp.pad(solutions.totals[..., :-1], [(0, 0)] * (solutions.totals.ndim - 1) + [(1, 0)])
    seen = [jax.nn.one_hot(x, base) for x in (before, solutions.digits, solutions.totals)]
    style = jnp.broadcast_to(solutions.style[..., None, None], (*solutions.totals.shape, 1))
    steps = toy_mlp.apply(params, jnp.concatenate([*seen, style], axis=-1))
    return jnp.sum(steps[..., 0], axis=-1)


def _pairs(key: jax.Array, dials: Dials, study) -> Pairs:
    keys = jax.random.split(key, 4)
    count = study.pairs_most
    digits = _problems(keys[0], (count,), study)
    human = jax.random.bernoulli(keys[1], dials.shortcut, (count,))
    right = _right(digits, jnp.where(human, TERSE, DETAILED), study)
    wrong = _wrong(keys[2], digits, study)
    won = preference_draws.turn_round(keys[3], jnp.ones(count, bool), dials.noise)
    return Pairs(*preference_draws.preferred_first(won, right, wrong))


def _train(key: jax.Array, dials: Dials, study) -> toy_mlp.Params:
    keys = jax.random.split(key, 3)
    pairs = _pairs(keys[0], dials, study)
    params = toy_mlp.init(keys[1], (3 * study.base + 1, study.width, 1))

    def sample(key):
        index = jax.random.randint(key, (study.batch,), 0, dials.size)
        return jax.tree.map(lambda leaf: leaf[index], pairs)

    def loss(params, batch):
        margin = score(params, batch.winner, study.base) - score(params, batch.loser, study.base)
        return jnp.mean(jax.nn.softplus(-margin))

    optimizer = optax.adamw(study.learning_rate, weight_decay=study.weight_decay)
    return fit.fit(keys[2], params, loss, sample, optimizer, steps=study.steps)[0]


# What is measured


def _benchmarks(params, key: jax.Array, study) -> dict[str, Array]:
    """Scores of one reward model on the benchmarks."""
    keys = jax.random.split(key)
    digits = _problems(keys[0], (study.problems,), study)
    each = lambda style: score(params, _right(digits, style, study), study.base)
    many = jnp.broadcast_to(digits[:, None], (study.problems, study.rejected, study.digits))
    rejected = score(params, _wrong(keys[1], many, study), study.base)
    detailed = reward_benchmarks.one_to_many(each(DETAILED), rejected)
    human = reward_benchmarks.one_to_many(each(TERSE), rejected)
    return {
        "one_to_many_accuracy": detailed.accuracy,
        "one_to_many_rank": detailed.reciprocal_rank,
        "one_to_one_other_style": reward_benchmarks.one_to_many(each(TERSE), rejected[:, :1]).accuracy,
        "one_to_one_same_style": reward_benchmarks.one_to_many(
            each(DETAILED), rejected[:, :1]).accuracy,
        "one_to_many_other_style": human.reciprocal_rank,
    }


def _policy_use(params, key: jax.Array, study) -> dict[str, Array]:
    """Gold reward of best-of-n and of the policy that trades reward for KL, for one model."""
    keys = jax.random.split(key, 3)
    shape = (study.prompts, study.samples)
    digits = jnp.broadcast_to(_problems(keys[0], (study.prompts, 1), study), (*shape, study.digits))
    totals = write(keys[1], digits, study.step_accuracy, study.base)
    detailed = jax.random.bernoulli(keys[2], study.detailed_share, shape)
    solutions = Solutions(digits, totals, jnp.where(detailed, DETAILED, TERSE))
    proxy = score(params, solutions, study.base)
    gold = is_right(solutions, study.base).astype(jnp.float32)
    at = jax.vmap(best_of_n.best_of_n, (0, 0, None))
    sizes = _sizes(study)
    curve = jnp.stack([jnp.mean(at(proxy, gold, n)) for n in sizes])
    tilted = jax.nn.softmax(proxy / (jnp.std(proxy) * study.tilt), axis=-1)
    return {
        "best_of_n": curve[sizes.index(study.best_of)],
        "tilted": jnp.mean(jnp.sum(tilted * gold, axis=-1)),
        "collapse": jnp.max(curve) - curve[-1],
        "curve": curve,
    }


def _sizes(study) -> list[int]:
    return [2**i for i in range(study.samples.bit_length())]


def _results(benchmarks: dict[str, Array], used: dict[str, Array], study) -> dict:
    square = lambda a, b: jnp.square(reward_sensitivity.correlation(a, b))
    results = {
        name: {
            "r2_best_of_n": square(values, used["best_of_n"]),
            "r2_tilted": square(values, used["tilted"]),
            "mean_score": jnp.mean(values),
            "models": values,
            "gold": used["best_of_n"],
        }
        for name, values in benchmarks.items()
    }
    order = jnp.argsort(benchmarks["one_to_many_rank"])
    third = study.models // 3
    for name, chosen in (("lowest_third", order[:third]), ("highest_third", order[-third:])):
        results[name] = {
            "collapse": jnp.mean(used["collapse"][chosen]),
            "gold_curve": jnp.mean(used["curve"][chosen], axis=0),
        }
    return results


def _draw(config, found, results, axes) -> None:
    """Gold reward of best-of-n against the root of its KL, by reciprocal rank."""
    root = jnp.sqrt(best_of_n.best_of_n_kl(jnp.array(_sizes(config.study))))
    for name in ("highest_third", "lowest_third"):
        axes.plot(root, found[name]["gold_curve"].mean(0), "o-", label=f"{name} of reciprocal rank")
    axes.set_xlabel("square root of KL (nats)")
    axes.set_ylabel("gold reward of best-of-n")
    axes.legend(fontsize="small", frameon=False)
