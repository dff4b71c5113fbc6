"""Chains under pmap and shard_map against one device; see mapped_chains.py."""

import json
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
FLAGS = "--xla_force_host_platform_device_count=8"


def test_chains_over_a_mapped_axis_equal_those_of_one_device():
    """Rewards, advantages, rates, metrics and state, over three steps."""
    done = subprocess.run(
        [sys.executable, str(HERE / "mapped_chains.py")],
        env={
            **os.environ,
            "XLA_FLAGS": FLAGS,
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_NUMPY_DTYPE_PROMOTION": "strict",
            "JAX_NUMPY_RANK_PROMOTION": "raise",
            "PYTHONPATH": str(HERE.parent.parent),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert len(found) == 6
    assert max(worst for worst, _ in found.values()) <= 1e-5, found
