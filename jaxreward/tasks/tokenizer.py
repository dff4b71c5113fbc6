"""A character tokenizer: fixed alphabet, three special ids, whole arrays at a time.

Ids 0, 1, 2 are pad, beginning and end of text; id `3 + i` is character `i` of the alphabet.
"""

import string
from typing import Any, NamedTuple, Sequence

import numpy as np
from jaxtyping import Int, Shaped

PAD, BOS, EOS = 0, 1, 2
SPECIALS = 3
"""Number of special ids."""

ALPHABET = string.digits + "+-*/=^().,: {}[]<>\\_'&|%!?$" + string.ascii_lowercase
"""Text arithmetic, LaTeX and plain lower-case instructions: 66 ids with the specials."""

ARITHMETIC_ALPHABET = string.digits + "+-*/=^(). "
"""The characters of the arithmetic tasks without words: 23 ids with the specials."""

WORKED_ALPHABET = string.digits + "+-*/=().,: " + string.ascii_lowercase
"""The characters of worked arithmetic in words: 50 ids with the specials."""

INVALID = "\ufffd"
"""What a special or impossible id inside a text decodes to. No alphabet may hold it."""


class Tokenizer(NamedTuple):
    """The alphabet, in the order of its ids. Build with `make_tokenizer`."""

    alphabet: str

    @property
    def vocab_size(self) -> int:
        """Number of ids, specials included."""
        return SPECIALS + len(self.alphabet)


class Encoded(NamedTuple):
    """Texts as ids.

    Attributes:
      tokens: int32 `[B, T]`, `PAD` after each text.
      lengths: int32 `[B]`, ids of each text, specials that were asked for included.
    """

    tokens: Int[np.ndarray, "B T"]
    lengths: Int[np.ndarray, "B"]


def make_tokenizer(alphabet: str = ALPHABET) -> Tokenizer:
    """A tokenizer over `alphabet`.

    Raises:
      ValueError: the alphabet is empty, repeats a character or holds NUL or U+FFFD.
    """
    if not alphabet:
        raise ValueError("alphabet = ''; allowed is at least one character")
    repeated = sorted({c for c in alphabet if alphabet.count(c) > 1})
    if repeated:
        raise ValueError(f"alphabet repeats {repeated}; allowed is each character once")
    reserved = [c for c in ("\0", INVALID) if c in alphabet]
    if reserved:
        raise ValueError(f"alphabet holds {reserved}, which decoding reserves; leave it out")
    return Tokenizer(alphabet)


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    length: int | None = None,
    *,
    bos: bool = False,
    eos: bool = False,
) -> Encoded:
    """Encodes `B` texts, padded on the right.

    Args:
      tokenizer: the tokenizer.
      texts: the texts.
      length: ids per row, `T`; None takes the longest row (at least 1).
      bos: put `BOS` before each text.
      eos: put `EOS` after each text.

    Raises:
      ValueError: a character is not in the alphabet, or a row is longer than `length`.
    """
    texts = list(texts)
    ids = _character_ids(tokenizer, texts)
    counts = np.array([len(text) for text in texts], np.int32)
    lengths = counts + np.int32(bos) + np.int32(eos)
    longest = max(1, int(lengths.max(initial=0)))
    length = longest if length is None else length
    if longest > length:
        worst = texts[int(np.argmax(lengths))]
        raise ValueError(
            f"text {worst[:60]!r} takes {longest} ids; allowed are at most length = {length}"
        )
    tokens = np.full((len(texts), length), PAD, np.int32)
    column = np.arange(length)[None, :] - int(bos)
    tokens[(column >= 0) & (column < counts[:, None])] = ids
    if bos:
        tokens[:, 0] = BOS
    if eos:
        tokens[np.arange(len(texts)), lengths - 1] = EOS
    return Encoded(tokens, lengths)


def _character_ids(tokenizer: Tokenizer, texts: list[str]) -> Int[np.ndarray, "N"]:
    """Ids of all characters of all texts, one after the other."""
    codes = _code_points("".join(texts))
    alphabet = _code_points(tokenizer.alphabet)
    order = np.argsort(alphabet)
    place = np.searchsorted(alphabet, codes, sorter=order).clip(max=len(alphabet) - 1)
    index = order[place]
    unknown = alphabet[index] != codes
    if unknown.any():
        character = chr(int(codes[np.argmax(unknown)]))
        text = next(text for text in texts if character in text)
        raise ValueError(
            f"text {text[:60]!r} holds the character {character!r}; allowed are "
            f"{tokenizer.alphabet!r}"
        )
    return (SPECIALS + index).astype(np.int32)


def _code_points(text: str) -> Int[np.ndarray, "N"]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)


def decode(
    tokenizer: Tokenizer,
    tokens: Shaped[Any, "..."],
    lengths: Int[Any, "..."] | None = None,
) -> list[str]:
    """Decodes rows of ids, flat in row-major order (`[P, G, S]` gives `P * G` texts).

    A text ends before its first `EOS`, or at its length. Any other special or impossible id
    inside it becomes `INVALID`, so that no sequence of ids with rubbish in it can read as a
    right answer; padding at the very end is dropped where no lengths are given.

    Args:
      tokenizer: the tokenizer.
      tokens: `[..., S]` of any integer dtype and any value, numpy or jax.
      lengths: `[...]`, number of valid ids per row; None takes all.

    Raises:
      ValueError: `tokens` is no integer array with at least one axis.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim < 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"tokens have dtype {tokens.dtype} and shape {tokens.shape}; allowed are integer "
            "arrays with at least one axis"
        )
    width = tokens.shape[-1]
    rows = tokens.reshape(int(np.prod(tokens.shape[:-1])), width)
    if rows.size == 0:
        return [""] * rows.shape[0]
    column = np.arange(width)[None, :]
    if lengths is None:
        end = width - np.argmax(rows[:, ::-1] != PAD, axis=1)
        end = np.where((rows != PAD).any(axis=1), end, 0)
    else:
        end = np.asarray(lengths).reshape(-1)
    stop = np.where((rows == EOS).any(axis=1), np.argmax(rows == EOS, axis=1), width)
    end = np.minimum(end, stop)[:, None]
    known = (rows >= SPECIALS) & (rows < tokenizer.vocab_size)
    codes = np.append(_code_points(tokenizer.alphabet), ord(INVALID)).astype(np.uint32)
    index = np.where(known, rows - SPECIALS, len(tokenizer.alphabet))
    characters = np.where(column < end, codes[index], np.uint32(0))
    return np.ascontiguousarray(characters).view(f"<U{width}").ravel().tolist()
