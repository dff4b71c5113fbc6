"""The transformer: what may see what, against plain formulas and against itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.networks import rotary
from jaxreward.networks.transformer import (
    Transformer,
    TransformerConfig,
    empty_cache,
    stack_blocks,
)

SIZES = dict(vocab_size=11, width=16, layers=2, heads=4, kv_heads=2, intermediate=24)
CONFIG = TransformerConfig(**SIZES)
GEMMA = TransformerConfig(
    **SIZES,
    qk_norm=True,
    activation="gelu_tanh",
    query_scalar=3.0,
    scale_embeddings=True,
    norm_offset=True,
    output_norms=True,
    sliding_layers=(0,),
    sliding_window=3,
    sliding_rope_theta=100.0,
)
FULL = TransformerConfig(**SIZES, qkv_bias=True, qk_norm=True, rope_scaling=rotary.Llama3Scaling())
PROMPTS = jnp.asarray([[3, 4, 5, 6], [7, 8, 0, 0], [9, 3, 4, 0]], jnp.int32)
LENGTHS = jnp.asarray([4, 2, 3], jnp.int32)


def both(module, tokens, lengths, responses):
    encoded, cache = module.encode(tokens, lengths)
    return encoded, module.extend(responses, lengths, cache), module.head_weight()


def random_leaves(params, seed=1):
    """Every leaf away from its initial value, so that no bias is 0 and no scale 1."""
    rng = np.random.default_rng(seed)
    noisy = lambda x: np.asarray(x) + 0.3 * rng.standard_normal(x.shape, np.float32)
    return jax.tree.map(lambda x: jnp.asarray(noisy(x)), params)


@functools.cache
def network(config):
    """Parameters, and the jitted encode-then-extend of one config."""
    module = Transformer(config)
    init = jax.jit(functools.partial(module.init, method=both))
    variables = init(jax.random.key(0), PROMPTS, LENGTHS, responses())
    run = jax.jit(lambda params, *a: module.apply({"params": params}, *a, method=both))
    return random_leaves(variables["params"]), run


@functools.cache
def responses():
    with jax.ensure_compile_time_eval():
        return jnp.asarray(np.random.default_rng(5).integers(1, 11, (3, 2, 5), np.int32))


def plain(config, params, tokens):
    """Hidden states of one sequence by the textbook, float64, no cache and no batch."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    heads, group, d = config.heads, config.heads // config.kv_heads, config.size_per_head
    rates = np.asarray(rotary.frequencies(d, config.rope_theta, config.rope_scaling), np.float64)
    turn = np.exp(1j * np.arange(len(tokens))[:, None] * rates)[:, None]

    def norm(x, scale):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + config.norm_epsilon) * scale

    def dense(p, x):
        return x @ p["kernel"] + p.get("bias", 0.0)

    def rotate(x):
        z = (x[..., : d // 2] + 1j * x[..., d // 2 :]) * turn
        return np.concatenate([z.real, z.imag], axis=-1)

    def attention(p, x):
        q, k, v = (dense(p[f"{n}_proj"], x).reshape(len(x), -1, d) for n in "qkv")
        if config.qk_norm:
            q, k = norm(q, p["q_norm"]["scale"]), norm(k, p["k_norm"]["scale"])
        q, k, out = rotate(q), rotate(k), np.zeros((len(x), heads, d))
        for h in range(heads):
            for t in range(len(x)):
                scores = k[: t + 1, h // group] @ q[t, h] / np.sqrt(d)
                weights = np.exp(scores - scores.max())
                out[t, h] = weights / weights.sum() @ v[: t + 1, h // group]
        return dense(p["o_proj"], out.reshape(len(x), -1))

    x = params["embed"]["embedding"][np.asarray(tokens)]
    for i in range(config.layers):
        p = params[f"blocks_{i}"]
        x = x + attention(p["attention"], norm(x, p["input_norm"]["scale"]))
        y = norm(x, p["post_norm"]["scale"])
        gate = dense(p["gate_proj"], y)
        x = x + dense(p["down_proj"], gate / (1 + np.exp(-gate)) * dense(p["up_proj"], y))
    return norm(x, params["final_norm"]["scale"])


@pytest.mark.parametrize("config", [CONFIG, FULL])
def test_hidden_states_are_the_textbooks(config):
    params, run = network(config)
    encoded, extended, _ = jax.device_get(run(params, PROMPTS, LENGTHS, responses()))
    prompts, answers = np.asarray(PROMPTS), np.asarray(responses())
    for p, length in enumerate(np.asarray(LENGTHS)):
        for g in range(2):
            tokens = np.concatenate([prompts[p, :length], answers[p, g]])
            expected = plain(config, params, tokens)
            np.testing.assert_allclose(encoded[p, :length], expected[:length], atol=2e-5)
            np.testing.assert_allclose(extended[p, g], expected[length:], atol=2e-5)


def test_gradients_vanish_exactly_where_nothing_may_be_seen():
    params, _ = network(CONFIG)
    module = Transformer(CONFIG)

    def through_embedding(shift_prompt, shift_response):
        """Distinct token ids per position, so that a shift of an embedding row is local."""
        table = params["embed"]["embedding"]
        table = table.at[1:5].add(shift_prompt).at[5:9].add(shift_response)
        moved = {**params, "embed": {"embedding": table}}
        prompt, answer = jnp.asarray([[1, 2, 3, 4]]), jnp.asarray([[[5, 6, 7, 8]]])
        lengths = jnp.asarray([3], jnp.int32)
        encoded, extended, _ = module.apply({"params": moved}, prompt, lengths, answer, method=both)
        return encoded[0].sum(-1), extended[0, 0].sum(-1)

    zeros = jnp.zeros((4, 16))
    jacobian = jax.jit(jax.jacrev(through_embedding, (0, 1)))(zeros, zeros)
    (pp, pr), (rp, rr) = ([np.abs(j).sum(-1) for j in row] for row in jacobian)
    causal = np.tril(np.ones((4, 4), bool))
    np.testing.assert_array_equal(pp[:3] > 0, causal[:3])
    np.testing.assert_array_equal(pr, 0)
    np.testing.assert_array_equal(rr > 0, causal)
    np.testing.assert_array_equal(rp > 0, np.tile([True, True, True, False], (4, 1)))


def test_grouped_queries_equal_repeated_key_value_heads():
    params, run = network(FULL)
    wide = TransformerConfig(
        **{**SIZES, "kv_heads": 4}, qkv_bias=True, qk_norm=True, rope_scaling=FULL.rope_scaling
    )

    def repeat(path, leaf):
        if not any(name in str(path) for name in ("k_proj", "v_proj")):
            return leaf
        split = np.asarray(leaf).reshape(leaf.shape[:-1] + (2, 4))
        return np.repeat(split, 2, axis=-2).reshape(leaf.shape[:-1] + (16,))

    repeated = jax.tree_util.tree_map_with_path(repeat, params)
    _, run_wide = network(wide)
    for found, expected in zip(
        run(params, PROMPTS, LENGTHS, responses()), run_wide(repeated, PROMPTS, LENGTHS, responses())
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_of_a_prompt_changes_nothing():
    params, run = network(FULL)
    _, expected, _ = run(params, PROMPTS, LENGTHS, responses())
    longer = np.full((3, 7), 10, np.int32)  # junk in the padding, and more of it
    for p, length in enumerate(np.asarray(LENGTHS)):
        longer[p, :length] = np.asarray(PROMPTS)[p, :length]
    _, found, _ = run(params, longer, LENGTHS, responses())
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("config", [CONFIG, FULL, GEMMA])
def test_decoding_step_by_step_equals_extending_at_once(config):
    params, run = network(config)
    module = Transformer(config)

    @jax.jit
    def decoded(params, tokens):
        apply = functools.partial(module.apply, {"params": params})
        _, prefix = apply(PROMPTS, LENGTHS, method=Transformer.encode)

        def one(own, entry):
            hidden, own = apply(*entry, LENGTHS, prefix, own, method=Transformer.decode)
            return own, hidden

        # slots ahead of the step must not be read
        own = jax.tree.map(lambda x: x + 7.0, empty_cache(config, 3, 2, 5))
        entries = jnp.moveaxis(tokens, 2, 0), jnp.arange(5, dtype=jnp.int32)
        return jnp.moveaxis(jax.lax.scan(one, own, entries)[1], 0, 2)

    _, expected, _ = run(params, PROMPTS, LENGTHS, responses())
    np.testing.assert_allclose(decoded(params, responses()), expected, atol=1e-5)


def start_shapes(config):
    init = functools.partial(Transformer(config).init, method=both)
    params = jax.eval_shape(init, jax.random.key(0), PROMPTS, LENGTHS, responses())["params"]
    return jax.tree.map(jnp.shape, params)


def shapes(config):
    flat = jax.tree_util.tree_flatten_with_path(start_shapes(config), is_leaf=is_shape)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): shape for path, shape in flat}


def is_shape(node):
    return isinstance(node, tuple)


def test_leaves_of_a_plain_network():
    found = shapes(CONFIG)
    block = {
        "attention/q_proj/kernel": (16, 16),
        "attention/k_proj/kernel": (16, 8),
        "attention/v_proj/kernel": (16, 8),
        "attention/o_proj/kernel": (16, 16),
        "input_norm/scale": (16,),
        "post_norm/scale": (16,),
        "gate_proj/kernel": (16, 24),
        "up_proj/kernel": (16, 24),
        "down_proj/kernel": (24, 16),
    }
    rest = {"embed/embedding": (11, 16), "final_norm/scale": (16,), "head": (16, 11)}
    assert found == {f"blocks_{i}/{k}": v for i in range(2) for k, v in block.items()} | rest


def test_leaves_of_the_variants():
    plain_leaves, full = shapes(CONFIG), shapes(FULL)
    assert {k.split("attention/")[1] for k in set(full) - set(plain_leaves)} == {
        "q_proj/bias", "k_proj/bias", "v_proj/bias", "q_norm/scale", "k_norm/scale",
    }  # fmt: skip
    assert full["blocks_0/attention/q_norm/scale"] == (4,)
    tied = shapes(TransformerConfig(**SIZES, tie_embeddings=True))
    assert set(plain_leaves) - set(tied) == {"head"}
    wide = shapes(TransformerConfig(**SIZES, head_dim=6))
    assert wide["blocks_1/attention/o_proj/kernel"] == (24, 16)


def test_a_tied_head_is_the_transposed_embedding_and_bfloat16_stays_close():
    params, run = network(CONFIG)
    tied = {k: v for k, v in params.items() if k != "head"}
    half = TransformerConfig(**SIZES, tie_embeddings=True, dtype="bfloat16")
    _, run_half = network(half)
    _, found, head = run_half(tied, PROMPTS, LENGTHS, responses())
    assert found.dtype == jnp.bfloat16 and head.dtype == jnp.float32
    np.testing.assert_array_equal(head, np.asarray(params["embed"]["embedding"]).T)
    _, expected, _ = run(params, PROMPTS, LENGTHS, responses())
    error = np.sqrt(np.mean(np.square(np.asarray(found, np.float32) - expected)))
    assert 0 < error < 10 * 2.0**-8  # hidden states have size 1, a rounding is up to 2^-9


@pytest.mark.parametrize(
    "change, name",
    [({n: 0}, n) for n in SIZES]
    + [
        ({"kv_heads": 3}, "kv_heads"),
        ({"heads": 3, "kv_heads": 3}, "heads"),
        ({"head_dim": 5}, "head_dim"),
        ({"head_dim": -2}, "head_dim"),
        ({"width": 12}, "head_dim"),
        ({"rope_theta": 0.0}, "rope_theta"),
        ({"norm_epsilon": -1e-6}, "norm_epsilon"),
    ],
)
def test_impossible_sizes_are_refused(change, name):
    with pytest.raises(ValueError, match=f"{name} = .*allowed"):
        TransformerConfig(**{**SIZES, **change})


def test_a_scan_over_layers_and_remat_change_nothing():
    """Hidden states, caches and gradients of every entry, by stacked parameters."""
    scanned = dataclasses.replace(CONFIG, scan=True, remat=True)
    params = network(CONFIG)[0]
    tokens, lengths = responses()[:2, :, :3], jnp.asarray([2, 3], jnp.int32)

    def everything(config, params):
        apply = functools.partial(Transformer(config).apply, {"params": params})
        hidden, prefix = apply(tokens[:, 0], lengths, method=Transformer.encode)
        extended = apply(tokens, lengths, prefix, method=Transformer.extend)

        def one(own, entry):
            out, own = apply(*entry, lengths, prefix, own, method=Transformer.decode)
            return own, out

        entries = jnp.moveaxis(tokens, 2, 0), jnp.arange(3, dtype=jnp.int32)
        _, decoded = jax.lax.scan(one, empty_cache(config, 2, 2, 3), entries)
        outputs = hidden, extended, jnp.moveaxis(decoded, 0, 2)
        return sum(jnp.sum(jnp.sin(out)) for out in outputs), (outputs, prefix)

    @jax.jit
    def run(params):
        grad = jax.grad(everything, argnums=1, has_aux=True)
        gradient, (expected, caches) = grad(CONFIG, params)
        own, (found, own_caches) = grad(scanned, stack_blocks(params))
        stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *caches)
        return (expected, stacked, stack_blocks(gradient)), (found, own_caches, own)

    (expected, caches, gradient), (found, own_caches, own) = run(params)
    np.testing.assert_allclose(expected[1], expected[2], atol=1e-5)
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, (found, own_caches), (expected, caches))
    jax.tree.map(functools.partial(close, rtol=1e-4, atol=1e-4), own, gradient)
    assert jax.tree.map(jnp.shape, own) == start_shapes(scanned)
