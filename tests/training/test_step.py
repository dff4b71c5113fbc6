"""The update step: accumulation, guards, what the chain may not leak, mapping over runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh

from jaxreward.losses.policy import policy_objective
from jaxreward.policies.tabular import tabular_policy
from jaxreward.training import sharding
from jaxreward.training.gradient import map_in_parts, split_prompts
from jaxreward.training.step import make_update_step, sample_key
from jaxreward.transforms import advantage, base
from jaxreward.types import Policy, StepScores, Trajectories, make_signal

P, G, S, V = 4, 3, 3, 5


def sequence_policy():
    """Several decisions from one table of logits `[S, V]`; lengths are given by the data."""
    table = tabular_policy(S, V)

    def log_prob(params, trajectories):
        log_p = jax.nn.log_softmax(params, axis=-1)
        taken = jnp.moveaxis(trajectories.actions, -1, 0)
        values = jnp.stack([log_p[s][taken[s]] for s in range(S)], axis=-1)
        entropies = jnp.broadcast_to(
            -jnp.sum(jnp.exp(log_p) * log_p, -1)[None, None, :], values.shape
        )
        mask = trajectories.mask
        return StepScores(jnp.where(mask, values, 0.0), jnp.where(mask, entropies, 0.0))

    return Policy(table.init, table.sample, log_prob)


POLICY = sequence_policy()
PARAMS = jnp.asarray(np.random.default_rng(0).normal(size=(S, V)), jnp.float32)
CHAIN = advantage.group_relative(baseline="mean")


def make_batch(seed=0, missing=True):
    rng = np.random.default_rng(seed)
    actions = jnp.asarray(rng.integers(0, V, size=(P, G, S)), jnp.int32)
    lengths = rng.integers(1, S + 1, size=(P, G))
    mask = np.arange(S)[None, None, :] < lengths[:, :, None]
    # The lengths of the micro-batches must differ, or equal weights would be right by accident.
    mask[1::2] &= np.arange(S) < 1
    old = -rng.exponential(size=(P, G, S))
    old, reference = (jnp.asarray(values, jnp.float32) for values in (old, old - 0.2))
    prompts = jnp.asarray(np.zeros(P, np.int32))
    trajectories = Trajectories(prompts, actions, actions, old, jnp.asarray(mask))
    rewards = jnp.asarray(rng.normal(size=(P, G)), jnp.float32)
    present = np.ones((P, G), bool)
    if missing:
        present[0, 0] = present[3, :2] = False
    return make_signal(
        rewards, jnp.asarray(present), trajectories=trajectories, reference_log_probs=reference
    )


def make(accumulate=1, optimizer=None, spike_factor=0.0, loss=None, **options):
    loss = loss or policy_objective(POLICY, **options)
    optimizer = optimizer or optax.sgd(0.1)
    return make_update_step(
        loss, CHAIN, optimizer, accumulate=accumulate, spike_factor=spike_factor
    )


@pytest.mark.parametrize(
    ("normalize", "parts"), [("token", 4), ("sequence", 2), ("constant", 2)]
)
def test_accumulation_equals_the_whole_batch(normalize, parts, key):
    options = dict(normalize=normalize, kl_coefficient=0.1, entropy_coefficient=0.05)
    whole, split = make(**options), make(accumulate=parts, **options)
    one, metrics = jax.jit(whole.update)(whole.init(key, PARAMS), make_batch())
    many, split_metrics = jax.jit(split.update)(split.init(key, PARAMS), make_batch())
    assert np.any(one.params != PARAMS)
    np.testing.assert_allclose(many.params, one.params, rtol=1e-5, atol=1e-7)
    assert metrics.keys() == split_metrics.keys()
    for name, value in metrics.items():
        np.testing.assert_allclose(split_metrics[name], value, rtol=2e-5, atol=1e-7, err_msg=name)


def test_a_micro_batch_without_a_reward_is_left_out(key):
    """All of the second micro-batch is missing: the result is that of the first."""
    signal = make_batch(missing=False)
    gone = signal.replace(mask=signal.mask.at[1::2].set(False))
    half = jax.tree.map(lambda leaf: leaf[::2], signal)
    split, whole = make(accumulate=2), make()
    found, _ = jax.jit(split.update)(split.init(key, PARAMS), gone)
    expected, _ = jax.jit(whole.update)(whole.init(key, PARAMS), half)
    np.testing.assert_allclose(found.params, expected.params, rtol=1e-5, atol=1e-7)


def test_a_batch_without_any_reward_changes_nothing(key):
    signal = make_batch()
    signal = signal.replace(mask=jnp.zeros_like(signal.mask))
    for parts in (1, 2):
        step = make(accumulate=parts, kl_coefficient=0.1)
        state, metrics = jax.jit(step.update)(step.init(key, PARAMS), signal)
        np.testing.assert_array_equal(state.params, PARAMS)
        assert metrics["train/loss"] == 0 and state.skipped == 0


def test_a_loss_without_a_weight_is_averaged_equally(key):
    def loss(params, signal):
        return jnp.mean(signal.advantages) + jnp.sum(params) * jnp.mean(signal.rewards), {}

    step = make(accumulate=2, loss=loss)
    signal = make_batch(missing=False)
    state, metrics = jax.jit(step.update)(step.init(key, PARAMS), signal)
    grad = jnp.mean(signal.rewards)
    np.testing.assert_allclose(state.params, PARAMS - 0.1 * grad, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["train/loss"], jnp.sum(PARAMS) * grad, rtol=1e-4)


def test_half_precision_gradients_are_summed_in_float32(key):
    """256 and 1 are both bfloat16, 257 is not: a bfloat16 sum would lose the small part."""

    def loss(params, signal):
        return jnp.sum(params.astype(jnp.float32)) * jnp.mean(signal.rewards), {}

    params = jnp.zeros((1,), jnp.bfloat16)
    rewards = jnp.asarray([256.0, 1.0, 1.0, 1.0])[:, None] * jnp.ones((P, G))
    step = make(accumulate=4, loss=loss, optimizer=optax.sgd(1.0))
    state, metrics = jax.jit(step.update)(step.init(key, params), make_signal(rewards))
    assert state.params.dtype == jnp.bfloat16
    # (256 + 1 + 1 + 1) / 4 = 64.75; summed in bfloat16 it would be 64.
    np.testing.assert_allclose(metrics["train/gradient_norm"], 64.75, rtol=1e-2)
    assert abs(float(metrics["train/gradient_norm"]) - 64.75) < 0.3


def test_prompts_that_do_not_divide():
    with pytest.raises(ValueError, match="4 prompts cannot be split into 3 micro-batches"):
        split_prompts(make_batch(), 3)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_a_map_in_parts_is_the_map(parts):
    tree = {"a": jnp.arange(12.0).reshape(6, 2), "b": jnp.arange(6.0)}
    columns = lambda t: t["a"] * t["b"][:, None]
    found = jax.jit(lambda tree: map_in_parts(columns, tree, parts))(tree)
    np.testing.assert_array_equal(found, columns(tree))


def poisoned(signal, where):
    if where == "reward":
        return signal.replace(rewards=signal.rewards.at[1, 1].set(jnp.nan))
    trajectories = signal.trajectories
    bad = Trajectories(
        trajectories.prompts,
        trajectories.actions,
        trajectories.outputs,
        trajectories.log_probs.at[1, 1, 0].set(-jnp.inf),
        trajectories.mask,
    )
    return signal.replace(trajectories=bad)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("where", ["reward", "log_prob"])
def test_what_is_not_finite_skips_the_step(where, accumulate, key):
    step = make(accumulate=accumulate, optimizer=optax.sgd(0.1, momentum=0.9))
    run = jax.jit(step.update)
    state, _ = run(step.init(key, PARAMS), make_batch(1))
    bad, metrics = run(state, poisoned(make_batch(2), where))
    assert not np.isfinite(metrics["train/gradient_norm"])
    for name in ("params", "opt_state"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(bad, name), getattr(state, name)
        )
    counters = (int(bad.step), int(bad.skipped), int(bad.skipped_in_a_row))
    assert counters == (2, 1, 1)
    again, _ = run(bad, poisoned(make_batch(2), where))
    assert (int(again.skipped), int(again.skipped_in_a_row)) == (2, 2)
    good, metrics = run(again, make_batch(2))
    assert (int(good.skipped), int(good.skipped_in_a_row)) == (2, 0)
    assert metrics["train/skipped"] == 2 and np.any(good.params != state.params)
    # Parameters and optimizer are as if the bad steps had never been.
    expected, _ = run(state, make_batch(2))
    np.testing.assert_array_equal(good.params, expected.params)


def linear_loss(params, signal):
    """Its gradient is the mean reward."""
    return jnp.sum(params) * jnp.mean(signal.rewards), {}


def test_an_update_that_is_not_finite_is_not_made(key):
    """The gradient is fine, what the optimizer makes of it is not."""
    schedule = lambda count: jnp.where(count == 1, jnp.nan, 0.1)  # noqa: E731
    step = make(loss=linear_loss, optimizer=optax.sgd(schedule))
    state, trace = run_gradients(step, [1.0, 1.0, 1.0], key)
    assert trace == [0, 1, 2] and np.all(np.isfinite(state.params))


def run_gradients(step, sizes, key):
    state = step.init(key, jnp.zeros((1,)))
    run, trace = jax.jit(step.update), []
    for size in sizes:
        state, _ = run(state, make_signal(jnp.full((P, G), size)))
        trace.append(int(state.skipped))
    return state, trace


def test_a_spike_is_skipped_and_counted(key):
    step = make(loss=linear_loss, spike_factor=5.0, optimizer=optax.sgd(1.0))
    state, trace = run_gradients(step, [1.0] * 12 + [100.0, 1.0, 4.9], key)
    assert trace == [0] * 12 + [1, 1, 1]
    np.testing.assert_allclose(state.params, -(12 + 1 + 4.9), rtol=1e-6)


def test_a_spike_does_not_raise_the_bar(key):
    step = make(loss=linear_loss, spike_factor=5.0)
    _, trace = run_gradients(step, [1.0] * 12 + [100.0] * 3, key)
    assert trace[-3:] == [1, 2, 3]


def test_without_a_factor_no_spike_is_skipped(key):
    _, trace = run_gradients(make(loss=linear_loss), [1.0] * 12 + [1e6], key)
    assert trace[-1] == 0


def test_steps_without_gradient_do_not_make_the_next_a_spike(key):
    """A policy whose groups were all dead for a while must be able to start learning."""
    step = make(loss=linear_loss, spike_factor=5.0)
    state, trace = run_gradients(step, [0.0] * 15 + [1.0] * 3, key)
    assert trace[-1] == 0 and np.all(state.params != 0)


def test_learning_rate_zero(key):
    """Ratios are 1, nothing is clipped, nothing moves."""
    policy = tabular_policy(P, V)
    params = jnp.asarray(np.random.default_rng(1).normal(size=(P, V)), jnp.float32)
    loss = policy_objective(policy, objective="clip")
    step = make_update_step(loss, CHAIN, optax.sgd(0.0, momentum=0.9))
    state, run = step.init(key, params), jax.jit(step.update)
    for _ in range(2):
        trajectories = policy.sample(state.params, sample_key(state), jnp.arange(P), G)
        signal = make_signal(make_batch().rewards, trajectories=trajectories)
        state, metrics = run(state, signal)
        np.testing.assert_allclose(metrics["policy/ratio_mean"], 1.0, atol=1e-6)
        np.testing.assert_allclose(metrics["policy/ratio_max"], 1.0, atol=1e-6)
        assert metrics["policy/clip_fraction"] == 0
        assert metrics["train/gradient_norm"] > 0
    np.testing.assert_array_equal(state.params, params)


def test_the_step_maps_over_seeds_and_learning_rates(key):
    """Learning rate, KL coefficient and key of each run are traced; results are its own."""
    rates, coefficients = jnp.asarray([0.0, 0.1, 0.3]), jnp.asarray([0.0, 0.2, 0.5])
    keys = jax.random.split(key, 3)

    @jax.jit
    def run(key, rate, coefficient, signal):
        loss = policy_objective(POLICY, kl_coefficient=coefficient)
        step = make_update_step(loss, CHAIN, optax.sgd(rate, momentum=0.9))
        return step.update(step.init(key, PARAMS), signal)

    signals = [make_batch(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *signals)
    states, metrics = jax.vmap(run)(keys, rates, coefficients, stacked)
    np.testing.assert_array_equal(states.params[0], PARAMS)
    for i in (1, 2):
        state, own = run(keys[i], rates[i], coefficients[i], signals[i])
        np.testing.assert_allclose(states.params[i], state.params, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(metrics["train/loss"][i], own["train/loss"], rtol=1e-5)


def test_one_skipping_run_does_not_touch_the_others(key):
    signals = [make_batch(1), poisoned(make_batch(2), "log_prob")]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *signals)
    step = make()
    start = step.init(key, PARAMS)
    starts = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), start)
    states, _ = jax.jit(jax.vmap(step.update))(starts, stacked)
    np.testing.assert_array_equal(states.skipped, [0, 1])
    np.testing.assert_array_equal(states.params[1], PARAMS)
    assert np.any(states.params[0] != PARAMS)


def test_no_gradient_flows_through_the_chain(key):
    """Advantages that the loss could differentiate are constants after `credit`."""

    def update_fn(params):
        transform = base.stateless(
            lambda key, signal: signal.replace(advantages=signal.rewards * params),
            base.Spec("leak", "advantage", writes=("advantages",)),
        )
        step = make_update_step(linear_loss, transform, optax.sgd(0.1))
        _, signal = step.credit(step.init(key, params), make_batch())
        return jnp.sum(signal.advantages)

    assert jax.grad(update_fn)(jnp.asarray(2.0)) == 0


def test_keys_differ_by_step_and_by_use(key):
    seen = []

    def peek(key, signal):
        seen.append(jax.random.key_data(key))
        return signal.replace(advantages=signal.rewards)

    transform = base.stateless(peek, base.Spec("peek", "advantage", writes=("advantages",)))
    step = make_update_step(linear_loss, transform, optax.sgd(0.1))
    state = step.init(key, jnp.zeros(()))
    seen.append(jax.random.key_data(sample_key(state)))
    for _ in range(2):
        state, _ = step.update(state, make_batch())
    seen.append(jax.random.key_data(sample_key(state)))
    assert len({tuple(np.asarray(data).tolist()) for data in seen}) == 4


def test_the_chain_keeps_its_state_and_its_metrics_are_reported(key):
    step = make_update_step(
        policy_objective(POLICY),
        advantage.group_relative(baseline="mean", scale="running_std"),
        optax.sgd(0.1),
    )
    state = step.init(key, PARAMS)
    assert state.chain_state.weight == 0
    state, metrics = jax.jit(step.update)(state, make_batch())
    assert state.chain_state.weight > 0 and state.step == 1
    assert {"advantage/dead_groups", "policy/entropy", "train/loss"} <= metrics.keys()
    assert not any(name.startswith("weight/") for name in metrics)


def test_bad_settings():
    loss = policy_objective(POLICY)
    with pytest.raises(ValueError, match="identity never sets advantages"):
        make_update_step(loss, base.identity(), optax.sgd(0.1))
    with pytest.raises(ValueError, match="accumulate = 0; allowed is >= 1"):
        make(accumulate=0)
    split = AbstractMesh((1, 2, 1), sharding.AXES)
    with pytest.raises(ValueError, match="'fsdp': 2.*; allowed are copies"):
        make_update_step(loss, CHAIN, optax.sgd(0.1), mesh=split)
    with pytest.raises(ValueError, match="spike_factor = -1.0; allowed is >= 0"):
        make(spike_factor=-1.0)
