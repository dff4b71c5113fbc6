"""Placement of parameters by rules, on meshes of no devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies.language import language_policy
from jaxreward.training import sharding
from jaxreward.training.step import make_update_step
from jaxreward.transforms import advantage

CONFIG = TransformerConfig(
    vocab_size=48, width=24, layers=2, heads=4, kv_heads=2, intermediate=40, qkv_bias=True,
    qk_norm=True,
)  # fmt: skip


def abstract(data=1, fsdp=1, tensor=1):
    return AbstractMesh(
        (data, fsdp, tensor), sharding.AXES, axis_types=(AxisType.Auto,) * len(sharding.AXES)
    )


def state_of(config, optimizer=optax.adam(1e-3)):
    policy = language_policy(config, max_new_tokens=2, stop_tokens=(), pad_token=0)
    chain = advantage.group_relative(scale="running_std")
    step = make_update_step(lambda params, signal: (0.0, {}), chain, optimizer)
    return jax.eval_shape(lambda key: step.init(key, policy.init(key)), jax.random.key(0))


def specs(state, mesh, config=CONFIG):
    found = sharding.state_shardings(state, mesh, sharding.transformer_rules(config, mesh))
    assert jax.tree.structure(found) == jax.tree.structure(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(found)
    }


def test_every_parameter_has_its_place():
    found = specs(state_of(CONFIG), abstract(2, 4, 2))
    block = {name: spec for name, spec in found.items() if name.startswith("params/blocks_1/")}
    heads, inside = PartitionSpec("fsdp", "tensor"), PartitionSpec("tensor", "fsdp")
    expected = {f"attention/{letter}_proj/kernel": heads for letter in "qkv"}
    expected |= {f"attention/{letter}_proj/bias": PartitionSpec("tensor") for letter in "qkv"}
    expected |= {"attention/o_proj/kernel": inside, "down_proj/kernel": inside}
    expected |= {"gate_proj/kernel": heads, "up_proj/kernel": heads}
    norms = ("input_norm", "post_norm", "attention/q_norm", "attention/k_norm")
    expected |= {f"{name}/scale": PartitionSpec() for name in norms}
    assert block == {f"params/blocks_1/{name}": spec for name, spec in expected.items()}
    assert found["params/embed/embedding"] == inside and found["params/head"] == heads


def test_optimizer_state_lies_as_its_parameters_and_the_rest_is_whole():
    found = specs(state_of(CONFIG), abstract(2, 4, 2))
    params = {n.removeprefix("params/"): s for n, s in found.items() if n.startswith("params/")}
    for moment in ("mu", "nu"):
        own = {n.split(f"/{moment}/")[1]: s for n, s in found.items() if f"/{moment}/" in n}
        assert own == params
    mirrored = ("params/", "/mu/", "/nu/")
    rest = {name: spec for name, spec in found.items() if not any(m in name for m in mirrored)}
    assert {"key", "step", "skipped"} <= rest.keys()
    assert any(name.startswith("chain_state/") for name in rest)
    assert all(spec == PartitionSpec() for spec in rest.values())


def test_what_does_not_divide_is_whole_and_said():
    """2 key heads on 4 devices: no head is cut; 40 inside is cut, 24 not on 16."""
    mesh = abstract(1, 16, 4)
    state = state_of(CONFIG)
    found = specs(state, mesh)
    assert found["params/blocks_0/attention/q_proj/kernel"] == PartitionSpec()
    assert found["params/blocks_0/up_proj/kernel"] == PartitionSpec(None, "tensor")
    assert found["params/blocks_0/down_proj/kernel"] == PartitionSpec("tensor")
    said = sharding.left_whole(state.params, mesh, sharding.transformer_rules(CONFIG, mesh))
    assert any(line.startswith("blocks_0/up_proj/kernel (24, 40)") for line in said)
    assert not sharding.left_whole(
        state.params, abstract(1, 4, 2), sharding.transformer_rules(CONFIG, abstract(1, 4, 2))
    )


def test_what_no_rule_names_is_replicated_and_said():
    mesh = abstract(1, 2, 1)
    tree = {"new": jax.ShapeDtypeStruct((4, 4), jnp.float32)}
    found = sharding.state_shardings(tree, mesh, sharding.transformer_rules(CONFIG, mesh))
    assert found["new"].spec == PartitionSpec()
    said = sharding.left_whole(tree, mesh, sharding.transformer_rules(CONFIG, mesh))
    assert said == ["new (4, 4): no rule names it, it is replicated"]


def test_a_factored_optimizer_is_placed_too():
    """Its leaves have a parameter's path and another rank."""
    config = CONFIG
    state = state_of(config, optax.adafactor(1e-3, min_dim_size_to_factor=8))
    found = specs(state, abstract(1, 2, 2))
    rows = [spec for name, spec in found.items() if "/v_row/" in name and "q_proj" in name]
    assert rows and all(spec == PartitionSpec() for spec in rows)


@pytest.mark.parametrize("sizes", [(2, 1, 1), (-1, -1, 1), (0, 1, 1), (-1, 3, 1)])
def test_impossible_meshes(sizes):
    with pytest.raises(ValueError, match="with product 1, the number of devices"):
        sharding.make_mesh(*sizes, devices=jax.devices()[:1])


def test_the_rest_of_a_mesh_is_found():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}


def test_prompts_that_cannot_be_split():
    sharding.check_batch(abstract(2, 4, 8), 16, accumulate=2)
    with pytest.raises(ValueError, match="prompts_per_step = 12; allowed are multiples .* = 8"):
        sharding.check_batch(abstract(2, 4, 8), 12)


def test_own_rows_of_one_process_are_all():
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    rows = np.arange(6.0, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(sharding.own_rows(sharding.from_own_rows(rows, mesh)), rows)
