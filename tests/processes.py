"""Python in processes of their own, for tests that need several devices or a whole command."""

import json
import os
import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent


def python(*arguments, devices=None, timeout=600, **variables):
    """`python *arguments` at the root of the repository; the finished process, its output as text.

    `devices` is how many the process sees, forced on the host. What `conftest.py` put into the
    environment, the shared compilations among it, holds there too.
    """
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


def found(*arguments, devices=8, timeout=500, **variables):
    """What such a process, which must end well, found: the JSON of the last line it prints."""
    variables = {"JAX_NUMPY_RANK_PROMOTION": "raise", **variables}
    done = python(*arguments, devices=devices, timeout=timeout, **variables)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
