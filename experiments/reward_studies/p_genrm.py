"""Scores averaged over sampled rubrics of a user and of similar users, in closed form.

A user's latent weights are those of a cluster plus an own part; pairs are differences of features
whose preferred side the weights say. From a short history with wrong labels comes an estimate of
the weights, the persona. A generation is a rubric, the estimate plus noise (temperature 1), and
its score of a pair `tanh(rubric . difference)`. Training users give prototypes by K-means on their
estimates; test users are new.

Each column of the table is a scenario: how many clusters there are, how far users spread in one,
the length of the history, the noise of a generation.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Bool, Float

from experiments import studies
from jaxreward.rewards import prototypes, rubric_scores
from jaxreward.tasks import preference_draws
from jaxreward.training import check

SCENARIOS = {
    "tight": dict(spread=0.2, history=3, sigma=0.5),
    "loose": dict(spread=1.0, history=3, sigma=0.5),
    "cold": dict(spread=0.2, history=1, sigma=0.5),
    "long": dict(spread=0.2, history=8, sigma=0.5),
    "long_loose": dict(spread=1.0, history=8, sigma=0.5),
    "hurt": dict(spread=2.0, history=3, sigma=0.8),
    "few": dict(spread=0.2, history=3, sigma=0.5),
    "few_loose": dict(spread=1.0, history=3, sigma=0.5),
    "few_cold": dict(spread=0.2, history=1, sigma=0.5),
}
"""Those named `few...` have `few_clusters`, the others `clusters`."""

SPREADS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
"""Of the sweep, with the history and the noise of "few"."""

ARMS = {
    "ind_1": (1, 0), "ind_8": (8, 0), "ind_24": (24, 0), "ind_32": (32, 0),
    "pro_8": (0, 8), "pro_32": (0, 32), "ind_16_pro_8": (16, 8), "ind_16_pro_16": (16, 16),
    "ind_16_pro_32": (16, 32),
}  # fmt: skip
"""Generations for the user, and from neighbours."""

MOST = 32


class Setting(NamedTuple):
    """A scenario, every field an array."""

    spread: Array
    history: Array
    sigma: Array


class Users(NamedTuple):
    """Latent weights and what the history says of them, both of length 1."""

    weights: Float[Array, "U D"]
    estimate: Float[Array, "U D"]


def make(config: ml_collections.ConfigDict) -> studies.Study:
    """The study of `configs/p_genrm.py`."""
    own = config.study
    check.positive(config, "study.users", "study.clusters", "study.tested", "study.pairs")
    check.positive(config, "study.criteria")
    check.positive(config, "study.few_clusters")
    check.in_range(config, "study.clusters", 1, own.users)
    check.in_range(config, "study.few_clusters", 1, own.users)
    check.at_least(config, "study.users", MOST)
    check.rate(config, "study.flips")

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        few = {n: s for n, s in SCENARIOS.items() if n.startswith("few")}
        many = {n: s for n, s in SCENARIOS.items() if n not in few}
        sweep = {spread: dict(SCENARIOS["few"], spread=spread) for spread in SPREADS}
        found = _scenarios(key, own, own.clusters, many)
        for arm, values in _scenarios(key, own, own.few_clusters, few | sweep).items():
            found[arm].update(values)
            found[arm]["by_spread"] = jnp.stack([found[arm].pop(spread) for spread in SPREADS])
        return found | _gains(found)

    return studies.Study(run, draw=draw)


def _scenarios(key: jax.Array, own, clusters: int, settings: dict) -> dict[str, dict]:
    """Accuracy by arm and setting."""
    table = {f: jnp.asarray([s[f] for s in settings.values()]) for f in Setting._fields}
    table = jax.tree.map(lambda column: column.astype(jnp.float32), Setting(**table))
    found = jax.lax.map(lambda setting: _scenario(key, own, clusters, setting), table)
    return {arm: dict(zip(settings, values)) for arm, values in found.items()}


def _gains(found: dict[str, dict]) -> dict[str, dict]:
    """What 8 neighbours beside 16 own generations add to 24 own ones, by the history's length."""
    gain = lambda name: found["ind_16_pro_8"][name] - found["ind_24"][name]
    return {
        f"gain_of_{pairs}": {"gain": gain(many), "gain_few": gain(few)}
        for pairs, many, few in ((1, "cold", "few_cold"), (3, "tight", "few"))
    }


def draw_users(key: jax.Array, own, centres: Array, setting: Setting, count: int) -> Users:
    """Users of random clusters, each with a history of its own."""
    keys = jax.random.split(key, 4)
    cluster = jax.random.randint(keys[0], (count,), 0, centres.shape[0])
    apart = preference_draws.own_tastes(keys[1], count, own.criteria)
    weights = prototypes.normalize(centres[cluster] + setting.spread * apart)
    pairs = jax.random.normal(keys[2], (count, 8, own.criteria))
    better = (jnp.einsum("uhd,ud->uh", pairs, weights) > 0).astype(jnp.float32)
    labels = 2.0 * preference_draws.turn_round(keys[3], better, own.flips) - 1.0
    seen = (jnp.arange(8.0) < setting.history).astype(jnp.float32)
    estimate = jnp.einsum("uh,h,uhd->ud", labels, seen, pairs)
    return Users(weights, prototypes.normalize(estimate))


def _scenario(key: jax.Array, own, clusters: int, setting: Setting) -> dict[str, Array]:
    """Accuracy of every arm on the true preferences of new users."""
    keys = jax.random.split(key, 7)
    centres = prototypes.normalize(jax.random.normal(keys[0], (clusters, own.criteria)))
    train = draw_users(keys[1], own, centres, setting, own.users)
    test = draw_users(keys[2], own, centres, setting, own.tested)
    found = prototypes.normalize(prototypes.kmeans(keys[3], train.estimate, clusters))
    members = prototypes.assign(train.estimate, found)
    near = prototypes.neighbours(test.estimate, train.estimate, members, found, count=MOST)
    pairs = jax.random.normal(keys[4], (own.tested, own.pairs, own.criteria))
    right = jnp.einsum("upd,ud->up", pairs, test.weights) > 0
    themselves = jnp.broadcast_to(test.estimate[:, None], near.index.shape + (own.criteria,))
    individual = _generate(keys[5], setting, themselves, pairs)
    others = _generate(keys[6], setting, train.estimate[near.index], pairs)
    accuracy = lambda choice: jnp.mean((choice == 0) == right, dtype=jnp.float32)
    result = {}
    for arm, (m, n) in ARMS.items():
        valid = jnp.broadcast_to(near.valid[:, None, :n, None], others[:, :, :n].shape)
        scaled = rubric_scores.scale_scores(individual[:, :, :m], others[:, :, :n], None, valid)
        result[arm] = accuracy(scaled.choice)
    return result | _references(test, found, pairs, right)


def _generate(key: jax.Array, setting: Setting, personas: Array, pairs: Array) -> Array:
    """Scores `[U, pairs, samples, 2]` of one rubric for every persona `[U, samples, D]` and pair."""
    users, samples, size = personas.shape
    noise = jax.random.normal(key, (users, pairs.shape[1], samples, size))
    rubrics = personas[:, None] + setting.sigma * noise
    score = jnp.tanh(jnp.einsum("upsd,upd->ups", rubrics, pairs))
    return jnp.stack([score, -score], axis=-1)


def _references(test: Users, found: Array, pairs: Array, right: Bool[Array, "U P"]):
    """Choices without generations: the estimate, its prototype, both, and the latent weights."""
    own = found[prototypes.assign(test.estimate, found)]
    agree = lambda w: jnp.mean((jnp.einsum("upd,ud->up", pairs, w) > 0) == right, dtype=jnp.float32)
    return {
        "estimate": agree(test.estimate),
        "prototype": agree(own),
        "estimate_and_prototype": agree(test.estimate + own),
        "oracle": agree(test.weights),
    }


def draw(config, found: studies.Found, results, axes) -> None:
    """Gain over as many individual generations, by the spread of the clusters."""
    del config, results
    for arm, same in (("pro_8", "ind_8"), ("ind_16_pro_8", "ind_24"), ("ind_16_pro_16", "ind_32")):
        gain = (found[arm]["by_spread"] - found[same]["by_spread"]).mean(0)
        axes.plot(SPREADS, gain, marker="o", label=f"{arm} over {same}")
    axes.axhline(0.0, color="grey", linewidth=0.8)
    axes.set(xlabel="spread of users in a cluster", ylabel="gain in accuracy")
    axes.legend()
