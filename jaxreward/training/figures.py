"""Figures over seeds, drawn without a display."""

import os
from typing import Any, Mapping, Sequence

import numpy as np

from jaxreward.training.files import atomic_path
from jaxreward.training.report import Results, half_width


def new_figure(rows: int = 1, columns: int = 1, *, width: float = 5.0, height: float = 3.5):
    """A figure and its axes `[rows, columns]`; `width` and `height` of one, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def curves(
    axes: Any,
    x: Any,
    series: Mapping[str, Any],
    *,
    xlabel: str = "step",
    ylabel: str = "",
) -> None:
    """Mean over seeds with a 95% band for each series.

    Args:
      axes: of matplotlib.
      x: `[points]`.
      series: `[seeds, points]` by label; a point where a seed is not finite is left out.
      xlabel: label of the horizontal axis.
      ylabel: label of the vertical axis.
    """
    x = np.asarray(x, np.float64)
    for number, (label, values) in enumerate(series.items()):
        values = np.atleast_2d(np.asarray(values, np.float64))
        if values.shape[1:] != x.shape:
            raise ValueError(f"series {label!r} has shape {values.shape}, x has {x.shape}")
        shown = np.isfinite(values).all(axis=0)
        mean, half = values[:, shown].mean(axis=0), half_width(values[:, shown])
        style = ("-", "--", ":", "-.")[number // 10 % 4]  # ten colours, then another line
        (line,) = axes.plot(x[shown], mean, style, label=label, linewidth=1.5)
        if half is not None:
            band = (mean - half, mean + half)
            axes.fill_between(x[shown], *band, alpha=0.2, color=line.get_color(), linewidth=0)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)


def bars(axes: Any, results: Results, metric: str, arms: Sequence[str] = ()) -> None:
    """A horizontal bar with its 95% interval for each arm that has the metric."""
    shown = [arm for arm in (arms or results) if metric in results[arm]]
    for position, arm in enumerate(shown):
        estimate = results[arm][metric]
        if estimate["mean"] is None:
            continue
        axes.barh(position, estimate["mean"], color=f"C{position % 10}", alpha=0.8)
        if estimate["ci95"] is not None:
            axes.plot(estimate["ci95"], [position, position], color="black", linewidth=1.5)
    axes.set_yticks(range(len(shown)), shown)
    axes.invert_yaxis()
    axes.set_xlabel(metric)
    axes.grid(axis="x", alpha=0.3)


def save(figure: Any, path: str | os.PathLike) -> None:
    """Writes a figure (the suffix says the format) in one go."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
