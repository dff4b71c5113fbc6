"""Judgements that survive a swap of the two responses (DMoERM, arXiv 2403.01197).

A judge is asked twice which of two responses is better, the second time with their order
swapped; what it says for a position and not for a response is dropped.
"""

import re
from typing import NamedTuple, Sequence

import numpy as np

_CHOICE = re.compile("[12]")


class Choices(NamedTuple):
    """float32 arrays `[B]` for `types.Preferences`.

    Attributes:
      target: 1 where the first response is better, 0 where the second is, 1/2 where dropped.
      weights: 1, or 0 where dropped.
    """

    target: np.ndarray
    weights: np.ndarray


def parse_choice(answer: str) -> int | None:
    """1 or 2, whichever digit the answer has first; None without either."""
    found = _CHOICE.search(answer)
    return int(found.group()) if found else None


def consistent_choices(answers: Sequence[str], swapped: Sequence[str]) -> Choices:
    """What a judge says of `B` pairs in both orders.

    Args:
      answers: to (first, second).
      swapped: to (second, first), in which "1" names the second response.

    Raises:
      ValueError: different numbers of answers.
    """
    if len(answers) != len(swapped):
        raise ValueError(f"swapped has {len(swapped)} answers; allowed is {len(answers)}")
    here = [parse_choice(answer) for answer in answers]
    there = [parse_choice(answer) for answer in swapped]
    target = np.full(len(here), 0.5, np.float32)
    for index, (one, two) in enumerate(zip(here, there)):
        if one is not None and two is not None and one != two:
            target[index] = float(one == 1)
    return Choices(target, (target != 0.5).astype(np.float32))
