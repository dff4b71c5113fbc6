"""The loop: late fetch, resuming to the same bytes, stopping with a word."""

import io
import os
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest
import toy_run as toy

from jaxreward.training import faults, loop
from jaxreward.training import logging as metrics_lib
from jaxreward.training.exits import CheckpointError, ConfigError, Diverged, Interrupted


def quiet():
    return {"stream": io.StringIO()}


def run(iteration, state, workdir, **schedule):
    return loop.run_loop(
        iteration, state, loop.Schedule(**schedule), workdir=workdir, **quiet()
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("toy") / "unbroken"
    toy.run(workdir, 30, **quiet())
    return faults.fingerprint_run(workdir)


def test_one_line_per_step_with_evaluations_where_due(tmp_path):
    toy.run(tmp_path, 12, **quiet())
    records = metrics_lib.read_metrics(tmp_path)
    assert [r["step"] for r in records] == list(range(13))
    assert [r["step"] for r in records if "eval/step" in r] == [0, 5, 10, 12]
    assert all(r["eval/step"] == r["step"] for r in records if "eval/step" in r)
    assert all("train/loss" in r for r in records[:12])
    assert set(records[12]) == {"step", "eval/step", "eval/distance"}
    assert (tmp_path / "timings.jsonl").read_text().count("\n") == 13


def test_metrics_are_fetched_after_the_next_step_is_dispatched(tmp_path):
    order = []

    class Metric:
        def __init__(self, step):
            self.step = step

        def __array__(self, dtype=None, copy=None):
            order.append(f"fetch {self.step}")
            return np.float32(self.step)

    def iteration(state, step):
        order.append(f"dispatch {step}")
        return state, {"a": Metric(step)}

    run(iteration, {"x": jnp.zeros(1)}, tmp_path, steps=3)
    names = list(dict.fromkeys(order))
    assert names == ["dispatch 0", "dispatch 1", "fetch 0", "dispatch 2", "fetch 1", "fetch 2"]


def test_continuing_gives_the_same_bytes(tmp_path, unbroken):
    for steps in (0, 9, 10, 21):
        toy.run(tmp_path, steps, **quiet())
    assert faults.fingerprint_run(tmp_path) != unbroken
    toy.run(tmp_path, 30, **quiet())
    assert faults.fingerprint_run(tmp_path) == unbroken
    toy.run(tmp_path, 30, **quiet())  # and once more, with nothing left to do
    assert faults.fingerprint_run(tmp_path) == unbroken


def test_a_torn_checkpoint_costs_time_only(tmp_path, unbroken):
    toy.run(tmp_path, 21, **quiet())
    newest = tmp_path / "checkpoints" / "21"
    faults.damage(max(faults.files_in(newest), key=os.path.getsize), "zero")
    toy.run(tmp_path, 30, **quiet())
    assert faults.fingerprint_run(tmp_path) == unbroken


def test_when_no_checkpoint_can_be_read_nothing_is_overwritten(tmp_path):
    toy.run(tmp_path, 7, **quiet())
    for path in faults.files_in(tmp_path / "checkpoints"):
        faults.damage(path, "truncate")
    before = faults.fingerprint_files(tmp_path)
    with pytest.raises(CheckpointError, match="none of the checkpoints"):
        toy.run(tmp_path, 30, **quiet())
    assert faults.fingerprint_files(tmp_path) == before


def test_a_signal_saves_and_the_run_continues_to_the_same_bytes(tmp_path, unbroken):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="saved at step 11 of 30"):
        toy.run(tmp_path, 30, mode="sigterm", **quiet())
    assert signal.getsignal(signal.SIGTERM) is before
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["11", "7"]
    toy.run(tmp_path, 30, **quiet())
    assert faults.fingerprint_run(tmp_path) == unbroken


def test_a_signal_in_the_last_step_does_not_let_the_next_stage_begin(tmp_path):
    def iteration(state, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"x": state["x"] + 1}, {}

    with pytest.raises(Interrupted, match="saved at step 3 of 3"):
        run(iteration, {"x": jnp.zeros(3)}, tmp_path, steps=3)
    assert run(iteration, {"x": jnp.zeros(3)}, tmp_path, steps=3)["x"][0] == 3


def test_too_many_steps_that_are_not_finite_stop_the_run(tmp_path):
    message = (
        "step 15: 4 steps in a row were skipped in toy, allowed are fewer than 4; not finite: "
        "train/loss; last good checkpoint: step 14"
    )
    with pytest.raises(Diverged, match=message):
        toy.run(tmp_path, 30, mode="nan", **quiet())
    records = metrics_lib.read_metrics(tmp_path)
    assert records[-1]["step"] == 15
    assert records[-1]["train/loss"] is None and records[-1]["metrics/non_finite"] == 1


def test_a_save_that_fails_stops_the_run_within_one_interval(tmp_path):
    steps = []

    def iteration(state, step):
        steps.append(step)
        if step == 8:  # the folder is lost while the run goes on
            while not (tmp_path / "checkpoints" / "6" / "manifest.json").exists():
                time.sleep(0.01)
            (tmp_path / "checkpoints").rename(tmp_path / "moved")
            (tmp_path / "checkpoints").write_text("")
        return {"x": state["x"] + 1}, {}

    with pytest.raises(CheckpointError, match="cannot write"):
        run(iteration, {"x": jnp.zeros(3)}, tmp_path, steps=100, save_every=6)
    assert max(steps) < 18
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "moved").rename(tmp_path / "checkpoints")
    add = lambda state, step: ({"x": state["x"] + 1}, {})
    final = run(add, {"x": jnp.zeros(3)}, tmp_path, steps=20, save_every=6)
    np.testing.assert_array_equal(final["x"], 20.0)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x: x.astype(jnp.bfloat16), r"leaf a/x .* from float32\(2,\) to bfloat16\(2,\)"),
        (lambda x: x[:1], r"leaf a/x .* from float32\(2,\) to float32\(1,\)"),
        (lambda x: jnp.asarray(1.0), r"weak float32"),
        (lambda x: (x, x), "changed the structure"),
    ],
)
def test_a_step_that_changes_the_type_of_the_state_is_refused(tmp_path, change, message):
    def iteration(state, step):
        return {"a": {"x": change(state["a"]["x"])}}, {}

    with pytest.raises(TypeError, match=message):
        run(iteration, {"a": {"x": jnp.ones(2)}}, tmp_path, steps=2)


def test_bad_arguments(tmp_path):
    nothing = lambda state, step: (state, {})
    state = {"x": jnp.ones(1)}
    workdir = tmp_path / "w"
    for bad in ({"steps": -1}, {"steps": 1, "save_every": 0}, {"steps": 1, "keep": 1}):
        with pytest.raises(ConfigError, match="allowed is >="):
            run(nothing, state, workdir, **bad)
    with pytest.raises(ConfigError, match="allowed = 0; allowed is >= 1"):
        loop.run_loop(
            nothing, state, loop.Schedule(1), workdir=workdir, safety=loop.Safety(allowed=0)
        )
    with pytest.raises(CheckpointError, match="leaf x of the state is 1.0, a float"):
        run(nothing, {"x": 1.0}, workdir, steps=1)
    assert not workdir.exists()
    run(nothing, state, workdir, steps=3)
    with pytest.raises(ConfigError, match="steps = 2; .* is at step 3 already"):
        run(nothing, state, workdir, steps=2)


def test_the_lines_before_a_checkpoint_are_written_before_it(tmp_path):
    seen = []
    host = loop.HostState(get=lambda: seen.append(len(metrics_lib.read_metrics(tmp_path))))
    iteration = lambda state, step: (state, {"a": state["x"]})
    schedule = loop.Schedule(9, save_every=4)
    loop.run_loop(
        iteration, {"x": jnp.float32(1)}, schedule, workdir=tmp_path, host=host, **quiet()
    )
    assert seen == [4, 8, 9]
