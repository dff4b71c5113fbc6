"""Missed relations in the training labels, found by neighbours, on handwritten digits.

The 1,797 digits of scikit-learn: 0 to 4 are five relations (labels 1 to 5), 5 to 9 are the
negative class 0. A share of the training positives is labelled negative; with swaps, some of the
others get another relation. A perceptron of one hidden layer is trained on what every cleaning
leaves. Cosine similarity is that of the pixels, which no label has touched.

The test set has the same noise. F1 is reported on its true labels (`f1_gold`), on the noisy ones
(`f1_untouched`) and on the noisy ones after the arm's own cleaning (`f1_cleaned`).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments import studies
from jaxreward import masked
from jaxreward.curation import neighbour_cleaning as cleaning
from jaxreward.training import check
from jaxreward.training.fit import fit

CLASSES = 6
ARMS = (
    "noisy", "noisy_plus_clean", "is_e", "is_r", "en", "rn", "enp", "rnp", "random", "confidence",
    "clean_only", "oracle",
)  # fmt: skip


class Split(NamedTuple):
    """Examples of one part: pixels, true labels, given labels."""

    features: Float[Array, "N D"]
    gold: Int[Array, "N"]
    labels: Int[Array, "N"]


def make(config: ml_collections.ConfigDict) -> studies.Study:
    """The study of `configs/tacred_noise.py`."""
    own = config.study
    names = ("train", "clean", "steps", "batch", "k", "hidden", "learning_rate")
    check.positive(config, *(f"study.{name}" for name in names))
    check.at_least(config, "study.weight_decay", 0)
    check.rate(config, "study.missed", "study.swaps")
    check.in_range(config, "study.folds", 2, own.train)
    check.choice(config, "study.rule", cleaning.RULES)
    check.in_range(config, "study.train", 1, 1700 - own.clean)
    pixels, digits = _digits()

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        plain = _scenario(key, own, pixels, digits, 0.0)
        swapped = _scenario(key, own, pixels, digits, own.swaps)
        return {**plain, **{f"{arm}_swap": found for arm, found in swapped.items()}}

    return studies.Study(run)


def _digits() -> tuple[Array, Array]:
    from sklearn.datasets import load_digits  # slow to import

    data = load_digits()
    return jnp.asarray(data.data / 16.0, jnp.float32), jnp.asarray(data.target, jnp.int32)


def corrupt(
    key: jax.Array, gold: Int[Array, "N"], missed: Float[Array, ""] | float, swaps: float
) -> Int[Array, "N"]:
    """Positives become 0 with rate `missed`; of the others `swaps` get another positive label."""
    keys = jax.random.split(key, 3)
    step = jax.random.randint(keys[2], gold.shape, 1, CLASSES - 1, jnp.int32)
    other = (gold - 1 + step) % (CLASSES - 1) + 1
    labels = jnp.where(jax.random.bernoulli(keys[1], swaps, gold.shape), other, gold)
    labels = jnp.where(jax.random.bernoulli(keys[0], missed, gold.shape), 0, labels)
    return jnp.where(gold > 0, labels, 0)


def _splits(key: jax.Array, own, pixels: Array, digits: Array, swaps: float):
    """Training, clean reference and test; the reference has true labels."""
    of_order, of_train, of_test = jax.random.split(key, 3)
    order = jax.random.permutation(of_order, len(digits))
    gold = jnp.where(digits < 5, digits + 1, 0)[order]
    x, end = pixels[order], own.train + own.clean
    train, clean, test = slice(0, own.train), slice(own.train, end), slice(end, None)
    noisy = lambda key, part: corrupt(key, gold[part], own.missed, swaps)
    return (
        Split(x[train], gold[train], noisy(of_train, train)),
        Split(x[clean], gold[clean], gold[clean]),
        Split(x[test], gold[test], noisy(of_test, test)),
    )


class Network(nn.Module):
    """One hidden layer, or none with `hidden` 0."""

    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits `[..., CLASSES]`."""
        return nn.Dense(CLASSES)(nn.relu(nn.Dense(self.hidden)(x)) if self.hidden else x)


def _train(key: jax.Array, own, hidden: int, x: Array, labels: Array, keep: Array):
    """The logits, as a function of pixels, of a model of the kept examples."""
    of_init, of_fit = jax.random.split(key)
    network = Network(hidden)
    ends = jnp.cumsum(keep.astype(jnp.float32))

    def sample(key: jax.Array) -> Array:
        at = jax.random.uniform(key, (own.batch,)) * ends[-1]
        return jnp.minimum(jnp.searchsorted(ends, at, side="right"), len(labels) - 1)

    def loss(params: Any, rows: Array) -> Array:
        logits = network.apply(params, x[rows])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]))

    optimizer = optax.adamw(own.learning_rate, weight_decay=own.weight_decay)
    start = network.init(of_init, x[:1])
    params, _ = fit(of_fit, start, loss, sample, optimizer, steps=own.steps)
    return lambda features: network.apply(params, features)


def _out_of_fold(key: jax.Array, own, hidden: int, data: Split, mask: Array) -> Array:
    """Logits of every training example by a model that has not seen it."""
    of_folds, of_train = jax.random.split(key)
    fold = cleaning.folds(of_folds, len(data.labels), own.folds)

    def one(i: Array) -> Array:
        key = jax.random.fold_in(of_train, i)
        model = _train(key, own, hidden, data.features, data.labels, mask & (fold != i))
        return model(data.features)

    logits = jax.vmap(one)(jnp.arange(own.folds))
    return jnp.take_along_axis(logits, fold[None, :, None], axis=0)[0]


def _predict(logits: Array) -> Int[Array, "N"]:
    return jnp.argmax(logits, axis=-1).astype(jnp.int32)


def _found(own, data: Split, predictions: Array, clean: Split) -> dict[str, cleaning.Found]:
    """What each strategy finds; the training set, the reference and the test are disjoint."""
    outside = lambda positives: cleaning.extrinsic(
        data.features, data.labels, clean.features, clean.gold,
        k=own.k, rule=own.rule, positives=positives,
    )  # fmt: skip
    inside = cleaning.intrinsic(data.features, data.labels, predictions, classes=CLASSES, k=own.k)
    return {"is": inside, "n": outside(False), "np": outside(True)}


def _clean(data: Split, found: dict[str, cleaning.Found]) -> dict[str, cleaning.Cleaned]:
    """Labels and kept examples by arm."""
    return {
        "is_e": cleaning.eliminate(data.labels, found["is"]),
        "is_r": cleaning.relabel(data.labels, found["is"]),
        "en": cleaning.eliminate(data.labels, found["n"]),
        "rn": cleaning.relabel(data.labels, found["n"]),
        "enp": cleaning.eliminate(data.labels, found["np"]),
        "rnp": cleaning.relabel(data.labels, found["np"]),
    }


def _baselines(key: jax.Array, train: Split, logits: Array, clean: Split, found):
    """Training sets of the other arms, over training examples and then the reference."""
    negative, count = train.labels == 0, jnp.sum(found["n"].flagged)
    doubt = jax.nn.log_softmax(logits)[:, 0]
    random = cleaning.lowest(jax.random.uniform(key, negative.shape), negative, count)
    unsure = cleaning.lowest(doubt, negative, count)
    every, none = jnp.ones(negative.shape, bool), jnp.zeros(negative.shape, bool)
    with_clean = lambda labels, keep, use: cleaning.Cleaned(
        jnp.concatenate([labels, clean.gold]),
        jnp.concatenate([keep, jnp.full(clean.gold.shape, use)]),
    )
    return with_clean, {
        "noisy": with_clean(train.labels, every, False),
        "noisy_plus_clean": with_clean(train.labels, every, True),
        "random": with_clean(train.labels, ~random, False),
        "confidence": with_clean(train.labels, ~unsure, False),
        "clean_only": with_clean(train.labels, none, True),
        "oracle": with_clean(train.gold, every, False),
    }


def _scenario(key: jax.Array, own, pixels: Array, digits: Array, swaps: float):
    keys = jax.random.split(key, 6)
    train, clean, test = _splits(keys[0], own, pixels, digits, swaps)
    every = jnp.ones(train.labels.shape, bool)
    logits = _out_of_fold(keys[1], own, own.hidden, train, every)
    found = _found(own, train, _predict(logits), clean)
    with_clean, sets = _baselines(keys[2], train, logits, clean, found)
    for arm, cleaned in _clean(train, found).items():
        sets[arm] = with_clean(cleaned.labels, cleaned.keep, False)
    x = jnp.concatenate([train.features, clean.features])
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[sets[arm] for arm in ARMS])
    fit_one = lambda s: _predict(_train(keys[3], own, own.hidden, x, s.labels, s.keep)(test.features))
    predictions = dict(zip(ARMS, jax.vmap(fit_one)(stacked)))
    on_test = _clean(test, _found(own, test, predictions["noisy"], clean))
    result = {arm: _scores(predictions[arm], test, on_test.get(arm)) for arm in ARMS}
    kinds = {"is_e": "is", "is_r": "is", "en": "n", "rn": "n", "enp": "np", "rnp": "np"}
    for arm, kind in kinds.items():
        result[arm] |= _quality(train, found[kind], sets[arm], own.train)
    result["noisy"] |= _character(keys[4], own, train, logits, found)
    return result


def _scores(predictions: Array, test: Split, cleaned) -> dict[str, Array]:
    """F1 on true and on noisy labels, and on noisy labels cleaned as the arm cleans."""
    on = cleaned or cleaning.Cleaned(test.labels, jnp.ones(test.labels.shape, bool))
    return {
        "f1_gold": cleaning.micro_f1(test.gold, predictions).f1,
        "f1_untouched": cleaning.micro_f1(test.labels, predictions).f1,
        "f1_cleaned": cleaning.micro_f1(on.labels, predictions, on.keep).f1,
    }


def _quality(train: Split, found: cleaning.Found, cleaned, count: int) -> dict[str, Array]:
    """Of the flagged the share that is wrong, of the wrong the share flagged, and what is left."""
    wrong = (train.labels != train.gold).astype(jnp.float32)
    still = (cleaned.labels[:count] != train.gold).astype(jnp.float32)
    return {
        "flagged": masked.count(found.flagged),
        "flag_precision": masked.mean(wrong, found.flagged),
        "flag_recall": masked.mean(found.flagged.astype(jnp.float32), wrong > 0),
        "noise_left": masked.mean(still, cleaned.keep[:count]),
    }


def _character(key: jax.Array, own, train: Split, logits: Array, found) -> dict[str, Array]:
    """Errors with and without negatives, and what a linear model flags as well."""
    of_positives, of_linear = jax.random.split(key)
    positive: Bool[Array, "N"] = train.labels > 0
    alone = _out_of_fold(of_positives, own, own.hidden, train, positive)
    linear = _predict(_out_of_fold(of_linear, own, 0, train, positive | ~positive))
    ours = cleaning.confusion(train.labels, _predict(logits), classes=CLASSES)
    apart = cleaning.confusion(train.labels, _predict(alone), positive, classes=CLASSES)
    between = lambda percent: jnp.mean(
        100.0 - percent[1:, 0] - jnp.diagonal(percent)[1:]
    )
    other = cleaning.intrinsic(train.features, train.labels, linear, classes=CLASSES, k=own.k)
    return {
        "percent_missed": jnp.mean(ours[1:, 0]),
        "percent_confused": between(ours),
        "percent_confused_alone": between(apart),
        "labels_missed": masked.count(cleaning.characterize(ours).missed),
        "overlap_of_models": cleaning.overlap(found["is"].flagged, other.flagged),
    }
