import collections
from fractions import Fraction

import pytest

from jaxreward.tasks import fraction_forms
from jaxreward.tasks.fraction_forms import FORMS, FractionSpec, Question

SPEC = FractionSpec()


def test_forms_by_hand():
    half, third, sixth = Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)
    forms = fraction_forms.answer_forms
    assert forms(Question(third, "+", sixth)) == {
        "reduced": "1/2", "unreduced": "3/6", "decimal": "0.5"
    }
    assert forms(Question(half, "+", half)) == {
        "reduced": "1", "unreduced": "2/2", "over_one": "1/1"
    }
    assert forms(Question(third, "-", half)) == {"reduced": "-1/6"}
    assert forms(Question(Fraction(3, 2), "*", third)) == {
        "reduced": "1/2", "unreduced": "3/6", "decimal": "0.5"
    }
    assert forms(Question(Fraction(1, 4), "-", half))["decimal"] == "-0.25"
    assert forms(Question(Fraction(5, 4), "*", Fraction(5, 4)))["reduced"] == "25/16"
    assert "decimal" not in forms(Question(Fraction(5, 4), "*", Fraction(5, 4)))  # 4 digits
    assert forms(Question(Fraction(5, 2), "+", Fraction(1, 8)))["decimal"] == "2.625"


def test_every_form_of_every_question_has_the_value():
    questions = fraction_forms.all_questions(SPEC)
    assert len(questions) == len(set(questions)) == 3 * 16 * 16
    for question in questions:
        left, operator, right = question
        value = {"+": left + right, "-": left - right, "*": left * right}[operator]
        forms = fraction_forms.answer_forms(question)
        assert forms["reduced"] == str(value)
        assert all(Fraction(text) == value for text in forms.values())
        assert len(set(forms.values())) == len(forms) and set(forms) <= set(FORMS)


def test_examples_are_exact_and_disjoint():
    examples = fraction_forms.make_examples(SPEC)
    assert {split: len(items) for split, items in examples.items()} == dict(SPEC.sizes)
    seen = {}
    for split, items in examples.items():
        assert [example.id for example in items] == list(range(len(items)))
        for example in items:
            operator = "+-*"[example.prompt_type]
            assert example.prompt == example.expression + "="
            left, right = example.expression.split(operator, 1)
            sides = (left, right) if operator == "-" else tuple(sorted((left, right)))
            assert seen.setdefault((operator, sides), split) == split
            exact = Fraction(example.answer)
            assert str(exact) == example.answer
            assert Fraction(example.worked) == exact
            assert (int(example.numerator), int(example.denominator)) == exact.as_integer_ratio()
    assert fraction_forms.make_examples(SPEC) == examples


def test_a_string_match_has_false_negatives_that_vary_with_type_and_form():
    examples = fraction_forms.make_examples(SPEC)["train"]
    wrong, total = collections.Counter(), collections.Counter()
    for example in examples:
        total[example.prompt_type] += 1
        wrong[example.prompt_type] += example.worked != example.answer
        assert (FORMS[example.form] == "reduced") == (example.worked == example.answer)
    rates = [wrong[kind] / total[kind] for kind in range(3)]
    assert 0.25 < rates[0] < 0.5 and 0.1 < rates[1] < 0.25 and 0.2 < rates[2] < 0.45
    assert {FORMS[example.form] for example in examples} == set(FORMS)


def test_weights_are_the_shares_of_the_forms():
    """Where a form exists, it is used with its weight's share, within 4 standard errors."""
    spec = SPEC._replace(
        operators=("+",), form_weights=((0.2, 0.8, 0.0, 0.0),), sizes=(("all", 256),)
    )
    counts = collections.Counter()
    for seed in range(6):
        for example in fraction_forms.make_examples(spec._replace(seed=seed))["all"]:
            left, right = map(Fraction, example.expression.split("+"))
            if "unreduced" in fraction_forms.answer_forms(Question(left, "+", right)):
                counts[FORMS[example.form]] += 1
    total = sum(counts.values())
    assert abs(counts["unreduced"] / total - 0.8) < 4 * (0.16 / total) ** 0.5


@pytest.mark.parametrize(
    "change, message",
    [
        ({"operators": ()}, r"operators = \(\)"),
        ({"operators": ("+", "/", "*")}, "operators"),
        ({"max_numerator": 0}, "max_numerator = 0; allowed is >= 1"),
        ({"max_denominator": 1}, "max_denominator = 1; allowed is >= 2"),
        ({"form_weights": ((1.0,) * 4,)}, "form_weights"),
        ({"form_weights": ((1.0,) * 4, (0.0,) * 4, (1.0,) * 4)}, "positive sum"),
        ({"form_weights": ((1.0,) * 4, (-1.0, 2.0, 0.0, 0.0), (1.0,) * 4)}, ">= 0"),
        ({"sizes": (("train", 0),)}, r"sizes\['train'\] = 0"),
        ({"sizes": (("train", 769),)}, r"sizes\['train'\] = 769; allowed are at most the 768"),
    ],
)
def test_impossible_specs(change, message):
    with pytest.raises(ValueError, match=message):
        fraction_forms.make_examples(SPEC._replace(**change))
