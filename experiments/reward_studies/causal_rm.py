"""Reward models from feedback that is noisy and given only by those who liked it (CausalRM).

arXiv 2603.18736. A network for the propensities and one for the observed labels are trained
first; the arms differ in the label and the weight that they make of these for every item, so all
arms of a setting are trained in one program. Each is selected by its own loss on a validation
part, for which no arm sees a clean label. The noise rates are estimated once, on the whole
training part, rather than on a batch at every step.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Bool, Float

from experiments.reward_studies import feedback, toy_mlp
from experiments.studies import Study
from jaxreward import channel as channels
from jaxreward import label_estimates
from jaxreward.channel import Channel
from jaxreward.losses import pointwise, reduction
from jaxreward.training import check, fit
from jaxreward.types import Feedback


class Targets(NamedTuple):
    """What an arm makes of the items: `mean(weight * cross_entropy(z, label))`."""

    label: Float[Array, "*A N"]
    weight: Float[Array, "*A N"]


class Known(NamedTuple):
    """What the arms may use of the items.

    Attributes:
      data: feedback; its propensities are estimates.
      observed_mean: model of P(label 1).
      liked: true labels, for the arm with perfect data.
    """

    data: Feedback
    observed_mean: Float[Array, "N"]
    liked: Float[Array, "N"]


def make(config: ml_collections.ConfigDict) -> Study:
    """The study.

    `config.study`: features, width, train_items, test_items, propensity, clip, paper_clip, quantile,
    hidden, batch, learning_rate, steps, propensity_steps, every, and `settings`, each with decay,
    false_positive and false_negative.
    """
    study = config.study
    _check(config)
    names = list(study.settings)

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        rates = [
            jnp.array([study.settings[name][field] for name in names], jnp.float32)
            for field in ("decay", "false_positive", "false_negative")
        ]
        found = jax.lax.map(lambda dials: _setting(key, *dials, study), tuple(rates))
        return _arms(found, names)

    return Study(run, draw=_draw)


def _check(config: ml_collections.ConfigDict) -> None:
    names = ("features", "width", "test_items", "hidden", "batch", "learning_rate", "steps",
             "propensity_steps", "every")  # fmt: skip
    check.positive(config, *(f"study.{name}" for name in names))
    check.at_least(config, "study.train_items", 2, "a part to select by")
    for name in ("propensity", "clip", "paper_clip"):
        check.in_range(config, f"study.{name}", 0, 1, "(]")
    check.in_range(config, "study.quantile", 0.5, 1, "()")
    for name in ("steps", "propensity_steps"):
        check.divisible(config, f"study.{name}", config.study.every, "study.every")
    for setting in config.study.settings:
        own = f"study.settings.{setting}"
        check.in_range(config, f"{own}.decay", 0, 1, "(]")
        check.correctable(config, f"{own}.false_positive", f"{own}.false_negative")


def _setting(key: jax.Array, decay, false_positive, false_negative, study) -> dict[str, Any]:
    """All arms at one strength of selection and noise: `{arm: {metric: number}}`."""
    keys = jax.random.split(key, 8)
    channel = channels.binary(false_positive, false_negative)
    gold = feedback.make_gold(keys[0], study.features, study.width)
    own = dict(decay=decay, mean=study.propensity)
    items = feedback.sample_items(keys[1], gold, study.train_items, **own)
    seen = feedback.observe(keys[2], items, channel)
    known, weighted_mean = _first_stage(keys[3:6], seen, items.liked, study)
    estimates = [_rates(logits, study) for logits in (known.observed_mean, weighted_mean)]
    known = known._replace(observed_mean=jax.nn.sigmoid(known.observed_mean))
    targets = make_targets(known, channel, *estimates, study)
    stacked = Targets(*(jnp.stack(parts) for parts in zip(*targets.values())))
    test = feedback.sample_items(keys[6], gold, study.test_items, **own)
    scores = jax.vmap(lambda one: _final(keys[7], items.x, one, test, study))(stacked)
    found = {
        arm: {name: values[i] for name, values in scores.items()} for i, arm in enumerate(targets)
    }
    for arm, estimate in zip(("causal_ips", "causal_ips_weighted_proxy"), estimates):
        found[arm]["false_positive"] = estimate.false_positive
        found[arm]["false_negative"] = estimate.false_negative
    return found


# What is estimated first


def _first_stage(keys, seen: Feedback, liked: Array, study) -> tuple[Known, Array]:
    """Propensities and the labels' models, one of them weighted; both as logits."""
    everywhere = jnp.ones(seen.observed.shape, jnp.float32)
    shown = seen.observed.astype(jnp.float32)
    labels = jnp.where(seen.observed, seen.labels, 0.0)

    def trained(key, term, targets, steps):
        params = _train(key, seen.items, targets, term, steps, study).params
        return jax.lax.stop_gradient(toy_mlp.apply(params, seen.items)[:, 0])

    steps = study.propensity_steps
    chance = trained(keys[0], pointwise.squared, Targets(shown, everywhere), steps)
    propensity = jax.nn.sigmoid(chance)
    weights = pointwise.inverse_propensity(everywhere, seen.observed, propensity, clip=study.clip)
    proxy = lambda weight: trained(
        keys[1], pointwise.cross_entropy, Targets(labels, weight), study.steps
    )
    plain, weighted = proxy(shown / study.propensity), proxy(weights)
    data = Feedback(seen.items, labels, seen.observed, propensity, seen.annotator)
    return Known(data, plain, liked), weighted


def _rates(logits: Float[Array, "N"], study) -> Channel:
    """Of the training part."""
    count = _train_count(study)
    found = label_estimates.anchor_rates(logits[:count], quantile=study.quantile)
    return channels.binary(found.false_positive, found.false_negative)


# Arms


def make_targets(
    known: Known, true: Channel, estimated: Channel, by_weighted: Channel, study
) -> dict[str, Targets]:
    """Label and weight of each item by arm.

    Args:
      known: what is known of the items.
      true: the rates behind the labels.
      estimated: those from the plain proxy.
      by_weighted: those from the proxy weighted by propensities.
      study: settings.
    """
    data = known.data
    corrected = lambda channel: channels.correct(data.labels, channel)
    noisy, at_true = known.observed_mean, label_estimates.clean_probability
    ours = corrected(estimated)
    full = jnp.ones_like(known.liked)
    return {
        "naive": _weighted(data, data.labels),
        "ips": _weighted(data, data.labels, study.clip),
        "dr": _robust(data, data.labels, noisy, study.clip),
        "denoise": _weighted(data, ours),
        "causal_ips": _weighted(data, ours, study.clip),
        "causal_ips_paper_clip": _weighted(data, ours, study.paper_clip),
        "causal_ips_weighted_proxy": _weighted(data, corrected(by_weighted), study.clip),
        "causal_dr": _robust(data, ours, at_true(noisy, estimated), study.clip),
        "causal_dr_noisy_imputation": _robust(data, ours, noisy, study.clip),
        "causal_ips_true_rates": _weighted(data, corrected(true), study.clip),
        "causal_dr_true_rates": _robust(data, corrected(true), at_true(noisy, true), study.clip),
        "clean": Targets(known.liked, full),
    }


def _weighted(data: Feedback, label: Array, clip: float | None = None) -> Targets:
    """Observed items, by inverse propensity, or all alike without `clip`."""
    share = jnp.broadcast_to(jnp.mean(data.observed, dtype=jnp.float32), label.shape)
    propensity = share if clip is None else data.propensity
    ones = jnp.ones_like(label)
    least = 1e-3 if clip is None else clip
    weight = pointwise.inverse_propensity(ones, data.observed, propensity, clip=least)
    return Targets(label, weight)


def _robust(data: Feedback, label: Array, imputed: Array, clip: float) -> Targets:
    """All items, with pseudo-labels."""
    label = pointwise.doubly_robust_label(
        label, imputed, data.observed, data.propensity, clip=clip
    )
    return Targets(label, jnp.ones_like(label))


# Training


def _train_count(study) -> int:
    return study.train_items * 4 // 5


def _train(key, x: Array, targets: Targets, term, steps: int, study) -> fit.Selected:
    """A network on the first four fifths, selected by the same loss on the rest."""
    keys = jax.random.split(key)
    count = _train_count(study)
    rows = {"x": x, "label": targets.label, "weight": targets.weight}
    train, rest = ({k: v[part] for k, v in rows.items()} for part in _parts(count))

    def loss(params, batch):
        logits = toy_mlp.apply(params, batch["x"])[:, 0]
        return reduction.mean(
            term(logits, batch["label"]), batch["weight"], divide_by="batch"
        )

    return fit.fit_selected(
        keys[1],
        toy_mlp.init(keys[0], (study.features, *study.hidden, 1)),
        loss,
        lambda key: fit.rows(train, key, study.batch),
        optax.adam(study.learning_rate),
        lambda params: loss(params, rest),
        steps=steps,
        every=study.every,
    )


def _parts(count: int) -> tuple[slice, slice]:
    return slice(None, count), slice(count, None)


def _final(key, x: Array, targets: Targets, test: feedback.Items, study) -> dict[str, Array]:
    """One arm, trained and judged by clean labels of fresh items."""
    found = _train(key, x, targets, pointwise.cross_entropy, study.steps, study)
    chosen, last = (
        _judged(toy_mlp.apply(params, test.x)[:, 0], test.liked)
        for params in (found.params, found.last)
    )
    step = found.step.astype(jnp.float32)
    return {**chosen, "last_r2": last["r2"], "steps": step}


def _judged(logits: Array, liked: Array) -> dict[str, Array]:
    error = jnp.mean(jnp.square(jax.nn.sigmoid(logits) - liked))
    right: Bool[Array, "N"] = (logits > 0) == (liked == 1)
    return {
        "r2": 1.0 - error / jnp.var(liked),
        "mse": error,
        "accuracy": jnp.mean(right, dtype=jnp.float32),
    }


def _arms(found: dict[str, Any], names: list[str]) -> dict[str, dict[str, Any]]:
    """`<setting>/<arm>`, and for each setting what the correction gains."""
    results = {}
    for i, name in enumerate(names):
        for arm, own in found.items():
            results[f"{name}/{arm}"] = {metric: values[i] for metric, values in own.items()}
        r2 = lambda arm: found[arm]["r2"][i]
        partial = jnp.maximum(r2("ips"), r2("denoise"))
        results[f"{name}/gain"] = {
            "over_naive": r2("causal_ips") - r2("naive"),
            "over_partial": r2("causal_ips") - partial,
        }
        results[f"{name}/best_partial"] = {"r2": partial}
    return results


def _draw(config, found, results, axes) -> None:
    """R2 of each arm by setting."""
    names = list(config.study.settings)
    arms = [arm.split("/")[1] for arm in found if arm.startswith(f"{names[0]}/")]
    arms = [arm for arm in arms if "r2" in found[f"{names[0]}/{arm}"]]
    for arm in arms:
        means = [results[f"{name}/{arm}"]["r2"]["mean"] for name in names]
        axes.plot(range(len(names)), means, "o-", label=arm)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("R2 against clean labels")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", frameon=False)
