"""Heads of reward models, and the hidden states that they read."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.networks import heads, transformer
from jaxreward.networks.transformer_config import TransformerConfig

CONFIG = TransformerConfig(11, width=8, layers=3, heads=2, kv_heads=1, intermediate=8)
SHALLOW = TransformerConfig(**{**vars(CONFIG), "layers": 2})
TOKENS = jnp.array([[3, 4, 5, 6], [7, 8, 0, 0]], jnp.int32)
LENGTHS = jnp.array([4, 2], jnp.int32)
MASK = jnp.arange(4)[None, :] < LENGTHS[:, None]


def states(seed, count=2):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal((2, 4, 8), np.float32)) for _ in range(count))


@functools.cache
def compiled(head):
    return jax.jit(head.init), jax.jit(head.apply)


# Hidden states


@pytest.mark.parametrize("scan", [False, True])
def test_hidden_states(key, scan):
    config = TransformerConfig(**{**vars(CONFIG), "scan": scan})
    one = TransformerConfig(**{**vars(CONFIG), "layers": 1})

    @jax.jit
    def run(key):
        params = transformer.init(CONFIG, key)
        params = transformer.stack_blocks(params) if scan else params
        network = transformer.Transformer(config)
        apply = lambda method, *args: network.apply({"params": params}, *args, method=method)
        found = apply("hidden_states", TOKENS, LENGTHS, (0, 1, 2, 3))
        last, _ = apply("encode", TOKENS, LENGTHS)
        shallow = None
        if not scan:
            shallow = transformer.Transformer(one).apply(
                {"params": params}, TOKENS, LENGTHS, method="encode"
            )[0]
        return found, last, params["embed"]["embedding"][TOKENS], shallow

    found, last, embedded, shallow = jax.device_get(run(key))
    np.testing.assert_allclose(found[0], embedded, rtol=1e-6)
    np.testing.assert_allclose(found[3], last, rtol=1e-6)
    if not scan:
        scale = np.sqrt(np.mean(found[1] ** 2, -1, keepdims=True) + one.norm_epsilon)
        np.testing.assert_allclose(found[1] / scale, shallow, atol=1e-5)
    assert np.max(np.abs(found[1] - found[2])) > 1e-3


def test_hidden_states_of_no_layer(key):
    network = heads.on_transformer(CONFIG, heads.HierarchicalQuery(2), (1, 4))
    with pytest.raises(ValueError, match=r"layers = \(1, 4, 3\); allowed are 0 to 3"):
        jax.eval_shape(network.init, key)


# Pooling


def test_pools():
    x = np.arange(8, dtype=np.float32).reshape(1, 4, 2)
    mask = np.array([[True, True, True, False]])
    pools = jax.jit(lambda x, mask: {kind: heads.pool(x, mask, kind) for kind in heads.POOLS})
    np.testing.assert_allclose(pools(x, mask)["last"], [[4.0, 5.0]])
    np.testing.assert_allclose(pools(x, mask)["mean"], [[2.0, 3.0]])
    np.testing.assert_allclose(pools(-x, mask)["max"], [[0.0, -1.0]])
    assert all(np.all(np.isnan(found)) for found in pools(x, np.zeros((1, 4), bool)).values())
    with pytest.raises(ValueError, match="pool = 'first'"):
        heads.pool(jnp.asarray(x), jnp.asarray(mask), "first")


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
    own, (last,), (init, apply) = states(0), states(1, 1), compiled(head)
    params = init(key, own, last, MASK)
    spoil = lambda x: np.where(MASK[..., None], x, np.float32(1e3))
    here = jax.tree.leaves(apply(params, own, last, MASK))
    there = jax.tree.leaves(apply(params, tuple(map(spoil, own)), spoil(last), MASK))
    for a, b in zip(here, there):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert a.dtype == jnp.float32 and a.shape[0] == 2


@pytest.mark.parametrize("head", ALL[:4:3] + ALL[5:])
def test_an_empty_example_has_no_reward(key, head):
    mask = np.asarray(MASK) & np.array([[True], [False]])
    own, (last,), (init, apply) = states(0), states(1, 1), compiled(head)
    found = jax.tree.leaves(apply(init(key, own, last, mask), own, last, mask))
    assert all(np.all(np.isnan(x[1])) and np.all(np.isfinite(x[0])) for x in jax.device_get(found))


def test_quantiles_never_decrease(key):
    own, (last,), (init, apply) = states(0), states(1, 1), compiled(heads.Quantiles(5))
    found = apply(init(key, own, last, MASK), own, 10 * np.asarray(last), MASK)
    assert np.all(np.diff(found, axis=1) >= 0)


def test_gaussian_uncertainty_is_bounded(key):
    own, (last,), (init, apply) = states(0), states(1, 1), compiled(heads.Gaussian(bound=2.0))
    found = apply(init(key, own, last, MASK), own, 1e4 * np.asarray(last), MASK)
    assert np.all(np.abs(found.log_std) <= 2.0) and np.max(np.abs(found.mean)) > 2


def test_steps_are_read_at_their_ends(key):
    (last,), ends = states(0, 1), jnp.array([[1, 3, -1], [0, -1, -1]])
    init, apply = compiled(heads.StepScores())
    params = init(key, (), last, MASK, ends)

    def scores(*changed):
        moved = np.array(last)
        for place in changed:
            moved[place] += 5
        return np.asarray(apply(params, (), moved, MASK, ends))

    found = scores()
    np.testing.assert_array_equal(found == 0, np.asarray(ends) < 0)
    np.testing.assert_allclose(scores((0, 2), (1, slice(1, None))), found)
    moved = scores((0, 3))
    assert moved[0, 1] != found[0, 1] and moved[0, 0] == found[0, 0]


# Query attention (arXiv 2512.22170)


def identity(width):
    return {"kernel": jnp.eye(width), "bias": jnp.zeros(width)}


def attention(width):
    return {name: identity(width) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}


def test_numbers_of_progressive_queries():
    first, second = jnp.array([[[1.0, 0], [0, 1]]]), jnp.array([[[0.0, 2], [2, 0]]])
    last, mask = jnp.array([[[1.0, 1], [-1, 0]]]), jnp.ones((1, 2), bool)
    apply = compiled(heads.QueryAttention(1))[1]
    layer = lambda query, x: apply({"params": attention(2)}, query, x, mask)
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
    score = compiled(heads.HierarchicalQuery(1))[1]({"params": params}, (first, second), last, mask)
    inner = np.array([1.575093, 1.434191])
    inner = inner / (1 + np.exp(-inner))  # silu
    np.testing.assert_allclose(score, inner[:1] - 2 * inner[1:], atol=1e-5)


@pytest.mark.parametrize("progressive", [True, False])
def test_the_order_of_tokens_does_not_matter_to_queries(key, progressive):
    own, (last,) = states(0), states(1, 1)
    init, apply = compiled(heads.HierarchicalQuery(2, progressive))
    params = init(key, own, last, MASK)
    turn = lambda x: np.asarray(x)[:, [2, 0, 3, 1]]
    here = apply(params, own, last, MASK)
    there = apply(params, tuple(map(turn, own)), turn(last), turn(MASK))
    np.testing.assert_allclose(here, there, atol=1e-5)


def test_equal_tokens_hide_the_query(key):
    first = np.asarray(states(0, 1)[0])[:, 0]
    x = np.repeat(first[:, None], 4, axis=1)
    init, apply = compiled(heads.QueryAttention(2))
    params = init(key, first, x, MASK)
    found = [apply(params, np.float32(scale) * first, x, MASK) for scale in (0, 3)]
    np.testing.assert_allclose(*found, atol=1e-5)


# On a transformer


@pytest.mark.parametrize("head", [heads.Scalar(), heads.HierarchicalQuery(2)])
def test_on_a_transformer_padding_does_not_matter(key, head):
    network = heads.on_transformer(SHALLOW, head, (0, 1))

    def score(params, tokens):
        found = network.apply(params, tokens, LENGTHS)
        return jnp.sum(found), found

    run, params = jax.jit(jax.grad(score, has_aux=True)), jax.jit(network.init)(key)
    grads, here = run(params, TOKENS)
    _, there = run(params, np.array([TOKENS[0], [7, 8, 9, 9]], np.int32))
    np.testing.assert_allclose(here, there, atol=1e-5)
    sizes = [np.max(np.abs(grad)) for grad in jax.tree.leaves(grads["trunk"])]
    assert all(np.isfinite(sizes)) and max(sizes) > 0


def test_further_arguments_reach_the_head(key):
    ends = jnp.array([[0, 3], [1, -1]])
    network = heads.on_transformer(SHALLOW, heads.StepScores(), extra=(jnp.zeros((1, 1), int),))
    found = jax.jit(lambda key: network.apply(network.init(key), TOKENS, LENGTHS, ends))(key)
    assert found.shape == (2, 2) and found[1, 1] == 0 and found[1, 0] != 0


def test_verdicts_are_log_probabilities(key):
    @jax.jit
    def run(key):
        hidden = jax.random.normal(key, (3, 8))
        weight = jax.random.normal(jax.random.key(1), (8, 5))
        found = [heads.verdict_log_prob(hidden, weight, tokens) for tokens in ((2,), (0, 3))]
        return *found, jax.nn.log_softmax(hidden @ weight)

    one, two, log_probs = jax.device_get(run(key))
    np.testing.assert_allclose(one, log_probs[:, 2], atol=1e-5)
    both = np.logaddexp(log_probs[:, 0], log_probs[:, 3])
    np.testing.assert_allclose(two, both, atol=1e-5)
    with pytest.raises(ValueError, match="tokens = "):
        heads.verdict_log_prob(jnp.zeros((3, 8)), jnp.zeros((8, 5)), ())
