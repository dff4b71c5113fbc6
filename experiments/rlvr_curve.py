"""A figure of final accuracy against a number that arms differ in: `config.curve`."""

import pathlib

import ml_collections
import numpy as np

from jaxreward.training import figures


def draw(
    config: ml_collections.ConfigDict, results: dict, metric: str, workdir: pathlib.Path
) -> pathlib.Path | None:
    """Writes `curve.png`, or nothing where the config has no curve.

    Args:
      config: `curve.label` names the number, `curve.x` are its values, `curve.lines.<name>` the
        arms at these values, in order.
      results: `{setting/arm: {metric: {"mean", "ci95", ...}}}`.
      metric: drawn with its 95% interval, one panel a setting.
      workdir: where to write.
    """
    if not config.get("curve"):
        return None
    settings = sorted({name.split("/")[0] for name in results if "/" in name})
    figure, axes = figures.new_figure(1, len(settings), width=6.0, height=4.0)
    for panel, setting in zip(np.atleast_1d(axes).ravel(), settings):
        for line in config.curve.lines:
            found = [results[f"{setting}/{arm}"][metric] for arm in config.curve.lines[line]]
            mean = np.array([own["mean"] for own in found])
            low, high = np.array([_interval(own) for own in found]).T
            panel.errorbar(
                config.curve.x, mean, [mean - low, high - mean], marker="o", capsize=3, label=line
            )
        panel.set(xlabel=config.curve.label, ylabel=metric, title=setting)
        panel.legend(fontsize=8)
    path = workdir / "curve.png"
    figures.save(figure, path)
    return path


def _interval(own: dict) -> tuple[float, float]:
    """The interval of a result; without one (a single seed) its mean."""
    bounds = own.get("ci95")
    return tuple(bounds) if bounds else (own["mean"], own["mean"])
