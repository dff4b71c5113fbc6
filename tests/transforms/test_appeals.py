"""Tests of jaxreward.transforms.appeals: who is re-checked, how likely that was, what is said."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.transforms import appeals
from jaxreward.types import make_signal

P, G = 250, 16
KEY = jax.random.key(2)


def within(share, probability, count):
    """Within four standard errors."""
    return abs(share - probability) < 4 * np.sqrt(probability * (1 - probability) / count) + 1e-9


def observed(seed=0):
    """Half accepted, a tenth missing."""
    rng = np.random.default_rng(seed)
    rewards = jnp.asarray(rng.integers(0, 2, (P, G)), jnp.float32)
    return make_signal(rewards, jnp.asarray(rng.random((P, G)) < 0.9))


@functools.partial(jax.jit, static_argnames="budget")
def select(key, signal, negative_share, positive_share, budget=0):
    return appeals.select_appeals(
        key, signal, negative_share=negative_share, positive_share=positive_share, budget=budget
    )


# Shares


def test_each_verdict_is_appealed_with_its_share():
    signal = observed()
    appealed, probability = map(np.asarray, select(KEY, signal, 0.3, 0.05))
    mask, accepted = np.asarray(signal.mask), np.asarray(signal.rewards) > 0.5
    for verdict, share in ((mask & ~accepted, 0.3), (mask & accepted, 0.05)):
        assert within(appealed[verdict].mean(), share, verdict.sum())
        np.testing.assert_allclose(probability[verdict], share)
    assert not appealed[~mask].any() and not probability[~mask].any()


def test_shares_of_0_and_1_are_none_and_all():
    signal = observed()
    appealed, probability = select(KEY, signal, 1.0, 0.0)
    rejected = np.asarray(signal.mask & (signal.rewards < 0.5))
    np.testing.assert_array_equal(appealed, rejected)
    np.testing.assert_array_equal(probability, rejected.astype(np.float32))


def test_draws_depend_on_the_key_and_on_prompt_ids_only():
    signal = observed()
    first, _ = select(KEY, signal, 0.5, 0.5)
    other, _ = select(jax.random.key(3), signal, 0.5, 0.5)
    assert 0.3 < np.mean(np.asarray(first != other)[np.asarray(signal.mask)]) < 0.7
    flipped = signal.replace(rewards=1 - signal.rewards)  # equal shares: verdicts do not matter
    np.testing.assert_array_equal(select(KEY, flipped, 0.5, 0.5)[0], first)
    backwards = jax.tree.map(lambda leaf: leaf[::-1], signal)
    np.testing.assert_array_equal(select(KEY, backwards, 0.5, 0.5)[0], first[::-1])


# Budget


@pytest.mark.parametrize("budget", [1, 40])
def test_a_budget_is_spent_exactly_and_only_on_the_drawn(budget):
    signal = observed()
    drawn, share = map(np.asarray, select(KEY, signal, 0.3, 0.1))
    appealed, probability = map(np.asarray, select(KEY, signal, 0.3, 0.1, budget))
    assert appealed.sum() == budget and not np.any(appealed & ~drawn)
    np.testing.assert_allclose(probability, share * budget / drawn.sum(), rtol=1e-6)


def test_a_budget_that_is_not_reached_changes_nothing():
    signal = observed()
    for free, limited in zip(select(KEY, signal, 0.3, 0.1), select(KEY, signal, 0.3, 0.1, P * G)):
        np.testing.assert_array_equal(free, limited)


def test_the_drawn_are_equally_likely_to_get_the_budget():
    signal = make_signal(jnp.zeros((4, 5)))
    runs = 2000
    pick = lambda key: select(key, signal, 1.0, 0.0, 5)[0]
    counts = np.asarray(jax.vmap(pick)(jax.random.split(KEY, runs))).sum(axis=0)
    assert counts.sum() == 5 * runs
    assert all(within(share, 0.25, runs) for share in counts.ravel() / runs)


def test_inverse_probabilities_count_the_verdicts():
    """Horvitz-Thompson: unbiased under a budget that binds in some draws and not in others."""
    signal = make_signal(jnp.asarray([[0, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 0]], jnp.float32))
    runs = 4000

    def total(key):
        appealed, probability = select(key, signal, 0.4, 0.4, 4)
        weight = jnp.where(appealed, 1.0 / jnp.where(appealed, probability, 1.0), 0.0)
        return jnp.sum(jnp.where(signal.rewards < 0.5, weight, 0.0))

    totals = np.asarray(jax.vmap(total)(jax.random.split(KEY, runs)))
    assert abs(totals.mean() - 8) < 4 * totals.std() / np.sqrt(runs)


# The simulated judge


def simulate(signal, key=KEY, **settings):
    transform = appeals.simulated_appeals(**settings)
    after, state = jax.jit(transform.update)(key, signal, transform.init())
    assert state == ()
    return [np.asarray(after.aux[n]) for n in ("appealed", "recheck", "appeal_probability")]


def with_truth(seed=0):
    """A tenth of the true rewards unknown."""
    signal, rng = observed(seed), np.random.default_rng(seed + 9)
    true = np.where(rng.random((P, G)) < 0.1, np.nan, rng.integers(0, 2, (P, G)))
    return signal.with_aux(true_rewards=jnp.asarray(true, jnp.float32))


def test_a_perfect_judge_says_what_is_true():
    signal = with_truth()
    appealed, recheck, probability = simulate(signal, negative_share=0.5, positive_share=0.2)
    true = np.asarray(signal.aux["true_rewards"])
    np.testing.assert_array_equal(recheck, np.where(appealed, true, np.nan))
    assert recheck.dtype == probability.dtype == np.float32 and appealed.dtype == bool
    assert 0 < np.isnan(recheck[appealed]).mean() < 0.2  # nobody knows the truth of these


def test_a_judge_that_errs_and_fails():
    signal = with_truth()
    appealed, recheck, _ = simulate(
        signal,
        negative_share=0.9,
        positive_share=0.9,
        judge_false_positive=0.1,
        judge_false_negative=0.3,
        judge_failure=0.2,
    )
    true = np.asarray(signal.aux["true_rewards"])
    asked = appealed & np.isfinite(true)
    assert within(np.isnan(recheck[asked]).mean(), 0.2, asked.sum())
    for value, error in ((0.0, 0.1), (1.0, 0.3)):
        answers = recheck[asked & (true == value) & np.isfinite(recheck)]
        assert within(np.mean(answers != value), error, answers.size)


def test_the_judge_is_independent_of_the_draw():
    """Whether the judge errs says nothing about how close the appeal was to not being drawn."""
    signal = make_signal(jnp.zeros((P, G)), true_rewards=jnp.zeros((P, G)))
    low, high = (
        simulate(signal, negative_share=share, judge_false_positive=0.5)[1] for share in (0.2, 0.9)
    )
    both = np.isfinite(low) & np.isfinite(high)
    np.testing.assert_array_equal(low[both], high[both])
    assert within(low[both].mean(), 0.5, both.sum())


def test_a_missing_reward_is_not_appealed():
    signal = with_truth()
    for value in simulate(signal, negative_share=1.0, positive_share=1.0):
        np.testing.assert_array_equal(np.nan_to_num(value)[~np.asarray(signal.mask)], 0)


def test_dense_rewards_are_appealed_step_by_step():
    shape = (50, 4, 3)
    signal = make_signal(jnp.zeros(shape), true_rewards=jnp.ones(shape))
    appealed, recheck, probability = simulate(signal, negative_share=0.5)
    assert appealed.shape == recheck.shape == probability.shape == shape
    assert within(appealed.mean(), 0.5, appealed.size)
    assert 0 < np.mean(appealed[..., 0] != appealed[..., 1]) < 1


# Wrong input, declarations


@pytest.mark.parametrize(
    "name",
    [
        "negative_share",
        "positive_share",
        "judge_false_positive",
        "judge_false_negative",
        "judge_failure",
    ],
)
@pytest.mark.parametrize("value", [-0.1, 1.2, float("nan")])
def test_shares_and_rates_are_probabilities(name, value):
    with pytest.raises(ValueError, match=f"{name} = {value} is not a probability; allowed is"):
        appeals.simulated_appeals(**{"negative_share": 0.1, name: value})


def test_a_negative_budget_is_refused():
    with pytest.raises(ValueError, match="budget = -1; allowed is >= 0; 0 is no limit"):
        appeals.simulated_appeals(negative_share=0.1, budget=-1)


def test_shares_may_be_traced():
    signal = make_signal(jnp.zeros((4, 50)), true_rewards=jnp.ones((4, 50)))

    def asked(share):
        transform = appeals.simulated_appeals(negative_share=share)
        return transform.update(KEY, signal, ())[0].aux["appealed"].mean()

    np.testing.assert_array_equal(jax.vmap(asked)(jnp.array([0.0, 1.0])), [0, 1])


def test_declarations():
    spec = appeals.simulated_appeals(negative_share=0.1).spec
    assert spec.role == "rates" and spec.reward_map == "none"
    assert spec.reads == ("rewards", "mask", "aux/true_rewards")
    assert spec.writes == ("aux/appealed", "aux/recheck", "aux/appeal_probability")
