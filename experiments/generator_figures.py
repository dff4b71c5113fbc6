"""Figures of studies of generators: rewards against budget, and samples before and after.

A study names what is drawn, arm by arm: `curve/budget`, `curve/reward` (what is trained on) and
`curve/trusted` (what no arm looks at), each `[seeds, points]`, and images `[seeds, N, H, W]` or
`[seeds, N, H, W, 1]` as `samples` or as `samples/before` and `samples/after`, with the prompts
`[seeds, N, 4]` that they were made for, where there are some, as `samples/prompts`.
"""

import os
import pathlib
import textwrap
from typing import Any, Mapping

import numpy as np

from jaxreward.tasks.digit_canvases import sentence
from jaxreward.training import figures

BUDGET, REWARD, TRUSTED = "curve/budget", "curve/reward", "curve/trusted"
SAMPLES, PROMPTS = "samples", "samples/prompts"
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
    if not any(_with_curve(found, metric) for metric in PANELS):
        return None
    figure, axes = figures.new_figure(1, len(PANELS), width=6.0, height=4.0)
    for panel, metric in zip(axes[0], PANELS):
        draw_curves(panel, found, metric, smooth)
    return figure


def draw_curves(axes: Any, found: Found, metric: str, smooth: int = 20) -> None:
    """A kind of reward against the arm's budget: a line with its 95% band for each arm that has it.

    Args:
      axes: of matplotlib.
      found: as of `draw`.
      metric: `REWARD` or `TRUSTED`.
      smooth: as of `draw`.
    """
    for arm, own in _with_curve(found, metric).items():
        width = max(1, own[metric].shape[1] // smooth)
        x = np.mean(own[BUDGET], axis=0)[width - 1 :]
        series = {arm: moving_mean(own[metric], width)}
        if not np.isfinite(series[arm]).all(axis=0).any():
            continue  # rewards that never came; a logarithmic axis without points is refused
        figures.curves(axes, x, series, xlabel="budget of the arm", ylabel=PANELS[metric])
        if len(x) == 1:
            axes.lines[-1].set_marker("o")
        axes.set_xscale("log")
        axes.tick_params(axis="x", which="minor", labelrotation=45, labelsize="x-small")


def _with_curve(found: Found, metric: str) -> Found:
    return {arm: own for arm, own in found.items() if {BUDGET, metric} <= set(own)}


def draw_reward(config: Any, found: Found, results: Any, axes: Any) -> None:
    """The panel of a study: training reward against budget."""
    del config, results
    draw_curves(axes, found, REWARD)


def draw_trusted(config: Any, found: Found, results: Any, axes: Any) -> None:
    """The panel of a study: trusted reward against budget."""
    del config, results
    draw_curves(axes, found, TRUSTED)


CURVE_PANELS = (draw_reward, draw_trusted)
"""What every study of generators draws into its report beside panels of its own."""


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
    told = {arm: np.asarray(found[arm][PROMPTS][0]) for arm in rows if PROMPTS in found[arm]}
    size = dict(width=12.0, height=1.3) if told else dict(width=6.0, height=0.9)
    figure, axes = figures.new_figure(len(rows), len(titles), **size)
    above = None
    for line, (arm, strips) in zip(axes, rows.items()):
        for panel, title in zip(line, titles):
            panel.set_xticks([])
            panel.set_yticks([])
            if title in strips:
                panel.imshow(strips[title], cmap="gray", interpolation="nearest")
                if arm in told and not np.array_equal(told[arm], above):
                    _write_prompts(panel, told[arm], strips[title].shape[1])
        above = told.get(arm)
        line[0].set_ylabel(arm, rotation=0, ha="right", va="center", fontsize="small")
    if len(titles) > 1:
        for panel, title in zip(axes[0], titles):
            panel.set_title(title, fontsize="small")
    return figure


def _write_prompts(panel: Any, prompts: np.ndarray, width: int) -> None:
    """Each image's prompt in words above it."""
    centres = (np.arange(len(prompts)) + 0.5) * width / len(prompts)
    words = [textwrap.fill(sentence(prompt), 10) for prompt in prompts]
    panel.xaxis.tick_top()
    panel.set_xticks(centres, words, fontsize=7)
    panel.tick_params(length=0)


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
