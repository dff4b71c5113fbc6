"""Tests of the rate estimators: coverage, exact counts, and the numbers of the papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.rate_estimates import Rechecks, estimate_rates
from jaxreward.transforms import appeals, noise, rates, recheck_counts, sources
from jaxreward.transforms.base import chain
from jaxreward.types import make_signal

KEY = jax.random.key(4)


def log_of(accepted, rejected, accepted_right, accepted_wrong, rejected_right, rejected_wrong):
    """A batch `[1, N]` with these counts, as arrays of rewards, appealed and recheck."""
    rewards = np.repeat([1.0, 0.0], [accepted, rejected])
    recheck = np.full(accepted + rejected, np.nan)
    recheck[: accepted_right + accepted_wrong] = np.repeat([1, 0], [accepted_right, accepted_wrong])
    both = np.repeat([1, 0], [rejected_right, rejected_wrong])
    recheck[accepted : accepted + len(both)] = both
    return rewards[None], np.isfinite(recheck)[None], recheck[None]


def signal_of(rewards, appealed, recheck, **aux):
    as_float = lambda values: jnp.asarray(values, jnp.float32)
    return make_signal(
        as_float(rewards), appealed=jnp.asarray(appealed), recheck=as_float(recheck), **aux
    )


def batch(*counts):
    return signal_of(*log_of(*counts))


@functools.cache
def compiled(transform):
    return jax.jit(transform.update)


def run(transform, *signals):
    """The last signal and state."""
    state = transform.init()
    for signal in signals:
        after, state = compiled(transform)(KEY, signal, state)
    return after, state


def both(signal):
    return float(signal.rates.false_positive), float(signal.rates.false_negative)


# Coverage: 20 steps of 24 x 8 rollouts, a fifth of each verdict re-checked

FALSE_POSITIVE, FALSE_NEGATIVE = 0.1, 0.2
RUNS = 2000


@functools.cache
def simulated_runs():
    """Metrics of the last step of every run; the policy improves from 0.3 to 0.7 meanwhile."""
    steps = chain(
        noise.class_conditional(sources.constant(FALSE_POSITIVE, FALSE_NEGATIVE)),
        appeals.simulated_appeals(negative_share=0.2, positive_share=0.2),
        rates.appeals(rechecks_positives=True, prior_strength=0.0),
    )

    def step(state, inputs):
        key, success = inputs
        true = jax.random.bernoulli(jax.random.fold_in(key, 1), success, (24, 8))
        signal, state = steps.update(key, make_signal(true), state)
        return state, signal.metrics

    @jax.jit
    @jax.vmap
    def one_run(key):
        keys, success = jax.random.split(key, 20), jnp.linspace(0.3, 0.7, 20)
        _, metrics = jax.lax.scan(step, steps.init(), (keys, success))
        return jax.tree.map(lambda leaf: leaf[-1], metrics)

    return jax.tree.map(np.asarray, one_run(jax.random.split(jax.random.key(11), RUNS)))


TRUTH = {
    "false_positive": FALSE_POSITIVE,
    "false_negative": FALSE_NEGATIVE,
    "determinant": 1 - FALSE_POSITIVE - FALSE_NEGATIVE,
}


def covers(name):
    """Whether the interval of each run contains the truth."""
    low, high = (simulated_runs()[f"rates/{name}_{end}"] for end in ("low", "high"))
    return (low <= TRUTH[name]) & (TRUTH[name] <= high)


@pytest.mark.parametrize("name", TRUTH)
def test_intervals_of_200_runs_cover_the_truth(name):
    """The share of 200 has a standard error of 1.5 points: of ten such, eight are expected inside.

    The test of many runs is the sharper one.
    """
    shares = covers(name).reshape(10, 200).mean(axis=1)
    inside = (shares >= 0.93) & (shares <= 0.97)
    assert inside[-1] and inside.sum() >= 6


@pytest.mark.parametrize("name", TRUTH)
def test_intervals_of_many_runs_cover_the_truth(name):
    margin = 3 * np.sqrt(0.95 * 0.05 / RUNS)
    assert abs(covers(name).mean() - 0.95) < 0.01 + margin


@pytest.mark.parametrize("name", TRUTH)
def test_estimates_are_not_biased_and_intervals_no_wider_than_needed(name):
    metrics = simulated_runs()
    estimates = metrics[f"rates/{name}"]
    spread = estimates.std()
    assert abs(estimates.mean() - TRUTH[name]) < 0.1 * spread + 4 * spread / np.sqrt(RUNS)
    width = np.mean(metrics[f"rates/{name}_high"] - metrics[f"rates/{name}_low"])
    np.testing.assert_allclose(width, 2 * 1.96 * spread, rtol=0.08)


def one_sided_counts(runs, given, missed, success=0.5, rollouts=8000, share=0.1):
    """Counts of runs in which only rejected rollouts are re-checked, each `[runs, 1]`."""
    rng = np.random.default_rng(3)
    q = given + (1 - given - missed) * success
    accepted = rng.binomial(rollouts, q, runs)
    checked = rng.binomial(rollouts - accepted, share)
    right = rng.binomial(checked, success * missed / (1 - q))
    zero = np.zeros(runs)
    counts = (accepted, rollouts - accepted, zero, zero, right, checked - right)
    return Rechecks(*(jnp.asarray(count, jnp.float32)[:, None] for count in counts))


estimate_one_sided = jax.jit(recheck_counts.estimate_one_sided)


@pytest.mark.parametrize(("given", "missed"), [(0.0, 0.2), (0.1, 0.3)])
def test_one_sided_intervals_cover_the_truth(given, missed):
    counts = one_sided_counts(4000, given, missed)
    found = estimate_one_sided(counts, given, 1.959964)
    low, high = map(np.asarray, found.intervals["false_negative"])
    margin = 3 * np.sqrt(0.95 * 0.05 / 4000)
    assert abs(np.mean((low <= missed) & (missed <= high)) - 0.95) < 0.01 + margin
    estimates = np.asarray(found.rates.false_negative)
    assert abs(estimates.mean() - missed) < 0.1 * estimates.std() + 0.001


# What the appeals estimator counts

BATCHES = [(40, 60, 9, 1, 3, 17), (50, 50, 4, 2, 5, 5), (10, 90, 3, 0, 10, 30)]
TWO_SIDED = rates.appeals(rechecks_positives=True, prior_strength=0.0)


def test_the_online_estimate_is_that_of_all_counts():
    total = np.sum(BATCHES, axis=0)
    online, state = run(TWO_SIDED, *(batch(*counts) for counts in BATCHES))
    np.testing.assert_array_equal(np.concatenate(state.sums), total)
    np.testing.assert_array_equal(np.concatenate(state.squares), total)
    expected = estimate_rates(Rechecks(*total.astype(float)), 0.5)
    np.testing.assert_allclose(both(online), expected[:2], rtol=1e-5)
    assert float(online.metrics["rates/appeals"]) == sum(BATCHES[-1][2:])


def test_a_table_worked_by_hand():
    """36.4 right and 4.05 wrong of 40.5 accepted, 9.5 and 51.0 of 60.5 rejected, 1/2 added."""
    after, _ = run(TWO_SIDED, batch(40, 60, 9, 1, 3, 17))
    c, o, q = 9.5 / 11, 3.5 / 21, 40.5 / 101
    np.testing.assert_allclose(
        both(after),
        (
            q * (1 - c) / (q * (1 - c) + (1 - q) * (1 - o)),
            (1 - q) * o / (q * c + (1 - q) * o),
        ),
        rtol=1e-6,
    )


def test_decay_forgets_weights_and_squares():
    transform = rates.appeals(rechecks_positives=True, decay=0.5)
    _, state = run(transform, *(batch(*counts) for counts in BATCHES))
    weights = np.array([[0.25], [0.5], [1.0]])
    np.testing.assert_allclose(np.concatenate(state.sums), (weights * BATCHES).sum(0))
    np.testing.assert_allclose(np.concatenate(state.squares), (weights**2 * BATCHES).sum(0))


def test_a_channel_that_drifts_is_followed_only_with_decay():
    before, after = (50, 50, 12, 0, 0, 12), (50, 50, 12, 0, 6, 6)
    signals = [batch(*before)] * 20 + [batch(*after)] * 20
    finds = lambda decay: both(run(rates.appeals(decay=decay, prior_strength=0.0), *signals)[0])[1]
    truth = 1 / 3  # half of the rejected, which are half of all, is right
    assert abs(finds(0.8) - truth) < 0.01 and finds(1.0) < 0.7 * truth


def test_the_prior_is_all_there_is_before_a_recheck():
    transform = rates.appeals(
        rechecks_positives=True, prior_false_positive=0.15, prior_false_negative=0.25
    )
    after, _ = run(transform, batch(40, 60, 0, 0, 0, 0))
    np.testing.assert_allclose(both(after), (0.15, 0.25), rtol=1e-6)
    ends = {name: float(value) for name, value in after.metrics.items()}
    assert ends["rates/false_positive_low"] == 0 and ends["rates/false_positive_high"] == 1
    assert ends["rates/alarm"] == 1  # nothing is known of the channel


def test_the_alarm_is_on_while_the_lower_limit_of_the_determinant_is_below_a_tenth():
    """50 re-checks of each verdict; accepted ones right 30 to 45 times, rejected ones 20 to 5."""
    seen = []
    for right in range(30, 46):
        counts = (500, 500, right, 50 - right, 50 - right, right)
        metrics = run(TWO_SIDED, batch(*counts))[0].metrics
        low, alarm = float(metrics["rates/determinant_low"]), float(metrics["rates/alarm"])
        assert alarm == (low < recheck_counts.ALARM)
        np.testing.assert_allclose(metrics["rates/determinant"], (2 * right - 50) / 50, atol=0.02)
        seen.append(alarm)
    assert recheck_counts.ALARM == 0.1
    assert seen[0] == 1 and seen[-1] == 0 and sorted(seen, reverse=True) == seen


def test_the_prior_weighs_as_many_rechecks_as_it_says():
    prior = dict(prior_false_positive=0.15, prior_false_negative=0.25, prior_strength=30.0)
    counts = (40, 60, 8, 2, 3, 37)  # 10 accepted and 40 rejected ones: 16 of each
    data = both(run(TWO_SIDED, batch(*counts))[0])
    after = both(run(rates.appeals(rechecks_positives=True, **prior), batch(*counts))[0])
    weight = 16 / (16 + 30)
    expected = weight * np.array(data) + (1 - weight) * np.array([0.15, 0.25])
    np.testing.assert_allclose(after, expected, rtol=1e-5)


def test_one_sided_appeals_take_false_positives_as_given():
    given = rates.appeals(prior_false_positive=0.1, prior_strength=0.0)
    counts = (3700, 6300, 0, 0, 100, 530)  # q = .37, a = .1, b = .2 at p = 0.3857
    after, _ = run(given, batch(*counts))
    found = both(after)
    assert found[0] == np.float32(0.1)
    q, o = 0.37, 100.5 / 631
    wrong = (1 - q) * (1 - o) / 0.9
    np.testing.assert_allclose(found[1], (1 - q) * o / (1 - wrong), rtol=1e-3)
    assert "rates/false_positive_low" not in after.metrics


def test_failed_and_missing_appeals_are_counted_apart():
    rewards, appealed, recheck = log_of(40, 60, 9, 1, 3, 17)
    appealed[0, 99] = appealed[0, 39] = True  # no verdict came
    signal = signal_of(rewards, appealed, recheck)
    mask = np.ones((1, 100), bool)
    mask[0, [0, 39]] = False  # the first re-check, and one that failed
    after, state = run(TWO_SIDED, signal.replace(mask=jnp.asarray(mask)))
    np.testing.assert_array_equal(np.concatenate(state.sums), (38, 60, 8, 1, 3, 17))
    assert float(after.metrics["rates/appeals"]) == 29
    assert float(after.metrics["rates/failed_appeals"]) == 1


def test_inverse_probabilities_undo_a_share_that_changes():
    """A tenth is appealed of a step with many errors, all of one with few."""
    first, second = (100, 1000, 0, 0, 40, 60), (100, 1000, 0, 0, 100, 900)
    transform = rates.appeals(prior_strength=0.0)
    signals = [
        batch(*counts).with_aux(appeal_probability=jnp.full((1, 1100), share))
        for counts, share in ((first, 0.1), (second, 1.0))
    ]
    after, state = run(transform, *signals)
    sums, squares = state
    assert float(sums.rejected_right[0]) == 500 and float(squares.rejected_right[0]) == 4100
    np.testing.assert_allclose(both(after)[1], 500 / 700, atol=0.003)
    unweighted, _ = run(transform, batch(*first), batch(*second))
    assert both(unweighted)[1] < 0.6


# By index

BY_FORM = rates.appeals(by="form", num=3, per="sample", rechecks_positives=True)


def by_feature():
    rng = np.random.default_rng(0)
    feature = rng.integers(0, 3, (40, 100))
    true = rng.integers(0, 2, feature.shape)
    false_positive, false_negative = np.array([0.05, 0.3, 0.1]), np.array([0.2, 0.1, 0.4])
    wrong = rng.random(feature.shape) < np.where(
        true == 1, false_negative[feature], false_positive[feature]
    )
    rewards = np.where(wrong, 1 - true, true)
    return feature, rewards, true, false_positive, false_negative


def test_every_feature_has_its_own_rates():
    feature, rewards, true, false_positive, false_negative = by_feature()
    signal = signal_of(rewards, np.ones_like(true, bool), true, form=jnp.asarray(feature))
    after, _ = run(BY_FORM, signal)
    assert after.rates.matrix.shape == (40, 100, 2, 2)
    for index in range(3):
        for name, truth in (
            ("false_positive", false_positive[index]), ("false_negative", false_negative[index])
        ):
            found = float(after.metrics[f"rates/{name}_{index}"])
            count = np.sum((feature == index) & (true == (name == "false_negative")))
            prior = 0.004  # what 10 re-checks move
            assert abs(found - truth) < 4 * np.sqrt(truth * (1 - truth) / count) + prior
            here = np.asarray(getattr(after.rates, name))[feature == index]
            np.testing.assert_allclose(here, found, rtol=1e-6)


def test_the_estimate_over_all_features_is_the_pooled_one():
    feature, rewards, true, _, _ = by_feature()
    checked = signal_of(rewards, np.ones_like(true, bool), true, form=jnp.asarray(feature))
    whole = rates.appeals(rechecks_positives=True)
    one, other = run(BY_FORM, checked)[0].metrics, run(whole, checked)[0].metrics
    for name in other:
        if name != "rates/alarm":
            np.testing.assert_allclose(one[name], other[name], rtol=1e-6)


def test_a_feature_without_rechecks_has_the_rates_of_all():
    feature, rewards, true, _, _ = by_feature()
    asked = feature < 2
    signal = signal_of(
        rewards, asked, np.where(asked, true, np.nan), form=jnp.asarray(feature)
    )
    metrics = run(BY_FORM, signal)[0].metrics
    for name in ("false_positive", "false_negative"):
        np.testing.assert_allclose(metrics[f"rates/{name}_2"], metrics[f"rates/{name}"], rtol=1e-6)


def test_an_index_outside_the_table_counts_for_none():
    feature, rewards, true, _, _ = by_feature()
    strange = np.where(feature == 0, 7, np.where(feature == 1, -1, 2))
    signal = signal_of(rewards, np.ones_like(true, bool), true, form=jnp.asarray(strange))
    after, state = run(BY_FORM, signal)
    counted = np.asarray(state.sums.accepted + state.sums.rejected)
    np.testing.assert_array_equal(counted, [0, 0, np.sum(feature == 2)])
    assert np.all(np.isnan(np.asarray(after.rates.false_positive)[feature < 2]))


# Re-checks in place of rewards


def test_rewards_are_fixed_and_the_rates_that_are_left():
    transform = rates.appeals(rechecks_positives=True, prior_strength=0.0, fix_rewards=True)
    counts = (40, 60, 9, 1, 3, 17)  # a quarter of the accepted, a third of the rejected
    signal = batch(*counts)
    after, _ = run(transform, signal)
    recheck = np.asarray(signal.aux["recheck"])
    expected = np.where(np.isfinite(recheck), recheck, signal.rewards)
    np.testing.assert_array_equal(after.rewards, expected)
    verifier = both(run(TWO_SIDED, signal)[0])
    np.testing.assert_allclose(both(after), (verifier[0] * 3 / 4, verifier[1] * 2 / 3), rtol=1e-5)


# The printed estimate of arXiv 2510.00915


@pytest.mark.parametrize(
    ("flipped", "positives", "share", "expected"),
    [(6, 300, 0.1, 0.166667), (0, 300, 0.1, 3.3e-8), (0, 0, 0.1, 0.5), (12, 24, 0.25, 2 / 3)],
)
def test_the_printed_ratio(flipped, positives, share, expected):
    found = rates.released_rate(flipped / share, positives)
    np.testing.assert_allclose(found, expected, rtol=0.02 if expected < 1e-6 else 2e-6)


RELEASED = rates.appeals_as_released(negative_share=0.1)


def released(flipped, positives):
    return batch(positives, 400 - positives, 0, 0, flipped, 5)


def test_the_printed_average():
    signals = [released(6, 300), released(2, 350), released(10, 280)]
    after, state = run(RELEASED, signals[0])
    np.testing.assert_allclose(after.metrics["rates/false_negative"], 0.166667, atol=1e-6)
    after, state = run(RELEASED, *signals)
    np.testing.assert_allclose(state.rate, 0.166181, atol=1e-6)
    np.testing.assert_allclose(both(after), (0, 0.166181), atol=1e-6)


def test_a_step_with_nothing_to_count_is_skipped():
    nothing, some = released(0, 0), released(6, 300)
    assert not run(RELEASED, nothing)[1].started
    np.testing.assert_allclose(
        run(RELEASED, nothing, some, nothing)[1].rate, run(RELEASED, some)[1].rate
    )


# Known rates


def test_known_rates_and_what_they_imply():
    signal = make_signal(jnp.asarray([[1, 1, 1, 0, 1], [0, 0, 1, 1, 0]], jnp.float32))
    after, _ = run(rates.known(sources.constant(0.1, 0.2)), signal)
    np.testing.assert_allclose(both(after), (0.1, 0.2), rtol=1e-6)
    np.testing.assert_allclose(after.metrics["rates/implied_success"], 0.5 / 0.7, rtol=1e-5)
    assert float(after.metrics["rates/stale"]) == 0


@pytest.mark.parametrize(("accepted", "stale"), [(0, 1), (6, 0), (50, 0), (87, 0), (99, 1)])
def test_rates_that_the_rewards_contradict_are_stale(accepted, stale):
    """At (.1, .2) wrong answers alone earn .1, right ones .8; two standard errors are .06, .08."""
    rewards = jnp.asarray(np.arange(100)[None] < accepted, jnp.float32)
    after, _ = run(rates.known(sources.constant(0.1, 0.2)), make_signal(rewards))
    assert float(after.metrics["rates/stale"]) == stale


# Wrong input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rates.known(sources.constant(0.5, 0.5)), "false_positive = 0.5 .* allowed is >="),
        (lambda: rates.known(sources.constant(0.1, 1.2)), "false_negative = 1.2 is not a proba"),
        (lambda: rates.appeals(num=0), "num = 0 with by = ''; allowed is >= 1, and 1 without by"),
        (lambda: rates.appeals(num=2), "num = 2 with by = ''; allowed"),
        (lambda: rates.appeals(per="step"), "per = 'step'; allowed are 'prompt', 'sample'"),
        (lambda: rates.appeals(prior_strength=-1.0), "prior_strength = -1.0; allowed is >= 0"),
        (lambda: rates.appeals(decay=0.0), r"decay = 0.0; allowed is \(0, 1\]"),
        (lambda: rates.appeals(z=0.0), "z = 0.0; allowed is > 0"),
        (lambda: rates.appeals(prior_false_negative=1.2), "false_negative = 1.2 is not a proba"),
        (
            lambda: rates.appeals(prior_false_positive=0.6, prior_false_negative=0.4),
            "false_positive = 0.6 and false_negative = 0.4 cannot be corrected",
        ),
        (
            lambda: rates.appeals_as_released(negative_share=0.0),
            r"negative_share = 0.0; allowed is \(0, 1\]",
        ),
        (
            lambda: rates.appeals_as_released(negative_share=0.1, decay=1.0),
            r"decay = 1.0; allowed is \[0, 1\)",
        ),
        (
            lambda: rates.appeals_as_released(negative_share=0.1, pseudo_count=0.0),
            "pseudo_count = 0.0; allowed is > 0",
        ),
    ],
)
def test_wrong_input_names_the_field_the_value_and_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_numbers_may_be_traced():
    signal = batch(40, 60, 9, 1, 3, 17)

    def find(strength, decay, rate):
        transform = rates.appeals(
            prior_false_negative=rate, prior_strength=strength, decay=decay
        )
        return transform.update(KEY, signal, transform.init())[0].rates.false_negative

    found = jax.jit(jax.vmap(find))(*(jnp.array(x) for x in ([0.0, 1e9], [1.0, 0.5], [0.0, 0.3])))
    np.testing.assert_allclose(found[1], 0.3, rtol=1e-5)
    assert 0.05 < float(found[0]) < 0.3

    def tell(rate):
        transform = rates.known(sources.constant(rate, rate))
        return transform.update(KEY, signal, transform.init())[0].rates.false_positive

    told = jax.jit(jax.vmap(tell))(jnp.array([0.1, 0.2]))
    np.testing.assert_allclose(told, [0.1, 0.2], rtol=1e-6)
