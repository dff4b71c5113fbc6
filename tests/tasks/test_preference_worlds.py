"""Preferences with a known gold: every dial shows the rate that it says, alone and with others.

Margins are 4.5 standard errors.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxreward.tasks import datasets, preference_records
from jaxreward.tasks import preference_worlds as worlds
from jaxreward.tasks.preference_worlds import PreferenceSpec

COUNT = 4000


@functools.lru_cache(maxsize=None)
def made(**dials):
    """The world and many judgements, as numpy arrays."""
    spec = PreferenceSpec(**dials)
    world = worlds.make_world(jax.random.key(1), spec)
    return jax.tree.map(np.asarray, (world, worlds.draw(jax.random.key(2), spec, world, COUNT)))


def lead(values):
    return values[:, 0] - values[:, 1] if values.shape[1] == 2 else values[:, 0]


def wrong(judgements):
    return judgements.target != (lead(judgements.gold) > 0)


def check_rate(found, expected):
    """Of independent events whose probabilities are known; both `[N]`, or one probability."""
    expected = np.broadcast_to(expected, found.shape)
    error = np.sqrt(np.sum(expected * (1 - expected))) + 1e-9
    assert abs(np.sum(found) - np.sum(expected)) < 4.5 * error + 1e-6 * len(found)


def check_mean(values, expected):
    error = values.std(axis=0) / np.sqrt(len(values))
    assert np.all(np.abs(values.mean(axis=0) - expected) < 4.5 * error + 1e-6)


KINDS = [
    dict(items=items, judged=judged)
    for items in worlds.ITEMS for judged in worlds.JUDGED
]  # fmt: skip


# At rest


@pytest.mark.parametrize("kind", KINDS)
def test_dials_at_rest_give_clean_labels(kind):
    _, found = made(**kind)
    assert not np.any(wrong(found)) and np.all(found.observed) and np.all(found.propensity == 1)
    np.testing.assert_allclose(found.taste, found.gold, atol=1e-5)
    np.testing.assert_array_equal(found.argument, found.sound)
    np.testing.assert_array_equal(found.subject, np.arange(COUNT))
    assert found.items.shape == (COUNT, 2 if kind["judged"] == "pairs" else 1, 16)
    check_rate(found.target, 0.5)


@pytest.mark.parametrize("items", worlds.ITEMS)
def test_aspects_and_gold_are_standardised(items):
    world, found = made(items=items, domains=3, domain_difference=1.0)
    one = found.aspects[:, 0]
    check_mean(one, 0.0)
    check_mean((one[:, :, None] * one[:, None, :]).reshape(COUNT, -1), np.eye(4).ravel())
    check_mean(found.gold[:, 0], 0.0)
    check_mean(found.gold[:, 0] ** 2, 1.0)
    np.testing.assert_allclose(np.linalg.norm(world.gold, axis=1), 1.0, rtol=1e-5)
    expected = np.einsum("bra,ba->br", found.aspects, world.gold[found.domain])
    np.testing.assert_allclose(found.gold, expected, atol=1e-5)


def test_the_gold_is_a_function_of_the_items():
    world, found = made()
    aspects = np.tanh(1.5 * found.items[..., :-1] @ world.readout)
    scale = np.sqrt(np.mean(np.tanh(1.5 * stats.norm.ppf((np.arange(1e5) + 0.5) / 1e5)) ** 2))
    np.testing.assert_allclose(found.aspects, aspects / scale, atol=1e-3)
    world, found = made(items="tokens", domains=3)
    tokens = found.items[5, 1]
    words = tokens[tokens >= 4] - 4
    assert tokens[0] == found.domain[5] + 1 and len(words) == np.sum(tokens > 0) - 1
    total = world.readout[words].sum(axis=0) / np.sqrt(len(words))
    np.testing.assert_allclose(found.aspects[5, 1], total, atol=1e-4)
    assert found.items.max() == worlds.vocabulary(PreferenceSpec(domains=3)) - 1


def test_the_sound_aspect_speaks_most():
    world, found = made()
    adds = world.gold[found.domain] * (found.aspects[:, 0] - found.aspects[:, 1])
    adds = adds * np.sign(lead(found.gold))[:, None]
    np.testing.assert_array_equal(found.sound, adds.argmax(axis=1))


# One dial


def test_flips():
    _, found = made(flips=0.25)
    far = np.abs(lead(found.gold)) > 1
    for part in (far, ~far):
        check_rate(wrong(found)[part], 0.25)


def test_a_dial_changes_nothing_else():
    (_, clean), (_, noisy) = made(), made(flips=0.25)
    for name in ("items", "gold", "taste", "annotator", "domain", "sound"):
        np.testing.assert_array_equal(getattr(clean, name), getattr(noisy, name))


def test_annotators_of_different_reliability():
    world, found = made(flips=0.2, annotators=5, annotator_spread=1.0)
    np.testing.assert_allclose(np.sort(world.flips), [0, 0.1, 0.2, 0.3, 0.4], atol=1e-6)
    for number, rate in enumerate(world.flips):
        check_rate(found.annotator == number, 0.2)
        check_rate(wrong(found)[found.annotator == number], rate)


def test_skill_errs_on_close_pairs():
    _, found = made(noise=0.7)
    chance = stats.norm.cdf(-np.abs(lead(found.gold)) / 0.7)
    close = np.abs(lead(found.gold)) < 0.5
    for part in (close, ~close):
        check_rate(wrong(found)[part], chance[part])
    assert chance[close].mean() > 4 * chance[~close].mean()


@pytest.mark.parametrize("kind", KINDS)
def test_leaning(kind):
    _, found = made(leaning=0.6, noise=0.5, **kind)
    check_rate(found.target, stats.norm.cdf((lead(found.gold) + 0.6) / 0.5))
    assert found.target.mean() > 0.6


def length(found):
    """Of mean 0 and variance 1."""
    if found.items.dtype == np.float32:
        return found.items[..., -1]
    counts = np.sum(found.items > 0, axis=-1) - 1.0  # 8 to 15 words
    return (counts - 11.5) / np.sqrt((8**2 - 1) / 12)


@pytest.mark.parametrize("kind", KINDS)
def test_length_bias(kind):
    _, found = made(length_bias=0.8, noise=0.5, **kind)
    check_mean(length(found)[:, 0], 0.0)
    check_mean(length(found)[:, 0] ** 2, 1.0)
    perceived = lead(found.gold) + 0.8 * lead(length(found))
    check_rate(found.target, stats.norm.cdf(perceived / 0.5))
    assert np.corrcoef(found.target, lead(length(found)))[0, 1] > 0.2


def test_ties():
    _, found = made(tie_zone=0.5)
    np.testing.assert_array_equal(found.target == 0.5, np.abs(lead(found.gold)) < 0.5)
    _, found = made(tie_zone=0.5, noise=0.5)
    low, high = (stats.norm.cdf((edge - lead(found.gold)) / 0.5) for edge in (-0.5, 0.5))
    check_rate(found.target == 0.5, high - low)


def test_tastes():
    world, found = made(annotators=6, groups=2, taste=1.0, domains=3)
    for number in range(6):
        np.testing.assert_allclose(world.tastes[number], world.tastes[number % 2], rtol=1e-6)
    cosines = np.einsum("kca,ca->kc", world.tastes, world.gold)
    expected = cosines[found.annotator, found.domain]
    check_mean(lead(found.gold) * lead(found.taste) / 2 - expected, 0.0)
    np.testing.assert_array_equal(found.target, lead(found.taste) > 0)
    apart = lambda **dials: 1 - np.einsum("kca,ca->kc", made(annotators=40, **dials)[0].tastes,
                                          made(annotators=40, **dials)[0].gold).mean()  # fmt: skip
    assert apart() < 1e-6 < apart(taste_within=0.3) < apart(taste_within=1.0)


@pytest.mark.parametrize("kind", [{}, {"judged": "singles"}, {"judged": "singles", "feeling": "liking"}])
def test_feedback_rises_with_feeling(kind):
    _, found = made(observed=0.2, feedback_decay=1 / 16, **kind)
    assert found.propensity.mean() == pytest.approx(0.2, rel=1e-4)
    check_rate(found.observed, found.propensity)
    felt = np.tanh(np.abs(lead(found.taste)))
    if "feeling" in kind:
        felt = 0.5 + 0.5 * np.tanh(lead(found.taste))
    slope = np.polyfit(felt, np.log(found.propensity), 1)[0]
    assert slope == pytest.approx(np.log(16), rel=1e-3)
    np.testing.assert_array_equal(np.isnan(found.target), ~found.observed)
    np.testing.assert_array_equal(found.argument == -1, ~found.observed)


def test_feedback_by_chance_alone():
    _, found = made(observed=0.3)
    np.testing.assert_allclose(found.propensity, 0.3, rtol=1e-5)
    check_rate(found.observed, 0.3)


def test_right_for_the_wrong_reason():
    _, found = made(wrong_critiques=0.3, flips=0.2)
    right = ~wrong(found)
    check_rate((found.argument != found.sound)[right], 0.3)
    assert np.all(found.argument[~right] != found.sound[~right])
    shift = (found.argument - found.sound)[right & (found.argument != found.sound)] % 4
    for other in (1, 2, 3):
        check_rate(shift == other, 1 / 3)


def test_domains():
    world, found = made(domains=3, domain_difference=1.0)
    for number in range(3):
        check_rate(found.domain == number, 1 / 3)
    assert np.min(world.gold @ world.gold.T) < 0.9
    same = made(domains=3)[0].gold
    np.testing.assert_allclose(same, np.broadcast_to(same[:1], same.shape), atol=1e-6)


def test_several_judgements_of_a_subject():
    _, found = made(annotators=5, judgements=3, flips=0.2)
    grid = lambda values: values.reshape(COUNT, 3, *values.shape[1:])
    for name in ("items", "gold", "subject", "domain"):
        own = grid(getattr(found, name))
        np.testing.assert_array_equal(own, np.broadcast_to(own[:, :1], own.shape))
    assert np.all(np.sort(np.diff(grid(found.annotator)) % 5, axis=1) == 1)
    several = grid(wrong(found)).astype(float)
    check_mean((several[:, 0] - 0.2) * (several[:, 1] - 0.2), 0.0)  # independent


# All dials


@pytest.mark.parametrize("kind", KINDS)
def test_all_dials_together(kind):
    dials = dict(
        domains=3, domain_difference=1.0, annotators=6, groups=2, taste=0.7, taste_within=0.2,
        noise=0.6, length_bias=0.5, leaning=0.3, flips=0.15, annotator_spread=0.8, tie_zone=0.4,
        observed=0.5, feedback_decay=0.3, wrong_critiques=0.3,
    )  # fmt: skip
    world, found = made(**dials, **kind)
    seen, of = found.observed, lambda values: values[found.annotator]
    perceived = lead(found.taste) + of(world.length_bias) * lead(length(found)) + of(world.leaning)
    first, second = (stats.norm.cdf((side * perceived - 0.4) / of(world.noise)) for side in (1, -1))
    flips = of(world.flips)
    check_rate(seen, found.propensity)
    check_rate(found.target[seen] == 0.5, (1 - first - second)[seen])
    for number in range(6):  # of every annotator
        own = seen & (found.annotator == number)
        check_rate(found.target[own] == 1, ((1 - flips) * first + flips * second)[own])
    right = seen & ~wrong(found)
    check_rate((found.argument != found.sound)[right], 0.3)


def test_dials_can_be_swept(key):
    def rate(flips):
        spec = PreferenceSpec(flips=flips)
        found = worlds.draw(key, spec, worlds.make_world(key, spec), 500)
        return jnp.mean((found.target != worlds.gold_target(found)).astype(jnp.float32))

    rates = jax.jit(jax.vmap(rate))(jnp.array([0.0, 0.2, 0.4]))
    assert float(rates[0]) == 0.0
    error = np.sqrt(np.array([0.16, 0.24]) / 500)
    assert np.all(np.abs(np.asarray(rates[1:]) - [0.2, 0.4]) < 4.5 * error)


# For training


def test_arrays_for_training():
    arrays = lambda **dials: jax.tree.map(jnp.asarray, made(**dials)[1])
    found = arrays(observed=0.5, annotators=5)
    pairs = worlds.to_preferences(found)
    np.testing.assert_array_equal(pairs.weights, found.observed)
    np.testing.assert_array_equal(worlds.gold_target(found), lead(found.gold) > 0)
    np.testing.assert_array_equal(pairs.first, found.items[:, 0])
    np.testing.assert_array_equal(pairs.annotator, found.annotator)
    with pytest.raises(ValueError, match="judged = 'pairs'; allowed here is 'singles'"):
        worlds.to_feedback(found)
    found = arrays(judged="singles", tie_zone=0.3, observed=0.5)
    feedback = worlds.to_feedback(found)
    np.testing.assert_array_equal(feedback.observed, found.observed & (found.target != 0.5))
    np.testing.assert_array_equal(np.isnan(feedback.labels), ~feedback.observed)
    with pytest.raises(ValueError, match="judged = 'singles'"):
        worlds.to_preferences(found)


SIZES = (("train", 12), ("test", 5))


def test_splits():
    spec = PreferenceSpec(sizes=SIZES, flips=0.2)
    found = worlds.generate(spec)
    assert {name: len(part.target) for name, part in found.items()} == dict(SIZES)
    more = worlds.generate(spec._replace(sizes=SIZES[1:]))
    jax.tree.map(np.testing.assert_array_equal, more["test"], found["test"])
    assert not np.isin(found["train"].items, found["test"].items).any()
    other = worlds.generate(spec._replace(seed=1))["test"]
    assert not np.array_equal(other.items, found["test"].items)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(items="graphs"), "items = 'graphs'; allowed are 'vectors', 'tokens'"),
        (dict(judged="triples"), "judged = 'triples'"),
        (dict(feeling="liking"), "feeling = 'liking'; allowed are 'strength'"),
        (dict(size=4), "size = 4; allowed is >= 5"),
        (dict(items="tokens", words=4), "words = 4; allowed is > aspects = 4"),
        (dict(judgements=2), "judgements = 2; allowed is <= annotators = 1"),
        (dict(groups=3), "groups = 3"),
        (dict(sizes=(("train", 0),)), "sizes = "),
        (dict(sizes=(("dev", 5),)), "sizes = "),
        (dict(noise=-1.0), "noise = -1.0; allowed is >= 0"),
        (dict(leaning=np.inf), "leaning = inf"),
        (dict(flips=1.5), "flips = 1.5"),
        (dict(flips=0.6, annotator_spread=1.0), "flips = 0.6; allowed is <= 0.5 with this spread"),
        (dict(observed=0.0), "observed = 0.0"),
        (dict(feedback_decay=2.0), "feedback_decay = 2.0"),
        (dict(aspects=1, wrong_critiques=0.5), "wrong_critiques = 0.5; allowed is 0 with one"),
    ],
)
def test_impossible_specs(changes, message):
    with pytest.raises(ValueError, match=message):
        worlds.check_spec(PreferenceSpec(**changes))


# Builder


@pytest.mark.parametrize("kind", KINDS)
def test_the_data_set_gives_back_what_was_drawn(tmp_path, kind):
    spec = PreferenceSpec(**kind, observed=0.5, sizes=SIZES)
    dataset = datasets.prepare("preference_pairs", tmp_path, spec=spec)
    assert dataset.splits == dict(SIZES) and dataset.forms == (kind["judged"],)
    for split, expected in worlds.generate(spec).items():
        found = preference_records.read_judgements(dataset, split)
        jax.tree.map(np.testing.assert_array_equal, found, expected)
        assert all(a.dtype == b.dtype for a, b in zip(found, expected))
    with pytest.raises(ValueError, match="split = 'dev' .*allowed are train, test"):
        preference_records.read_judgements(dataset, "dev")
    with pytest.raises(ValueError, match="dataset = 'random_calculation/digits'"):
        other = dataset._replace(name="random_calculation/digits")
        preference_records.read_judgements(other, "train")


def test_every_named_config_is_possible():
    from jaxreward.tasks import preference_pairs

    configs = preference_pairs.Builder.BUILDER_CONFIGS
    assert len(configs) == 20
    for config in configs:
        worlds.check_spec(config.spec)
