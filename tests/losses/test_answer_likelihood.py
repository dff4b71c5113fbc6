"""The answer's term of the loss: the gradient of a likelihood reward, by exact enumeration."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.losses.answer_likelihood import policy_and_answer_objective
from jaxreward.transforms import advantage, base, likelihood
from jaxreward.types import Policy, StepScores, Trajectories, make_signal

REASONINGS, WORDS = 3, 4
ANSWER = (1, 3)


class Params(NamedTuple):
    """Logits of the reasoning, and of each answer token given the reasoning."""

    reasoning: jax.Array
    answer: jax.Array


def policy():
    """One token of reasoning, then the answer's tokens, each given the reasoning alone."""

    def log_prob(params, trajectories):
        tokens = trajectories.actions
        first = jax.nn.log_softmax(params.reasoning)
        rest = jax.nn.log_softmax(params.answer, axis=-1)
        z = tokens[..., 0]
        scores = [first[z]]
        scores += [rest[z, t, tokens[..., t + 1]] for t in range(tokens.shape[-1] - 1)]
        scores = jnp.where(trajectories.mask, jnp.stack(scores, axis=-1), 0.0)
        return StepScores(scores, jnp.zeros_like(scores))

    return Policy(None, None, log_prob)


def expected_reward(params, kind):
    """E over the reasoning of R, exactly."""
    p = jax.nn.softmax(params.reasoning)
    logs = jax.nn.log_softmax(params.answer, axis=-1)
    logs = jnp.stack([logs[:, t, token] for t, token in enumerate(ANSWER)], axis=-1)
    return jnp.sum(p * likelihood.answer_reward(logs, jnp.ones(logs.shape, bool), kind))


def group_of(params, reasonings):
    """The signal of one group that wrote these reasonings."""
    z = reasonings[None, :, None]
    own = Trajectories(None, z, z, jnp.zeros(z.shape), jnp.ones(z.shape, bool))
    answer = jnp.broadcast_to(jnp.asarray(ANSWER, jnp.int32), (1, z.shape[1], len(ANSWER)))
    tokens = jnp.concatenate([z, answer], axis=-1)
    spliced = Trajectories(None, tokens, tokens, jnp.zeros(tokens.shape), jnp.ones(tokens.shape, bool))
    scores = policy().log_prob(params, spliced).log_probs
    inside = jnp.ones(tokens.shape, bool).at[..., 0].set(False)
    return make_signal(
        jnp.zeros((1, z.shape[1])), trajectories=own, spliced=spliced,
        answer_log_probs=jnp.where(inside, scores, 0.0), answer_mask=inside,
        answer_valid=jnp.ones((1, z.shape[1])), answer_weights=jnp.zeros(tokens.shape),
    )  # fmt: skip


@pytest.fixture
def params():
    rng = np.random.default_rng(1)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return Params(normal(REASONINGS), normal(REASONINGS, len(ANSWER), WORDS))


LOSS = policy_and_answer_objective(
    policy(), objective="reinforce", normalize="constant", max_length=1, old="current"
)


def mean_gradient(params, chain):
    """Minus the loss gradient, averaged over every pair of reasonings with its probability."""


    @jax.jit
    def weighted(params, pair):
        signal, _ = chain.update(jax.random.key(0), group_of(params, pair), chain.init())
        gradient = jax.grad(lambda own: LOSS(own, signal)[0])(params)
        p = jax.nn.softmax(params.reasoning)
        return jax.tree.map(lambda g: -p[pair[0]] * p[pair[1]] * g, gradient)

    pairs = itertools.product(np.arange(REASONINGS, dtype=np.int32), repeat=2)
    parts = [weighted(params, jnp.asarray(pair)) for pair in pairs]
    return jax.tree.map(lambda *gradients: np.sum(gradients, axis=0), *parts)


@pytest.mark.parametrize("kind", likelihood.KINDS)
def test_both_parts_are_the_gradient_of_the_expected_reward(params, kind):
    reward = likelihood.reference_likelihood(kind, own_gradient=True)
    found = mean_gradient(params, base.chain(reward, advantage.rloo()))
    exact = jax.jit(jax.grad(expected_reward), static_argnums=1)(params, kind)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, exact)


def test_jepo_is_the_gradient_of_its_group_reward(params):
    """Of E[log((P_1 + P_2) / 2)] over pairs, a half of it: the loss is a mean over samples."""

    def expected(params):
        p = jax.nn.softmax(params.reasoning)
        logs = jax.nn.log_softmax(params.answer, axis=-1)
        total = sum(logs[:, t, token] for t, token in enumerate(ANSWER))
        pair = jnp.logaddexp(total[:, None], total[None, :]) - jnp.log(2.0)
        return jnp.sum(p[:, None] * p[None, :] * pair) / 2

    found = mean_gradient(params, base.chain(likelihood.jepo_advantage()))
    exact = jax.jit(jax.grad(expected))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, exact)


def test_without_weights_the_answer_is_not_trained(params):
    chain = base.chain(likelihood.reference_likelihood("mean_prob"), advantage.rloo())
    found = mean_gradient(params, chain)
    assert not np.any(found.answer) and np.any(found.reasoning)


def test_a_negative_coefficient_is_refused():
    with pytest.raises(ValueError, match="answer_coefficient = -1"):
        policy_and_answer_objective(policy(), answer_coefficient=-1)
