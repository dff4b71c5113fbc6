"""A load onto a mesh gives the same parameters and reads each device's part alone."""

import json
import os
import subprocess
import sys


def test_each_device_gets_its_slice(tmp_path):
    flags = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-m", "tests.networks.sharded_weights", str(tmp_path)],
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for found in json.loads(done.stdout.strip().splitlines()[-1]).values():
        assert found["equal"]
        whole = {name for name, share in found["shares"].items() if share > 0.125}
        assert whole and all("norm" in name for name in whole), whole
