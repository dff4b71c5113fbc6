r"""Random arithmetic expressions with exact values: the leakage-free RandomCalculation set.

Expressions with `i` binary operations are built from shorter ones, `j` and `i - 1 - j`
operations on the two sides, for `j = 0 .. ceil(i / 2) - 1` (arXiv 2507.10532, Algorithm 1;
the bound is one less than printed there, where it names a list that does not exist).

Splits share no expression and no compound part of one: each compound expression belongs to
one split, decided by a hash of its canonical form (the same for `2 + 3` and `3 + 2`), and is
built from parts of the same split only. Elements (`7`, `3/4`, `5^2`) are shared.
"""

import hashlib
import itertools
import random
from fractions import Fraction
from typing import NamedTuple

from jaxreward.tasks.records import Example, exact_value

ELEMENTS = ("integer", "fraction", "square", "cube")
OPERATORS = ("+", "-", "*", "/")
STYLES = ("plain", "compact", "latex")
PROMPT_TYPES = ("operator", "steps")
INSTRUCTION = "evaluate this expression step by step and put its final value in \\boxed{}: "

_LATEX = {"+": "+", "-": "-", "*": r"\times", "/": r"\div"}
_LARGEST = Fraction(10) ** 300  # beyond this a float64 cannot hold the value


class ExpressionSpec(NamedTuple):
    """What expressions to draw.

    Attributes:
      steps: numbers of binary operations, each an equal share of every split.
      elements: kinds of element, drawn with equal probability.
      operators: drawn with equal probability.
      low: smallest integer in an element, >= 0.
      high: largest integer in an element.
      max_value: bound on the absolute value of the expression and its parts; 0 for none.
      integer_answers: whether the expression and its compound parts must be integers.
      nonnegative: whether they must be >= 0.
      carries: False allows no sum that carries and no difference that borrows between decimal
        digits; for integers under + and - only.
      style: "plain" `(3/4) + 5^2`, "compact" `7+5`, "latex" `\frac{3}{4} + 5^{2}`.
      prefix: text before the expression in the prompt.
      suffix: text after it.
      prompt_type: what the type of a prompt is: the top "operator" or the number of "steps".
      shared_parts: True lets splits share compound parts (and only those: whole expressions
        stay in one split), for questions about new combinations of known facts.
      sizes: examples by split, as pairs.
      seed: of everything random.
    """

    steps: tuple[int, ...] = (5,)
    elements: tuple[str, ...] = ELEMENTS
    operators: tuple[str, ...] = OPERATORS
    low: int = 0
    high: int = 100
    max_value: int = 0
    integer_answers: bool = False
    nonnegative: bool = False
    carries: bool = True
    style: str = "latex"
    prefix: str = INSTRUCTION
    suffix: str = " ="
    prompt_type: str = "operator"
    shared_parts: bool = False
    sizes: tuple[tuple[str, int], ...] = (("train", 700), ("validation", 300))
    seed: int = 0


class Expression(NamedTuple):
    """An expression and its value.

    Attributes:
      plain: text with spaces around operators and parentheses around every compound part.
      latex: the same in LaTeX.
      key: canonical form, equal for expressions that differ in the order of + and * only.
      value: exact.
      steps: number of binary operations.
      operator: the one applied last, empty for an element.
      closed: whether it can stand as an operand without parentheses.
      parts: the expressions on both sides of the operator, none for an element.
    """

    plain: str
    latex: str
    key: str
    value: Fraction
    steps: int = 0
    operator: str = ""
    closed: bool = True
    parts: tuple["Expression", ...] = ()


def check_spec(spec: ExpressionSpec) -> None:
    """Raises ValueError naming the first impossible field, its value and what is allowed."""
    choices = {"elements": ELEMENTS, "operators": OPERATORS}
    for field, allowed in choices.items():
        value = getattr(spec, field)
        if not value or len(set(value)) < len(value) or not set(value) <= set(allowed):
            raise ValueError(f"{field} = {value}; allowed are different ones of {allowed}")
    for field, allowed in {"style": STYLES, "prompt_type": PROMPT_TYPES}.items():
        if getattr(spec, field) not in allowed:
            raise ValueError(f"{field} = {getattr(spec, field)!r}; allowed are {allowed}")
    if not spec.steps or len(set(spec.steps)) < len(spec.steps) or min(spec.steps) < 1:
        raise ValueError(f"steps = {spec.steps}; allowed are different integers >= 1")
    if not 0 <= spec.low <= spec.high or spec.high < 1:
        raise ValueError(
            f"low, high = {spec.low}, {spec.high}; allowed is 0 <= low <= high and high >= 1"
        )
    if spec.max_value < 0:
        raise ValueError(f"max_value = {spec.max_value}; allowed is > 0, or 0 for no bound")
    if spec.style == "compact" and "fraction" in spec.elements and "/" in spec.operators:
        raise ValueError(
            "style = 'compact' cannot tell the element 3/4 from the operation 3/4; allowed "
            "are 'plain' and 'latex', or elements without 'fraction'"
        )
    if not spec.carries and (spec.elements != ("integer",) or set(spec.operators) - set("+-")):
        raise ValueError(
            f"carries = False with elements = {spec.elements} and operators = {spec.operators}; "
            "allowed is ('integer',) with + and -"
        )
    check_sizes(spec.sizes, len(spec.steps))


def check_sizes(sizes: tuple[tuple[str, int], ...], least: int = 1) -> None:
    """Raises ValueError unless every split is named once and has at least `least` examples."""
    names = [name for name, _ in sizes]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"sizes name the splits {names}; allowed is each split once")
    for name, size in sizes:
        if size < least:
            raise ValueError(f"sizes[{name!r}] = {size}; allowed is >= {least}")


def combine(operator: str, left: Expression, right: Expression) -> Expression | None:
    """`left operator right` with its exact value; None where that divides by zero."""
    if operator == "/" and right.value == 0:
        return None
    compute = {
        "+": lambda: left.value + right.value,
        "-": lambda: left.value - right.value,
        "*": lambda: left.value * right.value,
        "/": lambda: left.value / right.value,
    }
    sides = [left.key, right.key]
    if operator in "+*":
        sides.sort()
    plain = [side.plain if side.closed else f"({side.plain})" for side in (left, right)]
    latex = [rf"\left({s.latex}\right)" if s.steps else s.latex for s in (left, right)]
    return Expression(
        plain=f"{plain[0]} {operator} {plain[1]}",
        latex=f"{latex[0]} {_LATEX[operator]} {latex[1]}",
        key=f"({sides[0]}{operator}{sides[1]})",
        value=compute[operator](),
        steps=left.steps + right.steps + 1,
        operator=operator,
        closed=False,
        parts=(left, right),
    )


def draw_element(spec: ExpressionSpec, rng: random.Random) -> Expression:
    """A basic element: an integer, a fraction, a square or a cube."""
    kind = _choose(rng, spec.elements)
    a = _integer(rng, spec.low, spec.high)
    if kind == "integer":
        return Expression(str(a), str(a), str(a), Fraction(a))
    if kind == "fraction":
        b = _integer(rng, max(1, spec.low), spec.high)
        text = f"{a}/{b}"
        return Expression(
            text, rf"\frac{{{a}}}{{{b}}}", f"[{text}]", Fraction(a, b), closed=False
        )
    power = 2 if kind == "square" else 3
    text = f"{a}^{power}"
    return Expression(text, f"{a}^{{{power}}}", text, Fraction(a**power))


# `random()` is the one draw that Python promises to keep stable across versions.
def _integer(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _choose(rng: random.Random, options):
    return options[int(rng.random() * len(options))]


def draw_expressions(spec: ExpressionSpec) -> dict[str, list[Expression]]:
    """The expressions of every split, unique and in random order.

    Raises:
      ValueError: the spec is impossible, or has fewer expressions than a split asks for.
    """
    check_spec(spec)
    shares = split_shares(spec.sizes)
    return {
        split: _draw_split(spec, split, size, shares[split]) for split, size in spec.sizes
    }


def _draw_split(
    spec: ExpressionSpec, split: str, size: int, share: tuple[float, float]
) -> list[Expression]:
    rng = random.Random(f"{spec.seed}/{split}")
    lists: list[list[Expression]] = [[]]  # by number of operations; elements are drawn afresh
    for steps in range(1, max(spec.steps) + 1):
        of_parts = (0.0, 1.0) if spec.shared_parts else share
        lists.append(_draw_list(spec, lists, size, of_parts, rng))
    if spec.shared_parts:
        for steps in sorted(spec.steps, reverse=True):  # longest first: it needs the others' parts
            lists[steps] = _draw_list(spec, lists[:steps], size, share, rng)
    chosen = []
    for index, steps in enumerate(spec.steps):
        part = range(size * index // len(spec.steps), size * (index + 1) // len(spec.steps))
        if len(lists[steps]) < len(part):
            raise ValueError(
                f"sizes[{split!r}] = {size} asks for {len(part)} expressions with {steps} "
                f"operations; allowed are at most the {len(lists[steps])} that were found"
            )
        chosen.extend(lists[steps][: len(part)])
    return [item for _, item in sorted((rng.random(), item) for item in chosen)]


def _draw_list(
    spec: ExpressionSpec,
    lists: list[list[Expression]],
    size: int,
    share: tuple[float, float],
    rng: random.Random,
) -> list[Expression]:
    """Up to `size` unique expressions one operation longer than the longest in `lists`."""
    steps, found, misses = len(lists), {}, 0
    patience = 1000 + 50 * size
    while len(found) < size and misses < patience:
        for j in range((steps + 1) // 2):
            sides = [_side(spec, lists, count, rng) for count in (j, steps - 1 - j)]
            operator = _choose(rng, spec.operators)
            if rng.random() < 0.5:
                sides.reverse()
            made = _combine(spec, operator, *sides)
            misses += 1
            if made and made.plain not in found and _accept(spec, made, share):
                found[made.plain] = made
                misses = 0
    return list(found.values())[:size]


def _combine(
    spec: ExpressionSpec, operator: str, left: Expression | None, right: Expression | None
) -> Expression | None:
    if left is None or right is None:
        return None
    if not spec.carries and carries(operator, left.value.numerator, right.value.numerator):
        return None
    return combine(operator, left, right)


def carries(operator: str, left: int, right: int) -> bool:
    """Whether `left + right` carries or `left - right` borrows between decimal digits."""
    while left or right:
        if left % 10 + right % 10 > 9 if operator == "+" else left % 10 < right % 10:
            return True
        left, right = left // 10, right // 10
    return False


def _side(spec, lists, count: int, rng: random.Random) -> Expression | None:
    if count == 0:
        return draw_element(spec, rng)
    return _choose(rng, lists[count]) if lists[count] else None


def _accept(spec: ExpressionSpec, made: Expression, share: tuple[float, float]) -> bool:
    if spec.integer_answers and made.value.denominator != 1:
        return False
    if spec.nonnegative and made.value < 0:
        return False
    if abs(made.value) > (spec.max_value or _LARGEST):
        return False
    return share[0] <= split_position(made.key, spec.seed) < share[1]


def split_shares(sizes: tuple[tuple[str, int], ...]) -> dict[str, tuple[float, float]]:
    """The interval of [0, 1) that each split owns, about proportional to its size.

    What falls into an interval varies by the square root of its expectation, so small splits
    get a little more than their share.
    """
    weights = [size + 2.0 * size**0.5 for _, size in sizes]
    edges = [0.0, *itertools.accumulate(weight / sum(weights) for weight in weights)]
    edges[-1] = 1.0
    return {split: (edges[i], edges[i + 1]) for i, (split, _) in enumerate(sizes)}


def split_position(key: str, seed: int) -> float:
    """Where in [0, 1) a canonical form falls; the splits share that interval out."""
    digest = hashlib.sha256(f"{seed}|{key}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def prompt_type_names(spec: ExpressionSpec) -> tuple[str, ...]:
    """Names of the prompt types, by index."""
    return spec.operators if spec.prompt_type == "operator" else tuple(map(str, spec.steps))


def render(expression: Expression, style: str) -> str:
    """The text of an expression in a style of `STYLES`."""
    if style == "latex":
        return expression.latex
    return expression.plain if style == "plain" else expression.plain.replace(" ", "")


def make_examples(spec: ExpressionSpec) -> dict[str, list[Example]]:
    """The examples of every split. Raises as `draw_expressions`."""
    return {
        split: [_example(spec, position, item) for position, item in enumerate(items)]
        for split, items in draw_expressions(spec).items()
    }


def _example(spec: ExpressionSpec, position: int, expression: Expression) -> Example:
    text = render(expression, spec.style)
    kind = expression.operator if spec.prompt_type == "operator" else str(expression.steps)
    exact = exact_value(expression.value)
    return Example(
        id=position,
        expression=text,
        prompt=spec.prefix + text + spec.suffix,
        worked=exact["answer"],
        form=0,
        prompt_type=prompt_type_names(spec).index(kind),
        steps=expression.steps,
        **exact,
    )
