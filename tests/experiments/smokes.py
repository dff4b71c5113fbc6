"""The smallest variant of a study: run to its end, and refused with a bad value in it."""

import importlib
import json
import re

import numpy as np
import pytest

from experiments import generate_rl, noise_search, reward_model
from jaxreward.training.config import resolve
from jaxreward.training.exits import ConfigError

RUNNERS = {
    "generator_studies": generate_rl, "image_studies": noise_search, "reward_studies": reward_model
}  # fmt: skip
"""By the folder of the study."""


def variant(name, arg="smoke"):
    """A variant of `configs/<name>.py`."""
    return importlib.import_module(f"configs.{name}").get_config(arg)


def run(name, folder, *, undefined=()):
    """Runs the smoke variant of a method; its config and the results of its summary.

    All claims are judged, all metrics of the table measured, and all numbers of all seeds are
    finite but of metrics whose names begin with one of `undefined`.
    """
    config = variant(name)
    runner = RUNNERS[config.study.fn.split(".")[1]]
    runner.validate(config)
    runner.run(config, str(folder))
    assert (folder / "report.png").stat().st_size > 0
    summary = json.loads((folder / "summary.json").read_text())
    results = summary["results"]
    assert summary["method"] == name and len(summary["claims"]) == len(config.claims)
    for arm, own in results.items():
        for metric, values in own.items():
            assert len(values["per_seed"]) == config.seeds
            if not metric.startswith(tuple(undefined)):
                assert np.all(np.isfinite(values["per_seed"])), (arm, metric)
    for metric in config.show:
        assert any(metric in own for own in results.values()), metric
    return config, results


def refuses(name, key, value, *, blamed=None, arg="smoke"):
    """Building a variant with `key` changed ends in a line on the key, or on `blamed`."""
    config = variant(name, arg)
    config.update_from_flattened_dict({key: value})
    said = f"config.{blamed} = " if blamed else re.escape(f"config.{key} = {value!r}")
    with pytest.raises(ConfigError, match=said):
        resolve(config.study.fn)(config)
