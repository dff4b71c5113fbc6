"""Execution traces of integer programs, with noise in the text or in the execution.

A program is a plain function `(inputs, apply) -> int` that does every operation through
`apply(operator, left, right)`, so that running it yields its trace. Static noise changes the
printed trace of a right execution and leaves the answer alone; dynamic noise changes a result
while the program runs, so that all that follows, the answer too, is computed from it
(arXiv 2402.04004).

The prompt is the program and its inputs, `add 3 5 2 9:`; the worked text is the trace, `=` and
the answer: `3+5=8 8+2=10 10+9=19=19` in the style "lines", `8 10 19=19` in the style "values".
In the style "digits" everything is one digit: `352981:` and `355999=9`.
What follows the last `=` is the final answer.
"""

import random
from fractions import Fraction
from typing import Any, Callable, NamedTuple, Sequence

from jaxreward.tasks.arithmetic import check_sizes
from jaxreward.tasks.records import Example, exact_value
from jaxreward.tasks.worked import SEPARATOR

Apply = Callable[[str, int, int], int]
"""`(operator, left, right) -> result`."""

Program = Callable[[Sequence[int], Apply], int]

MODULUS = 10

OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "*": lambda a, b: a * b,
    "%": lambda a, b: a % b if b else a,
    "max": max,
    "min": min,
    "+m": lambda a, b: (a + b) % MODULUS,  # written "+"
}
"""What `apply` can do. "+m" adds modulo `MODULUS`, "%" by zero is the left side."""


def add(inputs: Sequence[int], apply: Apply) -> int:
    """The sum, from the first input on."""
    return _fold("+", inputs[0], inputs[1:], apply)


def multiply(inputs: Sequence[int], apply: Apply) -> int:
    """The product, from the first input on."""
    return _fold("*", inputs[0], inputs[1:], apply)


def largest(inputs: Sequence[int], apply: Apply) -> int:
    """The maximum, from the first input on."""
    return _fold("max", inputs[0], inputs[1:], apply)


def running_max(inputs: Sequence[int], apply: Apply) -> int:
    """The maximum of 0 and the inputs: as many operations as inputs."""
    return _fold("max", 0, inputs, apply)


def running_sum(inputs: Sequence[int], apply: Apply) -> int:
    """The sum modulo `MODULUS` from 0 on: as many operations as inputs."""
    return _fold("+m", 0, inputs, apply)


def median(inputs: Sequence[int], apply: Apply) -> int:
    """The lower median, by sorting with compare and exchange."""
    values = list(inputs)
    for end in range(len(values) - 1, 0, -1):
        for i in range(end):
            pair = values[i], values[i + 1]
            values[i], values[i + 1] = apply("min", *pair), apply("max", *pair)
    return values[(len(values) - 1) // 2]


def gcd(inputs: Sequence[int], apply: Apply) -> int:
    """The greatest common divisor by Euclid's remainders; at most 64 of them."""
    a, b = inputs[0], inputs[0]
    for value in inputs[1:]:
        a, b = abs(a), abs(value)
        for _ in range(64):  # a noisy remainder need not shrink
            if b == 0:
                break
            a, b = b, abs(apply("%", a, b))
    return abs(a)


def _fold(operator: str, start: int, values: Sequence[int], apply: Apply) -> int:
    for value in values:
        start = apply(operator, start, value)
    return start


PROGRAMS: dict[str, Program] = {
    "add": add,
    "multiply": multiply,
    "max": largest,
    "median": median,
    "gcd": gcd,
    "runmax": running_max,
    "runsum": running_sum,
}
STYLES = ("lines", "values", "digits")
_OF_DIGITS = ("max", "runmax", "runsum")
NOISES = ("none", "static", "dynamic")
UNITS = ("number", "digit", "delete", "line_delete", "line_swap")
CHANGES = ("digit", "offset")
KEEPS = ("all", "clean", "right", "random")
FORMS = ("clean", "harmless", "destructive")
"""What noise did to an example: nothing, left the answer right, made it wrong."""


class Line(NamedTuple):
    """One operation: `left operator right = result`."""

    left: int
    operator: str
    right: int
    result: int


class TracedSpec(NamedTuple):
    """Which programs and inputs to draw, and the noise in the training split.

    Attributes:
      program: one of `PROGRAMS`.
      inputs: how many integers.
      low: smallest input, where inputs are drawn by magnitude: uniform on `low .. high`.
      high: largest input.
      digits: if > 0, inputs are drawn by length: 1 to `digits` digits with equal probability,
        then the digits, the first not 0 where there are more. `low`, `high` are not used then.
      style: "lines" prints every operation, "values" its result alone, "digits" too, without
        spaces and the program's name, for programs whose numbers are all one digit.
      noise: "none", "static" or "dynamic"; the split "train" alone has it.
      contamination: share of the examples that receive noise, drawn for each on its own.
      intensity: probability that a unit of such an example (dynamic: a result) is hit.
      unit: what static noise hits. "number": a printed number is replaced; "digit": a digit is
        replaced; "delete": a character of a line is deleted; "line_delete"; "line_swap": a
        line changes places with the next.
      change: how a number is replaced, static and dynamic. "digit": by a different one of
        0..9, "offset": by adding one of `offsets`.
      offsets: integers without 0.
      keep: which training examples are left: "all"; "clean" drops all with noise, "right"
        those with a wrong answer; "random" drops as many as "right", at random.
      sizes: examples by split, as pairs, before dropping.
      seed: of everything random; noise has a stream of its own.
    """

    program: str = "runmax"
    inputs: int = 6
    low: int = 0
    high: int = 9
    digits: int = 0
    style: str = "values"
    noise: str = "none"
    contamination: float = 0.0
    intensity: float = 0.0
    unit: str = "number"
    change: str = "digit"
    offsets: tuple[int, ...] = (-3, -2, -1, 1, 2, 3)
    keep: str = "all"
    sizes: tuple[tuple[str, int], ...] = (("train", 4000), ("test", 1000))
    seed: int = 0


class Traced(NamedTuple):
    """An execution, printed.

    Attributes:
      lines: texts of the operations, as printed.
      answer: the answer as printed.
      hit: whether noise changed anything.
    """

    lines: tuple[str, ...]
    answer: int
    hit: bool


def check_spec(spec: TracedSpec) -> None:
    """Raises ValueError naming the first impossible field, its value and what is allowed."""
    choices = {"program": tuple(PROGRAMS), "style": STYLES, "noise": NOISES}
    choices |= {"unit": UNITS, "change": CHANGES, "keep": KEEPS}
    for name, allowed in choices.items():
        if getattr(spec, name) not in allowed:
            raise ValueError(f"{name} = {getattr(spec, name)!r}; allowed are {', '.join(allowed)}")
    for name in ("contamination", "intensity"):
        if not 0 <= getattr(spec, name) <= 1:
            raise ValueError(f"{name} = {getattr(spec, name)}; allowed is [0, 1]")
    if spec.inputs < 2:
        raise ValueError(f"inputs = {spec.inputs}; allowed is >= 2")
    if spec.digits < 0 or not 0 <= spec.low <= spec.high:
        raise ValueError(
            f"digits, low, high = {spec.digits}, {spec.low}, {spec.high}; allowed is digits >= 0 "
            "and 0 <= low <= high"
        )
    if spec.style == "digits":
        one_digit = spec.digits < 2 and (spec.digits == 1 or spec.high < 10)
        if not one_digit or spec.change != "digit" or spec.program not in _OF_DIGITS:
            raise ValueError(
                f"style = 'digits' with program = {spec.program!r}, high = {spec.high}, digits = "
                f"{spec.digits}, change = {spec.change!r}; allowed are {_OF_DIGITS}, one-digit "
                "inputs and 'digit'"
            )
    if not spec.offsets or 0 in spec.offsets:
        raise ValueError(f"offsets = {spec.offsets}; allowed are integers without 0")
    check_sizes(spec.sizes)


def execute(
    program: Program, inputs: Sequence[int], change: Callable[[int, int], int] | None = None
) -> tuple[list[Line], int]:
    """Runs a program and records what it does.

    Args:
      program: see `Program`.
      inputs: its inputs.
      change: `(number of the operation, result) -> result`, noise in the execution.

    Returns:
      The operations with the results that were used, and the answer.
    """
    lines: list[Line] = []

    def apply(operator: str, left: int, right: int) -> int:
        result = OPERATORS[operator](left, right)
        result = result if change is None else change(len(lines), result)
        lines.append(Line(left, operator, right, result))
        return result

    return lines, program(inputs, apply)


def draw_inputs(spec: TracedSpec, rng: random.Random) -> list[int]:
    """The inputs of one example, by magnitude or by length."""
    return [_draw_input(spec, rng) for _ in range(spec.inputs)]


def _draw_input(spec: TracedSpec, rng: random.Random) -> int:
    if not spec.digits:
        return spec.low + int(rng.random() * (spec.high - spec.low + 1))
    length = 1 + int(rng.random() * spec.digits)
    first = 1 if length > 1 else 0
    digits = [first + int(rng.random() * (10 - first))]
    digits += [int(rng.random() * 10) for _ in range(length - 1)]
    return int("".join(map(str, digits)))


def render(line: Line, style: str) -> str:
    """One operation as text."""
    if style != "lines":
        return str(line.result)
    sign = "+" if line.operator == "+m" else line.operator
    sign = sign if len(sign) == 1 else f" {sign} "
    return f"{line.left}{sign}{line.right}={line.result}"


def traced(spec: TracedSpec, inputs: Sequence[int], noise: random.Random | None) -> Traced:
    """The execution of the spec's program as printed, with the spec's noise from `noise`."""
    program = PROGRAMS[spec.program]
    clean, answer = execute(program, inputs)
    if noise is None:
        return Traced(tuple(render(line, spec.style) for line in clean), answer, False)
    if spec.noise == "dynamic":
        hit = lambda _, value: _changed(spec, value, noise) if _strikes(spec, noise) else value
        lines, answer = execute(program, inputs, hit)
        return Traced(tuple(render(line, spec.style) for line in lines), answer, lines != clean)
    lines = [_static(spec, line, noise) for line in clean]
    if spec.unit == "line_delete":
        lines = [line for line in lines if not _strikes(spec, noise)]
    if spec.unit == "line_swap":
        for i in range(len(lines) - 1):
            if _strikes(spec, noise):
                lines[i], lines[i + 1] = lines[i + 1], lines[i]
    changed = lines != [render(line, spec.style) for line in clean]
    return Traced(tuple(lines), answer, changed)


def _static(spec: TracedSpec, line: Line, rng: random.Random) -> str:
    if spec.unit == "number":
        numbers = ("left", "right", "result") if spec.style == "lines" else ("result",)
        hit = [name for name in numbers if _strikes(spec, rng)]
        changes = {name: _changed(spec, getattr(line, name), rng) for name in hit}
        return render(line._replace(**changes), spec.style)
    text = render(line, spec.style)
    if spec.unit == "digit":
        return "".join(
            str(_other_digit(int(c), rng)) if c.isdigit() and _strikes(spec, rng) else c
            for c in text
        )
    if spec.unit == "delete":
        return "".join(c for c in text if not _strikes(spec, rng))
    return text


def _strikes(spec: TracedSpec, rng: random.Random) -> bool:
    return rng.random() < spec.intensity


def _changed(spec: TracedSpec, value: int, rng: random.Random) -> int:
    """A different number."""
    if spec.change == "digit":
        return _other_digit(value, rng)
    return value + spec.offsets[int(rng.random() * len(spec.offsets))]


def _other_digit(value: int, rng: random.Random) -> int:
    """One of 0..9 that is not `value`."""
    others = [digit for digit in range(10) if digit != value]
    return others[int(rng.random() * len(others))]


def make_examples(spec: TracedSpec) -> dict[str, list[Example]]:
    """The examples of every split; `form` says what noise did, see `FORMS`.

    Raises:
      ValueError: see `check_spec`; nothing is left of the training split.
    """
    check_spec(spec)
    return {split: _split(spec, split, size) for split, size in spec.sizes}


def _split(spec: TracedSpec, split: str, size: int) -> list[Example]:
    rng = random.Random(f"{spec.seed}/traced/{split}")
    noise = random.Random(f"{spec.seed}/noise/{split}")
    noisy = split == "train" and spec.noise != "none"
    rows = []
    for _ in range(size):
        inputs = draw_inputs(spec, rng)
        hit = noisy and noise.random() < spec.contamination
        rows.append((inputs, traced(spec, inputs, noise if hit else None)))
    examples = [_example(spec, inputs, shown) for inputs, shown in rows]
    if split == "train":
        examples = _kept(spec, examples)
    return [example._replace(id=i) for i, example in enumerate(examples)]


def _example(spec: TracedSpec, inputs: list[int], shown: Traced) -> Example:
    lines, answer = execute(PROGRAMS[spec.program], inputs)
    form = 0 if not shown.hit else 1 if shown.answer == answer else 2
    values = exact_value(Fraction(answer))
    space, name = ("", "") if spec.style == "digits" else (" ", f"{spec.program} ")
    text = name + space.join(map(str, inputs))
    return Example(
        id=0,
        expression=text,
        prompt=f"{text}:",
        worked=space.join(shown.lines) + SEPARATOR + str(shown.answer),
        form=form,
        prompt_type=0,
        steps=len(lines),
        **values,
    )


def _kept(spec: TracedSpec, examples: list[Example]) -> list[Example]:
    right = [e for e in examples if e.form != FORMS.index("destructive")]
    if spec.keep == "clean":
        right = [e for e in examples if e.form == FORMS.index("clean")]
    elif spec.keep == "random":
        rng = random.Random(f"{spec.seed}/keep")
        order = sorted(range(len(examples)), key=lambda i: (rng.random(), i))
        right = [examples[i] for i in sorted(order[: len(right)])]
    elif spec.keep == "all":
        right = examples
    if not right:
        raise ValueError(f"keep = {spec.keep!r} leaves no training example; allowed is less noise")
    return right


def line_checks(spec: TracedSpec, inputs: Sequence[int], text: str) -> dict[str, float]:
    """How much of a written trace is right.

    Returns:
      `equal`, the share of the clean lines that stand at their place in the text (1 where a run
      without operations has none written), and `consistent`, the share of the written lines that follow from what they show: in the style
      "lines" from their own numbers, in the others (for programs that fold their inputs) from
      the line before and the input.
    """
    trace = text.rsplit(SEPARATOR, 1)[0] if SEPARATOR in text else ""
    written = list(trace) if spec.style == "digits" else trace.split(" ") if trace else []
    clean, _ = execute(PROGRAMS[spec.program], inputs)
    wanted = [render(line, spec.style) for line in clean]
    if spec.style == "lines":
        written = _joined(written)
    if not wanted:
        return dict.fromkeys(("equal", "consistent"), float(not written))
    equal = sum(a == b for a, b in zip(written, wanted)) / len(wanted)
    follows = [_follows(spec, clean, written, i) for i in range(len(written))]
    return {"equal": equal, "consistent": sum(follows) / len(follows) if follows else 0.0}


def _joined(words: list[str]) -> list[str]:
    """`3 max 5=5` is one line though it holds spaces."""
    lines, open_words = [], []
    for word in words:
        open_words.append(word)
        if SEPARATOR in word:
            lines.append(" ".join(open_words))
            open_words = []
    return lines + ([" ".join(open_words)] if open_words else [])


def _follows(spec: TracedSpec, clean: list[Line], written: list[str], i: int) -> bool:
    if i >= len(clean):
        return False
    operator = clean[i].operator
    if spec.style != "lines":
        before = written[i - 1] if i else str(clean[0].left)
        parts: list[Any] = [before, str(clean[i].right), written[i]]
    else:
        sign = "+" if operator == "+m" else operator
        left, _, rest = written[i].partition(sign)
        parts = [left.strip(), *(part.strip() for part in rest.split(SEPARATOR))]
    if len(parts) != 3 or not all(part.lstrip("-").isdigit() for part in parts):
        return False
    a, b, c = (int(part) for part in parts)
    return OPERATORS[operator](a, b) == c


def read_inputs(spec: TracedSpec, prompt: str) -> list[int]:
    """The inputs that a prompt of the spec shows."""
    text = prompt.removesuffix(":")
    return [int(word) for word in (text if spec.style == "digits" else text.split(" ")[1:])]
