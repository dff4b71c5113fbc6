"""Adapters: nothing at the start, the plain formula's values and gradients, merged or not."""

import dataclasses

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


def noisy_adapter(base, config=LORA):
    """An adapter away from its start."""
    start = lora.init(jax.random.key(1), base, config)
    leaves, tree = jax.tree.flatten(start)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    moved = [leaf + 0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
    return jax.tree.unflatten(tree, moved)


def encode(config, params):
    lengths = jnp.full((2,), 4, jnp.int32)
    network = Transformer(config)
    return network.apply({"params": params}, TOKENS, lengths, method=Transformer.encode)[0]


def test_a_new_adapter_changes_no_bit():
    base = make_policy().init(jax.random.key(0))
    joined = lora.join(base, lora.init(jax.random.key(1), base, LORA), LORA)
    np.testing.assert_array_equal(encode(CONFIG, joined), encode(CONFIG, base))


def test_a_is_uniform_within_one_over_the_root_of_its_inputs():
    base = make_policy().init(jax.random.key(0))
    adapter = lora.init(jax.random.key(1), base, LORA)
    a = np.asarray(adapter["blocks_0"]["down_proj"]["lora_a"])
    assert a.shape == (24, 3) and np.abs(a).max() <= 24**-0.5
    assert abs(a.std() - 24**-0.5 / 3**0.5) < 0.03  # of 72 uniform draws


@pytest.mark.parametrize("scan", [False, True])
def test_merged_is_joined(scan):
    config = dataclasses.replace(CONFIG, scan=scan, remat=scan)
    base = make_policy().init(jax.random.key(0))
    base = stack_blocks(base) if scan else base
    adapter = noisy_adapter(base)
    joined, merged = lora.join(base, adapter, LORA), lora.merge(base, adapter, LORA)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    found, expected = encode(config, joined), encode(config, merged)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert not np.allclose(found, encode(config, base), atol=1e-2)


def test_only_targets_are_adapted():
    base = make_policy().init(jax.random.key(0))
    config = lora.lora_config(2, targets=("v_proj",))
    adapter = lora.init(jax.random.key(1), base, config)
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(adapter)}
    layers = {f"['blocks_{i}']['attention']['v_proj']['lora_{m}']" for i in (0, 1) for m in "ab"}
    assert paths == layers


def test_gradients_are_those_of_the_plain_formula_in_float64():
    from jaxreward.networks import dense

    with jax.enable_x64(True):
        key = jax.random.key(0)
        x, w, a, b = (
            jax.random.normal(jax.random.fold_in(key, i), shape, jnp.float64)
            for i, shape in enumerate([(2, 3, 5), (5, 7), (5, 2), (2, 7)])
        )
        layer = dense.Dense(7, "float64", "float64")

        def ours(a, b):
            params = {"kernel": w, "lora_a": a, "lora_b": 1.5 * b}
            return jnp.sum(jnp.sin(layer.apply({"params": params}, x)))

        def plain(a, b):
            return jnp.sum(jnp.sin(x @ (w + 1.5 * a @ b)))

        found = jax.grad(ours, argnums=(0, 1))(a, b)
        expected = jax.grad(plain, argnums=(0, 1))(a, b)
        jax.tree.map(lambda f, e: np.testing.assert_allclose(f, e, atol=1e-12), found, expected)


def test_training_moves_the_adapter_alone():
    base = make_policy().init(jax.random.key(0))

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
    state = step.init(jax.random.key(3), policy.init(jax.random.key(4)))
    shapes = {leaf.shape for leaf in jax.tree.leaves((state.params, state.opt_state))}
    assert not shapes & {leaf.shape for leaf in jax.tree.leaves(base) if leaf.ndim == 2}
    after = iteration(base, iteration(base, state))
    moved = jax.tree.map(lambda old, new: bool(jnp.any(old != new)), state.params, after.params)
    assert all(jax.tree.leaves(moved))


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
