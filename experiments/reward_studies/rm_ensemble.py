"""Over-optimisation of a learned reward, and ensembles against it (arXiv 2310.02743).

Members are trained on the same few pairs and differ in their start and the order of the data. They
agree where the pairs are; the gold reward falls far from there. Each aggregate is optimised by
best-of-n, by the policy that is optimal for the aggregate less KL (closed form on the same
candidates), and by policy gradient (`rm_ensemble_policy`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Float

from experiments.reward_studies import rm_ensemble_policy, toy_mlp
from experiments.studies import Study
from jaxreward.evaluation import best_of_n
from jaxreward.losses import preference
from jaxreward.tasks import preference_draws
from jaxreward.training import check, figures, fit
from jaxreward.transforms import aggregation


class Dials(NamedTuple):
    """A setting: share of flipped labels, share of far candidates, cost of being far."""

    flips: Float[Array, ""]
    far: Float[Array, ""]
    cost: Float[Array, ""]


class Pairs(NamedTuple):
    """Training pairs, the first preferred as labelled."""

    first: Float[Array, "J D"]
    second: Float[Array, "J D"]


def make(config: ml_collections.ConfigDict) -> Study:
    """The study.

    `config.study`: features, gold_width, hidden, pairs, batch, steps, learning_rate, l2, members,
    reference, prompts, candidates, far_scale, safe_radius, best_of, tilts, `settings` (each with
    flips, far and cost), `arms` (each with aggregate, members, policy_weight, policy_ddof and, of
    several members, weight and ddof), and `policy`, see there.
    """
    study = config.study
    _check(config)
    names = list(study.settings)

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        dials = Dials(
            *(
                jnp.array([study.settings[name][field] for name in names], jnp.float32)
                for field in Dials._fields
            )
        )
        found = jax.lax.map(lambda own: _setting(key, own, study), dials)
        found.update(compared(found))
        return {
            f"{name}/{arm}": {metric: values[i] for metric, values in own.items()}
            for i, name in enumerate(names)
            for arm, own in found.items()
        }

    return Study(run, draw=_draw)


def _check(config: ml_collections.ConfigDict) -> None:
    study = config.study
    names = ("features", "gold_width", "hidden", "safe_radius", "pairs", "batch", "steps",
             "learning_rate", "members", "prompts", "far_scale", "policy.steps",
             "policy.learning_rate", "policy.window")  # fmt: skip
    check.positive(config, *(f"study.{name}" for name in names))
    check.at_least(config, "study.l2", 0)
    check.at_least(config, "study.reference", 2, "a spread")
    check_optimization(config, study.members)
    for name in study.settings:
        check.rate(config, f"study.settings.{name}.flips")
        check.in_range(config, f"study.settings.{name}.far", 0, 1)
        check.at_least(config, f"study.settings.{name}.cost", 0)


def check_optimization(config: ml_collections.ConfigDict, members: int) -> None:
    """Checks the arms and how they are optimised, with so many members; see `make`.

    Raises:
      ConfigError: naming the key, the value and what is allowed.
    """
    study = config.study
    check.positive(config, "study.prompts", "study.policy.kl_budget")
    check.at_least(config, "study.candidates", 2, "a spread")
    check.at_least(config, "study.policy.group", 2, "a group baseline")
    check.divisible(config, "study.policy.steps", study.policy.window, "study.policy.window")
    for name in ("best_of", "tilts", "policy.kl_coefficients"):
        check.required(config, f"study.{name}")
        check.at_least(config, f"study.{name}", 1 if name == "best_of" else 0)
    for name in study.arms:
        arm = f"study.arms.{name}"
        check.choice(config, f"{arm}.aggregate", aggregation.AGGREGATES)
        check.in_range(config, f"{arm}.members", 1, members)
        for way in ("policy_",) if study.arms[name].members == 1 else ("policy_", ""):
            check.at_least(config, f"{arm}.{way}weight", 0)
            check.choice(config, f"{arm}.{way}ddof", (0, 1))


def compared(found: dict[str, dict[str, Array]]) -> dict[str, dict[str, Array]]:
    """From the results of all arms: `gain`, what the least of all members loses less than one; `nothing` loses 0."""
    single, worst = found["single"], found["worst_5"]
    losses = [name for name in single if name.endswith("/collapse")]
    return {
        "gain": {name: single[name] - worst[name] for name in losses},
        "nothing": {name: jnp.zeros_like(single[name]) for name in losses},
    }


def _setting(key: jax.Array, dials: Dials, study) -> dict[str, dict[str, Array]]:
    keys = jax.random.split(key, 6)
    params = toy_mlp.init(keys[0], (study.features, study.gold_width, 1))
    gold = lambda x: gold_reward(params, x, dials.cost, study.safe_radius)
    pairs = _pairs(keys[1], gold, dials.flips, study)
    members = jax.vmap(lambda k: _member(k, pairs, study))(jax.random.split(keys[2], study.members))
    near = jax.random.normal(keys[3], (study.reference, study.features))
    scale = aggregation.member_scale(member_scores(members, near))
    score = lambda x: aggregation.normalize_members(member_scores(members, x), scale)
    candidates = _candidates(keys[4], dials.far, study)
    unit = jnp.mean(gold(candidates)), jnp.std(gold(candidates))
    standard = lambda x: (gold(x) - unit[0]) / unit[1]
    scores, values = score(candidates), standard(candidates)
    results = {}
    for name in study.arms:
        arm = study.arms[name]
        results[name] = optimized(scores, values, arm, study)
        results[name].update(rm_ensemble_policy.optimize(keys[5], score, standard, arm, study))
    return results


# Gold reward, pairs, members


def gold_reward(
    params: toy_mlp.Params, x: Float[Array, "*B D"], cost: Array | float, safe_radius: float
) -> Float[Array, "*B"]:
    """`1.5 net(x) - cost relu(|x| / sqrt(D) - safe_radius)^2`, with a tanh network."""
    (kernel, bias), last = params
    one = lambda b: b.reshape((1,) * (x.ndim - 1) + (-1,))
    hidden = jnp.tanh(x @ kernel + one(bias))
    smooth = (hidden @ last[0] + one(last[1]))[..., 0]
    radius = jnp.sqrt(jnp.mean(jnp.square(x), axis=-1))
    return 1.5 * smooth - cost * jnp.square(jax.nn.relu(radius - safe_radius))


def _pairs(key: jax.Array, gold, flips: Array, study) -> Pairs:
    keys = jax.random.split(key)
    one, other = jax.random.normal(keys[0], (2, study.pairs, study.features))
    won = preference_draws.turn_round(keys[1], gold(one) >= gold(other), flips)
    return Pairs(*preference_draws.preferred_first(won, one, other))


def member_score(params: toy_mlp.Params, x: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """Of one member."""
    return toy_mlp.apply(params, x)[..., 0]


def member_scores(members: toy_mlp.Params, x: Float[Array, "*B D"]) -> Float[Array, "*B K"]:
    """Of all members."""
    return jnp.moveaxis(jax.vmap(member_score, (0, None))(members, x), 0, -1)


def _member(key: jax.Array, pairs: Pairs, study) -> toy_mlp.Params:
    """Its own start and order of the data."""
    keys = jax.random.split(key)

    def loss(params: toy_mlp.Params, batch: Pairs) -> Array:
        first, second = member_score(params, batch.first), member_score(params, batch.second)
        penalty = study.l2 * jnp.mean(preference.score_penalty(first, second))
        return preference.pair_loss(first - second, jnp.ones_like(first)) + penalty

    start = toy_mlp.init(keys[0], (study.features, *study.hidden, 1))
    sample = lambda k: fit.rows(pairs, k, study.batch)
    optimizer = optax.adam(study.learning_rate)
    return fit.fit(keys[1], start, loss, sample, optimizer, steps=study.steps)[0]


def _candidates(key: jax.Array, far: Array, study) -> Float[Array, "P M D"]:
    """Distributed as the pairs, but for a share that is `far_scale` times as far out."""
    keys = jax.random.split(key)
    x = jax.random.normal(keys[0], (study.prompts, study.candidates, study.features))
    is_far = jax.random.bernoulli(keys[1], far, x.shape[:2])
    return x * jnp.where(is_far, study.far_scale, 1.0)[:, :, None]


# Optimisation on candidates


def aggregates(scores: Float[Array, "*B K"], arm) -> Float[Array, "R *B"]:
    """What the arm optimises: one aggregate, or each of several runs of a single member."""
    own = scores[..., : arm.members]
    if arm.members == 1:
        return jnp.moveaxis(scores, -1, 0)
    return aggregation.aggregate_scores(own, arm.aggregate, weight=arm.weight, ddof=arm.ddof)[None]


def optimized(
    scores: Float[Array, "P M K"], gold: Float[Array, "P M"], arm, study
) -> dict[str, Array]:
    """Gold and proxy along both curves, averaged over runs."""
    each = jax.lax.map(lambda proxy: _both_curves(proxy, gold, study), aggregates(scores, arm))
    return {name: jnp.mean(values, axis=0) for name, values in each.items()}


def _both_curves(proxy: Float[Array, "P M"], gold: Array, study) -> dict[str, Array]:
    def picked(n: Array) -> tuple[Array, Array]:
        weights = jax.vmap(best_of_n.best_of_n_weights, (0, None))(proxy, n)
        return jnp.mean(jnp.sum(weights * gold, 1)), jnp.mean(jnp.sum(weights * proxy, 1))

    sizes = jnp.array(study.best_of, jnp.float32)
    bon = jax.lax.map(picked, sizes)
    tilts = jnp.array(study.tilts, jnp.float32)
    kl, *tilted = jax.lax.map(lambda t: _tilted(proxy, gold, t), tilts)
    found = {**_summary("best_of_n", best_of_n.best_of_n_kl(sizes), *bon)}
    return {**found, **_summary("tilted", kl, *tilted)}


def _tilted(proxy: Array, gold: Array, inverse: Array) -> tuple[Array, Array, Array]:
    """KL, gold and proxy of `pi ~ exp(inverse * proxy)` on the candidates, mean over prompts."""
    log_pi = jax.nn.log_softmax(inverse * proxy, axis=1)
    pi = jnp.exp(log_pi)
    kl = jnp.sum(pi * (log_pi + jnp.log(float(proxy.shape[1]))), axis=1)
    mean = lambda values: jnp.mean(jnp.sum(pi * values, axis=1))
    return jnp.mean(kl), mean(gold), mean(proxy)


def _summary(name: str, kl: Array, gold: Array, proxy: Array) -> dict[str, Array]:
    """`name/gold` at the end, `name/collapse` from the greatest gold, and the curves."""
    return {
        f"{name}/gold": gold[-1],
        f"{name}/best_gold": jnp.max(gold),
        f"{name}/collapse": jnp.max(gold) - gold[-1],
        f"{name}/kl_curve": kl,
        f"{name}/gold_curve": gold,
        f"{name}/proxy_curve": proxy,
    }


def _draw(config, found, results, axes) -> None:
    """Gold (lines) and proxy (dotted) against the KL of best-of-n, with wrong labels."""
    del results
    name = list(config.study.settings)[-2 if len(config.study.settings) > 2 else -1]
    own = {arm: found[f"{name}/{arm}"] for arm in config.study.arms}
    kl = np.asarray(best_of_n.best_of_n_kl(jnp.array(config.study.best_of, jnp.float32)))
    gold = {arm: metrics["best_of_n/gold_curve"] for arm, metrics in own.items()}
    figures.curves(axes, kl, gold, xlabel=f"KL of best-of-n, nats ({name})", ylabel="gold reward")
    for number, metrics in enumerate(own.values()):
        axes.plot(kl, metrics["best_of_n/proxy_curve"].mean(0), ":", color=f"C{number}")
