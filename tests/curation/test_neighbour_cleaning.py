"""Cleaning by neighbours: the numbers of the method, empty cases, ties, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.curation import neighbour_cleaning as cleaning

ANCHORS = jnp.array([[1.0, 0.0], [0.0, 1.0]])
NEGATIVES = jnp.array([[0.9, 0.1], [0.8, 0.3], [-1.0, 0.2], [0.1, 0.95], [0.7, 0.7]])
FEATURES = jnp.concatenate([ANCHORS, NEGATIVES])
LABELS = jnp.array([1, 2, 0, 0, 0, 0, 0])
MISSED = jnp.zeros(7, jnp.int32)
CLEAN = jnp.array([[1.0, 0.0], [0.9, 0.2], [0.8, -0.1], [-1.0, 0.0], [-0.9, 0.3]])
CLEAN_LABELS = jnp.array([3, 3, 5, 0, 0])
NONE = jnp.zeros(5, jnp.int32)


def members(mask):
    return np.flatnonzero(mask).tolist()


def test_cosines_by_hand():
    expected = [
        [0.993884, 0.936329, -0.980581, 0.104685, 0.707107],
        [0.110432, 0.351123, 0.196116, 0.994505, 0.707107],
    ]
    np.testing.assert_allclose(cleaning.cosine(ANCHORS, NEGATIVES), expected, atol=1e-6)
    np.testing.assert_array_equal(cleaning.cosine(jnp.zeros((1, 2)), NEGATIVES), [[0] * 5])


def test_intrinsic_by_hand():
    found = cleaning.intrinsic(FEATURES, LABELS, MISSED, classes=3, k=2)
    assert members(found.flagged) == [2, 3, 5, 6]  # n0, n1, n3, n4
    np.testing.assert_array_equal(found.labels, [1, 2, 1, 1, 0, 2, 2])
    np.testing.assert_array_equal(found.agreed, found.flagged)
    assert members(cleaning.eliminate(LABELS, found).keep) == [0, 1, 4]
    relabelled = cleaning.relabel(LABELS, found)
    np.testing.assert_array_equal(relabelled.labels, found.labels)
    assert bool(jnp.all(relabelled.keep))


def test_the_majority_of_the_anchors_beats_the_nearest_and_ties_go_to_the_nearest():
    features = jnp.array([[1.0, 0.0], [1.0, 0.4], [1.0, 0.5], [1.0, 0.1]])
    labels, missed = jnp.array([1, 2, 2, 0]), jnp.zeros(4, jnp.int32)
    found = cleaning.intrinsic(features, labels, missed, classes=3, k=1)
    assert int(found.labels[3]) == 2
    two = cleaning.intrinsic(features, labels, missed.at[2].set(2), classes=3, k=1)
    assert int(two.labels[3]) == 1


def test_masked_examples_take_no_part():
    mask = jnp.array([True, False, True, True, True, True, False])
    found = cleaning.intrinsic(FEATURES, LABELS, MISSED, mask, classes=3, k=2)
    assert members(found.flagged) == [2, 3]
    assert members(cleaning.eliminate(LABELS, found, mask).keep) == [0, 4, 5]
    assert members(cleaning.relabel(LABELS, found, mask).keep) == [0, 2, 3, 4, 5]


def test_fewer_candidates_than_k():
    found = cleaning.intrinsic(FEATURES, LABELS, MISSED, classes=3, k=50)
    assert members(found.flagged) == [2, 3, 4, 5, 6]


def test_extrinsic_by_hand():
    near = cleaning.nearest(cleaning.cosine(NEGATIVES, CLEAN), jnp.ones((5, 5), bool), k=3)
    np.testing.assert_array_equal(near.index[0], [1, 0, 2])
    np.testing.assert_array_equal(near.index[2], [4, 3, 1])
    found = cleaning.extrinsic(NEGATIVES, NONE, CLEAN, CLEAN_LABELS, k=3)
    assert bool(found.flagged[0]) and not bool(found.agreed[0])
    assert not bool(found.flagged[2])
    assert not bool(cleaning.relabel(NONE, found).keep[0])
    assert bool(cleaning.relabel(NONE, found).keep[2])


def test_rules():
    pull = cleaning.extrinsic(NEGATIVES[2:3], NONE[:1], CLEAN, CLEAN_LABELS.at[4].set(3), k=3)
    most = cleaning.extrinsic(
        NEGATIVES[2:3], NONE[:1], CLEAN, CLEAN_LABELS.at[4].set(3), k=3, rule="majority"
    )
    assert not bool(pull.flagged[0]) and bool(most.flagged[0]) and not bool(most.agreed[0])


def test_nothing_is_flagged_without_a_reason():
    right = cleaning.intrinsic(FEATURES, LABELS, LABELS, classes=3)
    assert members(right.flagged) == []
    for cleaned in (cleaning.eliminate(LABELS, right), cleaning.relabel(LABELS, right)):
        np.testing.assert_array_equal(cleaned.labels, LABELS)
        assert bool(jnp.all(cleaned.keep))
    for rule in cleaning.RULES:
        found = cleaning.extrinsic(NEGATIVES, NONE, CLEAN, NONE, rule=rule)
        assert members(found.flagged) == []
        nobody = jnp.zeros((5, 5), bool)
        found = cleaning.extrinsic(NEGATIVES, NONE, CLEAN, CLEAN_LABELS, nobody, rule=rule)
        assert members(found.flagged) == []


@pytest.mark.parametrize("positives", [False, True])
def test_counts_and_untouched_labels(key, positives):
    of_x, of_y, of_clean, of_labels = jax.random.split(key, 4)
    features, labels = jax.random.normal(of_x, (200, 3)), jax.random.randint(of_y, (200,), 0, 3)
    clean = jax.random.normal(of_clean, (30, 3))
    theirs = jax.random.randint(of_labels, (30,), 0, 3)
    found = cleaning.extrinsic(features, labels, clean, theirs, positives=positives)
    dropped, changed = cleaning.eliminate(labels, found), cleaning.relabel(labels, found)
    assert int(dropped.keep.sum()) == 200 - int(found.flagged.sum())
    assert int(changed.keep.sum()) == int(dropped.keep.sum()) + int(found.agreed.sum())
    assert 0 < int(found.agreed.sum()) < int(found.flagged.sum())
    same = ~np.asarray(found.flagged)
    np.testing.assert_array_equal(changed.labels[same], labels[same])
    np.testing.assert_array_equal(dropped.labels, labels)
    assert bool(jnp.all(changed.labels[found.agreed] != labels[found.agreed]))
    assert bool(jnp.any(found.flagged & (labels > 0))) == positives
    if positives:
        assert bool(jnp.any(found.agreed & (labels > 0) & (found.labels == 0)))


def test_an_example_is_not_its_own_neighbour():
    ids = jnp.arange(5)
    allowed = cleaning.different(ids, ids)
    near = cleaning.nearest(cleaning.cosine(CLEAN, CLEAN), allowed, k=1)
    assert bool(jnp.all(near.index[:, 0] != ids))


def test_micro_f1_by_hand():
    gold, predicted = jnp.array([1, 2, 0, 0, 1, 2, 0]), jnp.array([1, 0, 0, 1, 2, 2, 0])
    np.testing.assert_allclose(cleaning.micro_f1(gold, predicted), [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(cleaning.micro_f1(gold * 0, predicted * 0), [0, 0, 0])
    np.testing.assert_array_equal(cleaning.micro_f1(gold, predicted, gold < 0), [0, 0, 0])
    np.testing.assert_array_equal(cleaning.micro_f1(gold, gold), [1, 1, 1])


def test_characters():
    labels = jnp.repeat(jnp.arange(4), 10)
    of = lambda zeros, ones, twos, threes: [0] * zeros + [1] * ones + [2] * twos + [3] * threes
    rows = of(4, 3, 3, 0) + of(5, 5, 0, 0) + of(0, 0, 5, 5) + of(2, 2, 0, 6)
    percent = cleaning.confusion(labels, jnp.array(rows), classes=4)
    np.testing.assert_allclose(percent[0], [40, 30, 30, 0], rtol=1e-6)
    character = cleaning.characterize(percent)
    assert members(character.missed) == [1] and members(character.confused) == [2]
    empty = cleaning.confusion(labels, jnp.array(rows), labels != 1, classes=4)
    np.testing.assert_array_equal(empty[1], [0, 0, 0, 0])


def test_baselines_take_as_many(key):
    scores = jax.random.uniform(key, (20,))
    candidates = jnp.arange(20) % 2 == 0
    taken = cleaning.lowest(scores, candidates, 4)
    assert int(taken.sum()) == 4 and not bool(jnp.any(taken & ~candidates))
    rest = candidates & ~taken
    assert float(jnp.max(scores[taken])) < float(jnp.min(scores[rest]))
    np.testing.assert_array_equal(cleaning.lowest(scores, candidates, 99), candidates)


def test_folds_are_even_and_overlap_counts(key):
    sizes = np.bincount(cleaning.folds(key, 23, 5))
    assert sizes.sum() == 23 and sizes.max() - sizes.min() <= 1
    first, second = jnp.array([True, True, False, False]), jnp.array([True, False, True, False])
    assert float(cleaning.overlap(first, second)) == pytest.approx(1 / 3)
    assert float(cleaning.overlap(first & second & ~first, first & ~first)) == 0


def test_bad_input(key):
    with pytest.raises(ValueError, match="k = 0; allowed is >= 1"):
        cleaning.intrinsic(FEATURES, LABELS, MISSED, classes=3, k=0)
    with pytest.raises(ValueError, match="rule = 'some'"):
        cleaning.extrinsic(NEGATIVES, NONE, CLEAN, CLEAN_LABELS, rule="some")
    with pytest.raises(ValueError, match="count = 1"):
        cleaning.folds(key, 10, 1)
    with pytest.raises(ValueError, match="count = -1"):
        cleaning.lowest(jnp.zeros(3), jnp.ones(3, bool), -1)
