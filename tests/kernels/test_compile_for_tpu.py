"""The TPU kernels compile for v5e, v5p and v6e, with no TPU present."""

import importlib.util
import json
import pathlib

import processes
import pytest

ROWS, WIDTH, VOCABULARY = 8000, 384, 50001

# A process of its own: libtpu writes to stderr and may be loaded once at a time.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")


@pytest.fixture(scope="module", name="found")
def every_topology():
    """What compile_for_tpu.py found, by topology."""
    script = pathlib.Path(__file__).with_name("compile_for_tpu.py")
    sizes = (ROWS, WIDTH, VOCABULARY)
    done = processes.python(script, *sizes, *TOPOLOGIES, optimized=True, **ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.strip().splitlines()[-len(TOPOLOGIES):]
    return dict(zip(TOPOLOGIES, map(json.loads, lines)))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is missing")
@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_compiles_without_logits(topology, found):
    assert found[topology]["kernels"] == ["forward_kernel", "hidden_kernel", "weight_kernel"]
    # At most the weight and its gradient in another layout, V not being a multiple of 128.
    assert found[topology]["temp"] < 4 * ROWS * VOCABULARY / 8
