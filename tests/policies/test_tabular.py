"""Tabular policies: distributions, samples and scores agree with each other and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.policies import tabular

LOGITS = jnp.asarray([[0.5, -0.2, 0.1, 0.0], [2.0, 0.0, -1.0, 0.0]])


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64))
    return weights / weights.sum(-1, keepdims=True)


def linear_params(seed=0, features=3, actions=4):
    rng = np.random.default_rng(seed)
    return {
        "weights": jnp.asarray(rng.normal(size=(features, actions)), jnp.float32),
        "bias": jnp.asarray(rng.normal(size=actions), jnp.float32),
    }


CASES = {
    "table": (tabular.tabular_policy(2, 4), tabular.table_log_distribution, LOGITS, [1, 0, 1]),
    "linear": (
        tabular.linear_softmax_policy(3, 4),
        tabular.linear_log_distribution,
        linear_params(),
        [[1.0, 0.0, -1.0], [0.5, 2.0, 0.0], [0.0, 0.0, 0.0]],
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    policy, log_distribution, params, prompts = CASES[request.param]
    return policy, log_distribution, params, jnp.asarray(prompts)


def test_init_is_uniform_and_of_the_right_shape(case, key):
    policy, log_distribution, params, prompts = case
    start = policy.init(key)
    assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, params)
    np.testing.assert_allclose(jnp.exp(log_distribution(start, prompts)), 0.25, rtol=1e-6)


def test_table_distribution_is_the_softmax_of_the_row():
    found = jnp.exp(tabular.table_log_distribution(LOGITS, jnp.asarray([1, 0, 1])))
    np.testing.assert_allclose(found, softmax(LOGITS)[[1, 0, 1]], rtol=1e-6)


def test_linear_distribution_is_the_softmax_of_the_scores():
    _, log_distribution, params, prompts = CASES["linear"]
    scores = np.asarray(prompts) @ np.asarray(params["weights"]) + np.asarray(params["bias"])
    found = jnp.exp(log_distribution(params, jnp.asarray(prompts)))
    np.testing.assert_allclose(found, softmax(scores), rtol=1e-5)


def test_samples_have_the_shapes_and_the_scores_that_were_recorded(case, key):
    policy, log_distribution, params, prompts = case
    trajectories = policy.sample(params, key, prompts, 5)
    assert trajectories.actions.shape == (3, 5) and trajectories.actions.dtype == jnp.int32
    assert trajectories.log_probs.shape == trajectories.mask.shape == (3, 5, 1)
    assert np.all(trajectories.mask)
    scores = policy.log_prob(params, trajectories)
    np.testing.assert_array_equal(scores.log_probs, trajectories.log_probs)
    log_p = np.asarray(log_distribution(params, prompts))
    by_hand = np.take_along_axis(log_p, np.asarray(trajectories.actions), 1)
    np.testing.assert_array_equal(scores.log_probs[..., 0], by_hand)
    entropy = -np.sum(np.exp(log_p) * log_p, -1)
    np.testing.assert_allclose(scores.entropies[..., 0], np.tile(entropy[:, None], 5), rtol=1e-5)


def test_frequencies_are_the_probabilities(case, key):
    policy, log_distribution, params, prompts = case
    draws = 20_000
    actions = np.asarray(policy.sample(params, key, prompts, draws).actions)
    p = np.exp(np.asarray(log_distribution(params, prompts)))
    for row, expected in zip(actions, p):
        found = np.bincount(row, minlength=4) / draws
        error = np.sqrt(expected * (1 - expected) / draws)
        assert np.all(np.abs(found - expected) < 4.5 * error)


def test_the_key_decides(case, key):
    policy, _, params, prompts = case
    first, again, other = (
        policy.sample(params, k, prompts, 16).actions for k in (key, key, jax.random.key(1))
    )
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_gradient_of_the_log_probability_is_the_score(key):
    """`d log pi(a | x) / d logits_x = onehot(a) - pi(x)`, nothing for other prompts."""
    policy = tabular.tabular_policy(2, 4)
    trajectories = policy.sample(LOGITS, key, jnp.asarray([1]), 1)
    grad = jax.grad(lambda p: policy.log_prob(p, trajectories).log_probs.sum())(LOGITS)
    expected = np.eye(4)[trajectories.actions[0, 0]] - softmax(LOGITS)[1]
    np.testing.assert_allclose(grad[1], expected, atol=1e-6)
    np.testing.assert_array_equal(grad[0], np.zeros(4))


def test_masked_decisions_score_zero(case, key):
    policy, _, params, prompts = case
    trajectories = policy.sample(params, key, prompts, 2)
    trajectories = type(trajectories)(
        trajectories.prompts,
        trajectories.actions,
        trajectories.outputs,
        trajectories.log_probs,
        trajectories.mask.at[0, 0].set(False),
    )
    scores = policy.log_prob(params, trajectories)
    assert scores.log_probs[0, 0, 0] == 0 and scores.entropies[0, 0, 0] == 0
    assert scores.log_probs[0, 1, 0] != 0


def test_it_maps_over_parameters_and_keys(key):
    policy = tabular.tabular_policy(2, 4)
    many = jnp.stack([LOGITS, 2.0 * LOGITS])
    keys = jax.random.split(key, 2)
    prompts = jnp.asarray([0, 1])
    sample = jax.jit(jax.vmap(lambda p, k: policy.sample(p, k, prompts, 3)))
    mapped = sample(many, keys)
    single = policy.sample(many[1], keys[1], prompts, 3)
    np.testing.assert_array_equal(mapped.actions[1], single.actions)


@pytest.mark.parametrize(
    ("make", "sizes", "message"),
    [
        (tabular.tabular_policy, (0, 4), "num_prompts = 0; allowed is >= 1"),
        (tabular.tabular_policy, (2, 1), "num_actions = 1; allowed is >= 2"),
        (tabular.linear_softmax_policy, (0, 4), "num_features = 0; allowed is >= 1"),
        (tabular.linear_softmax_policy, (3, 1), "num_actions = 1; allowed is >= 2"),
    ],
)
def test_bad_sizes(make, sizes, message):
    with pytest.raises(ValueError, match=message):
        make(*sizes)
