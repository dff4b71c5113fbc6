"""Guards of majority rewards: visits by hand, a plain reference of all three, and a lock-in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.transforms import advantage, base, majority, majority_guard
from jaxreward.types import make_signal

KEY = jax.random.key(0)


def ids(rows):
    return jnp.asarray(rows, jnp.uint32)


def signal_of(answers, **aux):
    answers = ids(answers)
    return make_signal(jnp.zeros(answers.shape), answer_id=answers, **aux)


def visits(transform, rows, state=None):
    """The signals of one prompt's visits, one after the other."""
    state, found = transform.init() if state is None else state, []
    update = jax.jit(transform.update)
    for row in rows:
        after, state = update(KEY, signal_of([row]), state)
        found.append(after)
    return found


def column(found, name):
    return [np.asarray(after.aux[name])[0].item() for after in found]


ROWS = [[5, 5, 5, 7], [5, 5, 7, 7], [7, 7, 7, 5], [0, 0, 0, 0], [7, 7, 7, 7], [7, 7, 5, 9]]


def test_history_by_hand():
    found = visits(majority_guard.vote_history(num_prompts=2, window=2), ROWS)
    # 5, 5 (the first of a tie), 7: a flip, none, 7, 7
    assert column(found, "vote_flip_rate") == [0, 0, 1, 1, 0, 0]
    assert column(found, "vote_visits") == [1, 2, 3, 3, 4, 5]
    assert column(found, "vote_competed") == [False, False, True, True, True, True]
    np.testing.assert_allclose(
        column(found, "vote_share"), [0.75, 0.625, 0.625, 0.625, 0.875, 0.75]
    )
    assert float(found[2].metrics["majority/flip_rate"]) == 1.0
    longer = visits(majority_guard.vote_history(num_prompts=2, flip_window=4, threshold=0.4), ROWS)
    np.testing.assert_allclose(column(longer, "vote_flip_rate"), [0, 0, 1 / 3, 1 / 3, 0.25, 0.25])
    assert not any(column(longer, "vote_competed"))


def test_prompts_have_histories_of_their_own():
    transform = majority_guard.vote_history(num_prompts=3)
    update = jax.jit(transform.update)
    both = signal_of([[5, 5], [6, 6]], prompt_id=jnp.array([2, 0]))
    _, state = update(KEY, both, transform.init())
    other = signal_of([[5, 5], [9, 9]], prompt_id=jnp.array([0, 1]))
    after, _ = update(KEY, other, state)
    np.testing.assert_array_equal(after.aux["vote_flip_rate"], [1, 0])
    np.testing.assert_array_equal(after.aux["vote_visits"], [2, 1])


def known(answers, flip_rate, share, visited, competed, advantages, mask=None):
    """A signal of one prompt with this history."""
    answers = ids([answers])
    signal = make_signal(
        jnp.zeros(answers.shape), mask, answer_id=answers,
        vote_flip_rate=jnp.array([flip_rate], jnp.float32),
        vote_share=jnp.array([share], jnp.float32),
        vote_visits=jnp.array([visited], jnp.int32), vote_competed=jnp.array([competed]),
    )  # fmt: skip
    return signal.replace(advantages=jnp.asarray([advantages], jnp.float32))


HALF, MOST = [5, 5, 7, 8], [5, 5, 5, 7]
BY_FLIPS = majority_guard.scale_by_flips(num_prompts=1)
scale = jax.jit(BY_FLIPS.update)


@pytest.mark.parametrize(
    "answers, flip_rate, share, visited, competed, weight",
    [
        (HALF, 0.0, 0.9, 4, False, 1.0),  # not yet visited often enough
        (HALF, 1.0, 0.9, 9, True, 0.5),
        (MOST, 1.0, 0.9, 9, True, 0.5 * 0.7),  # flips, and yet this majority is large
        (MOST, 0.25, 0.9, 9, True, 0.875),  # no contradiction below the threshold
        (HALF, 0.0, 0.9, 5, False, 0.85),  # never another majority
        (HALF, 0.0, 0.6, 5, False, 1.0),  # nor confident
        (HALF, 0.0, 0.9, 5, True, 1.0),
    ],
)
def test_weights_by_hand(answers, flip_rate, share, visited, competed, weight):
    given = known(answers, flip_rate, share, visited, competed, [1.0, -1.0, 0.5, 0.0])
    after, _ = scale(KEY, given, BY_FLIPS.init())
    np.testing.assert_allclose(after.advantages[0], weight * np.array([1, -1, 0.5, 0]), rtol=1e-6)
    np.testing.assert_allclose(after.metrics["majority/flip_weight"], weight, rtol=1e-6)


def test_a_suspicion_ends_after_as_many_visits_and_weights_have_a_floor():
    transform = majority_guard.scale_by_flips(num_prompts=1, window=3)
    given, state, weights = known(HALF, 0.0, 0.9, 5, False, [1.0] * 4), transform.init(), []
    update = jax.jit(transform.update)
    for _ in range(5):
        after, state = update(KEY, given, state)
        weights.append(float(after.advantages[0, 0]))
    np.testing.assert_allclose(weights, [0.85] * 3 + [1.0] * 2, rtol=1e-6)
    strict = majority_guard.scale_by_flips(num_prompts=1, penalty=1.0)
    given = known(HALF, 1.0, 0.9, 5, True, [1.0] * 4)
    after, _ = jax.jit(strict.update)(KEY, given, strict.init())
    np.testing.assert_allclose(after.advantages, 0.1)


def test_minority_bonus_by_hand():
    answers = [5, 5, 5, 7, 7, 8, 0, 5]  # 8 has one vote of eight: too few
    advantages = [1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0, 1.0]
    update = jax.jit(majority_guard.keep_minority().update)
    give = lambda rate: known(answers, rate, 0.5, 9, True, advantages)
    after = update(KEY, give(1.0), ())[0]
    expected = np.array(advantages)
    expected[3:5] += 0.3  # all of the bonus: the only minority answer
    np.testing.assert_allclose(after.advantages[0], expected, rtol=1e-6)
    assert float(after.metrics["majority/minority_kept"]) == 1.0
    half = np.asarray(update(KEY, give(0.15), ())[0].advantages[0])
    np.testing.assert_allclose(half[3:5], -1 + 0.15, rtol=1e-6)
    np.testing.assert_array_equal(update(KEY, give(0.0), ())[0].advantages[0], advantages)


def test_minorities_share_the_bonus_by_their_votes_and_missing_samples_have_none():
    answers = [5, 5, 5, 5, 7, 7, 7, 8, 8, 0, 7, 9]
    advantages = 2.0 * np.array([1, 1, 1, 1, -1, -1, -1, -1, -1, -1, 0, -1], np.float32)
    mask = jnp.asarray(np.arange(12)[None] != 10)
    update = jax.jit(majority_guard.keep_minority(min_share=0.17).update)
    after = update(KEY, known(answers, 1.0, 0.5, 9, True, advantages, mask), ())[0]
    bonus = np.asarray(after.advantages[0]) - advantages
    np.testing.assert_allclose(bonus[4:7], 0.3 * 2 * 3 / 5, rtol=1e-6)
    np.testing.assert_allclose(bonus[7:9], 0.3 * 2 * 2 / 5, rtol=1e-6)
    assert not np.any(bonus[[0, 1, 2, 3, 9, 10, 11]])


def batch(prompts, risky):
    """Prompts of which the first `risky` are at risk."""
    flags = np.arange(prompts) < risky
    return signal_of(
        np.full((prompts, 2), 3), vote_visits=jnp.asarray(np.full(prompts, 5, np.int32)),
        vote_share=jnp.asarray(np.full(prompts, 0.8, np.float32)),
        vote_competed=jnp.asarray(flags),
    )  # fmt: skip


def test_at_most_a_quarter_is_paused_and_at_least_one():
    always = jax.jit(majority_guard.pause_locked(skip=1.0).update)
    grpo = jax.jit(advantage.grpo().update)
    for prompts, risky, expected in ((8, 6, 2), (8, 1, 1), (3, 3, 1), (8, 0, 0)):
        after = always(KEY, batch(prompts, risky), ())[0]
        paused = ~np.asarray(after.mask).any(axis=1)
        assert paused.sum() == expected and not paused[risky:].any()
        np.testing.assert_allclose(after.metrics["majority/paused"], expected / prompts)
        np.testing.assert_allclose(after.metrics["majority/at_risk"], risky / prompts)
        gone = np.asarray(grpo(KEY, after, ())[0].advantages)[paused]
        np.testing.assert_array_equal(gone, 0.0)


def test_each_prompt_at_risk_is_paused_with_the_given_probability():
    often = jax.jit(majority_guard.pause_locked(most=1.0).update)
    after = often(KEY, batch(4000, 4000), ())[0]
    assert float(after.metrics["majority/paused"]) == pytest.approx(0.7, abs=0.03)
    never = [dict(min_share=0.8), dict(window=6), dict(skip=0.0)]
    never = [majority_guard.pause_locked(**change) for change in never]
    masks = jax.jit(lambda signal: [t.update(KEY, signal, ())[0].mask for t in never])
    assert all(np.all(mask) for mask in masks(batch(8, 8)))


def plain(rows, tau=0.3, window=5):
    """Leader, weight, bonus and risk at each visit of a prompt, in plain Python."""
    past, competed, suspected, found = [], False, 0, []
    for row in rows:
        counts = {a: row.count(a) for a in row if a}
        leader = max(counts, key=lambda a: (counts[a], -row.index(a)))
        share = counts[leader] / len(row)
        rate = float(bool(past) and past[-1][0] != leader)
        past.append((leader, share))
        competed |= rate > tau
        mean = np.mean([own for _, own in past[-window:]])
        weight = (1 - 0.5 * rate) * (0.7 if rate > tau and share > 0.6 else 1.0)
        if not competed and len(past) >= window and mean > 0.6 and suspected < window:
            weight, suspected = weight * 0.85, suspected + 1
        least = max(1, len(row) // 4)
        kept = {a: n for a, n in counts.items() if a != leader and n >= least}
        whole = 0.3 * min(rate / tau, 1) / max(sum(kept.values()), 1)
        bonus = [whole * kept.get(a, 0) for a in row]
        risky = competed and len(past) >= window and mean > 0.5
        found.append((leader, max(weight, 0.1), bonus, risky))
    return found


def test_all_three_equal_a_plain_reference_over_random_visits():
    chain = base.chain(
        majority_guard.vote_history(num_prompts=4),
        majority.majority_reward(),
        majority_guard.pause_locked(skip=1.0, most=1.0),
        advantage.grpo(),
        majority_guard.scale_by_flips(num_prompts=4),
        majority_guard.keep_minority(),
    )
    rng = np.random.default_rng(3)
    sure = rng.random((4, 30, 1)) < np.array([0.95, 0.6, 0.5, 0.2])[:, None, None]
    rows = np.where(sure & (rng.random((4, 30, 8)) < 0.8), 1, rng.integers(0, 4, (4, 30, 8)))
    rows[..., 0] = np.where(rows.max(axis=-1) == 0, 1, rows[..., 0])  # some answer each visit
    wanted = [plain(own.tolist()) for own in rows]
    state, step = chain.init(), jax.jit(chain.update)
    paused = 0
    for visit in range(30):
        after, state = step(KEY, signal_of(rows[:, visit]), state)
        for prompt in range(4):
            leader, weight, bonus, risky = wanted[prompt][visit]
            right = (rows[prompt, visit] == leader).astype(np.float64)
            spread = right.std()
            score = (right - right.mean()) / spread if spread > 0 and not risky else 0 * right
            score = weight * score
            score = score + (not risky) * np.array(bonus) * np.abs(score).mean()
            np.testing.assert_allclose(after.advantages[prompt], score, rtol=2e-3, atol=1e-5)
            paused += risky
    assert 5 < paused < 100


def test_neutral_settings_are_the_majority_vote_bit_for_bit():
    answers = np.random.default_rng(0).integers(0, 3, (5, 6))
    bare = base.chain(majority.majority_reward(), advantage.grpo())
    guarded = base.chain(
        majority_guard.vote_history(num_prompts=5),
        majority.majority_reward(),
        majority_guard.pause_locked(skip=0.0),
        advantage.grpo(),
        majority_guard.scale_by_flips(num_prompts=5, penalty=0.0, confident_penalty=0.0),
        majority_guard.keep_minority(strength=0.0),
    )
    one = jax.jit(bare.update)(KEY, signal_of(answers), bare.init())[0]
    two = jax.jit(guarded.update)(KEY, signal_of(answers), guarded.init())[0]
    np.testing.assert_array_equal(one.advantages, two.advantages)


def test_impossible_numbers_and_places_are_refused():
    for factory, change in (
        (majority_guard.vote_history, dict(num_prompts=2, window=0)),
        (majority_guard.vote_history, dict(num_prompts=2, threshold=1.0)),
        (majority_guard.scale_by_flips, dict(num_prompts=2, penalty=1.5)),
        (majority_guard.keep_minority, dict(strength=-1.0)),
        (majority_guard.pause_locked, dict(skip=1.1)),
    ):
        with pytest.raises(ValueError, match=f"{list(change)[-1]} = .*; allowed is"):
            factory(**change)
    with pytest.raises(ValueError, match="reads 'advantages', which nothing"):
        base.chain(majority_guard.vote_history(num_prompts=2), majority_guard.keep_minority())
    given = known(HALF, 1.0, 0.9, 5, True, [1.0] * 4)
    dense = given.replace(advantages=jnp.asarray(np.ones((1, 4, 3), np.float32)))
    with pytest.raises(ValueError, match=r"\(1, 4, 3\); allowed is \[P, G\]"):
        majority_guard.keep_minority().update(KEY, dense, ())
