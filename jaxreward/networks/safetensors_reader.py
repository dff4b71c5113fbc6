"""Safetensors: headers checked before the library sees the file; one file or a sharded set."""

import functools
import json
import math
import pathlib
from typing import Any

import ml_dtypes  # noqa: F401  numpy learns of bfloat16
import numpy as np
from safetensors import SafetensorError, safe_open

from jaxreward.networks.weight_files import (
    Extent,
    Index,
    StoredTensor,
    check_extents,
    refuse_pickle_bytes,
    refuse_pickle_name,
)

MAX_JSON = 4 << 20
"""Bytes of a header or an index: some 30,000 tensors, and at most 100 MB once parsed."""

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip

FLOATS = ("F16", "BF16", "F32", "F64")
"""Types that weights may have."""

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def open_directory(directory: pathlib.Path) -> dict[str, StoredTensor]:
    """The tensors of `model.safetensors`, or of the shards that its index lists.

    Raises:
      ValueError: neither is there, or one of the files is not what it should be.
    """
    if (directory / INDEX).exists():
        return _open_shards(directory)
    if (directory / SINGLE).exists():
        return open_file(directory / SINGLE)
    found = sorted(path for path in directory.iterdir() if path.is_file())
    for path in found:
        refuse_pickle_name(path)
    raise ValueError(f"{directory} holds neither {SINGLE} nor {INDEX}")


def _open_shards(directory: pathlib.Path) -> dict[str, StoredTensor]:
    index = directory / INDEX
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise ValueError(f"{index}: weight_map must map names of tensors to names of files")
    shards = {}
    for name in sorted(set(places.values())):
        if pathlib.PurePath(name).name != name or name in ("", ".", ".."):
            raise ValueError(f"{index}: file {name!r}; allowed are names without a directory")
        if not (directory / name).exists():
            raise ValueError(f"{index} lists {name}, which is not there")
        shards[name] = open_file(directory / name)
    for tensor, name in places.items():
        if tensor not in shards[name]:
            raise ValueError(f"{index} puts {tensor} into {name}, which does not hold it")
    listed = {tensor for shard in shards.values() for tensor in shard}
    for tensor in sorted(listed - set(places)):
        raise ValueError(f"{tensor} is in a shard of {index}, which does not list it")
    return {tensor: shards[name][tensor] for tensor, name in places.items()}


def open_file(path: pathlib.Path) -> dict[str, StoredTensor]:
    """The tensors of one file, whose header has been checked.

    Raises:
      ValueError: see `read_header`.
    """
    return {
        name: StoredTensor(
            name, str(path), tuple(entry["shape"]), functools.partial(_read, path, name, entry)
        )
        for name, entry in read_header(path).items()
    }


def _read(path: pathlib.Path, name: str, entry: dict[str, Any], index: Index) -> np.ndarray:
    if entry["dtype"] not in FLOATS:
        raise ValueError(f"{path}: {name} has type {entry['dtype']}; allowed are {FLOATS}")
    try:
        with safe_open(str(path), framework="numpy") as file:
            return file.get_slice(name)[index]
    except SafetensorError as error:  # the library is stricter than we are
        raise ValueError(f"{path}: {name} cannot be read ({error})") from error


def read_header(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """`{name: {"dtype", "shape", "data_offsets"}}` of every tensor, checked.

    Raises:
      ValueError: the file is a pickle, its header is too long, not JSON or not a header, types
        are unknown, or bytes and shapes do not fit, overlap, leave holes or pass its end.
    """
    refuse_pickle_name(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(16)
        refuse_pickle_bytes(path, start)
        if len(start) < 8:
            raise ValueError(f"{path} is truncated: {size} bytes, a header has 8 or more")
        length = int.from_bytes(start[:8], "little")
        if length > MAX_JSON:
            raise ValueError(f"{path}: header of {length} bytes; allowed are at most {MAX_JSON}")
        if length + 8 > size:
            raise ValueError(f"{path} is truncated: a header of {length} bytes in {size}")
        file.seek(8)
        entries = _parse(path, file.read(length))
    notes = entries.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise ValueError(f"{path}: __metadata__ is {notes!r:.80}; allowed are texts by name")
    _check_entries(path, entries, size - 8 - length)
    return entries


def _check_entries(path: pathlib.Path, entries: dict[str, Any], size: int) -> None:
    extents = []
    for name, entry in entries.items():
        _check_entry(path, name, entry)
        extents.append(Extent(*entry["data_offsets"], name))
    check_extents(path, extents, size)
    if sum(extent.end - extent.begin for extent in extents) != size:
        raise ValueError(f"{path}: its tensors do not fill its {size} bytes of data")


def _check_entry(path: pathlib.Path, name: str, entry: Any) -> None:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
        raise ValueError(f"{path}: {name} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ValueError(f"{path}: {name} has type {dtype!r}; allowed are {tuple(ITEM_BYTES)}")
    if not _whole_numbers(shape):
        raise ValueError(f"{path}: {name} has shape {shape!r}; allowed are sizes >= 0")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise ValueError(f"{path}: {name} has data_offsets {offsets!r}; allowed is [begin, end]")
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise ValueError(
            f"{path}: {name} of type {dtype} and shape {shape} takes {expected} bytes, but its "
            f"data_offsets {offsets} hold {offsets[1] - offsets[0]}"
        )


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file of at most `MAX_JSON` bytes.

    Raises:
      ValueError: it is larger, not JSON, or not an object.
    """
    size = path.stat().st_size
    if size > MAX_JSON:
        raise ValueError(f"{path} has {size} bytes; allowed are at most {MAX_JSON}")
    return _parse(path, path.read_bytes())


def _parse(path: pathlib.Path, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no valid JSON object ({type(error).__name__}: {error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: JSON of type {type(value).__name__}; allowed is an object")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} stands there twice")
    return value
