"""The reference answer in place of a response's own."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxreward.policies.language import Prompts
from jaxreward.rewards import likelihoods
from jaxreward.types import Trajectories

SEPARATOR, END = 9, 1
splice = jax.jit(likelihoods.splice, static_argnums=3, static_argnames="once")


def spliced(responses, answer, **options):
    width = max(map(len, responses))
    tokens = jnp.asarray([[row + [0] * (width - len(row)) for row in responses]], jnp.int32)
    mask = jnp.asarray([[[True] * len(row) + [False] * (width - len(row)) for row in responses]])
    prompts = Prompts(jnp.asarray([[5, 6]], jnp.int32), jnp.asarray([2], jnp.int32))
    own = Trajectories(prompts, tokens, tokens, jnp.zeros(tokens.shape), mask)
    lengths = jnp.asarray([len(answer)], jnp.int32)
    padded = jnp.asarray([answer + [7]], jnp.int32)  # what follows an answer does not count
    found = splice(own, padded, lengths, SEPARATOR, **options)
    return jax.tree.map(np.asarray, found)


def test_what_follows_the_last_separator_is_replaced():
    found = spliced([[4, 9, 3, 9, 2, 2, 1], [9, 1], [4, 4, 4]], [8, 1])
    tokens, mask = found.trajectories.actions[0], found.trajectories.mask[0]
    np.testing.assert_array_equal(tokens[0, :6], [4, 9, 3, 9, 8, 1])
    np.testing.assert_array_equal(tokens[1, :3], [9, 8, 1])
    np.testing.assert_array_equal(np.sum(mask, -1), [6, 3, 0])
    np.testing.assert_array_equal(found.valid, [[True, True, False]])
    np.testing.assert_array_equal(np.sum(found.answer_mask, -1), [[2, 2, 0]])
    assert np.all(found.answer_mask[0, 0, 4:6])
    assert not np.any(tokens[2])


def test_the_answer_fits_behind_a_full_response():
    found = spliced([[4, 4, 9]], [8, 8, 8, 1])
    np.testing.assert_array_equal(found.trajectories.actions[0, 0, :7], [4, 4, 9, 8, 8, 8, 1])


def test_a_separator_in_the_padding_does_not_count():
    found = spliced([[4, 9, 2], [4]], [8, 1])
    np.testing.assert_array_equal(found.valid, [[True, False]])


def test_once():
    found = spliced([[9, 9], [4, 9]], [8, 1], once=True)
    np.testing.assert_array_equal(found.valid, [[False, True]])
