"""The host loop of every run: dispatch, fetch late, evaluate, save, resume, stop.

Step `t` (from 0) takes the state after `t` updates to the state after `t + 1`; line `t` of
`metrics.jsonl` holds what step `t` reported and, if it was due, the evaluation of the state
before it. Line `steps` holds the evaluation of the final state. A checkpoint of step `t` is
the state before step `t`, and is started only when every line before `t` is on disk, so that
a process killed anywhere continues to the same bytes.

Exit: a signal (SIGTERM, SIGINT) ends the current step, saves and raises `Interrupted` (exit
code 75); a second one does not wait. See `training.exits` for the other codes.
"""

import contextlib
import os
import pathlib
import signal
import threading
import time
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxreward.training import logging as metrics_lib
from jaxreward.training import progress as progress_lib
from jaxreward.training.checkpoint import Checkpoints, open_checkpoints
from jaxreward.training.exits import ConfigError, Diverged, Interrupted

Metrics = Mapping[str, Any]


class Schedule(NamedTuple):
    """How long and how often, in steps.

    Attributes:
      steps: length of the whole run, >= 0.
      save_every: between checkpoints, >= 1. The final state is always saved.
      keep: number of checkpoints kept, >= 2.
      evaluate_every: between evaluations, >= 0; 0: only the final state.
    """

    steps: int
    save_every: int = 50
    keep: int = 3
    evaluate_every: int = 0


class HostState(NamedTuple):
    """What the host keeps between steps and a checkpoint must hold, as JSON.

    Attributes:
      get: `() -> value`, for example of a data iterator; see `checkpoint.encode`.
      set: `(value)`, the inverse, called when a run is continued.
    """

    get: Callable[[], Any] = lambda: None
    set: Callable[[Any], None] = lambda value: None


class Safety(NamedTuple):
    """When to give up.

    Attributes:
      skipped_in_a_row: `(state) -> int32`, or a dict of such by name: how many of the last
        steps in a row were skipped because something was not finite.
      allowed: the run stops when a counter reaches it; >= 1.
    """

    skipped_in_a_row: Callable[[Any], Any] = lambda state: {}
    allowed: int = 10


class _Run(NamedTuple):
    """The parts of one run."""

    schedule: Schedule
    iteration: Callable[[Any, int], tuple[Any, Metrics]]
    evaluate: Callable[[Any, int], Metrics]
    host: HostState
    safety: Safety
    stopping: Callable[[int], bool]
    checkpoints: Checkpoints
    writer: metrics_lib.MetricWriter
    progress: progress_lib.Progress
    elapsed: Callable[[], float]
    lap: Callable[[], float]


class _Pending(NamedTuple):
    """A step that is dispatched and not yet fetched."""

    step: int
    metrics: Metrics
    evaluated: Metrics
    counters: Any


def run_loop(
    iteration: Callable[[Any, int], tuple[Any, Metrics]],
    state: Any,
    schedule: Schedule,
    *,
    workdir: str | os.PathLike,
    evaluate: Callable[[Any, int], Metrics] = lambda state, step: {},
    host: HostState = HostState(),
    safety: Safety = Safety(),
    name: str = "train",
    show: Sequence[str] = (),
    stream: Any = None,
) -> Any:
    """Runs, or continues, an experiment; returns the final state.

    Args:
      iteration: `(state, step) -> (state, metrics)`. It may donate the state's buffers; its
        metrics are fetched after the next step is dispatched. All randomness must come from
        the state, the step and `host`.
      state: the initial state, also the template of what is restored.
      schedule: how long and how often.
      workdir: gets `checkpoints/`, `metrics.jsonl`, `timings.jsonl` and `tensorboard/`.
      evaluate: `(state, step) -> metrics`; must not change `host`.
      host: what else a checkpoint must hold.
      safety: when to give up.
      name: of what is going on, for a person.
      show: names of the metrics shown to a person.
      stream: text file where they are shown; default standard error.

    Raises:
      ConfigError: a number is out of range.
      TypeError: `iteration` changes the type of the state.
      Diverged: `safety` was exceeded; the last checkpoint stays.
      CheckpointError: checkpoints cannot be read or written.
      Interrupted: a signal came; the state was saved.
    """
    _check_numbers(schedule, safety)
    root, steps = pathlib.Path(workdir), schedule.steps
    state = jax.tree.map(_strongly_typed, state)
    with contextlib.ExitStack() as stack:
        enter = stack.enter_context
        stopping = enter(_catch_signals())
        checkpoints = enter(open_checkpoints(root / "checkpoints", keep=schedule.keep))
        first, state, before = _start(checkpoints, state, host)
        if first > steps:
            raise ConfigError(f"steps = {steps}; {root} is at step {first} already")
        writer = enter(metrics_lib.open_metrics(root, first_step=first))
        bar = progress_lib.open_progress(steps, first, name=name, show=show, stream=stream)
        parts = (iteration, evaluate, host, safety, stopping, checkpoints, writer, enter(bar))
        return _iterate(_Run(schedule, *parts, *_stopwatch(before)), state, first)


def _check_numbers(schedule: Schedule, safety: Safety) -> None:
    bounds = {"steps": 0, "save_every": 1, "evaluate_every": 0}
    values = {key: getattr(schedule, key) for key in bounds} | {"allowed": safety.allowed}
    for key, low in (bounds | {"allowed": 1}).items():
        if values[key] < low:
            raise ConfigError(f"{key} = {values[key]}; allowed is >= {low}")


def _start(checkpoints: Checkpoints, state: Any, host: HostState) -> tuple[int, Any, float]:
    """First step, state before it and seconds spent: of the newest checkpoint or afresh."""
    restored = checkpoints.restore_newest(state)
    if restored is None:
        return 0, state, 0.0
    host.set(restored.host["host"])
    return restored.step, restored.state, restored.host["seconds"]


def _stopwatch(before: float) -> tuple[Callable[[], float], Callable[[], float]]:
    """Seconds since the run began, pauses left out, and seconds since last asked."""
    start = time.monotonic() - before
    last = time.monotonic()

    def lap() -> float:
        nonlocal last
        previous, last = last, time.monotonic()
        return last - previous

    return (lambda: time.monotonic() - start), lap


def _iterate(run: _Run, state: Any, first: int) -> Any:
    """Steps `first` to the end."""
    steps, pending = run.schedule.steps, None
    for step in range(first, steps + 1):
        stop = step < steps and run.stopping(step)
        if step > first and (stop or _is_due(run, step, run.schedule.save_every)):
            _emit(run, pending)
            pending = None
            _save(run, step, state)
        if stop:
            run.checkpoints.wait()
            raise Interrupted(
                f"stopped by a signal, saved at step {step} of {steps}; the same command continues"
            )
        is_due = _is_due(run, step, run.schedule.evaluate_every)
        evaluated = run.evaluate(state, step) if is_due else {}
        if step == steps:
            break
        if step == first:
            expected = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
        state, metrics = run.iteration(state, step)
        if step == first:
            _check_same_types(expected, state)
        # Copies, because the next step may donate the state that the counters are part of.
        counters = jax.tree.map(jnp.copy, run.safety.skipped_in_a_row(state))
        _emit(run, pending)
        pending = _Pending(step, metrics, evaluated, counters)
        run.checkpoints.check()
    _emit(run, _Pending(steps, {}, evaluated, {}) if evaluated else None)
    run.checkpoints.wait()
    if run.stopping(steps):  # what comes after this loop must not begin
        raise Interrupted(
            f"stopped by a signal, saved at step {steps} of {steps}; the same command continues"
        )
    return state


def _is_due(run: _Run, step: int, every: int) -> bool:
    return step == run.schedule.steps or (every > 0 and step % every == 0)


def _save(run: _Run, step: int, state: Any) -> None:
    run.writer.flush()  # the lines before a checkpoint are on disk before it is
    host = {"host": run.host.get(), "seconds": run.elapsed()}
    run.checkpoints.save(step, state, host)


def _emit(run: _Run, pending: _Pending | None) -> None:
    """Fetches a step, writes it and decides whether to go on."""
    if pending is None:
        return
    fetched = jax.device_get((pending.metrics, pending.evaluated, pending.counters))
    metrics, evaluated = (metrics_lib.flatten(tree) for tree in fetched[:2])
    twice = sorted(metrics.keys() & evaluated.keys())
    if twice:
        raise ValueError(f"both the step and the evaluation report {twice[0]}")
    metrics = {**metrics, **evaluated}
    run.writer.write(pending.step, metrics)
    timings = {"seconds": run.lap(), "elapsed": run.elapsed()}
    run.writer.write_timings(pending.step, timings)
    run.progress.update(min(pending.step + 1, run.schedule.steps), metrics)
    for path, count in jax.tree_util.tree_leaves_with_path(fetched[2]):
        if count >= run.safety.allowed:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise _diverged(run, pending.step, metrics, name, int(count))


def _diverged(run: _Run, step: int, metrics: Metrics, name: str, count: int) -> Diverged:
    run.checkpoints.wait()
    saved = run.checkpoints.newest()
    bad = [name for name, value in metrics.items() if not np.all(np.isfinite(value))]
    return Diverged(
        f"step {step}: {count} steps in a row were skipped{f' in {name}' if name else ''}, "
        f"allowed are fewer than {run.safety.allowed}; not finite: "
        f"{', '.join(bad) or 'nothing that is reported'}; last good checkpoint: "
        f"{'none' if saved is None else f'step {saved}'}"
    )


def _strongly_typed(leaf: Any) -> Any:
    """Without the weak type of a Python number, which a checkpoint cannot hold."""
    weak = getattr(leaf, "weak_type", False)
    return jax.lax.convert_element_type(leaf, leaf.dtype) if weak else leaf


def _check_same_types(before: Any, after: Any) -> None:
    """Raises TypeError unless a step gave back a state like the one it took."""
    if jax.tree.structure(before) != jax.tree.structure(after):
        raise TypeError(
            f"iteration changed the structure of the state from {jax.tree.structure(before)} to "
            f"{jax.tree.structure(after)}"
        )
    leaves = jax.tree_util.tree_leaves_with_path(after)
    for old, (path, new) in zip(jax.tree.leaves(before), leaves):
        weak = getattr(new, "weak_type", False)
        if (old.shape, old.dtype, False) != (new.shape, new.dtype, weak):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise TypeError(
                f"iteration changed leaf {name} of the state from {old.dtype}{old.shape} to "
                f"{'weak ' if weak else ''}{new.dtype}{new.shape}"
            )


@contextlib.contextmanager
def _catch_signals() -> Iterator[Callable[[int], bool]]:
    """Gives `(step) -> bool`, True once SIGTERM or SIGINT has come.

    With several processes all of them agree on the step (they must have been started with
    `jax.distributed`, whose service sees the signal).
    """
    came: list[int] = []

    def handle(number: int, _: Any) -> None:
        if came:
            raise Interrupted(f"second signal {number}: stopped without saving")
        came.append(number)
        os.write(2, f"signal {number}: saving after this step\n".encode())

    def stopping(step: int) -> bool:
        if jax.process_count() == 1:
            return bool(came)
        from jax.experimental import multihost_utils

        return multihost_utils.reached_preemption_sync_point(step)

    numbers = (signal.SIGTERM, signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or jax.process_count() > 1:
        yield stopping
        return
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stopping
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
