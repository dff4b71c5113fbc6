import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.transforms import advantage, base, majority, noise
from jaxreward.types import make_signal

KEY = jax.random.key(0)


def ids(rows):
    return jnp.asarray(rows, jnp.uint32)


ANSWERS = ids([[5, 7, 5, 0], [3, 4, 4, 3], [0, 0, 0, 0], [9, 9, 9, 9], [1, 2, 3, 0]])
TRUE = jnp.array([[1, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]], jnp.float32)


majority_vote = jax.jit(majority.majority_vote)


def run_on(transform, signal):
    """The signal after the transform, in numpy."""
    after, _ = jax.jit(transform.update)(KEY, signal, transform.init())
    return jax.tree.map(np.asarray, after)


def run(transform, **aux):
    return run_on(transform, make_signal(TRUE, **{"answer_id": ANSWERS, **aux}))


def test_votes_by_hand():
    vote = majority_vote(ANSWERS)
    np.testing.assert_array_equal(vote.answer_id, [5, 3, 0, 9, 1])
    np.testing.assert_allclose(vote.share, [0.5, 0.5, 0, 1, 0.25])
    mask = np.ones((5, 4), bool)
    mask[1, 0] = mask[0] = False
    vote = majority_vote(ANSWERS, jnp.asarray(mask))
    np.testing.assert_array_equal(vote.answer_id, [0, 4, 0, 9, 1])
    np.testing.assert_allclose(vote.share, [0, 2 / 3, 0, 1, 0.25])


def test_votes_equal_plain_counting():
    rng = np.random.default_rng(0)
    answers, mask = rng.integers(0, 4, (50, 6)), rng.random((50, 6)) < 0.7
    vote = majority_vote(ids(answers), jnp.asarray(mask))
    for row, own, winner, share in zip(answers, mask, *jax.device_get(vote)):
        given = [a for a, m in zip(row, own) if m and a]
        best = max(map(given.count, given), default=0)
        assert given.count(winner) == best if given else winner == 0
        assert share == pytest.approx(best / max(own.sum(), 1))


def test_majority_rewards_and_their_guard():
    after = run(majority.majority_reward())
    np.testing.assert_array_equal(after.rewards[0], [1, 0, 1, 0])
    np.testing.assert_array_equal(after.rewards[3], [1, 1, 1, 1])
    assert not after.mask[2].any() and after.mask[[0, 1, 3, 4]].all()
    np.testing.assert_array_equal(after.aux["true_rewards"], TRUE)
    guarded = run(majority.majority_reward(min_share=0.5, max_share=0.9))
    np.testing.assert_array_equal(guarded.mask.all(axis=1), [True, True, False, False, False])
    assert float(guarded.metrics["majority/kept"]) == pytest.approx(0.4)
    # prompt 0: both samples with the label right; prompt 1: the tie went to a wrong answer
    assert float(guarded.metrics["majority/label_accuracy"]) == 0.5
    assert float(guarded.metrics["majority/reward_accuracy"]) == 0.5


def test_wrong_labels_leave_out_what_the_start_had_right():
    aux = dict(reference_id=ids([5, 4, 8, 8, 3]), initial_majority_id=ids([5, 3, 0, 9, 1]))
    transform = majority.label_reward("initial_majority_id", leave_out="reference_id")
    after = run(transform, **aux)
    np.testing.assert_array_equal(after.mask.all(axis=1), [False, True, False, True, True])
    np.testing.assert_array_equal(after.rewards[1], [1, 0, 0, 1])
    assert float(after.metrics["majority/label_accuracy"]) == 0.0
    right = run(majority.label_reward(), **aux)
    np.testing.assert_array_equal(right.rewards[0], np.asarray(TRUE)[0])


def test_format_reward_and_inversion():
    after = run(majority.answered_reward())
    np.testing.assert_array_equal(after.rewards, np.asarray(ANSWERS) != 0)
    assert after.mask.all()
    np.testing.assert_array_equal(run(noise.inverted()).rewards, 1 - TRUE)


def test_card_check_4_inverted_advantages_are_exactly_minus_the_right_ones():
    for own in (TRUE, np.random.default_rng(0).random((5, 4))):
        one = run_on(base.chain(advantage.grpo()), make_signal(own))
        two = run_on(base.chain(noise.inverted(), advantage.grpo()), make_signal(own))
        np.testing.assert_allclose(two.advantages, -one.advantages, rtol=1e-5, atol=1e-6)
        assert np.abs(one.advantages).max() > 0.5


def test_card_check_5_random_rewards_have_mean_advantage_zero_in_every_group():
    chain = base.chain(noise.random_reward(0.5), advantage.grpo())
    seen = run_on(chain, make_signal(np.ones((64, 8)))).advantages
    np.testing.assert_allclose(seen.mean(axis=1), 0, atol=1e-6)
    # drawn for each sample: a draw for the prompt would leave every group without variance
    assert (np.abs(seen).max(axis=1) > 0).mean() > 0.9


@pytest.mark.parametrize("shares", [(-0.1, 1.0), (0.0, 1.1)])
def test_bad_shares(shares):
    with pytest.raises(ValueError, match="_share"):
        majority.majority_reward(min_share=shares[0], max_share=shares[1])
