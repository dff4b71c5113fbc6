"""Figures of studies of generators: rewards against budget, and samples before and after.

A study names what is drawn, arm by arm: `curve/budget`, `curve/reward` (what is trained on) and
`curve/trusted` (what no arm looks at), each `[seeds, points]`, and images `[seeds, N, H, W]` or
`[seeds, N, H, W, 1]` as `samples` or as `samples/before` and `samples/after`.
"""

import os
import pathlib
from typing import Any, Mapping

import numpy as np

from jaxreward.training import figures

BUDGET, REWARD, TRUSTED = "curve/budget", "curve/reward", "curve/trusted"
SAMPLES = "samples"
PANELS = {REWARD: "training reward", TRUSTED: "trusted reward"}

Found = Mapping[str, Mapping[str, np.ndarray]]


def draw(found: Found, workdir: str | os.PathLike, *, smooth: int = 20) -> list[pathlib.Path]:
    """Writes `curves.png` and `samples.png` to the workdir, each if there is something for it.

    Args:
      found: `{arm: {metric: [seeds, ...]}}`.
      workdir: an existing folder.
      smooth: curves are means over windows of this part of their length.

    Returns:
      What was written.
    """
    root, written = pathlib.Path(workdir), []
    makers = {
        "curves.png": lambda: _curves(found, smooth),
        "samples.png": lambda: _samples(found),
    }
    for name, make in makers.items():
        figure = make()
        if figure is not None:
            figures.save(figure, root / name)
            written.append(root / name)
    return written


def _curves(found: Found, smooth: int):
    """One panel for each kind of reward, one line with its 95% band for each arm."""
    drawn = {
        label: {arm: own for arm, own in found.items() if {BUDGET, metric} <= set(own)}
        for metric, label in PANELS.items()
    }
    if not any(drawn.values()):
        return None
    figure, axes = figures.new_figure(1, len(PANELS), width=6.0, height=4.0)
    for panel, (metric, label) in zip(axes[0], PANELS.items()):
        for arm, own in drawn[label].items():
            width = max(1, own[metric].shape[1] // smooth)
            x = np.mean(own[BUDGET], axis=0)[width - 1 :]
            series = {arm: moving_mean(own[metric], width)}
            figures.curves(panel, x, series, xlabel="budget of the arm", ylabel=label)
        panel.set_xscale("log")
    return figure


def moving_mean(curves: np.ndarray, width: int) -> np.ndarray:
    """`[seeds, points]` to means over `width` points, `[seeds, points - width + 1]`."""
    windows = np.lib.stride_tricks.sliding_window_view(curves, width, axis=1)
    return windows.mean(axis=-1)


def _samples(found: Found):
    """The first seed's images: a row for each arm, before and after side by side."""
    rows = {arm: _strips(own) for arm, own in found.items()}
    rows = {arm: strips for arm, strips in rows.items() if strips}
    if not rows:
        return None
    titles = list(dict.fromkeys(title for strips in rows.values() for title in strips))
    figure, axes = figures.new_figure(len(rows), len(titles), width=6.0, height=0.9)
    for line, (arm, strips) in zip(axes, rows.items()):
        for panel, title in zip(line, titles):
            panel.set_xticks([])
            panel.set_yticks([])
            if title in strips:
                panel.imshow(strips[title], cmap="gray", interpolation="nearest")
        line[0].set_ylabel(arm, rotation=0, ha="right", va="center", fontsize="small")
    for panel, title in zip(axes[0], titles):
        panel.set_title(title, fontsize="small")
    return figure


def _strips(own: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """By title: the images of the first seed in one row."""
    strips = {}
    for name in (SAMPLES, f"{SAMPLES}/before", f"{SAMPLES}/after"):
        if name in own:
            images = np.asarray(own[name][0])
            images = images.reshape(images.shape[:3])  # without a channel
            edge = float(images.max())
            framed = [np.pad(image, 1, constant_values=edge) for image in images]
            strips[name.rpartition("/")[2]] = np.concatenate(framed, axis=1)
    return strips
