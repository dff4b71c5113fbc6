"""Two real processes train together, are killed, and continue; see two_processes.py."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import processes
import pytest

from jaxreward.training import checkpoint

HERE = pathlib.Path(__file__).resolve().parent
STEPS, PROCESSES, SAMPLES = 8, 2, 64


def launch(workdir):
    """Starts the processes; the same command whether the run begins or continues."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ,
        "XLA_FLAGS": processes.xla_flags(devices=2),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_NUMPY_RANK_PROMOTION": "raise",
        "JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(HERE.parent.parent),
    }
    command = [sys.executable, str(HERE / "two_processes.py"), str(port), str(PROCESSES)]
    running = []
    for index in range(PROCESSES):
        with open(workdir.parent / f"{workdir.name}-{index}.err", "w") as errors:
            running.append(
                subprocess.Popen(
                    [*command, str(index), str(workdir), str(STEPS)],
                    env=env,
                    stderr=errors,
                    stdout=subprocess.DEVNULL,
                )
            )
    return running


def finish(running, workdir):
    codes = [process.wait(timeout=240) for process in running]
    errors = (workdir.parent / f"{workdir.name}-0.err").read_text()
    assert codes == [0] * PROCESSES, errors[-3000:]


def kill_after(running, workdir, step):
    """SIGKILL to all once a checkpoint of `step` is sealed and a later step was taken."""
    deadline = time.monotonic() + 240
    log = workdir / "judged-1.jsonl"
    while time.monotonic() < deadline and all(p.poll() is None for p in running):
        sealed = (workdir / "checkpoints" / str(step) / "manifest.json").exists()
        if sealed and len(log.read_text().splitlines()) > step:
            break
        time.sleep(0.02)
    for process in running:
        process.send_signal(signal.SIGKILL)
    codes = [process.wait() for process in running]
    errors = (workdir.parent / f"{workdir.name}-0.err").read_text()
    assert codes == [-signal.SIGKILL] * PROCESSES, errors[-3000:]


def judged(workdir):
    """Samples that each process judged, by step; the last time counts."""
    logs = [(workdir / f"judged-{i}.jsonl").read_text().splitlines() for i in range(PROCESSES)]
    return [{row["step"]: row["samples"] for row in map(json.loads, log)} for log in logs]


@pytest.mark.slow  # about a minute and a half: six processes that import and compile
def test_two_processes_survive_being_killed(tmp_path):
    """Metrics and the final state are those of the unbroken run, bit by bit."""
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    finish(launch(unbroken), unbroken)
    kill_after(launch(broken), broken, step=2)
    lines = (broken / "metrics.jsonl").read_text().splitlines()
    assert len(lines) < STEPS
    finish(launch(broken), broken)

    half = dict.fromkeys(range(STEPS), SAMPLES // PROCESSES)
    assert judged(unbroken) == judged(broken) == [half] * PROCESSES
    same = (unbroken / "metrics.jsonl").read_bytes()
    assert same.count(b"\n") == STEPS
    assert (broken / "metrics.jsonl").read_bytes() == same
    one, other = (checkpoint.read_newest(w / "checkpoints") for w in (unbroken, broken))
    assert one.step == other.step == STEPS and one.state.keys() == other.state.keys()
    for name, value in one.state.items():
        np.testing.assert_array_equal(value, other.state[name], err_msg=name)
    folders = sorted(p.name for p in (broken / "checkpoints").iterdir())
    assert folders == ["6", "8"]
