"""Bad preference data, defect by defect: in files, in arrays, and in the losses and heads.

NaN scores, identical pairs, empty responses, contradictory duplicates, unknown users, batches of
ties: each is refused and counted, masked, or harmless, as documented; none passes in silence.
"""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward import label_estimates
from jaxreward.curation import pair_screening
from jaxreward.losses import pointwise, preference, reduction
from jaxreward.networks import experts, heads
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.rewards import fusion, learned
from jaxreward.tasks import preference_files as files
from jaxreward.transforms import advantage
from jaxreward.types import Preferences, make_signal

CONFIG = TransformerConfig(11, width=8, layers=1, heads=2, kv_heads=1, intermediate=8)
GOOD = {"prompt": "say", "chosen": "fine", "rejected": "poor", "user": "ann"}


def read(tmp_path, *rows, **options):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({**GOOD, **row}) + "\n" for row in ({}, *rows)))
    return files.read_pairs(path, **options)


def pairs(first, second, target, annotator=None):
    count = len(target)
    return Preferences(
        first=jnp.asarray(first, jnp.float32), second=jnp.asarray(second, jnp.float32),
        target=jnp.asarray(target, jnp.float32), weights=jnp.ones(count),
        annotator=jnp.asarray(annotator or [0] * count, jnp.int32),
    )  # fmt: skip


def causes(screened):
    """Rows left out, by cause."""
    return {c: np.flatnonzero(m).tolist() for c, m in screened.refused.items() if m.any()}


MODEL = learned.mlp_reward_model(2, (3,))


@functools.partial(jax.jit, static_argnames="term")
def gradients_of(data, term):
    def loss(params):
        margins = MODEL.score(params, data.first) - MODEL.score(params, data.second)
        return preference.pair_loss(margins, data.target, data.weights, term=term)

    return jax.value_and_grad(loss)(MODEL.init(jax.random.key(0)))


def gradients(data, term=preference.bradley_terry):
    """Loss and gradients of a perceptron on pairs of vectors."""
    return gradients_of(jax.tree.map(jnp.asarray, data), term)


def both_of(loss):
    """Value and gradient, in numpy."""
    compiled = jax.jit(jax.value_and_grad(loss))
    return lambda *arguments: jax.tree.map(np.asarray, compiled(*arguments))


def finite(tree):
    return all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(tree))


def largest(tree):
    return max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(tree))


# NaN scores


@pytest.mark.parametrize("score", [math.nan, math.inf, "8"])
def test_a_score_that_is_no_number_is_refused_in_files(tmp_path, score):
    loaded = read(tmp_path, {"chosen": "new", "chosen_score": score, "rejected_score": 1})
    assert loaded.refused == {"score_not_finite": files.Tally(1, 2)}
    assert "score_not_finite 1 from line 2" in files.describe(loaded)


def test_a_nan_score_is_a_missing_reward():
    signal = make_signal(jnp.array([[1.0, jnp.nan, 0.0, jnp.inf]]))
    np.testing.assert_array_equal(signal.mask, [[True, False, True, False]])
    update = jax.jit(advantage.group_relative().update)
    advantages = lambda signal: np.asarray(update(jax.random.key(0), signal, ())[0].advantages)
    found, alone = advantages(signal), advantages(make_signal(jnp.array([[1.0, 0.0]])))
    np.testing.assert_allclose(found[0, ::2], alone[0], rtol=1e-6)
    np.testing.assert_array_equal(found[0, 1::2], [0.0, 0.0])


def test_a_nan_margin_counts_only_where_it_has_weight():
    target = jnp.array([1.0, 0.0])
    of = both_of(lambda margins, weights: preference.pair_loss(margins, target, weights))
    value, slope = of(jnp.array([0.3, jnp.nan]), jnp.array([1.0, 0.0]))
    assert float(value) == pytest.approx(math.log1p(math.exp(-0.3)), rel=1e-5)
    assert finite(slope) and float(slope[1]) == 0.0
    # With weight the loss is NaN, by which training stops, and not a mean of the others.
    assert math.isnan(of(jnp.array([0.3, jnp.nan]), jnp.array([1.0, 1.0]))[0])


POINTWISE = {
    "cross_entropy": pointwise.cross_entropy,
    "squared": pointwise.squared,
    "regression": pointwise.regression,
    "gaussian": lambda z, y: pointwise.gaussian(z, 0.1 * z, y),
    "quantile": lambda z, y: pointwise.quantile(z[:, None], y, jnp.array([0.3])),
    "verdict": lambda z, y: pointwise.verdict(-jnp.exp(z), -jnp.exp(-z), y),
}


@functools.cache
def pointwise_gradients(name):
    """The gradient of the first alone, the loss of both, and both ways to leave the second out."""

    @jax.jit
    def find(params, scores, labels):
        # NaN scores come from heads, which select them: see `heads`
        term = lambda p: POINTWISE[name](jnp.where(jnp.isnan(scores), jnp.nan, 0.3 * p), labels)
        weighted = lambda p: reduction.mean(term(p), jnp.array([1.0, 0.0]), divide_by="batch")

        def by_propensity(p):
            observed, propensity = jnp.array([True, False]), jnp.array([1.0, 0.5])
            losses = pointwise.inverse_propensity(term(p), observed, propensity)
            return reduction.mean(losses, divide_by="batch")

        alone = jax.grad(lambda p: POINTWISE[name](0.3 * p, labels[:1])[0] / 2)(params[:1])
        ways = [jax.value_and_grad(loss)(params) for loss in (by_propensity, weighted)]
        return alone, reduction.mean(term(params)), ways

    return find


@pytest.mark.parametrize("bad", ["label", "score"])
@pytest.mark.parametrize("name", POINTWISE)
def test_a_label_or_score_that_is_not_there_reaches_no_gradient_of_single_items(name, bad):
    """Labels of unobserved feedback are NaN; a NaN slope behind a finite loss would be silent."""
    labels = jnp.array([1.0, jnp.nan if bad == "label" else 0.0])
    scores = jnp.array([0.3, jnp.nan if bad == "score" else 0.2])
    alone, whole, found = pointwise_gradients(name)(jnp.ones(2), scores, labels)
    for value, slope in found:
        assert finite(value)
        np.testing.assert_allclose(slope, [alone[0], 0.0], rtol=1e-6)
    assert math.isnan(whole)  # with weight it is loud


@pytest.mark.parametrize("bad", ["target", "margin"])
def test_pairs_without_a_target_reach_no_gradient_of_a_term(bad):
    target = jnp.array([1.0, jnp.nan if bad == "target" else 0.0])
    margins = jnp.array([0.3, jnp.nan if bad == "margin" else 0.2])
    for name, (found, whole) in gradients_of_terms(margins, target).items():
        assert finite(found) and found[1][1] == 0.0, name
        assert math.isnan(whole), name


@jax.jit
def gradients_of_terms(margins, target):
    """By term the loss without the second pair with its gradient, and the loss with it."""

    def find(term):
        loss = lambda d: reduction.mean(term(d, target), jnp.array([1.0, 0.0]))
        return jax.value_and_grad(loss)(margins), reduction.mean(term(margins, target))

    return {name: find(term) for name, term in TERMS.items()}


def test_a_nan_in_an_item_reaches_no_gradient():
    data = pairs([[1, 2], [np.nan, 0], [3, 1]], [[0, 1], [1, 1], [np.inf, 2]], [1, 1, 0])
    assert not finite(gradients(data))
    screened = pair_screening.screen(data, annotators=1)
    assert causes(screened) == {"not_finite": [1, 2]}
    value, slopes = gradients(screened.preferences)
    alone, expected = gradients(jax.tree.map(lambda x: x[:1], data))
    np.testing.assert_allclose(value, alone, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), slopes, expected)


@pytest.mark.parametrize("target, weight, cause", [
    (np.nan, 1, "no_target"), (1.5, 1, "no_target"), (1, np.nan, "bad_weight"),
    (1, -1, "bad_weight"), (1, np.inf, "bad_weight"),
])  # fmt: skip
def test_bad_numbers_beside_a_pair(target, weight, cause):
    data = pairs([[1, 2], [2, 3]], [[0, 1], [1, 1]], [1, target])
    data = dataclasses.replace(data, weights=jnp.array([1.0, weight]))
    screened = pair_screening.screen(data, annotators=1)
    assert causes(screened) == {cause: [1]}
    np.testing.assert_array_equal(screened.preferences.weights, [1, 0])


def test_a_nan_among_ranked_responses_counts_only_where_it_is_ranked():
    mask, scores = jnp.ones((1, 3), bool), jnp.array([[0.5, 0.2, jnp.nan]])
    loss = both_of(lambda scores, ranks: preference.ranking(scores, ranks, mask).loss[0])
    value, slope = loss(scores, jnp.array([[1.0, 2.0, jnp.nan]]))
    assert float(value) == pytest.approx(math.log1p(math.exp(-0.3)), rel=1e-5)
    assert finite(slope) and float(slope[0, 2]) == 0.0
    assert math.isnan(loss(scores, jnp.array([[1.0, 2.0, 3.0]]))[0])  # ranked, it is loud


def test_a_neighbour_without_a_reward_changes_nothing():
    similarity, own = jnp.array([[0.95, 0.99, jnp.nan], [0.95, 0.99, 0.2]]), jnp.array([1.0, jnp.nan])
    fuse = jax.jit(fusion.fuse_rewards, static_argnames="top_k")
    fused = np.asarray(fuse(own, similarity, jnp.array([3.0, jnp.nan, 5.0]), top_k=1))
    assert float(fused[0]) == pytest.approx((1.0 + 0.95 * 3.0) / 1.95, rel=1e-6)
    assert np.isnan(fused[1])  # its own reward is missing, and stays so


# Identical pairs


def test_identical_pairs(tmp_path):
    loaded = read(tmp_path, {"chosen": "poor"})
    assert loaded.refused == {"identical_pair": files.Tally(1, 2)}
    data = pairs([[1, 2], [2, 3]], [[0, 1], [2, 3]], [1, 1])
    assert causes(pair_screening.screen(data, annotators=1)) == {"identical_pair": [1]}
    value, slopes = gradients(jax.tree.map(lambda x: x[1:], data))  # harmless where it passes
    assert float(value) == pytest.approx(math.log(2), rel=1e-6) and largest(slopes) < 1e-7


# Empty responses


@pytest.mark.parametrize("empty", ["", " \n\t", [], [{"role": "assistant", "content": ""}]])
def test_empty_responses_are_refused_in_files(tmp_path, empty):
    loaded = read(tmp_path, {"rejected": empty})
    assert loaded.refused == {"empty_response": files.Tally(1, 2)}


HEADS = [
    heads.Scalar(), heads.Scalar("mean", (4,)), heads.Scalar("max"), heads.Gaussian(),
    heads.Quantiles(3), heads.HierarchicalQuery(2),
]  # fmt: skip


def both(found):
    """Of scores that may be tuples and have several columns, the sum of all by example."""
    return sum(jnp.sum(x.reshape(x.shape[0], -1), axis=1) for x in jax.tree.leaves(found))


@pytest.mark.parametrize("head", HEADS)
def test_an_empty_response_has_no_score_and_reaches_no_gradient_of_a_head(head):
    states = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 8)), jnp.float32)
    full, first = jnp.ones((2, 3), bool), jnp.asarray(np.array([[True] * 3, [False] * 3]))
    params = jax.jit(head.init)(jax.random.key(0), (states,), states, full)

    def loss(params, states, mask):
        scores = both(head.apply(params, (states,), states, mask))
        return preference.pair_loss(scores, jnp.ones(2), jnp.array([1.0, 0.0])), scores

    slopes = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))
    (empty, scores), (other, _) = slopes(params, states, first), slopes(params, states, full)
    assert np.isnan(scores).tolist() == [False, True]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), empty, other)
    assert largest(empty) > 0


def test_an_empty_response_reaches_no_gradient_of_a_transformer():
    model = learned.text_reward_model(CONFIG)

    def loss(params, lengths):
        scores = model.score(params, learned.Texts(jnp.ones((2, 3), jnp.int32), lengths))
        return preference.pair_loss(scores, jnp.ones(2), jnp.array([1.0, 0.0]))

    slopes, params = jax.jit(jax.grad(loss)), jax.jit(model.init)(jax.random.key(0))
    empty, other = slopes(params, jnp.array([3, 0])), slopes(params, jnp.array([3, 2]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), empty, other)
    assert largest(empty) > 0


def test_an_empty_response_reaches_no_gradient_of_an_aggregator():
    states = np.ones((2, 3, 4), np.float32)
    states[1, 2] = np.nan
    states = jnp.asarray(states)
    aggregator = experts.Aggregator(4)

    def loss(params):
        scores = aggregator.apply(params, states)
        return preference.pair_loss(scores, jnp.ones(3), jnp.array([1.0, 1.0, 0.0])), scores

    @jax.jit
    def find(key):
        return jax.value_and_grad(loss, has_aux=True)(aggregator.init(key, states))

    (value, scores), slopes = find(jax.random.key(0))
    assert np.isnan(scores).tolist() == [False, False, True]
    assert finite((value, slopes))


def test_empty_responses_are_left_out_of_arrays():
    tokens = jnp.array([[[1, 2], [0, 0]], [[2, 2], [1, 0]]], jnp.int32)
    lengths = jnp.array([[2, 0], [2, 1]], jnp.int32)
    data = Preferences(
        learned.Texts(tokens[0], lengths[0]), learned.Texts(tokens[1], lengths[1]),
        jnp.ones(2), jnp.ones(2), jnp.zeros(2, jnp.int32),
    )  # fmt: skip
    screened = pair_screening.screen(data, annotators=1, is_empty=lambda t: t.lengths == 0)
    assert causes(screened) == {"empty_item": [1]}
    assert screened.preferences.first.tokens.dtype == np.int32


# Contradictory duplicates


def test_contradictions_in_files(tmp_path):
    turned = {"chosen": "poor", "rejected": "fine"}
    loaded = read(tmp_path, turned, {}, {"user": "bob", **turned})
    assert loaded.refused == {"contradictory": files.Tally(1, 2), "duplicate": files.Tally(1, 3)}
    assert loaded.noted["contradiction_is_tie"] == files.Tally(1, 1)
    assert [(row.annotator, row.target) for row in loaded.rows] == [("ann", 0.5), ("bob", 1.0)]


def test_contradictions_in_arrays():
    a, b, c = [1, 2], [3, 4], [0.0, 5]
    data = pairs([a, b, a, a, a, c, a], [b, a, b, c, b, a, c], [1, 0, 0, 1, 1, 1, 0.5],
                 [0, 0, 0, 0, 1, 1, 1])  # fmt: skip
    screened = pair_screening.screen(data, annotators=2)
    # 1 repeats 0 in the other order, 2 contradicts 0, 6 contradicts 5; 4 is another annotator
    assert causes(screened) == {"duplicate": [1], "contradictory": [2, 6]}
    np.testing.assert_array_equal(screened.preferences.weights, [1, 0, 0, 1, 1, 1, 0])
    np.testing.assert_array_equal(screened.preferences.target, [0.5, 0.5, 0.5, 1, 1, 0.5, 0.5])
    assert pair_screening.describe(screened) == (
        "4 pairs kept, 3 left out (duplicate 1; contradictory 2), 2 made ties"
    )


# Unknown users


def test_unknown_users(tmp_path):
    loaded = read(tmp_path, {"chosen": "new", "user": "eve"}, {"chosen": "old", "user": None},
                  annotators=("ann", "bob"))  # fmt: skip
    assert loaded.refused == {
        "unknown_annotator": files.Tally(1, 2), "no_annotator": files.Tally(1, 3),
    }  # fmt: skip
    data = pairs([[1, 2], [2, 3], [3, 3]], [[0, 1], [1, 1], [0, 0]], [1, 1, 1], [1, 7, -1])
    screened = pair_screening.screen(data, annotators=2)
    assert causes(screened) == {"unknown_annotator": [1, 2]}
    assert np.all((screened.preferences.annotator >= 0) & (screened.preferences.annotator < 2))


def test_an_unknown_user_moves_nobodys_reliability():
    posterior, users = jnp.array([0.9, 0.1, 0.1]), jnp.array([1, 7, -1], jnp.int32)
    start, mask = jnp.array([0.5, 0.5]), jnp.ones(3, bool)
    found = label_estimates.update_reliability(start, posterior, users, mask, decay=0.0)
    np.testing.assert_allclose(found, [0.5, 0.9], rtol=1e-6)


# Batches of ties


TERMS = {
    "bradley_terry": preference.bradley_terry,
    "win_tie": preference.win_tie,
    "margin": lambda d, t: preference.bradley_terry(d, t, margin=1.0),
    "hinge": preference.hinge,
    "ipo": lambda d, t: preference.identity_preference(d, t, tau=0.1),
    "ropo": preference.ropo,
}


@pytest.mark.parametrize("name", TERMS)
def test_a_batch_of_ties_pulls_the_scores_together(name):
    data = pairs([[1, 2], [2, 3]], [[0, 1], [1, 1]], [0.5, 0.5])
    assert finite(gradients(data, TERMS[name]))
    slope = jax.jit(jax.grad(lambda d: preference.pair_loss(d, data.target, term=TERMS[name])))
    assert finite(slope(jnp.array([3.0, -3.0]))) and finite(slope(jnp.array([80.0, -80.0])))
    assert float(slope(jnp.array([3.0, -3.0]))[0]) >= 0
    np.testing.assert_allclose(slope(jnp.zeros(2)), [0, 0], atol=1e-6)


def test_a_batch_of_ties_that_do_not_count_changes_nothing(tmp_path):
    fails = jnp.zeros(2, bool)
    target, weights = preference.pass_fail_targets(fails, fails)
    np.testing.assert_array_equal(weights, [0, 0])
    of = both_of(lambda margins: preference.pair_loss(margins, target, weights))
    value, slope = of(jnp.array([2.0, jnp.nan]))
    assert float(value) == 0.0 and np.all(slope == 0.0)
    ranks, mask = jnp.ones((1, 3)), jnp.ones((1, 3), bool)

    @jax.jit
    def ranked(scores):
        found = preference.ranking(scores, ranks, mask)
        slope = jax.grad(lambda s: jnp.sum(preference.ranking(s, ranks, mask).loss))(scores)
        return found.loss[0], found.counted[0], slope

    loss, counted, _ = ranked(jnp.ones((1, 3)))
    assert float(loss) == 0.0 and not bool(counted)
    assert largest(ranked(jnp.array([[1.0, 2, 3]]))[2]) == 0
    tie = {"margin": 0}
    loaded = read(tmp_path, {"chosen": "new", **tie}, {"chosen": "old", **tie})
    assert loaded.noted == {"zero_margin_is_tie": files.Tally(2, 2)}


def test_rewards_that_all_tie_have_no_advantage():
    for transform in (advantage.group_relative(scale="group_std"), advantage.grpo()):
        given = make_signal(np.full((2, 4), 0.7))
        signal, _ = jax.jit(transform.update)(jax.random.key(0), given, transform.init())
        np.testing.assert_array_equal(signal.advantages, np.zeros((2, 4)))


# Nothing left


def test_nothing_left_is_an_error(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({**GOOD, "chosen": "poor"}) + "\n")
    with pytest.raises(ValueError, match="no good row .identical_pair 1 from line 1"):
        files.read_pairs(path)
    with pytest.raises(ValueError, match="no pair is left: identical_pair 2"):
        pair_screening.screen(pairs([[1, 2]] * 2, [[1, 2]] * 2, [1, 0]), annotators=1)
    with pytest.raises(ValueError, match="annotators = 0"):
        pair_screening.screen(pairs([[1, 2]], [[1, 3]], [1]), annotators=0)
    unseen = pairs([[1, 2]], [[1, 3]], [1])
    unseen = dataclasses.replace(unseen, weights=jnp.zeros(1))
    with pytest.raises(ValueError, match="all have weight 0"):
        pair_screening.screen(unseen, annotators=1)
