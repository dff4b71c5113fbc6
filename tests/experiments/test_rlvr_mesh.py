"""One arm on a mesh of four forced host devices, stopped and continued."""

import json

import processes
import pytest

from experiments import rlvr_mesh


def run(workdir, *flags):
    return processes.python(
        "-m", "experiments.rlvr_mesh", "--config=configs/noise_corrected_grpo.py:smoke",
        f"--workdir={workdir}", "--config.warm_start.steps=2", *flags, devices=4,
    )  # fmt: skip


def test_an_arm_trains_on_a_mesh(tmp_path):
    done = run(tmp_path / "run", "--mesh=1,-1,2", "--arm=appeals_backward", "--accumulate=2")
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6
    metrics = [json.loads(line) for line in lines]
    assert all(row["train/skipped"] == 0 for row in metrics)
    assert all(0 <= row["reward/true"] <= 1 for row in metrics)
    assert (tmp_path / "run" / "checkpoints" / "6" / "manifest.json").exists()


def test_what_cannot_be_split_is_refused(tmp_path):
    done = run(tmp_path / "run", "--mesh=4,1,1", "--accumulate=2")
    assert done.returncode == 2
    assert "prompts_per_step = 4; allowed are multiples of data * fsdp * accumulate = 8" in (
        done.stderr
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--mesh=a,b", "--mesh = 'a,b'; allowed are three sizes, such as 1,-1,1"),
        ("--mesh=1,2", "--mesh = '1,2'; allowed are three sizes"),
        ("--accumulate=0", "--accumulate = 0; allowed is >= 1"),
    ],
)
def test_flags_that_mean_nothing_say_what_is_allowed(flag, message, tmp_path, capsys):
    flags = [f"--workdir={tmp_path / 'run'}", flag]
    with pytest.raises(SystemExit) as stopped:
        rlvr_mesh.main(["--config=configs/noise_corrected_grpo.py:smoke", *flags])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
