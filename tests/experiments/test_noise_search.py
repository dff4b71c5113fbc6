import importlib
import json

import jax
import numpy as np
import pytest

from experiments import noise_search

pytestmark = pytest.mark.usefixtures("compile_fast")


@pytest.mark.parametrize("method", ["reno", "carinox", "ttsnap", "golden_noise"])
def test_smoke_run_writes_all(method, tmp_path):
    config = importlib.import_module(f"configs.{method}").get_config("smoke")
    config.seeds = 1
    noise_search.validate(config)
    noise_search.run(config, str(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["method"] == method and (tmp_path / "report.png").exists()
    for arm, own in summary["results"].items():
        for name, value in own.items():
            assert value["mean"] is not None or name.startswith("kendall"), (arm, name)
    full = importlib.import_module(f"configs.{method}").get_config()
    assert set(full.claims) and full.seeds == 3
