"""Tests of jaxreward.transforms.base: chains, their refusals, and the combinators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.channel import binary
from jaxreward.transforms import (
    advantage, appeals, base, calibration, correction, mixture, noise, prompt_statistics, rates,
    sources,
)  # fmt: skip
from jaxreward.transforms.base import InertCorrectionError, RewardTransform, Spec, chain, stateless
from jaxreward.types import make_signal

KEY = jax.random.key(3)
KNOWN = rates.known(sources.constant(0.1, 0.2))
BY_SAMPLE = rates.known(
    sources.by_index("feature", [0.0, 0.1], [0.1, 0.2], per="sample")
)
NOISE = noise.symmetric(0.1)


def signal_of(rewards, **aux):
    return make_signal(jnp.asarray(rewards, jnp.float32), **aux)


def run(transform, signal, state=None, key=KEY):
    return transform.update(key, signal, transform.init() if state is None else state)


def run_compiled(transform, signal, state=None):
    """Where the operations are many, and what they compute is all that is looked at."""
    state = transform.init() if state is None else state
    return jax.jit(transform.update)(KEY, signal, state)


def spec_of(name="part", role="record", **fields):
    return stateless(lambda key, signal: signal, Spec(name, role, **fields))


def add(amount):
    """Adds a constant and counts its calls in the state."""

    def update(key, signal, calls):
        del key
        return signal.replace(rewards=signal.rewards + amount), calls + 1

    spec = Spec(f"add({amount})", "noise", ("rewards",), ("rewards",), reward_map="shift")
    return RewardTransform(lambda: jnp.zeros((), jnp.int32), update, spec)


# Chains


def test_transforms_run_in_order_each_with_its_state():
    double = stateless(
        lambda key, signal: signal.replace(rewards=2 * signal.rewards),
        Spec("double", "noise", ("rewards",), ("rewards",), reward_map="affine"),
    )
    both = chain(add(1.0), double, add(10.0))
    signal, state = run(both, signal_of([[0, 1]]))
    np.testing.assert_array_equal(signal.rewards, [[12, 14]])
    signal, state = run(both, signal, state)
    np.testing.assert_array_equal(signal.rewards, [[36, 40]])
    assert [int(part) for part in (state[0], state[2])] == [2, 2] and state[1] == ()


def test_each_place_has_its_own_key():
    seen = []
    spy = stateless(lambda key, signal: seen.append(key) or signal, Spec("spy", "record"))
    run(chain(spy, spy, chain(spy)), signal_of([[0, 1]]))
    data = [tuple(np.asarray(jax.random.key_data(key))) for key in seen]
    assert len(set(data)) == 3
    assert data[0] == tuple(np.asarray(jax.random.key_data(jax.random.fold_in(KEY, 0))))


def test_a_chain_joins_the_specs():
    spec = chain(NOISE, KNOWN, correction.backward(), advantage.rloo()).spec
    assert spec.name.startswith("chain(class_conditional, known, backward, ")
    assert spec.role == "chain" and spec.reward_map == "nonlinear"
    assert {"rewards", "rates", "advantages", "aux/true_rewards"} <= set(spec.writes)
    assert "rates" not in spec.reads  # it is set inside
    assert chain(NOISE, NOISE).spec.role == "noise"
    assert chain(BY_SAMPLE).spec.rates_vary == "sample"
    assert chain(BY_SAMPLE).spec.reads == ("aux/feature",)


def test_identity_does_nothing():
    signal = signal_of([[0, 1]])
    assert run(base.identity(), signal) == (signal, ())


def test_a_chain_needs_transforms_and_knows_its_options():
    with pytest.raises(ValueError, match="at least one transform"):
        chain()
    with pytest.raises(ValueError, match="on_inert = 'warn'; allowed are 'error' and 'allow'"):
        chain(NOISE, on_inert="warn")


def test_a_state_of_another_chain_is_refused():
    both = chain(add(1.0), add(2.0))
    with pytest.raises(ValueError, match="state has 1 entries for 2 transforms"):
        run(both, signal_of([[0, 1]]), (jnp.zeros((), jnp.int32),))


def test_a_field_that_nobody_sets_is_refused():
    with pytest.raises(ValueError, match="'backward' reads 'rates', which nothing before it sets"):
        chain(correction.backward(), KNOWN)
    chain(KNOWN, correction.backward())
    chain(correction.backward(), provided=("rates",))
    with pytest.raises(ValueError, match="reads 'advantages'"):
        chain(spec_of(reads=("advantages",)), advantage.rloo())


def test_side_information_is_provided_unless_it_is_said_what_is():
    needs = spec_of(reads=("aux/hits", "trajectories"))
    assert chain(needs).spec.reads == ("aux/hits", "trajectories")
    chain(needs, provided=("aux/hits", "trajectories"))
    with pytest.raises(ValueError, match="reads 'aux/hits'.*set so far: aux/prompt_id, mask, rew"):
        chain(needs, provided=("trajectories",))
    chain(spec_of(writes=("aux/hits",)), needs, provided=("trajectories",))
    with pytest.raises(ValueError, match="'simulated_appeals' reads 'aux/true_rewards'"):
        chain(appeals.simulated_appeals(negative_share=0.1), provided=())
    chain(NOISE, appeals.simulated_appeals(negative_share=0.1), provided=())


@pytest.mark.parametrize("late", [NOISE, correction.backward(), noise.drop(0.1)])
def test_changing_rewards_after_the_advantages_is_refused(late):
    with pytest.raises(ValueError, match="changes rewards or their mask after 'group_relative"):
        chain(KNOWN, advantage.rloo(), late)


def test_setting_advantages_twice_is_refused():
    with pytest.raises(ValueError, match="overwrites the advantages that 'group_relative"):
        chain(advantage.rloo(), advantage.grpo())
    chain(advantage.rloo(), spec_of(reads=("advantages",), writes=("advantages",)))


def test_correcting_one_channel_twice_is_refused():
    with pytest.raises(ValueError, match="'backward' and 'forward' both correct the same"):
        chain(KNOWN, correction.backward(), correction.forward(), advantage.direct())
    chain(NOISE, KNOWN, correction.backward(), NOISE, KNOWN, correction.backward())


# Corrections that cancel


@pytest.mark.parametrize(
    ("part", "estimator", "cancels"),
    [
        (correction.backward(), advantage.grpo(), True),
        (correction.backward(), advantage.dr_grpo(), False),
        (correction.backward(), advantage.rloo(), False),
        (correction.backward(), advantage.direct(), False),
        (correction.forward(), advantage.grpo(), True),
        (correction.forward(), advantage.dr_grpo(), True),
        (correction.forward(), advantage.rloo(), True),
        (correction.forward(), advantage.direct(), False),
        (correction.forward(scale="determinant"), advantage.grpo(), True),
        (correction.forward(scale="determinant"), advantage.rloo(), False),
    ],
)
def test_a_correction_is_refused_exactly_where_it_changes_nothing(part, estimator, cancels):
    corrected = chain(KNOWN, part, estimator, on_inert="allow")
    signal = signal_of([[0, 1, 1, 0], [1, 0, 0, 0]])
    same = np.allclose(
        run(corrected, signal)[0].advantages, run(estimator, signal)[0].advantages, atol=1e-6
    )
    assert same == cancels
    if cancels:
        with pytest.raises(InertCorrectionError, match=f"{part.spec.name!r} is .* cancels it"):
            chain(KNOWN, part, estimator)
    else:
        chain(KNOWN, part, estimator)


COMMON = ("backward", "forward", "by prompt", "center")


@pytest.mark.parametrize("kind", COMMON)
@pytest.mark.parametrize(
    "estimator",
    [
        advantage.batch_normalized(),
        advantage.batch_normalized(baseline="mean"),
        advantage.group_relative(scale="batch_std"),
        advantage.group_relative(scale="batch_std", baseline="none"),
        advantage.group_relative(scale="running_std"),
        prompt_statistics.prompt_statistics(4, buffer=9, min_count=8),
        mixture.weighted_sum((advantage.grpo(), advantage.batch_normalized()), (1.0, 0.5)),
        mixture.weighted_sum((advantage.grpo(), advantage.rloo()), (1.0, 0.5)),
        mixture.weighted_sum((advantage.grpo(), advantage.direct()), (1.0, 0.5)),
    ],
    ids=lambda estimator: estimator.spec.name,
)
def test_one_channel_for_all_is_refused_exactly_where_a_batch_cancels_it(kind, estimator):
    """Over three steps, so that what an estimator remembers is corrected too."""
    by_type = sources.by_index("type", (0.0, 0.3), (0.1, 0.2))
    part = {
        "backward": (KNOWN, correction.backward()),
        "forward": (KNOWN, correction.forward()),
        "by prompt": (rates.known(by_type), correction.backward()),
        "center": (calibration.center_on_reference("identity"),),
    }[kind]

    def advantages(transform):
        rng, state, found = np.random.default_rng(1), transform.init(), []
        for _ in range(3):
            signal = signal_of(
                rng.integers(0, 2, (4, 6)),
                type=jnp.array([0, 1, 0, 1]),
                reference_rewards=jnp.asarray(rng.random((4, 2)), jnp.float32),
            )
            signal, state = run(transform, signal, state)
            found.append(signal.advantages)
        return np.stack(found)

    whole = chain(*part, estimator, on_inert="allow")
    cancels = np.allclose(advantages(whole), advantages(estimator), atol=1e-5)
    if cancels:
        with pytest.raises(InertCorrectionError, match="cancels it"):
            chain(*part, estimator)
    else:
        chain(*part, estimator)


def test_rates_of_a_table_of_prompts_are_not_one_for_all():
    estimate = rates.appeals()
    assert estimate.spec.rates_vary == "step"
    aux = dict(provided=("aux/appealed", "aux/recheck"))
    with pytest.raises(InertCorrectionError):
        chain(estimate, correction.backward(), advantage.batch_normalized(), **aux)
    chain(
        base.per_prompt(estimate, 3), correction.backward(), advantage.batch_normalized(), **aux
    )
    chain(estimate, correction.backward(), prompt_statistics.prompt_statistics(4), **aux)


@pytest.mark.parametrize(
    "source",
    [noise.use_true_rewards(), noise.random_reward(), calibration.replace_reward("hits")],
    ids=lambda source: source.spec.name,
)
def test_replacing_corrected_rewards_is_refused(source):
    with pytest.raises(ValueError, match="replaces the rewards that 'backward' corrected"):
        chain(KNOWN, correction.backward(), source, advantage.rloo())
    chain(source, KNOWN, correction.backward(), advantage.rloo())
    chain(KNOWN, correction.backward(), base.where(source, lambda s: s.mask), advantage.rloo())


def test_rates_that_vary_within_a_group_do_not_cancel():
    chain(BY_SAMPLE, correction.backward(), advantage.grpo())
    with pytest.raises(InertCorrectionError):
        chain(BY_SAMPLE, KNOWN, correction.backward(), advantage.grpo())


def test_what_bends_rewards_keeps_a_correction_alive():
    bend = spec_of(role="calibration", reward_map="nonlinear")
    chain(KNOWN, correction.backward(), bend, advantage.grpo())
    with pytest.raises(InertCorrectionError):
        chain(KNOWN, bend, correction.backward(), advantage.grpo())


def test_chains_in_chains_are_checked_as_one():
    corrected = chain(KNOWN, correction.backward())
    with pytest.raises(InertCorrectionError, match="'backward' is affine"):
        chain(NOISE, corrected, advantage.grpo())
    with pytest.raises(InertCorrectionError):
        tail = chain(correction.backward(), chain(advantage.grpo()), provided=("rates",))
        chain(NOISE, KNOWN, tail)
    with pytest.raises(ValueError, match="both correct the same"):
        chain(corrected, chain(correction.backward(), provided=("rates",)))
    chain(corrected, chain(NOISE, advantage.grpo()))  # the noise between is no affine map
    allowed = chain(KNOWN, correction.backward(), advantage.grpo(), on_inert="allow")
    chain(NOISE, allowed)


# where


def test_where_leaves_the_rest_alone():
    signal = signal_of([[0, 1, 1], [1, 0, 0]])
    by_prompt, state = run(base.where(add(5.0), lambda s: s.aux["prompt_id"] == 1), signal)
    np.testing.assert_array_equal(by_prompt.rewards, [[0, 1, 1], [6, 5, 5]])
    assert int(state) == 1
    hits = jnp.array([[True, False, False], [False, True, True]])
    by_sample, _ = run(base.where(add(5.0), lambda s: hits), signal)
    np.testing.assert_array_equal(by_sample.rewards, [[5, 1, 1], [1, 5, 5]])
    assert np.all(by_sample.mask)


def test_where_compares_the_selected_among_themselves():
    signal = signal_of([[0, 1, 1, 9], [1, 0, 3, 3]])
    chosen = jnp.array([[True, True, True, False], [False, False, True, True]])
    after, _ = run_compiled(base.where(advantage.dr_grpo(), lambda s: chosen), signal)
    np.testing.assert_allclose(
        after.advantages, [[-2 / 3, 1 / 3, 1 / 3, 0], [0, 0, 0, 0]], atol=1e-6
    )
    dense = signal_of(np.arange(12).reshape(1, 2, 6) % 5)
    after, _ = run_compiled(base.where(advantage.dr_grpo(), lambda s: jnp.array([True])), dense)
    first, second = np.asarray(after.advantages)[0]
    np.testing.assert_allclose(first, -second, atol=1e-6)


def test_two_estimators_share_the_prompts():
    easy, hard = (lambda s: s.aux["prompt_id"] == 0), (lambda s: s.aux["prompt_id"] != 0)
    both = chain(
        KNOWN,
        base.where(correction.backward(), easy),
        base.where(correction.forward(), hard),
        base.where(advantage.direct(), easy),
        base.where(advantage.dr_grpo(), hard),
    )
    after, _ = run_compiled(both, signal_of([[0, 1], [0, 1]]))
    np.testing.assert_allclose(
        after.advantages, [[-0.142857, 1.285714], [-0.5, 0.5]], atol=1e-5
    )


def test_where_keeps_weights_and_all_true_rewards():
    weigh = stateless(
        lambda key, signal: signal.replace(weights=jnp.full_like(signal.rewards, 3.0)),
        Spec("weigh", "selection", (), ("weights",)),
    )
    first = lambda signal: signal.aux["prompt_id"] == 0
    after, _ = run(base.where(weigh, first), signal_of([[0, 1], [1, 1]]))
    np.testing.assert_array_equal(after.weights, [[3, 3], [1, 1]])
    signal = signal_of([[0, 1], [1, 1]]).replace(mask=jnp.array([[True, True], [True, False]]))
    after, _ = run(base.where(noise.symmetric(1.0), first), signal)
    np.testing.assert_array_equal(after.rewards, [[1, 0], [1, 1]])
    np.testing.assert_array_equal(after.aux["true_rewards"], [[0, 1], [1, np.nan]])
    dropped, _ = run(base.where(noise.drop(1.0), first), signal)
    np.testing.assert_array_equal(dropped.mask, [[False, False], [True, False]])


def test_the_spec_of_where():
    spec = base.where(correction.backward(), lambda s: s.mask, reads=("aux/hits",)).spec
    assert spec.name == "where(backward)" and spec.role == "correction" and spec.partial
    assert spec.reads == ("rates", "aux/hits")
    assert spec.reward_map == "nonlinear"  # so it is never taken for one that cancels
    named = base.where(advantage.grpo(), lambda s: s.mask, "some").spec
    assert named.name == "some" and named.reward_map == "none" and named.invariant_to == "none"
    inner = chain(KNOWN, correction.backward())
    chain(base.where(inner, lambda s: s.aux["prompt_id"] == 0), advantage.grpo())


# record, keep_true_rewards


def test_record_changes_nothing_else():
    signal = signal_of([[0, 1], [1, 1]])
    transform = base.record("room/mean", lambda s: s.rewards.mean(), reads=("aux/hits",))
    after, state = run(transform, signal)
    assert float(after.metrics["room/mean"]) == 0.75 and state == ()
    assert after.replace(metrics={}).rewards is signal.rewards
    assert transform.spec.reads == ("aux/hits",) and transform.spec.writes == ("metrics",)


def test_true_rewards_are_kept_once():
    signal = signal_of([[0, 1]]).replace(mask=jnp.array([[True, False]]))
    kept = base.keep_true_rewards(signal)
    np.testing.assert_array_equal(kept.aux["true_rewards"], [[0, np.nan]])
    again = base.keep_true_rewards(kept.replace(rewards=jnp.ones((1, 2))))
    assert again.aux["true_rewards"] is kept.aux["true_rewards"]


# per_prompt


def running_mean():
    """Replaces rewards by the mean over the group and all earlier steps; state by prompt."""

    def update(key, signal, state):
        total, count = state
        total, count = total + signal.rewards.sum(), count + signal.rewards.size
        mean = jnp.full_like(signal.rewards, total / count)
        signal = signal.replace(rewards=mean).with_metrics(test__count=count)
        return signal, (total, count)

    zero = jnp.zeros((), jnp.float32)
    return RewardTransform(lambda: (zero, zero), update, Spec("mean", "calibration"))


def test_every_prompt_has_its_own_state():
    table = base.per_prompt(running_mean(), 5)
    state = table.init()
    assert state[0].shape == (5,)
    step = jax.jit(table.update)
    signal = signal_of([[0, 1], [1, 1]], prompt_id=jnp.array([4, 2]))
    after, state = step(KEY, signal, state)
    np.testing.assert_allclose(after.rewards, [[0.5, 0.5], [1, 1]])
    assert float(after.metrics["test/count"]) == 2
    signal = signal_of([[0, 0], [0, 0]], prompt_id=jnp.array([2, 1]))
    after, state = step(KEY, signal, state)
    np.testing.assert_allclose(after.rewards, [[0.5, 0.5], [0, 0]])
    np.testing.assert_array_equal(state[1], [0, 2, 4, 0, 2])
    assert float(after.metrics["test/count"]) == 3  # the mean of 4 and 2


def test_of_a_prompt_that_stands_twice_the_last_row_stays():
    table = base.per_prompt(running_mean(), 4)
    ids = jnp.array([1, 3, 1, 1])
    signal = signal_of([[1, 1], [2, 2], [3, 3], [4, 4]], prompt_id=ids)
    _, state = run_compiled(table, signal)
    np.testing.assert_array_equal(state[0], [0, 8, 0, 4])


def test_a_prompt_outside_the_table_reads_and_changes_nobody():
    table = base.per_prompt(running_mean(), 3)
    signal = signal_of([[1, 1], [1, 1], [1, 1]], prompt_id=jnp.array([2, 3, -1]))
    _, state = run_compiled(table, signal)
    np.testing.assert_array_equal(state[1], [0, 0, 2])
    after, state = run_compiled(table, signal.replace(rewards=jnp.zeros((3, 2))), state)
    np.testing.assert_array_equal(after.rewards, [[0.5, 0.5], [0, 0], [0, 0]])
    np.testing.assert_array_equal(state[1], [0, 0, 4])


def test_rates_by_prompt_stay_rates_by_prompt():
    table = base.per_prompt(rates.appeals(rechecks_positives=True, prior_strength=0.0), 3)
    rewards = np.tile([[1.0], [0.0]], (2, 30)).reshape(2, 60)  # half accepted
    rewards = np.concatenate([rewards, 1 - rewards], axis=1)
    right = np.stack([rewards[0], np.ones(120)])  # the second prompt's samples are all right
    signal = signal_of(
        rewards, prompt_id=jnp.array([2, 0]), appealed=jnp.ones((2, 120), bool), recheck=right
    )
    after, state = run_compiled(table, signal)
    assert after.rates.matrix.shape == (2, 2, 2)
    np.testing.assert_allclose(after.rates.false_negative, [0, 0.5], atol=0.01)
    assert state.sums.accepted.shape == (3, 1)
    # A channel that is there already is handed to every group.
    given = signal.replace(rates=binary(0.1, 0.2))
    after, _ = run_compiled(base.per_prompt(base.identity(), 3), given)
    np.testing.assert_allclose(after.rates.false_negative, [0.2, 0.2], atol=1e-6)
    inside, _ = run_compiled(base.per_prompt(correction.backward(), 3), given)
    outside, _ = run_compiled(correction.backward(), given)
    np.testing.assert_allclose(inside.rewards, outside.rewards, atol=1e-6)


def test_a_table_needs_prompts():
    with pytest.raises(ValueError, match="num_prompts = 0; allowed is >= 1"):
        base.per_prompt(running_mean(), 0)
