"""The reasoning-pattern reward: how many ways of reasoning a text shows (arXiv 2505.22653).

It never looks at the answer. Distinct phrases are counted, each once; repetition and made-up
turns of a user are subtracted.
"""

import collections
from typing import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

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


def repeats_itself(
    texts: Sequence[str], *, width: int = 10, times: int = 10
) -> Bool[np.ndarray, "N"]:
    """Whether some stretch of `width` words occurs at least `times` times in a text.

    Words end at white space and at underscores (arXiv 2506.18254, the released penalty, which
    takes 1 off the reward: `transforms.calibration.subtract`). Stretches may overlap.

    Args:
      texts: what was generated.
      width: words of a stretch, >= 1.
      times: >= 2.

    Raises:
      ValueError: `width` < 1 or `times` < 2.
    """
    for name, value, least in (("width", width, 1), ("times", times, 2)):
        if value < least:
            raise ValueError(f"{name} = {value}; allowed is >= {least}")
    found = []
    for text in texts:
        words = text.replace("_", " ").split()
        stretches = zip(*(words[i:] for i in range(width)))
        counts = collections.Counter(stretches)
        found.append(bool(counts) and max(counts.values()) >= times)
    return np.array(found, bool)


def token_pattern_reward(
    tokens: Int[Array, "P G S"],
    mask: Bool[Array, "P G S"],
    phrases: Sequence[Sequence[int]],
    *,
    saturation: int,
    ngram: int,
) -> Float[Array, "P G"]:
    """`pattern_reward` of token ids inside `jit`, without made-up turns.

    Args:
      tokens: of the responses.
      mask: True on tokens that count, from the left.
      phrases: ids of each phrase.
      saturation: distinct phrases worth 1, >= 1.
      ngram: tokens of a repeated passage, >= 1.
    """
    there = [_occurs(tokens, mask, phrase) for phrase in phrases]
    hits = sum(own.astype(jnp.float32) for own in there) / jnp.float32(saturation)
    return jnp.maximum(jnp.minimum(hits, 1.0) - _token_repetition(tokens, mask, ngram), 0.0)


def _windows(values: Array, width: int) -> Array:
    """Every stretch of `width` along the last axis, `[..., S - width + 1, width]`."""
    starts = values.shape[-1] - width + 1
    return jnp.stack([values[..., k : k + starts] for k in range(width)], axis=-1)


def _occurs(tokens: Array, mask: Array, phrase: Sequence[int]) -> Array:
    if len(phrase) > tokens.shape[-1]:
        return jnp.zeros(tokens.shape[:2], bool)
    wanted = jnp.asarray(phrase, tokens.dtype).reshape((1, 1, 1, -1))
    same = _windows(tokens, len(phrase)) == wanted
    return jnp.any(jnp.all(same & _windows(mask, len(phrase)), axis=-1), axis=-1)


def _token_repetition(tokens: Array, mask: Array, ngram: int) -> Array:
    """As `repetition`, of token ids."""
    if ngram > tokens.shape[-1]:
        return jnp.zeros(tokens.shape[:2], jnp.float32)
    grams, whole = _windows(tokens, ngram), jnp.all(_windows(mask, ngram), axis=-1)
    equal = jnp.all(grams[:, :, :, None] == grams[:, :, None, :], axis=-1)
    equal &= whole[:, :, :, None] & whole[:, :, None, :]
    place = jnp.arange(grams.shape[2])
    earlier = (place[:, None] > place[None, :]).reshape((1, 1) + equal.shape[2:])
    first = whole & ~jnp.any(equal & earlier, axis=-1)
    again = jnp.sum(equal, axis=-1, dtype=jnp.int32) > 1
    count = jnp.sum(first & again, axis=-1, dtype=jnp.int32).astype(jnp.float32)
    positions = jnp.sum(whole, axis=-1, dtype=jnp.int32).astype(jnp.float32)
    return count / jnp.maximum(positions, 1.0)
