"""Reward models of real sentences: Bradley-Terry heads on the vectors of a sentence encoder.

The sentences are first sentences of SciPy's docstrings, which are installed with the library. A
gold that does not know the encoder says which of two is preferred: the order of their topics
(subpackages), or their reading ease. Labels of training and validation pairs are flipped at a
known rate. Training, validation and test sentences are disjoint. Every head of every arm is
chosen, among looks and learning rates, by its own loss on the noisy validation pairs.
"""

import ast
import importlib.util
import pathlib
import re
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Bool, Float

from experiments import studies
from jaxreward import channel, masked
from jaxreward.losses import preference
from jaxreward.networks import heads, sentence_encoder
from jaxreward.tasks import preference_draws
from jaxreward.training import check
from jaxreward.training.fit import fit, fit_best, rows

FEATURES = ("minilm", "words")
LOSSES = ("bradley_terry", "smoothed", "corrected")
GOLDS = ("topic", "clarity")


class Corpus(NamedTuple):
    """Sentences, and the subpackage each is from."""

    sentences: list[str]
    topics: list[str]


class Pairs(NamedTuple):
    """Pairs of sentences.

    Attributes:
      items: numbers of the sentences.
      labels: 1 where the first is said to be preferred.
      clean: the same without flips.
      weights: 0 for pairs that the gold does not tell apart.
    """

    items: Array
    labels: Float[Array, "N"]
    clean: Float[Array, "N"]
    weights: Float[Array, "N"]


def make(config: ml_collections.ConfigDict) -> studies.Study:
    """The study of `configs/sentence_preferences.py`."""
    own = config.study
    _check(config)
    corpus = read_corpus(tuple(own.topics), own.most)
    gold = jnp.asarray(gold_scores(corpus, own.gold, tuple(own.topics)))
    used = sorted({arm.features for arm in own.arms.values()})
    vectors = {name: jnp.asarray(_vectors(name, own, corpus.sentences)) for name in used}

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        of_pairs, of_flips, of_fit = jax.random.split(key, 3)
        train, held, test = _pairs(of_pairs, own, gold)
        measured = {}
        for name, arm in own.arms.items():
            seen = [
                flipped(jax.random.fold_in(of_flips, index), pairs, arm.flips)
                for index, pairs in enumerate((train, held))
            ]
            params = _heads(of_fit, own, arm, vectors[arm.features], *seen)
            measured[name] = _measure(params, vectors[arm.features], own, seen[0], test)
        return measured

    return studies.Study(run)


def _check(config: ml_collections.ConfigDict) -> None:
    sizes = ("pairs", "validation_pairs", "test_pairs", "steps", "every", "batch", "most")
    check.positive(config, *(f"study.{name}" for name in (*sizes, "words_width")))
    check.positive(config, "study.learning_rates", "study.hidden")
    check.required(config, "study.topics", "study.learning_rates", "study.hidden")
    check.choice(config, "study.gold", GOLDS)
    check.choice(config, "study.encoder", ("package", "hashed"))
    check.in_range(config, "study.every", 1, config.study.steps)
    for name in ("gap", "weight_decay"):
        check.at_least(config, f"study.{name}", 0)
    for name in config.study.arms:
        path = f"study.arms.{name}"
        check.choice(config, f"{path}.features", FEATURES)
        check.choice(config, f"{path}.loss", LOSSES)
        check.in_range(config, f"{path}.flips", 0, 0.5, "[)")
        check.positive(config, f"{path}.members")


# Sentences


def read_corpus(topics: tuple[str, ...], most: int) -> Corpus:
    """First sentences of the docstrings in subpackages of SciPy, each once, in order of files.

    Args:
      topics: names of subpackages.
      most: sentences of a topic, spread evenly over those there are.
    """
    root = pathlib.Path(importlib.util.find_spec("scipy").origin).parent
    seen: set[str] = set()
    corpus = Corpus([], [])
    for topic in topics:
        found = []
        for path in sorted((root / topic).rglob("*.py")):
            if "tests" in path.relative_to(root).parts:
                continue
            new = [s for s in _first_sentences(path) if s not in seen]
            found += dict.fromkeys(new)
            seen.update(new)
        step = max(1.0, len(found) / most)
        chosen = [found[int(index * step)] for index in range(min(most, len(found)))]
        corpus.sentences.extend(chosen)
        corpus.topics.extend([topic] * len(chosen))
    return corpus


def _first_sentences(path: pathlib.Path) -> list[str]:
    """Sentences of 4 to 40 words in ASCII; files are parsed, never run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            continue
        start = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
        match = re.match(r"[^.]*?\.(?=\s|$)", start)
        if match and match[0].isascii() and 4 <= len(match[0].split()) <= 40:
            found.append(match[0])
    return found


def gold_scores(corpus: Corpus, gold: str, topics: tuple[str, ...]) -> Float[np.ndarray, "N"]:
    """The utility of each sentence: the rank of its topic (first is best), or its reading ease."""
    if gold == "topic":
        scores = [float(len(topics) - topics.index(topic)) for topic in corpus.topics]
    else:
        scores = [reading_ease(sentence) for sentence in corpus.sentences]
    return np.array(scores, np.float32)


def reading_ease(sentence: str) -> float:
    """Flesch reading ease (1948) of one sentence; syllables are runs of vowels, at least one."""
    words = re.findall(r"[A-Za-z]+", sentence)
    syllables = sum(max(1, len(re.findall(r"[aeiouy]+", word.lower()))) for word in words)
    return 206.835 - 1.015 * len(words) - 84.6 * syllables / max(1, len(words))


# Vectors


def _vectors(name: str, own, sentences: list[str]) -> Float[np.ndarray, "N D"]:
    """Vectors whose coordinates have a mean square of 1."""
    if name == "words" or own.encoder == "hashed":
        # With `encoder = "hashed"` another width stands in for the encoder.
        width = own.words_width if name == "words" else own.words_width + 1
        found = hashed_words(sentences, width)
    else:
        encoder = sentence_encoder.load(sentence_encoder.minilm_directory())
        found = sentence_encoder.encode(encoder, sentences)
    return found * np.float32(found.shape[1] ** 0.5)


def hashed_words(sentences: list[str], width: int) -> Float[np.ndarray, "N D"]:
    """Signed counts of words hashed to `width` places, scaled to norm 1."""
    found = np.zeros((len(sentences), width), np.float32)
    for row, sentence in enumerate(sentences):
        for word in re.findall(r"[a-z0-9]+", sentence.lower()):
            code = zlib.crc32(word.encode())
            found[row, (code >> 1) % width] += 2.0 * (code & 1) - 1.0
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    return found / np.maximum(norms, np.float32(1e-6))


# Pairs


def _pairs(key: jax.Array, own, gold: Float[Array, "N"]) -> tuple[Pairs, Pairs, Pairs]:
    """Training, validation and test pairs, from 60, 20 and 20% of the sentences."""
    keys = jax.random.split(key, 4)
    order = jax.random.permutation(keys[0], gold.shape[0])
    ends = int(0.6 * gold.shape[0]), int(0.8 * gold.shape[0])
    parts = order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]
    counts = own.pairs, own.validation_pairs, own.test_pairs

    def draw(key: jax.Array, part: Array, count: int) -> Pairs:
        items = part[jax.random.randint(key, (count, 2), 0, part.shape[0])]
        lead = gold[items[:, 0]] - gold[items[:, 1]]
        clean = (lead > 0).astype(jnp.float32)
        return Pairs(items, clean, clean, (jnp.abs(lead) > own.gap).astype(jnp.float32))

    return tuple(draw(k, part, count) for k, part, count in zip(keys[1:], parts, counts))


def flipped(key: jax.Array, pairs: Pairs, rate: float) -> Pairs:
    """The pairs with labels flipped at a rate; a higher rate flips these and more."""
    return pairs._replace(labels=preference_draws.turn_round(key, pairs.clean, rate))


# Heads


def _target(arm, labels: Float[Array, "N"]) -> Float[Array, "N"]:
    if arm.loss == "smoothed":
        return preference.smoothed_target(labels, arm.flips)
    if arm.loss == "corrected":
        return channel.correct(labels, channel.symmetric(arm.flips))
    return labels


def _heads(key: jax.Array, own, arm, vectors: Float[Array, "N D"], train: Pairs, held: Pairs):
    """The parameters `[M]` of the members, each the best over looks and learning rates."""
    head = _head(own)

    def loss(params: Any, pairs: Pairs) -> Float[Array, ""]:
        scores = head.apply(params, vectors[pairs.items])[..., 0]
        margins = scores[:, 0] - scores[:, 1]
        return preference.pair_loss(margins, _target(arm, pairs.labels), pairs.weights)

    def one(key: jax.Array, learning_rate: Array):
        of_init, of_fit = jax.random.split(key)
        start = head.init(of_init, vectors[:1])
        sample = lambda key: rows(train, key, own.batch)
        optimizer = optax.adamw(learning_rate, weight_decay=own.weight_decay)
        if arm.early_stopping:
            params, _ = fit_best(
                of_fit, start, loss, sample, optimizer,
                validate=lambda params: loss(params, held), steps=own.steps, every=own.every,
            )  # fmt: skip
        else:
            params, _ = fit(of_fit, start, loss, sample, optimizer, steps=own.steps)
        return params, loss(params, held)

    def member(key: jax.Array):
        rates = jnp.asarray(own.learning_rates, jnp.float32)
        params, values = jax.vmap(lambda rate: one(key, rate))(rates)
        return jax.tree.map(lambda leaf: leaf[jnp.nanargmin(values)], params)

    return jax.vmap(member)(jax.random.split(key, arm.members))


def _head(own) -> heads.Perceptron:
    return heads.Perceptron(tuple(own.hidden), activation="silu")


# Measures


def _measure(params: Any, vectors: Array, own, train: Pairs, test: Pairs) -> dict[str, Array]:
    """Against the gold.

    accuracy and log_loss (nats) on clean test pairs; `noise_fitted`: share of the flipped
    training pairs that the model orders as the flip says, 0 where there are none.
    """
    head = _head(own)
    score = lambda items: jnp.mean(
        jax.vmap(lambda p: head.apply(p, vectors[items])[..., 0])(params), axis=0
    )

    def agrees(scores: Array, labels: Array) -> Bool[Array, "N"]:
        return (scores[:, 0] > scores[:, 1]) == (labels > 0.5)

    scores, counted = score(test.items), test.weights > 0
    seen, wrong = score(train.items), (train.labels != train.clean) & (train.weights > 0)
    return {
        "accuracy": masked.mean(agrees(scores, test.clean), counted),
        "log_loss": preference.pair_loss(scores[:, 0] - scores[:, 1], test.clean, test.weights),
        "noise_fitted": masked.mean(agrees(seen, train.labels), wrong),
    }
