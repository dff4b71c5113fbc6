r"""Verifiers: plain functions `(response, answer) -> float | bool`.

They are named by dotted path (`jaxreward.rewards.verifiers:math_verify`) and run in the
worker processes of `jaxreward.rewards.pool`. None of them evaluates text as code in this
library. `exact_match`, `lenient`, `exact_rational` and `closeness` are string and fraction
arithmetic of bounded cost, safe to call anywhere; `math_verify` can hang inside a single
integer power and must only be called in a pool's worker.

Two of them err on purpose, in the two ways real checkers err: `exact_match` rejects right
answers in another form (false negatives), `lenient` accepts wrong ones (false positives).

A verifier raises ValueError where the reference answer itself is not usable: that is a
fault of the data, so the sample is missing rather than wrong. A function may carry an
attribute `preload`, called once when a worker starts.
"""

import functools
import re
from fractions import Fraction

MAX_NUMBER_LENGTH = 256
"""Longest text, in characters, that is read as a number."""
MAX_EXPONENT = 400
"""Largest power of ten, in absolute value, that is read in scientific notation."""

_UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_DECIMAL = re.compile(rf"([+-]?)\s*({_UNSIGNED})(?:[eE]([+-]?[0-9]{{1,4}}))?")
_BRACE = re.compile(r"\\boxed\{|[{}]")
_FRAC = r"\\[dt]?frac\s*"
_PART = rf"(?:[^{{}}]|{_FRAC}\{{[^{{}}]*\}}\s*\{{[^{{}}]*\}})*"  # with fractions of numbers in it
_LATEX_FRACTION = re.compile(rf"([+-]?)\s*{_FRAC}\{{({_PART})\}}\s*\{{({_PART})\}}")
_WHOLE = r"[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+"
_MIXED_PARTS = (
    rf"({_WHOLE})"
    rf"(?:\s+([0-9]+)\s*/\s*([0-9]+)|\s*{_FRAC}\{{\s*([0-9]+)\s*\}}\s*\{{\s*([0-9]+)\s*\}})"
)
_MIXED = re.compile(rf"([+-]?)\s*{_MIXED_PARTS}")
_MIXED_IN_TEXT = re.compile(rf"(?<![\w.,/^])({_WHOLE})\s+([0-9]+)\s*/\s*([0-9]+)(?![\w/]|\.[0-9])")
_WRITTEN = rf"(?:{_UNSIGNED})(?:[eE][+-]?[0-9]+)?"
_ANY_NUMBER = re.compile(  # whole chains of divisions, so that no piece of one is taken for it
    rf"[+-]?(?:{_MIXED_PARTS}|{_FRAC}\{{{_PART}\}}\s*\{{{_PART}\}}|{_WRITTEN})"
    rf"(?:\s*/\s*[+-]?{_WRITTEN})*"
)


def final_answer(response: str) -> str:
    r"""The content of the last closed `\boxed{...}`, else the whole response; stripped."""
    opened, found = [], (-1, 0)  # one pass: hostile text may hold thousands of open boxes
    for brace in _BRACE.finditer(response):
        if brace.group() != "}":
            opened.append(brace.end() if len(brace.group()) > 1 else -1)
        elif opened:
            found = max(found, (opened.pop(), brace.start()))
    start, end = found
    return (response if start < 0 else response[start:end]).strip()


def parse_number(text: str) -> Fraction | None:
    r"""The exact value of a text that is one number and nothing else.

    Reads integers, decimals, scientific notation, fractions `a/b` and `\frac{a}{b}` of
    those, mixed numbers (`3 1/2` and `3\frac{1}{2}` are 7/2, as a person reads them; an improper
    part, `1 3/2`, is no number), signs (also U+2212), thousands separators, surrounding spaces
    and `$`; the parts of a `\frac` may be fractions. Nothing is evaluated: the only arithmetic is
    building fractions of bounded size.

    Returns:
      The value, or None if `text` is not such a number, divides by zero, is longer than
      `MAX_NUMBER_LENGTH` or has an exponent beyond `MAX_EXPONENT`.
    """
    if len(text) > MAX_NUMBER_LENGTH:
        return None
    text = _bare(text)
    mixed, latex = _MIXED.fullmatch(text), _LATEX_FRACTION.fullmatch(text)
    if mixed:
        return _mixed_value(*(part for part in mixed.groups() if part is not None))
    if latex:
        sign, values = latex.group(1), [parse_number(part) for part in latex.groups()[1:]]
    else:
        sign, values = "", [_parse_decimal(part) for part in text.split("/")]
    if len(values) > 2 or None in values or (len(values) == 2 and values[1] == 0):
        return None
    value = values[0] if len(values) == 1 else values[0] / values[1]
    return -value if sign == "-" else value


def _bare(text: str) -> str:
    return text.strip().strip("$").strip().replace("\u2212", "-")


def _mixed_value(sign: str, whole: str, top: str, bottom: str) -> Fraction | None:
    if int(top) >= int(bottom):
        return None
    value = int(whole.replace(",", "")) + Fraction(int(top), int(bottom))
    return -value if sign == "-" else value


def _parse_decimal(text: str) -> Fraction | None:
    match = _DECIMAL.fullmatch(text.strip())
    if match is None:
        return None
    sign, digits, exponent = match.group(1), match.group(2), int(match.group(3) or 0)
    if abs(exponent) > MAX_EXPONENT:
        return None
    whole, _, decimals = digits.replace(",", "").partition(".")
    value = Fraction(int(whole + decimals or "0"), 10 ** len(decimals))
    value *= Fraction(10) ** exponent
    return -value if sign == "-" else value


def find_number(response: str) -> Fraction | None:
    """The number a response gives: its final answer, else the last number written in it.

    That must begin within the last `MAX_NUMBER_LENGTH` characters of the final answer. What
    cannot be read (`1/0`, `1e999`, too many digits) is no number, nor is a piece of it.
    """
    text = final_answer(response)
    number = parse_number(text)
    if number is not None:
        return number
    tail = text[-2 * MAX_NUMBER_LENGTH :].replace("\u2212", "-")
    found = [match.span() for match in _ANY_NUMBER.finditer(tail)]
    if not found or found[-1][0] < len(tail) - MAX_NUMBER_LENGTH:
        return None
    start, end = found[-1]
    return parse_number(tail[start:end])


def exact_match(response: str, answer: str) -> bool:
    """Whether the final answer is the reference, character by character.

    Rejects every right answer written otherwise (`12/36` or `0.5` for `1/3`, `1/2`).
    """
    return final_answer(response) == answer.strip()


def lenient(response: str, answer: str) -> bool:
    """Whether the reference occurs anywhere in the response.

    Fooled by longer numbers (`1/36` for `1/3`), by hedging (`12 or 13`) and by listing
    numbers.

    Raises:
      ValueError: the reference is empty.
    """
    answer = answer.strip()
    if not answer:
        raise ValueError("answer is empty; allowed is a non-empty text")
    return answer in response


def exact_rational(response: str, answer: str) -> bool:
    """Whether the final answer is a number equal to the reference in exact arithmetic.

    Any form that `parse_number` reads counts (`12/36`, `0.5`, `5e-1`); 0.333 is not 1/3.

    Raises:
      ValueError: the reference is not a number.
    """
    return parse_number(final_answer(response)) == _reference(answer)


def continuous_reward(value: Fraction | float | int, reference: Fraction | float | int) -> float:
    """Reward in [0, 1] for how close `value` is to `reference`.

    r = 1 - 0.5 min(|a - b|, 1) - 0.5 min(|a - b| / (|b| + 1e-6), 1), with a the value and b
    the reference (arXiv 2507.10532, continuous reward). Computed in exact arithmetic, so
    that no finite input overflows.

    Raises:
      ValueError: `value` or `reference` is not finite.
    """
    try:
        a, b = Fraction(value), Fraction(reference)
    except OverflowError as error:
        raise ValueError(f"value = {value}, reference = {reference}; not finite") from error
    gap = abs(a - b)
    absolute, relative = min(gap, 1), min(gap / (abs(b) + Fraction(1, 10**6)), 1)
    return 1.0 - 0.5 * float(absolute) - 0.5 * float(relative)


def closeness(response: str, answer: str) -> float:
    """`continuous_reward` of the number the response gives; 0 where it gives none.

    Raises:
      ValueError: the reference is not a number.
    """
    value, reference = find_number(response), _reference(answer)
    return 0.0 if value is None else continuous_reward(value, reference)


def _reference(answer: str) -> Fraction:
    value = parse_number(answer)
    if value is None:
        raise ValueError(f"answer = '{answer[:80]}'; allowed is one number")
    return value


def math_verify(response: str, answer: str) -> bool:
    r"""Verdict of the Math-Verify library on LaTeX, plain expressions and numbers.

    Both texts are read with the library's LaTeX extraction, `\boxed{...}` first, and its
    plain-expression extraction, so that bare answers such as `12/36` are parsed; floats are
    compared to six decimals. Mixed numbers are handed to it as fractions, because of `3 1/2` it
    reads a piece, 1. The library's own time limit is off: it works in main threads
    only and does not stop a power tower, so call this in a pool's worker.

    Raises:
      ValueError: the library reads nothing in the reference.
    """
    import math_verify as library  # heavy, and needed in workers only

    gold, found = _parsed(answer), _parsed(response)
    if not gold:
        raise ValueError(f"answer = '{answer[:80]}'; math-verify reads nothing in it")
    return library.verify(
        gold, found, float_rounding=6, numeric_precision=15, strict=True, timeout_seconds=None
    )


def _parsed(text: str) -> list:
    """What Math-Verify reads in `text`; remembered where short, as a group shares answers."""
    answer = _bare(final_answer(text)) if len(text) <= MAX_NUMBER_LENGTH else ""
    if _MIXED.fullmatch(answer):
        value = parse_number(answer)
        return [] if value is None else list(_parse_once(str(value)))
    text = _MIXED_IN_TEXT.sub(_as_fraction, text)
    return list((_parse_once if len(text) <= MAX_NUMBER_LENGTH else _parse)(text))


def _as_fraction(mixed: re.Match) -> str:
    value = parse_number(mixed.group())
    return mixed.group() if value is None else str(value)


def _parse(text: str) -> list:
    import math_verify as library

    extraction = (
        library.LatexExtractionConfig(boxed_match_priority=0),
        library.ExprExtractionConfig(),
    )
    return library.parse(text, extraction, parsing_timeout=None)


_parse_once = functools.lru_cache(maxsize=4096)(_parse)
math_verify.preload = lambda: math_verify("\\boxed{\\frac{1}{2}}", "0.5")


def math_verify_number(response: str, answer: str) -> bool:
    """`math_verify` of the last number that a response gives.

    `math_verify` evaluates expressions, so to it a response that only repeats the question `4 + 2`
    is right.

    Raises:
      ValueError: see `math_verify`.
    """
    number = find_number(response)
    return number is not None and math_verify(str(number), answer)


math_verify_number.preload = math_verify.preload
