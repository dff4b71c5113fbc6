"""Distances of rewards against regret in random MDPs (arXiv 2309.15257, section 5).

For every metric: its correlation with regret over pairs of random rewards and what lies between
them, how far apart it sees equivalent rewards, and for "VAL-2-2" whether its bounds hold.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float

from experiments.studies import Study
from jaxreward.evaluation import finite_mdp, reward_distances
from jaxreward.evaluation.reward_distances import reward_distance, reward_metric
from jaxreward.tasks import random_mdps
from jaxreward.training import check
from jaxreward.training.exits import ConfigError

BOUNDED = "VAL-2-2"
"""The metric whose bounds on regret are looked at."""


class Pairs(NamedTuple):
    """What is measured of pairs of rewards; the last axis is the metric.

    Attributes:
      distance: of the two rewards.
      regret: of optimising one where the other counts.
      worst: worst-case regret, averaged both ways.
      bounded: whether the bounds of "VAL-2-2" hold.
    """

    distance: Float[Array, "*pairs K"]
    regret: Float[Array, "*pairs"]
    worst: Float[Array, "*pairs"]
    bounded: Array


def make(config: ml_collections.ConfigDict) -> Study:
    """The study, in double precision, as the invariances are to be shown to many digits.

    `config.study`: metrics, states, actions, discount, mdps, mdps_at_a_time, pairs, steps,
    absent_logit (of transitions that nearly never happen), invariance_mdps (where those never
    do).
    """
    study = config.study
    _check(config)
    metrics = {name: reward_metric(name) for name in study.metrics}
    one_pair = lambda key: _pair(key, study, metrics)
    measure = jax.jit(lambda keys: jax.lax.map(one_pair, keys, batch_size=study.mdps_at_a_time))
    invariance = jax.jit(jax.vmap(lambda key: _invariance(key, study, metrics)))

    def run(key: jax.Array) -> dict:
        own, other = jax.random.split(key)
        with jax.enable_x64(True):
            found = measure(jax.random.split(own, study.mdps))
            far = np.asarray(invariance(jax.random.split(other, study.invariance_mdps)))
            found = jax.tree.map(np.asarray, found)
        return _results(tuple(metrics), found, far)

    return Study(run, on_host=True, draw=_draw)


def _check(config: ml_collections.ConfigDict) -> None:
    names = ("mdps", "mdps_at_a_time", "pairs", "steps", "invariance_mdps")
    check.positive(config, *(f"study.{name}" for name in names))
    for name in ("states", "actions"):
        check.at_least(config, f"study.{name}", 2)
    check.in_range(config, "study.discount", 0, 1, "()")
    check.in_range(config, "study.absent_logit", -500, 0)
    check.required(config, "study.metrics")
    shown = f"config.study.metrics = {config.study.metrics!r}"
    for name in config.study.metrics:
        try:
            reward_metric(name)
        except ValueError as error:
            raise ConfigError(f"{shown}: {error}") from error
    if BOUNDED not in config.study.metrics:
        raise ConfigError(f"{shown}; allowed are metrics of which one is {BOUNDED!r}")
    check.choice(config, "study.drawn", config.study.metrics)


def _mdp(key: jax.Array, study, **options) -> finite_mdp.FiniteMDP:
    return random_mdps.random_mdp(
        key, study.states, study.actions, study.discount, dtype=jnp.float64, **options
    )


def _pair(key: jax.Array, study, metrics: dict) -> Pairs:
    """Pairs of rewards of one MDP and what lies between them."""
    own, rest = jax.random.split(key)
    mdp = _mdp(own, study, absent_logit=study.absent_logit)

    def compare(first, second):
        apart = jnp.stack([reward_distance(mdp, first, second, m) for m in metrics.values()])
        regret = finite_mdp.optimal_policy_regret(mdp, first, second)
        lower, upper = reward_distances.regret_bounds(mdp)
        bounded = apart[list(metrics).index(BOUNDED)]
        pair = jnp.stack([first, second])
        both = jax.vmap(finite_mdp.worst_case_regret, (None, 0, 0))(mdp, pair, pair[::-1])
        holds = (lower * bounded <= both + 1e-9) & (both <= upper * bounded + 1e-9)
        return Pairs(apart, regret, jnp.mean(both), jnp.all(holds))

    def path(key):
        first, second = (random_mdps.random_reward(k, mdp) for k in jax.random.split(key))
        others = random_mdps.between(first, second, study.steps)
        return jax.vmap(compare, (None, 0))(first, others)

    return jax.lax.map(path, jax.random.split(rest, study.pairs))


def _invariance(key: jax.Array, study, metrics: dict) -> Float[Array, "2 K"]:
    """How far apart a reward is from itself after scaling and shaping, and redistributed too."""
    own, draw, *rest = jax.random.split(key, 5)
    mdp = _mdp(own, study)
    reward = random_mdps.random_reward(draw, mdp)
    potential = 5.0 * jax.random.normal(rest[0], (study.states,), jnp.float64)
    scale = jax.random.uniform(rest[1], (), jnp.float64, 0.1, 10.0)
    shaped = reward_distances.shape(scale * reward, potential, study.discount)
    change = 5.0 * jax.random.normal(rest[2], reward.shape, jnp.float64)
    moved = reward_distances.redistribute(mdp, shaped, change)
    return jnp.stack([
        jnp.stack([reward_distance(mdp, reward, other, m) for m in metrics.values()])
        for other in (shaped, moved)
    ])


def _results(names: tuple[str, ...], found: Pairs, far: np.ndarray) -> dict:
    distance = found.distance.reshape(-1, len(names))
    regret, worst = found.regret.ravel(), found.worst.ravel()
    results = {
        name: {
            "regret_correlation": np.corrcoef(distance[:, i], regret)[0, 1],
            "worst_case_correlation": np.corrcoef(distance[:, i], worst)[0, 1],
            "shaped_distance": far[:, 0, i].max(),
            "equivalent_distance": far[:, :, i].max(),
            "distances": distance[:, i],
            "regrets": worst,
        }
        for i, name in enumerate(names)
    }
    results[BOUNDED]["bounds_hold"] = found.bounded.mean()
    results["exact"] = dict(shaped_distance=0.0, equivalent_distance=0.0, bounds_hold=1.0)
    return results


def _draw(config, found, results, axes) -> None:
    """Worst-case regret against distance, of the first seed."""
    for name in config.study.drawn:
        own = found[name]
        axes.plot(own["distances"][0], own["regrets"][0], ".", markersize=2, alpha=0.5, label=name)
    axes.set_xlabel("distance")
    axes.set_ylabel("worst-case regret")
    axes.legend(fontsize="small", frameon=False, markerscale=4)
