"""The fault injection itself: what it breaks is broken, what differs is seen."""

import sys
import textwrap
import types

import pytest

from jaxreward.training import faults

RUN = """
import pathlib, sys, time
root = pathlib.Path(sys.argv[1])
(root / "checkpoints").mkdir(parents=True, exist_ok=True)
metrics = root / "metrics.jsonl"
first = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for step in range(first, 20):
    time.sleep(0.01)
    with open(metrics, "a") as file:
        file.write(f"{step}\\n" if sys.argv[2] == "honest" else f"{step} {first}\\n")
    if step % 5 == 0:
        (root / "checkpoints" / f"{step}.orbax-checkpoint-tmp").mkdir(exist_ok=True)
if sys.argv[2] == "fails" and first:
    sys.exit("cannot continue")
"""


def outcomes(tmp_path, kind, instants=(0.5, "save:3")):
    script = tmp_path / "run.py"
    script.write_text(textwrap.dedent(RUN))
    command = [sys.executable, str(script), "{workdir}", kind]
    return faults.kill_and_resume(command, tmp_path / "runs", instants)


def test_an_honest_run_is_equal(tmp_path):
    found = outcomes(tmp_path, "honest")
    assert [o.instant for o in found] == [0.5, "save:3"]
    assert all(o.killed and o.equal and not o.detail for o in found)


def test_a_run_that_does_not_continue_exactly_is_found_out(tmp_path):
    # by saves: at a fraction of the time a slow machine may not have begun
    for outcome in outcomes(tmp_path, "forgetful", ["save:2", "save:3"]):
        assert outcome.killed and not outcome.equal and outcome.detail == "metrics.jsonl"


def test_a_run_that_cannot_continue_is_found_out(tmp_path):
    (outcome,) = outcomes(tmp_path, "fails", ["save:3"])
    assert outcome.killed and not outcome.equal
    assert outcome.detail.startswith("exit code 1: cannot continue")


def test_a_run_that_ends_before_it_is_killed_is_told_apart(tmp_path):
    (outcome,) = outcomes(tmp_path, "honest", ["save:9"])
    assert not outcome.killed and outcome.equal


def test_a_run_that_is_quicker_than_the_unbroken_one_is_done_again(tmp_path, monkeypatch):
    clock, took = [0.0], iter([30.0, 2.0, 10.0])  # seconds: unbroken, then those to be killed
    monkeypatch.setattr(faults, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))

    def run_and_kill(command, folder, due, timeout_s):
        folder.mkdir()
        end = clock[0] + next(took)
        while clock[0] < end and not due():
            clock[0] += 0.125
        return clock[0] < end

    def run(command, folder, timeout_s):
        clock[0] += next(took) if folder.name == "unbroken" else 0.0

    monkeypatch.setattr(faults, "_run_and_kill", run_and_kill)
    monkeypatch.setattr(faults, "_run", run)
    (outcome,) = faults.kill_and_resume([], tmp_path / "runs", [0.5])
    assert outcome.killed and outcome.equal and clock[0] == 33.0


def test_a_command_that_fails_by_itself(tmp_path):
    with pytest.raises(RuntimeError, match="the unbroken run fails: exit code 1"):
        command = [sys.executable, "-c", "raise SystemExit(1)", "{workdir}"]
        faults.kill_and_resume(command, tmp_path / "runs", [0.5])


def test_damage(tmp_path):
    path = tmp_path / "a"
    contents = {}
    for kind in faults.DAMAGES:
        path.write_bytes(b"abcdef")
        faults.damage(path, kind)
        contents[kind] = path.read_bytes() if path.exists() else None
    assert contents == {
        "delete": None, "truncate": b"abc", "zero": b"\0" * 6, "flip": b"abceef"
    }  # fmt: skip
    with pytest.raises(ValueError, match="allowed is delete, truncate, zero, flip"):
        faults.damage(path, "burn")


def test_random_instants():
    instants = faults.random_instants(20, saves=5)
    assert instants == faults.random_instants(20, saves=5)
    assert instants[:5] == ["save:1", "save:2", "save:3", "save:4", "save:5"]
    assert len(instants) == 20 and all(0 <= i < 1 for i in instants[5:])
    assert instants[5:] != faults.random_instants(20, saves=5, seed=1)[5:]
