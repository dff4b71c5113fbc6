"""Experts of a reward network: what phases 2 and 3 may and may not change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreward.losses import preference
from jaxreward.networks import experts, heads, lora
from jaxreward.networks.transformer_config import TransformerConfig

CONFIG = TransformerConfig(11, width=8, layers=2, heads=2, kv_heads=1, intermediate=8)
LORA = lora.lora_config(2, targets=("q_proj", "v_proj"))
NETWORK = heads.on_transformer(CONFIG, heads.Scalar())
TEXTS = jnp.array([[3, 4, 5], [7, 8, 0]], jnp.int32), jnp.array([3, 2], jnp.int32)
COUNT = 3


@pytest.fixture(scope="module", name="made")
def phase_two():
    @jax.jit
    def run(key):
        params = NETWORK.init(key)
        return params, experts.init_experts(jax.random.key(1), params, LORA, COUNT)

    return run(jax.random.key(0))


def trained(made):
    """Experts whose adapters are no longer inert."""
    params, own = made
    rng = np.random.default_rng(2)
    noise = lambda x: np.asarray(x) + 0.3 * rng.standard_normal(x.shape, np.float32)
    return params, jax.tree.map(noise, own)


@jax.jit
def score(params, own):
    return experts.apply_experts(NETWORK, params, own, LORA, *TEXTS)


def test_experts_start_as_the_base(made):
    params, own = made
    base = jax.jit(NETWORK.apply)(params, *TEXTS)
    np.testing.assert_allclose(score(params, own), np.tile(base, (COUNT, 1)), rtol=1e-6)
    down = jax.tree.leaves(own.adapters)[0]
    assert not np.array_equal(down[0], down[1])  # the adapters differ all the same


def test_training_an_expert_leaves_the_others_and_the_base_alone(made):
    params, own = trained(made)

    def loss(params, own):
        margins = score(params, own)[1, :1] - score(params, own)[1, 1:]
        return preference.pair_loss(margins, jnp.ones(1))

    of_base, of_experts = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, own)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(of_base))
    sizes = [np.abs(np.asarray(leaf)).reshape(COUNT, -1).max(1) for leaf in
             jax.tree.leaves(of_experts)]  # fmt: skip
    assert np.max(sizes, axis=0)[1] > 0
    np.testing.assert_array_equal(np.max(sizes, axis=0)[[0, 2]], [0, 0])
    stepped = jax.tree.map(lambda x, g: x - np.asarray(g), own, of_experts)
    before, after = jax.device_get((score(params, own), score(params, stepped)))
    np.testing.assert_array_equal(before[[0, 2]], after[[0, 2]])
    assert not np.array_equal(before[1], after[1])


def test_aggregation_trains_nothing_but_itself(made):
    params, own = trained(made)
    reader = heads.on_transformer(CONFIG, heads.State())
    aggregator = experts.Aggregator(8)

    def states(params, own):
        bare = own._replace(heads={})
        found = experts.apply_experts(reader, params, bare, LORA, *TEXTS)
        return jax.lax.stop_gradient(found)

    def loss(weights, params, own):
        reward = aggregator.apply(weights, states(params, own))
        return preference.pair_loss(reward[:1] - reward[1:], jnp.ones(1))

    @jax.jit
    def run(params, own):
        weights = aggregator.init(jax.random.key(3), states(params, own))
        return jax.grad(loss, argnums=(0, 1, 2))(weights, params, own)

    found = run(params, own)
    assert max(np.max(np.abs(g)) for g in jax.tree.leaves(found[0])) > 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(found[1:]))


def test_numbers_of_the_aggregator():
    states = jnp.array([0.4, -0.6, 0.2, 0.1]).reshape(2, 1, 2)
    mix = jnp.array([[1, 0, 0.5, 0], [0, 1, 0, -1.0]]).T
    params = {
        "mix": {"kernel": mix, "bias": jnp.array([0.1, 0])},
        "prelu": {"negative_slope": jnp.float32(0.25)},
        "out": {"kernel": jnp.array([[1.0], [-2.0]]), "bias": jnp.array([0.3])},
    }
    found = jax.jit(experts.Aggregator(2).apply)({"params": params}, states)
    np.testing.assert_allclose(found, [1.25], rtol=1e-6)
    fresh = jax.jit(experts.Aggregator(2).init)(jax.random.key(0), states)["params"]
    assert float(fresh["prelu"]["negative_slope"]) == 0.25


def test_router():
    logits, label = jnp.array([[2.0, 0, 0, 0, 0]]), jnp.array([0])
    loss = jax.jit(optax.softmax_cross_entropy_with_integer_labels)
    assert float(loss(logits, label)[0]) == pytest.approx(0.432653, abs=1e-6)
    twice = loss(jax.nn.softmax(logits), label)
    assert float(twice[0]) == pytest.approx(1.188634, abs=1e-6)
    scores = jnp.arange(15.0).reshape(5, 3)
    chosen = jnp.eye(5)[jnp.array([4, 0, 2])]
    np.testing.assert_array_equal(experts.route(scores, chosen), [12.0, 1.0, 8.0])


def test_bad_counts(made):
    with pytest.raises(ValueError, match="count = 0"):
        experts.init_experts(jax.random.key(0), made[0], LORA, 0)
