"""Starting, feeding, hearing and ending one worker process of `jaxreward.rewards.pool`."""

import contextlib
import dataclasses
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import deque
from typing import NamedTuple

from jaxreward.rewards import pool_worker

_SEND_TIMEOUT_S = 1
_GRACE_S = 0.2  # between SIGTERM and SIGKILL
_MAX_LINE = 1 << 20
_MAX_READS = 64  # of 64 kB each per turn, so that a flooding worker cannot keep us

_HIDDEN = {  # what a worker must not touch, and threads it must not start
    "CUDA_VISIBLE_DEVICES": "",
    "HIP_VISIBLE_DEVICES": "",
    "ROCR_VISIBLE_DEVICES": "",
    "TPU_VISIBLE_CHIPS": "",
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
}

_log = logging.getLogger(__name__)


class Settings(NamedTuple):
    """The arguments of `pool.open_pool`, checked; `low` and `high` bound a reward."""

    verifiers: dict[str, str]
    workers: int
    timeout_s: float
    batch_timeout_s: float
    recycle_after: int
    cache_size: int
    low: float
    high: float
    max_length: int
    memory_limit_mb: int | None


@dataclasses.dataclass(eq=False)
class Worker:
    """One process and what it is on.

    Attributes:
      process: the worker, leader of its own process group.
      socket: both directions of the protocol of `pool_worker`.
      lifeline: write end of a pipe; the kernel kills the worker when it closes.
      since: monotonic time at which the current sample, or the start, began.
      ready: whether it has imported the verifiers.
      closed: whether it has closed its end or broken the protocol.
      stalled: whether it is long on its sample, so that another stands in for it.
      stale: whether it still holds samples that were given to others.
      served: samples handed to it.
      pending: indices of the samples it holds, the current one first.
      unread: the beginning of a line.
    """

    process: subprocess.Popen
    socket: socket.socket
    lifeline: int
    since: float
    ready: bool = False
    closed: bool = False
    stalled: bool = False
    stale: bool = False
    served: int = 0
    pending: deque[int] = dataclasses.field(default_factory=deque)
    unread: bytes = b""


def start(settings: Settings) -> Worker:
    """Starts a worker in a fresh interpreter and tells it what to import.

    A fresh interpreter, not `multiprocessing`: that would import the trainer's main module,
    and jax with it, in every worker.
    """
    ours, theirs = socket.socketpair()
    read_end, lifeline = os.pipe()
    # a worker that stops reading must not stop us: a send gives up after a second
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_TIMEOUT_S, 0))
    with theirs, os.fdopen(read_end, "rb"):
        process = subprocess.Popen(
            [sys.executable, "-P", pool_worker.__file__, str(theirs.fileno()), str(read_end)],
            pass_fds=(theirs.fileno(), read_end),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_HIDDEN},
            start_new_session=True,  # an interrupt from the keyboard is the trainer's
        )
    worker = Worker(process, ours, lifeline, time.monotonic())
    setup = {
        "sys_path": [entry or os.getcwd() for entry in sys.path],
        "verifiers": settings.verifiers,
        "memory_limit_mb": settings.memory_limit_mb,
    }
    _send(worker, setup)
    return worker


def send_chunk(
    worker: Worker, verifier: str, chunk: list[int], texts: list[tuple[str, str]]
) -> bool:
    """Hands samples `chunk` to an idle worker; False if it does not take them."""
    if not _send(worker, [[i, verifier, *texts[i]] for i in chunk]):
        return False
    worker.pending.extend(chunk)
    worker.served += len(chunk)
    worker.since = time.monotonic()
    return True


def _send(worker: Worker, message) -> bool:
    try:
        worker.socket.sendall(json.dumps(message).encode("ascii") + b"\n")
    except OSError:
        worker.closed = True
    return not worker.closed


def receive(worker: Worker) -> list:
    """What the worker has said so far; never waits. Sets `closed` when it is over."""
    data = [worker.unread]
    for _ in range(_MAX_READS):
        try:
            data.append(worker.socket.recv(1 << 16, socket.MSG_DONTWAIT))
        except BlockingIOError:
            break
        except OSError:
            data.append(b"")
        if not data[-1]:
            worker.closed = True
            break
    *lines, worker.unread = b"".join(data).split(b"\n")
    try:
        messages = [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        messages, worker.closed = [], True
    worker.closed |= len(worker.unread) > _MAX_LINE
    return messages


def has_exited(worker: Worker) -> bool:
    """Whether the process has ended. It is left unreaped, which keeps its id from reuse."""
    if worker.process.returncode is not None:
        return True
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    try:
        return os.waitid(os.P_PID, worker.process.pid, flags) is not None
    except ChildProcessError:  # somebody else has reaped it
        return True


def stop(workers: list[Worker]) -> None:
    """Ends workers and whatever they started: SIGTERM, then SIGKILL to the whole group."""
    for worker in workers:
        _signal_group(worker, signal.SIGTERM)
    latest = time.monotonic() + _GRACE_S
    while not all(map(has_exited, workers)) and time.monotonic() < latest:
        time.sleep(0.001)
    for worker in workers:
        _signal_group(worker, signal.SIGKILL)
        worker.socket.close()
        os.close(worker.lifeline)
        try:
            worker.process.wait(1.0)
        except subprocess.TimeoutExpired:
            _log.error("verifier worker %d does not die", worker.process.pid)


def _signal_group(worker: Worker, number: int) -> None:
    if worker.process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(worker.process.pid, number)


def stop_all(workers: list[Worker], owner: int) -> None:
    """Ends all workers, unless this process is a fork of the owner."""
    if os.getpid() == owner:
        stop(workers)
        workers.clear()
