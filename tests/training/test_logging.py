"""Metrics: the bytes are a function of the values, and what is torn is cut off."""

import json
import logging

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from jaxreward.training import logging as metrics_lib


def write(workdir, steps, first_step=0):
    with metrics_lib.open_metrics(workdir, first_step=first_step) as writer:
        for step in steps:
            writer.write(step, {"train": {"loss": jnp.float32(0.1) * step}, "n": step})
            writer.write_timings(step, {"seconds": 0.25})
        writer.flush()


def test_a_line_is_deterministic_and_exact():
    third = np.float32(1 / 3)
    values = metrics_lib.flatten(
        {"b": third, "a": {"y": jnp.int32(3), "x": jnp.bfloat16(1.5)}, "v": jnp.arange(2.0)}
        | {"t": True, "d": 1 / 3}
    )
    line = metrics_lib.to_line(4, values)
    assert line == (
        '{"step": 4, "a/x": 1.5, "a/y": 3, "b": 0.3333333432674408, '
        '"d": 0.3333333432674408, "t": true, "v": [0.0, 1.0]}\n'
    )
    assert np.float32(json.loads(line)["b"]) == third


def test_what_is_not_finite_is_null_and_counted():
    values = metrics_lib.flatten({"a": np.nan, "b": np.float64(1e300), "v": [1.0, np.inf]})
    record = json.loads(metrics_lib.to_line(0, values))
    assert record == {"step": 0, "a": None, "b": None, "v": [1.0, None], "metrics/non_finite": 3}


@pytest.mark.parametrize("value", [np.zeros((2, 2)), "text", None, object()])
def test_other_values_are_refused_by_name(value):
    with pytest.raises(ValueError, match="metric a/b has shape"):
        metrics_lib.flatten({"a": {"b": value}})


def test_a_metric_cannot_be_called_step():
    with pytest.raises(ValueError, match="called step"):
        metrics_lib.to_line(0, {"step": np.int32(1)})


def test_continuing_cuts_to_the_first_step(tmp_path, caplog):
    write(tmp_path / "whole", range(6))
    write(tmp_path / "cut", range(5))
    with open(tmp_path / "cut" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "trai')
    with caplog.at_level(logging.WARNING, "jaxreward"):
        write(tmp_path / "cut", range(3, 6), first_step=3)
    assert not caplog.text
    whole = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == whole
    assert [r["step"] for r in metrics_lib.read_metrics(tmp_path / "cut")] == list(range(6))
    timings = (tmp_path / "cut" / "timings.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in timings] == list(range(6))


def test_missing_lines_are_reported(tmp_path, caplog):
    write(tmp_path, range(2))
    with caplog.at_level(logging.WARNING, "jaxreward"):
        write(tmp_path, range(4, 5), first_step=4)
    assert "has 2 lines before step 4" in caplog.text


def test_reading_stops_at_a_torn_line(tmp_path):
    assert metrics_lib.read_metrics(tmp_path) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n{"step": 1}\n{"st')
    assert metrics_lib.read_metrics(tmp_path) == [{"step": 0}, {"step": 1}]
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n[1]\n{"step": 2}\n')
    assert metrics_lib.read_metrics(tmp_path) == [{"step": 0}]


def test_other_processes_write_nothing(tmp_path):
    with metrics_lib.open_metrics(tmp_path / "w", writes=False) as writer:
        writer.write(0, {"a": 1.0})
        writer.write_timings(0, {"seconds": 1.0})
        writer.flush()
    assert not (tmp_path / "w").exists()


def events(folder):
    """Scalars of all event files: `(name, step, value)`."""
    found = []
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            data = data[12 + size + 4 :]
    return found


def test_tensorboard_gets_the_scalars_and_the_times(tmp_path):
    with metrics_lib.open_metrics(tmp_path) as writer:
        writer.write(0, {"arm": {"accuracy": jnp.array([0.25, 0.75])}, "loss": 2.0})
        writer.write_timings(0, {"seconds": 0.5})
    assert sorted(events(tmp_path / "tensorboard")) == [
        ("arm/accuracy", 0, 0.5),
        ("loss", 0, 2.0),
        ("time/seconds", 0, 0.5),
    ]
