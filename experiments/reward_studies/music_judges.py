"""Who judges melodies: an embedding of captions and sound, opinion scores, and listeners.

The first two are trained on the corpus and heard through `music.hear`; the model of listeners
reads the melody model's own tokens and starts from its checkpoint. Listeners themselves weigh
what is good about a melody by their own taste, and what they say is flipped now and then.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from experiments.reward_studies import music
from experiments.reward_studies.music import Caption, Melody
from jaxreward.losses import pointwise, preference
from jaxreward.networks import heads
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.rewards import audio
from jaxreward.rewards.learned import RewardModel, Texts, text_reward_model
from jaxreward.tasks import preference_draws
from jaxreward.training.fit import fit, rows

EMBEDDING = 16
TOWER = heads.Perceptron((32,), EMBEDDING)
OPINION = heads.Perceptron((32,))
RATERS = 3


class Sample(NamedTuple):
    """Clips, `[N]` captions and `[N, 36]` tokens."""

    caption: Caption
    tokens: Array


def caption_features(caption: Caption) -> Float[Array, "N 8"]:
    """One-hot of each part."""
    sizes = (len(music.TONICS), 2, 2)
    return jnp.concatenate([jax.nn.one_hot(x, n) for x, n in zip(caption, sizes)], axis=-1)


# Adherence to the caption


def _embed(towers: Any, melody: Melody) -> Float[Array, "N D"]:
    """Of the histogram of a segment's sounds."""
    return TOWER.apply(towers["sound"], jnp.mean(music.hear(melody), axis=1))


def fit_towers(key: jax.Array, own) -> Any:
    """Embeddings by which a segment of the corpus is told from those of other captions."""
    of_caption, of_sound, of_fit = jax.random.split(key, 3)
    every = caption_features(music.caption_of(jnp.arange(music.CAPTIONS)))
    towers = {
        "caption": TOWER.init(of_caption, every),
        "sound": TOWER.init(of_sound, jnp.zeros((1, music.BANDS))),
    }

    def sample(key: jax.Array):
        of = jax.random.split(key)
        number = jax.random.randint(of[0], (own.batch,), 0, music.CAPTIONS)
        melody = music.compose(of[1], music.caption_of(number))
        return number, music.part(melody, music.SEGMENTS[0])

    def loss(towers: Any, batch) -> Array:
        number, melody = batch
        captions = TOWER.apply(towers["caption"], every)
        sounds = _embed(towers, melody)[:, None, None]
        cosine = jax.vmap(lambda sound: audio.adherence(captions, _to_all(sound)))(sounds)
        return jnp.mean(
            optax.softmax_cross_entropy_with_integer_labels(cosine / own.temperature, number)
        )

    optimizer = optax.adam(own.judge_learning_rate)
    return fit(of_fit, towers, loss, sample, optimizer, steps=own.judge_steps)[0]


def _to_all(sound: Float[Array, "1 1 D"]) -> Float[Array, "C 1 D"]:
    return jnp.broadcast_to(sound, (music.CAPTIONS, 1, EMBEDDING))


def adherence(towers: Any, sample: Sample) -> Float[Array, "N"]:
    """Mean cosine over the three segments."""
    melody = music.melody_of(sample.tokens)
    segments = [_embed(towers, music.part(melody, window)) for window in music.SEGMENTS]
    caption = TOWER.apply(towers["caption"], caption_features(sample.caption))
    return audio.adherence(caption, jnp.stack(segments, axis=1))


# Acoustic quality


def _opinion(params: Any, melody: Melody) -> Float[Array, "N"]:
    sound = music.hear(melody)
    inputs = jnp.concatenate([jnp.mean(sound, axis=1), jnp.std(sound, axis=1)], axis=-1)
    return 3.0 + OPINION.apply(params, inputs)[:, 0]


def fit_opinion(key: jax.Array, own, generated: Sample) -> Any:
    """A regressor of the mean of three ratings of composed and of generated clips."""
    of_init, of_fit = jax.random.split(key)

    def sample(key: jax.Array):
        of = jax.random.split(key, 4)
        composed = music.compose(of[0], music.draw_captions(of[1], own.batch))
        other = music.melody_of(rows(generated, of[2], own.batch).tokens)
        melody = jax.tree.map(lambda *x: jnp.concatenate(x), composed, other)
        melody = music.part(melody, music.LISTENED[0])
        truth = music.true_quality(melody.levels)
        each = truth[:, None] + jax.random.normal(of[3], truth.shape + (RATERS,))
        return melody, jnp.mean(jnp.clip(jnp.round(each), 1.0, 5.0), axis=1)

    def loss(params: Any, batch) -> Array:
        melody, ratings = batch
        return jnp.mean(pointwise.regression(_opinion(params, melody), ratings))

    params = OPINION.init(of_init, jnp.zeros((1, 2 * music.BANDS)))
    optimizer = optax.adam(own.judge_learning_rate)
    return fit(of_fit, params, loss, sample, optimizer, steps=own.judge_steps)[0]


def quality(params: Any, sample: Sample) -> Float[Array, "N"]:
    """Mean opinion score of the first and the last 20 seconds, on [0, 1]."""
    melody = music.melody_of(sample.tokens)
    scores = [_opinion(params, music.part(melody, window)) for window in music.LISTENED]
    return audio.opinion_score(jnp.stack(scores, axis=1))


# Listeners


class Scale(NamedTuple):
    """Mean and deviation of what listeners hear in clips of the melody model."""

    mean: Array
    std: Array


TASTE = (1.0, 1.0, 1.0, 0.4, 0.2, 0.0)
"""Of all listeners: the three parts of musicality, quality, adherence, and high notes."""


def heard(caption: Caption, melody: Melody) -> Float[Array, "N 6"]:
    """What `TASTE` weighs."""
    pitch = jnp.mean(melody.notes.astype(jnp.float32), axis=1)
    quality, fits = music.true_quality(melody.levels), music.true_adherence(caption, melody.notes)
    rest = jnp.stack([quality, fits, pitch], axis=-1)
    return jnp.concatenate([music.musicality(caption, melody.notes), rest], axis=-1)


def scale_of(values: Float[Array, "N F"]) -> Scale:
    """Of the clips themselves."""
    return Scale(jnp.mean(values, axis=0), jnp.maximum(jnp.std(values, axis=0), 1e-3))


def tastes(key: jax.Array, own, shape: tuple[int, ...]) -> Float[Array, "*shape 6"]:
    """Of single listeners."""
    spread = own.taste * jax.random.normal(key, shape + (len(TASTE),))
    return jnp.broadcast_to(jnp.asarray(TASTE), spread.shape) + spread


def utility(scale: Scale, values: Float[Array, "N 6"], taste: Float[Array, "N 6"]) -> Array:
    """Of deviation about 1."""
    standard = (values - scale.mean[None]) / scale.std[None]
    return jnp.sum(standard * taste, axis=-1) / sum(w * w for w in TASTE) ** 0.5


class Pairs(NamedTuple):
    """Two clips of 20 seconds to a caption, and which one a listener liked.

    Attributes:
      first, second: the clips' tokens.
      label: 1 for the first, as marked.
      better: the same of all listeners, without noise.
    """

    caption: Caption
    first: Int[Array, "N S"]
    second: Int[Array, "N S"]
    label: Float[Array, "N"]
    better: Float[Array, "N"]


def ask(key: jax.Array, own, scale: Scale, first: Sample, second: Sample) -> Pairs:
    """Listeners, each with one pair."""
    of_taste, of_flip = jax.random.split(key)
    beats = music.LISTENED[0]
    hears = lambda x: heard(x.caption, music.part(music.melody_of(x.tokens), beats))
    values, count = (hears(first), hears(second)), first.tokens.shape[0]

    def preferred(taste: Array) -> Array:
        return utility(scale, values[0], taste) > utility(scale, values[1], taste)

    everyone = jnp.broadcast_to(jnp.asarray(TASTE)[None], (count, len(TASTE)))
    label = preferred(tastes(of_taste, own, (count,)))
    label = preference_draws.turn_round(of_flip, label, own.flips)
    number = lambda x: x.astype(jnp.float32)
    clips = (x.tokens[:, : 2 * beats[1]] for x in (first, second))
    return Pairs(first.caption, *clips, number(label), number(preferred(everyone)))


def ratings(key: jax.Array, own, scale: Scale, sample: Sample) -> Float[Array, "N"]:
    """Sum of the ratings 1 to 5 of three listeners; with one key, the same for every sample."""
    count = sample.tokens.shape[0]
    taste = tastes(key, own, (RATERS, count))
    values = heard(sample.caption, music.melody_of(sample.tokens))
    scores = jax.vmap(lambda t: utility(scale, values, t))(taste)
    return jnp.sum(jnp.clip(jnp.round(3.0 + scores), 1.0, 5.0), axis=0)


# The model of listeners


def listener_model(config: TransformerConfig) -> RewardModel:
    """A score of caption and clip, on the melody model's network."""
    return text_reward_model(config, heads.Scalar(pool="mean"))


def texts(caption: Caption, tokens: Int[Array, "N S"]) -> Texts:
    """Caption and clip in one."""
    both = jnp.concatenate([music.caption_tokens(caption), tokens], axis=1)
    return Texts(both, jnp.full(both.shape[:1], both.shape[1], jnp.int32))


def fit_listeners(key: jax.Array, own, model: RewardModel, start: Any, pairs: Pairs) -> Any:
    """Bradley-Terry from `start`."""

    def loss(params: Any, batch: Pairs) -> Array:
        return jnp.mean(preference.bradley_terry(lead(model, params, batch), batch.label))

    sample = lambda key: rows(pairs, key, own.user_batch)
    optimizer = optax.adam(own.user_learning_rate)
    return fit(key, start, loss, sample, optimizer, steps=own.user_steps)[0]


def lead(model: RewardModel, params: Any, pairs: Pairs) -> Float[Array, "N"]:
    """Score of the first less that of the second."""
    score = lambda tokens: model.score(params, texts(pairs.caption, tokens))
    return score(pairs.first) - score(pairs.second)


def listener_score(model: RewardModel, params: Any, sample: Sample) -> Float[Array, "N"]:
    """Mean score of the first and the last 20 seconds."""
    score = lambda w: model.score(
        params, texts(sample.caption, sample.tokens[:, 2 * w[0] : 2 * w[1]])
    )
    scores = [score(window) for window in music.LISTENED]
    return sum(scores[1:], scores[0]) / len(scores)
