"""Lp-Reg beside the policy objective: the dense loss, older copies, blocks of the vocabulary."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxreward.losses import low_probability as lp
from jaxreward.losses.low_probability_objective import low_probability_objective
from jaxreward.losses.policy import policy_objective
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies import lagged, language, tabular
from jaxreward.types import LinearScores, Policy, StepScores, Trajectories, make_signal

SHAPE, WIDTH, VOCABULARY = (3, 4, 5), 6, 11
OPEN = dict(clip_low=1.0, clip_high=9.0, normalize="token")


def linear_policy(hidden):
    """Logits are fixed hidden states times the parameters."""

    def linear(params, trajectories):
        taken = jnp.where(trajectories.mask, trajectories.actions, -1)
        return LinearScores(hidden, params, taken)

    def log_prob(params, trajectories):
        log_probs = jax.nn.log_softmax(hidden @ params)
        picked = jnp.take_along_axis(log_probs, trajectories.actions[..., None], -1)[..., 0]
        entropies = -jnp.sum(jnp.exp(log_probs) * log_probs, -1)
        keep = lambda x: jnp.where(trajectories.mask, x, 0.0)
        return StepScores(keep(picked), keep(entropies))

    return Policy(lambda key: None, None, log_prob, linear)


@pytest.fixture(scope="module")
def case():
    rng = np.random.default_rng(0)
    floats = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    hidden, params, older = (
        floats(*SHAPE, WIDTH), floats(WIDTH, VOCABULARY), floats(WIDTH, VOCABULARY)
    )  # fmt: skip
    policy = linear_policy(hidden)
    actions = jnp.asarray(rng.integers(0, VOCABULARY, SHAPE), jnp.int32)
    mask = jnp.asarray((rng.random(SHAPE) < 0.8) | (np.arange(SHAPE[-1]) == 0))
    trajectories = Trajectories(jnp.arange(3), actions, actions, jnp.zeros(SHAPE), mask)
    now = jax.jit(policy.log_prob)(params, trajectories).log_probs
    old = jnp.asarray(np.where(mask, now - np.float32(0.1), now))
    trajectories = Trajectories(jnp.arange(3), actions, actions, old, mask)
    signal = make_signal(floats(*SHAPE[:2]), trajectories=trajectories)
    return policy, params, older, hidden, signal.replace(advantages=floats(*SHAPE[:2]))


def dense(case, params, form, **options):
    """The loss of `losses.low_probability` from whole distributions."""
    policy, _, older, hidden, signal = case
    own = signal.trajectories
    log_probs = jax.nn.log_softmax(hidden @ params)
    proxy = lp.filtered_proxy(jax.nn.log_softmax(hidden @ older))
    scores = lp.proxy_scores(log_probs, proxy, own.actions)
    picked = policy.log_prob(params, own).log_probs
    advantages = jnp.broadcast_to(signal.advantages[..., None], SHAPE)
    return lp.low_probability_loss(
        picked, own.log_probs, advantages, own.mask, scores, form=form, **options
    )[0]


@pytest.mark.parametrize(
    "form, name", [("full_kl", "full_kl_coefficient"), ("k3_token", "k3_coefficient")]
)
def test_it_is_the_loss_of_whole_distributions(case, form, name):
    policy, params, older, _, signal = case
    with_copy = lagged.with_lagged(policy)
    objective = low_probability_objective(
        with_copy, **{name: 0.7}, share=0.5, block_rows=7, **OPEN
    )
    both = {"learned": params, "lagged": older}
    value, grads = jax.jit(jax.value_and_grad(lambda p: objective(p, signal)[0]))(both)
    whole = lambda p, coefficient: dense(case, p, form, share=0.5, coefficient=coefficient)
    expected = jax.jit(jax.value_and_grad(whole))
    value_of, grad_of = expected(params, 0.7)
    np.testing.assert_allclose(value, value_of, rtol=1e-5)
    np.testing.assert_allclose(grads["learned"], grad_of, atol=1e-6)
    np.testing.assert_array_equal(grads["lagged"], 0.0)
    plain, _ = expected(params, 0.0)
    assert abs(float(value) - float(plain)) > 1e-3  # something is protected here


def test_without_coefficients_it_is_the_policy_objective(case):
    policy, params, _, _, signal = case
    grad = lambda objective: jax.jit(jax.grad(lambda p: objective(p, signal)[0]))(params)
    own = grad(low_probability_objective(policy, share=0.5, **OPEN))
    np.testing.assert_allclose(own, grad(policy_objective(policy, **OPEN)), atol=1e-7)


def test_an_up_to_date_proxy_pulls_the_dropped_tail_only(case):
    """At equal parameters the gradient of the KL is the proxy's minus the policy's probability."""
    policy, params, _, hidden, signal = case
    objective = low_probability_objective(
        policy, full_kl_coefficient=1.0, min_p=0.3, share=1.0, **OPEN
    )
    plain = low_probability_objective(policy, min_p=0.3, share=1.0, **OPEN)
    own = signal.trajectories

    @jax.jit
    def by_hand(params):
        log_probs = jax.nn.log_softmax(hidden @ params)
        proxy = lp.filtered_proxy(log_probs, min_p=0.3)
        picked = jnp.take_along_axis(log_probs, own.actions[..., None], -1)[..., 0]
        taken = jnp.take_along_axis(proxy.log_probs, own.actions[..., None], -1)[..., 0]
        advantages = jnp.broadcast_to(signal.advantages[..., None], SHAPE)
        chosen = lp.rare_decisions(picked, taken, advantages, own.mask, share=1.0)
        slope = jnp.where(chosen[..., None], jnp.exp(log_probs) - jnp.exp(proxy.log_probs), 0.0)
        count = jnp.sum(own.mask, dtype=jnp.float32)
        return jnp.einsum("pgsd,pgsv->dv", hidden, slope) / count

    found = jax.jit(jax.grad(lambda p: objective(p, signal)[0] - plain(p, signal)[0]))(params)
    expected = by_hand(params)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_metrics_of_survival(case):
    policy, params, _, _, signal = case
    objective = low_probability_objective(policy, rare=0.05, **OPEN)
    _, metrics = jax.jit(objective)(params, signal)
    own = signal.trajectories
    mask = np.asarray(own.mask)
    everything = scipy.special.log_softmax(np.asarray(case[3]) @ np.asarray(params), axis=-1)
    taken = np.take_along_axis(everything, np.asarray(own.actions)[..., None], -1)[..., 0]
    log_probs = np.where(mask, taken, 0.0)
    kept = log_probs >= everything.max(-1) + np.log(0.02)
    expected = ((log_probs < np.log(0.05)) & kept)[mask].mean()
    np.testing.assert_allclose(metrics["low_probability/survival"], expected, rtol=1e-6)
    assert {"low_probability/protected", "low_probability/kept_mass"} <= set(metrics)


def test_a_language_model_never_holds_all_logits(key):
    """The gradient's temporary memory is below that of one array of logits, and hardly grows."""
    network = TransformerConfig(
        vocab_size=32768, width=16, layers=1, heads=2, kv_heads=1, intermediate=16
    )
    policy = lagged.with_lagged(
        language.language_policy(network, max_new_tokens=128, stop_tokens=(), pad_token=0)
    )
    objectives = (
        low_probability_objective(policy, full_kl_coefficient=1.0, block_rows=32, **OPEN),
        policy_objective(policy, **OPEN),
    )
    shape = (4, 4, 128)
    prompts = language.Prompts(jnp.ones((4, 2), jnp.int32), jnp.full((4,), 2, jnp.int32))
    tokens = jnp.ones(shape, jnp.int32)
    trajectories = Trajectories(prompts, tokens, tokens, jnp.zeros(shape), jnp.ones(shape, bool))
    signal = make_signal(jnp.ones((4, 4)), trajectories=trajectories)
    signal = signal.replace(advantages=-jnp.ones((4, 4)))
    params = jax.eval_shape(policy.init, key)
    compiled = [
        jax.jit(jax.grad(lambda p, own=own: own(p, signal)[0])).lower(params).compile()
        for own in objectives
    ]
    held, plain = (own.memory_analysis().temp_size_in_bytes for own in compiled)
    logits = 4 * np.prod(shape) * 32768
    assert held < 0.75 * logits and held - plain < 0.1 * logits


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(k3_coefficient=-1.0), "k3_coefficient = -1.0; allowed is >= 0"),
        (dict(full_kl_coefficient=-1.0), "full_kl_coefficient = -1.0"),
        (dict(rare=0.0), r"rare = 0.0; allowed is \(0, 1\]"),
        (dict(select="all"), "select = 'all'"),
    ],
)
def test_bad_options(case, options, message):
    with pytest.raises(ValueError, match=message):
        low_probability_objective(case[0], **options)


def test_a_policy_without_a_last_layer_is_refused():
    with pytest.raises(ValueError, match="policy.linear is None"):
        low_probability_objective(tabular.tabular_policy(2, 3))
