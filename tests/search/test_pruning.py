import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.integrate import simpson

from jaxreward.search import pruning
from jaxreward.search.accounting import Spent
from jaxreward.search.pruning import Schedule

SINGLE = Schedule()
SEVERAL = Schedule((4, 6, 11), (0.4, 0.5, 0.6))
PRICES = dict(total=20, denoise_cost=9.9, reward_cost=1.2)


@pytest.mark.parametrize(
    "schedule,as_released,cost,count",
    [
        (SINGLE, True, 51.864, 38),
        (SEVERAL, True, 68.988, 28),
        (SINGLE, False, 61.764, 32),
        (Schedule((), ()), True, 189.3, 10),
        (Schedule((), ()), False, 199.2, 10),
    ],
)
def test_costs_of_the_card(schedule, as_released, cost, count):
    own = pruning.cost_per_candidate(schedule, **PRICES, as_released=as_released)
    assert own == pytest.approx(cost, abs=1e-9)
    assert pruning.affordable(2000, own) == count


def test_parts_of_the_released_cost():
    """Check 1 of the card of TTSnap: what each stage of the schedule adds for a candidate."""
    until = lambda j: pruning.cost_per_candidate(
        Schedule(SINGLE.steps[:j], SINGLE.keep[:j]), SINGLE.steps[j] + 1, 9.9, 1.2, as_released=True
    )
    parts = [21.0, 16.32, 8.112]
    np.testing.assert_allclose([until(j) for j in range(3)], np.cumsum(parts), rtol=1e-9)
    whole = pruning.cost_per_candidate(SINGLE, **PRICES, as_released=True)
    assert whole - sum(parts) == pytest.approx(6.432)


def test_rounding_is_to_even():
    assert pruning.survivors(38, SINGLE.keep) == (15, 6, 3)
    for count, share, left in ((5, 0.5, 2), (3, 0.5, 2), (1, 0.4, 1), (25, 0.1, 2)):
        assert pruning.survivors(count, (share,)) == (left,)


def test_exact_count_agrees_with_the_cost():
    counts = pruning.spent(25, Schedule((2, 6), (0.4, 0.5)), 20)
    assert counts == Spent(25 * 3 + 10 * 4 + 5 * 13, 40, 40)
    whole = pruning.cost_per_candidate(Schedule((2, 6), (0.4, 0.5)), **PRICES)
    assert 25 * whole == pytest.approx(9.9 * counts.network_calls + 1.2 * counts.decodes)


TABLE = jnp.array([[0.1, 0.5, 0.4], [0.9, 0.2, 0.3], [0.6, 0.8, 0.9], [0.7, 0.1, 1.0], [0.2, 0.9, 2.0]])


def test_pruning_of_the_card():
    found = jax.jit(lambda table: pruning.prune_table(table[:, :2], table[:, 2], (0.6, 0.5)))(TABLE)
    np.testing.assert_array_equal(found.kept[0], [1, 2, 3])
    np.testing.assert_array_equal(found.kept[1], [1, 2])
    assert (int(found.winner), float(found.score)) == (2, pytest.approx(0.9))


def test_keeping_all_is_best_of_n():
    found = jax.jit(lambda table: pruning.prune_table(table[:, :2], table[:, 2], (1.0, 1.0)))(TABLE)
    assert (int(found.winner), float(found.score)) == (4, 2.0)


def test_perfect_scores_never_lose_the_best(key):
    final = jax.random.normal(key, (20, 37))
    prune = lambda y: pruning.prune_table(jnp.stack([y] * 3, axis=1), y, SINGLE.keep).score
    np.testing.assert_array_equal(jax.jit(jax.vmap(prune))(final), np.max(final, axis=1))


def test_first_wins_ties():
    found = pruning.prune_table(jnp.zeros((4, 1)), jnp.ones(4), (0.5,))
    np.testing.assert_array_equal(found.kept[0], [0, 1])
    assert int(found.winner) == 0


def test_search_online_is_the_table_replayed(key):
    noises = jax.random.normal(key, (10, 2))
    drift = jnp.array([[0.5, -0.25]])

    def advance(states, step):
        states = 0.8 * states + (step + 1) * drift
        return states, jnp.sin(states * (step + 2))

    score = lambda estimates, stage: estimates[:, 0] * (stage + 1)
    reward = lambda images: images[:, 1]
    schedule = Schedule((0, 2), (0.6, 0.5))

    @jax.jit
    def run(noises):
        states, estimates = noises, []
        for step in range(4):
            states, clean = advance(states, step)
            estimates.append(clean)
        stages = jnp.stack([estimates[0][:, 0], 2 * estimates[2][:, 0]], axis=1)
        replayed = pruning.prune_table(stages, reward(estimates[3]), schedule.keep)
        online = pruning.pruned_search(noises, advance, score, reward, schedule, 4)
        return *online, replayed, estimates[3]

    image, found, expected, last = jax.device_get(run(noises))
    assert int(found.winner) == int(expected.winner)
    for own, other in zip(found.kept, expected.kept):
        np.testing.assert_array_equal(own, other)
    np.testing.assert_allclose(image, last[int(found.winner)], rtol=1e-5)


def test_rank_sum_of_the_card():
    sums = pruning.rank_sum(jnp.array([[1.0, 10], [2, 30], [3, 20], [0, 40]]))
    np.testing.assert_array_equal(sums, [1, 4, 4, 3])
    assert int(jnp.argmax(sums)) == 1


def test_a_score_that_is_not_known_never_wins():
    nan = float("nan")
    final = jnp.array([1.0, nan, 3.0, 2.0])
    assert int(pruning.prune_table(final[:, None][:, :0], final, ()).winner) == 2
    stages = jnp.array([[1.0], [5.0], [nan], [2.0]])
    found = pruning.prune_table(stages, jnp.array([1.0, 2.0, 9.0, 3.0]), (0.75,))
    np.testing.assert_array_equal(found.kept[0], [0, 1, 3])
    sums = pruning.rank_sum(jnp.array([[1.0, nan], [2.0, 1.0], [nan, 2.0]]))
    np.testing.assert_array_equal(sums, [1, 3, 2])
    step = lambda states, s: (states, states)
    last = lambda images: jnp.where(images[:, 0] > 2, jnp.nan, images[:, 0])
    plan = Schedule((), ())
    score = lambda images, stage: images[:, 0]
    image, found = pruning.pruned_search(jnp.arange(4.0)[:, None], step, score, last, plan, 2)
    assert int(found.winner) == 2 and float(image[0]) == 2.0


def test_relative_increase_of_the_card():
    budgets = range(400, 2001, 400)
    searched = jnp.array([1.1, 1.32, 1.4, 1.45, 1.49])
    baseline = jnp.array([1.0, 1.2, 1.3, 1.36, 1.4])
    found = pruning.relative_increase(list(budgets), searched, baseline)
    np.testing.assert_allclose(found, 37.963, atol=2e-3)
    areas = [simpson(np.asarray(curve) - 1.0, x=list(budgets)) for curve in (baseline, searched)]
    np.testing.assert_allclose(areas, [432, 596], rtol=1e-5)
    flat = jnp.ones(5)
    assert np.isinf(pruning.relative_increase(list(budgets), searched, flat))


def test_kendall_is_scipys(key):
    scores, target = jnp.round(2 * jax.random.normal(key, (2, 40)))
    expected = scipy.stats.kendalltau(scores, target).statistic
    np.testing.assert_allclose(pruning.kendall(scores, target), expected, atol=1e-6)
    assert np.isnan(pruning.kendall(jnp.ones(4), jnp.arange(4.0)))


def test_best_kept_and_the_gap():
    target = jnp.array([1.0, 5.0, 3.0, 2.0])
    scores = jnp.array([4.0, 2.0, 3.0, 1.0])
    assert tuple(map(float, pruning.kept_best(scores, target, 0.5))) == (0.0, 2.0)
    assert tuple(map(float, pruning.kept_best(scores, target, 0.75))) == (1.0, 0.0)
    unknown = jnp.append(target, jnp.nan), jnp.append(scores, jnp.nan)
    assert tuple(map(float, pruning.kept_best(unknown[1], unknown[0], 0.6))) == (1.0, 0.0)


@pytest.mark.parametrize(
    "schedule,words",
    [
        (Schedule((2, 2), (0.5, 0.5)), "steps"),
        (Schedule((2, 20), (0.5, 0.5)), "steps"),
        (Schedule((2,), (0.5, 0.5)), "keep"),
        (Schedule((2,), (0.0,)), "keep"),
    ],
)
def test_bad_schedules_are_refused(schedule, words):
    with pytest.raises(ValueError, match=words):
        pruning.cost_per_candidate(schedule, **PRICES)
    with pytest.raises(ValueError, match="per_candidate"):
        pruning.affordable(10, 0)


def test_without_candidates_or_budget():
    for call in (
        lambda: pruning.survivors(0, (0.5,)),
        lambda: pruning.spent(0, SINGLE, 20),
        lambda: pruning.prune_table(TABLE[:0, :2], TABLE[:0, 2], (0.5, 0.5)),
    ):
        with pytest.raises(ValueError, match="count = 0; allowed is >= 1 candidates"):
            call()
    for price in (199.2, 49.96, 0.1, 1 / 3):  # rounding of floats costs nobody a candidate
        assert all(pruning.affordable(n * price, price) == n for n in range(300))
        assert all(pruning.affordable((n - 1e-6) * price, price) == n - 1 for n in range(1, 300))
    assert pruning.affordable(0, 5.0) == 0 and pruning.affordable(4.9, 5.0) == 0
    for budget in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"budget = {budget}; allowed is >= 0"):
            pruning.affordable(budget, 5.0)


def test_one_candidate_is_never_dropped():
    found = pruning.prune_table(TABLE[:1, :2], TABLE[:1, 2], (0.1, 0.1))
    assert int(found.winner) == 0 and [k.tolist() for k in found.kept] == [[0], [0]]
    assert pruning.spent(1, SINGLE, 20) == Spent(20, 4, 4)


def test_steps_are_whole_numbers():
    with pytest.raises(ValueError, match=r"steps = \(1.5,\); allowed are ascending integers"):
        pruning.check_schedule(Schedule((1.5,), (0.5,)), 4)
