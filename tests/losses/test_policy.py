"""Policy objectives against a plain float64 formula, closed forms, and what may not matter."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxreward.losses import policy as losses
from jaxreward.losses.policy import policy_loss, policy_objective
from jaxreward.policies.tabular import tabular_policy
from jaxreward.types import Policy, StepScores, Trajectories, make_signal

P, G, S = 2, 3, 4


def batch(seed=0, spread=0.5):
    """Random inputs in float64: log-probs around old ones, ragged lengths, one empty sample."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(size=(P, G, S))
    lengths = rng.integers(1, S + 1, size=(P, G))
    lengths[1, 2] = 0
    return dict(
        log_probs=old + spread * rng.normal(size=(P, G, S)),
        old_log_probs=old,
        advantages=rng.normal(size=(P, G)),
        mask=np.arange(S)[None, None, :] < lengths[:, :, None],
        behaviour_log_probs=old + 0.5 * rng.normal(size=(P, G, S)),
        weights=rng.uniform(0.5, 2.0, size=(P, G)),
    )


def as_float32(data):
    return {
        name: jnp.asarray(value, bool if value.dtype == bool else jnp.float32)
        for name, value in data.items()
    }


def inputs(data, *names):
    arrays = as_float32(data)
    return [arrays[name] for name in names or ("log_probs", "old_log_probs", "advantages", "mask")]


def plain_loss(
    log_probs, stopped, data, ratio, objective, normalize, clip, dual_clip, truncation, level
):
    """The formula, one decision at a time, in float64; `stopped` where no gradient is to pass."""
    terms, sizes, bound = [], [], lambda r: min(max(r, 1 - clip[0]), 1 + clip[1])
    for p, g in itertools.product(range(P), range(G)):
        steps = [s for s in range(S) if data["mask"][p, g, s]]
        if not steps:
            continue
        old = data["old_log_probs"][p, g]
        behaviour = [old[s] - data["behaviour_log_probs"][p, g, s] for s in steps]
        mean_ratio = lambda own: math.exp(sum(own[p, g, s] - old[s] for s in steps) / len(steps))
        advantage, total = data["advantages"][p, g], 0.0

        def ratio_of(own, s):
            if ratio == "sequence_token":
                return mean_ratio(stopped) * math.exp(own[p, g, s] - stopped[p, g, s])
            return math.exp(own[p, g, s] - old[s]) if ratio == "token" else mean_ratio(own)

        for position, s in enumerate(steps):
            r = ratio_of(log_probs, s)
            if objective == "clip":
                value = min(r * advantage, bound(r) * advantage)
                if dual_clip is not None and advantage < 0:
                    value = max(value, dual_clip * advantage)
            elif objective == "clip_always":
                value = bound(r) * advantage
            elif objective == "cispo":
                value = bound(ratio_of(stopped, s)) * advantage * log_probs[p, g, s]
            else:
                value = advantage * log_probs[p, g, s]
            if truncation is not None:
                exponent = behaviour[position] if level == "token" else sum(behaviour)
                value = value * min(math.exp(exponent), truncation)
            total = total + value
        weight = data["weights"][p, g]
        terms.append(weight * (total / len(steps) if normalize == "sequence" else total))
        sizes.append(weight * (1 if normalize == "sequence" else len(steps)))
    return -sum(terms) / (P * G * S if normalize == "constant" else sum(sizes))


def plain_value_and_grad(formula, log_probs, step=1e-6):
    """By central differences, whose error is of the order of `step` squared."""
    grad = np.zeros_like(log_probs)
    for index in np.ndindex(log_probs.shape):
        higher, lower = log_probs.copy(), log_probs.copy()
        higher[index] += step
        lower[index] -= step
        grad[index] = (formula(higher, log_probs) - formula(lower, log_probs)) / (2 * step)
    return formula(log_probs, log_probs), grad


def check_against_plain(data, ratio, objective, normalize, clip, dual_clip=None, **truncation):
    formula = functools.partial(
        plain_loss,
        data=data,
        ratio=ratio,
        objective=objective,
        normalize=normalize,
        clip=clip,
        dual_clip=dual_clip,
        truncation=truncation.get("truncation"),
        level=truncation.get("truncation_level", "token"),
    )
    expected = plain_value_and_grad(formula, data["log_probs"])
    arrays = as_float32(data)
    if truncation:
        truncation["behaviour_log_probs"] = arrays["behaviour_log_probs"]

    def ours(log_probs):
        return policy_loss(
            log_probs,
            *inputs(data, "old_log_probs", "advantages", "mask"),
            ratio=ratio,
            objective=objective,
            normalize=normalize,
            clip_low=clip[0],
            clip_high=clip[1],
            dual_clip=dual_clip,
            weights=arrays["weights"],
            **truncation,
        )[0]

    value, grad = jax.value_and_grad(ours)(arrays["log_probs"])
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected[0], rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(grad, expected[1], rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize("normalize", losses.NORMALIZATIONS)
@pytest.mark.parametrize("objective", losses.OBJECTIVES)
@pytest.mark.parametrize("ratio", losses.RATIOS)
def test_every_choice_matches_the_plain_formula(ratio, objective, normalize):
    check_against_plain(batch(), ratio, objective, normalize, (0.2, 0.3))


def test_dual_clip_matches_the_plain_formula():
    data = batch(1, spread=1.0)
    data["advantages"] = -np.abs(data["advantages"])
    check_against_plain(data, "token", "clip", "token", (0.2, 0.3), dual_clip=1.5)


@pytest.mark.parametrize("level", losses.TRUNCATION_LEVELS)
def test_truncated_importance_sampling_matches_the_plain_formula(level):
    data = batch(2)
    options = dict(truncation=1.2, truncation_level=level)
    check_against_plain(data, "token", "clip", "sequence", (0.2, 0.2), **options)
    _, metrics = policy_loss(
        *inputs(data), behaviour_log_probs=as_float32(data)["behaviour_log_probs"], **options
    )
    gap = np.where(data["mask"], data["old_log_probs"] - data["behaviour_log_probs"], 0.0)
    gap = gap if level == "token" else np.broadcast_to(gap.sum(-1, keepdims=True), gap.shape)
    cut = np.exp(gap)[data["mask"]] > 1.2
    assert 0 < cut.mean() < 1
    np.testing.assert_allclose(metrics["policy/truncated_fraction"], cut.mean(), rtol=1e-6)


# One decision, so the gradient in its log-probability is closed form:
# r A where the ratio is free, 0 where the clip has cut it.
BRANCHES = [
    # objective, advantage, ratio, gradient of the surrogate, clipped
    ("clip", 2.0, 0.5, 1.0, False),  # below the range, but the minimum keeps r A
    ("clip", 2.0, 1.0, 2.0, False),
    ("clip", 2.0, 1.5, 0.0, True),
    ("clip", -2.0, 0.5, 0.0, True),
    ("clip", -2.0, 1.0, -2.0, False),
    ("clip", -2.0, 1.5, -3.0, False),
    ("clip", -2.0, 4.0, 0.0, True),  # dual clip at 3
    ("cispo", 2.0, 0.5, 1.6, True),  # never cut, only bounded: clip(r) A
    ("cispo", 2.0, 1.0, 2.0, False),
    ("cispo", 2.0, 1.5, 2.6, True),
    ("cispo", -2.0, 0.5, -1.6, True),
    ("cispo", -2.0, 1.5, -2.6, True),
    ("reinforce", 2.0, 1.5, 2.0, False),
    ("reinforce", -2.0, 0.5, -2.0, False),
]


@functools.lru_cache
def of_one_decision(ratio, objective):
    """Gradient and metrics by the decision's log-probability, the old one and the advantage."""

    def loss(log_prob, old, advantage):
        return policy_loss(
            log_prob,
            old,
            advantage,
            jnp.ones((1, 1, 1), bool),
            ratio=ratio,
            objective=objective,
            clip_low=0.2,
            clip_high=0.3,
            dual_clip=3.0 if objective == "clip" else None,
        )

    return jax.jit(jax.grad(loss, has_aux=True))


@pytest.mark.parametrize("ratio", losses.RATIOS)
@pytest.mark.parametrize(("objective", "advantage", "size", "expected", "clipped"), BRANCHES)
def test_each_branch_of_the_clip(ratio, objective, advantage, size, expected, clipped):
    old = np.full((1, 1, 1), -1.0, np.float32)
    given = old + np.float32(math.log(size)), old, np.full((1, 1), advantage, np.float32)
    grad, metrics = of_one_decision(ratio, objective)(*given)
    np.testing.assert_allclose(-np.asarray(grad)[0, 0, 0], expected, rtol=1e-5)
    assert float(metrics["policy/clip_fraction"]) == clipped
    np.testing.assert_allclose(metrics["policy/ratio_max"], size, rtol=1e-5)


def test_the_gradient_on_a_bound_is_whole():
    """At ratio 1 with clip 0, `minimum` and `clip` of jax would pass half of it or none."""
    old = jnp.full((1, 1, 1), -1.0)

    def loss(log_probs):
        ones = jnp.ones((1, 1))
        return policy_loss(
            log_probs, old, ones, jnp.ones((1, 1, 1), bool), clip_low=0.0, clip_high=0.0
        )[0]

    np.testing.assert_allclose(jax.jit(jax.grad(loss))(old), [[[-1.0]]])


@pytest.mark.parametrize("normalize", losses.NORMALIZATIONS)
def test_the_first_step_is_reinforce(normalize):
    data = batch(3, spread=0.0)
    log_probs, old, advantages, mask = inputs(data)

    def gradient(ratio, objective):
        options = dict(ratio=ratio, objective=objective, normalize=normalize)
        return jax.grad(lambda x: policy_loss(x, old, advantages, mask, **options)[0])(log_probs)

    expected = gradient("token", "reinforce")
    lengths = data["mask"].sum(-1)[:, :, None]
    size = {"token": lengths.sum(), "sequence": 5.0 * np.maximum(lengths, 1), "constant": P * G * S}
    by_hand = -np.where(data["mask"], data["advantages"][:, :, None] / size[normalize], 0.0)
    np.testing.assert_allclose(expected, by_hand, rtol=1e-5, atol=1e-7)
    for ratio, objective in itertools.product(losses.RATIOS, losses.OBJECTIVES):
        np.testing.assert_allclose(gradient(ratio, objective), expected, rtol=1e-5, atol=1e-7)


def test_sequence_and_sequence_token_agree_for_outcome_advantages():
    """The equality that the GSPO paper states, off-policy."""
    log_probs, old, advantages, mask = inputs(batch(4))

    def gradient(ratio):
        options = dict(ratio=ratio, normalize="sequence", clip_low=0.05, clip_high=0.1)
        return jax.grad(lambda x: policy_loss(x, old, advantages, mask, **options)[0])(log_probs)

    np.testing.assert_allclose(gradient("sequence"), gradient("sequence_token"), rtol=1e-5)


def test_dense_advantages_are_by_decision():
    log_probs, old, advantages, mask = inputs(batch(5))
    dense = jnp.broadcast_to(advantages[:, :, None], mask.shape)
    assert policy_loss(log_probs, old, dense, mask)[0] == policy_loss(
        log_probs, old, advantages, mask
    )[0]
    one = jnp.zeros_like(dense).at[0, 0, 0].set(1.0)
    grad = jax.grad(lambda x: policy_loss(x, old, one, mask, objective="reinforce")[0])(log_probs)
    assert grad[0, 0, 0] < 0 and np.count_nonzero(grad) == 1


@functools.lru_cache
def jitted_gradient(ratio, objective, normalize):
    def loss(log_probs, old, advantages, mask, weights):
        options = dict(ratio=ratio, objective=objective, normalize=normalize, weights=weights)
        return policy_loss(log_probs, old, advantages, mask, **options)[0]

    return jax.jit(jax.grad(loss))


@given(
    seed=st.integers(0, 10**6),
    ratio=st.sampled_from(losses.RATIOS),
    objective=st.sampled_from(losses.OBJECTIVES),
    normalize=st.sampled_from(losses.NORMALIZATIONS),
    rubbish=st.sampled_from([np.nan, np.inf, -np.inf, 1e30]),
)
def test_padding_and_missing_samples_may_hold_anything(seed, ratio, objective, normalize, rubbish):
    data = batch(seed)
    data["mask"][0, 1] = False
    gradient = jitted_gradient(ratio, objective, normalize)
    names = ("log_probs", "old_log_probs", "advantages", "mask", "weights")
    clean = gradient(*inputs(data, *names))
    dirty = {name: value.copy() for name, value in data.items()}
    for name in ("log_probs", "old_log_probs"):
        dirty[name][~data["mask"]] = rubbish
    dirty["advantages"][0, 1] = rubbish
    found = np.asarray(gradient(*inputs(dirty, *names)))
    np.testing.assert_array_equal(found, clean)
    np.testing.assert_array_equal(found[~data["mask"]], 0.0)


@given(
    seed=st.integers(0, 10**6),
    ratio=st.sampled_from(losses.RATIOS),
    normalize=st.sampled_from(["token", "sequence"]),
)
def test_a_missing_sample_changes_no_sibling(seed, ratio, normalize):
    """The gradient of the others is that of the batch in which it was never drawn."""
    data = batch(seed)
    data["mask"][:, 1] = False
    names = ("log_probs", "old_log_probs", "advantages", "mask", "weights")
    gradient = jitted_gradient(ratio, "clip", normalize)
    with_it = gradient(*inputs(data, *names))
    without = {name: np.delete(value, 1, axis=1) for name, value in data.items()}
    expected = gradient(*inputs(without, *names))
    np.testing.assert_allclose(np.delete(with_it, 1, axis=1), expected, rtol=1e-5, atol=1e-8)


def test_under_the_constant_nothing_depends_on_what_is_missing():
    data = batch(6)
    names = ("log_probs", "old_log_probs", "advantages", "mask", "weights")
    gradient = jitted_gradient("token", "clip", "constant")
    everything = np.array(gradient(*inputs(data, *names)))
    data["mask"][0, 1] = False
    some = np.asarray(gradient(*inputs(data, *names)))
    assert np.any(everything[0, 1] != 0) and np.all(some[0, 1] == 0)
    everything[0, 1] = 0.0
    np.testing.assert_array_equal(some, everything)


@pytest.mark.parametrize("normalize", ["token", "sequence"])
def test_a_weight_is_a_count(normalize):
    """Weight 2 on a sample is the sample twice; weight 0 is the sample absent."""
    log_probs, old, advantages, mask = inputs(batch(7))
    weights = jnp.ones((P, G)).at[:, 0].set(2.0).at[:, 1].set(0.0)

    def loss(columns, weights=None):
        columns = jnp.asarray(columns)
        arrays = (x[:, columns] for x in (log_probs, old, advantages, mask))
        return policy_loss(*arrays, normalize=normalize, weights=weights)[0]

    np.testing.assert_allclose(loss([0, 1, 2], weights), loss([0, 0, 2]), rtol=1e-6)


def test_an_empty_batch_is_zero():
    log_probs, old, advantages, mask = inputs(batch(8))
    for normalize in losses.NORMALIZATIONS:
        (value, metrics), grad = jax.value_and_grad(
            lambda x: policy_loss(  # pylint: disable=cell-var-from-loop
                x, old, advantages, jnp.zeros_like(mask), normalize=normalize
            ),
            has_aux=True,
        )(log_probs)
        assert value == 0 and np.all(grad == 0)
        assert all(np.isfinite(metric) for metric in metrics.values())


def test_metrics():
    old = jnp.full((2, 2, 2), -1.0)
    ratios = np.array([[[1.0, 2.0], [0.5, 1.0]], [[1.0, 1.0], [9.0, 9.0]]], np.float32)
    log_probs = jnp.asarray(np.log(ratios) - 1)
    mask = jnp.asarray(ratios != 9)
    advantages = jnp.asarray([[1.0, -1.0], [0.0, 5.0]])
    _, metrics = jax.jit(policy_loss)(log_probs, old, advantages, mask)
    expected = {
        "policy/ratio_mean": 6.5 / 6,
        "policy/ratio_max": 2.0,
        "policy/log_ratio_abs_mean": 2 * np.log(2.0) / 6,
        "policy/log_ratio_abs_max": np.log(2.0),
        "policy/clip_fraction": 2 / 6,
        "policy/dead_groups": 0.5,  # the live advantage of the second group does not count
        "weight/loss": 6.0,
        "weight/policy/dead_groups": 2.0,
    }
    decisions = ("ratio_mean", "log_ratio_abs_mean", "clip_fraction")
    expected |= {f"weight/policy/{name}": 6.0 for name in decisions}
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6, err_msg=name)
        assert metrics[name].dtype == jnp.float32


def test_the_loss_is_float32_for_half_precision():
    log_probs, old, advantages, mask = inputs(batch(9))
    half = [x.astype(jnp.bfloat16) for x in (log_probs, old, advantages)]
    loss, _ = policy_loss(*half, mask)
    full, _ = policy_loss(*(x.astype(jnp.float32) for x in half), mask)
    assert loss.dtype == jnp.float32 and loss == full


def test_numbers_may_be_traced_and_mapped():
    data = inputs(batch(10))

    def loss(clip, dual_clip):
        options = dict(clip_low=clip, clip_high=clip, dual_clip=dual_clip)
        return policy_loss(*data, **options)[0]

    clips, duals = jnp.asarray([0.1, 0.3]), jnp.asarray([1.5, 3.0])
    found = jax.jit(jax.vmap(loss))(clips, duals)
    np.testing.assert_allclose(found, [loss(0.1, 1.5), loss(0.3, 3.0)], rtol=1e-6)


BAD = [
    (dict(ratio="tokens"), "ratio = 'tokens'; allowed are 'token', 'sequence', 'sequence_token'"),
    (dict(objective="ppo"), "objective = 'ppo'"),
    (dict(normalize="mean"), "normalize = 'mean'"),
    (dict(clip_low=1.2), r"clip_low = 1.2; allowed is \[0, 1\]"),
    (dict(clip_high=-0.1), "clip_high = -0.1; allowed is >= 0"),
    (dict(dual_clip=0.5), "dual_clip = 0.5; allowed is > 1"),
    (dict(dual_clip=3.0, objective="cispo"), "dual_clip = 3.0 with objective = 'cispo'"),
    (dict(max_length=8), "max_length = 8 with normalize = 'token'"),
    (dict(max_length=0, normalize="constant"), "max_length = 0"),
]
BAD_TERMS = [
    (dict(truncation=2.0), "truncation with old = 'behaviour' has no effect"),
    (dict(truncation=-1.0, old="current"), "truncation = -1.0; allowed is > 0"),
    (dict(truncation_level="batch"), "truncation_level = 'batch'"),
    (dict(old="stale"), "old = 'stale'"),
    (dict(kl_estimator="k4"), "kl_estimator = 'k4'"),
    (dict(kl_coefficient=-0.1), "kl_coefficient = -0.1; allowed is >= 0 and finite"),
    (dict(entropy_coefficient=float("nan")), "entropy_coefficient = nan"),
]


@pytest.mark.parametrize(("options", "message"), BAD + BAD_TERMS)
def test_bad_options_are_refused_when_built(options, message):
    with pytest.raises(ValueError, match=message):
        policy_objective(tabular_policy(2, 2), **options)


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_options_are_refused_by_the_loss(options, message):
    with pytest.raises(ValueError, match=message):
        policy_loss(*inputs(batch()), **options)


def test_truncation_needs_the_behaviour():
    with pytest.raises(ValueError, match="truncation and behaviour_log_probs belong together"):
        policy_loss(*inputs(batch()), truncation=2.0)


# policy_objective: the policy's parameters are the log-probabilities themselves.


def free_policy(entropy=0.7):
    def log_prob(params, trajectories):
        entropies = jnp.where(trajectories.mask, entropy * jnp.exp(params), 0.0)
        return StepScores(jnp.where(trajectories.mask, params, 0.0), entropies)

    def unused(*arguments):
        raise AssertionError("not called")

    return Policy(unused, unused, log_prob)


def credited(data, missing=()):
    arrays = as_float32(data)
    recorded, mask = arrays["behaviour_log_probs"], arrays["mask"]
    trajectories = Trajectories(jnp.zeros(P), jnp.zeros((P, G)), jnp.zeros((P, G)), recorded, mask)
    present = jnp.ones((P, G), bool)
    for index in missing:
        present = present.at[index].set(False)
    signal = make_signal(
        jnp.ones((P, G)),
        present,
        trajectories=trajectories,
        reference_log_probs=arrays["old_log_probs"] - 0.3,
        old_log_probs=arrays["old_log_probs"],
    )
    advantages = jnp.where(present, arrays["advantages"], 0.0)
    return signal.replace(advantages=advantages, weights=arrays["weights"])


def test_the_objective_is_the_loss_and_its_terms():
    data = batch(11)
    arrays, signal = as_float32(data), credited(data, [(0, 1)])
    mask = arrays["mask"].at[0, 1].set(False)
    objective = policy_objective(
        free_policy(),
        normalize="sequence",
        old="recomputed",
        truncation=1.1,
        kl_coefficient=0.4,
        kl_estimator="k2",
        entropy_coefficient=0.2,
    )
    value, metrics = objective(arrays["log_probs"], signal)
    own, _ = policy_loss(
        *inputs(data, "log_probs", "old_log_probs", "advantages"),
        mask,
        normalize="sequence",
        behaviour_log_probs=arrays["behaviour_log_probs"],
        truncation=1.1,
        weights=arrays["weights"],
    )

    def mean(values):
        counts = np.asarray(mask)
        means = np.sum(np.where(counts, values, 0), -1) / np.maximum(counts.sum(-1), 1)
        weights = data["weights"] * counts.any(-1)
        return np.sum(means * weights) / np.sum(weights)

    difference = data["log_probs"] - (data["old_log_probs"] - 0.3)
    entropies = 0.7 * np.exp(data["log_probs"])
    expected = own + 0.4 * mean(difference**2 / 2) - 0.2 * mean(entropies)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    k3 = np.expm1(-difference) + difference
    np.testing.assert_allclose(metrics["policy/kl"], k3[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/entropy"], entropies[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/length"], data["mask"].sum(-1).mean(), rtol=1e-6)


def test_no_term_of_a_missing_sample_is_learned_from():
    data = batch(12)
    objective = policy_objective(free_policy(), kl_coefficient=1.0, entropy_coefficient=1.0)
    grad = jax.grad(lambda x: objective(x, credited(data, [(0, 1)]))[0])
    found = grad(as_float32(data)["log_probs"])
    np.testing.assert_array_equal(found[0, 1], np.zeros(S))
    assert np.all(np.asarray(found)[data["mask"]][:1] != 0)


def test_which_policy_is_the_old_one():
    data = batch(13)
    log_probs = as_float32(data)["log_probs"]
    ratios = {}
    for old in losses.OLD_POLICIES:
        _, metrics = policy_objective(free_policy(), old=old)(log_probs, credited(data))
        ratios[old] = float(metrics["policy/ratio_mean"])
    mask = data["mask"]
    for old, name in (("behaviour", "behaviour_log_probs"), ("recomputed", "old_log_probs")):
        expected = np.exp(data["log_probs"] - data[name])[mask].mean()
        np.testing.assert_allclose(ratios[old], expected, rtol=1e-5)
    assert ratios["current"] == 1.0


def test_the_kl_coefficient_may_be_traced():
    data = batch(14)
    log_probs, signal = as_float32(data)["log_probs"], credited(data)

    def value(coefficient):
        return policy_objective(free_policy(), kl_coefficient=coefficient)(log_probs, signal)[0]

    found = jax.jit(jax.vmap(value))(jnp.asarray([0.0, 0.5]))
    np.testing.assert_allclose(found, [value(0.0), value(0.5)], rtol=1e-6)


def test_dense_rewards_count_a_sample_that_has_any():
    data = batch(15)
    signal = credited(data)
    there = jnp.ones((P, G, 2), bool).at[0, 0, 1].set(False).at[0, 1].set(False)
    signal = signal.replace(rewards=jnp.zeros((P, G, 2)), mask=there)
    expected = np.where(np.asarray(there.any(-1))[:, :, None], data["mask"], False)
    np.testing.assert_array_equal(losses.counted(signal), expected)


def test_the_signal_must_hold_what_the_loss_needs():
    data = batch(16)
    log_probs, signal = as_float32(data)["log_probs"], credited(data)
    bare = signal.replace(aux={})
    with pytest.raises(ValueError, match=r"aux\['reference_log_probs'\] is None"):
        policy_objective(free_policy(), kl_coefficient=0.1)(log_probs, bare)
    with pytest.raises(ValueError, match=r"aux\['old_log_probs'\] is None"):
        policy_objective(free_policy(), old="recomputed")(log_probs, bare)
    with pytest.raises(ValueError, match="signal.advantages is None"):
        policy_objective(free_policy())(log_probs, signal.replace(advantages=None))
    _, metrics = policy_objective(free_policy())(log_probs, bare)
    assert "policy/kl" not in metrics
