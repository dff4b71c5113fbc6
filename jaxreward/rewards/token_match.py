"""Exact match of response and answer ids, inside `jit`.

`token_match` compares whole responses, `final_token_match` the final answers of responses that
first show how they got there; it can treat some spellings of an answer as equal.
"""

from typing import NamedTuple, Sequence

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Wrapper = tuple[tuple[int, ...], tuple[int, ...]]
"""Ids that may stand before and after an answer without changing it."""

_FILL = 0


def token_match(
    tokens: Int[Array, "P G S"],
    answer_tokens: Int[Array, "P A"],
    answer_lengths: Int[Array, "P"],
) -> Float[Array, "P G"]:
    """1 where a response begins with its prompt's answer, else 0, float32.

    The answers end with the end-of-text id, so a response is right if and only if it equals
    the answer up to and including its own first end of text; what follows is ignored. An
    answer that does not fit into `S` ids cannot be matched. Pure, for use inside `jit`.

    Args:
      tokens: ids of the responses.
      answer_tokens: ids of the answers, anything after their length.
      answer_lengths: ids of each answer, its end of text included, >= 1.
    """
    width = min(tokens.shape[-1], answer_tokens.shape[-1])
    wanted = answer_tokens[:, None, :width].astype(tokens.dtype)
    beyond = jnp.arange(width)[None, None, :] >= answer_lengths[:, None, None]
    same = jnp.all((tokens[..., :width] == wanted) | beyond, axis=-1)
    fits = (answer_lengths >= 1) & (answer_lengths <= width)
    return (same & fits[:, None]).astype(jnp.float32)


class FinalAnswers(NamedTuple):
    """Final answers, moved to the left.

    Attributes:
      tokens: int32 `[..., S]`, the answer's ids and its end of text, then 0.
      lengths: int32 `[...]`, ids of each answer, its end of text included; 0 where there is
        none.
    """

    tokens: Int[Array, "*shape S"]
    lengths: Int[Array, "*shape"]


def final_token_match(
    tokens: Int[Array, "P G S"],
    answer_tokens: Int[Array, "P A"],
    answer_lengths: Int[Array, "P"],
    separator: int,
    end: int,
    wrappers: Sequence[Wrapper] = (),
) -> Float[Array, "P G"]:
    """1 where what follows the last `separator` of a response is the answer, else 0, float32.

    A response without separator, or cut off before its end of text, has no final answer and
    gets 0. Pure, for use inside `jit`.

    Args:
      tokens: ids of the responses.
      answer_tokens: ids of the answers, anything after their length.
      answer_lengths: ids of each answer, its end of text included, >= 1.
      separator: id that ends the trace.
      end: id of the end of text.
      wrappers: spellings that count as equal: an answer that stands between the ids of a
        wrapper is compared without them, in responses and references alike.
    """
    found = unwrap(final_answers(tokens, separator, end), wrappers, end)
    wanted = unwrap(as_final(answer_tokens, answer_lengths), wrappers, end)
    width = max(tokens.shape[-1], answer_tokens.shape[-1])
    left, right = (_widened(answers.tokens, width) for answers in (found, wanted))
    same = jnp.all(left == right[:, None, :], axis=-1)
    there = (found.lengths > 0) & (wanted.lengths > 0)[:, None]
    return (same & there).astype(jnp.float32)


def final_answers(
    tokens: Int[Array, "*shape S"], separator: int, end: int
) -> FinalAnswers:
    """What follows the last `separator` before a response's first end of text.

    There is none without a separator, without an end of text, or with nothing in between.
    """
    width = tokens.shape[-1]
    column = jnp.arange(width, dtype=jnp.int32)
    ends = tokens == end
    stop = jnp.where(jnp.any(ends, axis=-1), jnp.argmax(ends, axis=-1).astype(jnp.int32), width)
    before = _last_axis(column, tokens.ndim) < stop[..., None]
    at = jnp.where((tokens == separator) & before, _last_axis(column, tokens.ndim), -1)
    start = jnp.max(at, axis=-1) + 1
    there = (start > 0) & (stop < width) & (stop > start)
    return _moved(tokens, start, jnp.where(there, stop + 1 - start, 0))


def as_final(
    tokens: Int[Array, "*shape A"], lengths: Int[Array, "*shape"]
) -> FinalAnswers:
    """Answers that stand alone, their end of text included in `lengths`."""
    return _moved(tokens, jnp.zeros_like(lengths, jnp.int32), lengths)


def unwrap(answers: FinalAnswers, wrappers: Sequence[Wrapper], end: int) -> FinalAnswers:
    """The answers without the first of the wrappers that they stand in."""
    tokens, lengths = answers
    column = _last_axis(jnp.arange(tokens.shape[-1], dtype=jnp.int32), tokens.ndim)
    start, kept, done = jnp.zeros_like(lengths), lengths, jnp.zeros(lengths.shape, bool)
    for before, after in wrappers:
        inside = _stands_in(answers, before, after) & ~done
        start = jnp.where(inside, len(before), start)
        kept = jnp.where(inside, lengths - len(before) - len(after), kept)
        done = done | inside
    bare = _moved(tokens, start, kept)
    closed = jnp.where(column == kept[..., None] - 1, end, bare.tokens)
    return FinalAnswers(closed.astype(jnp.int32), kept)


def integer_values(
    answers: FinalAnswers, zero: int, minus: int
) -> tuple[Float[Array, "*shape"], Bool[Array, "*shape"]]:
    """The integers that final answers spell, and which answers are integers.

    Args:
      answers: up to 9 digits, after at most one minus.
      zero: id of `0`; those of `1` to `9` follow it.
      minus: id of `-`.

    Returns:
      float32 values, 0 where there is none, and whether there is one.
    """
    tokens, lengths = answers
    width = tokens.shape[-1]
    column = _last_axis(jnp.arange(width, dtype=jnp.int32), tokens.ndim)
    negative = (tokens[..., 0] == minus) & (lengths > 0)
    first = negative.astype(jnp.int32)[..., None]
    inside = (column >= first) & (column < lengths[..., None] - 1)
    digits = tokens - zero
    number = jnp.sum(inside, axis=-1, dtype=jnp.int32)
    proper = jnp.all(~inside | ((digits >= 0) & (digits <= 9)), axis=-1)
    there = proper & (number >= 1) & (number <= 9)
    power = jnp.clip(lengths[..., None] - 2 - column, 0, 9)
    scaled = jnp.where(inside, digits, 0).astype(jnp.float32) * 10.0**power.astype(jnp.float32)
    value = jnp.where(there, jnp.sum(scaled, axis=-1), 0.0)
    return jnp.where(negative, -value, value), there


def closeness(
    values: Float[Array, "*shape"], references: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """`rewards.verifiers.continuous_reward` of arrays, float32, inside `jit`.

    r = 1 - 0.5 min(|a - b|, 1) - 0.5 min(|a - b| / (|b| + 1e-6), 1) (arXiv 2507.10532).
    """
    gap = jnp.abs(values - references)
    absolute = jnp.minimum(gap, 1.0)
    relative = jnp.minimum(gap / (jnp.abs(references) + 1e-6), 1.0)
    return 1.0 - 0.5 * absolute - 0.5 * relative


def _stands_in(
    answers: FinalAnswers, before: tuple[int, ...], after: tuple[int, ...]
) -> Bool[Array, "*shape"]:
    """Whether an answer begins and ends with the ids of a wrapper and has some between."""
    tokens, lengths = answers
    inside = lengths - 1 > len(before) + len(after)
    for offset, wanted in enumerate(before):
        if offset < tokens.shape[-1]:
            inside = inside & (tokens[..., offset] == wanted)
    for offset, wanted in enumerate(reversed(after)):
        place = jnp.clip(lengths - 2 - offset, 0, tokens.shape[-1] - 1)
        inside = inside & (jnp.take_along_axis(tokens, place[..., None], -1)[..., 0] == wanted)
    return inside


def _moved(
    tokens: Int[Array, "*shape S"], start: Int[Array, "*shape"], lengths: Int[Array, "*shape"]
) -> FinalAnswers:
    """`lengths` ids from `start` on, at the left of a row of padding."""
    column = _last_axis(jnp.arange(tokens.shape[-1], dtype=jnp.int32), tokens.ndim)
    place = jnp.clip(column + start[..., None], 0, tokens.shape[-1] - 1)
    moved = jnp.take_along_axis(tokens.astype(jnp.int32), place, axis=-1)
    kept = jnp.where(column < lengths[..., None], moved, _FILL)
    return FinalAnswers(kept, lengths.astype(jnp.int32))


def _last_axis(values: Array, ndim: int) -> Array:
    return values.reshape((1,) * (ndim - 1) + values.shape)


def _widened(tokens: Int[Array, "*shape S"], width: int) -> Int[Array, "*shape W"]:
    padding = ((0, 0),) * (tokens.ndim - 1) + ((0, width - tokens.shape[-1]),)
    return jnp.pad(tokens, padding, constant_values=_FILL)
