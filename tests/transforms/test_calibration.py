"""Rewards mended by a second signal: the exact checks of arXiv 2505.22653."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.transforms import advantage, base, calibration, noise
from jaxreward.types import make_signal

KEY = jax.random.key(0)


def run(transform, signal, state=None, key=KEY):
    state = transform.init() if state is None else state
    return jax.jit(transform.update)(key, signal, state)


def test_low_rewards_are_lifted_and_high_ones_kept():
    signal = make_signal(
        jnp.asarray([[0.2, 0.45, 0.5, 0.8]]), pattern=jnp.asarray([[0.5, 0.1, 0.9, 0.9]])
    )
    after, _ = run(calibration.lift_low_rewards("pattern"), signal)
    np.testing.assert_allclose(after.rewards, [[0.25, 0.46, 0.5, 0.8]], atol=1e-6)
    same, _ = run(calibration.lift_low_rewards("pattern", weight=0.0), signal)
    np.testing.assert_array_equal(same.rewards, signal.rewards)


def test_a_replaced_reward_pays_only_for_answers():
    signal = make_signal(
        jnp.asarray([[1.0, 0.0, 1.0]]), pattern=jnp.asarray([[0.1, 0.2, 0.3]]),
        answer_id=jnp.asarray([[3, 0, 4]], jnp.uint32),
    )  # fmt: skip
    after, _ = run(calibration.replace_reward("pattern", answered="answer_id"), signal)
    np.testing.assert_allclose(after.rewards, [[0.1, 0.0, 0.3]])
    np.testing.assert_array_equal(after.aux["true_rewards"], signal.rewards)


def test_warm_up_ends_after_its_steps():
    signal = make_signal(jnp.asarray([[1.0, 0.0]]), pattern=jnp.asarray([[0.1, 0.2]]))
    transform = calibration.warm_up("pattern", steps=2)
    state, seen = None, []
    for _ in range(4):
        after, state = run(transform, signal, state)
        seen.append(np.asarray(after.rewards)[0])
    np.testing.assert_allclose(seen, [[0.1, 0.2], [0.1, 0.2], [1, 0], [1, 0]])


def test_a_flipped_group_keeps_what_has_no_answer():
    signal = make_signal(
        jnp.asarray([[1.0, 0, 1, 1, 0]]), answer_id=jnp.asarray([[4, 5, 4, 4, 0]], jnp.uint32)
    )
    flipped, _ = run(noise.group_flip(1.0, answered="answer_id"), signal)
    np.testing.assert_array_equal(flipped.rewards, [[0, 1, 0, 0, 0]])
    kept, _ = run(noise.group_flip(0.0, answered="answer_id"), signal)
    np.testing.assert_array_equal(kept.rewards, signal.rewards)


@pytest.mark.parametrize("rate", [0.4, 0.5])
def test_flips_scale_the_expected_advantage(rate):
    """E[A] is 1 - 2 rate times the clean one; the margin is four standard errors."""
    prompts = 20_000
    rewards = np.tile([1.0, 0, 0, 1], (prompts, 1))
    centre = advantage.group_relative(baseline="mean", scale="none")
    noisy, _ = run(noise.group_flip(rate), make_signal(rewards))
    found, _ = run(centre, noisy)
    mean = np.asarray(found.advantages).mean(axis=0)
    error = 4 * 0.5 / prompts**0.5
    np.testing.assert_allclose(mean, (1 - 2 * rate) * np.array([0.5, -0.5, -0.5, 0.5]), atol=error)


def test_persistent_flips_stay():
    signal = make_signal(jnp.ones((200, 2)))
    flip = noise.group_flip(0.5, persistent=True, seed=3)
    one, two = jax.random.key(1), jax.random.key(2)
    first, second = run(flip, signal, key=one)[0], run(flip, signal, key=two)[0]
    np.testing.assert_array_equal(first.rewards, second.rewards)
    fresh = noise.group_flip(0.5)
    other = run(fresh, signal, key=one)[0].rewards
    again = run(fresh, signal, key=two)[0].rewards
    assert (np.asarray(other) != np.asarray(again)).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: calibration.lift_low_rewards("x", weight=-0.1), "weight = -0.1"),
        (lambda: calibration.warm_up("x", steps=-1), "steps = -1"),
        (lambda: noise.group_flip(1.5), "rate = 1.5"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def centred(squash, rewards, references, **options):
    transform = calibration.center_on_reference(squash, **options)
    given = make_signal(jnp.asarray(rewards), reference_rewards=jnp.asarray(references))
    return run(transform, given)[0]


@pytest.mark.parametrize(
    "squash, expected",
    [
        ("identity", [0.5, -1.5]),
        ("sigmoid", [(0.731059 + 0.5) / 2, (0.268941 + 0.119203) / 2]),
        ("log_sigmoid", [(-0.313262 - 0.693147) / 2, (-1.313262 - 2.126928) / 2]),
        ("clip", [0.25, -0.5]),
    ],
)
def test_centred_on_references(squash, expected):
    found = centred(squash, [[2.0, 0.0]], [[1.0, 2.0]], bound=0.5)
    np.testing.assert_allclose(found.rewards, [expected], atol=1e-6)


def test_a_prompt_without_references_is_missing_and_one_of_two_counts_alone():
    nan = float("nan")
    found = centred("identity", [[2.0, 0.0], [2.0, 0.0]], [[nan, nan], [1.0, nan]])
    np.testing.assert_array_equal(found.mask, [[False, False], [True, True]])
    np.testing.assert_allclose(np.asarray(found.rewards)[1], [1.0, -1.0])


def test_centring_alone_is_a_shift_that_baselines_cancel():
    assert calibration.center_on_reference("identity").spec.reward_map == "shift"
    references = jnp.asarray([[0.3, 0.6]])
    for squash, same in (("identity", True), ("sigmoid", False)):
        parts = (calibration.center_on_reference(squash), advantage.rloo())
        chain = base.chain(*parts, on_inert="allow")
        given = make_signal(jnp.asarray([[0.0, 1.0, 2.0]]), reference_rewards=references)
        found = run(chain, given)[0].advantages
        plain = run(advantage.rloo(), given)[0].advantages
        assert np.allclose(found, plain, atol=1e-6) == same


def test_peer_rewards_take_out_the_offset_in_expectation():
    rewards = jnp.asarray([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    mask = jnp.asarray([[True, True, True], [True, True, False]])
    transform = calibration.peer_reward(1.0)
    draw = lambda key: transform.update(key, make_signal(rewards, mask), ())[0].rewards
    draws = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), 4000)))
    # peers of the first prompt are all 0; those of the second are 1 with probability 2/3
    np.testing.assert_allclose(np.mean(draws, axis=0)[0], [1, 1, 0], atol=1e-6)
    error = 4 * np.sqrt(2 / 9 / 4000)
    np.testing.assert_allclose(np.mean(draws, axis=0)[1, :2], -2 / 3, atol=error)
    assert not np.any(draws[:, 1, 2])


def test_peers_are_all_present_samples_of_other_prompts_alike():
    """A prompt that is there twice is no peer of itself; rows may come in any order."""
    ids = jnp.asarray([7, 2, 7, 5, 2], jnp.int32)
    rewards = jnp.asarray(2.0 ** np.arange(15).reshape(5, 3), jnp.float32)  # tell each apart
    mask = jnp.asarray(np.arange(15).reshape(5, 3) % 4 != 1)
    transform, count = calibration.peer_reward(), 4000

    def run(key):
        given = make_signal(rewards, mask, prompt_id=ids)
        return rewards - transform.update(key, given, ())[0].rewards

    peers = np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(1), count)))
    for row in range(5):
        others = np.asarray(rewards)[np.asarray(mask) & (ids != ids[row])[:, None]]
        error = 4.5 * np.sqrt(count / len(others))
        for sample in np.flatnonzero(mask[row]):
            values, times = np.unique(peers[:, row, sample], return_counts=True)
            np.testing.assert_array_equal(values, np.sort(others))
            np.testing.assert_allclose(times, count / len(others), atol=error)


def test_a_penalty_is_taken_off_and_missing_rewards_stay():
    given = make_signal(jnp.array([[1.0, 0.5, jnp.nan]]), flag=jnp.array([[True, False, True]]))
    after = run(calibration.subtract("flag"), given)[0]
    np.testing.assert_array_equal(after.rewards, [[0.0, 0.5, 0.0]])
    np.testing.assert_array_equal(after.mask, [[True, True, False]])
    half = run(calibration.subtract("flag", weight=0.5), given)[0]
    np.testing.assert_array_equal(half.rewards, [[0.5, 0.5, 0.0]])
    with pytest.raises(ValueError, match="weight = inf; allowed is a finite number"):
        calibration.subtract("flag", weight=float("inf"))
