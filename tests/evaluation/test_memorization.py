import itertools

import hypothesis
import hypothesis.strategies as st
import pytest

from jaxreward.evaluation import memorization as m

QUESTIONS = ["((3+4)*2)-1:", "7-(2+3):", "is 12 more than 7?"]
texts = st.text("abc", max_size=6)


@pytest.mark.parametrize("share", m.PREFIXES)
def test_card_check_6_an_echo_of_the_remainder_is_exact(share):
    remainders = [m.split_at(q, share)[1] for q in QUESTIONS]
    assert m.completion(remainders, remainders) == (1.0, 1.0)
    assert m.completion([r + " and on" for r in remainders], remainders).exact_match == 1.0
    assert m.completion(["#" * 30] * 3, remainders) == (0.0, 0.0)
    mixed = m.completion([remainders[0], "", "###"], remainders)
    assert mixed.exact_match == pytest.approx(1 / 3) and mixed.rouge_l == pytest.approx(1 / 3)


def test_card_check_6_rouge_of_equal_and_disjoint_texts():
    assert m.rouge_l("abcd", "abcd") == 1.0 and m.rouge_l("abcd", "efg") == 0.0
    assert m.rouge_l("the cat sat".split(), "the dog sat".split()) == pytest.approx(2 / 3)


@hypothesis.given(texts, texts)
def test_rouge_equals_trying_every_subsequence(a, b):
    every = lambda s: {c for n in range(len(s) + 1) for c in itertools.combinations(s, n)}
    common = max(len(c) for c in every(a) & every(b))
    expected = 2 * common / (len(a) + len(b)) if a or b else 1.0
    assert m.rouge_l(a, b) == pytest.approx(expected)


def test_prefixes():
    assert m.split_at("abcdefghij", 0.4) == ("abcd", "efghij")
    assert m.split_at("ab", 0.1) == ("a", "b")
    for bad in (dict(share=0.0), dict(share=1.0), dict(question="a")):
        with pytest.raises(ValueError, match="allowed"):
            m.split_at(**{"question": "abc", "share": 0.5, **bad})
    with pytest.raises(ValueError, match="continuations"):
        m.completion([], [])
