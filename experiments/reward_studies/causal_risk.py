"""Is a risk that is estimated from noisy, selected feedback that of all items? (CausalRM)

arXiv 2603.18736. At fixed predictions every estimate is compared with the mean loss over the
population under the true labels, on samples of growing size; then linear models are fitted by
each estimate and judged by that risk. Rates and propensities are the true ones, but for the arms
that say otherwise.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float

from experiments.reward_studies import feedback
from experiments.studies import Study
from jaxreward import channel as channels
from jaxreward.channel import Channel
from jaxreward.losses import pointwise, reduction
from jaxreward.training import check, figures
from jaxreward.training.exits import ConfigError
from jaxreward.types import Feedback

PREDICTIONS = ("rotate", "skew", "one", "four")


class Sample(NamedTuple):
    """Items with feedback.

    Attributes:
      data: feedback; labels are 0 where not observed.
      items: what they are; an estimate looks only at what its arm says it knows.
      logits: fixed predictions.
    """

    data: Feedback
    items: feedback.Items
    logits: Float[Array, "N"]


Targets = tuple[Float[Array, "N"], Float[Array, "N"], str]
"""Label and weight of each item, and what the weighted sum is divided by."""


def make(config: ml_collections.ConfigDict) -> Study:
    """The study.

    `config.study`: features, width, population, sizes, redraws, propensity, decay,
    false_positive, false_negative, newton_steps, fits.
    """
    study = config.study
    names = ("features", "width", "population", "sizes", "redraws", "newton_steps", "fits")
    check.positive(config, *(f"study.{name}" for name in names))
    if len(set(study.sizes)) < 2:
        allowed = "two or more that differ, for a slope"
        raise ConfigError(f"config.study.sizes = {study.sizes!r}; allowed is {allowed}")
    for name in ("propensity", "decay"):
        check.in_range(config, f"study.{name}", 0, 1, "(]")
    check.correctable(config, "study.false_positive", "study.false_negative")

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        keys = jax.random.split(key, 5)
        gold = feedback.make_gold(keys[0], study.features, study.width)
        items = feedback.sample_items(
            keys[1], gold, study.population, decay=study.decay, mean=study.propensity
        )
        results = _fixed(keys[2], items, study)
        results.update(_fitted(keys[3], items, study))
        return results

    return Study(run, draw=_draw)


def predictions(
    key: jax.Array, kind: str, items: feedback.Items
) -> Float[Array, "N"]:
    """Logits that are wrong in a known way: each level counts as P(liked) 0.1, 0.3, ... 0.9.

    "rotate" predicts the level below (the highest for the lowest), "skew" adds Gaussian noise,
    "one" takes as many of the lowest level as there are of the highest for the highest, "four" so
    for the fourth. Five levels.
    """
    level = items.level
    if kind == "rotate":
        level = (level - 1) % 5
    if kind in ("one", "four"):
        source = 0 if kind == "one" else 3
        taken = jax.random.bernoulli(key, 0.5, level.shape)
        level = jnp.where((level == source) & taken, 4, level)
    chance = 0.1 + 0.2 * level.astype(jnp.float32)
    logits = jnp.log(chance) - jnp.log1p(-chance)
    noise = jax.random.normal(key, level.shape)
    return logits + noise * (1.0 - chance) * 2.0 if kind == "skew" else logits


# Estimates


def estimators(channel: Channel) -> dict[str, Callable[[Sample], Targets]]:
    """Targets by arm; the estimate is the reduced `weight * cross_entropy(logit, label)`."""
    clean, nothing = channels.correct, jnp.full_like
    seen = lambda items: channels.observed_mean(items.liked, channel)
    return {
        "naive": lambda s: _observed(s.data.labels, s.data),
        "denoise": lambda s: _observed(clean(s.data.labels, channel), s.data),
        "ips": lambda s: _weighted(s.data.labels, s.data),
        "causal_ips": lambda s: _weighted(clean(s.data.labels, channel), s.data),
        "causal_ips_wrong_propensity": lambda s: _weighted(
            clean(s.data.labels, channel), _constant_propensity(s.data)
        ),
        "causal_dr": lambda s: _robust(
            clean(s.data.labels, channel), nothing(s.items.liked, 0.5), s.data
        ),
        "causal_dr_wrong_propensity": lambda s: _robust(
            clean(s.data.labels, channel), s.items.liked, _constant_propensity(s.data)
        ),
        "causal_dr_wrong_propensity_noisy_imputation": lambda s: _robust(
            clean(s.data.labels, channel), seen(s.items), _constant_propensity(s.data)
        ),
    }


def _observed(label: Array, data: Feedback) -> Targets:
    return label, data.observed.astype(jnp.float32), "weights"


def _weighted(label: Array, data: Feedback) -> Targets:
    ones = jnp.ones_like(label)
    weight = pointwise.inverse_propensity(ones, data.observed, data.propensity, clip=1e-3)
    return label, weight, "batch"


def _robust(label: Array, imputed: Array, data: Feedback) -> Targets:
    label = pointwise.doubly_robust_label(
        label, imputed, data.observed, data.propensity, clip=1e-3
    )
    return label, jnp.ones_like(label), "batch"


def _constant_propensity(data: Feedback) -> Feedback:
    return Feedback(
        data.items,
        data.labels,
        data.observed,
        jnp.full_like(data.propensity, jnp.mean(data.propensity)),
        data.annotator,
    )


def risk(logits: Float[Array, "N"], targets: Targets) -> Float[Array, ""]:
    """The estimate at these predictions."""
    label, weight, divide_by = targets
    return reduction.mean(
        pointwise.cross_entropy(logits, label), weight, divide_by=divide_by
    )


def draw_sample(
    key: jax.Array, items: feedback.Items, logits: Array, channel: Channel, count: int
) -> Sample:
    """`count` items, with replacement, and feedback on them."""
    keys = jax.random.split(key)
    index = jax.random.randint(keys[0], (count,), 0, logits.shape[0])
    chosen, logits = jax.tree.map(lambda leaf: leaf[index], (items, logits))
    data = feedback.observe(keys[1], chosen, channel)
    labels = jnp.where(data.observed, data.labels, 0.0)
    data = Feedback(data.items, labels, data.observed, data.propensity, data.annotator)
    return Sample(data, chosen, logits)


# Fixed predictions


def _channel(study) -> Channel:
    return channels.binary(study.false_positive, study.false_negative)


def _fixed(key: jax.Array, items: feedback.Items, study) -> dict[str, dict[str, Any]]:
    """Bias at the largest sample and root mean square error by size, averaged over predictions."""
    channel = _channel(study)
    arms = estimators(channel)

    def gaps(key: jax.Array, logits: Array, count: int) -> dict[str, Array]:
        ideal = jnp.mean(pointwise.cross_entropy(logits, items.liked))

        def once(key):
            sample = draw_sample(key, items, logits, channel, count)
            return {arm: risk(sample.logits, make(sample)) - ideal for arm, make in arms.items()}

        return jax.lax.map(once, jax.random.split(key, study.redraws))

    each = []
    for number, kind in enumerate(PREDICTIONS):
        own = jax.random.fold_in(key, number)
        logits = predictions(own, kind, items)
        each.append([gaps(jax.random.fold_in(own, n), logits, n) for n in study.sizes])
    results = {}
    for arm in arms:
        bias = jnp.stack([jnp.abs(jnp.mean(sizes[-1][arm])) for sizes in each])
        error = jnp.stack([
            jnp.stack([jnp.sqrt(jnp.mean(jnp.square(gap[arm]))) for gap in sizes])
            for sizes in each
        ])
        error = jnp.mean(error, axis=0)
        results[f"risk/{arm}"] = {
            "bias": jnp.mean(bias), "slope": _slope(study.sizes, error), "error": error
        }
    results["risk/root_n"] = {"slope": jnp.float32(-0.5)}
    return results


def _slope(sizes: tuple[int, ...], values: Float[Array, "M"]) -> Float[Array, ""]:
    """Of the logarithm of the values against that of the sizes, by least squares."""
    x = jnp.log(jnp.array(sizes, jnp.float32))
    x = x - jnp.mean(x)
    return jnp.sum(x * jnp.log(values)) / jnp.sum(jnp.square(x))


# Fitted models


def _fitted(key: jax.Array, items: feedback.Items, study) -> dict[str, dict[str, Any]]:
    """Excess risk over the best linear model, by size of the sample, for each arm."""
    channel = _channel(study)
    arms = estimators(channel)
    design = _with_constant(items.x)
    ones = jnp.ones_like(items.liked)
    judge = lambda w: jnp.mean(pointwise.cross_entropy(design @ w, items.liked))
    best = judge(_logistic(design, items.liked, ones, study.newton_steps))

    def excess(key: jax.Array, count: int) -> dict[str, Array]:
        sample = draw_sample(key, items, ones, channel, count)
        x, found = _with_constant(sample.items.x), {}
        for arm in ("naive", "ips", "denoise", "causal_ips", "causal_dr"):
            label, weight, _ = arms[arm](sample)
            found[arm] = judge(_logistic(x, label, weight, study.newton_steps)) - best
        return found

    by_size = [
        jax.lax.map(
            lambda k, n=n: excess(k, n), jax.random.split(jax.random.fold_in(key, n), study.fits)
        )
        for n in study.sizes
    ]
    results = {}
    for arm in by_size[0]:
        curve = jnp.stack([jnp.mean(found[arm]) for found in by_size])
        slope = _slope(study.sizes, curve)
        results[f"fitted/{arm}"] = {"excess": curve, "excess_at_most": curve[-1], "slope": slope}
    return results


def _with_constant(x: Float[Array, "N D"]) -> Float[Array, "N E"]:
    return jnp.concatenate([x, jnp.ones((x.shape[0], 1))], axis=1)


def _logistic(
    x: Float[Array, "N E"], label: Float[Array, "N"], weight: Float[Array, "N"], steps: int
) -> Float[Array, "E"]:
    """Newton's method; convex for any label, also outside [0, 1], since weights are positive."""

    def step(w, _):
        chance = jax.nn.sigmoid(x @ w)
        gradient = x.T @ (weight * (chance - label))
        curvature = (x * (weight * chance * (1.0 - chance))[:, None]).T @ x
        ridge = 1e-4 * x.shape[0] * jnp.eye(x.shape[1])
        return w - jnp.linalg.solve(curvature + ridge, gradient + 1e-4 * x.shape[0] * w), None

    return jax.lax.scan(step, jnp.zeros(x.shape[1]), None, length=steps)[0]


def _draw(config, found, results, axes) -> None:
    """Root mean square error of the risk against the number of items."""
    del results
    sizes = np.array(config.study.sizes)
    arms = {arm: own["error"] for arm, own in found.items() if "error" in own}
    figures.curves(
        axes, sizes, arms, xlabel="items (observed and not)", ylabel="error of the risk"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
