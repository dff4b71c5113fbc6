"""Tests of jaxreward.transforms.noise."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward import channel as channels
from jaxreward.transforms import noise, sources
from jaxreward.transforms.noise import output_id
from jaxreward.types import make_signal

KEY = jax.random.key(11)
P, G = 400, 50


@functools.lru_cache(maxsize=None)
def jitted(transform):
    return jax.jit(transform.update)


def run(transform, signal, key=KEY):
    return jitted(transform)(key, signal, transform.init())[0]


def half_right(**aux):
    """Half of the samples of every prompt are right."""
    return make_signal(jnp.asarray(np.tile(np.arange(G) % 2, (P, 1)), jnp.float32), **aux)


def within(share, rate, count):
    """Whether a share of `count` draws is within four standard errors of `rate`."""
    return abs(share - rate) <= 4 * np.sqrt(max(rate * (1 - rate), 1e-9) / count)


def flips(signal, where=slice(None)):
    """Empirical false-positive and false-negative rates, and how many items each has."""
    true = np.asarray(signal.aux["true_rewards"])[where]
    seen = np.asarray(signal.rewards)[where]
    wrong, right = true == 0, true == 1
    return (seen[wrong].mean(), wrong.sum()), (1 - seen[right].mean(), right.sum())


# Rates


@pytest.mark.parametrize(("fp", "fn"), [(0.1, 0.2), (0.02, 0.0), (0.3, 0.5), (0.0, 0.01)])
def test_flip_rates(fp, fn):
    observed = run(noise.class_conditional(sources.constant(fp, fn)), half_right())
    for (share, count), rate in zip(flips(observed), (fp, fn)):
        assert within(share, rate, count)


def test_symmetric_flips():
    for share, count in flips(run(noise.symmetric(0.15), half_right())):
        assert within(share, 0.15, count)


def test_rates_by_prompt_and_by_output():
    kind = jnp.arange(P) % 3
    source = sources.by_index("kind", [0.05, 0.3, 0.1], [0.05, 0.3, 0.5])
    observed = run(noise.class_conditional(source), half_right(kind=kind))
    for i, pair in enumerate(((0.05, 0.05), (0.3, 0.3), (0.1, 0.5))):
        for (share, count), rate in zip(flips(observed, np.asarray(kind) == i), pair):
            assert within(share, rate, count)
    form = jnp.asarray(np.tile(np.arange(G) // 2 % 2, (P, 1)))
    source = sources.by_index("form", [0.2, 0.2], [0.05, 0.45], per="sample")
    observed = run(noise.class_conditional(source), half_right(form=form))
    for i, pair in enumerate(((0.2, 0.05), (0.2, 0.45))):
        for (share, count), rate in zip(flips(observed, np.asarray(form) == i), pair):
            assert within(share, rate, count)


def test_flips_are_independent_between_samples_and_prompts():
    observed = run(noise.symmetric(0.3), half_right())
    flipped = np.asarray(observed.rewards != observed.aux["true_rewards"], float)
    variance = 0.3 * 0.7
    by_prompt = flipped.mean(axis=1).var(ddof=1) / (variance / G)
    by_sample = flipped.mean(axis=0).var(ddof=1) / (variance / P)
    assert abs(by_prompt - 1) < 4 * np.sqrt(2 / (P - 1))
    assert abs(by_sample - 1) < 4 * np.sqrt(2 / (G - 1))


def test_levels_pass_through_the_channel():
    matrix = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.0, 0.25, 0.75]])
    values = (-1.0, 0.5, 2.0)
    true = jnp.asarray(np.array(values, np.float32)[np.arange(P * G).reshape(P, G) % 3])
    observed = run(noise.levels(channels.from_matrix(matrix), values), make_signal(true + 0.01))
    for i, row in enumerate(matrix):
        seen = np.asarray(observed.rewards)[np.isclose(true, values[i])]
        for value, probability in zip(values, row):
            assert within((seen == np.float32(value)).mean(), probability, seen.size)


def test_levels_by_prompt():
    both = np.stack([np.eye(3), np.eye(3)[[1, 2, 0]]])
    true = jnp.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    observed = run(noise.levels(channels.from_matrix(both), (0.0, 1.0, 2.0)), make_signal(true))
    np.testing.assert_array_equal(observed.rewards, [[0, 1, 2], [1, 2, 0]])


def test_gaussian_moments():
    observed = run(noise.gaussian(0.7), half_right())
    added = np.asarray(observed.rewards - observed.aux["true_rewards"]).ravel()
    count = added.size
    assert abs(added.mean()) < 4 * 0.7 / np.sqrt(count)
    assert abs(added.std() / 0.7 - 1) < 4 / np.sqrt(2 * count)
    silent = run(noise.gaussian(0.0), half_right())
    np.testing.assert_array_equal(silent.rewards, half_right().rewards)


def test_a_pattern_is_always_accepted():
    hits = jnp.asarray(np.tile(np.arange(G) % 3 == 0, (P, 1)))
    observed = run(noise.hackable("magic"), half_right(magic=hits))
    np.testing.assert_array_equal(observed.rewards, np.where(hits, 1, half_right().rewards))
    np.testing.assert_array_equal(observed.aux["true_rewards"], half_right().rewards)
    dense = make_signal(jnp.zeros((1, 2, 3)), magic=jnp.array([[True, False]]))
    np.testing.assert_array_equal(
        run(noise.hackable("magic"), dense).rewards, [[[1, 1, 1], [0, 0, 0]]]
    )


def test_random_rewards_know_nothing():
    observed = run(noise.random_reward(0.3), half_right())
    (wrong, count), (missed, _) = flips(observed)
    assert within(wrong, 0.3, count) and within(missed, 0.7, count)


def test_dropped_rewards_are_missing():
    observed = run(noise.drop(0.25), half_right())
    assert within(1 - np.asarray(observed.mask).mean(), 0.25, P * G)
    np.testing.assert_array_equal(observed.rewards, half_right().rewards)
    assert not np.any(run(noise.drop(1.0), half_right()).mask)
    assert np.all(run(noise.drop(0.0), half_right()).mask)


# What a flip is decided by


def shuffled(signal, order):
    """The signal with its prompts in another order."""
    return jax.tree.map(lambda leaf: leaf[order], signal)


DRAWING = {
    "draw": noise.class_conditional(sources.constant(0.2, 0.3)),
    "prompt": noise.class_conditional(sources.constant(0.2, 0.3), fixed_by="prompt", seed=5),
    "output": noise.class_conditional(sources.constant(0.2, 0.3), fixed_by="output", seed=5),
    "levels": noise.levels(channels.symmetric(0.4, 3), (0.0, 0.5, 1.0)),
    "gaussian": noise.gaussian(1.0),
    "random": noise.random_reward(0.5),
    "drop": noise.drop(0.5),
}


@pytest.mark.parametrize("name", DRAWING)
def test_draws_belong_to_prompts_wherever_they_stand(name):
    ids = jnp.asarray(np.random.default_rng(0).permutation(1000)[:P], jnp.int32)
    outputs = jnp.asarray(np.random.default_rng(1).integers(0, 7, (P, G)), jnp.uint32)
    signal = half_right(prompt_id=ids, output_id=outputs)
    order = jnp.asarray(np.random.default_rng(2).permutation(P))
    here = shuffled(run(DRAWING[name], signal), order)
    there = run(DRAWING[name], shuffled(signal, order))
    np.testing.assert_array_equal(here.rewards, there.rewards)
    np.testing.assert_array_equal(here.mask, there.mask)
    part = run(DRAWING[name], jax.tree.map(lambda leaf: leaf[100:200], signal))
    whole = run(DRAWING[name], signal)
    np.testing.assert_array_equal(part.rewards, whole.rewards[100:200])
    np.testing.assert_array_equal(part.mask, whole.mask[100:200])


@pytest.mark.parametrize("name", DRAWING)
def test_the_key_decides_unless_the_noise_is_fixed(name):
    signal = half_right(output_id=jnp.asarray(np.arange(P * G).reshape(P, G), jnp.uint32))
    results = [run(DRAWING[name], signal, jax.random.key(seed)) for seed in (0, 0, 1)]
    same = [
        np.array_equal(results[0].rewards, other.rewards)
        and np.array_equal(results[0].mask, other.mask)
        for other in results[1:]
    ]
    assert same == [True, name in ("prompt", "output")]


def test_a_wrong_label_stays_wrong():
    """Fixed by prompt: one draw for the group, at all steps, whatever the answers are."""
    many = 4000
    transform = noise.class_conditional(
        sources.constant(0.2, 0.3), fixed_by="prompt", seed=jnp.int32(5)
    )
    zeros, ones = (
        np.asarray(run(transform, make_signal(jnp.full((many, 4), value))).rewards)
        for value in (0.0, 1.0)
    )
    for seen in (zeros, ones):
        assert np.all(seen == seen[:, :1])
    always, never = zeros[:, 0] == 1, ones[:, 0] == 0
    assert within(always.mean(), 0.2, many) and within(never.mean(), 0.3, many)
    assert not np.any(always & never)
    later = run(transform, make_signal(jnp.zeros((many, 4))), jax.random.key(99))
    np.testing.assert_array_equal(later.rewards, zeros)
    other = noise.class_conditional(sources.constant(0.2, 0.3), fixed_by="prompt", seed=6)
    assert not np.array_equal(run(other, make_signal(jnp.zeros((many, 4)))).rewards, zeros)


def test_the_same_output_gets_the_same_verdict():
    outputs = np.random.default_rng(0).integers(0, 20, (P, G))
    transform = DRAWING["output"]
    signal = make_signal(jnp.zeros((P, G)), output_id=jnp.asarray(outputs, jnp.uint32))
    seen = np.asarray(run(transform, signal).rewards)
    for prompt in range(20):
        for output in range(20):
            verdicts = seen[prompt][outputs[prompt] == output]
            assert verdicts.size == 0 or np.ptp(verdicts) == 0
    # One draw for each output of each prompt: no more information than that.
    first = np.array([row[ids == i][0] for row, ids in zip(seen, outputs) for i in set(ids)])
    assert within(first.mean(), 0.2, first.size)
    # The same output of another prompt is judged anew.
    one = make_signal(jnp.zeros((P, 1)), output_id=jnp.full((P, 1), 3, jnp.uint32))
    assert 0 < np.asarray(run(transform, one).rewards).mean() < 1


def test_dense_rewards_are_flipped_step_by_step():
    true = jnp.asarray(np.tile(np.arange(6) % 2, (P, 10, 1)), jnp.float32)
    observed = run(noise.class_conditional(sources.constant(0.1, 0.4)), make_signal(true))
    for (share, count), rate in zip(flips(observed), (0.1, 0.4)):
        assert within(share, rate, count)
    steps = np.asarray(observed.rewards != true).reshape(-1, 6).mean(axis=0)
    assert all(within(share, rate, P * 10) for share, rate in zip(steps, [0.1, 0.4] * 3))


# True rewards, masks


@pytest.mark.parametrize("name", DRAWING)
def test_clean_rewards_are_kept_once_and_missing_stays_missing(name):
    mask = jnp.asarray(np.arange(P * G).reshape(P, G) % 5 != 0)
    signal = half_right(output_id=jnp.zeros((P, G), jnp.uint32)).replace(mask=mask)
    once = run(DRAWING[name], signal)
    np.testing.assert_array_equal(
        once.aux["true_rewards"], np.where(mask, signal.rewards, np.nan)
    )
    assert not np.any(once.mask & ~mask)
    twice = run(DRAWING[name], once, jax.random.key(77))
    np.testing.assert_array_equal(twice.aux["true_rewards"], once.aux["true_rewards"])
    hostile = signal.replace(rewards=jnp.where(mask, signal.rewards, jnp.nan))
    np.testing.assert_array_equal(
        np.where(once.mask, run(DRAWING[name], hostile).rewards, 0),
        np.where(once.mask, once.rewards, 0),
    )


def test_the_oracle_sees_true_rewards():
    signal = half_right().replace(mask=jnp.asarray(np.arange(P * G).reshape(P, G) % 5 != 0))
    noisy = run(noise.drop(0.5), run(noise.symmetric(0.4), signal))
    oracle = run(noise.use_true_rewards(), noisy)
    np.testing.assert_array_equal(oracle.mask, signal.mask)
    np.testing.assert_array_equal(
        np.where(oracle.mask, oracle.rewards, 0), np.where(signal.mask, signal.rewards, 0)
    )


# Hash of outputs


def test_output_ids_differ_and_ignore_padding():
    tokens = jnp.asarray(list(itertools.product(range(40), repeat=3)), jnp.int32)[None]
    ids = np.asarray(output_id(tokens, jnp.ones(tokens.shape, bool)))
    assert ids.dtype == np.uint32 and len(np.unique(ids)) == 40**3
    short = jnp.asarray([[[3, 0, 0], [3, 7, 0], [3, 0, 0], [3, 0, 9]]])
    lengths = jnp.array([[1, 2, 2, 1]])
    mask = jnp.arange(3)[None, None] < lengths[..., None]
    ids = np.asarray(output_id(short, mask))[0]
    assert ids[0] == ids[3] and len(set(ids.tolist())) == 3  # 3, 3 7, 3 0, 3
    wide = jnp.pad(short, ((0, 0), (0, 0), (0, 5)), constant_values=8)
    np.testing.assert_array_equal(
        output_id(wide, jnp.pad(mask, ((0, 0), (0, 0), (0, 5))))[0], ids
    )


def test_long_outputs_of_a_large_vocabulary_differ():
    tokens = np.random.default_rng(0).integers(0, 150_000, (1, 2000, 24))
    tokens[0, 1000:] = tokens[0, :1000]
    tokens[0, np.arange(1000, 2000), np.arange(1000) % 24] += 1  # one token differs
    ids = np.asarray(output_id(jnp.asarray(tokens, jnp.int32), jnp.ones(tokens.shape, bool)))
    assert len(np.unique(ids)) == 2000  # the chance of any collision is 5e-4


# Wrong input, declarations


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="fixed_by = 'batch'; allowed are 'draw', 'prompt', 'outp"):
        noise.symmetric(0.1, fixed_by="batch")
    for make in (noise.symmetric, noise.random_reward, noise.drop):
        for rate in (-0.1, 1.2, float("nan")):
            with pytest.raises(ValueError, match="is not a probability"):
                make(rate)
    with pytest.raises(ValueError, match="std = -1.0; allowed is >= 0"):
        noise.gaussian(-1.0)
    with pytest.raises(ValueError, match="std = inf; allowed is >= 0 and finite"):
        noise.gaussian(float("inf"))
    with pytest.raises(ValueError, match="values has 2 entries; allowed are 3"):
        noise.levels(channels.symmetric(0.1, 3), (0.0, 1.0))
    with pytest.raises(ValueError, match="sum to 1"):
        noise.levels(channels.Channel(jnp.full((2, 2), 0.7)), (0.0, 1.0))


def test_numbers_may_be_traced():
    def observe(rate):
        signal = make_signal(jnp.zeros((4, 50)))
        parts = (noise.symmetric(rate), noise.gaussian(rate), noise.random_reward(rate))
        after = [part.update(KEY, signal, ())[0].rewards for part in parts]
        return jnp.stack(after), noise.drop(rate).update(KEY, signal, ())[0].mask

    rewards, mask = jax.jit(jax.vmap(observe))(jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(rewards[0], 0)
    np.testing.assert_array_equal(rewards[1, 0], 1)
    np.testing.assert_array_equal(rewards[1, 2], 1)
    assert np.all(mask[0]) and not np.any(mask[1])


def test_declarations():
    for transform in DRAWING.values():
        spec = transform.spec
        assert spec.role == "noise" and "aux/true_rewards" in spec.writes
    assert "aux/output_id" in DRAWING["output"].spec.reads
    assert "aux/output_id" not in DRAWING["prompt"].spec.reads
    assert DRAWING["drop"].spec.reward_map == "none" and "mask" in DRAWING["drop"].spec.writes
