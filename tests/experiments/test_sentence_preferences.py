"""Preferences over sentences: the smoke variant, the corpus, the golds and the flips."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smokes

from configs import sentence_preferences as configs
from experiments.reward_studies import sentence_preferences as sentences


def test_smoke(tmp_path):
    config, results = smokes.run("sentence_preferences", tmp_path)
    assert set(results) == set(config.study.arms) and config.seeds == 2
    # Where early stopping finds nothing better than the end, these two are one, as on jax 0.11.2.
    losses = {arm: own["log_loss"]["mean"] for arm, own in results.items() if arm != "plain_25_long"}
    assert len(set(losses.values())) == len(losses)


@pytest.mark.parametrize(
    "key, value",
    [
        ("study.gold", "length"),
        ("study.encoder", "other"),
        ("study.pairs", 0),
        ("study.arms.corrected_25.flips", 0.5),
        ("study.arms.plain_25.loss", "hinge"),
    ],
)
def test_bad_configs(key, value):
    smokes.refuses("sentence_preferences", key, value)


def test_unknown_variants():
    with pytest.raises(ValueError, match="variant 'large'"):
        configs.get_config("large")


def test_the_corpus():
    corpus = sentences.read_corpus(("integrate", "ndimage"), 30)
    assert corpus.topics == ["integrate"] * 30 + ["ndimage"] * 30
    assert len(set(corpus.sentences)) == 60
    assert all(s.endswith(".") and len(s.split()) >= 4 for s in corpus.sentences)
    gold = sentences.gold_scores(corpus, "topic", ("ndimage", "integrate"))
    assert list(gold) == [1.0] * 30 + [2.0] * 30


def test_reading_ease():
    # 6 words of one syllable: 206.835 - 6.09 - 84.6.
    assert sentences.reading_ease("The cat sat on the mat.") == pytest.approx(116.145)
    assert sentences.reading_ease("Multidimensional interpolation.") < 0.0


def test_flips_are_nested_and_at_their_rate():
    clean = (jnp.arange(20_000) % 2).astype(jnp.float32)
    pairs = sentences.Pairs(jnp.zeros((20_000, 2), jnp.int32), clean, clean, jnp.ones(20_000))
    few, many = (sentences.flipped(jax.random.key(0), pairs, rate) for rate in (0.1, 0.25))
    wrong = [np.asarray(found.labels != clean) for found in (few, many)]
    assert abs(wrong[1].mean() - 0.25) < 4 * (0.25 * 0.75 / 20_000) ** 0.5
    assert not np.any(wrong[0] & ~wrong[1])


def test_hashed_words():
    found = sentences.hashed_words(["The mean.", "the MEAN", "", "Another thing."], 64)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1, 1, 0, 1], atol=1e-6)
