"""Pair losses: numbers of the papers, label noise, symmetries, reductions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward import channel as channels
from jaxreward.label_estimates import annotator_posterior
from jaxreward.losses import preference, reduction

LINE = jnp.linspace(-6.0, 6.0, 25)


def array(*values):
    return jnp.asarray(values, jnp.float32)


def at(term, difference, target=1.0, **settings):
    return float(term(array(difference), array(target), **settings)[0])


def slope(term, difference, target=1.0, **settings):
    loss = lambda d: term(d, array(target), **settings)[0]
    return float(jax.grad(loss)(array(difference))[0])


# Bradley-Terry and win-tie (arXiv 2512.22170)


@pytest.mark.parametrize("d, value", [(0, 3.048587), (1, 2.126928), (-2, 5.006715)])
def test_bradley_terry_with_a_margin(d, value):
    assert at(preference.bradley_terry, d, margin=3) == pytest.approx(value, abs=2e-6)
    assert at(preference.bradley_terry, -d, 0.0, margin=3) == pytest.approx(value, abs=2e-6)


def test_smoothing_with_a_margin():
    target = preference.smoothed_target(array(1.0), 0.1)
    value = preference.bradley_terry(array(1.0), target, margin=3.0)[0]
    assert float(value) == pytest.approx(2.316050, abs=2e-6)


@pytest.mark.parametrize(
    "settings, values",
    [
        ({}, (0.693147, 0.813262, 1.126928)),
        ({"tie_weight": 2}, (1.386294, 1.626523, 2.253856)),
        ({"tie_weight": 2, "margin": 3}, (6.097175, 6.145078, 6.319977)),
    ],
)
def test_ties_of_the_paper_and_of_the_released_code(settings, values):
    found = [at(preference.win_tie, d, 0.5, **settings) for d in (0.0, 1.0, -2.0)]
    np.testing.assert_allclose(found, values, atol=3e-6)


def test_a_margin_inside_a_tie_is_a_dead_zone():
    flat = slope(preference.win_tie, 1.0, 0.5, margin=3, tie_weight=2)
    pull = slope(preference.win_tie, 1.0, 0.5, tie_weight=2)
    np.testing.assert_allclose([flat, pull], [0.101217, 0.462117], atol=1e-6)


def test_a_batch_of_wins_and_ties():
    margins = array(1.0, 2.0, 0.5) - array(0.0, 1.5, 0.8)
    passes = jnp.array([True, True, True]), jnp.array([False, True, False])
    target, weights = preference.pass_fail_targets(*passes)
    np.testing.assert_array_equal(target, [1.0, 0.5, 1.0])
    paper = reduction.mean(preference.win_tie(margins, target), weights)
    released = reduction.mean(
        preference.win_tie(margins, target, margin=3.0, tie_weight=2.0), weights
    )
    np.testing.assert_allclose([paper, released], [0.630565, 3.857262], atol=2e-6)


def test_two_fails_are_left_out_unless_asked_for():
    first, second = jnp.array([True, True, False, False]), jnp.array([True, False, True, False])
    target, weights = preference.pass_fail_targets(first, second)
    np.testing.assert_array_equal(target, [0.5, 1.0, 0.0, 0.5])
    np.testing.assert_array_equal(weights, [1.0, 1.0, 1.0, 0.0])
    _, weights = preference.pass_fail_targets(first, second, lose_tie=True)
    np.testing.assert_array_equal(weights, np.ones(4))


# Label noise


def test_numbers_of_the_label_noise_family():
    z, one = array(2.0), array(1.0)
    found = [
        preference.bradley_terry(z, one),
        preference.bradley_terry(z, preference.smoothed_target(one, 0.2)),
        preference.bradley_terry(z, channels.correct(one, channels.symmetric(0.2))),
        preference.sigmoid(z, one),
        preference.ropo(z, one, alpha=14),
    ]
    expected = [0.126928, 0.526928, -0.539739, 0.119203, 0.446947]
    np.testing.assert_allclose(np.ravel(found), expected, atol=2e-6)


@pytest.mark.parametrize("false_positive, false_negative", [(0.2, 0.2), (0.1, 0.35)])
def test_a_corrected_target_is_unbiased_under_the_channel(false_positive, false_negative):
    channel = channels.binary(false_positive, false_negative)
    losses = [
        preference.bradley_terry(LINE, channels.correct(jnp.full_like(LINE, seen), channel))
        for seen in (0.0, 1.0)
    ]
    for true, p in ((0.0, false_positive), (1.0, 1 - false_negative)):
        clean = preference.bradley_terry(LINE, jnp.full_like(LINE, true))
        np.testing.assert_allclose((1 - p) * losses[0] + p * losses[1], clean, atol=2e-5)


def test_a_smoothed_target_is_least_at_the_log_odds():
    rate = 0.2
    grad = slope(
        lambda d, t: preference.bradley_terry(d, preference.smoothed_target(t, rate)),
        np.log((1 - rate) / rate),
    )
    assert abs(grad) < 1e-6


@pytest.mark.parametrize("term", [preference.sigmoid, preference.ramp, preference.unhinged])
def test_symmetric_terms_keep_their_order_under_any_flips(term):
    ones = jnp.ones_like(LINE)
    both = term(LINE, ones) + term(-LINE, ones)
    np.testing.assert_allclose(both, np.full(LINE.shape, float(both[0])), atol=1e-5)
    clean = term(LINE, ones)
    noisy = 0.7 * clean + 0.3 * term(LINE, 1 - ones)
    np.testing.assert_allclose(noisy - noisy[0], 0.4 * (clean - clean[0]), atol=1e-5)


def test_the_logarithm_is_not_symmetric():
    both = preference.bradley_terry(LINE, jnp.ones_like(LINE)) + preference.bradley_terry(
        -LINE, jnp.ones_like(LINE)
    )
    assert float(jnp.max(both) - jnp.min(both)) > 4


def test_ramp_and_hinge():
    found = [at(preference.ramp, d) for d in (-2.0, 0.0, 0.5, 2.0)]
    np.testing.assert_allclose(found, [1.0, 0.5, 0.25, 0.0])
    found = [at(preference.hinge, d, margin=2) for d in (-1.0, 1.5, 3.0)]
    np.testing.assert_allclose(found, [3.0, 0.5, 0.0])


def test_identity_preference_stays_at_its_margin():
    assert at(preference.identity_preference, 5.0, tau=0.1) == pytest.approx(0.0, abs=1e-10)
    assert at(preference.identity_preference, 1.0, tau=0.1) == pytest.approx(16.0)
    assert slope(preference.identity_preference, 6.0, tau=0.1) > 0
    assert slope(preference.identity_preference, 0.0, 0.5, tau=0.1) == pytest.approx(0.0)


def test_ropo_weights():
    scale = 4 * 14 / 15**2
    np.testing.assert_allclose([scale, 14 * scale], [0.24889, 3.48444], atol=1e-5)
    expected = scale * np.log1p(np.exp(3.0)) + 14 * scale / (1 + np.exp(-3.0))
    assert at(preference.ropo, -3.0) == pytest.approx(expected, rel=1e-6)


def test_posterior_as_target():
    margins = array(1.5, -0.5, -3.0)
    target = annotator_posterior(margins, array(0.8, 0.8, 0.8))
    np.testing.assert_allclose(target, [0.9472, 0.7081, 0.1661], atol=1e-4)
    slopes = jax.grad(lambda d: jnp.sum(preference.bradley_terry(d, target)))(margins)
    np.testing.assert_allclose(slopes, jax.nn.sigmoid(margins) - target, atol=1e-6)


def test_thurstone_is_the_probit():
    found = at(lambda d, t: preference.thurstone(d, t, array(2.0)), 1.0)
    assert found == pytest.approx(-np.log(0.6914625), abs=1e-5)


@pytest.mark.parametrize(
    "term",
    [
        preference.bradley_terry,
        preference.win_tie,
        preference.hinge,
        preference.ropo,
        preference.sigmoid,
        preference.ramp,
        preference.unhinged,
        lambda d, t: preference.identity_preference(d, t, tau=0.5),
    ],
)
def test_swapping_a_pair_changes_nothing(term):
    for target in (1.0, 0.5, 0.0):
        here = term(LINE, jnp.full_like(LINE, target))
        there = term(-LINE, jnp.full_like(LINE, 1 - target))
        np.testing.assert_allclose(here, there, atol=1e-6)
        assert here.dtype == jnp.float32


# Margins of policies, scores, rankings


def test_implicit_margins():
    first, second = array(-12.3 + 12.9), array(-15.1 + 14.8)
    d = preference.implicit_margins(first, second, beta=0.1)
    assert float(d[0]) == pytest.approx(0.09, abs=1e-6)
    assert at(preference.bradley_terry, float(d[0])) == pytest.approx(0.649159, abs=1e-6)
    far = preference.implicit_margins(array(500.0), array(-500.0), beta=1, bound=10)
    assert float(far[0]) == 20.0


def test_pair_losses_of_two_models():
    margins = {"a": array(2, -1.5, 0.3, 0.1, -0.2, 1), "b": array(1.2, -0.8, -0.4, 0.9, 0.5, 1.6)}
    losses = {name: preference.bradley_terry(d, jnp.ones(6)) for name, d in margins.items()}
    expected = [0.126928, 1.701413, 0.554355, 0.644397, 0.798139, 0.313262]
    np.testing.assert_allclose(losses["a"], expected, atol=2e-6)
    chosen = {name: jnp.argsort(own)[:3] for name, own in losses.items()}
    assert chosen["a"].tolist() == [0, 5, 2] and chosen["b"].tolist() == [5, 0, 3]
    crossed = losses["a"][chosen["b"]].mean(), losses["b"][chosen["a"]].mean()
    own = losses["a"][chosen["a"]].mean(), losses["b"][chosen["b"]].mean()
    np.testing.assert_allclose(crossed, [0.361529, 0.453399], atol=2e-6)
    np.testing.assert_allclose(own, [0.331515, 0.262779], atol=2e-6)


def test_score_penalty():
    np.testing.assert_allclose(preference.score_penalty(array(3.0), array(1.0)), [5.0])


def test_rankings():
    scores = array(*[[0.5, 0.2, -0.3]] * 4)
    ranks = jnp.array([[1, 2, 2], [2, 1, 3], [1, 1, 1], [1, 2, 3]], jnp.float32)
    mask = jnp.array([[True] * 3] * 3 + [[True, False, False]])
    loss, counted = jax.jit(preference.ranking)(scores, ranks, mask)
    np.testing.assert_allclose(loss, [0.462728, 0.566511, 0.0, 0.0], atol=2e-6)
    assert counted.tolist() == [True, True, False, False]


def test_padding_of_a_ranking_may_be_anything():
    scores, ranks = jnp.array([[0.5, 0.2, jnp.nan]]), jnp.array([[1.0, 2.0, 0.0]])
    mask = jnp.array([[True, True, False]])
    loss = lambda s: preference.ranking(s, ranks, mask).loss[0]
    value, grad = jax.jit(jax.value_and_grad(loss))(scores)
    assert float(value) == pytest.approx(np.log1p(np.exp(-0.3)), abs=1e-6)
    assert np.all(np.isfinite(grad)) and grad[0, 2] == 0


# Reductions


def test_a_pair_without_weight_reaches_nothing():
    margins, target = array(1.0, jnp.nan, -2.0), array(1.0, jnp.nan, 0.5)
    weights = array(2.0, 0.0, 1.0)
    loss = lambda d: preference.pair_loss(d, target, weights)
    value, grad = jax.value_and_grad(loss)(margins)
    expected = (2 * at(preference.bradley_terry, 1.0) + at(preference.bradley_terry, -2, 0.5)) / 3
    assert float(value) == pytest.approx(expected, rel=1e-6)
    assert np.all(np.isfinite(grad)) and grad[1] == 0
    assert float(preference.pair_loss(margins, target, jnp.zeros(3))) == 0


def test_means():
    losses, weights = array(1.0, jnp.inf, 4.0), array(1.0, 0.0, 0.5)
    assert float(reduction.mean(losses, weights)) == pytest.approx(2.0)
    assert float(reduction.mean(losses, weights, divide_by="batch")) == pytest.approx(1.0)
    assert float(reduction.mean(array(1.0, 2.0))) == pytest.approx(1.5)


def test_soft_minimum():
    losses = array(0.2, 0.5, 3.0)
    loss = lambda l: reduction.soft_minimum(l, temperature=1)
    value, weights = jax.value_and_grad(loss)(losses)
    assert float(value) == pytest.approx(0.709921, abs=1e-6)
    np.testing.assert_allclose(weights, [0.5551, 0.4112, 0.0338], atol=1e-4)
    limits = [float(reduction.soft_minimum(losses, temperature=t)) for t in (1e-3, 1e4)]
    np.testing.assert_allclose(limits, [0.2, float(jnp.mean(losses))], atol=2e-3)


def test_soft_minimum_without_weight_and_far_away():
    losses, weights = array(jnp.nan, 1e4, 1e4), array(0.0, 1.0, 1.0)
    loss = lambda l: reduction.soft_minimum(l, weights, temperature=0.1)
    value, grad = jax.value_and_grad(loss)(losses)
    assert float(value) == pytest.approx(1e4)
    np.testing.assert_allclose(grad, [0.0, 0.5, 0.5], atol=1e-6)
    assert float(reduction.soft_minimum(losses, jnp.zeros(3), temperature=1.0)) == 0


@pytest.mark.parametrize(
    "reduce",
    [reduction.mean, lambda l, w, **k: reduction.soft_minimum(l, w, temperature=0.7, **k)],
)
def test_split_batches_are_one(reduce):
    losses = array(0.3, 2.0, 1.1, 0.0, 5.0, 0.4)
    weights = array(1, 0.5, 0, 0, 0, 2)
    split = jax.vmap(lambda l, w: reduce(l, w, axis_name="devices"), axis_name="devices")
    found = jax.jit(split)(losses.reshape(2, 3), weights.reshape(2, 3))
    np.testing.assert_allclose(found, np.full(2, float(reduce(losses, weights))), rtol=1e-6)


def test_jit_and_traced_settings():
    def loss(margin, d):
        return preference.pair_loss(
            d, jnp.ones_like(d), term=lambda d, t: preference.win_tie(d, t, margin=margin)
        )

    found = jax.jit(jax.vmap(loss, in_axes=(0, None)))(array(0.0, 3.0), array(1.0))
    expected = [at(preference.bradley_terry, 1.0, margin=m) for m in (0, 3)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda d: preference.bradley_terry(d, d, margin=float("nan")), "margin = nan"),
        (lambda d: preference.win_tie(d, d, tie_weight=-1), "tie_weight = -1"),
        (lambda d: preference.identity_preference(d, d, tau=0), "tau = 0"),
        (lambda d: preference.ropo(d, d, alpha=-2), "alpha = -2"),
        (lambda d: preference.smoothed_target(d, 0.5), "rate = 0.5"),
        (lambda d: preference.implicit_margins(d, d, beta=0), "beta = 0"),
        (lambda d: preference.implicit_margins(d, d, beta=1, bound=-1), "bound = -1"),
        (lambda d: reduction.mean(d, divide_by="count"), "divide_by = 'count'"),
        (lambda d: reduction.soft_minimum(d, temperature=0), "temperature = 0"),
    ],
)
def test_bad_settings(call, message):
    with pytest.raises(ValueError, match=message):
        call(array(1.0, 2.0))
