"""Ensembles against over-optimisation: texts and gold reward of the language policy, claims."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import studies
from experiments.reward_studies import rm_ensemble_language as language
from jaxreward.training.config import finish, track_reads
from jaxreward.types import Trajectories


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config("smoke")


@pytest.mark.slow  # half a minute of compiling each
@pytest.mark.parametrize("name", ["rm_ensemble", "rm_ensemble_language"])
def test_smoke_configs_measure_what_they_claim(name, key):
    config, unread = track_reads(finish(config_of(name)))
    studies.validate(config)
    study = importlib.import_module(f"experiments.reward_studies.{name}").make(config)
    found = jax.jit(jax.vmap(study.run))(key[None])
    for claim in config.claims.values():
        for arm in (claim.better, claim.worse):
            assert np.isfinite(found[arm][claim.metric]).all(), (claim.claim, arm)
    assert [name for name in unread() if name.startswith("study.")] == ["study.fn"]


@pytest.mark.parametrize("name", ["rm_ensemble", "rm_ensemble_language"])
def test_claims_name_arms_and_every_setting_is_claimed(name):
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config()
    arms = {f"{s}/{a}" for s in config.study.settings for a in (*config.study.arms, "gain", "nothing")}
    for claim in config.claims.values():
        assert {claim.better, claim.worse} <= arms
    assert {arm.members for arm in config.study.arms.values()} == {1, 3, 5}
    with pytest.raises(ValueError, match="variant 'large'"):
        module.get_config("large")


def study_of(**changes):
    study = config_of("rm_ensemble_language").study
    study.update(dict(words=16, length=12, features=8) | changes)
    return study


def test_ordinary_texts_are_near_and_stuttering_ones_are_far(key):
    study = study_of()

    @jax.jit
    def squares(share):
        """Of the words' features and, by text, of their sum."""
        features = language.make_world(key, study).features
        texts = language.draw_texts(key, 4000, share, study)
        return jnp.mean(features**2), jnp.mean((features[texts].sum(1) / 13**0.5) ** 2)

    (spread, near), (_, far) = (map(float, squares(share)) for share in (0.0, 1.0))
    # Sums of independent centred words have the spread of one word, whatever their number.
    assert near == pytest.approx(spread, rel=0.1)
    assert far > 3 * near


def test_the_better_text_of_a_pair_stands_first_but_for_the_flips(key):
    study = study_of()

    @jax.jit
    def label(flips):
        world = language.make_world(key, study)
        raw = lambda texts: language.gold_reward(world, texts, study=study)
        draw = lambda k: language.draw_texts(k, 500, 0.0, study)
        pairs = language.label(key, raw, draw, flips)
        return pairs, raw(pairs.first) >= raw(pairs.second)

    right, better = jax.device_get(label(0.0))
    assert better.all()
    np.testing.assert_array_equal(right.first[:, 0], right.second[:, 0])  # one prompt
    better = jax.device_get(label(0.25))[1]
    assert abs(1.0 - better.mean() - 0.25) < 4 * (0.25 * 0.75 / 500) ** 0.5


def test_a_single_arm_is_run_for_several_members():
    study = study_of()
    runs = language.runs_of(study)
    assert [run.member for run in runs if run.arm == "single"] == [0, 1]
    assert len(runs) == len(study.arms) + 1


def test_texts_are_prompt_and_response(key):
    study = study_of()
    prompts = language.draw_prompts(key, 2, study)
    outputs = jax.random.randint(key, (2, 4, 3), 0, 16)
    ones = jnp.ones(outputs.shape)
    drawn = Trajectories(prompts, outputs, outputs, ones, ones > 0)
    texts = language.texts_of(drawn)
    assert texts.shape == (2, 4, 4)
    np.testing.assert_array_equal(texts[:, :, 0], jnp.repeat(prompts.tokens, 4, axis=1))
    np.testing.assert_array_equal(texts[:, :, 1:], drawn.outputs)
