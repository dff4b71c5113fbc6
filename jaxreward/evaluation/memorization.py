"""Does a model know a benchmark by heart? Completing its questions from their beginnings.

A model that has seen a question in training can often finish it word by word; one that has not
cannot (arXiv 2507.10532). The probe needs no answers, only greedy continuations of the first
40, 60 or 80% of each question. `rouge_l` also measures how much reinforcement learning has
changed what a policy writes.
"""

from typing import NamedTuple, Sequence

import numpy as np

PREFIXES = (0.4, 0.6, 0.8)
"""Shares of a question that are shown."""


class Completion(NamedTuple):
    """How well questions were completed.

    Attributes:
      exact_match: share of the questions whose remainder was written exactly.
      rouge_l: mean `rouge_l` of what was written and the remainder.
    """

    exact_match: float
    rouge_l: float


def split_at(question: str, share: float) -> tuple[str, str]:
    """The first `share` of the characters (rounded down, at least one) and the remainder.

    Raises:
      ValueError: the share is not in (0, 1), or the question has less than two characters.
    """
    if not 0 < share < 1:
        raise ValueError(f"share = {share}; allowed is 0 < share < 1")
    if len(question) < 2:
        raise ValueError(f"question = {question!r}; allowed are at least two characters")
    place = max(1, int(len(question) * share))
    return question[:place], question[place:]


def completion(continuations: Sequence[str], remainders: Sequence[str]) -> Completion:
    """Compares continuations, cut to the length of the true remainders, with them.

    Raises:
      ValueError: their numbers differ or are 0.
    """
    if len(continuations) != len(remainders) or not remainders:
        raise ValueError(
            f"{len(continuations)} continuations and {len(remainders)} remainders; allowed are "
            "equal numbers, >= 1"
        )
    pairs = [(c[: len(r)], r) for c, r in zip(continuations, remainders)]
    return Completion(
        exact_match=float(np.mean([written == true for written, true in pairs])),
        rouge_l=float(np.mean([rouge_l(written, true) for written, true in pairs])),
    )


def rouge_l(candidate: Sequence, reference: Sequence) -> float:
    """F1 of the longest common subsequence; of characters, or of words where lists are given.

    1 for equal sequences, 0 where they share nothing or one is empty.
    """
    if not len(candidate) or not len(reference):
        return float(len(candidate) == len(reference))
    common = _common(candidate, reference)
    precision, recall = common / len(candidate), common / len(reference)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def _common(a: Sequence, b: Sequence) -> int:
    """Length of the longest common subsequence, in time `len(a) * len(b)`."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            above = row[j]
            row[j] = diagonal + 1 if x == y else max(above, row[j - 1])
            diagonal = above
    return row[-1]
