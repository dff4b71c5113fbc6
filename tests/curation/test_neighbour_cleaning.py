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

intrinsic = jax.jit(cleaning.intrinsic, static_argnames=("classes", "k"))
extrinsic = jax.jit(cleaning.extrinsic, static_argnames=("k", "rule", "positives"))
nearest = jax.jit(cleaning.nearest, static_argnames="k")
confusion = jax.jit(cleaning.confusion, static_argnames="classes")
folds = jax.jit(cleaning.folds, static_argnums=(1, 2))
cosine, lowest = jax.jit(cleaning.cosine), jax.jit(cleaning.lowest)
eliminate, relabel = jax.jit(cleaning.eliminate), jax.jit(cleaning.relabel)
micro_f1, characterize = jax.jit(cleaning.micro_f1), jax.jit(cleaning.characterize)


def members(mask):
    return np.flatnonzero(mask).tolist()


def test_cosines_by_hand():
    expected = [
        [0.993884, 0.936329, -0.980581, 0.104685, 0.707107],
        [0.110432, 0.351123, 0.196116, 0.994505, 0.707107],
    ]
    np.testing.assert_allclose(cosine(ANCHORS, NEGATIVES), expected, atol=1e-6)
    np.testing.assert_array_equal(cosine(jnp.zeros((1, 2)), NEGATIVES), [[0] * 5])


def test_intrinsic_by_hand():
    found = intrinsic(FEATURES, LABELS, MISSED, classes=3, k=2)
    assert members(found.flagged) == [2, 3, 5, 6]  # n0, n1, n3, n4
    np.testing.assert_array_equal(found.labels, [1, 2, 1, 1, 0, 2, 2])
    np.testing.assert_array_equal(found.agreed, found.flagged)
    assert members(eliminate(LABELS, found).keep) == [0, 1, 4]
    relabelled = relabel(LABELS, found)
    np.testing.assert_array_equal(relabelled.labels, found.labels)
    assert np.all(relabelled.keep)


def test_the_majority_of_the_anchors_beats_the_nearest_and_ties_go_to_the_nearest():
    features = jnp.array([[1.0, 0.0], [1.0, 0.4], [1.0, 0.5], [1.0, 0.1]])
    labels, missed = jnp.array([1, 2, 2, 0]), jnp.zeros(4, jnp.int32)
    found = intrinsic(features, labels, missed, classes=3, k=1)
    assert found.labels.tolist()[3] == 2
    two = intrinsic(features, labels, jnp.array([0, 0, 2, 0]), classes=3, k=1)
    assert two.labels.tolist()[3] == 1


def test_masked_examples_take_no_part():
    mask = jnp.array([True, False, True, True, True, True, False])
    found = intrinsic(FEATURES, LABELS, MISSED, mask, classes=3, k=2)
    assert members(found.flagged) == [2, 3]
    assert members(eliminate(LABELS, found, mask).keep) == [0, 4, 5]
    assert members(relabel(LABELS, found, mask).keep) == [0, 2, 3, 4, 5]


def test_fewer_candidates_than_k():
    found = intrinsic(FEATURES, LABELS, MISSED, classes=3, k=50)
    assert members(found.flagged) == [2, 3, 4, 5, 6]


def test_extrinsic_by_hand():
    near = nearest(cosine(NEGATIVES, CLEAN), jnp.ones((5, 5), bool), k=3)
    np.testing.assert_array_equal(near.index.tolist()[0], [1, 0, 2])
    np.testing.assert_array_equal(near.index.tolist()[2], [4, 3, 1])
    found = extrinsic(NEGATIVES, NONE, CLEAN, CLEAN_LABELS, k=3)
    assert 0 in members(found.flagged) and 0 not in members(found.agreed)
    assert 2 not in members(found.flagged)
    kept = members(relabel(NONE, found).keep)
    assert 0 not in kept and 2 in kept


def test_rules():
    given = NEGATIVES, NONE, CLEAN, jnp.array([3, 3, 5, 0, 3])
    pull, most = extrinsic(*given, k=3), extrinsic(*given, k=3, rule="majority")
    assert 2 not in members(pull.flagged)
    assert 2 in members(most.flagged) and 2 not in members(most.agreed)


def test_nothing_is_flagged_without_a_reason():
    right = intrinsic(FEATURES, LABELS, LABELS, classes=3)
    assert members(right.flagged) == []
    for cleaned in (eliminate(LABELS, right), relabel(LABELS, right)):
        np.testing.assert_array_equal(cleaned.labels, LABELS)
        assert np.all(cleaned.keep)
    for rule in cleaning.RULES:
        found = extrinsic(NEGATIVES, NONE, CLEAN, NONE, rule=rule)
        assert members(found.flagged) == []
        nobody = jnp.zeros((5, 5), bool)
        found = extrinsic(NEGATIVES, NONE, CLEAN, CLEAN_LABELS, nobody, rule=rule)
        assert members(found.flagged) == []


@pytest.mark.parametrize("positives", [False, True])
def test_counts_and_untouched_labels(positives):
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    labels, theirs = rng.integers(0, 3, 600), jnp.asarray(rng.integers(0, 3, 200))
    given = jnp.asarray(labels)
    found = extrinsic(normal(600, 3), given, normal(200, 3), theirs, positives=positives)
    cleaned = found, eliminate(given, found), relabel(given, found)
    found, dropped, changed = jax.tree.map(np.asarray, cleaned)
    assert dropped.keep.sum() == 600 - found.flagged.sum()
    assert changed.keep.sum() == dropped.keep.sum() + found.agreed.sum()
    assert 0 < found.agreed.sum() < found.flagged.sum()
    np.testing.assert_array_equal(changed.labels[~found.flagged], labels[~found.flagged])
    np.testing.assert_array_equal(dropped.labels, labels)
    assert np.all(changed.labels[found.agreed] != labels[found.agreed])
    assert np.any(found.flagged & (labels > 0)) == positives
    if positives:
        assert np.any(found.agreed & (labels > 0) & (found.labels == 0))


def test_an_example_is_not_its_own_neighbour():
    ids = jnp.arange(5)
    allowed = cleaning.different(ids, ids)
    near = nearest(cosine(CLEAN, CLEAN), allowed, k=1)
    assert np.all(np.asarray(near.index)[:, 0] != np.arange(5))


def test_micro_f1_by_hand():
    gold, predicted = jnp.array([1, 2, 0, 0, 1, 2, 0]), jnp.array([1, 0, 0, 1, 2, 2, 0])
    zeros = jnp.zeros(7, jnp.int32)
    np.testing.assert_allclose(micro_f1(gold, predicted), [0.5, 0.5, 0.5])
    np.testing.assert_array_equal(micro_f1(zeros, zeros), [0, 0, 0])
    np.testing.assert_array_equal(micro_f1(gold, predicted, jnp.zeros(7, bool)), [0, 0, 0])
    np.testing.assert_array_equal(micro_f1(gold, gold), [1, 1, 1])


def test_characters():
    labels = np.repeat(np.arange(4), 10)
    of = lambda zeros, ones, twos, threes: [0] * zeros + [1] * ones + [2] * twos + [3] * threes
    rows = of(4, 3, 3, 0) + of(5, 5, 0, 0) + of(0, 0, 5, 5) + of(2, 2, 0, 6)
    percent = confusion(jnp.array(labels), jnp.array(rows), classes=4)
    np.testing.assert_allclose(np.asarray(percent)[0], [40, 30, 30, 0], rtol=1e-6)
    character = characterize(percent)
    assert members(character.missed) == [1] and members(character.confused) == [2]
    empty = confusion(jnp.array(labels), jnp.array(rows), jnp.array(labels != 1), classes=4)
    np.testing.assert_array_equal(np.asarray(empty)[1], [0, 0, 0, 0])


def test_baselines_take_as_many():
    scores, candidates = np.random.default_rng(0).random(20), np.arange(20) % 2 == 0
    given = jnp.asarray(scores, jnp.float32), jnp.asarray(candidates)
    taken = np.asarray(lowest(*given, 4))
    assert taken.sum() == 4 and not np.any(taken & ~candidates)
    assert np.max(scores[taken]) < np.min(scores[candidates & ~taken])
    np.testing.assert_array_equal(lowest(*given, 99), candidates)


def test_folds_are_even_and_overlap_counts(key):
    sizes = np.bincount(folds(key, 23, 5))
    assert sizes.sum() == 23 and sizes.max() - sizes.min() <= 1
    first, second = jnp.array([True, True, False, False]), jnp.array([True, False, True, False])
    nobody, overlap = jnp.zeros(4, bool), jax.jit(cleaning.overlap)
    assert float(overlap(first, second)) == pytest.approx(1 / 3)
    assert float(overlap(nobody, nobody)) == 0


def test_bad_input(key):
    with pytest.raises(ValueError, match="k = 0; allowed is >= 1"):
        cleaning.intrinsic(FEATURES, LABELS, MISSED, classes=3, k=0)
    with pytest.raises(ValueError, match="rule = 'some'"):
        cleaning.extrinsic(NEGATIVES, NONE, CLEAN, CLEAN_LABELS, rule="some")
    with pytest.raises(ValueError, match="count = 1"):
        cleaning.folds(key, 10, 1)
    with pytest.raises(ValueError, match="count = -1"):
        cleaning.lowest(jnp.zeros(3), jnp.ones(3, bool), -1)
