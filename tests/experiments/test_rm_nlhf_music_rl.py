"""Studies of judges that argue and of melodies: bad configs and their parts."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import smokes

from experiments.reward_studies import music, music_judges, music_one_token, rm_nlhf
from jaxreward.losses.regularization import exact_kl


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("rm_nlhf", "study.steps", 0),
        ("rm_nlhf", "study.looks", 3),
        ("rm_nlhf", "study.batch", 5),
        ("rm_nlhf", "study.with_critique", 1.0),
        ("rm_nlhf", "study.wrong_labels", -0.1),
        ("music_rl", "study.flips", 1.5),
        ("music_rl", "study.alpha", 1.0),
        ("music_rl", "study.looks", 6),
        ("music_rl", "study.pairs", 0),
        ("music_rl", "study.taste", -1.0),
    ],
)
def test_bad_configs(name, key, value):
    blamed = "study.steps" if key == "study.looks" and value == 3 else None
    smokes.refuses(name, key, value, blamed=blamed)


# Judges that argue


def test_a_meta_reward_sees_neither_the_label_nor_the_human(key):
    own = ml_collections.ConfigDict(dict(wrong_labels=0.5, threshold=0.5))
    rollouts = rm_nlhf.Rollouts(*(np.array([[0, 1]] * 3, np.int32) for _ in range(2)))
    rollouts = rollouts._replace(argument=np.array([[0, 5]] * 3, np.int32))

    @jax.jit
    def draw():
        relevance = jnp.ones((rm_nlhf.QUERY, rm_nlhf.ARGUMENTS))
        items = rm_nlhf.general_items(key, own, relevance, 3)
        return items, rm_nlhf.meta_inputs(items.features, rollouts)

    items, inputs = jax.device_get(draw())
    assert inputs.shape == (6, rm_nlhf.ARGUMENTS * (rm_nlhf.QUERY + 1) + 2)
    # the lead of the argued aspect, on the side of the verdict
    np.testing.assert_allclose(inputs[0, -2], -items.features[0, 0])
    np.testing.assert_allclose(inputs[1, -2], items.features[0, 5])


def test_sound_arguments_decide(key):
    own = ml_collections.ConfigDict(dict(wrong_labels=0.2))

    @jax.jit
    def draw():
        relevance = jax.random.normal(key, (rm_nlhf.QUERY, rm_nlhf.ARGUMENTS))
        return rm_nlhf.general_items(key, own, relevance, 4000)

    items = jax.device_get(draw())
    lead = np.take_along_axis(items.features, items.sound[:, None], 1)
    np.testing.assert_array_equal(lead[:, 0] > 0, items.right == 1)
    # 4 standard errors
    assert np.mean(items.label != items.right) == pytest.approx(0.2, abs=0.026)


# Melodies


def melody(notes):
    notes = jnp.asarray(notes)[None]
    return music.Melody(notes, jnp.zeros_like(notes))


def caption(tonic=0, tempo=0, mood=0):
    return music.Caption(*(jnp.asarray([x]) for x in (tonic, tempo, mood)))


def test_tokens_and_back(key):
    @jax.jit
    def draw():
        captions = music.draw_captions(key, 50)
        made = music.compose(key, captions)
        tokens = music.melody_tokens(made)
        return made, tokens, music.melody_of(tokens), music.caption_tokens(captions)

    made, tokens, back, words = jax.device_get(draw())
    assert tokens.shape == (50, music.TOKENS)
    assert 0 <= tokens.min() and tokens.max() < music.CAPTION
    for a, b in zip(back, made):
        np.testing.assert_array_equal(a, b)
    assert words.shape == (50, 3) and words.max() < music.VOCABULARY


def test_wrong_tokens_are_silence_and_noise():
    broken = music.melody_of(jnp.asarray([[music.CODEC, 3]]))
    assert int(broken.notes[0, 0]) == music.REST and int(broken.levels[0, 0]) == music.LEVELS - 1


def test_musicality():
    phrase, musicality = [0, 2, 4, 2, music.REST, 0], jax.jit(music.musicality)
    found = musicality(caption(), melody(phrase + phrase).notes)
    # 5 of 6 beats sound again; of 11 pairs 3 + 3 steps; both phrases end on the tonic
    np.testing.assert_allclose(found[0], [5 / 6, 6 / 11, 1.0], atol=1e-6)
    found = musicality(caption(tonic=1), melody(phrase + [11, 0, 11, 0, 11, 2]).notes)
    np.testing.assert_allclose(found[0], [0, 3 / 11, 0.5], atol=1e-6)


def test_truths_of_a_clip():
    notes = jnp.asarray([[0, 1, 4, music.REST]])
    # 2 of 3 notes are in C major; a quarter of rests where a tenth is due
    found = jax.jit(music.true_adherence)(caption(), notes)
    np.testing.assert_allclose(found, 2 / 3 - 0.15, atol=1e-6)
    np.testing.assert_allclose(music.true_quality(jnp.asarray([[0, 3], [3, 3]])), [3.0, 1.0])


def test_frames_tell_notes_and_noise():
    frames = np.asarray(jax.jit(music.frames)())
    assert frames.shape == (music.REST + 1, music.LEVELS, music.BANDS)
    clean = frames[: music.PITCHES, 0, : music.PITCHES]
    np.testing.assert_array_equal(np.argmax(clean, axis=1), np.arange(music.PITCHES))
    assert np.all(np.diff(frames[:, :, -1], axis=1) > 0.5)  # louder noise, more power left


def test_listeners_agree_with_each_other_in_three_of_five(key):
    own = ml_collections.ConfigDict(dict(taste=0.5, flips=1 / 3))

    @jax.jit
    def listen():
        captions = music.draw_captions(key, 4000)
        compose = lambda k: music_judges.Sample(
            captions, music.melody_tokens(music.compose(k, captions))
        )
        first, second = map(compose, jax.random.split(key))
        part = music.part(music.melody_of(first.tokens), music.LISTENED[0])
        scale = music_judges.scale_of(music_judges.heard(captions, part))
        pairs = music_judges.ask(key, own, scale, first, second)
        return pairs, music_judges.ratings(key, own, scale, first)

    pairs, rated = jax.device_get(listen())
    agreement = np.mean(pairs.label == pairs.better)
    assert agreement == pytest.approx(0.6, abs=0.031)  # 4 standard errors
    assert pairs.first.shape == (4000, 24)
    assert rated.min() >= 3 and rated.max() <= 15


def test_forms_of_the_kl():
    log_p, log_q = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.array([0.4, 0.4, 0.2]))
    token = jnp.arange(3)
    form = lambda name: music_one_token.penalty(name, log_p, log_q, token)
    np.testing.assert_allclose(form("exact"), 0.025267, atol=1e-6)
    np.testing.assert_allclose(form("printed"), -0.064539, atol=1e-6)
    weighted = jnp.sum(jnp.exp(log_p) * form("sampled"))
    np.testing.assert_allclose(weighted, exact_kl(log_p, log_q), atol=1e-6)


def test_exact_kl_ends_at_the_optimum(key):
    found = jax.jit(music_one_token.compare)(key)
    off = {name: float(own["off_optimum"]) for name, own in found.items()}
    assert off["one_token_exact"] < 0.02 < off["one_token_sampled"]
