"""bfloat16 parameters: nothing small is lost, and sampler and trainer stay close."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxreward.losses.policy import policy_objective
from jaxreward.networks.transformer import init as init_network
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies import language
from jaxreward.training import checkpoint, precision, sharding
from jaxreward.training.step import make_update_step
from jaxreward.transforms import advantage
from jaxreward.types import make_signal

SIZES = dict(vocab_size=50, width=64, layers=2, heads=4, kv_heads=2, intermediate=96)
SHORT = TransformerConfig(**SIZES, dtype="bfloat16", param_dtype="bfloat16")
PROMPTS = language.Prompts(
    jnp.asarray(np.random.default_rng(7).integers(3, 50, (4, 6), np.int32)),
    jnp.asarray([6, 4, 5, 2], jnp.int32),
)


def make_policy(config):
    return language.language_policy(config, max_new_tokens=12, stop_tokens=(), pad_token=0)


def run_steps(optimizer, params, count):
    def body(carry, _):
        params, state = carry
        grads = jax.tree.map(lambda leaf: jnp.ones_like(leaf), params)
        updates, state = optimizer.update(grads, state, params)
        return (precision.apply_updates(params, updates), state), None

    def run(params):
        return jax.lax.scan(body, (params, optimizer.init(params)), length=count)[0][0]

    return jax.device_get(jax.jit(run)(params))


def test_updates_below_the_last_bit_add_up():
    params = {"w": jnp.ones((3,), jnp.bfloat16), "b": jnp.full((2,), 0.5, jnp.float32)}
    plain = run_steps(optax.sgd(1e-4), params, 1000)
    kept = run_steps(precision.float32_master(optax.sgd(1e-4)), params, 1000)
    assert plain["w"][0] == 1.0  # each of the 1000 updates is lost
    assert kept["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(kept["w"], np.full((3,), 0.9, jnp.bfloat16))
    np.testing.assert_allclose(kept["b"], 0.4, atol=1000 * 2.0**-25)  # a rounding each


def test_parameters_are_the_rounded_copy_after_every_step():
    optimizer = precision.float32_master(optax.sgd(0.37, momentum=0.9))
    rng = np.random.default_rng(0)
    normal = lambda scale: {"w": (scale * rng.standard_normal(64)).astype(jnp.bfloat16)}

    @jax.jit
    def one(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return precision.apply_updates(params, updates), state

    params = normal(1)
    state = jax.jit(optimizer.init)(params)
    for _ in range(5):
        params, state = one(params, state, normal(9))
        rounded = np.asarray(state.master["w"]).astype(jnp.bfloat16)
        np.testing.assert_array_equal(params["w"], rounded)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state)}
    assert dtypes == {jnp.dtype("float32")}


def test_without_parameters():
    optimizer = precision.float32_master(optax.sgd(0.1))
    params = {"w": jnp.ones((1,))}
    with pytest.raises(ValueError, match="params = None"):
        optimizer.update(params, optimizer.init(params))


@pytest.fixture(scope="module", name="stepped")
def one_step():
    """The state after a rollout and an update, and what the update measured."""
    policy = make_policy(SHORT)
    optimizer = precision.float32_master(optax.sgd(1.0, momentum=0.9))
    step = make_update_step(policy_objective(policy), advantage.grpo(), optimizer)

    def run(state):
        own = policy.sample(state.params, jax.random.key(3), PROMPTS, 4)
        rewards = jnp.any(own.actions == 5, axis=-1).astype(jnp.float32)
        return step.update(state, make_signal(rewards, trajectories=own))

    start = jax.jit(lambda: step.init(jax.random.key(1), policy.init(jax.random.key(0))))
    return jax.jit(run, donate_argnums=0)(start())


def test_every_leaf_has_a_place_and_a_checkpoint_keeps_every_bit(stepped, tmp_path):
    state, _ = stepped
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    rules = sharding.transformer_rules(SHORT, mesh)
    assert not sharding.left_whole((state.params, state.opt_state), mesh, rules)
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        restored = checkpoints.restore_newest(state).state
    before = jax.tree.leaves((state.params, state.opt_state))
    for old, new in zip(before, jax.tree.leaves((restored.params, restored.opt_state))):
        np.testing.assert_array_equal(old, new)
        assert old.dtype == new.dtype


def test_the_ratio_of_sampler_and_trainer_is_logged_and_bounded(stepped):
    """Both round hidden states to bfloat16, in another order of sums.

    A block rounds the stream twice, by at most 2^-8 of it, and so the logits; the log-prob
    differs by at most twice the largest of those, and on average by far less.
    """
    _, metrics = stepped
    roundings = 2 * SHORT.layers + 2
    bound = 2 * roundings * 2.0**-8 * SHORT.width**0.5 / 2  # logits are about 1 here
    found = {name: float(metrics[f"policy/log_ratio_abs_{name}"]) for name in ("mean", "max")}
    assert 0 < found["max"] < bound, (found, bound)
    assert found["mean"] < 2 * roundings**0.5 * 2.0**-8, found
    assert abs(float(metrics["policy/ratio_mean"]) - 1) < found["mean"]


def test_log_probs_of_bfloat16_weights_are_summed_in_float32():
    """Against the same hidden states and weights in float64."""
    policy, network = make_policy(SHORT), language.Transformer(SHORT)

    @jax.jit
    def run(key):
        params = init_network(SHORT, key)
        own = policy.sample(params, jax.random.key(3), PROMPTS, 4)
        hidden = language.response_hidden(network, params, own.prompts, own.actions)
        return own, policy.log_prob(params, own), hidden, params["head"]

    own, scores, hidden, head = jax.device_get(run(jax.random.key(0)))
    assert scores.log_probs.dtype == scores.entropies.dtype == own.log_probs.dtype == jnp.float32
    assert hidden.dtype == jnp.bfloat16
    logits = hidden.astype(np.float64) @ head.astype(np.float64)
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = np.take_along_axis(expected, own.actions[..., None], -1)[..., 0]
    np.testing.assert_allclose(scores.log_probs, expected, atol=2e-6)
