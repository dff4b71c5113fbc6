"""No worker process is left behind, however the pool or the trainer ends."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import hostile_verifiers
import psutil
import pytest

from jaxreward.rewards.pool import open_pool

HERE = os.path.dirname(__file__)
VERIFIERS = {"mixed": f"{hostile_verifiers.__name__}:mixed"}


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_is_left_behind():
    children = set(psutil.Process().children(recursive=True))
    marker, before = f"marker-{time.monotonic_ns()}", None
    for _ in range(2):
        with open_pool(VERIFIERS, timeout_s=1.0, recycle_after=3) as pool:
            hostile = ["hang_ignoring_sigterm", "tower", "kill", "os_exit", "hang_with_a_child"]
            verdicts = pool.verify("mixed", hostile + list("abcdefgh"), [marker] * 13)
            assert verdicts.ok.tolist() == [False] * 5 + [True] * 8
        if before is None:
            before = _descriptors()
    assert _descriptors() == before
    assert set(psutil.Process().children(recursive=True)) <= children
    running = [p.cmdline() for p in psutil.process_iter() if p.status() != "zombie"]
    assert not any(marker in " ".join(line) for line in running)


_SCRIPT = """
    import os, sys, threading, time
    import hostile_verifiers
    from jaxreward.rewards.pool import open_pool

    pool = open_pool({"mixed": "hostile_verifiers:mixed"}, timeout_s=60.0)
    def workers():
        return [worker.process.pid for worker in pool._crew.workers]
"""


def _run_script(body: str) -> subprocess.Popen:
    code = textwrap.dedent(_SCRIPT) + textwrap.dedent(body)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([HERE, *filter(None, sys.path)])}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )


def _wait_gone(ids: list[int], seconds: float = 3.0) -> list[int]:
    def alive(i):
        return psutil.pid_exists(i) and psutil.Process(i).status() != psutil.STATUS_ZOMBIE

    latest = time.monotonic() + seconds
    while any(map(alive, ids)) and time.monotonic() < latest:
        time.sleep(0.02)
    return [i for i in ids if alive(i)]


@pytest.mark.skipif(sys.platform != "linux", reason="a busy worker notices on Linux only")
def test_killing_the_trainer_leaves_no_orphans():
    script = _run_script("""
        call = lambda: pool.verify("mixed", ["tower", "hang_ignoring_sigterm"], ["", ""])
        threading.Thread(target=call).start()
        time.sleep(1.0)
        print(*workers(), flush=True)
        time.sleep(60)
    """)
    ids = list(map(int, script.stdout.readline().split()))
    assert len(ids) >= 2 and all(map(psutil.pid_exists, ids))
    script.send_signal(signal.SIGKILL)
    script.communicate()
    assert _wait_gone(ids) == []


def test_an_exit_without_close_ends_the_workers():
    script = _run_script("print(*workers(), flush=True)")
    ids = list(map(int, script.communicate(timeout=60)[0].split()))
    assert script.returncode == 0 and len(ids) == 2
    assert _wait_gone(ids) == []


def test_a_fork_neither_uses_nor_ends_the_pool():
    script = _run_script("""
        child = os.fork()
        if not child:
            try:
                pool.verify("mixed", ["a"], ["a"])
            except RuntimeError as error:
                print(error, flush=True)
            sys.exit(0)
        os.waitpid(child, 0)
        print(pool.verify("mixed", ["a"], ["a"]).values, pool.stats()["lost"])
    """)
    out = script.communicate(timeout=60)[0]
    assert script.returncode == 0
    assert "belongs to another process" in out and "[1.] 0" in out
