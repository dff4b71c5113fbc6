"""What readers of weight files share: a stored tensor, bounds, and the refusal of pickles."""

import pathlib
from typing import Any, Callable, NamedTuple

import numpy as np

PICKLE_SUFFIXES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
"""Names of files that are never opened: reading a pickle runs code that it holds."""

Index = tuple[Any, ...]
"""One slice (or, for the first axis, one array of rows) per axis."""


class StoredTensor(NamedTuple):
    """A tensor in a file, read where and when it is wanted.

    Attributes:
      name: in the file.
      file: path, for messages.
      shape: of the whole.
      read: the part at an `Index`, as an array that owns its memory.
    """

    name: str
    file: str
    shape: tuple[int, ...]
    read: Callable[[Index], np.ndarray]


class Extent(NamedTuple):
    """The bytes `begin` to `end` that a tensor takes."""

    begin: int
    end: int
    name: str


def refuse_pickle_name(path: pathlib.Path) -> None:
    """Raises ValueError for a file whose name says that it is a pickle."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise ValueError(
            f"{path}: {path.suffix} files are pickles, which run code when they are read; allowed "
            "are .safetensors and .gguf"
        )


def refuse_pickle_bytes(path: pathlib.Path, start: bytes) -> None:
    """Raises ValueError for a file that starts like a pickle or a zip of pickles.

    Args:
      path: of the file.
      start: its first 16 bytes.
    """
    # A safetensors header may have a length that reads like a pickle's first two bytes, but
    # the byte after the length is then a brace.
    pickled = start[:1] == b"\x80" and start[1:2] <= b"\x05" and start[8:9] != b"{"
    if pickled or start[:4] == b"PK\x03\x04":
        raise ValueError(
            f"{path} is a pickle by its first bytes, whatever its name; pickles run code when they "
            "are read and are refused"
        )


def check_extents(path: pathlib.Path, extents: list[Extent], size: int) -> None:
    """Raises ValueError for tensors that overlap or end after byte `size`."""
    ordered = sorted(extents)
    for extent in ordered:
        if extent.end > size:
            raise ValueError(
                f"{path} is truncated: {extent.name} ends at byte {extent.end}, the data at {size}"
            )
    for before, after in zip(ordered, ordered[1:]):
        if after.begin < before.end:
            raise ValueError(
                f"{path}: {after.name} starts at byte {after.begin}, inside {before.name}, which "
                f"ends at {before.end}"
            )
