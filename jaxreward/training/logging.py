"""Metrics of a run: `metrics.jsonl`, `timings.jsonl` and TensorBoard event files.

`metrics.jsonl` has one line per step, a function of the run's config alone: a run that was
stopped and continued writes the same bytes as one that was not. Hence no wall-clock time in
it (that is in `timings.jsonl` and TensorBoard), and floats are written as the shortest text
of the double that equals the float32 exactly. A number that is not finite is `null` and
counted in `metrics/non_finite`.
"""

import contextlib
import errno
import io
import json
import logging
import math
import os
import pathlib
import time
from typing import Any, Callable, Iterator, Mapping, NamedTuple

import jax
import numpy as np

from jaxreward.training.exits import StorageError

_log = logging.getLogger("jaxreward")

METRICS, TIMINGS, EVENTS = "metrics.jsonl", "timings.jsonl", "tensorboard"
"""Names inside a workdir."""


class MetricWriter(NamedTuple):
    """Where metrics go. Only process 0 writes; elsewhere the functions do nothing.

    Attributes:
      write: `(step, metrics)`; metrics are scalars or vectors by name, nested dicts are joined
        by slashes. Once per step, in order. TensorBoard gets the mean of a vector.
      write_timings: `(step, seconds by name)`, free to differ between equal runs.
      flush: `()`; what was written survives the loss of the machine.
    """

    write: Callable[[int, Mapping[str, Any]], None]
    write_timings: Callable[[int, Mapping[str, float]], None]
    flush: Callable[[], None]


@contextlib.contextmanager
def open_metrics(
    workdir: str | os.PathLike, *, first_step: int = 0, writes: bool | None = None
) -> Iterator[MetricWriter]:
    """Opens the metrics of a run that is about to do `first_step`.

    Lines of `first_step` and later, and a torn last line, are removed.

    Args:
      workdir: created if need be.
      first_step: the step that the run starts or continues with.
      writes: whether this process writes; default is process 0 alone.
    """
    writes = jax.process_index() == 0 if writes is None else writes
    if not writes:
        yield MetricWriter(_nothing, _nothing, _nothing)
        return
    root = pathlib.Path(workdir)
    with contextlib.ExitStack() as stack:
        with _failure_named(root):
            root.mkdir(parents=True, exist_ok=True)
            _cut(root / METRICS, first_step, complete=True)
            _cut(root / TIMINGS, first_step, complete=False)
            # Unbuffered: what is written survives the death of this process.
            metrics = stack.enter_context(open(root / METRICS, "ab", buffering=0))
            timings = stack.enter_context(open(root / TIMINGS, "ab", buffering=0))
            events = stack.enter_context(_open_events(root / EVENTS, first_step))
        yield _make_writer(root, metrics, timings, events)


def _make_writer(
    root: pathlib.Path, metrics: io.RawIOBase, timings: io.RawIOBase, events: "_Events"
) -> MetricWriter:
    def write(step: int, values: Mapping[str, Any]) -> None:
        values = flatten(values)
        with _failure_named(root):
            _append(metrics, to_line(step, values))
            events.write(step, values)

    def write_timings(step: int, seconds: Mapping[str, float]) -> None:
        rounded = {name: round(float(value), 6) for name, value in seconds.items()}
        line = json.dumps({"step": _no_step(rounded, step), **rounded}) + "\n"
        with _failure_named(root):
            _append(timings, line)
            events.write(step, {f"time/{name}": value for name, value in rounded.items()})

    def flush() -> None:
        with _failure_named(root):
            for file in (metrics, timings):
                os.fsync(file.fileno())
            events.flush()

    return MetricWriter(write, write_timings, flush)


@contextlib.contextmanager
def _failure_named(root: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write metrics in {root}: {error}") from error


def _nothing(*_: Any) -> None:
    pass


def _append(file: io.RawIOBase, line: str) -> None:
    data = line.encode()
    if file.write(data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _Events(NamedTuple):
    """A TensorBoard event file."""

    write: Callable[[int, Mapping[str, Any]], None]
    flush: Callable[[], Any]


@contextlib.contextmanager
def _open_events(folder: pathlib.Path, first_step: int) -> Iterator[_Events]:
    """A new event file that hides what older ones say of `first_step` and later.

    Its writer is used without tensorboardX's queue and thread, whose errors nobody sees.
    """
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary

    folder.mkdir(exist_ok=True)
    unique = f".{os.getpid()}.{time.time_ns()}"
    writer = EventsWriter(str(folder / "events"), filename_suffix=unique)
    start = SessionLog(status=SessionLog.START)
    writer.write_event(Event(wall_time=time.time(), step=first_step, session_log=start))

    def write(step: int, values: Mapping[str, Any]) -> None:
        scalars = [
            Summary.Value(tag=name, simple_value=np.mean(np.asarray(value, np.float64)))
            for name, value in values.items()
            if np.size(value)
        ]
        summary = Summary(value=scalars)
        writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))

    try:
        yield _Events(write, writer.flush)
    finally:
        with contextlib.suppress(OSError):  # curves for a person; the metrics are elsewhere
            writer.close()


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one with slash names, values fetched from the device as NumPy.

    Raises:
      ValueError: a value is neither a scalar nor a vector of numbers.
    """
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}/"))
            continue
        array = np.asarray(value)
        if array.ndim > 1 or array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
            raise ValueError(
                f"metric {prefix}{name} has shape {array.shape} and type {array.dtype}; allowed "
                "are scalars and vectors of numbers"
            )
        flat[f"{prefix}{name}"] = array
    return flat


def to_line(step: int, values: Mapping[str, Any]) -> str:
    """The line of one step: `step` first, then names in alphabetical order.

    Args:
      step: written as it is.
      values: as from `flatten`.
    """
    record: dict[str, Any] = {}
    bad = 0
    for name in sorted(values):
        items = [_to_json(item) for item in np.ravel(values[name])]
        bad += items.count(None)
        record[name] = items if np.ndim(values[name]) else items[0]
    if bad:
        record["metrics/non_finite"] = bad
    return json.dumps({"step": _no_step(record, step), **record}, allow_nan=False) + "\n"


def _no_step(record: Mapping[str, Any], step: int) -> int:
    if "step" in record:
        raise ValueError("a metric is called step, which is the name of the step itself")
    return step


def _to_json(item: np.generic) -> bool | int | float | None:
    if item.dtype.kind in "biu":
        return item.item()
    with np.errstate(over="ignore"):
        number = float(np.float32(item))
    return number if math.isfinite(number) else None


def read_metrics(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` in order, up to a torn one; empty without the file."""
    path = pathlib.Path(workdir) / METRICS
    return [record for _, record in _whole_lines(path)] if path.exists() else []


def _whole_lines(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Offset of the end and content of every line up to the first that is not whole."""
    end = 0
    with open(path, "rb") as file:
        for line in file:
            try:
                record = json.loads(line)
                record["step"] + 0
            except (ValueError, TypeError, KeyError):
                return
            if not line.endswith(b"\n"):
                return
            end += len(line)
            yield end, record


def _cut(path: pathlib.Path, first_step: int, complete: bool) -> None:
    """Removes lines of `first_step` and later and what follows a torn line."""
    keep, count = 0, 0
    if path.exists():
        for end, record in _whole_lines(path):
            if record["step"] >= first_step:
                break
            keep, count = end, count + 1
        os.truncate(path, keep)
    if complete and count != first_step:
        _log.warning("%s has %d lines before step %d", path, count, first_step)
