"""Texts as arrays of ids and back, whatever the tokenizer; and one of single characters.

The character tokenizer has a fixed alphabet and three special ids: 0, 1, 2 are pad, beginning
and end of text; id `3 + i` is character `i`. Those of language models are in
`tasks.pretrained_tokenizer`.
"""

import functools
import string
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np
from jaxtyping import Int, Shaped

PAD, BOS, EOS = 0, 1, 2
"""Ids of the character tokenizer."""
SPECIALS = 3
"""Their number."""

ALPHABET = string.digits + "+-*/=^().,: {}[]<>\\_'&|%!?$" + string.ascii_lowercase
"""Text arithmetic, LaTeX and plain lower-case instructions: 66 ids with the specials."""

ARITHMETIC_ALPHABET = string.digits + "+-*/=^(). "
"""The characters of the arithmetic tasks without words: 23 ids with the specials."""

WORKED_ALPHABET = string.digits + "+-*/=().,: " + string.ascii_lowercase
"""The characters of worked arithmetic in words: 50 ids with the specials."""

INVALID = "\ufffd"
"""What an impossible id inside a text decodes to. No alphabet may hold it."""


class Tokenizer(NamedTuple):
    """How texts become ids; `make_tokenizer` or `pretrained_tokenizer.open_pretrained` make one.

    Attributes:
      vocab_size: number of ids, specials included.
      pad: id after the end of a row.
      bos: id that begins a text; None if the vocabulary has none.
      eos: id that ends a text.
      stops: ids that end a response, `eos` among them.
      to_ids: `(texts) -> (ids int32 [N], counts int32 [B])`, those of all texts one after the
        other; no specials are added.
      to_texts: `(rows int [B, T], ends int [B]) -> texts` of the first `ends` ids of each row.
        An impossible id becomes `INVALID`.
    """

    vocab_size: int
    pad: int
    bos: int | None
    eos: int
    stops: tuple[int, ...]
    to_ids: Callable[[list[str]], tuple[np.ndarray, np.ndarray]]
    to_texts: Callable[[np.ndarray, np.ndarray], list[str]]


class Encoded(NamedTuple):
    """Texts as ids.

    Attributes:
      tokens: int32 `[B, T]`, `pad` after each text.
      lengths: int32 `[B]`, ids of each text, specials that were asked for included.
    """

    tokens: Int[np.ndarray, "B T"]
    lengths: Int[np.ndarray, "B"]


def make_tokenizer(alphabet: str = ALPHABET) -> Tokenizer:
    """A tokenizer over the characters of `alphabet`.

    Special ids inside a text decode to `INVALID`, so that no sequence of ids with rubbish in it
    can read as a right answer.

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
    return Tokenizer(
        vocab_size=SPECIALS + len(alphabet),
        pad=PAD,
        bos=BOS,
        eos=EOS,
        stops=(EOS,),
        to_ids=functools.partial(_character_ids, alphabet),
        to_texts=functools.partial(_character_texts, alphabet),
    )


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
      bos: put `tokenizer.bos` before each text.
      eos: put `tokenizer.eos` after each text.

    Raises:
      ValueError: a character is not in the vocabulary, a row is longer than `length`, or the
        vocabulary has no id that begins a text.
    """
    texts = list(texts)
    if bos and tokenizer.bos is None:
        raise ValueError("bos = True; allowed is False, the vocabulary has no such id")
    ids, counts = tokenizer.to_ids(texts)
    lengths = counts + np.int32(bos) + np.int32(eos)
    longest = max(1, int(lengths.max(initial=0)))
    length = longest if length is None else length
    if longest > length:
        worst = texts[int(np.argmax(lengths))]
        raise ValueError(
            f"text {worst[:60]!r} takes {longest} ids; allowed are at most length = {length}"
        )
    tokens = np.full((len(texts), length), tokenizer.pad, np.int32)
    column = np.arange(length)[None, :] - int(bos)
    tokens[(column >= 0) & (column < counts[:, None])] = ids
    if bos:
        tokens[:, 0] = tokenizer.bos
    if eos:
        tokens[np.arange(len(texts)), lengths - 1] = tokenizer.eos
    return Encoded(tokens, lengths)


def decode(
    tokenizer: Tokenizer,
    tokens: Shaped[Any, "..."],
    lengths: Int[Any, "..."] | None = None,
) -> list[str]:
    """Decodes rows of ids, flat in row-major order (`[P, G, S]` gives `P * G` texts).

    A text ends before the first of `tokenizer.stops`, or at its length; padding at the very
    end is dropped where no lengths are given.

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
    if lengths is None:
        shown = rows != tokenizer.pad
        end = np.where(shown.any(axis=1), width - np.argmax(shown[:, ::-1], axis=1), 0)
    else:
        end = np.asarray(lengths).reshape(-1)
    stops = np.isin(rows, np.array(tokenizer.stops))
    stop = np.where(stops.any(axis=1), np.argmax(stops, axis=1), width)
    return tokenizer.to_texts(rows, np.minimum(end, stop))


def _character_ids(alphabet: str, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """See `Tokenizer.to_ids`."""
    codes, known = _code_points("".join(texts)), _code_points(alphabet)
    order = np.argsort(known)
    place = np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)
    index = order[place]
    unknown = known[index] != codes
    if unknown.any():
        character = chr(int(codes[np.argmax(unknown)]))
        text = next(text for text in texts if character in text)
        raise ValueError(
            f"text {text[:60]!r} holds the character {character!r}; allowed are {alphabet!r}"
        )
    return (SPECIALS + index).astype(np.int32), np.array([len(t) for t in texts], np.int32)


def _code_points(text: str) -> Int[np.ndarray, "N"]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)


def _character_texts(alphabet: str, rows: np.ndarray, ends: np.ndarray) -> list[str]:
    """See `Tokenizer.to_texts`."""
    width = rows.shape[1]
    known = (rows >= SPECIALS) & (rows < SPECIALS + len(alphabet))
    codes = np.append(_code_points(alphabet), ord(INVALID)).astype(np.uint32)
    index = np.where(known, rows - SPECIALS, len(alphabet))
    inside = np.arange(width)[None, :] < ends[:, None]
    characters = np.where(inside, codes[index], np.uint32(0))
    return np.ascontiguousarray(characters).view(f"<U{width}").ravel().tolist()
