"""The benchmark of the loss path on a small shape."""

import json

import processes
import pytest

from experiments import benchmark
from experiments.benchmarks import linear_log_prob


def test_quick(tmp_path, monkeypatch, capsys):
    shape = dict(rows=64, width=16, vocabulary=512, dtype="float32")
    monkeypatch.setattr(linear_log_prob, "QUICK", shape)
    monkeypatch.setattr(linear_log_prob, "matmul_peak", lambda dtype: 1e11)
    assert benchmark.main(["linear_log_prob", f"--workdir={tmp_path}", "--quick"]) == 0
    table = capsys.readouterr().out
    for name in ("naive logits", *linear_log_prob.OURS[:2], "optax cross-entropy"):
        assert name in table
    (kept,) = tmp_path.glob("linear_log_prob_cpu*.json")
    found = json.loads(kept.read_text())
    assert found["measured"][0]["shape"] == shape and found["versions"]
    for entry in found["measured"][0]["entries"].values():
        assert entry["median"] > 0 and entry["temporary_bytes"] > 0


def _entry(median, memory, loss=1.0):
    seconds = [median, median, 10 * median]
    return dict(median=median, seconds=seconds, temporary_bytes=memory, loss=loss, full=True)


@pytest.mark.parametrize(
    ("median", "memory", "verdict"), [(1.1, 10, "holds"), (1.2, 10, "not"), (1.0, 11, "not")]
)
def test_cpu_bar(median, memory, verdict):
    entries = {"naive logits": _entry(1.0, 100), linear_log_prob.OURS[0]: _entry(median, memory)}
    found = {"shape": linear_log_prob.QUICK, "entries": entries}
    (note,) = linear_log_prob.bars(found, "cpu (2 cores)")
    assert note.endswith(": holds" if verdict == "holds" else "does not hold")


@pytest.mark.parametrize(("width", "median", "holds"), [(4096, 0.09, True), (1024, 0.09, False)])
def test_gpu_bar(width, median, holds):
    found = {"shape": {"width": width}, "entries": {"Pallas": _entry(median, 6.9e9)}}
    (note,) = linear_log_prob.bars(found, "1 x NVIDIA H100 80GB HBM3")
    assert note.endswith(": holds") is holds


def test_a_wrong_loss_is_refused():
    entries = {"naive logits": _entry(1, 1), "Pallas": _entry(1, 1, loss=1.1)}
    with pytest.raises(ValueError, match="Pallas has loss 1.1; the naive loss is 1.0"):
        linear_log_prob._check_losses(entries)


def test_compiled_only(monkeypatch, optimized):
    """Three products of 2 N D V, or four, and never all logits in memory."""
    monkeypatch.setenv("XLA_FLAGS", processes.xla_flags(optimized=True))  # libtpu knows no others
    shape = dict(rows=2048, width=256, vocabulary=151936, dtype="bfloat16")
    found = linear_log_prob.analyse(shape)
    logits = 4 * shape["rows"] * shape["vocabulary"]
    for name, products in zip(linear_log_prob.OURS[:2], (4, 3)):
        entry = found[name]
        assert entry["flop"] / entry["floor"] == pytest.approx(products / 3, rel=0.1)
        assert 0 < entry["temporary_bytes"] < logits
