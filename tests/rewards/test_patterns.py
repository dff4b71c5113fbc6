"""Features of outputs."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxreward.rewards import patterns
from jaxreward.rewards.patterns import ANSWER_FORMS


@pytest.mark.parametrize(
    "answer, form",
    [
        ("", "empty"),
        ("  ", "empty"),
        (r"\boxed{}", "empty"),
        ("12", "integer"),
        ("- 3", "integer"),
        ("1,234", "integer"),
        ("\u22127", "integer"),
        ("0.5", "decimal"),
        ("5.", "decimal"),
        ("1e3", "scientific"),
        ("1.5E-3", "scientific"),
        ("1/3", "fraction"),
        ("-1/3", "fraction"),
        (r"\frac{2}{3}", "fraction"),
        (r"so \boxed{2/3}", "fraction"),
        ("12/36", "unreduced"),
        ("6/3", "unreduced"),
        ("2/1", "unreduced"),
        ("0/5", "unreduced"),
        ("0.5/2", "unreduced"),
        (r"\frac{2}{6}", "unreduced"),
        ("3 1/2", "unreduced"),
        (r"-3\frac{1}{2}", "unreduced"),
        ("1 3/2", "text"),
        ("1/0", "text"),
        ("x", "text"),
        ("12 or 13", "text"),
    ],
)
def test_answer_form(answer, form):
    forms = patterns.answer_form([answer])
    assert ANSWER_FORMS[forms[0]] == form and forms.dtype == np.int32


def test_length_and_its_levels():
    responses = ["", "abc", "abcd", "abcdefgh"]
    assert patterns.length(responses).tolist() == [0, 3, 4, 8]
    levels = patterns.length_level(responses, [1, 4, 8])
    assert levels.tolist() == [0, 1, 2, 3] and levels.dtype == np.int32
    with pytest.raises(ValueError, match="edges"):
        patterns.length_level(responses, [4, 4])


def test_has_box():
    responses = [r"\boxed{1}", r"\boxed{", "1", r" text \boxed{a{b}} ", "", r"\boxed{}"]
    assert patterns.has_box(responses).tolist() == [True, False, False, True, False, True]


def test_contains():
    assert patterns.contains(["a+b", "ab", ""], "a+").tolist() == [True, False, False]
    with pytest.raises(ValueError, match="pattern"):
        patterns.contains(["a"], "")


@given(st.lists(st.text(max_size=50), max_size=5))
def test_any_text_has_features(responses):
    n = len(responses)
    assert patterns.answer_form(responses).shape == (n,)
    assert patterns.has_box(responses).shape == (n,)
    assert patterns.length(responses).shape == (n,)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(0, 2**31))
def test_joint_level_is_a_numbering(sizes, seed):
    grid = np.stack(np.meshgrid(*map(np.arange, sizes), indexing="ij")).reshape(len(sizes), -1)
    order = np.random.default_rng(seed).permutation(grid.shape[1])
    joint = patterns.joint_level([g[order].astype(np.int32) for g in grid], sizes)
    np.testing.assert_array_equal(joint, order)
    assert joint.dtype == np.int32


def test_joint_level_keeps_the_shape_and_refuses_what_does_not_fit():
    box = np.array([[True, False], [False, True]])
    form = np.array([[0, 1], [2, 2]], np.int32)
    assert patterns.joint_level([box, form], [2, 3]).tolist() == [[3, 1], [2, 5]]
    with pytest.raises(ValueError, match=r"levels\[1\]"):
        patterns.joint_level([box, form], [2, 2])
    with pytest.raises(ValueError, match="sizes"):
        patterns.joint_level([box, form], [2])
