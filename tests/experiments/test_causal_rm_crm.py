"""Reward models from partial feedback, and of two that filter for each other: their data and arms."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import causal_rm as causal_config
from configs import crm as crm_config
from experiments import studies
from experiments.reward_studies import causal_risk, causal_rm, crm, feedback, toy_mlp
from jaxreward import channel
from jaxreward.losses import pointwise, preference
from jaxreward.training.config import finish


@pytest.mark.slow  # a minute of compiling together
@pytest.mark.parametrize("name, make", [("causal_rm", causal_rm.make), ("crm", crm.make)])
def test_smoke_configs_measure_what_they_claim(name, make, key):
    config = finish(importlib.import_module(f"configs.{name}").get_config("smoke"))
    studies.validate(config)
    check_claims(config, jax.jit(make(config).run)(key))


def check_claims(config, found):
    for claim in config.claims.values():
        for arm in (claim.better, claim.worse):
            assert np.isfinite(found[arm][claim.metric]), (claim.claim, arm)
    assert any(config.show[0] in own for own in found.values())


@pytest.mark.parametrize("module", [causal_config, crm_config])
def test_unknown_variants(module):
    with pytest.raises(ValueError, match="variant 'large'"):
        module.get_config("large")


# CausalRM (arXiv 2603.18736)


@pytest.fixture(scope="module", name="items")
def population():
    @jax.jit
    def draw():
        gold = feedback.make_gold(jax.random.key(1), 6, 8)
        return feedback.sample_items(jax.random.key(2), gold, 20_000, decay=0.5, mean=0.2)

    return draw()


def test_levels_are_even_and_liked_items_get_feedback_more_often(items):
    items = jax.device_get(items)
    share = np.bincount(items.level, minlength=5) / 20_000
    np.testing.assert_allclose(share, 0.2, atol=0.02)
    np.testing.assert_array_equal(items.liked, items.level > 2)
    assert float(items.propensity.mean()) == pytest.approx(0.2, rel=1e-5)
    by_level = np.array([items.propensity[items.level == level][0] for level in range(5)])
    np.testing.assert_allclose(by_level[1:] / by_level[:-1], 2.0, rtol=1e-5)


def test_feedback_is_flipped_by_class_and_hidden(items, key):
    observe = jax.jit(lambda items: feedback.observe(key, items, channel.binary(0.3, 0.1)))
    seen, items = jax.device_get((observe(items), items))
    np.testing.assert_array_equal(np.isnan(seen.labels), ~seen.observed)
    assert abs(seen.observed.mean() - 0.2) < 4 * (0.2 * 0.8 / 20_000) ** 0.5
    for liked, rate in ((0, 0.3), (1, 0.1)):
        own = seen.observed & (items.liked == liked)
        wrong = np.mean(seen.labels[own] != liked)
        assert abs(wrong - rate) < 4 * (rate * (1 - rate) / own.sum()) ** 0.5


@pytest.mark.parametrize("kind", causal_risk.PREDICTIONS)
def test_corrected_risks_are_unbiased_over_redraws(items, key, kind):
    noise = channel.binary(0.3, 0.1)
    logits = causal_risk.predictions(key, kind, items)
    ideal = jnp.mean(pointwise.cross_entropy(logits, items.liked))
    arms = {
        name: own for name, own in causal_risk.estimators(noise).items()
        if name in ("naive", "causal_ips", "causal_dr", "causal_dr_wrong_propensity")
    }  # fmt: skip

    @jax.jit
    def gaps(keys):
        def once(key):
            sample = causal_risk.draw_sample(key, items, logits, noise, 2000)
            return {n: causal_risk.risk(sample.logits, own(sample)) - ideal for n, own in arms.items()}

        return jax.lax.map(once, keys)

    for name, gap in gaps(jax.random.split(key, 200)).items():
        apart = abs(gap.mean()) / (gap.std() / 200**0.5)
        assert (apart < 4) == (name != "naive"), (name, apart)


# CRM (arXiv 2505.10597)


FIRST = jnp.array([2, -1.5, 0.3, 0.1, -0.2, 1])
SECOND = jnp.array([1.2, -0.8, -0.4, 0.9, 0.5, 1.6])


def chosen(arm, losses, keep):
    kept = crm.selected(losses, jnp.zeros(6, bool), arm, jnp.float32(keep), jnp.ones(2))
    return [np.flatnonzero(row).tolist() for row in kept]


def test_each_network_is_trained_on_what_the_other_selects():
    losses = preference.bradley_terry(jnp.stack([FIRST, SECOND]), jnp.ones((2, 6)))
    own, other = [0, 2, 5], [0, 3, 5]
    assert chosen(crm.Arm("self"), losses, 0.5) == [own, other]
    assert chosen(crm.Arm("peer"), losses, 0.5) == [other, own]
    everything = [list(range(6))] * 2
    assert chosen(crm.Arm("peer"), losses, 1.0) == chosen(crm.Arm(), losses, 0.5) == everything
    same = jnp.stack([losses[0], losses[0]])
    assert chosen(crm.Arm("peer"), same, 0.5) == chosen(crm.Arm("self"), same, 0.5) == [own, own]


def test_without_noise_peers_are_two_independent_networks(key):
    config = finish(crm_config.get_config("smoke"))
    config.study.arms = ("all", "self", "peer")
    config.study.settings = {"clean": dict(rate=0.0, by_margin=0.0)}
    found = jax.jit(crm.make(config).run)(key)
    for arm in ("self", "peer"):
        own = dict(found[f"clean/{arm}"])
        for name, value in found["clean/all"].items():
            np.testing.assert_array_equal(own[name], value, err_msg=f"{arm} {name}")


@pytest.mark.parametrize("by_margin", [0.0, 1.0])
def test_pairs_are_flipped_at_their_rate(key, by_margin):
    @jax.jit
    def draw(by_margin):
        gold = toy_mlp.init(key, (4, 8, 8, 1))
        pairs = crm.make_pairs(key, gold, 4000, 0.3, by_margin)
        score = lambda x: toy_mlp.apply(gold, x)[:, 0]
        return pairs, score(pairs.first) < score(pairs.second)

    pairs, wrong = jax.device_get(draw(by_margin))
    clear = pairs.gap > 1e-5  # beyond rounding
    np.testing.assert_array_equal(pairs.flipped[clear], wrong[clear])
    assert abs(pairs.flipped.mean() - 0.3) < 4 * (0.21 / 4000) ** 0.5
    close = pairs.gap < np.median(pairs.gap)
    more = pairs.flipped[close].mean() - pairs.flipped[~close].mean()
    assert abs(more - 0.3 * by_margin) < 0.06  # .45 against .15
