"""Aggregates of an ensemble: numbers by hand, what leaves them and what moves them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.transforms import aggregation as agg
from jaxreward.types import make_signal

KEY = jax.random.key(0)
# Four answers of three members, members last.
SCORES = jnp.array([[1, 0.2, 2, -1], [0.8, 0.6, -0.5, -0.9], [1.2, 0.1, 3, -1.1]]).T


@pytest.mark.parametrize(
    "kind, options, expected, first",
    [
        ("mean", {}, [1, 0.3, 1.5, -1], 2),
        ("worst_case", {}, [0.8, 0.1, -0.5, -1.1], 0),
        ("uncertainty_weighted", dict(weight=0.5), [0.986667, 0.276667, 0.416667, -1.003333], 0),
        ("uncertainty_weighted", dict(weight=0.1, ddof=1), [0.996, 0.293, 1.175, -1.001], 2),
    ],
)
def test_by_hand(kind, options, expected, first):
    found = agg.aggregate_scores(SCORES, kind, **options)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert int(jnp.argmax(found)) == first


@pytest.mark.parametrize("ddof", [0, 1])
def test_one_member_or_equal_members_are_all_the_same(ddof):
    for scores in (SCORES[:, :1], jnp.repeat(SCORES[:, :1], 4, axis=1)):
        for kind in agg.AGGREGATES:
            found = agg.aggregate_scores(scores, kind, weight=3.0, ddof=ddof)
            np.testing.assert_array_equal(found, SCORES[:, 0])


def test_weight_zero_is_the_mean_also_when_traced():
    weighted = jax.jit(lambda w: agg.uncertainty_weighted(SCORES, weight=w, ddof=1))
    np.testing.assert_array_equal(weighted(0.0), agg.mean_score(SCORES))
    assert float(weighted(2.0)[2]) < float(weighted(1.0)[2])


def test_shifts():
    """One member's zero matters to all but the mean; that of all members to none."""
    order = lambda kind, scores: np.argsort(agg.aggregate_scores(scores, kind)).tolist()
    one = SCORES + jnp.array([[0.0, 5.0, 0.0]])
    for kind in agg.AGGREGATES:
        assert order(kind, SCORES + 7.0) == order(kind, SCORES)
    assert order("mean", one) == order("mean", SCORES)
    assert order("worst_case", one) != order("worst_case", SCORES)
    assert order("uncertainty_weighted", one) != order("uncertainty_weighted", SCORES)


def test_normalized_members_have_one_zero_and_unit():
    reference = jax.random.normal(KEY, (500, 3)) * jnp.array([[1.0, 10.0, 0.0]]) + 4.0
    scale = agg.member_scale(reference)
    found = agg.normalize_members(reference, scale)
    np.testing.assert_allclose(jnp.mean(found, axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(jnp.std(found, axis=0), [1.0, 1.0, 0.0], atol=1e-4)
    # Whatever unit a member scores in, the aggregate is the same.
    other = reference * jnp.array([[2.0, 0.1, 1.0]]) - 3.0
    rescaled = agg.normalize_members(other, agg.member_scale(other))
    np.testing.assert_allclose(rescaled, found, atol=1e-3)


def signal(scores, mask=None, **aux):
    return make_signal(jnp.zeros(scores.shape[:-1]), mask, member_rewards=scores, **aux)


def test_transform_is_the_function_on_normalized_scores():
    scores = SCORES.reshape(2, 2, 3)
    scale = agg.MemberScale(jnp.array([0.1, -0.2, 0.3]), jnp.array([2.0, 0.5, 1.0]))
    transform = agg.aggregate_members("worst_case", scale=scale)
    after, _ = jax.jit(transform.update)(KEY, signal(scores), ())
    expected = agg.worst_case(agg.normalize_members(scores, scale))
    np.testing.assert_allclose(after.rewards, expected, rtol=1e-6)


def test_a_sample_that_a_member_could_not_score_is_missing():
    scores = np.array(SCORES).reshape(2, 2, 3)
    scores[0, 1, 2], scores[1, 0, 0] = np.nan, np.inf
    update = jax.jit(agg.aggregate_members("mean").update)
    after, _ = update(KEY, signal(jnp.asarray(scores)), ())
    np.testing.assert_array_equal(after.mask, [[True, False], [False, True]])
    np.testing.assert_allclose(after.rewards, [[1.0, 0.0], [0.0, -1.0]], atol=1e-6)
    assert all(np.isfinite(value) for value in after.metrics.values())


def test_process_rewards_and_the_bound():
    one = np.array(SCORES).reshape(2, 2, 3)
    scores = np.stack([one, 30 * one])
    update = jax.jit(agg.aggregate_members("mean", bound=10.0).update)
    after, _ = update(KEY, signal(jnp.asarray(scores)), ())
    mean = scores.mean(axis=-1)
    np.testing.assert_allclose(after.rewards, np.clip(mean, -10, 10), rtol=1e-6)
    assert 0 < np.mean(np.abs(mean) > 10) == float(after.metrics["aggregation/clipped"])
    spread = np.mean(np.std(scores, axis=-1))
    np.testing.assert_allclose(after.metrics["aggregation/disagreement"], spread, rtol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: agg.aggregate_members("median"), "aggregate = 'median'"),
        (lambda: agg.aggregate_members(ddof=2), "ddof = 2"),
        (lambda: agg.aggregate_members(weight=-1.0), "weight = -1.0"),
        (lambda: agg.aggregate_members(bound=0.0), "bound = 0.0"),
        (lambda: agg.uncertainty_weighted(SCORES, weight=-0.1), "weight = -0.1"),
        (lambda: agg.uncertainty_weighted(SCORES, ddof=3), "ddof = 3"),
        (lambda: agg.aggregate_scores(SCORES[:, :0]), r"\[\.\.\., K\] with K >= 1"),
        (
            lambda: agg.aggregate_members().update(
                KEY, make_signal(jnp.zeros((2, 3)), member_rewards=jnp.zeros((2, 2, 5))), ()
            ),
            "member_rewards has shape",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
