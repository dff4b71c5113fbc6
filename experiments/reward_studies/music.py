"""Small melodies with captions: a corpus, how they sound, and what is good about them.

A clip of 30 seconds is 18 beats, a phrase 6. Every beat is a note, one of 12 pitches or a rest,
and a level of the codec's noise; a melody model writes them in turn, 36 tokens. A caption is a
key, a tempo (how many rests) and a mood (major or minor), three tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxreward.rewards.audio import windows

BEATS, PHRASE = 18, 6
TOKENS = 2 * BEATS
PITCHES, LEVELS = 12, 4
REST = PITCHES
CODEC = PITCHES + 1
CAPTION = CODEC + LEVELS
TONICS = (0, 2, 5, 7)
RESTS = (0.1, 0.35)
"""Share of rests by tempo."""
VOCABULARY = CAPTION + len(TONICS) + 2 + 2
CAPTIONS = 4 * len(TONICS)
SEGMENTS = windows(BEATS, PHRASE, 3)
LISTENED = windows(BEATS, 2 * PHRASE, 2)
BANDS = PITCHES + 1
SCALES = ((0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10))
"""Steps above the tonic by mood."""


class Caption(NamedTuple):
    """Integers, of any shape."""

    key: Array
    tempo: Array
    mood: Array


class Melody(NamedTuple):
    """Notes in `[0, 12]`, 12 is a rest, and noise levels in `[0, 3]`, `[N, T]`."""

    notes: Int[Array, "N T"]
    levels: Int[Array, "N T"]


def caption_of(number: Array) -> Caption:
    """Of a number in `[0, CAPTIONS)`."""
    return Caption(number // 4, number // 2 % 2, number % 2)


def caption_tokens(caption: Caption) -> Int[Array, "N 3"]:
    """Key, tempo, mood."""
    first = CAPTION + len(TONICS)
    tokens = [CAPTION + caption.key, first + caption.tempo, first + 2 + caption.mood]
    return jnp.stack(tokens, axis=-1).astype(jnp.int32)


def melody_tokens(melody: Melody) -> Int[Array, "N S"]:
    """Note, level, note, level, ..."""
    pairs = jnp.stack([melody.notes, CODEC + melody.levels], axis=-1)
    return pairs.reshape(pairs.shape[:-2] + (-1,)).astype(jnp.int32)


def melody_of(tokens: Int[Array, "N S"]) -> Melody:
    """What tokens sound like: a wrong one is a rest, or the most noise."""
    notes, levels = tokens[..., ::2], tokens[..., 1::2] - CODEC
    broken = (levels < 0) | (levels >= LEVELS)
    return Melody(jnp.where(notes > REST, REST, notes), jnp.where(broken, LEVELS - 1, levels))


def part(melody: Melody, window: tuple[int, int]) -> Melody:
    """Beats of a window."""
    return Melody(*(x[..., slice(*window)] for x in melody))


# The corpus


def draw_captions(key: jax.Array, count: int) -> Caption:
    """Uniform."""
    return caption_of(jax.random.randint(key, (count,), 0, CAPTIONS))


def compose(key: jax.Array, caption: Caption) -> Melody:
    """Melodies of composers who differ in how they keep to the caption, repeat and leap."""
    return jax.vmap(_compose)(jax.random.split(key, caption.key.shape[0]), caption)


def _compose(key: jax.Array, caption: Caption) -> Melody:
    keys = jax.random.split(key, 4)
    habit = jax.random.uniform(keys[0], (3,))
    copies, keeps, steps = 0.6 * habit[0], 0.4 + 0.6 * habit[1], 0.2 + 0.7 * habit[2]
    tonic, rests = jnp.asarray(TONICS)[caption.key], jnp.asarray(RESTS)[caption.tempo]

    def beat(carry, t: Array):
        past, last = carry
        of = jax.random.split(jax.random.fold_in(keys[1], t), 3)
        chance = jax.random.uniform(of[0], (5,))
        step = jnp.asarray([-2, -1, 1, 2])[jax.random.randint(of[1], (), 0, 4)]
        near = jnp.clip(last + step, 0, PITCHES - 1)
        note = jnp.where(chance[0] < steps, near, jax.random.randint(of[2], (), 0, PITCHES))
        outside = ~in_scale(caption, note)
        note = jnp.where(outside & (chance[1] < keeps), (note - 1) % PITCHES, note)
        note = jnp.where(chance[2] < rests, REST, note)
        note = jnp.where((chance[3] < copies) & (t >= PHRASE), past[0], note)
        ends = (t % PHRASE == PHRASE - 1) & (chance[4] < 0.3)
        note = jnp.where(ends, tonic, note)
        last = jnp.where(note == REST, last, note)
        return (jnp.concatenate([past[1:], note[None]]), last), note

    start = (jnp.full((PHRASE,), REST), jnp.asarray(PITCHES // 2))
    _, notes = jax.lax.scan(beat, start, jnp.arange(BEATS))
    return Melody(notes, _levels(keys[2], keys[3]))


def _levels(of_clip: jax.Array, of_beats: jax.Array) -> Array:
    """Mostly one level in a clip."""
    of_other, of_which = jax.random.split(of_beats)
    own = jax.random.randint(of_clip, (), 0, LEVELS)
    other = jax.random.randint(of_other, (BEATS,), 0, LEVELS)
    return jnp.where(jax.random.bernoulli(of_which, 0.7, (BEATS,)), own, other)


def in_scale(caption: Caption, note: Array) -> Array:
    """Whether a pitch is in the scale that the caption names; of one caption and one note."""
    table = np.zeros((2, PITCHES), bool)
    for mood, steps in enumerate(SCALES):
        table[mood, list(steps)] = True
    return jnp.asarray(table)[caption.mood, (note - jnp.asarray(TONICS)[caption.key]) % PITCHES]


# How they sound


def frames() -> Float[np.ndarray, "notes levels bands"]:
    """Log power of every note at every noise level, rendered for a quarter second at 8 kHz.

    Bands are the 12 pitches from middle C, and what is left.
    """
    time = np.arange(2000) / 8000.0
    pitches = 261.63 * 2.0 ** (np.arange(PITCHES) / 12.0)
    tones = np.concatenate([np.sin(2 * np.pi * pitches[:, None] * time), np.zeros((1, 2000))])
    noise = np.random.default_rng(0).normal(size=(CODEC, LEVELS, 2000))
    loudness = np.array([0.02, 0.1, 0.3, 1.0])
    sound = tones[:, None] + loudness[None, :, None] * noise
    waves = np.exp(2j * np.pi * pitches[:, None] * time)
    power = 2.0 * np.abs(sound @ waves.T / 2000) ** 2
    left = np.maximum(np.mean(sound**2, axis=-1) - np.max(power, axis=-1), 0.0)
    return np.log(1e-3 + np.concatenate([power, left[..., None]], axis=-1)).astype(np.float32)


def hear(melody: Melody) -> Float[Array, "N T bands"]:
    """What a microphone finds in every beat."""
    return jnp.asarray(frames())[melody.notes, melody.levels]


# What is good about them


def musicality(caption: Caption, notes: Int[Array, "N T"]) -> Float[Array, "N 3"]:
    """Repetition of the phrase before, steps instead of leaps, phrases that end on the tonic.

    Shares of the beats that could; `T` is a multiple of a phrase, at least two.
    """
    share = lambda x: jnp.mean(x, axis=1, dtype=jnp.float32)
    sounds = notes != REST
    again = (notes[:, PHRASE:] == notes[:, :-PHRASE]) & sounds[:, PHRASE:]
    leap = jnp.abs(notes[:, 1:] - notes[:, :-1])
    smooth = (leap >= 1) & (leap <= 2) & sounds[:, 1:] & sounds[:, :-1]
    ends = notes[:, PHRASE - 1 :: PHRASE] == jnp.asarray(TONICS)[caption.key][:, None]
    return jnp.stack([share(again), share(smooth), share(ends)], axis=-1)


def true_adherence(caption: Caption, notes: Int[Array, "N T"]) -> Float[Array, "N"]:
    """Share of the notes in the scale, less how far the share of rests is from the tempo's."""
    every = jax.vmap(jax.vmap(in_scale, in_axes=(None, 0)))(caption, notes)
    sounds = notes != REST
    inside = jnp.sum(every & sounds, axis=1, dtype=jnp.float32)
    count = jnp.sum(sounds, axis=1, dtype=jnp.float32)
    rests = jnp.mean(~sounds, axis=1, dtype=jnp.float32)
    return inside / jnp.maximum(count, 1.0) - jnp.abs(rests - jnp.asarray(RESTS)[caption.tempo])


def true_quality(levels: Int[Array, "N T"]) -> Float[Array, "N"]:
    """Mean opinion score in [1, 5], by the noise."""
    return 5.0 - 4.0 * jnp.mean(levels.astype(jnp.float32), axis=1) / (LEVELS - 1)
