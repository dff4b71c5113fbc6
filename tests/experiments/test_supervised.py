"""The supervised runner end to end, and what its config must satisfy."""

import json

import processes
import pytest

from experiments import supervised
from jaxreward.training import config as config_lib
from jaxreward.training.exits import ConfigError

CONFIG = str(processes.ROOT / "configs/traced_integer.py")


def run(workdir):
    arguments = ["--config=configs/traced_integer.py:smoke", f"--workdir={workdir}"]
    arguments += ["--config.steps=3", "--config.samples_tested=10"]
    return processes.python("-m", "experiments.supervised", *arguments)


@pytest.fixture(scope="module", name="finished")
def run_once(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("supervised") / "run"
    done = run(workdir)
    assert done.returncode == 0, done.stderr[-2000:]
    return workdir, done


def test_run_leaves_what_the_contract_says(finished):
    workdir, done = finished
    assert (workdir / "report.png").stat().st_size > 0
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["method"] == "traced_integer"
    assert set(summary["results"]) == set(config_lib.load_config(CONFIG + ":smoke").arms)
    for arm, own in summary["results"].items():
        for name in (supervised.TRUE, supervised.GREEDY, "trace/true_equal"):
            assert len(own[name]["per_seed"]) == 2, arm
    right = {arm: own["train/right_answers"]["mean"] for arm, own in summary["results"].items()}
    assert right["clean"] == right["static_70"] == right["half_keep_right"] == 1.0
    assert right["dynamic_70"] < right["dynamic_10"] < 1.0
    assert len(summary["claims"]) == 7
    assert "were not read" not in done.stderr


def test_a_second_call_takes_what_is_there(finished):
    workdir, _ = finished
    before = (workdir / "summary.json").read_text()
    (workdir / "arms" / "half.json").unlink()
    done = run(workdir)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (workdir / "summary.json").read_text() == before, "one arm again, the same numbers"


@pytest.mark.parametrize("variant", ["", ":sum", ":smoke"])
def test_configs_are_valid(variant):
    supervised.validate(config_lib.load_config(CONFIG + variant))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"steps": "0"}, "steps = 0"),
        ({"learning_rate": "-1.0"}, "learning_rate"),
        ({"task.dataset": ""}, "task.dataset"),
    ],
)
def test_impossible_values_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        supervised.validate(config_lib.override(config_lib.load_config(CONFIG), change))


def test_arms_and_claims_are_checked():
    config = config_lib.load_config(CONFIG)
    with config.unlocked():
        config.arms.half.loudness = 2
    with pytest.raises(ConfigError, match="arms.half changes 'loudness'"):
        supervised.validate(config)
    config = config_lib.load_config(CONFIG)
    with config.unlocked():
        del config.arms["half"]
    with pytest.raises(ConfigError, match="half"):
        supervised.validate(config)


def test_data_that_cannot_be_used(tmp_path):
    from experiments import supervised_training

    config = config_lib.load_config(CONFIG + ":smoke")
    arm = next(iter(config.arms))
    for change, said in (
        ({"task.dataset": "nowhere"}, "config.task.dataset = 'nowhere': dataset = 'nowhere'"),
        ({"task.alphabet": "string:punctuation"}, "config.task.dataset = 'traced.*allowed are"),
    ):
        with pytest.raises(ConfigError, match=said):
            changed = config_lib.override(config, change)
            supervised_training.load_data(changed, arm, str(tmp_path))
