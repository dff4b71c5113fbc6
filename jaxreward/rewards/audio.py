"""Rewards of audio clips that are longer than their judges listen (MusicRL, arXiv 2402.04229).

The judges, a joint text-audio embedding, a predictor of mean opinion scores (MOS) and a model of
user preferences, are the caller's: here is where they listen and how their scores become one
reward. Clips of 30 s are judged at `windows(30, 10, 3)` for adherence to the text and at
`windows(30, 20, 2)` for quality and preference.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreward.checks import Number, check_number


def windows(total: int, length: int, count: int) -> tuple[tuple[int, int], ...]:
    """`count` windows `(start, end)` from the start to the end of a clip, evenly spaced.

    Args:
      total: of the clip, in any unit.
      length: of a window, at most `total`.
      count: >= 1; a single window is the start of the clip.

    Raises:
      ValueError: a number out of range, or starts that are no whole numbers.
    """
    if not 1 <= length <= total:
        raise ValueError(f"length = {length}; allowed is [1, total = {total}]")
    if count < 1:
        raise ValueError(f"count = {count}; allowed is >= 1")
    room, gaps = total - length, max(count - 1, 1)
    if count > 1 and room % gaps:
        raise ValueError(f"count = {count}; allowed is count - 1 that divides {room}")
    starts = [i * room // gaps for i in range(count)]
    return tuple((start, start + length) for start in starts)


def adherence(
    caption: Float[Array, "*batch D"], segments: Float[Array, "*batch K D"]
) -> Float[Array, "*batch"]:
    """Mean cosine of the caption's embedding and those of `K` segments, in [-1, 1].

    An embedding of zeros has the cosine 0.
    """
    dot = jnp.sum(caption[..., None, :] * segments, axis=-1)
    squares = jnp.sum(jnp.square(caption), axis=-1)[..., None] * jnp.sum(jnp.square(segments), -1)
    norms = jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
    return jnp.mean(jnp.where(squares > 0, dot / norms, 0.0), axis=-1)


def opinion_score(
    scores: Float[Array, "*batch K"], low: Number = 1.0, high: Number = 5.0
) -> Float[Array, "*batch"]:
    """Mean opinion score of `K` windows on the scale [0, 1], `(score - low) / (high - low)`.

    On their own scale such scores would dominate a cosine. Not clipped.

    Raises:
      ValueError: known `high` <= `low`.
    """
    check_number("high - low", high - low, lambda x: x > 0, "> 0")
    return (jnp.mean(scores, axis=-1) - low) / (high - low)
