"""Reads the log of a training run for `experiments.audit`, record by record.

Only the columns asked for are kept, as numbers and codes, so that a log of a million
rollouts with long texts fits in memory. Nothing here needs jax.
"""

import hashlib
import json
import math
from array import array
from decimal import Decimal
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import numpy as np

MAX_VALUES = 50
"""Distinct values of a feature beyond which it is bucketed."""

QUANTILES = 5
"""Buckets of a numeric feature with more values."""

TOP = 20
"""Values kept of another feature with more; the rest becomes `other`."""

SEARCHED = 1000
"""Records within which a column that is needed must appear."""


class Columns(NamedTuple):
    """Where in the log things are; None for what the log does not have.

    Attributes:
      prompt_id: which prompt; any value that is equal for equal prompts, its text for example.
      reward: what the verifier said.
      recheck: what the trusted verifier said; null or absent where not asked.
      group: with the prompt says which rollouts were compared (the training step, say).
      rollout_id: identifies a rollout of a group; repeated ones are dropped.
      inclusion: probability with which the rollout was drawn for the re-check.
    """

    prompt_id: str = "prompt_id"
    reward: str = "reward"
    recheck: str | None = None
    group: str | None = None
    rollout_id: str | None = None
    inclusion: str | None = None


class Log(NamedTuple):
    """The log as arrays, one entry for each rollout with a reward, and what was left out.

    Attributes:
      prompt, group: codes from 0.
      reward: as logged.
      recheck: NaN where not re-checked.
      inclusion: NaN where not given, None without the column.
      features: `(codes, labels)` by name, bucketed where there are too many values.
      left_out: counts of records, by reason.
    """

    prompt: np.ndarray
    group: np.ndarray
    reward: np.ndarray
    recheck: np.ndarray
    inclusion: np.ndarray | None
    features: dict[str, tuple[np.ndarray, tuple[str, ...]]]
    left_out: dict[str, int]


def read_log(
    path: Path,
    columns: Columns,
    features: tuple[str, ...],
    *,
    optional: tuple[str, ...] = (),
    graded: bool = False,
) -> Log:
    """Reads a `.jsonl` or `.parquet` file.

    A reward that is null, NaN or infinite is missing: its record is left out and counted.

    Args:
      path: the file.
      columns: names; `a.b` also means key `b` of the object (in parquet the struct) `a`.
      features: names of columns with properties of the prompt or of the output.
      optional: columns that may be absent.
      graded: False refuses the first reward that is neither 0 nor 1.

    Raises:
      ValueError: the file cannot be read, a column is absent, a value is of the wrong kind;
        names the file and the record.
    """
    check_file(path)
    wanted = [name for name in columns if name is not None] + list(features)
    wanted = list(dict.fromkeys(wanted))
    source = _json_records if path.suffix == ".jsonl" else _parquet_records
    left_out = dict.fromkeys(
        ("no_reward", "not_finite", "no_prompt", "repeated_rollouts", "identical_records"), 0
    )
    sink = _sink(columns, features, left_out)
    for where, record in source(path, wanted, optional, left_out):
        try:
            _add(sink, record, graded)
        except ValueError as error:
            raise ValueError(f"{path}: {where}: {error}") from error
    return _finish(path, sink)


def check_file(path: Path) -> None:
    """Raises ValueError unless `path` is a non-empty `.jsonl` or `.parquet` file."""
    if path.is_dir():
        raise ValueError(f"{path} is a directory; --rollouts needs a .jsonl or .parquet file")
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: suffix {path.suffix!r} is unknown; allowed are .jsonl, .parquet")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")


def _json_records(
    path: Path, wanted: list[str], optional: tuple[str, ...], left_out: dict
) -> Iterator[tuple[str, dict]]:
    present, found, seen = {}, set(), set()
    with path.open("rb") as lines:
        number = 0
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            record = _parse(path, number, line)
            digest = hash(line)
            left_out["identical_records"] += digest in seen
            seen.add(digest)
            if len(found) < len(wanted):
                if number <= SEARCHED:
                    present.update(dict.fromkeys(record))
                found.update(name for name in wanted if _lookup(record, name) is not None)
                if number == SEARCHED:
                    _check_columns(path, [n for n in wanted[:2] if n not in found], present)
            yield f"line {number}", {name: _lookup(record, name) for name in wanted}
    absent = [name for name in wanted if name not in {*found, *present, *optional}]
    _check_columns(path, absent, present)


def _parse(path: Path, number: int, line: bytes) -> dict:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = str(error).split(":")[0]
        raise ValueError(f"{path}: line {number} is not valid JSON ({reason})") from error
    if not isinstance(record, dict):
        raise ValueError(
            f"{path}: line {number} holds a {type(record).__name__}; every line must be an object"
        )
    return record


def _lookup(record: dict, name: str) -> Any:
    """`record[name]`, or `record[a][b]` for the name `a.b`; None where absent."""
    if name in record or "." not in name:
        return record.get(name)
    for part in name.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record


def _check_columns(path: Path, absent: list[str], present) -> None:
    if absent:
        names = ", ".join(sorted(present)) or "none"
        raise ValueError(
            f"{path} has no column {absent[0]!r}; columns there: {names} "
            "(name yours with --columns prompt_id=...,reward=...)"
        )


def _parquet_records(
    path: Path, wanted: list[str], optional: tuple[str, ...], left_out: dict
) -> Iterator[tuple[str, dict]]:
    import pyarrow
    from pyarrow import parquet

    del left_out  # whole records are not read, so identical ones are not counted
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            known = {name: _root(name, file.schema_arrow) for name in wanted}
            absent = [name for name in wanted if not known[name] and name not in optional]
            _check_columns(path, absent, names)
            number = 0
            for batch in file.iter_batches(columns=list(dict.fromkeys(filter(None, known.values())))):
                for number, record in enumerate(batch.to_pylist(), start=number + 1):
                    yield f"row {number}", {name: _lookup(record, name) for name in wanted}
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is not a whole parquet file ({reason})") from error


def _root(name: str, schema) -> str:
    """The column in which a value is found, that of its name or a struct; "" if there is none."""
    import pyarrow

    if name in schema.names:
        return name
    root, *inner = name.split(".")
    if root not in schema.names:
        return ""
    kind = schema.types[schema.names.index(root)]
    for part in inner:
        if not pyarrow.types.is_struct(kind) or kind.get_field_index(part) < 0:
            return ""
        kind = kind.field(part).type
    return root


class _Sink(NamedTuple):
    """Growing columns of a log."""

    columns: Columns
    left_out: dict[str, int]
    prompts: dict  # key -> code
    groups: dict
    rollouts: set
    prompt: array
    group: array
    reward: array
    recheck: array
    inclusion: array
    values: dict[str, tuple[dict, array]]


def _sink(columns: Columns, features: tuple[str, ...], left_out: dict) -> _Sink:
    return _Sink(
        columns, left_out, {}, {}, set(),
        *(array(kind) for kind in "qqddd"),
        values={name: ({}, array("q")) for name in features},
    )


def _add(sink: _Sink, record: dict, graded: bool) -> None:
    """Appends a record, or counts why not."""
    columns = sink.columns
    reward = _number(columns.reward, record[columns.reward])
    if math.isnan(reward):
        sink.left_out["no_reward"] += 1
        return
    if math.isinf(reward):
        sink.left_out["not_finite"] += 1
        return
    if not graded and reward not in (0.0, 1.0):
        raise ValueError(
            f"{columns.reward} = {reward:g} is neither 0 nor 1; pass --threshold=X to count "
            "rewards >= X as accepted"
        )
    identity = _key(record[columns.prompt_id])
    if identity is None:
        sink.left_out["no_prompt"] += 1
        return
    prompt = _code(sink.prompts, identity)
    part = None if columns.group is None else _key(record[columns.group])
    group = _code(sink.groups, (prompt, part))
    rollout = None if columns.rollout_id is None else _key(record[columns.rollout_id])
    if rollout is not None:
        if (group, rollout) in sink.rollouts:
            sink.left_out["repeated_rollouts"] += 1
            return
        sink.rollouts.add((group, rollout))
    values = {name: _code(codes, _key(record[name])) for name, (codes, _) in sink.values.items()}
    recheck, inclusion = (
        math.nan if name is None else _number(name, record[name])
        for name in (columns.recheck, columns.inclusion)
    )
    sink.prompt.append(prompt)
    sink.group.append(group)
    sink.reward.append(reward)
    sink.recheck.append(recheck)
    sink.inclusion.append(inclusion)
    for name, code in values.items():
        sink.values[name][1].append(code)


def _number(name: str, value: Any) -> float:
    """A number or a boolean as float, null as NaN, an integer beyond float's range as infinite."""
    if value is None:
        return math.nan
    if isinstance(value, (bool, int, float, Decimal)):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    shown = repr(value)
    shown = shown if len(shown) <= 40 else shown[:40] + "..."
    raise ValueError(f"{name} = {shown} is not a number")


def _key(value: Any) -> Any:
    """A short hashable that is equal for equal values; None for what is null or NaN."""
    if value != value:  # each NaN would be a value of its own
        return None
    if isinstance(value, (list, dict)):
        value = json.dumps(value, sort_keys=True, default=str)
    if isinstance(value, (str, bytes)) and len(value) > 64:
        data = value if isinstance(value, bytes) else value.encode("utf-8", "replace")
        return hashlib.blake2b(data, digest_size=16).hexdigest()
    return value


def _code(codes: dict, key: Any) -> int:
    return codes.setdefault(key, len(codes))


def _finish(path: Path, sink: _Sink) -> Log:
    if not sink.reward:
        counts = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in sink.left_out.items() if v)
        raise ValueError(f"{path} has no rollout with a reward ({counts or 'no records'})")
    return Log(
        prompt=np.array(sink.prompt, np.int64),
        group=np.array(sink.group, np.int64),
        reward=np.array(sink.reward),
        recheck=np.array(sink.recheck),
        inclusion=None if sink.columns.inclusion is None else np.array(sink.inclusion),
        features={
            name: bucketed(np.array(codes, np.int64), list(values))
            for name, (values, codes) in sink.values.items()
        },
        left_out=sink.left_out,
    )


def bucketed(codes: np.ndarray, values: list[Any]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Codes and labels with at most `MAX_VALUES` values, those in use, in a readable order.

    More numeric values become `QUANTILES` ranges with about equal numbers of rollouts; of
    other ones the `TOP` most frequent stay and the rest is `other`. Null is `missing`.
    """
    numeric = all(isinstance(v, (int, float, Decimal)) for v in values if v is not None)
    if len(values) <= MAX_VALUES:
        labels = ["missing" if v is None else str(v) for v in values]
        order = sorted(range(len(values)), key=lambda i: _order(values[i], numeric))
    elif numeric:
        codes, labels = _ranges(codes, values)
        order = range(len(labels))
    else:
        frequent = np.argsort(-np.bincount(codes, minlength=len(values)), kind="stable")[:TOP]
        kept = {int(code): rank for rank, code in enumerate(frequent)}
        labels = ["missing" if values[c] is None else str(values[c]) for c in kept] + ["other"]
        codes = np.array([kept.get(code, TOP) for code in range(len(values))])[codes]
        order = range(len(labels))
    return _relabelled(codes, labels, order)


def _order(value: Any, numeric: bool) -> tuple:
    return (value is None, 0.0 if value is None else _number("", value)) if numeric else (
        value is None, str(value))


def _ranges(codes: np.ndarray, values: list) -> tuple[np.ndarray, list[str]]:
    largest = np.finfo(np.float64).max / 4  # infinite ends would make a quantile NaN
    numbers = np.array([_number("", value) for value in values])[codes]
    numbers = np.clip(numbers, -largest, largest)
    known = numbers[~np.isnan(numbers)]
    inner = np.unique(np.quantile(known, np.linspace(0, 1, QUANTILES + 1)[1:-1]))
    ends = [known.min(), *inner, known.max()]
    labels = [f"{low:.4g} to {high:.4g}" for low, high in zip(ends[:-1], ends[1:])] + ["missing"]
    index = np.searchsorted(inner, numbers, side="left")
    return np.where(np.isnan(numbers), len(labels) - 1, index), labels


def _relabelled(codes, labels, order) -> tuple[np.ndarray, tuple[str, ...]]:
    used = set(np.unique(codes).tolist())
    order = [index for index in order if index in used]
    lookup = np.zeros(len(labels), np.int64)
    lookup[order] = np.arange(len(order))
    return lookup[codes], tuple(labels[index] for index in order)


def binary(values: np.ndarray, threshold: float | None, name: str) -> np.ndarray:
    """True where a value is 1, or at least `threshold` if one is given.

    Raises:
      ValueError: values other than 0 and 1 without a threshold.
    """
    if threshold is not None:
        return values >= threshold
    other = values[(values != 0) & (values != 1)]
    if len(other):
        raise ValueError(
            f"{name} has values other than 0 and 1, such as {other[0]:g} (range "
            f"{values.min():g} to {values.max():g}); pass --threshold=X to count >= X as 1"
        )
    return values == 1
