"""Judgements in both orders."""

import numpy as np
import pytest

from jaxreward.curation.order_swap import consistent_choices, parse_choice


def test_only_the_same_response_twice_counts():
    pairs = [("1", "2"), ("1", "1"), ("2", "1"), ("2", "2"), ("neither", "2"), ("1", "")]
    target, weights = consistent_choices(*zip(*pairs))
    np.testing.assert_array_equal(target, np.float32([1, 0.5, 0, 0.5, 0.5, 0.5]))
    np.testing.assert_array_equal(weights, np.float32([1, 0, 1, 0, 0, 0]))


def test_swapping_all_pairs_swaps_the_targets():
    answers, swapped = ["1", "2", "1"], ["2", "1", "1"]
    here, there = consistent_choices(answers, swapped), consistent_choices(swapped, answers)
    np.testing.assert_array_equal(here.target, 1 - there.target)
    np.testing.assert_array_equal(here.weights, there.weights)


@pytest.mark.parametrize(
    "answer, choice",
    [("Response 2 beats 1", 2), ("the first", None), ("(1)", 1), ("", None), ("3 or 21", 2)],
)
def test_parsing(answer, choice):
    assert parse_choice(answer) == choice


def test_bad_numbers_of_answers():
    with pytest.raises(ValueError, match="swapped has 1 answers; allowed is 2"):
        consistent_choices(["1", "2"], ["1"])
