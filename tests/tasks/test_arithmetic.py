import ast
import collections
import functools
import math
import random
import re
from fractions import Fraction

import numpy as np
import pytest

from jaxreward.tasks import arithmetic
from jaxreward.tasks.arithmetic import ExpressionSpec

ALL = (("all", 1000),)
OPERATIONS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a ** int(b),
}


def parse(text: str) -> ast.expr:
    """A tree of any of the three styles, read by Python's own grammar."""
    text = re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"(\1/\2)", text)
    for latex, plain in ((r"\left", ""), (r"\right", ""), (r"\times", "*"), (r"\div", "/")):
        text = text.replace(latex, plain)
    return ast.parse(text.replace("^", "**").replace("{", "").replace("}", ""), mode="eval").body


def value_of(tree: ast.expr) -> Fraction:
    if isinstance(tree, ast.Constant):
        return Fraction(tree.value)
    return OPERATIONS[type(tree.op)](value_of(tree.left), value_of(tree.right))


def canonical(tree: ast.expr) -> str:
    if isinstance(tree, ast.Constant):
        return str(tree.value)
    sides = [canonical(tree.left), canonical(tree.right)]
    if isinstance(tree.op, (ast.Add, ast.Mult)):
        sides.sort()
    return f"({sides[0]}{type(tree.op).__name__}{sides[1]})"


def compound_parts(tree: ast.expr) -> set[str]:
    """Canonical forms of every part with an operation that is no element."""
    found = set()
    for node in ast.walk(tree):
        constants = isinstance(node, ast.BinOp) and all(
            isinstance(side, ast.Constant) for side in (node.left, node.right)
        )
        element = constants and isinstance(node.op, (ast.Pow, ast.Div))
        if isinstance(node, ast.BinOp) and not element:
            found.add(canonical(node))
    return found


@functools.cache
def drawn_of(steps, seed):
    return arithmetic.draw_expressions(ExpressionSpec(steps=(steps,), sizes=ALL, seed=seed))["all"]


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_card_check_2(steps):
    """Exactly i operators, 1000 unique strings, fraction and float agree."""
    drawn = drawn_of(steps, 0)
    assert len({item.plain for item in drawn}) == len({item.latex for item in drawn}) == 1000
    for item in drawn:
        words = re.split(r"[ ()]|\\left|\\right", item.latex)
        assert sum(word in ("+", "-", r"\times", r"\div") for word in words) == steps == item.steps
        assert sum(word in arithmetic.OPERATORS for word in item.plain.split(" ")) == steps
        for text in (item.plain, item.latex):
            assert value_of(parse(text)) == item.value
    examples = arithmetic.make_examples(ExpressionSpec(steps=(steps,), sizes=ALL))["all"]
    for example in examples:
        exact = Fraction(int(example.numerator), int(example.denominator))
        assert math.isclose(example.value, exact, rel_tol=1e-9) or exact == example.value == 0
        assert Fraction(example.answer) == exact == value_of(parse(example.expression))


def test_generator_facts_of_the_paper_card():
    """Published measurements of one draw of 1000; the tolerance is the spread between draws.

    Over seeds the median varies by a factor of 2 either way (values spread over 8 decades).
    """
    facts = {
        1: (3.2e3, 0.09, 0.43, 0.067),
        5: (5.2e4, 0.34, 0.07, 0.084),
        10: (8.2e5, 0.47, 0.01, 0.1),
    }
    for steps, (median, large, integers, reward_of_zero) in facts.items():
        exact = [item.value for seed in range(3) for item in drawn_of(steps, seed)]
        values = np.array([float(value) for value in exact])
        size = np.abs(values)
        assert abs(np.log10(np.median(size)) - np.log10(median)) < 0.5
        assert abs(np.mean(size > 1e6) - large) < 0.05
        assert abs(np.mean([value.denominator == 1 for value in exact]) - integers) < 0.04
        reward = 1 - 0.5 * np.minimum(size, 1) - 0.5 * np.minimum(size / (size + 1e-6), 1)
        assert abs(np.mean(reward) - reward_of_zero) < 0.02


def test_elements_and_operators_are_drawn_equally():
    drawn = arithmetic.draw_expressions(ExpressionSpec(steps=(1,), sizes=(("all", 3000),)))["all"]
    counts = collections.Counter(item.operator for item in drawn)
    rng = random.Random(0)
    elements = [arithmetic.draw_element(ExpressionSpec(), rng).latex for _ in range(3000)]
    kinds = collections.Counter(re.sub(r"\d+", "n", element) for element in elements)
    assert set(counts) == set("+-*/") and len(kinds) == 3
    margin = 4 * math.sqrt(3000 * 0.25 * 0.75)
    assert all(abs(count - 750) < margin for count in counts.values())
    # squares and cubes look alike once digits are gone
    assert abs(kinds["n"] - 750) < margin and abs(kinds[r"\frac{n}{n}"] - 750) < margin


@pytest.mark.parametrize(
    "spec",
    [
        ExpressionSpec(steps=(4,), sizes=(("train", 200), ("validation", 90), ("test", 60))),
        ExpressionSpec(
            steps=(1, 2, 3),
            elements=("integer",),
            operators=("+", "-", "*"),
            high=9,
            style="compact",
            sizes=(("train", 120), ("validation", 60)),
        ),
    ],
)
def test_splits_share_no_expression_and_no_compound_part(spec):
    parts, drawn = {}, arithmetic.draw_expressions(spec)
    for split, size in spec.sizes:
        items = drawn[split]
        assert len(items) == len({item.plain for item in items}) == size
        parts[split] = set().union(*(compound_parts(parse(item.plain)) for item in items))
    names = list(parts)
    assert all(parts[a].isdisjoint(parts[b]) for a in names for b in names if a < b)
    assert max(spec.steps) == 1 or len(parts["train"]) > len(drawn["train"])  # there were parts to leak


def test_steps_are_equal_shares_in_random_order():
    spec = ExpressionSpec(steps=(1, 3), sizes=(("all", 101),), prompt_type="steps")
    examples = arithmetic.make_examples(spec)["all"]
    steps = [example.steps for example in examples]
    assert sorted(collections.Counter(steps).values()) == [50, 51]
    assert steps != sorted(steps)
    assert [example.prompt_type for example in examples] == [(1, 3).index(s) for s in steps]
    assert [example.id for example in examples] == list(range(101))


def test_bounds_hold_for_every_part():
    spec = ExpressionSpec(
        steps=(3,), operators=("+", "*", "/"), high=20, integer_answers=True, max_value=500,
        style="plain", sizes=(("all", 150),),
    )
    for item in arithmetic.draw_expressions(spec)["all"]:
        for node in ast.walk(parse(item.plain)):
            divided = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
            if isinstance(node, ast.BinOp) and not divided and not isinstance(node.op, ast.Pow):
                assert value_of(node).denominator == 1 and abs(value_of(node)) <= 500
        assert item.value.denominator == 1
    spec = ExpressionSpec(steps=(2,), operators=("-",), nonnegative=True, sizes=(("all", 100),))
    for item in arithmetic.draw_expressions(spec)["all"]:
        assert all(value_of(parse(part)) >= 0 for part in (item.plain, *_brackets(item.plain)))


def _brackets(text: str) -> list[str]:
    return re.findall(r"\(([^()]*(?:\([^()]*\)[^()]*)*)\)", text)


def test_same_seed_same_data_other_seed_other_data():
    spec = ExpressionSpec(steps=(2,), sizes=(("train", 50), ("validation", 50)))
    first, again = arithmetic.make_examples(spec), arithmetic.make_examples(spec)
    other = arithmetic.make_examples(spec._replace(seed=1))
    assert first == again
    assert not {e.prompt for e in first["train"]} & {e.prompt for e in other["train"]}


def test_examples_of_the_digit_task():
    spec = ExpressionSpec(
        steps=(1,), elements=("integer",), operators=("+", "-", "*"), high=9, style="compact",
        prefix="", suffix="=", sizes=(("train", 150),),
    )
    for example in arithmetic.make_examples(spec)["train"]:
        match = re.fullmatch(r"(\d)([-+*])(\d)=", example.prompt)
        a, operator, b = int(match[1]), match[2], int(match[3])
        assert example.prompt_type == "+-*".index(operator)
        assert example.answer == str({"+": a + b, "-": a - b, "*": a * b}[operator])
        assert example.worked == example.answer and example.form == 0


def test_sums_without_carry_are_done_digit_by_digit():
    spec = ExpressionSpec(
        steps=(1,), elements=("integer",), operators=("+", "-"), high=999, carries=False,
        style="plain", sizes=(("all", 300),),
    )
    for item in arithmetic.draw_expressions(spec)["all"]:
        left, operator, right = item.plain.split(" ")
        pairs = zip(left.zfill(3), right.zfill(3))
        sign = 1 if operator == "+" else -1
        digits = [int(a) + sign * int(b) for a, b in pairs]
        assert all(0 <= digit <= 9 for digit in digits)
        assert int("".join(map(str, digits))) == item.value
    assert arithmetic.carries("+", 27, 48) and arithmetic.carries("-", 52, 17)
    assert not arithmetic.carries("+", 27, 42) and not arithmetic.carries("-", 57, 12)


def test_division_by_zero_is_refused():
    one = arithmetic.Expression("1", "1", "1", Fraction(1))
    zero = arithmetic.combine("-", one, one)
    assert arithmetic.combine("/", one, zero) is None
    assert arithmetic.combine("/", zero, one).value == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": ()}, r"steps = \(\)"),
        ({"steps": (0,)}, r"steps = \(0,\).*>= 1"),
        ({"elements": ("root",)}, r"elements = \('root',\)"),
        ({"operators": ("+", "+")}, "different"),
        ({"low": 5, "high": 4}, "low, high = 5, 4"),
        ({"high": 0}, "high >= 1"),
        ({"max_value": -1}, "max_value = -1"),
        ({"style": "roman"}, "style = 'roman'"),
        ({"style": "compact"}, "cannot tell"),
        ({"carries": False}, "carries = False with elements = .*allowed is"),
        ({"carries": False, "elements": ("integer",)}, r"and operators = \('\+', '-', '\*', '/'"),
        ({"prompt_type": "colour"}, "prompt_type = 'colour'"),
        ({"sizes": ()}, "each split once"),
        ({"sizes": (("a", 5), ("a", 5))}, "each split once"),
        ({"sizes": (("train", 0),)}, r"sizes\['train'\] = 0; allowed is >= 1"),
    ],
)
def test_impossible_specs(change, message):
    with pytest.raises(ValueError, match=message):
        arithmetic.draw_expressions(ExpressionSpec()._replace(**change))


def test_a_space_that_is_too_small_is_named():
    spec = ExpressionSpec(
        steps=(1,), elements=("integer",), operators=("+",), high=4, sizes=(("train", 26),)
    )
    with pytest.raises(ValueError, match=r"sizes\['train'\] = 26 .* at most the 25"):
        arithmetic.draw_expressions(spec)
    found = arithmetic.draw_expressions(spec._replace(sizes=(("train", 25),)))["train"]
    assert len(found) == 25
