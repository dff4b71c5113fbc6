"""Python in processes of their own, for tests that need several devices or a whole command."""

import json
import os
import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent


def python(*arguments, devices=None, optimized=False, timeout=600, **variables):
    """`python *arguments` at the root of the repository; the finished process, its output as text.

    `devices` is how many the process sees, forced on the host; `optimized`, for checks of what the
    compiler makes of a program, has it compile as users do, which takes longer.
    """
    variables["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0" if optimized else "1"
    if devices is not None:
        variables["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}", **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def found(*arguments, devices=8, **others):
    """What such a process, which must end well, found: the JSON of the last line it prints."""
    others = {"JAX_NUMPY_RANK_PROMOTION": "raise", **others}
    done = python(*arguments, devices=devices, **others)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
