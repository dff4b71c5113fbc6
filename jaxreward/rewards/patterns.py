r"""Simple features of an output's text, by which a verifier's error rates may vary.

Integer arrays of the shape of the responses, to travel as `aux` of a signal. All are plain
string work of bounded cost; nothing is evaluated.
"""

import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from jaxreward.rewards.verifiers import final_answer, parse_number

ANSWER_FORMS = ("empty", "integer", "decimal", "scientific", "fraction", "unreduced", "text")
"""Forms an answer can have; `answer_form` returns the position in this tuple.

`fraction` is in lowest terms with an integer numerator and a denominator above 1;
`unreduced` is every other fraction of numbers (`12/36`, `6/3`, `0.5/2`, the mixed `3 1/2`).
"""

_INTEGER = re.compile(r"[+-]?\s*[0-9,]+")
_FRACTION = re.compile(r"[+-]?\s*(?:\\[dt]?frac\s*\{(.*)\}\s*\{(.*)\}|(.*)/(.*))")


def length(responses: Sequence[str]) -> Int[np.ndarray, "N"]:
    """Number of characters of each response, int32."""
    return np.array([len(response) for response in responses], np.int32)


def length_level(responses: Sequence[str], edges: Sequence[int]) -> Int[np.ndarray, "N"]:
    """Which length interval each response falls in, int32 in `[0, len(edges)]`.

    Level `i` holds lengths in `[edges[i-1], edges[i])`.

    Raises:
      ValueError: `edges` do not increase.
    """
    if list(edges) != sorted(set(edges)):
        raise ValueError(f"edges = {list(edges)}; allowed are increasing lengths")
    levels = np.searchsorted(np.array(edges, np.int64), length(responses), side="right")
    return levels.astype(np.int32)


def has_box(responses: Sequence[str]) -> Bool[np.ndarray, "N"]:
    r"""Whether each response holds a closed `\boxed{...}`."""
    boxes = (final_answer(r) != r.strip() for r in responses)
    return np.fromiter(boxes, bool, len(responses))


def contains(responses: Sequence[str], pattern: str) -> Bool[np.ndarray, "N"]:
    """Whether the plain text `pattern` occurs in each response.

    Raises:
      ValueError: `pattern` is empty.
    """
    if not pattern:
        raise ValueError("pattern is empty; allowed is a non-empty text")
    return np.fromiter((pattern in response for response in responses), bool, len(responses))


def answer_form(responses: Sequence[str]) -> Int[np.ndarray, "N"]:
    """Form of each response's final answer, int32: a position in `ANSWER_FORMS`."""
    forms = (ANSWER_FORMS.index(_form(final_answer(response))) for response in responses)
    return np.fromiter(forms, np.int32, len(responses))


def _form(answer: str) -> str:
    answer = answer.strip("$ ").replace("\u2212", "-")
    if not answer:
        return "empty"
    value = parse_number(answer)
    if value is None:
        return "text"
    parts = _FRACTION.fullmatch(answer)
    if parts:
        numbers = [parse_number(part) for part in parts.groups() if part is not None]
        plain = None not in numbers  # a part of a mixed number is not one
        lowest = plain and {abs(n) for n in numbers} == {abs(value.numerator), value.denominator}
        return "fraction" if lowest and value.denominator > 1 else "unreduced"
    if "frac" in answer:
        return "unreduced"
    if "e" in answer.lower():
        return "scientific"
    return "integer" if _INTEGER.fullmatch(answer) else "decimal"


def joint_level(
    levels: Sequence[Int[np.ndarray, "*shape"] | Bool[np.ndarray, "*shape"]], sizes: Sequence[int]
) -> Int[np.ndarray, "*shape"]:
    """One level for several features together, int32 in `[0, prod(sizes))`.

    Args:
      levels: features, each with values in `[0, size)`; the last one varies fastest.
      sizes: number of values of each feature.

    Raises:
      ValueError: the numbers of features and sizes differ, or a value is outside its range.
    """
    if len(levels) != len(sizes) or not levels:
        raise ValueError(f"{len(levels)} levels and {len(sizes)} sizes; allowed are equal, >= 1")
    joint = np.zeros(np.shape(levels[0]), np.int32)
    for i, (level, size) in enumerate(zip(levels, sizes)):
        level = np.asarray(level).astype(np.int32)
        if level.size and not (0 <= level.min() and level.max() < size):
            raise ValueError(
                f"levels[{i}] has values in [{level.min()}, {level.max()}]; allowed [0, {size})"
            )
        joint = joint * size + level
    return joint
