"""Arithmetic with written-out steps: traces, direct answers, marker words, long answers.

The supervised text (`worked`) of `(3+4)*2:` is `3+4=7 7*2=14`: every step in the order of
evaluation, and what follows the last `=` is the final answer. A direct answer is `=14`. In the
"long" style the answer is a sentence: `3+4=7 7*2=14=we find that ... must equal exactly 14`.

The reference (`answer`) is the final answer alone. A policy reads the prompt, writes a trace, `=`
and an answer; `jaxreward.rewards.token_match.final_token_match` judges what follows the last `=`.
"""

import random
from fractions import Fraction
from typing import NamedTuple

from jaxreward.tasks import arithmetic
from jaxreward.tasks.arithmetic import Expression, ExpressionSpec
from jaxreward.tasks.records import Example, exact_value

SEPARATOR = "="
"""Ends a step and, the last one, the trace."""

FORMS = ("plain", "decimal", "words")
"""How a short answer is written: `12`, `12.0`, `is 12`."""

WRAPPERS = (("", ""), ("", ".0"), ("is ", ""))
"""What stands before and after the number, by form."""

WORDINGS = (
    "{noun} of {a} and {b} is {c}, which is the value",
    "take {a} and {b}, form {noun}, and find {c}",
    "working from {a} and {b}, {noun} comes to {c}",
    "we find that {noun} of {a}, {b} must equal {c}",
)
"""The long answers: valid wordings of one result, 30 to 60 characters."""

_NOUNS = {"+": "the sum", "-": "the difference", "*": "the product"}
MARKERS = ("so ", "thus ", "wait ")


class WorkedSpec(NamedTuple):
    """Which questions to draw and how their worked texts are written.

    Attributes:
      expressions: the questions; integers under `+`, `-`, `*` in the "compact" style.
      traced: share of examples whose worked text shows every step; the rest answers directly.
      wrong_direct: share of the direct answers that are wrong. Traced answers are right.
      markers: words that may stand before a step; each ends with a space.
      traced_markers: share of the traced examples with a marker before every step.
      direct_markers: the same share for direct answers (before their `=`, as many as the
        question has steps). Equal shares make markers say nothing about correctness.
      worked_forms: weights of `FORMS` in worked texts.
      reference_forms: weights of `FORMS` in references, drawn independently.
      answers: "short", or "long": a sentence, one of `WORDINGS` drawn per example, in the
        worked text and in the reference alike.
      copies: how many examples each question of a split gets, as pairs (1 where not named);
        all else is drawn for each, so that one question is both traced and answered directly.
      leaked: how often every question of "train" also stands in "pretrain", the contaminated
        twin of a data set: with a direct, right answer and `leak_suffix`.
      leak_suffix: text after a leaked expression, other than the suffix of the rest, so that
        what was learned by heart is hidden behind another format.
    """

    expressions: ExpressionSpec = ExpressionSpec(
        steps=(2,),
        elements=("integer",),
        operators=("+", "-", "*"),
        high=9,
        max_value=99,
        nonnegative=True,
        style="compact",
        prefix="",
        suffix=":",
        shared_parts=True,
        sizes=(("train", 1000), ("validation", 300)),
    )
    traced: float = 1.0
    wrong_direct: float = 0.0
    markers: tuple[str, ...] = MARKERS
    traced_markers: float = 0.0
    direct_markers: float = 0.0
    worked_forms: tuple[float, ...] = (1.0, 0.0, 0.0)
    reference_forms: tuple[float, ...] = (1.0, 0.0, 0.0)
    answers: str = "short"
    copies: tuple[tuple[str, int], ...] = ()
    leaked: int = 0
    leak_suffix: str = "."


def check_spec(spec: WorkedSpec) -> None:
    """Raises ValueError naming the first impossible field, its value and what is allowed."""
    arithmetic.check_spec(spec.expressions)
    own = spec.expressions
    if own.elements != ("integer",) or "/" in own.operators or own.style != "compact":
        raise ValueError(
            f"expressions has elements = {own.elements}, operators = {own.operators}, style = "
            f"{own.style!r}; allowed are ('integer',), '+', '-', '*' and 'compact'"
        )
    for name in ("traced", "wrong_direct", "traced_markers", "direct_markers"):
        if not 0 <= getattr(spec, name) <= 1:
            raise ValueError(f"{name} = {getattr(spec, name)}; allowed is a share in [0, 1]")
    for name in ("worked_forms", "reference_forms"):
        weights = getattr(spec, name)
        if len(weights) != len(FORMS) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(
                f"{name} = {weights}; allowed are {len(FORMS)} weights, >= 0, not all 0"
            )
    if spec.answers not in ("short", "long"):
        raise ValueError(f"answers = {spec.answers!r}; allowed are 'short' and 'long'")
    sizes = dict(spec.expressions.sizes)
    for split, count in spec.copies:
        if split not in sizes or count < 1:
            raise ValueError(f"copies = {spec.copies}; allowed are numbers >= 1 of {list(sizes)}")
    if spec.leaked < 0 or (spec.leaked and not {"train", "pretrain"} <= set(sizes)):
        raise ValueError(
            f"leaked = {spec.leaked} with splits {list(sizes)}; allowed is 0, or more with "
            "'train' and 'pretrain'"
        )
    marked = spec.traced_markers > 0 or spec.direct_markers > 0
    bad = [m for m in spec.markers if SEPARATOR in m or not m.endswith(" ")]
    if bad or (marked and not spec.markers):
        raise ValueError(
            f"markers = {spec.markers}; allowed are words that end with a space, without '=', "
            "at least one where a share of markers is above 0"
        )


def form_names(spec: WorkedSpec) -> tuple[str, ...]:
    """Names behind `Example.form`: of the answers' forms, or of the wordings."""
    if spec.answers == "short":
        return FORMS
    return tuple(f"wording_{i}" for i in range(len(WORDINGS)))


def make_examples(spec: WorkedSpec) -> dict[str, list[Example]]:
    """The examples of every split.

    `form` is that of the reference.

    Raises:
      ValueError: see `check_spec` and `arithmetic.draw_expressions`.
    """
    check_spec(spec)
    examples, drawn = {}, arithmetic.draw_expressions(spec.expressions)
    for split, items in drawn.items():
        rng = random.Random(f"{spec.expressions.seed}/worked/{split}")
        items = items * dict(spec.copies).get(split, 1)
        examples[split] = [_example(spec, i, item, rng) for i, item in enumerate(items)]
    if spec.leaked:
        known = _leak(spec, drawn["train"] * spec.leaked)
        whole = examples["pretrain"] + known
        examples["pretrain"] = [example._replace(id=i) for i, example in enumerate(whole)]
    return examples


def _leak(spec: WorkedSpec, items: list[Expression]) -> list[Example]:
    """Direct and right answers under `leak_suffix`."""
    own = spec.expressions._replace(suffix=spec.leak_suffix)
    direct = spec._replace(expressions=own, traced=0.0, wrong_direct=0.0, direct_markers=0.0)
    rng = random.Random(f"{spec.expressions.seed}/leaked")
    return [_example(direct, i, item, rng) for i, item in enumerate(items)]


def trace(expression: Expression) -> list[tuple[Fraction, str, Fraction, Fraction]]:
    """The steps `(left, operator, right, result)` in the order of evaluation, left first."""
    if not expression.parts:
        return []
    left, right = expression.parts
    last = (left.value, expression.operator, right.value, expression.value)
    return [*trace(left), *trace(right), last]


def _example(spec: WorkedSpec, position: int, item: Expression, rng: random.Random) -> Example:
    own = spec.expressions
    # every example makes the same draws, so that one dial does not shift what others decide
    draws = [rng.random() for _ in range(6)]
    words = [_choose(spec.markers, rng.random()) for _ in range(item.steps)]
    traced = draws[0] < spec.traced
    shown = item.value if traced or draws[1] >= spec.wrong_direct else _wrong(item, draws[2])
    marked = draws[3] < (spec.traced_markers if traced else spec.direct_markers)
    if spec.answers == "long":
        form = int(draws[4] * len(WORDINGS))
        answer, final = (_sentence(item, value, form) for value in (item.value, shown))
    else:
        form = _weighted(spec.reference_forms, draws[4])
        answer = _written(item.value, form)
        final = _written(shown, _weighted(spec.worked_forms, draws[5]))
    text = arithmetic.render(item, own.style)
    kind = item.operator if own.prompt_type == "operator" else str(item.steps)
    start = _start(spec, item, traced, words if marked else [""] * item.steps)
    return Example(
        id=position,
        expression=text,
        prompt=own.prefix + text + own.suffix,
        worked=start + SEPARATOR + final,
        form=form,
        prompt_type=arithmetic.prompt_type_names(own).index(kind),
        steps=item.steps,
        **{**exact_value(item.value), "answer": answer},
    )


def _start(spec: WorkedSpec, item: Expression, traced: bool, words: list[str]) -> str:
    """The worked text before its last `=`."""
    if not traced:
        return "".join(words)
    lines = [
        f"{word}{left}{operator}{right}={result}"
        for word, (left, operator, right, result) in zip(words, trace(item))
    ]
    whole = " ".join(lines)
    return whole if spec.answers == "long" else whole[: whole.rindex(SEPARATOR)]


def _written(value: Fraction, form: int) -> str:
    before, after = WRAPPERS[form]
    return f"{before}{value}{after}"


def _sentence(item: Expression, value: Fraction, wording: int) -> str:
    left, right = item.parts
    return WORDINGS[wording].format(
        noun=_NOUNS[item.operator], a=left.value, b=right.value, c=value
    )


def _wrong(item: Expression, draw: float) -> Fraction:
    """Another integer, at most 9 away, on the side that stays >= 0 where the value is."""
    offset = 1 + int(draw * 9)
    return item.value + (offset if item.value < 10 or offset % 2 else -offset)


def _choose(options: tuple[str, ...], draw: float) -> str:
    return options[int(draw * len(options))] if options else ""


def _weighted(weights: tuple[float, ...], draw: float) -> int:
    point = draw * sum(weights)
    for index, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return index
    return max(i for i, weight in enumerate(weights) if weight > 0)
