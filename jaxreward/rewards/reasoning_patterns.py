"""The reasoning-pattern reward: how many ways of reasoning a text shows (arXiv 2505.22653).

It never looks at the answer. Distinct phrases are counted, each once; repetition and made-up
turns of a user are subtracted.
"""

from typing import Sequence

import numpy as np
from jaxtyping import Float

PHRASES = (
    "i need to", "we need to", "wait", "alternatively", "let me check", "let me see",
    "let's focus on", "we know that", "we can observe", "we can see", "let me try", "let's try",
    "let us try", "first, ", "firstly, ", "next, ", "finally, ", "let us first", "let's first",
    "let me first", "try again", "still not", "not working", "not correct", "does not work",
    "doesn't work", "makes sence", "since we", "because we", "consequently", "as a result",
    "thus", "therefore", "hence", "so that", "thereby", "if we", "given there", "for instance",
    "for example",
)  # fmt: skip
"""The paper's forty, spelled as its released code has them; matched inside words too."""

USER_TURN = "user: "


def pattern_reward(
    texts: Sequence[str],
    *,
    phrases: Sequence[str] = PHRASES,
    saturation: int | None = None,
    ngram: int = 20,
    as_released: bool = False,
) -> Float[np.ndarray, "N"]:
    """`max(0, min(1, hits / saturation) - repetition - made-up turns)` of each text, float32.

    Args:
      texts: what was generated; for a calibration the reasoning alone, without the answer.
      phrases: what is looked for, in lower case.
      saturation: distinct phrases worth 1. Default: all of them, as in the paper; half of them
        `as_released`.
      ngram: words of a repeated passage, see `repetition`.
      as_released: see `saturation`.

    Raises:
      ValueError: no phrases, `saturation` < 1 or `ngram` < 1.
    """
    if not phrases:
        raise ValueError("phrases = (); allowed is at least one")
    default = max(1, len(phrases) // 2) if as_released else len(phrases)
    saturation = default if saturation is None else saturation
    if saturation < 1:
        raise ValueError(f"saturation = {saturation}; allowed is >= 1")
    scores = []
    for text in texts:
        lower = text.lower()
        hits = sum(phrase in lower for phrase in phrases)
        score = min(1.0, hits / saturation) - repetition(lower, ngram) - lower.count(USER_TURN)
        scores.append(max(0.0, score))
    return np.array(scores, np.float32)


def repetition(text: str, ngram: int = 20) -> float:
    """Distinct word n-grams that occur more than once over all positions of one; in [0, 1].

    0 for texts of fewer than `ngram` words. A word repeated for ever costs little, because its
    n-gram counts once.

    Raises:
      ValueError: `ngram` < 1.
    """
    if ngram < 1:
        raise ValueError(f"ngram = {ngram}; allowed is >= 1")
    words = text.split()
    positions = len(words) - ngram + 1
    if positions < 1:
        return 0.0
    seen, repeated = set(), set()
    for start in range(positions):
        own = tuple(words[start : start + ngram])
        (repeated if own in seen else seen).add(own)
    return len(repeated) / positions
