"""Opaque rewards: what a black box does wrong costs its own sample, never a sibling or the run."""

import logging
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.rewards.opaque import CAUSES, on_host
from jaxreward.search import noise_optimization as search
from jaxreward.transforms.advantage import group_relative
from jaxreward.types import make_signal


def ink(image, label):
    return image.sum() + 10.0 * label


def test_score_of_every_sample_in_place():
    reward = on_host(ink, axes=(2, 0))
    images = jnp.arange(24.0).reshape(2, 3, 2, 2)
    labels = jnp.arange(6).reshape(2, 3)
    expected = images.sum((2, 3)) + 10.0 * labels.astype(jnp.float32)
    for call in (reward.score, jax.jit(reward.score), jax.vmap(reward.score),
                 jax.jit(jax.vmap(jax.vmap(reward.score)))):  # fmt: skip
        found = call(images, labels)
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == jnp.float32
    assert reward.score(images[:0], labels[:0]).shape == (0, 3)
    assert float(reward.score(images[0, 0], labels[0, 0])) == 6.0
    assert reward.missing() == dict.fromkeys(CAUSES, 0)


def wrong(kind):
    """By a sample's number: right, or wrong in some way."""
    hang = threading.Event()

    def score(x):
        number = int(x[0])
        if number % 2 == 0:
            return np.float64(number)
        if kind == "raised":
            raise KeyError("no such picture")
        if kind == "exit":
            raise SystemExit(3)
        if kind == "hang":
            hang.wait(20.0)
        return {
            "none": None, "text": "7", "shape": np.ones(3), "complex": 1j, "nan": float("nan"),
            "huge": 1e300, "object": object(), "hang": 1.0,
        }[kind]  # fmt: skip

    return score, hang


@pytest.mark.parametrize(
    "kind,cause",
    [("raised", "raised"), ("exit", "raised"), ("none", "no_number"), ("text", "no_number"), ("shape", "no_number"),
     ("complex", "no_number"), ("object", "no_number"), ("nan", "not_finite"),
     ("huge", "not_finite"), ("hang", "timeout")],
)  # fmt: skip
@pytest.mark.parametrize("timeout_s", [None, 0.3])
def test_what_goes_wrong_is_missing_and_counted(kind, cause, timeout_s, caplog):
    timeout_s = 0.3 if kind == "hang" else timeout_s  # without one it waits for ever, as asked
    score, hang = wrong(kind)
    reward = on_host(score, axes=(1,), timeout_s=timeout_s)
    with caplog.at_level(logging.WARNING):
        found = jax.jit(reward.score)(jnp.arange(5.0)[:, None])
        np.testing.assert_array_equal(found, [0, np.nan, 2, np.nan, 4])
    hang.set()
    assert reward.missing() == {**dict.fromkeys(CAUSES, 0), cause: 2}
    assert f"reward of sample 2 of 5 is missing: {cause}" in caplog.text


def test_arguments_are_the_score_s_own():
    def score(image, label):
        image[image < 0] = 0.0
        return image.sum() + int(label)

    images = jnp.array([[-1.0, 2.0], [3.0, -4.0]])
    found = on_host(score, axes=(1, 0)).score(images, jnp.arange(2))
    np.testing.assert_array_equal(found, [2.0, 4.0])
    np.testing.assert_array_equal(images, [[-1.0, 2.0], [3.0, -4.0]])


def test_one_sample_at_a_time():
    """Though two programs ask at once."""
    inside, most = [], []

    def score(x):
        inside.append(x)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return x

    reward, found = on_host(score, axes=(0,)), {}
    ask = lambda name: found.update({name: reward.score(jnp.arange(5.0))})
    threads = [threading.Thread(target=ask, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 10
    for values in found.values():
        np.testing.assert_array_equal(values, np.arange(5.0))


def test_a_hanging_sample_costs_its_own_time_only():
    hang, calls = threading.Event(), []

    def score(x):
        calls.append(float(x))
        return hang.wait(20.0) if x == 1.0 else x

    begin = time.monotonic()
    found = on_host(score, axes=(0,), timeout_s=0.5).score(jnp.arange(4.0))
    assert time.monotonic() - begin < 10.0
    hang.set()
    np.testing.assert_array_equal(found, [0, np.nan, 2, 3])
    assert calls == [0.0, 1.0, 2.0, 3.0]


def test_siblings_learn_as_if_it_had_never_been_drawn(key):
    """Through a chain: advantage exactly 0, the others as without it."""
    score, _ = wrong("raised")
    numbers = jnp.array([[0.0, 2.0, 3.0, 8.0]])
    rewards = on_host(score, axes=(1,)).score(numbers[..., None])
    chain = group_relative()
    signal, _ = chain.update(key, make_signal(rewards), chain.init())
    assert signal.mask.tolist() == [[True, True, False, True]]
    alone, _ = chain.update(key, make_signal(numbers[:, jnp.array([0, 1, 3])]), chain.init())
    found = np.asarray(signal.advantages)[0]
    assert found[2] == 0.0
    np.testing.assert_allclose(found[[0, 1, 3]], alone.advantages[0], rtol=1e-6)


def test_searches_never_choose_a_missing_one():
    score, _ = wrong("none")
    reward = on_host(score, axes=(1,))
    losses = lambda image: -reward.score(image)[None]
    noises = jnp.array([[1.0], [4.0], [2.0], [5.0]])
    found = search.best_of_n(noises, lambda z: z, losses, jnp.ones(1))
    assert float(found.noise[0]) == 4.0
    with pytest.raises(ValueError, match="do not support JVP"):  # nothing to climb
        search.reno(noises[0], lambda z: z, losses, jnp.ones(1), search.Climb(steps=2))


def test_bad_calls():
    for options, words in (
        (dict(axes=()), "axes = ()"),
        (dict(axes=(2, -1)), "allowed is >= 0"),
        (dict(axes=(2,), timeout_s=0), "timeout_s = 0; allowed is > 0 or None"),
    ):
        with pytest.raises(ValueError, match=words.replace("(", r"\(").replace(")", r"\)")):
            on_host(ink, **options)
    reward = on_host(ink, axes=(2, 0))
    for arguments in ((jnp.ones((3, 2, 2)), jnp.ones(2)), (jnp.ones(2), jnp.ones(()))):
        with pytest.raises(ValueError, match="arguments of shapes"):
            reward.score(*arguments)
    with pytest.raises(ValueError, match="1 arguments; allowed are 2"):
        reward.score(jnp.ones((3, 2, 2)))
