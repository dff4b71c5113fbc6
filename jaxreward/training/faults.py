"""Breaking things on purpose: damaged files, killed processes, and what they leave."""

import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time
from typing import Callable, NamedTuple, Sequence

from jaxreward.training import checkpoint, files

_ATTEMPTS = 3

DAMAGES = ("delete", "truncate", "zero", "flip")
"""Kinds of damage; `flip` inverts one bit in the middle."""


def damage(path: str | os.PathLike, kind: str) -> None:
    """Damages a file that is not empty in one of the ways of `DAMAGES`."""
    path = pathlib.Path(path)
    data = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
        return
    if kind == "truncate":
        data = data[: len(data) // 2]
    elif kind == "zero":
        data = bytearray(len(data))
    elif kind == "flip":
        data[len(data) // 2] ^= 1
    else:
        raise ValueError(f"kind = {kind!r}; allowed is {', '.join(DAMAGES)}")
    path.write_bytes(data)


def files_in(folder: str | os.PathLike) -> list[pathlib.Path]:
    """All files below a folder, sorted."""
    return sorted(p for p in pathlib.Path(folder).rglob("*") if p.is_file())


def fingerprint_files(folder: str | os.PathLike) -> dict[str, str]:
    """SHA-256 of every file below a folder, by relative path."""
    return {str(p.relative_to(folder)): files.sha256(p) for p in files_in(folder)}


def fingerprint_run(workdir: str | os.PathLike) -> dict[str, str]:
    """What must be equal between two runs: SHA-256 of metrics and of every final array.

    Covers each `metrics.jsonl` and the newest step of each `checkpoints` folder below
    `workdir`, so that runs of several stages are compared whole. Files of checkpoints are not
    compared as such: their names are random.
    """
    root = pathlib.Path(workdir)
    prints = {}
    for path in sorted(root.rglob("metrics.jsonl")):
        prints[str(path.relative_to(root))] = files.sha256(path)
    for folder in sorted(p for p in root.rglob("checkpoints") if p.is_dir()):
        name = folder.relative_to(root)
        restored = checkpoint.read_newest(folder)
        if restored is None:
            continue
        prints[f"{name}: step"] = str(restored.step)
        for leaf, value in restored.state.items():
            content = f"{value.dtype}{value.shape}".encode() + value.tobytes()
            prints[f"{name}: {leaf}"] = hashlib.sha256(content).hexdigest()
    return prints


class Outcome(NamedTuple):
    """One killed and resumed run.

    Attributes:
      instant: as given.
      killed: whether it was still running when it was to be killed.
      equal: whether the resumed run equals the unbroken one.
      detail: what differs, or an error; empty if equal.
    """

    instant: float | str
    killed: bool
    equal: bool
    detail: str


def kill_and_resume(
    command: Sequence[str],
    workdir: str | os.PathLike,
    instants: Sequence[float | str],
    *,
    timeout_s: float | int = 600.0,
) -> list[Outcome]:
    """Kills runs of `command` with SIGKILL, runs each again, compares with an unbroken run.

    Args:
      command: argument list; `{workdir}` in an argument is replaced by the run's folder.
      workdir: a new folder; holds `unbroken` and one folder per instant.
      instants: each a fraction in [0, 1) of the time that a run takes, or `save:k`: when the
        folder of its k-th save (from 1) is being written. A run that ends before its instant
        (the unbroken one took longer: it compiled, or the machine was busy) says how long runs
        take, and is done again, twice at most.
      timeout_s: limit of one run, seconds.

    Returns:
      One outcome per instant, in order.

    Raises:
      RuntimeError: the unbroken run fails.
    """
    root = pathlib.Path(workdir)
    root.mkdir(parents=True)
    start = time.monotonic()
    error = _run(command, root / "unbroken", timeout_s)
    if error:
        raise RuntimeError(f"the unbroken run fails: {error}")
    duration = time.monotonic() - start
    expected = fingerprint_run(root / "unbroken")
    outcomes = []
    for number, instant in enumerate(instants):
        folder = root / f"killed_{number}"
        for attempt in range(_ATTEMPTS):
            start = time.monotonic()
            killed = _run_and_kill(command, folder, _due(instant, duration, folder), timeout_s)
            if killed or attempt == _ATTEMPTS - 1:
                break
            duration = min(duration, time.monotonic() - start)
            shutil.rmtree(folder, ignore_errors=True)
        error = _run(command, folder, timeout_s)
        found = {} if error else fingerprint_run(folder)
        different = [n for n in sorted({*expected, *found}) if expected.get(n) != found.get(n)]
        detail = error or ", ".join(different)
        outcomes.append(Outcome(instant, killed, found == expected, detail))
    return outcomes


def random_instants(count: int, saves: int = 0, seed: int = 0) -> list[float | str]:
    """`count` instants, of which the first `saves` are inside successive saves."""
    draw = random.Random(seed)
    inside = [f"save:{k + 1}" for k in range(saves)]
    return inside + [round(draw.uniform(0.05, 0.95), 3) for _ in range(count - saves)]


def _due(instant: float | str, duration: float, folder: pathlib.Path) -> Callable[[], bool]:
    """Says, when asked repeatedly, whether the instant has come."""
    if not isinstance(instant, str):
        end = time.monotonic() + instant * duration
        return lambda: time.monotonic() >= end
    number, seen = int(instant.removeprefix("save:")), set()

    def due() -> bool:
        seen.update(_saves_going_on(folder))
        return len(seen) >= number

    return due


def _saves_going_on(folder: pathlib.Path) -> set[str]:
    """Unfinished steps in any `checkpoints` below a folder that changes meanwhile."""
    # os.walk, unlike glob, passes over what vanishes.
    found = ((where, names) for where, names, _ in os.walk(folder))
    return {
        os.path.join(where, name)
        for where, names in found
        for name in names
        if os.path.basename(where) == "checkpoints" and ".orbax-checkpoint-tmp" in name
    }


def _arguments(command: Sequence[str], folder: pathlib.Path) -> list[str]:
    return [part.replace("{workdir}", str(folder)) for part in command]


def _run(command: Sequence[str], folder: pathlib.Path, timeout_s: float | int) -> str:
    """Runs to the end; an error in words, or an empty string."""
    try:
        done = subprocess.run(
            _arguments(command, folder), capture_output=True, text=True, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return f"no end after {timeout_s:g} s"
    return f"exit code {done.returncode}: {done.stderr[-2000:]}" if done.returncode else ""


def _run_and_kill(
    command: Sequence[str], folder: pathlib.Path, due: Callable[[], bool], timeout_s: float | int
) -> bool:
    """Runs in a process group of its own and kills that when due; whether it came to it."""
    process = subprocess.Popen(
        _arguments(command, folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    limit = time.monotonic() + timeout_s
    try:
        while process.poll() is None and not due() and time.monotonic() < limit:
            time.sleep(0.001)
    finally:
        running = process.poll() is None
        if running:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return running
