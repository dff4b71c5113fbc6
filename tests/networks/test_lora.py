"""Adapters: nothing at the start, the plain formula's values and gradients, merged or not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreward.losses.policy import policy_objective
from jaxreward.networks import lora
from jaxreward.networks.transformer import Transformer, stack_blocks
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies import adapted, language
from jaxreward.training.step import make_update_step
from jaxreward.transforms import advantage
from jaxreward.types import make_signal

CONFIG = TransformerConfig(vocab_size=11, width=16, layers=2, heads=4, kv_heads=2, intermediate=24)
LORA = lora.lora_config(3, alpha=5.0)
TOKENS = jnp.asarray([[3, 4, 5, 6], [7, 8, 9, 1]], jnp.int32)
PROMPTS = language.Prompts(TOKENS, jnp.asarray([4, 3], jnp.int32))


def make_policy(config=CONFIG):
    return language.language_policy(config, max_new_tokens=4, stop_tokens=(2,), pad_token=0)


init = jax.jit(make_policy().init)


@functools.cache
def start(config=LORA):
    """A base and a new adapter of it."""
    base = init(jax.random.key(0))
    return base, jax.jit(lora.init, static_argnums=2)(jax.random.key(1), base, config)


def noisy(adapter):
    """An adapter away from its start."""
    rng = np.random.default_rng(2)
    moved = lambda leaf: np.asarray(leaf) + 0.3 * rng.standard_normal(leaf.shape, np.float32)
    return jax.tree.map(moved, adapter)


def encode(config, params):
    lengths = jnp.full((2,), 4, jnp.int32)
    network = Transformer(config)
    return network.apply({"params": params}, TOKENS, lengths, method=Transformer.encode)[0]


def test_a_new_adapter_changes_no_bit():
    base, adapter = start()
    run = jax.jit(functools.partial(encode, CONFIG))
    joined = jax.jit(lambda base, adapter: lora.join(base, adapter, LORA))(base, adapter)
    np.testing.assert_array_equal(run(joined), run(base))


def test_a_is_uniform_within_one_over_the_root_of_its_inputs():
    _, adapter = start()
    a = np.asarray(adapter["blocks_0"]["down_proj"]["lora_a"])
    assert a.shape == (24, 3) and np.abs(a).max() <= 24**-0.5
    assert abs(a.std() - 24**-0.5 / 3**0.5) < 0.03  # of 72 uniform draws


@pytest.mark.parametrize("scan", [False, True])
def test_merged_is_joined(scan):
    config = dataclasses.replace(CONFIG, scan=scan, remat=scan)
    base, adapter = start()
    if scan:
        base = jax.jit(stack_blocks)(base)
        adapter = jax.jit(lambda base: lora.init(jax.random.key(1), base, LORA))(base)

    @jax.jit
    def run(base, adapter):
        joined, merged = lora.join(base, adapter, LORA), lora.merge(base, adapter, LORA)
        assert jax.tree.structure(merged) == jax.tree.structure(base)
        return [encode(config, params) for params in (joined, merged, base)]

    found, expected, plain = run(base, noisy(adapter))
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert not np.allclose(found, plain, atol=1e-2)


def test_only_targets_are_adapted():
    _, adapter = start(lora.lora_config(2, targets=("v_proj",)))
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(adapter)}
    layers = {f"['blocks_{i}']['attention']['v_proj']['lora_{m}']" for i in (0, 1) for m in "ab"}
    assert paths == layers


def test_gradients_are_those_of_the_plain_formula_in_float64():
    from jaxreward.networks import dense

    with jax.enable_x64(True):
        rng, shapes = np.random.default_rng(0), ((2, 3, 5), (5, 7), (5, 2), (2, 7))
        x, w, a, b = (jnp.asarray(rng.standard_normal(shape)) for shape in shapes)
        layer = dense.Dense(7, "float64", "float64")

        def ours(a, b):
            params = {"kernel": w, "lora_a": a, "lora_b": 1.5 * b}
            return jnp.sum(jnp.sin(layer.apply({"params": params}, x)))

        def plain(a, b):
            return jnp.sum(jnp.sin(x @ (w + 1.5 * a @ b)))

        both = [jax.grad(function, argnums=(0, 1)) for function in (ours, plain)]
        found, expected = jax.jit(lambda a, b: [grad(a, b) for grad in both])(a, b)
        jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-12), found, expected)


def test_training_moves_the_adapter_alone():
    base, _ = start()

    def make_step(base):
        policy = adapted.adapt(make_policy(), base, LORA)
        step = make_update_step(policy_objective(policy), advantage.grpo(), optax.sgd(1.0, momentum=0.9))
        return policy, step

    @jax.jit
    def iteration(base, state):
        policy, step = make_step(base)
        own = policy.sample(state.params, jax.random.key(5), PROMPTS, 4)
        rewards = jnp.any(own.actions == 5, axis=-1).astype(jnp.float32)
        return step.update(state, make_signal(rewards, trajectories=own))[0]

    policy, step = make_step(base)
    state = jax.jit(lambda: step.init(jax.random.key(3), policy.init(jax.random.key(4))))()
    shapes = {leaf.shape for leaf in jax.tree.leaves((state.params, state.opt_state))}
    assert not shapes & {leaf.shape for leaf in jax.tree.leaves(base) if leaf.ndim == 2}
    after = iteration(base, iteration(base, state))
    same = jax.tree.map(np.array_equal, *jax.device_get((state.params, after.params)))
    assert not any(jax.tree.leaves(same))


def test_no_gradient_of_the_size_of_the_base_is_formed():
    """The compiled gradient needs little more memory than the forward pass without it."""
    config = TransformerConfig(8, width=256, layers=1, heads=2, kv_heads=2, intermediate=4096)
    policy = language.language_policy(config, max_new_tokens=2, stop_tokens=(), pad_token=0)
    base = jax.eval_shape(policy.init, jax.random.key(0))
    base_bytes = sum(leaf.size * 4 for leaf in jax.tree.leaves(base))
    settings = lora.lora_config(2)
    prompts = language.Prompts(TOKENS[:, :2], jnp.full((2,), 2, jnp.int32))
    sampled = jax.eval_shape(
        lambda p: policy.sample(p, jax.random.key(0), prompts, 2), base
    )

    def of_adapter(base, adapter, sampled):
        own = adapted.adapt(policy, base, settings)
        return jax.grad(lambda a: own.log_prob(a, sampled).log_probs.sum())(adapter)

    def of_base(base, sampled):
        return jax.grad(lambda p: policy.log_prob(p, sampled).log_probs.sum())(base)

    adapter = jax.eval_shape(lambda b: lora.init(jax.random.key(0), b, settings), base)
    small = jax.jit(of_adapter).lower(base, adapter, sampled).compile().memory_analysis()
    large = jax.jit(of_base).lower(base, sampled).compile().memory_analysis()
    held = lambda stats: stats.temp_size_in_bytes + stats.output_size_in_bytes
    assert held(small) < 0.25 * base_bytes  # activations and the adapter
    assert held(large) > base_bytes


@pytest.mark.parametrize(
    "changes",
    [dict(rank=0), dict(alpha=0.0), dict(alpha=float("nan")), dict(targets=()),
     dict(targets=("head",)), dict(targets=("q_proj", "q_proj"))],
)  # fmt: skip
def test_bad_settings_are_named(changes):
    name = next(iter(changes))
    with pytest.raises(ValueError, match=f"{name} = "):
        lora.lora_config(**{"rank": 2, **changes})


def test_scale():
    assert lora.lora_config(4, alpha=8.0).scale == 2.0
    assert lora.lora_config(4, alpha=8.0, rank_stabilized=True).scale == 4.0
    assert lora.lora_config(4).alpha == 8.0
