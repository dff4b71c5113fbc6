"""Tests of jaxreward.transforms.advantage and of the moments under it."""

import functools
import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.channel import binary
from jaxreward.evaluation import enumeration
from jaxreward.transforms import advantage, base, correction
from jaxreward.types import Trajectories, make_signal

SHAPE = (3, 5)
KEY = jax.random.key(0)


@functools.lru_cache(maxsize=None)
def jitted(transform):
    def update(rewards, mask, fields, state):
        return transform.update(KEY, make_signal(rewards, mask).replace(**fields), state)

    return jax.jit(update)


def run_and_keep(transform, rewards, mask=None, state=None, **fields):
    """The signal after the transform, rewards as nested lists, and the state; in numpy."""
    state = transform.init() if state is None else state
    results = jitted(transform)(np.asarray(rewards, np.float32), mask, fields, state)
    return jax.tree.map(np.asarray, results)


def run(transform, rewards, mask=None, weights=None, **fields):
    """The signal alone."""
    if weights is not None:
        fields["weights"] = np.asarray(weights, np.float32)
    return run_and_keep(transform, rewards, mask, **fields)[0]


@functools.lru_cache(maxsize=None)
def compiled(baseline, scale, ddof):
    transform = advantage.group_relative(baseline=baseline, scale=scale, ddof=ddof)
    return jax.jit(lambda signal: transform.update(KEY, signal, transform.init())[0].advantages)


def plain_group(r, w, baseline, scale, ddof):
    """The textbook formulas on one group without missing rewards, in float64."""
    if baseline != "none" and len(r) < 2:
        return np.zeros_like(r)
    mean = np.average(r, weights=w)
    base_line = {
        "none": np.zeros_like(r),
        "mean": np.full_like(r, mean),
        "leave_one_out": (np.sum(w * r) - w * r) / np.maximum(np.sum(w) - w, 1e-300),
    }[baseline]
    if scale == "none":
        return r - base_line
    effective = np.sum(w) ** 2 / np.sum(w**2)
    variance = np.average((r - mean) ** 2, weights=w)
    if ddof:
        variance = variance * effective / (effective - 1) if effective > 1 + 1e-9 else 0.0
    # Where only one value occurs the variance is 0 up to the rounding of this formula.
    return (r - base_line) / np.sqrt(variance) if np.ptp(r) > 0 else np.zeros_like(r)


groups = hnp.arrays(
    np.float32, SHAPE, elements=st.sampled_from([0.0, 1.0, 0.1, -0.25, 3.0])
)
masks = hnp.arrays(np.bool_, SHAPE)
positive_weights = hnp.arrays(np.float32, SHAPE, elements=st.sampled_from([0.5, 1.0, 2.0]))
estimators = st.tuples(
    st.sampled_from(advantage.BASELINES), st.sampled_from(["none", "group_std"]),
    st.sampled_from([0, 1]),
)


@hypothesis.settings(max_examples=150)
@hypothesis.given(groups, masks, positive_weights, estimators)
def test_group_relative_is_the_formula_on_what_is_not_missing(rewards, mask, weights, estimator):
    signal = make_signal(jnp.asarray(rewards), jnp.asarray(mask))
    signal = signal.replace(weights=jnp.asarray(weights))
    advantages = np.asarray(compiled(*estimator)(signal))
    for row in range(SHAPE[0]):
        keep = mask[row]
        assert np.all(advantages[row][~keep] == 0.0)
        if keep.any():
            expected = plain_group(
                rewards[row][keep].astype(float), weights[row][keep].astype(float), *estimator
            )
            np.testing.assert_allclose(advantages[row][keep], expected, rtol=2e-5, atol=2e-6)


@hypothesis.given(groups, masks, estimators)
def test_the_stored_value_of_a_missing_reward_is_never_read(rewards, mask, estimator):
    signal = make_signal(jnp.asarray(rewards), jnp.asarray(mask))
    garbage = signal.replace(rewards=jnp.where(signal.mask, signal.rewards, jnp.nan))
    function = compiled(*estimator)
    np.testing.assert_array_equal(function(signal), function(garbage))


NOT_ALIVE = tuple(
    advantage.group_relative(baseline=baseline, scale=scale, epsilon=epsilon)
    for baseline in ("mean", "leave_one_out")
    for scale, epsilon in (
        ("none", 0.0), ("group_std", 0.0), ("group_std", 1e-6), ("batch_std", 0.0)
    )
) + (advantage.pass_at_k(3),)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, 1 / 3, -7.3, 1e-20, 1e6])
def test_a_group_without_spread_is_exactly_zero(value):
    rewards = [[value] * 7, [1.0, 0, 0, 0, 0, 0, 0]]
    weights = [[0.3, 1.1, 0.7, 0.2, 0.9, 1.7, 0.1], [1] * 7]
    for transform in NOT_ALIVE:
        after = run(transform, rewards, weights=weights)
        np.testing.assert_array_equal(after.advantages[0], np.zeros(7))
        assert after.advantages[1, 0] > 0
        assert after.metrics["advantage/dead_groups"] == 0.5


def test_zero_weight_samples_do_not_enter_the_baseline():
    weights = [[0.0, 0.1, 0.2, 0.7]]
    rewards = [[5.0, 0.1, 0.1, 0.1]]
    after = run(advantage.grpo(), rewards, weights=weights)
    np.testing.assert_array_equal(after.advantages, np.zeros((1, 4)))
    after = run(advantage.rloo(), [[5.0, 1.0, 0.0, 0.0]], weights=[[0.0, 1.0, 1.0, 2.0]])
    np.testing.assert_allclose(after.advantages[0], [4.75, 1.0, -1 / 3, -0.5], rtol=1e-6)


def test_a_lone_reward_has_nothing_to_be_compared_with():
    mask = jnp.asarray([[True, False, False]])
    for transform in (advantage.grpo(), advantage.dr_grpo(), advantage.rloo()):
        assert np.all(np.asarray(run(transform, [[1.0, 0, 0]], mask).advantages) == 0)
    after = run(advantage.direct(), [[1.0, 0, 0]], mask)
    np.testing.assert_array_equal(after.advantages, [[1.0, 0, 0]])


def test_epsilon_changes_the_scale_only():
    rewards = [[1.0, 0, 0, 1, 0, 0, 0, 1]]
    exact = run(advantage.grpo(ddof=1), rewards).advantages
    with_epsilon = run(advantage.grpo(ddof=1, epsilon=1e-6), rewards).advantages
    np.testing.assert_allclose(with_epsilon[0, :2], [1.207612, -0.724567], atol=1e-6)
    std = np.std(rewards, ddof=1)
    np.testing.assert_allclose(with_epsilon, exact * std / (std + 1e-6), rtol=1e-6)


def test_one_success_in_eight():
    rewards = [[1.0, 1, 0, 1, 0, 0, 0, 0]]
    np.testing.assert_allclose(
        run(advantage.grpo(), rewards).advantages[0, [0, 2]], [1.290994, -0.774597], atol=1e-6
    )
    np.testing.assert_allclose(
        run(advantage.rloo(), [[1.0, 0, 0, 1, 0, 0, 0, 1]]).advantages[0, :2],
        [0.714286, -0.428571],
        atol=1e-6,
    )
    direct = run(advantage.direct(4.0), rewards).advantages
    np.testing.assert_array_equal(direct, np.divide(rewards, 4))


def test_batch_statistics():
    rewards = np.array([[1.0, 0, 0, 1], [0.5, 2, -1, 0]], np.float32)
    mask = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool)
    valid = rewards[mask].astype(float)
    centred = rewards - np.array([[0.5], [0.5]])
    after = run(advantage.group_relative(scale="batch_std"), rewards, jnp.asarray(mask))
    np.testing.assert_allclose(
        after.advantages, np.where(mask, centred / valid.std(), 0), rtol=1e-6, atol=1e-6
    )
    after = run(advantage.batch_normalized(), rewards, jnp.asarray(mask))
    whitened = (rewards - valid.mean()) / valid.std()
    np.testing.assert_allclose(after.advantages, np.where(mask, whitened, 0), rtol=1e-6)
    after = run(advantage.batch_normalized(baseline="mean", ddof=1), rewards, jnp.asarray(mask))
    expected = np.where(mask, centred / centred[mask].std(ddof=1), 0)
    np.testing.assert_allclose(after.advantages, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(
        run(advantage.batch_normalized(), [[0.3, 0.3], [0.3, 0.3]]).advantages, np.zeros((2, 2))
    )


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(advantage.group_relative, scale="batch_std"),
        functools.partial(advantage.group_relative, scale="running_std", baseline="none"),
        advantage.batch_normalized,
    ],
)
def test_batch_statistics_over_a_mapped_axis(make):
    rewards = np.float32([[1.0, 0, 0, 1], [0.5, 2, -1, 0], [3, 3, 3, 3.5], [0, 0, 0, 0]])
    whole, parts = make(), make(axis_name="devices")

    def update(rewards):
        return parts.update(KEY, make_signal(rewards), parts.init())

    signal, state = jax.jit(jax.vmap(update, axis_name="devices"))(rewards.reshape(2, 2, 4))
    expected, whole_state = run_and_keep(whole, rewards)
    np.testing.assert_allclose(
        signal.advantages.reshape(4, 4), expected.advantages, rtol=1e-6, atol=1e-6
    )
    close = lambda a, b: np.testing.assert_allclose(np.asarray(a)[1], b, rtol=1e-6)
    jax.tree.map(close, state, whole_state)
    np.testing.assert_allclose(signal.metrics["advantage/dead_groups"], [0.25, 0.25])


def test_running_std_is_an_average_without_start_bias():
    transform = advantage.group_relative(baseline="mean", scale="running_std", decay=0.9)
    batches = np.random.default_rng(0).normal(size=(4, 2, 6)).astype(np.float32)
    batches[2] *= 10
    state, weight, variance = transform.init(), 0.0, 0.0
    for step, batch in enumerate(batches):
        signal, state = run_and_keep(transform, batch, state=state)
        variance = 0.9 * variance + 0.1 * batch.var()
        weight = 0.9 * weight + 0.1
        centred = batch - batch.mean(axis=1, keepdims=True)
        np.testing.assert_allclose(
            signal.advantages, centred / np.sqrt(variance / weight), rtol=1e-4, atol=1e-5
        )
    after, kept = run_and_keep(transform, np.zeros((2, 6)), np.zeros((2, 6), bool), state)
    assert kept == state
    assert np.all(after.advantages == 0)


def plain_best_of_k(rewards, k):
    """`pass_at_k` of one group, by listing the sets."""
    everyone = range(len(rewards))
    result = []
    for i in everyone:
        sets = [s for s in itertools.combinations(everyone, k)]
        with_i = np.mean([max(rewards[list(s)]) for s in sets if i in s])
        without = np.mean([max(rewards[list(s)]) for s in sets if i not in s])
        result.append(k * (with_i - without))
    return np.asarray(result)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_pass_at_k_is_the_mean_over_sets(k):
    rng = np.random.default_rng(k)
    binary_rewards = rng.integers(0, 2, (4, 6))
    real = rng.normal(size=(2, 6))
    tied = np.array([[0.5, 0.5, 2, 2, -1, 0.5]])
    rewards = np.concatenate([binary_rewards, real, tied]).astype(np.float32)
    transform = advantage.pass_at_k(k)
    after = run(transform, rewards)
    for row, advantages in zip(rewards, after.advantages):
        np.testing.assert_allclose(advantages, plain_best_of_k(row, k), atol=3e-6)
    mask = np.ones_like(rewards, bool)
    mask[:, 2] = False
    after = run(transform, rewards, jnp.asarray(mask))
    for row, advantages in zip(np.delete(rewards, 2, axis=1), after.advantages):
        np.testing.assert_allclose(
            np.delete(advantages, 2), plain_best_of_k(row, k), atol=3e-6
        )
        assert advantages[2] == 0


@pytest.mark.parametrize(("k", "group_size"), [(1, 2), (2, 4), (4, 8), (7, 8), (8, 16)])
def test_pass_at_k_has_the_gradient_of_pass_at_k(k, group_size):
    p = jnp.asarray([0.0, 0.05, 0.3, 0.7, 1.0])
    gap = enumeration.class_gap(advantage.pass_at_k(k), p, group_size, binary(0.0, 0.0))
    np.testing.assert_allclose(gap, k * (1 - np.asarray(p)) ** (k - 1), rtol=1e-5, atol=1e-6)


def test_pass_at_one_is_rloo():
    rewards = np.random.default_rng(1).normal(size=(3, 5))
    np.testing.assert_allclose(
        run(advantage.pass_at_k(1), rewards).advantages,
        run(advantage.rloo(), rewards).advantages,
        atol=1e-6,
    )


def test_pass_at_k_with_too_few_rewards_is_zero():
    mask = jnp.asarray([[True, True, False, False]])
    after = run(advantage.pass_at_k(2), [[1.0, 0, 0, 0]], mask)
    np.testing.assert_array_equal(after.advantages, np.zeros((1, 4)))


DENSE = np.random.default_rng(2).normal(size=(2, 4, 3)).astype(np.float32)


@pytest.mark.parametrize("transform", [advantage.grpo(), advantage.rloo(), advantage.pass_at_k(2)])
def test_dense_rewards_are_compared_position_by_position(transform):
    mask = np.ones(DENSE.shape, bool)
    mask[0, 1, 2] = mask[1, :, 0] = False
    weights = None if "pass" in transform.spec.name else np.arange(8.0).reshape(2, 4) + 1
    whole = run(transform, DENSE, jnp.asarray(mask), weights).advantages
    for s in range(3):
        each = run(transform, DENSE[:, :, s], jnp.asarray(mask[:, :, s]), weights)
        np.testing.assert_allclose(whole[:, :, s], each.advantages, rtol=1e-5, atol=1e-6)


SHIFT = (1.0, np.array([[0.5], [-2.0], [4.0]]))
AFFINE = (np.array([[0.5], [3.0], [1.5]]), SHIFT[1])
ALL = {
    "grpo": advantage.grpo(),
    "dr_grpo": advantage.dr_grpo(),
    "rloo": advantage.rloo(),
    "rloo with std": advantage.group_relative(baseline="leave_one_out", scale="group_std"),
    "direct": advantage.direct(2.0),
    "none with std": advantage.group_relative(baseline="none", scale="group_std"),
    "batch scale": advantage.group_relative(scale="batch_std"),
    "running scale": advantage.group_relative(scale="running_std"),
    "constant scale": advantage.group_relative(scale=0.7),
    "whitened": advantage.batch_normalized(),
    "centred and whitened": advantage.batch_normalized(baseline="mean"),
    "pass@2": advantage.pass_at_k(2),
}


@pytest.mark.parametrize("name", ALL)
def test_the_declared_invariance_is_the_largest_that_holds(name):
    """Maps may differ from prompt to prompt, as rates do."""
    rewards = np.random.default_rng(3).normal(size=(3, 6))
    transform = ALL[name]
    plain = run(transform, rewards).advantages
    holds = "none"
    for label, (slope, offset) in (("shift", SHIFT), ("affine", AFFINE)):
        mapped = run(transform, slope * rewards + offset).advantages
        if np.allclose(plain, mapped, atol=1e-5):
            holds = label
    assert transform.spec.invariant_to == holds


def test_audit_of_backward_is_a_common_factor():
    rewards = [[1.0, 0, 0, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0, 0, 0]]
    rates = binary(0.1, 0.2)
    corrected = base.chain(correction.backward(), advantage.rloo(), provided=("rates",))
    after = run(advantage.audited(corrected, advantage.rloo()), rewards, rates=rates)
    own = run(corrected, rewards, rates=rates).advantages
    noisy = run(advantage.rloo(), rewards).advantages
    np.testing.assert_array_equal(after.advantages, own)
    np.testing.assert_allclose(own[0, :2], [1.020408, -0.612245], atol=1e-6)
    np.testing.assert_allclose(own, noisy / 0.7, rtol=1e-5)
    difference = np.abs(np.asarray(own - noisy))
    metrics = after.metrics
    np.testing.assert_allclose(metrics["audit/cosine"], 1.0, atol=1e-6)
    np.testing.assert_allclose(metrics["audit/mean_abs_difference"], difference.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["audit/max_abs_difference"], difference.max(), rtol=1e-6)
    assert "correction/floored" in metrics


def test_audit_of_forward_turns_whole_groups():
    rewards, rates = [[0.0, 0, 0, 0], [1.0, 1, 1, 0]], binary(0.1, 0.2)
    forward = base.chain(correction.forward(), advantage.direct(), provided=("rates",))
    after = run(advantage.audited(forward, advantage.direct()), rewards, rates=rates)
    own, noisy = np.array([[-0.8] * 4, [0.2, 0.2, 0.2, -0.8]]), np.array(rewards)
    np.testing.assert_allclose(after.advantages, own, atol=1e-6)
    cosine = np.sum(own * noisy) / np.linalg.norm(own) / np.linalg.norm(noisy)
    np.testing.assert_allclose(after.metrics["audit/cosine"], cosine, atol=1e-6)


def test_audit_weighs_by_decisions_and_skips_the_missing():
    lengths = np.array([[1, 3, 2]])
    trajectories = Trajectories(
        prompts=jnp.zeros((1,)),
        actions=jnp.zeros((1, 3, 3), jnp.int32),
        outputs=(),
        log_probs=jnp.zeros((1, 3, 3)),
        mask=jnp.asarray(np.arange(3) < lengths[..., None]),
    )
    mask = jnp.asarray([[True, True, False]])
    audited = advantage.audited(advantage.direct(2.0), advantage.direct())
    after = run(audited, [[1.0, 2.0, 100.0]], mask, trajectories=trajectories)
    np.testing.assert_allclose(after.metrics["audit/mean_abs_difference"], (0.5 + 3.0) / 4)
    np.testing.assert_allclose(after.metrics["audit/max_abs_difference"], 1.0)


def test_audit_of_nothing_is_zero_and_control_state_is_kept():
    audited = advantage.audited(
        advantage.grpo(), advantage.group_relative(scale="running_std", decay=0.5)
    )
    signal, state = run_and_keep(audited, np.ones((3, 3)))
    assert signal.metrics["audit/cosine"] == 0.0
    signal, (own, control) = run_and_keep(audited, np.eye(3), state=state)
    assert own == () and control.weight == 0.75
    assert audited.spec.writes == advantage.grpo().spec.writes
    assert audited.spec.invariant_to == "affine"


def test_numeric_parameters_may_be_traced():
    signal = make_signal(jnp.asarray([[1.0, 0, 0, 0.5]]))

    def update(number):
        transform = base.chain(
            advantage.group_relative(baseline="leave_one_out", scale=number)
        )
        other = advantage.grpo(epsilon=number)
        return tuple(
            t.update(KEY, signal, t.init())[0].advantages for t in (transform, other)
        )

    numbers = jnp.asarray([0.5, 1.0, 4.0])
    scaled, shrunk = map(np.asarray, jax.jit(jax.vmap(update))(numbers))
    np.testing.assert_allclose(
        scaled * np.asarray(numbers)[:, None, None], np.stack([scaled[1]] * 3), rtol=1e-6
    )
    std = np.std([1.0, 0, 0, 0.5])
    np.testing.assert_allclose(
        shrunk[:, 0, 0], 0.625 / (std + np.asarray(numbers)), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: advantage.group_relative(baseline="median"), "baseline = 'median'"),
        (lambda: advantage.group_relative(scale="std"), "scale = 'std'.*group_std"),
        (lambda: advantage.group_relative(scale=0.0), "scale = 0.0.*> 0"),
        (lambda: advantage.direct(-1.0), "scale = -1.0"),
        (lambda: advantage.grpo(ddof=2), "ddof = 2; allowed are 0, 1"),
        (lambda: advantage.grpo(epsilon=-1e-6), "epsilon = -1e-06"),
        (lambda: advantage.group_relative(scale="running_std", decay=1.0), "decay = 1.0"),
        (lambda: advantage.batch_normalized(baseline="x"), "baseline = 'x'"),
        (lambda: advantage.batch_normalized(epsilon=float("nan")), "epsilon = nan"),
        (lambda: advantage.pass_at_k(0), "k = 0"),
        (lambda: run(advantage.pass_at_k(4), np.ones((1, 4))), "k = 4 with group size 4"),
        (lambda: run(advantage.grpo(), [[1.0]]), "group size 1; allowed is >= 2"),
        (
            lambda: advantage.audited(base.identity(), advantage.grpo()),
            "transform identity never sets advantages",
        ),
        (
            lambda: advantage.audited(advantage.grpo(), base.identity()),
            "control identity never sets advantages",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
