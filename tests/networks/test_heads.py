"""Heads of reward models, and the hidden states that they read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.networks import heads, transformer
from jaxreward.networks.transformer_config import TransformerConfig

CONFIG = TransformerConfig(11, width=8, layers=3, heads=2, kv_heads=1, intermediate=8)
TOKENS = jnp.array([[3, 4, 5, 6], [7, 8, 0, 0]], jnp.int32)
LENGTHS = jnp.array([4, 2], jnp.int32)
MASK = jnp.arange(4)[None, :] < LENGTHS[:, None]


def states(key, count=2):
    return tuple(jax.random.normal(k, (2, 4, 8)) for k in jax.random.split(key, count))


# Hidden states


@pytest.mark.parametrize("scan", [False, True])
def test_hidden_states(key, scan):
    config = TransformerConfig(**{**vars(CONFIG), "scan": scan})
    params = transformer.init(CONFIG, key)
    params = transformer.stack_blocks(params) if scan else params
    network = transformer.Transformer(config)
    apply = lambda method, *args: network.apply({"params": params}, *args, method=method)
    found = apply("hidden_states", TOKENS, LENGTHS, (0, 1, 2, 3))
    last, _ = apply("encode", TOKENS, LENGTHS)
    np.testing.assert_allclose(found[0], params["embed"]["embedding"][TOKENS], rtol=1e-6)
    np.testing.assert_allclose(found[3], last, rtol=1e-6)
    one = TransformerConfig(**{**vars(CONFIG), "layers": 1})
    first = {name: params[name] for name in ("embed", "final_norm") if name in params}
    if not scan:
        shallow = transformer.Transformer(one).apply(
            {"params": {**params, **first}}, TOKENS, LENGTHS, method="encode"
        )[0]
        scale = jnp.sqrt(jnp.mean(found[1] ** 2, -1, keepdims=True) + one.norm_epsilon)
        np.testing.assert_allclose(found[1] / scale, shallow, atol=1e-5)
    assert float(jnp.max(jnp.abs(found[1] - found[2]))) > 1e-3


def test_hidden_states_of_no_layer(key):
    network = heads.on_transformer(CONFIG, heads.HierarchicalQuery(2), (1, 4))
    with pytest.raises(ValueError, match=r"layers = \(1, 4, 3\); allowed are 0 to 3"):
        network.init(key)


# Pooling


def test_pools():
    x = jnp.arange(8.0).reshape(1, 4, 2)
    mask = jnp.array([[True, True, True, False]])
    np.testing.assert_allclose(heads.pool(x, mask, "last"), [[4.0, 5.0]])
    np.testing.assert_allclose(heads.pool(x, mask, "mean"), [[2.0, 3.0]])
    np.testing.assert_allclose(heads.pool(-x, mask, "max"), [[0.0, -1.0]])
    for kind in heads.POOLS:
        assert np.all(np.isnan(heads.pool(x, jnp.zeros((1, 4), bool), kind)))
    with pytest.raises(ValueError, match="pool = 'first'"):
        heads.pool(x, mask, "first")


ALL = [
    heads.Scalar(),
    heads.Scalar("mean", (4,)),
    heads.Scalar("max"),
    heads.Gaussian(hidden=(4,)),
    heads.Quantiles(3),
    heads.HierarchicalQuery(2),
    heads.HierarchicalQuery(4, progressive=False),
]


@pytest.mark.parametrize("head", ALL)
def test_padding_does_not_matter(key, head):
    own, last = states(key), states(jax.random.key(1), 1)[0]
    params = head.init(key, own, last, MASK)
    spoil = lambda x: jnp.where(MASK[..., None], x, 1e3)
    here = jax.tree.leaves(head.apply(params, own, last, MASK))
    there = jax.tree.leaves(head.apply(params, tuple(map(spoil, own)), spoil(last), MASK))
    for a, b in zip(here, there):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert a.dtype == jnp.float32 and a.shape[0] == 2


@pytest.mark.parametrize("head", ALL[:4:3] + ALL[5:])
def test_an_empty_example_has_no_reward(key, head):
    mask = MASK.at[1].set(False)
    own, last = states(key), states(jax.random.key(1), 1)[0]
    found = jax.tree.leaves(head.apply(head.init(key, own, last, mask), own, last, mask))
    assert all(np.all(np.isnan(x[1])) and np.all(np.isfinite(x[0])) for x in found)


def test_quantiles_never_decrease(key):
    own, last = states(key), 10 * states(jax.random.key(1), 1)[0]
    head = heads.Quantiles(5)
    found = head.apply(head.init(key, own, last, MASK), own, last, MASK)
    assert np.all(np.diff(found, axis=1) >= 0)


def test_gaussian_uncertainty_is_bounded(key):
    own, last = states(key), 1e4 * states(jax.random.key(1), 1)[0]
    head = heads.Gaussian(bound=2.0)
    found = head.apply(head.init(key, own, last, MASK), own, last, MASK)
    assert np.all(np.abs(found.log_std) <= 2.0) and float(jnp.max(jnp.abs(found.mean))) > 2


def test_steps_are_read_at_their_ends(key):
    last, ends = states(key, 1)[0], jnp.array([[1, 3, -1], [0, -1, -1]])
    head = heads.StepScores()
    params = head.init(key, (), last, MASK, ends)
    found = head.apply(params, (), last, MASK, ends)
    np.testing.assert_array_equal(found == 0, ends < 0)
    moved = head.apply(params, (), last.at[0, 2].add(5.0).at[1, 1:].add(5.0), MASK, ends)
    np.testing.assert_allclose(moved, found)
    moved = head.apply(params, (), last.at[0, 3].add(5.0), MASK, ends)
    assert moved[0, 1] != found[0, 1] and moved[0, 0] == found[0, 0]


# Query attention (arXiv 2512.22170)


def identity(width):
    return {"kernel": jnp.eye(width), "bias": jnp.zeros(width)}


def attention(width):
    return {name: identity(width) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}


def test_numbers_of_progressive_queries():
    first, second = jnp.array([[[1.0, 0], [0, 1]]]), jnp.array([[[0.0, 2], [2, 0]]])
    last, mask = jnp.array([[[1.0, 1], [-1, 0]]]), jnp.ones((1, 2), bool)
    layer = lambda query, x: heads.QueryAttention(1).apply(
        {"params": attention(2)}, query, x, mask
    )
    q1 = layer(jnp.array([[1.0, 0.0]]), first)
    q2 = layer(q1, second)
    residual = layer(jnp.array([[0.0, 1.0]]), last)
    np.testing.assert_allclose(q1, [[0.669762, 0.330238]], atol=1e-6)
    np.testing.assert_allclose(q2, [[1.235570, 0.764430]], atol=1e-6)
    np.testing.assert_allclose(residual, [[0.339523, 0.669762]], atol=1e-6)
    params = {
        "query": jnp.array([[1.0, 0.0]]),
        "residual_query": jnp.array([[0.0, 1.0]]),
        "attention_0": attention(2),
        "attention_1": attention(2),
        "residual": attention(2),
        "layer_0": identity(2),
        "out": {"kernel": jnp.array([[1.0], [-2.0]])},
    }
    score = heads.HierarchicalQuery(1).apply({"params": params}, (first, second), last, mask)
    inner = jax.nn.silu(jnp.array([1.575093, 1.434191]))
    np.testing.assert_allclose(score, inner[None, 0] - 2 * inner[None, 1], atol=1e-5)


@pytest.mark.parametrize("progressive", [True, False])
def test_the_order_of_tokens_does_not_matter_to_queries(key, progressive):
    own, last = states(key), states(jax.random.key(1), 1)[0]
    head = heads.HierarchicalQuery(2, progressive)
    params = head.init(key, own, last, MASK)
    order = jnp.array([2, 0, 3, 1])
    turn = lambda x: x[:, order]
    here = head.apply(params, own, last, MASK)
    there = head.apply(params, tuple(map(turn, own)), turn(last), turn(MASK))
    np.testing.assert_allclose(here, there, atol=1e-5)


def test_equal_tokens_hide_the_query(key):
    x = jnp.broadcast_to(jax.random.normal(key, (2, 1, 8)), (2, 4, 8))
    layer = heads.QueryAttention(2)
    params = layer.init(key, x[:, 0], x, MASK)
    found = [layer.apply(params, scale * x[:, 0], x, MASK) for scale in (0.0, 3.0)]
    np.testing.assert_allclose(*found, atol=1e-5)


# On a transformer


@pytest.mark.parametrize("head", [heads.Scalar(), heads.HierarchicalQuery(2)])
def test_on_a_transformer_padding_does_not_matter(key, head):
    network = heads.on_transformer(CONFIG, head, (1, 2))
    params = jax.jit(network.init)(key)
    here = network.apply(params, TOKENS, LENGTHS)
    there = network.apply(params, TOKENS.at[1, 2:].set(9), LENGTHS)
    np.testing.assert_allclose(here, there, atol=1e-5)
    grads = jax.grad(lambda p: jnp.sum(network.apply(p, TOKENS, LENGTHS)))(params)
    sizes = [float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(grads["trunk"])]
    assert all(np.isfinite(sizes)) and max(sizes) > 0


def test_further_arguments_reach_the_head(key):
    ends = jnp.array([[0, 3], [1, -1]])
    network = heads.on_transformer(CONFIG, heads.StepScores(), extra=(jnp.zeros((1, 1), int),))
    found = network.apply(jax.jit(network.init)(key), TOKENS, LENGTHS, ends)
    assert found.shape == (2, 2) and found[1, 1] == 0 and found[1, 0] != 0


def test_verdicts_are_log_probabilities(key):
    hidden, weight = jax.random.normal(key, (3, 8)), jax.random.normal(jax.random.key(1), (8, 5))
    log_probs = jax.nn.log_softmax(hidden @ weight)
    one = heads.verdict_log_prob(hidden, weight, (2,))
    np.testing.assert_allclose(one, log_probs[:, 2], atol=1e-5)
    two = heads.verdict_log_prob(hidden, weight, (0, 3))
    both = jnp.logaddexp(log_probs[:, 0], log_probs[:, 3])
    np.testing.assert_allclose(two, both, atol=1e-5)
    with pytest.raises(ValueError, match="tokens = "):
        heads.verdict_log_prob(hidden, weight, ())
