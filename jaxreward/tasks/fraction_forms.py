"""Sums, differences and products of small fractions, answered in any equivalent form.

`12/36` is `1/3`. The canonical answer is reduced; the worked answers that supervised training
shows are written in mixed forms, so that a verifier which compares strings rejects right
answers, at a rate that depends on the form and, through how often each form is used, on the
operator.
"""

import math
import random
from fractions import Fraction
from typing import NamedTuple

from jaxreward.tasks.arithmetic import check_sizes, split_position, split_shares
from jaxreward.tasks.records import Example, exact_value, format_fraction

OPERATORS = ("+", "-", "*")
FORMS = ("reduced", "unreduced", "decimal", "over_one")
"""How an answer is written: `1/2`, `6/12`, `0.5`, and `3/1` for an integer."""

_PLACES = 3  # decimals with more digits are not written


class FractionSpec(NamedTuple):
    """Which prompts to draw and how to write their worked answers.

    Attributes:
      operators: different ones of `+`, `-`, `*`; the prompt types.
      max_numerator: numerators are 1 to this.
      max_denominator: denominators are 2 to this; operands are reduced.
      form_weights: for each operator, weights of `FORMS`. A form that an answer does not
        have (the decimal of 1/3) gives its weight to "reduced".
      sizes: examples by split, as pairs.
      seed: of everything random.
    """

    operators: tuple[str, ...] = OPERATORS
    max_numerator: int = 5
    max_denominator: int = 6
    form_weights: tuple[tuple[float, ...], ...] = (
        (0.2, 0.8, 0.0, 0.0),
        (0.5, 0.0, 0.4, 0.1),
        (0.3, 0.4, 0.2, 0.1),
    )
    sizes: tuple[tuple[str, int], ...] = (("train", 500), ("validation", 150))
    seed: int = 0


class Question(NamedTuple):
    """`left operator right`."""

    left: Fraction
    operator: str
    right: Fraction


def check_spec(spec: FractionSpec) -> None:
    """Raises ValueError naming the first impossible field, its value and what is allowed."""
    operators = spec.operators
    unique = set(operators)
    if not operators or len(unique) < len(operators) or not unique <= set(OPERATORS):
        raise ValueError(f"operators = {operators}; allowed are different ones of {OPERATORS}")
    for field, least in (("max_numerator", 1), ("max_denominator", 2)):
        if getattr(spec, field) < least:
            raise ValueError(f"{field} = {getattr(spec, field)}; allowed is >= {least}")
    shape_fits = len(spec.form_weights) == len(operators) and all(
        len(row) == len(FORMS) for row in spec.form_weights
    )
    if not shape_fits or any(min(row) < 0 or sum(row) <= 0 for row in spec.form_weights):
        raise ValueError(
            f"form_weights = {spec.form_weights}; allowed is for each of {operators} "
            f"{len(FORMS)} weights >= 0 with a positive sum"
        )
    check_sizes(spec.sizes)


def evaluate(question: Question) -> Fraction:
    """The exact value."""
    left, operator, right = question
    if operator == "+":
        return left + right
    return left - right if operator == "-" else left * right


def answer_forms(question: Question) -> dict[str, str]:
    """The ways to write the answer that exist, by name of `FORMS`; "reduced" always does.

    "unreduced" is what is left before the last step: over the product of the denominators
    for a product, over their least common multiple for a sum, or over their product where
    that is already reduced.
    """
    value = evaluate(question)
    forms = {"reduced": format_fraction(value)}
    unreduced = _unreduced(question, value)
    if unreduced:
        forms["unreduced"] = unreduced
    decimal = _decimal(value)
    if decimal:
        forms["decimal"] = decimal
    if value.denominator == 1:
        forms["over_one"] = f"{value.numerator}/1"
    return forms


def _unreduced(question: Question, value: Fraction) -> str | None:
    a, b = question.left.denominator, question.right.denominator
    candidates = (a * b,) if question.operator == "*" else (math.lcm(a, b), a * b)
    for denominator in candidates:
        if denominator > value.denominator:
            return f"{value * denominator}/{denominator}"
    return None


def _decimal(value: Fraction) -> str | None:
    scaled = value * 10**_PLACES
    if value.denominator == 1 or scaled.denominator != 1:
        return None
    digits = f"{abs(scaled.numerator):0{_PLACES + 1}d}"
    text = f"{digits[:-_PLACES]}.{digits[-_PLACES:]}".rstrip("0")
    return f"-{text}" if value < 0 else text


def all_questions(spec: FractionSpec) -> list[Question]:
    """Every question of the spec, in a fixed order."""
    operands = sorted(
        {
            Fraction(n, d)
            for d in range(2, spec.max_denominator + 1)
            for n in range(1, spec.max_numerator + 1)
            if math.gcd(n, d) == 1
        }
    )
    return [
        Question(left, operator, right)
        for operator in spec.operators
        for left in operands
        for right in operands
    ]


def make_examples(spec: FractionSpec) -> dict[str, list[Example]]:
    """The examples of every split, in random order.

    `a + b` and `b + a` are in the same split, so no split shows another's answers.

    Raises:
      ValueError: the spec is impossible, or has fewer questions than a split asks for.
    """
    check_spec(spec)
    questions, examples, shares = all_questions(spec), {}, split_shares(spec.sizes)
    for split, size in spec.sizes:
        rng = random.Random(f"{spec.seed}/{split}")
        low, high = shares[split]
        own = [q for q in questions if low <= split_position(_key(q), spec.seed) < high]
        if len(own) < size:
            raise ValueError(
                f"sizes[{split!r}] = {size}; allowed are at most the {len(own)} questions "
                "that fall to it"
            )
        own = [q for _, q in sorted((rng.random(), q) for q in own)][:size]
        examples[split] = [_example(spec, i, q, rng) for i, q in enumerate(own)]
    return examples


def _key(question: Question) -> str:
    sides = [str(question.left), str(question.right)]
    if question.operator in "+*":
        sides.sort()
    return f"({sides[0]}{question.operator}{sides[1]})"


def _example(
    spec: FractionSpec, position: int, question: Question, rng: random.Random
) -> Example:
    text = f"{question.left}{question.operator}{question.right}"
    kind = spec.operators.index(question.operator)
    forms = answer_forms(question)
    form = _choose_form(spec.form_weights[kind], forms, rng)
    return Example(
        id=position,
        expression=text,
        prompt=f"{text}=",
        worked=forms[form],
        form=FORMS.index(form),
        prompt_type=kind,
        steps=1,
        **exact_value(evaluate(question)),
    )


def _choose_form(weights: tuple[float, ...], forms: dict[str, str], rng: random.Random) -> str:
    point = rng.random() * sum(weights)
    for name, weight in zip(FORMS, weights):
        point -= weight
        if point < 0:
            return name if name in forms else "reduced"
    return "reduced"
