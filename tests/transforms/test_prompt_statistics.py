"""Advantages from a prompt's recent rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.transforms import prompt_statistics as statistics
from jaxreward.types import make_signal


def run(transform, batches, state=None):
    """Advantages of batches of `(ids, rewards)`, one sample a row."""
    state, found = transform.init() if state is None else state, []
    update = jax.jit(transform.update)
    for ids, rewards in batches:
        rewards = jnp.asarray(rewards, jnp.float32)
        rewards = rewards[:, None] if rewards.ndim == 1 else rewards
        signal = make_signal(rewards, prompt_id=jnp.asarray(ids, jnp.int32))
        signal, state = update(jax.random.key(0), signal, state)
        found.append(np.asarray(signal.advantages))
    return found, state


def test_three_batches():
    """Check 4 of the card of RLCM."""
    transform = statistics.prompt_statistics(2, buffer=4, min_count=3)
    found, _ = run(
        transform,
        [([0, 0, 1, 1], [1, 3, 5, 7]), ([0, 1, 0, 1], [2, 6, 4, 9]), ([0, 0], [5, 5])],
    )
    np.testing.assert_allclose(found[0][:, 0], [-1.34164, -0.44721, 0.44721, 1.34164], rtol=2e-5)
    expected = [-0.447213, -0.507092, 1.341640, 1.521277]
    np.testing.assert_allclose(found[1][:, 0], expected, rtol=2e-5)
    np.testing.assert_allclose(found[2][:, 0], [0.816496, 0.816496], rtol=2e-5)


def reference(batches, prompts, buffer, min_count):
    """The same with lists; NaN is missing."""
    kept, found = [[] for _ in range(prompts)], []
    for ids, rewards in batches:
        rows = [(i, r) for i, row in zip(ids, rewards) for r in row]
        for i, r in rows:
            if not np.isnan(r):
                kept[i] = (kept[i] + [r])[-buffer:]
        batch = [r for _, r in rows if not np.isnan(r)]
        own = [kept[i] if len(kept[i]) >= min_count else batch for i, _ in rows]
        values = [
            0.0 if np.isnan(r) or np.std(o) == 0 else (r - np.mean(o)) / (np.std(o) + 1e-6)
            for (_, r), o in zip(rows, own)
        ]
        found.append(np.clip(values, -1.5, 1.5).reshape(np.shape(rewards)))
    return found


def test_against_lists():
    rng = np.random.default_rng(0)
    batches = [
        (rng.integers(0, 3, 4), np.where(rng.random((4, 3)) < 0.2, np.nan, rng.random((4, 3))))
        for _ in range(6)
    ]
    transform = statistics.prompt_statistics(3, buffer=5, min_count=4, clip=1.5)
    found, _ = run(transform, batches)
    for ours, theirs in zip(found, reference(batches, 3, 5, 4)):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)


def test_a_prompt_outside_the_buffers_uses_the_batch():
    transform = statistics.prompt_statistics(2, buffer=4, min_count=2)
    batches = [([1, 2, -1], [[1.0, 3.0], [1.0, 3.0], [2.0, 2.0]])]
    (found,), state = run(transform, batches)
    np.testing.assert_array_equal(state.seen, [0, 2])
    deviation = np.std([1, 3, 1, 3, 2, 2])
    np.testing.assert_allclose(found[0], [-1, 1], rtol=1e-5)
    np.testing.assert_allclose(found[1], np.array([-1, 1]) / deviation, rtol=1e-5)


def test_equal_rewards_in_a_full_buffer_give_nothing():
    """Check 7 of the card of RLCM."""
    transform = statistics.prompt_statistics(1, buffer=4, min_count=4)
    found, _ = run(transform, [([0], [[0.1, 0.3, 0.3, 0.3]]), ([0], [[0.3] * 4])])
    assert np.all(found[0] != 0)
    np.testing.assert_array_equal(found[1], 0.0)


def test_bad_inputs():
    for options, message in (
        (dict(num_prompts=0), "num_prompts = 0"),
        (dict(num_prompts=1, buffer=4, min_count=5), "min_count = 5"),
        (dict(num_prompts=1, epsilon=-1), "epsilon = -1"),
        (dict(num_prompts=1, clip=0), "clip = 0"),
    ):
        with pytest.raises(ValueError, match=message):
            statistics.prompt_statistics(**options)
    transform = statistics.prompt_statistics(1)
    with pytest.raises(ValueError, match=r"allowed is \[P, G\]"):
        transform.update(jax.random.key(0), make_signal(jnp.zeros((1, 2, 3))), transform.init())
