"""GGUF, the file format of llama.cpp: metadata and quantised tensors, every length checked.

Metadata and tensor table are parsed here, because lengths in a damaged or hostile file must be
refused before anything is allocated; the arithmetic of dequantisation is the `gguf` package's.
"""

import functools
import math
import mmap
import pathlib
import struct
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from jaxreward.networks.weight_files import (
    Extent,
    Index,
    StoredTensor,
    check_extents,
    refuse_pickle_bytes,
    refuse_pickle_name,
)

MAX_STRINGS = 1 << 20
"""Strings in one file, of tokens and merges; 100 MB in Python."""
MAX_TEXT = 16 << 20
"""Bytes of them together."""

TYPES = (
    "F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K",
    "Q6_K",
)  # fmt: skip
"""Types of tensors that are read; `F32` to `BF16` exactly, the others as dequantised."""

_NUMBERS = {
    0: np.uint8, 1: np.int8, 2: np.uint16, 3: np.int16, 4: np.uint32, 5: np.int32, 6: np.float32,
    7: np.bool_, 10: np.uint64, 11: np.int64, 12: np.float64,
}  # fmt: skip
_STRING, _ARRAY = 8, 9


class GGUF(NamedTuple):
    """The contents of a file.

    Attributes:
      metadata: numbers, strings, numpy arrays of numbers and lists of strings by key.
      tensors: by name; shapes in numpy's order.
    """

    metadata: dict[str, Any]
    tensors: dict[str, StoredTensor]


class _Cursor:
    """A position in a buffer; every step is checked against its end."""

    def __init__(self, path: pathlib.Path, buffer: Any):
        self.path, self.buffer, self.at = path, buffer, 0
        self.strings = self.text = 0

    def skip(self, count: int, what: str) -> int:
        """Moves on by `count` bytes; where they began."""
        begin, self.at = self.at, self.at + count
        if self.at > len(self.buffer):
            raise ValueError(
                f"{self.path} is truncated: {what} needs {count} bytes at {begin}, the file has "
                f"{len(self.buffer)}"
            )
        return begin

    def number(self, kind: str, what: str) -> int:
        """An integer in `struct`'s notation."""
        return struct.unpack_from(kind, self.buffer, self.skip(struct.calcsize(kind), what))[0]

    def string(self, what: str) -> str:
        """A string of UTF-8, bytes that are none replaced."""
        length = self.number("<Q", what)
        self.strings, self.text = self.strings + 1, self.text + length
        if self.strings > MAX_STRINGS or self.text > MAX_TEXT:
            raise ValueError(
                f"{self.path}: {what} brings the text to {self.strings} strings of {self.text} "
                f"bytes; allowed are {MAX_STRINGS} of {MAX_TEXT}"
            )
        begin = self.skip(length, what)
        return self.buffer[begin : begin + length].decode("utf-8", "replace")


def read_gguf(path: pathlib.Path) -> GGUF:
    """Metadata and tensors of a file, which stays mapped while they are used.

    Raises:
      ValueError: the file is a pickle or not GGUF 2 or 3, is truncated, holds lengths that
        cannot be, tensors that overlap, or types that are not in `TYPES`.
    """
    refuse_pickle_name(path)
    with open(path, "rb") as file:
        start = file.read(16)
        refuse_pickle_bytes(path, start)
        if start[:4] != b"GGUF":
            raise ValueError(f"{path} is not GGUF: it starts with {start[:4]!r}")
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    cursor = _Cursor(path, buffer)
    cursor.skip(4, "magic")
    version = cursor.number("<I", "version")
    if version not in (2, 3):
        raise ValueError(f"{path}: GGUF version {version}; allowed are 2 and 3")
    tensor_count = cursor.number("<Q", "number of tensors")
    key_count = cursor.number("<Q", "number of keys")
    metadata = {}
    for _ in range(key_count):  # ends at the end of the file if the count is a lie
        key = cursor.string("a key")
        if key in metadata:
            raise ValueError(f"{path}: key {key} stands there twice")
        metadata[key] = _value(cursor, cursor.number("<I", key), key)
    return GGUF(metadata, _tensors(cursor, tensor_count, metadata))


def _value(cursor: _Cursor, kind: int, key: str) -> Any:
    if kind == _STRING:
        return cursor.string(key)
    if kind == _ARRAY:
        return _array(cursor, key)
    return _numbers(cursor, kind, 1, key)[0].item()


def _array(cursor: _Cursor, key: str) -> Any:
    kind, length = cursor.number("<I", key), cursor.number("<Q", key)
    if kind == _STRING:
        return [cursor.string(key) for _ in range(length)]
    return _numbers(cursor, kind, length, key).copy()


def _numbers(cursor: _Cursor, kind: int, length: int, key: str) -> np.ndarray:
    if kind not in _NUMBERS:
        raise ValueError(f"{cursor.path}: {key} has type {kind}, which is none of a number")
    dtype = np.dtype(_NUMBERS[kind]).newbyteorder("<")
    begin = cursor.skip(length * dtype.itemsize, key)
    return np.frombuffer(cursor.buffer, dtype, length, begin)


class _Entry(NamedTuple):
    """A row of the tensor table; `offset` counts from the start of the data."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    row_bytes: int

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape[:-1]) * self.row_bytes


def _tensors(cursor: _Cursor, count: int, metadata: dict) -> dict[str, StoredTensor]:
    entries: dict[str, _Entry] = {}
    for _ in range(count):
        entry = _entry(cursor)
        if entry.name in entries:
            raise ValueError(f"{cursor.path}: {entry.name} stands there twice")
        entries[entry.name] = entry
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 1 << 16:
        raise ValueError(f"{cursor.path}: general.alignment = {alignment}; allowed is 1 to 65536")
    start = -(-cursor.at // alignment) * alignment
    extents = []
    for entry in entries.values():
        begin = start + entry.offset
        if entry.offset % alignment:
            raise ValueError(
                f"{cursor.path}: {entry.name} at {entry.offset}; allowed are multiples of "
                f"{alignment}"
            )
        extents.append(Extent(begin, begin + entry.size, entry.name))
    check_extents(cursor.path, extents, len(cursor.buffer))
    return {
        entry.name: StoredTensor(
            entry.name,
            str(cursor.path),
            entry.shape,
            functools.partial(_read, cursor.buffer, entry, start + entry.offset),
        )
        for entry in entries.values()
    }


def _entry(cursor: _Cursor) -> _Entry:
    name = cursor.string("the name of a tensor")
    rank = cursor.number("<I", name)
    if not 1 <= rank <= 4:
        raise ValueError(f"{cursor.path}: {name} has {rank} dimensions; allowed are 1 to 4")
    shape = tuple(cursor.number("<Q", name) for _ in range(rank))[::-1]
    number, offset = cursor.number("<I", name), cursor.number("<Q", name)
    names = {int(GGMLQuantizationType[known]): known for known in TYPES}
    if number not in names:
        raise ValueError(f"{cursor.path}: {name} has type {number}; allowed are {names}")
    kind = GGMLQuantizationType[names[number]]
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if shape[-1] % block:
        raise ValueError(
            f"{cursor.path}: {name} has shape {shape}; {kind.name} allows rows of multiples of "
            f"{block}"
        )
    return _Entry(name, shape, kind, offset, shape[-1] // block * block_bytes)


def _read(buffer: mmap.mmap, entry: _Entry, begin: int, index: Index) -> np.ndarray:
    """Dequantises the rows that are wanted, then takes their columns; float32."""
    stored = np.frombuffer(buffer, np.uint8, entry.size, begin)
    stored = stored.reshape(entry.shape[:-1] + (entry.row_bytes,))
    rows = np.ascontiguousarray(stored[index[:-1]])
    return np.array(dequantize(rows, entry.kind)[..., index[-1]], np.float32)
