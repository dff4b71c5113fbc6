"""The worker process of `jaxreward.rewards.pool`: reads samples, answers verdicts.

Started by path (`python -P pool_worker.py SOCKET LIFELINE`), it imports only the standard
library and the verifiers it is told to; no jax. Both directions speak JSON lines: texts
travel as data, and nothing a worker sends is unpickled by the trainer.

    trainer -> worker   {"sys_path", "verifiers", "memory_limit_mb"}, once
    worker -> trainer   {"ready": true} or {"broken": text}, once
    trainer -> worker   [[index, verifier, response, answer], ...], a chunk
    worker -> trainer   [index, value or null, cause, detail], one line per sample

A line for one sample also says that the next one of the chunk has begun, which is how the
trainer knows which sample hangs or kills its worker.
"""

import fcntl
import importlib
import os
import resource
import signal
import socket
import sys

# Names of our own: what a verifier changes in these modules is not to cost later samples.
from builtins import BaseException, OverflowError, float, getattr, hasattr, isinstance, str, type
from json import dumps, loads
from numbers import Real


def main(socket_fd: int, lifeline: int) -> None:
    """Serves chunks until the trainer closes the socket or dies."""
    _die_with_the_trainer(lifeline)
    channel = socket.socket(fileno=socket_fd)
    lines = channel.makefile("rb")
    try:
        verifiers = _set_up(loads(lines.readline()))
    except BaseException as error:  # a verifier's module may raise anything
        _send(channel, {"broken": describe(error)})
        return
    _send(channel, {"ready": True})
    for line in lines:
        for index, name, response, answer in loads(line):
            _send(channel, [index, *judge(verifiers[name], response, answer)])


def _die_with_the_trainer(lifeline: int) -> None:
    """Has the kernel kill this process when the trainer's end of `lifeline` closes.

    Reading the end of the socket would do for an idle worker; one that is stuck inside a
    single C call never reads. The signal on parent death of Linux is not used because it
    follows the parent's thread, which may end before the pool does.
    """
    if hasattr(fcntl, "F_SETSIG"):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, int(signal.SIGKILL))
        flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)


def _set_up(settings: dict) -> dict:
    """Limits the process, imports the verifiers and calls their `preload`."""
    sys.path[:] = settings["sys_path"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if settings["memory_limit_mb"]:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (settings["memory_limit_mb"] << 20, hard))
    verifiers = {name: resolve(path) for name, path in settings["verifiers"].items()}
    for verifier in verifiers.values():
        getattr(verifier, "preload", lambda: None)()
    return verifiers


def resolve(path: str):
    """The function named `module:function`."""
    module, _, name = path.partition(":")
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    if not callable(found):
        raise TypeError(f"{path} is a {type(found).__name__}; allowed is a function")
    return found


def judge(verifier, response: str, answer: str) -> tuple[float | None, str, str]:
    """One verdict: `(value, "", "")`, or `(None, cause, detail)` where there is none."""
    try:
        value = verifier(response, answer)
        number = _real(value)
    except BaseException as error:  # SystemExit and KeyboardInterrupt cost the sample only
        return None, "raised", describe(error)
    if number is None:
        return None, "not_a_number", f"returned a {type(value).__name__}"
    return number, "", ""


def _real(value) -> float | None:
    """`value` as a float if it is one real number (numpy scalars too), else None."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def describe(error: BaseException) -> str:
    """An exception as short text."""
    try:
        text = str(error)
    except BaseException:  # its own __str__ may raise anything
        text = "without words"
    return f"{type(error).__name__}: {text[:200]}"[:200]


def _send(channel: socket.socket, message) -> None:
    channel.sendall(dumps(message).encode("ascii") + b"\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
