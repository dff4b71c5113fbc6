"""Supervised loss: against a plain computation, in value, gradient and mask."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.policies.supervised import supervised_loss
from jaxreward.networks.transformer import Transformer
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies.language import language_policy

CONFIG = TransformerConfig(
    vocab_size=9, width=8, layers=1, heads=2, kv_heads=1, intermediate=12
)


class Sequences(NamedTuple):
    tokens: jax.Array
    loss_mask: jax.Array
    lengths: jax.Array


LENGTHS = jnp.asarray([6, 4, 5], jnp.int32)
TOKENS = jnp.asarray([[1, 2, 3, 4, 5, 6], [7, 8, 1, 2, 0, 0], [3, 5, 7, 1, 2, 0]], jnp.int32)
MASK = jnp.asarray(
    [[1, 0, 1, 1, 0, 1], [0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]], bool
)  # the first column never counts, the last row has nothing to predict


@pytest.fixture(scope="module")
def params():
    policy = language_policy(CONFIG, max_new_tokens=2, stop_tokens=(), pad_token=0)
    return jax.jit(policy.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def graded():
    return jax.jit(jax.value_and_grad(supervised_loss(CONFIG), has_aux=True))


@jax.jit
def plain_log_probs(params, tokens, lengths):
    network = Transformer(CONFIG)
    variables = {"params": params}
    hidden, _ = network.apply(variables, tokens, lengths, method=Transformer.encode)
    log_probs = jax.nn.log_softmax(hidden[:, :-1] @ params["head"], axis=-1)
    return jnp.take_along_axis(log_probs, tokens[:, 1:, None], axis=-1)[..., 0]


def test_value_and_gradient_are_the_plain_cross_entropy(params, graded):
    def plain(params):
        chosen = plain_log_probs(params, TOKENS, LENGTHS)
        return -jnp.sum(jnp.where(MASK[:, 1:], chosen, 0.0)) / 5

    (value, metrics), gradient = graded(params, Sequences(TOKENS, MASK, LENGTHS))
    expected, expected_gradient = jax.jit(jax.value_and_grad(plain))(params)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert metrics["supervised/loss"] == value and value.dtype == jnp.float32
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        gradient,
        expected_gradient,
    )


def test_tokens_after_the_last_predicted_one_and_padding_change_nothing(params, graded):
    expected = graded(params, Sequences(TOKENS, MASK, LENGTHS))
    junk = np.array(TOKENS)
    junk[1, 4:], junk[2] = 6, 4
    found = graded(params, Sequences(jnp.asarray(junk), MASK, LENGTHS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_nothing_to_predict_is_zero_without_gradient(params, graded):
    mask = jnp.zeros_like(MASK).at[:, 0].set(True)
    (value, metrics), gradient = graded(params, Sequences(TOKENS, mask, LENGTHS))
    assert value == 0 and metrics["supervised/accuracy"] == 0
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))


def test_accuracy_is_the_share_of_tokens_surer_than_one_half(params, graded):
    bold = {**params, "head": params["head"] * 6}
    (_, metrics), _ = graded(bold, Sequences(TOKENS, MASK, LENGTHS))
    sure = np.exp(plain_log_probs(bold, TOKENS, LENGTHS))[np.asarray(MASK[:, 1:])] > 0.5
    assert metrics["supervised/accuracy"] == pytest.approx(sure.mean())
    assert len(sure) == 5


def test_descent_learns_the_sequences(params, graded):
    step = jax.jit(
        lambda p: jax.tree.map(
            lambda x, g: x - 0.5 * g, p, graded(p, Sequences(TOKENS, MASK, LENGTHS))[1]
        )
    )
    learned = params
    for _ in range(150):
        learned = step(learned)
    (value, metrics), _ = graded(learned, Sequences(TOKENS, MASK, LENGTHS))
    assert value < 0.2 and metrics["supervised/accuracy"] == 1.0
