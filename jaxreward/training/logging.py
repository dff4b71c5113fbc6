"""Metrics of a run: `metrics.jsonl`, `timings.jsonl` and TensorBoard event files.

`metrics.jsonl` has one line per step, a function of the run's config alone: a run that was
stopped and continued writes the same bytes as one that was not. Hence no wall-clock time in
it (that is in `timings.jsonl` and TensorBoard), and floats are written as the shortest text
of the double that equals the float32 exactly. A number that is not finite is `null` and
counted in `metrics/non_finite`.
"""

import contextlib
import io
import json
import logging
import math
import os
import pathlib
from typing import Any, Callable, Iterator, Mapping, NamedTuple

import jax
import numpy as np

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
    from tensorboardX import SummaryWriter

    root = pathlib.Path(workdir)
    root.mkdir(parents=True, exist_ok=True)
    _cut(root / METRICS, first_step, complete=True)
    _cut(root / TIMINGS, first_step, complete=False)
    with contextlib.ExitStack() as stack:
        metrics = stack.enter_context(open(root / METRICS, "ab"))
        timings = stack.enter_context(open(root / TIMINGS, "ab"))
        events = SummaryWriter(str(root / EVENTS), purge_step=first_step, max_queue=100)
        stack.callback(events.close)

        def write(step: int, values: Mapping[str, Any]) -> None:
            values = flatten(values)
            _append(metrics, to_line(step, values))
            _add_events(events, step, values)

        def write_timings(step: int, seconds: Mapping[str, float]) -> None:
            rounded = {name: round(float(value), 6) for name, value in seconds.items()}
            _append(timings, json.dumps({"step": _no_step(rounded, step), **rounded}) + "\n")
            _add_events(events, step, {f"time/{name}": v for name, v in rounded.items()})

        def flush() -> None:
            for file in (metrics, timings):
                os.fsync(file.fileno())
            events.flush()

        yield MetricWriter(write, write_timings, flush)


def _nothing(*_: Any) -> None:
    pass


def _append(file: io.BufferedWriter, line: str) -> None:
    file.write(line.encode())
    file.flush()  # to the operating system: it survives the death of this process


def _add_events(events: Any, step: int, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if np.size(value):
            events.add_scalar(name, float(np.mean(np.asarray(value, np.float64))), step)


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
