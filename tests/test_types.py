"""Tests of jaxreward.types and jaxreward.pytree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.channel import binary
from jaxreward.pytree import pytree_dataclass
from jaxreward.types import Signal, Trajectories, make_signal


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.bool_])
def test_rewards_become_float32(dtype):
    signal = make_signal(jnp.array([[0, 1, 1], [1, 0, 0]]).astype(dtype))
    assert signal.rewards.dtype == jnp.float32
    np.testing.assert_array_equal(signal.rewards, [[0, 1, 1], [1, 0, 0]])
    assert np.all(signal.mask) and signal.mask.dtype == bool
    np.testing.assert_array_equal(signal.aux["prompt_id"], [0, 1])
    assert signal.aux["prompt_id"].dtype == jnp.int32


def test_what_is_not_finite_is_missing():
    rewards = jnp.array([[1.0, jnp.nan, jnp.inf, -jnp.inf]])
    signal = make_signal(rewards, jnp.array([[True, True, True, True]]))
    np.testing.assert_array_equal(signal.mask, [[True, False, False, False]])
    np.testing.assert_array_equal(signal.rewards, [[1, 0, 0, 0]])
    hidden = make_signal(jnp.ones((1, 4)), jnp.array([[True, False, True, False]]))
    np.testing.assert_array_equal(hidden.rewards, [[1, 0, 1, 0]])


def test_dense_rewards_and_side_information():
    signal = make_signal(
        jnp.zeros((2, 3, 4)), prompt_id=jnp.array([7, 5]), prompt_type=jnp.array([0, 1])
    )
    assert signal.mask.shape == (2, 3, 4)
    np.testing.assert_array_equal(signal.aux["prompt_id"], [7, 5])
    np.testing.assert_array_equal(signal.aux["prompt_type"], [0, 1])


def test_wrong_input_is_refused():
    # Beside the checks of shapes at run time under the tests; a user has only these.
    make = getattr(make_signal, "__wrapped__", make_signal)
    good = jnp.zeros((2, 3))
    for rewards in (jnp.zeros(3), jnp.zeros((1, 2, 3, 4))):
        with pytest.raises(ValueError, match=r"rewards have shape .* allowed is \[P, G\]"):
            make(rewards)
    for mask in (jnp.ones((2, 1), bool), jnp.ones((2, 3))):
        with pytest.raises(ValueError, match=r"mask is .* allowed is bool \(2, 3\)"):
            make(good, mask)
    for prompt_id in (jnp.arange(3), jnp.zeros(2)):
        with pytest.raises(ValueError, match=r"prompt_id is .* allowed is int \(2,\)"):
            make(good, prompt_id=prompt_id)
    for rewards in (np.array([["a", "b"]]), np.array([[1.0, None]], object), good.astype(jnp.complex64)):
        with pytest.raises(ValueError, match="allowed (is|are) real"):
            make(rewards)
    with pytest.raises(ValueError, match=r"prompt_id is in \[1, 1099511627776\]; allowed .* 32 bits"):
        make(good, prompt_id=np.array([2**40, 1]))
    with pytest.raises(ValueError, match=r"kind has shape \(3,\); allowed is leading axis \(2,\)"):
        make(good, kind=jnp.zeros(3))


def test_ids_of_any_integers():
    for ids in (np.array([3, 2**32 - 1], np.uint32), np.array([3, 2**32 - 1]), np.array([3, -1])):
        signal = make_signal(np.zeros((2, 3), np.int8), prompt_id=ids)
        assert signal.aux["prompt_id"].dtype == jnp.int32
        np.testing.assert_array_equal(signal.aux["prompt_id"], [3, -1])


def test_copies_leave_the_original():
    signal = make_signal(jnp.zeros((1, 2)), old=jnp.ones(1))
    changed = signal.with_aux(new=jnp.zeros(1)).with_metrics(room__two_words=jnp.float32(3))
    changed = changed.replace(rates=binary(0.1, 0.2))
    assert set(changed.aux) == {"prompt_id", "old", "new"}
    assert set(signal.aux) == {"prompt_id", "old"}
    assert list(changed.metrics) == ["room/two_words"] and not signal.metrics
    assert signal.rates is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        signal.rewards = jnp.ones((1, 2))


def test_signals_are_pytrees_with_named_paths():
    signal = make_signal(jnp.zeros((2, 3)), hits=jnp.ones((2, 3), bool))
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(signal)}
    assert paths == {".rewards", ".mask", ".aux['hits']", ".aux['prompt_id']"}
    leaves, tree = jax.tree.flatten(signal)
    again = jax.tree.unflatten(tree, leaves)
    assert isinstance(again, Signal) and again.rewards is signal.rewards
    mapped = jax.vmap(lambda s: s.replace(rewards=s.rewards + 1))(
        jax.tree.map(lambda x: jnp.stack([x, x]), signal)
    )
    assert mapped.rewards.shape == (2, 2, 3) and mapped.advantages is None
    # Any object may stand for a leaf while jax looks at the structure.
    assert jax.tree.unflatten(tree, [object()] * len(leaves)).trajectories is None


def test_lengths_count_decisions():
    mask = jnp.array([[[True, True, False], [True, False, False]]])
    trajectories = Trajectories(
        prompts=jnp.zeros((1, 4)),
        actions=jnp.zeros((1, 2, 3), jnp.int32),
        outputs=jnp.zeros((1, 2, 3), jnp.int32),
        log_probs=jnp.zeros((1, 2, 3)),
        mask=mask,
    )
    np.testing.assert_array_equal(trajectories.lengths, [[2, 1]])
    assert trajectories.lengths.dtype == jnp.int32


def test_a_pytree_dataclass_keeps_its_defaults_and_methods():
    @pytree_dataclass
    class Pair:
        first: object
        second: object = 2

        def total(self):
            return self.first + self.second

    doubled = jax.tree.map(lambda x: 2 * x, Pair(1))
    assert (doubled.first, doubled.second, doubled.total()) == (2, 4, 6)
