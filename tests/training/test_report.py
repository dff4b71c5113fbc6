"""Intervals, claims, tables: figures come from results, and the tests can fail."""

import json
import math

import hypothesis
import hypothesis.strategies as st
import ml_collections
import numpy as np
import pytest
import scipy.stats

from jaxreward.training import config as config_lib
from jaxreward.training import figures, report
from jaxreward.training.exits import ConfigError

finite = st.floats(-1e3, 1e3)


@hypothesis.given(st.lists(finite, min_size=2, max_size=10))
def test_the_interval_is_students(values):
    found = report.mean_ci(values)
    sem = scipy.stats.sem(values)
    assert found["mean"] == pytest.approx(np.mean(values), abs=1e-9)
    assert found["per_seed"] == values
    if sem > 1e-6:
        low, high = scipy.stats.t.interval(0.95, len(values) - 1, np.mean(values), sem)
        assert found["ci95"] == pytest.approx([low, high], rel=1e-6, abs=1e-6)


def test_the_interval_covers_the_truth():
    draws = np.random.default_rng(0).normal(1.0, 2.0, (2000, 5))
    found = [report.mean_ci(row)["ci95"] for row in draws]
    covered = np.mean([low <= 1.0 <= high for low, high in found])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_what_cannot_be_said_is_none():
    assert report.mean_ci([0.5]) == {"mean": 0.5, "ci95": None, "per_seed": [0.5]}
    broken = report.mean_ci([0.5, math.nan, math.inf])
    assert broken == {"mean": None, "ci95": None, "per_seed": [0.5, None, None]}
    for bad in ([], [[1.0]]):
        with pytest.raises(ValueError, match="per_seed has shape"):
            report.mean_ci(bad)


def results():
    shared = np.array([0.2, 0.5, 0.8])  # seeds differ far more than arms
    return report.summarize(
        {
            "corrected": {"accuracy": shared + [0.10, 0.11, 0.12], "error": 1 - shared},
            "noisy": {"accuracy": shared, "error": 1 - shared + 0.1},
            "diverged": {"accuracy": [0.1, math.nan, 0.2]},
            "short": {"accuracy": [0.1, 0.2]},
        }
    )


def test_a_claim_is_paired_by_seed():
    found = report.claim(results(), "helps", "corrected", "noisy", "accuracy")
    low, high = found["ci95"]
    assert found["holds"] and found["difference"] == pytest.approx(0.11)
    half = scipy.stats.t.ppf(0.975, 2) * 0.01 / math.sqrt(3)
    assert (low, high) == pytest.approx((0.11 - half, 0.11 + half))
    assert list(found) == ["claim", "better", "worse", "metric", "difference", "ci95", "holds"]
    reversed_ = report.claim(results(), "helps", "noisy", "corrected", "accuracy")
    assert not reversed_["holds"] and reversed_["difference"] == pytest.approx(-0.11)


def test_a_claim_holds_only_beyond_its_margin():
    low = report.claim(results(), "", "corrected", "noisy", "accuracy")["ci95"][0]
    for margin, holds in ((low - 1e-6, True), (low + 1e-6, False)):
        found = report.claim(results(), "", "corrected", "noisy", "accuracy", margin=margin)
        assert found["holds"] is holds


def test_lower_may_be_better():
    found = report.claim(results(), "", "corrected", "noisy", "error", lower_is_better=True)
    assert found["difference"] == pytest.approx(0.1)
    assert found["holds"] and found["better"] == "corrected"


def test_a_claim_without_an_interval_does_not_hold():
    one = report.summarize({"a": {"m": [1.0]}, "b": {"m": [0.0]}})
    assert report.claim(one, "", "a", "b", "m") | {"claim": 0} == {
        "claim": 0, "better": "a", "worse": "b", "metric": "m", "difference": 1.0, "ci95": None,
        "holds": False,
    }  # fmt: skip
    broken = report.claim(results(), "", "corrected", "diverged", "accuracy")
    assert broken["difference"] is None and not broken["holds"]


def test_equivalence():
    for margin, holds in ((0.2, True), (0.11, False), (0.05, False)):
        found = report.equivalence(
            results(), "same", "corrected", "noisy", "accuracy", margin=margin
        )
        assert found["holds"] is holds
        swapped = report.equivalence(
            results(), "same", "noisy", "corrected", "accuracy", margin=margin
        )
        assert swapped["holds"] is holds
    with pytest.raises(ConfigError, match="margin = 0.0"):
        report.equivalence(results(), "", "corrected", "noisy", "accuracy", margin=0.0)


def test_claims_about_what_was_not_measured():
    with pytest.raises(ConfigError, match="names 'corected'; measured are corrected, noisy"):
        report.claim(results(), "", "corected", "noisy", "accuracy")
    with pytest.raises(ConfigError, match="names 'speed'; measured are accuracy, error"):
        report.claim(results(), "", "corrected", "noisy", "speed")
    with pytest.raises(ConfigError, match="have 3 and 2 seeds"):
        report.claim(results(), "", "corrected", "short", "accuracy")


def test_the_summary_is_what_the_design_says(tmp_path):
    config = config_lib.finish(ml_collections.ConfigDict({"steps": 3}))
    claims = [report.claim(results(), "helps", "corrected", "noisy", "accuracy")]
    summary = report.make_summary(config, "toy", [0, 1, 2], results(), claims)
    path = report.write_summary(tmp_path, summary)
    stored = json.loads(path.read_text())
    keys = ["method", "config_sha", "versions", "device", "seeds", "results", "claims"]
    assert list(stored) == keys
    assert stored["config_sha"] == config_lib.sha(config) and stored["seeds"] == [0, 1, 2]
    assert stored["results"]["noisy"]["accuracy"]["per_seed"] == [0.2, 0.5, 0.8]
    assert {"python", "jax", "numpy"} <= set(stored["versions"]) and stored["device"]
    assert report.read_summary(path) == stored
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"claims": [{}]}', '{"claims": 3}'])
def test_what_is_not_a_summary(tmp_path, text):
    (tmp_path / "summary.json").write_text(text)
    with pytest.raises(ConfigError, match="summary"):
        report.read_summary(tmp_path / "summary.json")


def test_tables():
    rows = report.results_rows(results(), ["accuracy", "error"])
    assert rows[0] == ["arm", "accuracy", "error"]
    assert rows[3] == ["diverged", "not finite", ""]
    text = report.text_table(rows).splitlines()
    assert len({line.find("0.") for line in text[2:4]}) == 1
    claims = [report.claim(results(), "helps | a lot", "corrected", "noisy", "accuracy")]
    table = report.markdown_table(report.claim_rows(claims)).splitlines()
    assert table[1] == "|---|---|---|---|"
    assert table[2] == r"| helps \| a lot | accuracy | 0.110 [0.085, 0.135] | yes |"


@pytest.mark.parametrize(
    "mean, interval, text",
    [
        (0.5, [0.25, 0.75], "0.50 [0.25, 0.75]"),
        (123.456, [100.0, 150.0], "123 [100, 150]"),
        (0.00123, [0.0012, 0.0013], "0.001230 [0.001200, 0.001300]"),
        (0.5, [0.5, 0.5], "0.500 [0.500, 0.500]"),
        (0.5, None, "0.5 (1 seed)"),
        (None, None, "not finite"),
    ],
)
def test_figures_show_as_many_digits_as_the_interval_deserves(mean, interval, text):
    assert report.figure(mean, interval) == text


def test_curves_draw_mean_and_band():
    figure, axes = figures.new_figure(1, 2)
    values = np.array([[0.0, 1.0, math.nan], [0.2, 1.2, 1.0]])
    figures.curves(axes[0, 0], [0, 10, 20], {"a": values, "one seed": values[1]}, ylabel="y")
    lines = axes[0, 0].get_lines()
    np.testing.assert_allclose(lines[0].get_xydata(), [[0, 0.1], [10, 1.1]])
    assert len(lines[1].get_xydata()) == 3
    assert len(axes[0, 0].collections) == 1  # one band: one seed has none
    with pytest.raises(ValueError, match=r"series 'a' has shape \(2, 3\), x has \(2,\)"):
        figures.curves(axes[0, 0], [0, 1], {"a": values})


def test_bars_and_saving(tmp_path):
    figure, axes = figures.new_figure()
    figures.bars(axes[0, 0], results(), "accuracy")
    assert [label.get_text() for label in axes[0, 0].get_yticklabels()] == list(results())
    assert len(axes[0, 0].patches) == 3  # the diverged arm has none
    figures.save(figure, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1
