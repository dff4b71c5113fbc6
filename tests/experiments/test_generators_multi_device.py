"""FIND and RLCM on eight forced host devices; see generators_on_eight_devices.py."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def found():
    """What generators_on_eight_devices.py found, by method."""
    done = subprocess.run(
        [sys.executable, str(HERE / "generators_on_eight_devices.py")],
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
            "JAX_NUMPY_RANK_PROMOTION": "raise",
            "PYTHONPATH": str(HERE.parent.parent),
        },
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("method", ["find", "rlcm"])
def test_eight_devices_learn_the_same(found, method):
    """One iteration, its batch split over the devices, against one device."""
    assert found[method]["split"]
    assert found[method]["apart"] <= 2e-5
    assert found[method]["moved"] > 1e-4
