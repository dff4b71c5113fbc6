"""Python in processes of their own, for tests that need several devices or a whole command.

Most of the time of the tests is compiling, so they and the processes that they start compile in
the least time, not to the fastest program, but where a test asks for optimizations.
"""

import json
import os
import pathlib
import subprocess
import sys
from importlib import metadata

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent
QUICK = ("--xla_cpu_parallel_codegen_split_count=1", "--xla_cpu_use_fusion_emitters=false")
"""One thread of the compiler, since each worker has a core; and no MLIR on the way to LLVM, which
takes half the time for a small program. jaxlib 0.11 has no such choice."""


def compile_quickly():
    """Sets the environment of this process, before it imports jax, and of those that it starts."""
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    known = QUICK if metadata.version("jaxlib").startswith("0.10.") else QUICK[:1]
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join([*flags, *(flag for flag in known if flag not in flags)])


def xla_flags(devices=None, optimized=False):
    """Flags for a process that sees so many devices, forced on the host, where a number is told."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    flags = [flag for flag in flags if not (optimized and flag in QUICK)]
    if devices is not None:
        flags.append(f"--xla_force_host_platform_device_count={devices}")
    return " ".join(flags)


def python(*arguments, devices=None, optimized=False, timeout=600, **variables):
    """`python *arguments` at the root of the repository; the finished process, its output as text.

    `devices` is how many the process sees, forced on the host; `optimized`, for checks of what the
    compiler makes of a program, has it compile as users do, which takes longer.
    """
    variables["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0" if optimized else "1"
    variables["XLA_FLAGS"] = xla_flags(devices, optimized)
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
