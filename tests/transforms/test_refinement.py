"""Online label refinement: the exact checks of arXiv 2604.03993 and what is remembered."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.transforms import advantage, base, refinement
from jaxreward.types import make_signal


KEY = jax.random.key(0)
share_slope = jax.jit(refinement.share_slope)
unique_majority = jax.jit(refinement.unique_majority)
is_consistent = jax.jit(refinement.is_consistent)


def ids(*rows):
    return jnp.asarray([[0 if a is None else a for a in row] for row in rows], jnp.uint32)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([0.25, 0.375, 0.375, 0.5, 0.625], 0.0875),
        ([0.4] * 5, 0.0),
        ([0.25, 0.25, 0.375, 0.375, 0.5, 0.5], 0.057143),
        ([0.125, 0.25, 0.5, 0, 0.625, 0.75], 0.107143),
        ([0.7], 0.0),
        ([0.5, 0.625, 0.75, 0.875, 1], 0.125),
        ([0.5, 0.625, 0.75, 0.875, 1, 1, 1, 1, 1], 0.0625),
    ],
)
def test_slope(shares, expected):
    padded = jnp.asarray((shares + [9.0] * 12)[:12], jnp.float32)
    found = share_slope(padded, np.int32(len(shares)))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("answers", "winner", "share"),
    [
        ([5, 5, 5, 7, 7, None, None, 9], 5, 0.375),
        ([5, 5, 5, 5, 7, 7, 7, 7], 0, 0.0),
        ([None] * 8, 0, 0.0),
        ([5, None, None], 0, 0.0),
        ([5, 5, None, None], 5, 0.5),
        ([None], 0, 0.0),
        ([3], 3, 1.0),
    ],
)
def test_majority(answers, winner, share):
    found = unique_majority(ids(answers))
    assert int(found.answer_id[0]) == winner
    np.testing.assert_allclose(found.share[0], share)


def test_samples_outside_the_mask_do_not_vote():
    mask = jnp.asarray([[False, False, True, True, True]])
    found = unique_majority(ids([5, 5, 7, 7, 5]), mask)
    assert int(found.answer_id[0]) == 7
    np.testing.assert_allclose(found.share[0], 2 / 3)


@pytest.mark.parametrize(
    ("history", "expected"),
    [([5, 7, 7, 5, 5], True), ([5, 7, 5, 7], False), ([7, 7, 7, 5], False), ([5], True),
     ([5, 5, 0], False), ([0, 0, 5], False), ([0, 5, 5], True)],
)  # fmt: skip
def test_consistency(history, expected):
    padded = jnp.asarray((history + [5] * 8)[:8], jnp.uint32)
    assert bool(is_consistent(padded, jnp.int32(len(history)))) == expected


@functools.cache
def compiled(**options):
    """The update of one prompt's visits, for every bound of the slope."""

    def update(min_slope, signal, state):
        transform = refinement.label_refinement(num_prompts=1, min_slope=min_slope, **options)
        return transform.update(KEY, signal, state)

    return jax.jit(update)


def visits(groups, rewards=(0.0,) * 8, state=None, min_slope=0.05, **options):
    """One prompt visited with one group of answers after the other; the rewards it gets."""
    state = refinement.label_refinement(num_prompts=1).init() if state is None else state
    seen, given = [], jnp.asarray([rewards])
    for answers in groups:
        signal = make_signal(given, answer_id=ids(answers), reference_id=ids([5])[0])
        signal, state = compiled(**options)(min_slope, signal, state)
        seen.append(np.asarray(signal.rewards)[0])
    return seen, state, signal


RISING = [[5] * n + [7] * 2 + [1, 2, 9, 11, 12, 13][: 6 - n] for n in (3, 3, 4, 4, 5, 5)]


def test_the_majority_replaces_the_label_and_the_advantages_follow():
    last = [5, 5, 5, 7, 7, 1, 2, 9]
    given = [0.0, 0, 0, 1, 1, 0, 0, 0]
    seen, _, signal = visits([last, last], given, start_visit=0, min_slope=-1.0)
    np.testing.assert_array_equal(seen[0], given)
    np.testing.assert_array_equal(seen[1], [1, 1, 1, 0, 0, 0, 0, 0])
    after, _ = jax.jit(advantage.grpo(ddof=1).update)(KEY, signal, ())
    advantages = np.asarray(after.advantages)[0, :4]
    np.testing.assert_allclose(advantages, [1.207612] * 3 + [-0.724567], atol=1e-4)


def test_visits_up_to_the_start_are_never_replaced():
    seen, _, _ = visits(RISING, min_slope=0.0)
    assert [bool(rewards.any()) for rewards in seen] == [False] * 5 + [True]


def test_a_slope_equal_to_the_bound_counts():
    shares = [2, 2, 3, 3, 4, 4]  # eighths: slope .057143
    groups = [[5] * n + list(range(20, 28 - n)) for n in shares]
    padded = jnp.asarray(np.array(shares + [0] * 58, np.float32) / 8)
    exact = float(share_slope(padded, jnp.int32(6)))
    for bound, expected in ((exact, True), (exact + 1e-4, False)):
        assert bool(visits(groups, min_slope=bound)[0][-1].any()) == expected


def test_ablations_leave_out_their_condition():
    flat = [[5] * 4 + [7] * 3 + [1]] * 6
    assert not visits(flat)[0][-1].any()
    assert visits(flat, use_slope=False)[0][-1].any()
    other = RISING[:-1] + [[7] * 5 + [5, 1, 2]]
    assert not visits(other, min_slope=0.0)[0][-1].any()
    assert visits(other, min_slope=0.0, use_consistency=False)[0][-1].any()


def test_an_infinite_slope_is_plain_training_bit_for_bit():
    rewards = [0.0, 1, 0, 1, 1, 0, 0, 0]
    for seen in visits(RISING, rewards, min_slope=float("inf"))[0]:
        np.testing.assert_array_equal(seen, rewards)


def test_metrics_count_what_is_replaced_right_and_reverted():
    _, state, signal = visits(RISING, min_slope=0.01)
    assert float(signal.metrics["refinement/replaced"]) == 1
    assert float(signal.metrics["refinement/replaced_right"]) == 1
    falling = [[5, 1, 2, 3, 7, 8, 9, 10]] * 4
    _, state, signal = visits(falling[:1], state=state, min_slope=0.01)
    assert float(signal.metrics["refinement/reverted"]) == 1


def test_prompts_keep_their_own_history():
    transform = refinement.label_refinement(num_prompts=3, start_visit=1, min_slope=0.0)
    state, update = transform.init(), jax.jit(transform.update)
    for round_ in range(3):
        own = ids([5] * (3 + round_) + [7] * (5 - round_), [9] * 8)
        for prompts in ([0, 2], [2, 1]):
            signal = make_signal(
                jnp.zeros((2, 8)), answer_id=own, prompt_id=jnp.asarray(prompts, jnp.int32)
            )
            signal, state = update(KEY, signal, state)
    np.testing.assert_array_equal(state.visits, [3, 3, 6])
    assert set(np.asarray(state.majorities)[1, :3].tolist()) == {9}


@pytest.mark.parametrize("kind", refinement.KINDS)
def test_label_noise_gives_a_share_of_the_prompts_wrong_labels(kind):
    prompts, rate = 4000, 0.3
    answers = np.tile(np.array([5, 5, 7, 7, 9, 0, 11, 5], np.uint32), (prompts, 1))
    signal = make_signal(
        jnp.asarray((answers == 5).astype(np.float32)), answer_id=jnp.asarray(answers),
        reference_id=jnp.asarray(np.full(prompts, 5, np.uint32)),
        wrong_id=jnp.asarray(np.full(prompts, 9, np.uint32)),
    )  # fmt: skip
    noise = refinement.label_noise(kind, rate, seed=1)
    update = jax.jit(noise.update)
    after, _ = update(KEY, signal, noise.init())
    labels = np.asarray(after.aux["label_id"])
    share = (labels != 5).mean()
    assert abs(share - rate) < 4 * (rate * (1 - rate) / prompts) ** 0.5
    allowed = {"inactive": {0}, "fixed": {9}, "active": {7, 9, 11}}[kind]
    assert set(labels[labels != 5].tolist()) == allowed
    expected = (answers == labels[:, None]) & (labels != 0)[:, None]
    np.testing.assert_array_equal(after.rewards, expected)
    np.testing.assert_array_equal(after.aux["true_rewards"], signal.rewards)
    again, _ = update(jax.random.key(9), signal, noise.init())
    same = np.asarray(again.aux["label_id"]) != 5
    np.testing.assert_array_equal(same, labels != 5)  # the noisy prompts stay the same
    if kind == "active":  # each different wrong answer equally often, however frequent
        counts = np.asarray([(labels == own).sum() for own in (7, 9, 11)])
        noisy = counts.sum()
        assert np.abs(counts - noisy / 3).max() < 4 * (noisy * 2 / 9) ** 0.5


@pytest.mark.parametrize("kind", refinement.KINDS)
def test_no_wrong_labels_and_an_infinite_slope_are_grpo_bit_for_bit(kind):
    rng = np.random.default_rng(0)
    answers = rng.integers(1, 4, (6, 8)).astype(np.uint32)
    label = jnp.asarray(np.full(6, 2, np.uint32))
    rewards = jnp.asarray((answers == 2).astype(np.float32))
    aux = dict(answer_id=jnp.asarray(answers), reference_id=label, wrong_id=label)
    signal = make_signal(rewards, **aux)
    whole = base.chain(
        refinement.label_noise(kind, 0.0),
        refinement.label_refinement(num_prompts=6, start_visit=0, min_slope=float("inf")),
        advantage.grpo(),
    )
    plain = jax.jit(advantage.grpo().update)(KEY, signal, ())[0]
    state, update = whole.init(), jax.jit(whole.update)
    for visit in range(3):
        after, state = update(jax.random.key(visit), signal, state)
        np.testing.assert_array_equal(after.advantages, plain.advantages)


def test_active_noise_without_a_wrong_answer_matches_nothing():
    signal = make_signal(
        jnp.ones((1, 4)), answer_id=ids([5] * 4), reference_id=jnp.asarray([5], jnp.uint32)
    )
    noise = refinement.label_noise("active", 1.0)
    after, _ = jax.jit(noise.update)(KEY, signal, noise.init())
    assert int(after.aux["label_id"][0]) == 0 and not after.rewards.any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: refinement.label_refinement(num_prompts=0), "num_prompts = 0"),
        (lambda: refinement.label_refinement(num_prompts=1, start_visit=-1), "start_visit = -1"),
        (lambda: refinement.label_refinement(num_prompts=1, max_visits=1), "max_visits = 1"),
        (lambda: refinement.label_noise("passive", 0.1), "kind = 'passive'"),
        (lambda: refinement.label_noise("active", 1.1), "rate = 1.1"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_in_a_chain_after_the_noise_that_it_answers():
    chain = base.chain(
        refinement.label_noise("active", 0.5),
        refinement.label_refinement(num_prompts=4),
        advantage.grpo(),
        provided=("aux/answer_id", "aux/reference_id"),
    )
    assert "advantages" in chain.spec.writes
    with pytest.raises(ValueError, match="reads 'aux/answer_id'"):
        base.chain(refinement.label_refinement(num_prompts=4), advantage.grpo(), provided=())
