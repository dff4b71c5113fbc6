"""The language policy: what is sampled, what is recorded, and what scoring says of it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.networks.transformer import Transformer
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies import language
from jaxreward.policies.language import Prompts, language_policy

SIZES = dict(vocab_size=7, width=16, layers=2, heads=4, kv_heads=2, intermediate=16)
CONFIG = TransformerConfig(**SIZES)
PAD, STOP, STEPS = 0, 2, 5
PROMPTS = Prompts(
    jnp.asarray([[3, 4, 5, 6], [5, 6, 0, 0], [6, 3, 4, 0]], jnp.int32),
    jnp.asarray([4, 2, 3], jnp.int32),
)


def make(config=CONFIG, **settings):
    defaults = dict(max_new_tokens=STEPS, stop_tokens=(STOP,), pad_token=PAD)
    return language_policy(config, **{**defaults, **settings})


@functools.cache
def params(config=CONFIG, seed=0):
    """Initial parameters with a sharper head, so that filters and greedy choices matter."""
    leaves = jax.jit(make(config).init)(jax.random.key(seed))
    name = "embed" if config.tie_embeddings else "head"
    return {**leaves, name: jax.tree.map(lambda x: jnp.asarray(2 * np.asarray(x)), leaves[name])}


@functools.cache
def compiled(config=CONFIG, **settings):
    policy = make(config, **settings)
    return jax.jit(policy.sample, static_argnums=3), jax.jit(policy.log_prob)


@jax.jit
def full_forward(weights, tokens, lengths):
    network, variables = Transformer(CONFIG), {"params": weights}
    hidden, _ = network.apply(variables, tokens, lengths, method=Transformer.encode)
    return jax.nn.log_softmax(hidden[0] @ weights["head"], axis=-1)


def next_log_probs(tokens, weights):
    """Log-probabilities after each token of a sequence, by one full forward without cache."""
    padded = jnp.asarray([list(tokens) + [1] * (12 - len(tokens))], jnp.int32)
    lengths = jnp.full((1,), len(tokens), jnp.int32)
    return np.asarray(full_forward(weights, padded, lengths))[: len(tokens)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.6}, {"temperature": 1.5, "top_k": 3, "top_p": 0.9}, {"temperature": 0}],
    ids=["plain", "tempered", "filtered", "greedy"],
)
def test_scoring_repeats_what_sampling_recorded(settings):
    sample, log_prob = compiled(**settings)
    drawn = sample(params(), jax.random.key(1), PROMPTS, 16)
    scores = log_prob(params(), drawn)
    np.testing.assert_allclose(scores.log_probs, drawn.log_probs, atol=5e-6)
    assert drawn.log_probs.dtype == scores.log_probs.dtype == scores.entropies.dtype == jnp.float32
    taken = np.asarray(drawn.mask)
    assert np.all(np.asarray(drawn.log_probs)[taken] < 0)
    for part in (drawn.log_probs, scores.log_probs, scores.entropies):
        np.testing.assert_array_equal(np.asarray(part)[~taken], 0)
    assert np.all(np.asarray(scores.entropies)[taken] >= 0)


def test_masks_cover_the_stop_token_and_padding_follows():
    sample, _ = compiled()
    drawn = sample(params(), jax.random.key(2), PROMPTS, 16)
    np.testing.assert_array_equal(drawn.actions, drawn.outputs)
    lengths, tokens = np.asarray(drawn.lengths).ravel(), np.asarray(drawn.actions)
    assert (lengths < STEPS).any() and (lengths == STEPS).any()
    for row, length in zip(tokens.reshape(-1, STEPS), lengths):
        assert STOP not in row[: length - 1]
        assert np.all(row[length:] == PAD)
        assert length == STEPS or row[length - 1] == STOP
    steps = np.arange(STEPS) < np.asarray(drawn.lengths)[:, :, None]
    np.testing.assert_array_equal(drawn.mask, steps)


def test_sampling_ends_once_all_responses_have(monkeypatch):
    """With several stop tokens, of which the first comes at once, and with none."""
    calls, original = [], language._stops

    def counted(token, decoding):
        jax.debug.callback(lambda _: calls.append(1), token)
        return original(token, decoding)

    monkeypatch.setattr(language, "_stops", counted)
    for stop_tokens, expected in [(tuple(range(7)), 1), ((), STEPS)]:
        calls.clear()
        sample = jax.jit(make(stop_tokens=stop_tokens).sample, static_argnums=3)
        drawn = jax.device_get(sample(params(), jax.random.key(0), PROMPTS, 4))
        jax.effects_barrier()
        assert len(calls) == expected
        np.testing.assert_array_equal(drawn.lengths, expected)
        np.testing.assert_array_equal(drawn.actions[:, :, expected:], PAD)


def test_longer_limits_only_append():
    """Noise is drawn by step: a response does not depend on how many may follow."""
    short = jax.device_get(compiled()[0](params(), jax.random.key(3), PROMPTS, 4))
    long = jax.device_get(compiled(max_new_tokens=8)[0](params(), jax.random.key(3), PROMPTS, 4))
    np.testing.assert_array_equal(long.actions[:, :, :STEPS], short.actions)
    one = compiled(max_new_tokens=1)
    single = one[0](params(), jax.random.key(3), PROMPTS, 4)
    np.testing.assert_array_equal(single.actions, short.actions[:, :, :1])
    scores = one[1](params(), single)
    np.testing.assert_allclose(scores.log_probs, single.log_probs, atol=2e-6)


def test_greedy_is_the_chain_of_most_probable_tokens():
    drawn = jax.device_get(compiled(temperature=0)[0](params(), jax.random.key(0), PROMPTS, 2))
    prompts = jax.device_get(PROMPTS)
    for p in range(3):
        sequence = list(prompts.tokens[p, : prompts.lengths[p]])
        for step in range(int(drawn.lengths[p, 0])):
            expected = next_log_probs(sequence, params())[-1]
            token = int(expected.argmax())
            assert token == drawn.actions[p, 0, step]
            np.testing.assert_allclose(drawn.log_probs[p, 0, step], expected[token], atol=1e-5)
            sequence.append(token)
        np.testing.assert_array_equal(drawn.actions[p, 0], drawn.actions[p, 1])
    assert len({tuple(row) for row in drawn.actions[:, 0]}) > 1


def test_greedy_and_type_of_the_temperature():
    for zero in (0, 0.0, np.float32(0), jnp.zeros(())):
        assert language.Decoding(1, (), 0, zero).greedy
    assert not language.Decoding(1, (), 0, np.float32(0.5)).greedy


def test_a_group_is_scored_as_separate_prompts():
    sample, log_prob = compiled()
    drawn = sample(params(), jax.random.key(4), PROMPTS, 4)
    together = log_prob(params(), drawn)
    responses = {
        name: jnp.asarray(np.reshape(getattr(drawn, name), (12, 1, STEPS)))
        for name in ("actions", "outputs", "log_probs", "mask")
    }
    prompts = jax.tree.map(lambda x: np.repeat(x, 4, axis=0), PROMPTS)
    apart = log_prob(params(), type(drawn)(prompts=prompts, **responses))
    for found, expected in zip(apart, together):
        np.testing.assert_allclose(np.reshape(found, (3, 4, STEPS)), expected, atol=2e-6)


def test_prompt_padding_changes_no_sample_and_no_score():
    sample, log_prob = compiled()
    tokens = np.pad(PROMPTS.tokens, ((0, 0), (0, 3)), constant_values=5)
    tokens[1, 2:] = 6
    padded = Prompts(jnp.asarray(tokens), PROMPTS.lengths)
    expected = sample(params(), jax.random.key(5), PROMPTS, 4)
    found = sample(params(), jax.random.key(5), padded, 4)
    np.testing.assert_array_equal(found.actions, expected.actions)
    np.testing.assert_allclose(
        log_prob(params(), found).log_probs, log_prob(params(), expected).log_probs, atol=2e-6
    )


@functools.cache
def exact_distribution():
    """Probability of each response of at most 2 tokens to the first prompt, by full forwards."""
    prompt, out = list(np.asarray(PROMPTS.tokens[0])), {}
    first = np.exp(next_log_probs(prompt, params())[-1])
    for a, b in itertools.product(range(7), repeat=2):
        if a == STOP:
            out[(a, PAD)] = first[a]
        else:
            out[(a, b)] = first[a] * np.exp(next_log_probs(prompt + [a], params())[-1])[b]
    return out


def test_frequencies_are_the_exact_probabilities():
    count = 20_000
    one = jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[:1]), PROMPTS)
    drawn = jax.device_get(compiled(max_new_tokens=2)[0](params(), jax.random.key(6), one, count))
    exact = exact_distribution()
    assert sum(exact.values()) == pytest.approx(1, abs=1e-5)
    codes = drawn.actions[0] @ [7, 1]
    frequency = np.bincount(codes, minlength=49) / count
    for (a, b), probability in exact.items():
        error = np.sqrt(probability * (1 - probability) / count)
        assert abs(frequency[7 * a + b] - probability) <= 4.5 * error + 1e-6
    logs = np.log([exact[tuple(pair)] for pair in drawn.actions[0, :50]])
    np.testing.assert_allclose(drawn.log_probs[0, :50].sum(-1), logs, atol=1e-5)


def test_entropies_are_those_of_the_full_forward():
    sample, log_prob = compiled(temperature=0.6)
    drawn = jax.device_get(sample(params(), jax.random.key(7), PROMPTS, 16))
    scores = jax.device_get(log_prob(params(), drawn))
    sequence = np.concatenate([np.asarray(PROMPTS.tokens)[0], drawn.actions[0, 1]])
    logits = next_log_probs(sequence, params())[3 : 3 + STEPS] / 0.6
    log_probs = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    expected = -np.sum(np.exp(log_probs) * log_probs, axis=-1)
    taken = drawn.mask[0, 1]
    np.testing.assert_allclose(scores.entropies[0, 1], np.where(taken, expected, 0), atol=1e-5)


def test_filters_score_other_policies_tokens_without_nan():
    _, log_prob = compiled(temperature=1.5, top_k=3, top_p=0.9)
    drawn = compiled()[0](params(), jax.random.key(8), PROMPTS, 16)
    scores = log_prob(params(), drawn)
    assert np.isneginf(scores.log_probs).any() and np.isfinite(scores.entropies).all()
    policy = make(temperature=1.5, top_k=3, top_p=0.9)

    def loss(p):
        ratio = jnp.exp(policy.log_prob(p, drawn).log_probs - drawn.log_probs)
        return jnp.sum(jnp.where(drawn.mask, ratio, 0.0))

    gradient = jax.jit(jax.grad(loss))(params())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_vmap_over_parameters_and_temperatures_equals_a_loop():
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), params(), params(seed=1))
    members = stacked, jax.random.split(jax.random.key(9), 2), jnp.asarray([0.7, 1.3])

    def run(weights, key, heat):
        policy = make(temperature=heat)
        drawn = policy.sample(weights, key, PROMPTS, 4)
        return drawn, policy.log_prob(weights, drawn)

    both = jax.jit(lambda *all_: (jax.vmap(run)(*all_), jax.lax.map(lambda own: run(*own), all_)))
    (found, found_scores), (drawn, scores) = both(*members)
    np.testing.assert_array_equal(found.actions, drawn.actions)
    np.testing.assert_array_equal(found.mask, drawn.mask)
    np.testing.assert_allclose(found.log_probs, drawn.log_probs, atol=2e-6)
    np.testing.assert_allclose(found_scores.log_probs, scores.log_probs, atol=2e-6)
    np.testing.assert_allclose(found_scores.entropies, scores.entropies, atol=2e-6)


def test_bfloat16_activations_give_float32_log_probs_close_by():
    config = TransformerConfig(**SIZES, dtype="bfloat16", tie_embeddings=True)
    exact = TransformerConfig(**SIZES, tie_embeddings=True)
    sample, log_prob = compiled(config)
    drawn = sample(params(config), jax.random.key(11), PROMPTS, 4)
    scores = log_prob(params(config), drawn)
    assert drawn.log_probs.dtype == scores.log_probs.dtype == jnp.float32
    # two roundings of a logit of size 10 or less: 2^-9 each, and a margin for the layers
    np.testing.assert_allclose(scores.log_probs, drawn.log_probs, atol=0.1)
    expected = compiled(exact)[1](params(config), drawn)
    np.testing.assert_allclose(scores.log_probs, expected.log_probs, atol=0.3)


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"pad_token": 7}, "pad_token"),
        ({"pad_token": -1}, "pad_token"),
        ({"stop_tokens": (2, 9)}, "stop_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
    ],
)
def test_bad_settings_are_refused(settings, name):
    with pytest.raises(ValueError, match=f"{name} = .*allowed"):
        make(**settings)


def test_an_empty_group_is_refused():
    with pytest.raises(ValueError, match="group_size = 0; allowed"):
        make().sample(params(), jax.random.key(0), PROMPTS, 0)
    for shape in ((0, 3), (2, 0)):
        nothing = Prompts(jnp.zeros(shape, jnp.int32), jnp.ones(shape[0], jnp.int32))
        with pytest.raises(ValueError, match=r"prompts.tokens has shape .* allowed are axes >= 1"):
            make().sample(params(), jax.random.key(0), nothing, 2)
