"""Learned rewards: models, ensembles, streaming and files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from jaxreward.losses.policy import policy_objective
from jaxreward.networks import heads, hf_config, transformer
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies import tabular
from jaxreward.rewards import learned, learned_files
from jaxreward.training.step import make_update_step
from jaxreward.transforms import advantage
from jaxreward.types import make_signal

CONFIG = TransformerConfig(11, width=8, layers=2, heads=2, kv_heads=1, intermediate=8)
MLP = {"network": "mlp", "width": 3, "hidden": [4, 5], "activation": "tanh"}
TEXT = {
    "network": "text",
    "trunk": hf_config.to_hf(CONFIG, "float32"),
    "head": {"kind": "hierarchical", "heads": 2},
    "layers": [1],
}


STEPS = {**TEXT, "head": {"kind": "steps", "separators": [5, 6], "hidden": [4]}, "layers": []}


def features(count):
    return jnp.asarray(np.random.default_rng(5).normal(size=(count, 3)), jnp.float32)


# Models


def test_a_perceptron_is_its_formula(key):
    model = learned.mlp_reward_model(3, (4,), "relu")
    params, x = jax.jit(model.init)(key), features(6)
    found = jax.jit(model.score)(params, x)
    params, x = jax.tree.map(np.asarray, (params, x))
    dense = lambda name, x: x @ params[name]["kernel"] + params[name]["bias"][None]
    expected = dense("out", np.maximum(dense("layer_0", x), 0))[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_text_model_scores_empty_texts_as_missing(key):
    model = learned.text_reward_model(CONFIG, heads.Gaussian())
    texts = learned.Texts(jnp.ones((2, 4), jnp.int32), jnp.array([3, 0], jnp.int32))
    scores = np.asarray(jax.jit(lambda key: model.score(model.init(key), texts))(key))
    assert scores.shape == (2,) and np.isfinite(scores[0]) and np.isnan(scores[1])


def test_a_trunk_may_be_loaded(key):
    model = learned.text_reward_model(CONFIG)
    texts = learned.Texts(jnp.ones((2, 4), jnp.int32), jnp.array([3, 2], jnp.int32))
    params, score = jax.jit(model.init)(key), jax.jit(model.score)
    trunk = jax.jit(lambda key: transformer.init(CONFIG, key))(jax.random.key(7))
    assert not np.allclose(score(params, texts), score({**params, "trunk": trunk}, texts))


@pytest.mark.parametrize(
    "arguments, message",
    [((0,), "width = 0"), ((3, (4, 0)), r"hidden = \(4, 0\)"), ((3, (4,), "gelu"), "activation")],
)
def test_bad_perceptrons(arguments, message):
    with pytest.raises(ValueError, match=message):
        learned.mlp_reward_model(*arguments)


step_params = jax.jit(learned.step_reward_model(CONFIG, (5,)).init)


@jax.jit
def by_the_head(params, tokens, lengths, ends):
    """Probabilities of steps that end there."""
    network = heads.on_transformer(CONFIG, heads.StepScores(), extra=(ends,))
    return jax.nn.sigmoid(network.apply(params, tokens, lengths, ends))


@pytest.mark.parametrize("aggregation", ["min", "prod", "mean", "last"])
def test_scores_of_steps_are_put_together(key, aggregation):
    """The same parameters read by the head itself, at the ends of two, one and no steps."""
    tokens = jnp.array([[1, 5, 2, 5, 3, 4], [1, 2, 3, 5, 0, 0], [1, 5, 0, 0, 0, 0]], jnp.int32)
    lengths = jnp.array([6, 4, 2], jnp.int32)
    spans = jnp.array([[1, 5], [1, 4], [1, 2]], jnp.int32)
    model = learned.step_reward_model(CONFIG, (5,), aggregation)

    @jax.jit
    def scores(params):
        found = model.score(params, learned.Texts(tokens, lengths, spans))
        return found, model.score(params, learned.Texts(tokens, lengths))

    found, whole = map(np.asarray, scores(step_params(key)))
    ends = jnp.array([[3, 4], [3, -1], [-1, -1]], jnp.int32)
    p = np.asarray(by_the_head(step_params(key), tokens, lengths, ends))
    reduce = {"min": min, "prod": np.prod, "mean": np.mean, "last": lambda x: x[-1]}[aggregation]
    np.testing.assert_allclose(found[:2], [reduce(p[0]), p[1, 0]], rtol=1e-5)
    assert np.isnan(found[2])
    assert np.isfinite(whole).all()


# Ensembles


@pytest.mark.parametrize("shared", [(), ("layer_0",)])
def test_members_score_as_they_would_alone(key, shared):
    model = learned.mlp_reward_model(3, (4,))
    many = learned.ensemble(model, 3, shared=shared)
    params, x = jax.jit(many.init)(key), features(5)
    scores = np.asarray(jax.jit(many.score)(params, x))
    assert scores.shape == (3, 5)
    score = jax.jit(model.score)
    for member in range(3):
        own = {
            name: leaf if name in shared else jax.tree.map(lambda x: np.asarray(x)[member], leaf)
            for name, leaf in params.items()
        }
        np.testing.assert_allclose(scores[member], score(own, x), atol=1e-6)
    assert not np.allclose(scores[0], scores[1])
    shapes = {name: leaf["kernel"].ndim for name, leaf in params.items()}
    assert shapes == {"layer_0": 2 if shared else 3, "out": 3}


def test_the_gradient_of_a_shared_trunk_is_the_sum(key):
    model = learned.mlp_reward_model(3, (4,))
    many = learned.ensemble(model, 3, shared=("layer_0",))
    params, x = jax.jit(many.init)(key), features(5)
    slope = lambda score: jax.jit(jax.grad(lambda p: jnp.sum(score(p, x))))
    grads, alone = slope(many.score)(params), slope(model.score)
    outs = [jax.tree.map(lambda leaf: np.asarray(leaf)[k], params["out"]) for k in range(3)]
    parts = [np.asarray(alone({**params, "out": out})["layer_0"]["kernel"]) for out in outs]
    np.testing.assert_allclose(grads["layer_0"]["kernel"], sum(parts), atol=1e-5)


def test_bad_ensembles(key):
    model = learned.mlp_reward_model(3)
    with pytest.raises(ValueError, match="members = 0"):
        learned.ensemble(model, 0)
    with pytest.raises(ValueError, match=r"shared = \['trunk'\]"):
        jax.eval_shape(learned.ensemble(model, 2, shared=("trunk",)).init, key)


# Users


def test_everybody_is_scored_by_their_own_parameters(key):
    model = learned.mlp_reward_model(3, (4,))
    many = learned.personalized(model, 2, shared=("layer_0",))
    params, x = jax.jit(many.init)(key), features(5)
    users = jnp.array([1, 0, 1, 2, -1], jnp.int32)
    found = jax.jit(many.score)(params, learned.OfUsers(x, users))
    found, score = np.asarray(found), jax.jit(model.score)
    for place, user in enumerate((1, 0, 1)):
        own = {**params, "out": jax.tree.map(lambda leaf: np.asarray(leaf)[user], params["out"])}
        np.testing.assert_allclose(found[place], score(own, x)[place], atol=1e-6)
    assert np.isnan(found[3:]).all()  # nobody knows them
    total = lambda p: jnp.nansum(many.score(p, learned.OfUsers(x, jnp.array([1, 1, 1, 2, -1]))))
    grads = jax.tree.map(np.asarray, jax.jit(jax.grad(total))(params))
    assert np.isfinite(grads["out"]["kernel"]).all() and not grads["out"]["kernel"][0].any()
    assert grads["out"]["kernel"][1].any() and grads["layer_0"]["kernel"].any()


def test_a_policy_learns_what_each_user_likes(key):
    """GRPO on a personalised model: the prompt says for whom; unknown users teach nothing."""
    actions, known = 4, 3
    model = learned.personalized(learned.mlp_reward_model(actions, (8,)), known)
    params, eye = jax.jit(model.init)(jax.random.key(3)), jnp.eye(actions)
    score = jax.jit(lambda users: model.score(params, learned.OfUsers(eye, users)))
    likes = [score(jnp.asarray(np.full(actions, user, np.int32))) for user in range(known)]
    favourite = [int(np.argmax(scores)) for scores in likes]
    assert len(set(favourite)) > 1  # one policy for all would not do
    policy = tabular.tabular_policy(known + 1, actions)
    prompts = jnp.arange(known + 1, dtype=jnp.int32)
    chain = advantage.group_relative()
    step = make_update_step(policy_objective(policy), chain, optax.sgd(8.0))

    @jax.jit
    def train(state, key):
        drawn = policy.sample(state.params, key, prompts, 16)
        users = jnp.broadcast_to(prompts[:, None], drawn.actions.shape)
        given = learned.OfUsers(eye[drawn.actions.ravel()], users.ravel())
        rewards = model.score(params, given).reshape(users.shape)
        return step.update(state, make_signal(rewards, trajectories=drawn))[0]

    state = step.init(key, policy.init(key))
    for i in range(60):
        state = train(state, jax.random.fold_in(key, i))
    logits = np.asarray(state.params)
    found = scipy.special.softmax(logits, axis=1)[:known]
    assert np.argmax(found, axis=1).tolist() == favourite
    assert np.min(np.max(found, axis=1)) > 0.9
    np.testing.assert_array_equal(logits[known], 0.0)


# Many items


@pytest.mark.parametrize("count", [1, 6, 7, 12])
def test_blocks_give_the_scores_of_all(key, count):
    many = learned.ensemble(learned.mlp_reward_model(3, (4,)), 2)
    params, x = jax.jit(many.init)(key), np.asarray(features(count))
    found = learned.score_many(many.score, params, x, block_size=6, progress=False)
    np.testing.assert_allclose(found, jax.jit(many.score)(params, x), atol=1e-6)
    streamed = learned.score_many(many.score, params, iter(x), block_size=6, progress=False)
    np.testing.assert_array_equal(found, streamed)


def test_ten_thousand_items_compile_once_and_are_taken_as_they_are_needed(monkeypatch, capsys):
    shapes, fetched, ahead = [], [], []
    fetch = learned._fetch

    def spy(scores, size):
        fetched.append(size)
        return fetch(scores, size)

    def score(params, items):
        shapes.append(items["x"].shape)
        return items["x"] * params

    def items():
        for number in range(10_000):
            ahead.append(number + 1 - sum(fetched))
            yield {"x": np.float32(number)}

    monkeypatch.setattr(learned, "_fetch", spy)
    found = learned.score_many(score, jnp.float32(2), items(), block_size=512)
    np.testing.assert_array_equal(found, 2 * np.arange(10_000, dtype=np.float32))
    assert shapes == [(512,)]
    assert max(ahead) == 2 * 512
    assert "10000" in capsys.readouterr().err


def test_missing_scores_stay_missing():
    found = learned.score_many(
        lambda p, x: jnp.where(x > 1, jnp.nan, x), None, np.arange(3.0, dtype=np.float32),
        progress=False,
    )  # fmt: skip
    np.testing.assert_array_equal(found, [0.0, 1.0, np.nan])


@pytest.mark.parametrize(
    "items, block_size, message",
    [
        (np.zeros(3, np.float32), 0, "block_size = 0"),
        (np.zeros(0, np.float32), 4, "items = none"),
        (iter(()), 4, "items = none"),
        ({"a": np.zeros(3), "b": np.zeros(2)}, 4, "leading axes"),
        (np.float32(3), 4, "leading axes"),
    ],
)
def test_bad_items(items, block_size, message):
    with pytest.raises(ValueError, match=message):
        learned.score_many(lambda p, x: x, None, items, block_size=block_size, progress=False)


# Files


@pytest.mark.parametrize(
    "spec",
    [MLP, {**MLP, "members": 3, "shared": ["layer_0"]}, TEXT, {**TEXT, "members": 2}, STEPS,
        {**STEPS, "members": 2, "shared": ["trunk"]}],
)
def test_what_is_saved_is_loaded(tmp_path, key, spec):
    model = learned_files.build(spec)
    params = jax.jit(model.init)(key)
    learned_files.save(tmp_path / "model", params, spec)
    loaded = learned_files.load(tmp_path / "model")
    assert loaded.spec == spec
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    texts = learned.Texts(jnp.ones((2, 4), jnp.int32), jnp.array([3, 2], jnp.int32))
    items = texts if spec["network"] == "text" else features(4)
    np.testing.assert_array_equal(
        jax.jit(loaded.model.score)(loaded.params, items), jax.jit(model.score)(params, items)
    )


@pytest.mark.parametrize(
    "spec, message",
    [
        ({}, "network = None"),
        ({"network": "cnn"}, "network = 'cnn'"),
        ({"network": "mlp", "width": 3, "depth": 3}, "mlp: .*depth"),
        ({**TEXT, "head": {"kind": "step"}}, "head.kind = 'step'"),
        ({**STEPS, "head": {"kind": "steps"}}, "text: .*separators"),
        ({**STEPS, "head": {"kind": "steps", "separators": []}}, r"separators = \[\]; allowed is one"),
        ({**STEPS, "head": {"kind": "steps", "separators": [11]}}, r"\[11\]; .* in \[0, 11\)"),
        ({**STEPS, "head": {"kind": "steps", "separators": 5}}, "head.separators = 5"),
        ({**STEPS, "head": {**STEPS["head"], "aggregation": "sum"}}, "aggregation = 'sum'"),
        ({**STEPS, "layers": [1]}, r"layers = \[1\]"),
        ({**TEXT, "head": "scalar"}, "head = 'scalar'; allowed is an object"),
        ({**TEXT, "head": {"kind": "hierarchical", "heads": 3}}, "head.heads = 3; .* width 8"),
        ({**TEXT, "head": {"kind": "scalar", "hidden": [0]}}, r"head.hidden = \[0\]"),
        ({**TEXT, "layers": 3}, "layers = 3; allowed is a list"),
        ({**TEXT, "members": "2"}, "members = '2'; allowed is an integer >= 1"),
        ({**MLP, "members": 2, "shared": "out"}, "shared = 'out'; allowed is a list of texts"),
        ({**TEXT, "head": {"kind": "gaussian", "bound": "x"}}, "head.bound = 'x'"),
        ({**TEXT, "head": {"kind": "scalar", "size": 2}}, "text: .*size"),
        ({**TEXT, "trunk": {"model_type": "bert"}}, "model_type = 'bert'"),
    ],
)
def test_bad_descriptions(spec, message):
    with pytest.raises(ValueError, match=message):
        learned_files.build(spec)


def test_files_that_do_not_fit(tmp_path, key):
    params = jax.jit(learned_files.build(MLP).init)(key)
    with pytest.raises(ValueError, match=r"params: layer_0/kernel has shape \(3, 4\)"):
        learned_files.save(tmp_path, params, {**MLP, "width": 2})
    with pytest.raises(ValueError, match="holds no reward_model.json"):
        learned_files.load(tmp_path)
    learned_files.save(tmp_path, params, MLP)
    (tmp_path / "reward_model.json").write_text(json.dumps({**MLP, "hidden": [4]}))
    with pytest.raises(ValueError, match="layer_1/bias has shape"):
        learned_files.load(tmp_path)
