"""A language policy on reward models of users: whose taste counts where, end to end."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.reward_studies import personalized_language as personal
from experiments.reward_studies import rm_ensemble_language as language
from jaxreward.policies.language import Prompts
from jaxreward.rewards import learned


def config_of(arg="smoke"):
    return importlib.import_module("configs.personalized_language").get_config(arg)


def study_of(**changes):
    study = config_of().study
    study.update(changes)
    return study


def named(texts, user):
    return texts.at[..., 0].set(user)


def test_claims_name_arms():
    config = config_of("")
    arms = {f"{s}/{a}" for s in config.study.settings for a in (*config.study.arms, "gold", "start")}
    for claim in config.claims.values():
        assert {claim.better, claim.worse} <= arms


@pytest.mark.parametrize("taste", [0.0, 0.5, 2.0])
def test_tastes_correlate_as_their_distance_says(taste):
    study = study_of(gold_width=500, users=3)
    draw = jax.jit(jax.vmap(lambda k: personal.make_world(k, taste, study).tastes))
    worlds = draw(jax.random.split(jax.random.key(0), 20))
    found = np.corrcoef(np.moveaxis(np.asarray(worlds), 2, 0).reshape(3, -1))
    expected = np.where(np.eye(3) > 0, 1.0, 1.0 / (1.0 + taste**2))
    np.testing.assert_allclose(found, expected, atol=0.05)
    assert np.mean(np.square(worlds)) == pytest.approx(2 / 500, rel=0.05)  # whatever the taste


def test_a_text_is_worth_what_it_is_to_the_user_it_names(key):
    study = study_of(words=6, length=12, users=3)

    @jax.jit
    def rewards(key):
        """By the user that a text names, and by each of all."""
        world = personal.make_world(key, 2.0, study)
        texts = personal.draw_texts(key, 7, study)

        def of_user(user):
            network = [world.hidden, (world.tastes[:, user, None], jnp.zeros(1))]
            own = language.World(world.features, network)
            return language.gold_reward(own, texts[:, 1:], study=study)

        every = [of_user(user) for user in range(3)]
        return texts, personal.gold_reward(world, texts, study), every

    texts, found, every = rewards(key)
    np.testing.assert_array_equal(texts[:, 0], [0, 1, 2, 0, 1, 2, 0])
    for user in range(3):
        np.testing.assert_allclose(found[user::3], every[user][user::3], rtol=1e-5)


def test_pairs_have_one_name_and_word(key):
    study = study_of()
    raw = lambda texts: jnp.sum(texts, axis=-1).astype(jnp.float32)
    draw = lambda k: personal.draw_texts(k, 50, study)
    pairs = jax.jit(lambda k: language.label(k, raw, draw, 0.0, prompt=personal.PROMPT))(key)
    np.testing.assert_array_equal(pairs.first[:, :2], pairs.second[:, :2])
    assert (pairs.first[:, 2:] != pairs.second[:, 2:]).any()


def test_everybody_is_standardized_by_their_own(key):
    study = study_of(users=2, tested=3)
    sums = lambda texts: jnp.sum(texts[..., 2:], -1).astype(jnp.float32)
    score = lambda texts: sums(texts) * (1.0 + texts[..., 0].astype(jnp.float32))

    @jax.jit
    def scaled(key):
        prompts = personal.draw_prompts(key, study.tested, study)
        words = jax.random.randint(key, (6, 50, study.length), 0, study.words)
        first = jnp.broadcast_to(prompts.tokens[:, None], (6, 50, 2))
        near = jnp.concatenate([first, words], axis=2)
        return personal.by_user(personal.standardized(score, near, 2)(near), 2)

    found = np.asarray(scaled(key))
    assert found.shape == (2, 150)
    np.testing.assert_allclose(found.mean(axis=1), 0.0, atol=1e-5)
    np.testing.assert_allclose(found.std(axis=1), 1.0, rtol=1e-5)


def test_models_ask_whom_they_say(key):
    study = study_of(users=3)
    asked = np.arange(4, dtype=np.int32)  # nobody knows user 3

    @jax.jit
    def scores(key):
        """Of one text in the name of each user, by model; and by `heads` asking the next one."""
        pairs = language.label(
            key, lambda texts: jnp.sum(texts, -1).astype(jnp.float32),
            lambda k: personal.draw_texts(k, 30, study), 0.0, prompt=personal.PROMPT,
        )  # fmt: skip
        models = {
            name: personal.trained_model(key, pairs, spec, study)
            for name, spec in study.models.items()
        }
        text = personal.draw_texts(key, 1, study)
        texts = named(jnp.broadcast_to(text, (4, text.shape[1])), asked)
        return {name: score(texts) for name, score in models.items()}, models["heads"](texts, shift=1)

    own, shifted = jax.tree.map(np.asarray, scores(key))
    assert set(own) == {"pooled", "heads", "name"}
    assert len(set(own["pooled"][:3].tolist())) == 1
    for name in ("heads", "name"):
        assert len(set(own[name][:3].tolist())) == 3, name
    np.testing.assert_allclose(shifted[:3], np.roll(own["heads"][:3], -1), rtol=0, atol=1e-6)
    for name, values in own.items():
        assert np.isnan(values[3]), name


def test_a_language_policy_writes_to_each_user_and_learns_nothing_from_unknown_ones(key):
    """GRPO of a transformer on a personalised model: one user likes word 4, the other word 5."""
    study = study_of()
    study.policy.update(dict(steps=60, group=16, learning_rate=1e-2, window=10))
    count = lambda params, words: jnp.einsum(
        "btv,v->b", jax.nn.one_hot(words, study.words), params["likes"]
    )
    init = lambda k: {"likes": jax.random.normal(k, (study.words,))}
    model = learned.personalized(learned.RewardModel(init, count), 2)
    params = {"likes": jax.nn.one_hot(jnp.array([4, 5]), study.words)}

    def reward(texts):
        given = learned.OfUsers(texts[..., 2:].reshape(-1, study.length), texts[..., 0].ravel())
        return model.score(params, given).reshape(texts.shape[:-1])

    @jax.jit
    def train(start, user):
        """On prompts whose users are those, `user` further on."""

        def draw(k):
            prompts = personal.draw_prompts(k, 2, study)
            return Prompts(prompts.tokens.at[:, 0].add(user), prompts.lengths)

        gold = lambda texts: jnp.nan_to_num(reward(texts))
        params, curves = language.train_policy(key, start, draw, reward, gold, 0.0, study)
        return params, curves["gold"], personal.measure(key, params, reward, study)["gold_least"]

    start = jax.jit(language.make_policy(study).init)(key)
    _, gold, least = train(start, np.int32(0))
    assert gold[0] < 0.5 * study.length and gold[-1] > 0.75 * study.length
    assert float(least) > 0.75 * study.length  # each user, not one for both
    untaught, _, _ = train(start, np.int32(study.users))  # nobody known
    jax.tree.map(np.testing.assert_array_equal, untaught, start)
