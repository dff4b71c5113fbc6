"""Verifiers that misbehave, for the workers of a pool under test."""

import builtins
import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time


def equal(response: str, answer: str) -> bool:
    return response == answer


def hang(response: str, answer: str) -> float:
    while True:
        time.sleep(3600)


def tower(response: str, answer: str) -> bool:
    return 5 ** (5 ** (5**5)) == 0  # one C call that never gives the interpreter back


def hang_ignoring_sigterm(response: str, answer: str) -> float:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return hang(response, answer)


def hang_with_a_child(response: str, answer: str) -> float:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", answer])
    return hang(response, answer)


def raises(response: str, answer: str) -> float:
    raise RuntimeError(f"no verdict on {response}")


class _Wordless(Exception):
    def __str__(self):
        raise RuntimeError("no words")


def raises_without_words(response: str, answer: str) -> float:
    raise _Wordless


def changes_modules(response: str, answer: str) -> float:
    builtins.float = json.dumps = None
    return math.nan


def sys_exit(response: str, answer: str) -> float:
    sys.exit(3)


def recurse(response: str, answer: str) -> float:
    return recurse(response, answer)


def allocate(response: str, answer: str) -> float:
    return float(len(bytearray(2**36)))


def os_exit(response: str, answer: str) -> float:
    os._exit(7)


def kill(response: str, answer: str) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def segfault(response: str, answer: str) -> float:
    return float(len(ctypes.string_at(0)))


def garbage(response: str, answer: str) -> float:
    """Writes on every descriptor it can find, the pool's socket among them."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b'[0, 1.0, "", ""]\n{"ready": true}\nnot json\n')
        except OSError:
            pass
    return 1.0


def nan(response: str, answer: str) -> float:
    return math.nan


def infinite(response: str, answer: str) -> float:
    return -math.inf


def too_big_an_integer(response: str, answer: str) -> int:
    return 10**400


def huge(response: str, answer: str) -> float:
    return 1e30


def none(response: str, answer: str) -> None:
    return None


def string(response: str, answer: str) -> str:
    return "1.0"


def wrong_length(response: str, answer: str) -> list[float]:
    return [1.0, 0.0]


def complex_number(response: str, answer: str) -> complex:
    return 1j


def prints(response: str, answer: str) -> float:
    print("noise on standard output", flush=True)
    print("noise on standard error", file=sys.stderr, flush=True)
    return 1.0


def mixed(response: str, answer: str) -> float | bool:
    """Does what `response` names, else compares."""
    behaviour = globals().get(response.partition(" ")[0])
    return behaviour(response, answer) if behaviour else response == answer


def process_id(response: str, answer: str) -> float:
    return float(os.getpid())


def length(response: str, answer: str) -> float:
    return float(len(response))


def code_points(response: str, answer: str) -> float:
    return float(sum(map(ord, response)))


def numpy_scalar(response: str, answer: str):
    import numpy as np

    return np.float32(0.25) if response == "float" else np.bool_(True)


def patient(response: str, answer: str) -> bool:
    time.sleep(0.8)
    return response == answer


def sees(response: str, answer: str) -> bool:
    """Whether module or environment variable `response` is (what `answer` says)."""
    if response == "thread":
        return threading.current_thread() is threading.main_thread()
    return response in sys.modules if not answer else os.environ.get(response) == answer[1:]


_draws: list[int] = []


def counter(response: str, answer: str) -> float:
    """Differs on each call in one process."""
    _draws.append(0)
    return float(len(_draws))
