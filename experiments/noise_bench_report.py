"""What the noise bench leaves behind: a table, `summary.json`, a grid figure, a csv."""

import csv
import pathlib
from typing import Any

import ml_collections
import numpy as np

from jaxreward.training import figures, report
from jaxreward.training.files import atomic_path

METRIC = "eval/success"


def write(
    config: ml_collections.ConfigDict, workdir: str, arms: list[str], success: np.ndarray
) -> None:
    """Writes the files and prints the table.

    Args:
      config: of the run.
      workdir: folder of the run.
      arms: names of the remedies.
      success: test success `[arms, noises, learning rates, seeds]`, tuning seeds last.
    """
    root, noises, baseline = pathlib.Path(workdir), list(config.noises), config.baseline
    others = [arm for arm in arms if arm != baseline]
    reported, best = select(success, config.seeds)
    results = report.summarize(
        {
            arm: {f"{METRIC}/{noise}": reported[i, j] for j, noise in enumerate(noises)}
            for i, arm in enumerate(arms)
        }
    )
    claims = [
        report.claim(results, f"{a} beats {baseline} under {n}", a, baseline, f"{METRIC}/{n}")
        for a in others for n in noises
    ]
    summary = report.make_summary(config, config.method, range(config.seeds), results, claims)
    chosen = np.asarray(config.learning_rates)[best]
    path = report.write_summary(root, {**summary, "learning_rates": chosen.tolist()})
    pairs = [(arm, noise) for arm in others for noise in noises]
    cells = dict(zip(pairs, claims))
    _write_csv(root / "noise_bench.csv", cells, arms, noises, chosen)
    _draw(root / "noise_bench.png", cells, others, noises)
    print(report.markdown_table(_rows(results, cells, baseline, others, noises)))
    print(f"\ntest success; below the first row the gain over {baseline!r}, paired over "
          f"{config.seeds} seeds; * : the 95% interval excludes 0")
    print("\ngain over another step size: remedies that divide by a group's deviation, over z_score")
    print(report.markdown_table(_against(config, results, noises)))
    print("\nbest remedy by noise")
    print(report.text_table(_best(cells, others, noises)))
    print(f"\nwrote {path}, {root / 'noise_bench.csv'}, {root / 'noise_bench.png'}")


def select(success: np.ndarray, seeds: int) -> tuple[np.ndarray, np.ndarray]:
    """Success of the reported seeds at the learning rate that was best on the others.

    Returns:
      `[arms, noises, seeds]` and the index of the learning rate `[arms, noises]`.
    """
    best = np.argmax(success[..., seeds:].mean(axis=-1), axis=-1)
    picked = np.take_along_axis(success, best[..., None, None], axis=2)[:, :, 0]
    return picked[..., :seeds], best


def _starred(found: report.Claim) -> bool:
    low, high = found["ci95"] or (0.0, 0.0)
    return low > 0 or high < 0


def _rows(results, cells, baseline: str, others, noises) -> report.Table:
    rows = [["remedy", *noises]]
    plain = [results[baseline][f"{METRIC}/{noise}"] for noise in noises]
    rows.append([baseline, *(report.figure(own["mean"], own["ci95"]) for own in plain)])
    for arm in others:
        found = [cells[arm, noise] for noise in noises]
        rows.append([arm, *map(_gain, found)])
    return rows


def _gain(found: report.Claim) -> str:
    star = "*" if _starred(found) else ""
    return report.figure(found["difference"], found["ci95"]) + star


def _against(config, results: report.Results, noises: list[str]) -> report.Table:
    """Gains over the control that differs in the remedy alone."""
    rows = [["remedy", "control", *noises]]
    for arm in config.controls:
        control, row = config.controls[arm], []
        for noise in noises:
            found = report.claim(results, "", arm, control, f"{METRIC}/{noise}")
            row.append(_gain(found))
        rows.append([arm, control, *row])
    return rows


_CONTROLS = ("clean", "random")


def _best(cells, others, noises) -> report.Table:
    rows = [["noise", "remedy", "gain"]]
    for noise in noises:
        named = [arm for arm in others if arm not in _CONTROLS]
        arm = max(named, key=lambda own: cells[own, noise]["difference"])
        found = cells[arm, noise]
        text = report.figure(found["difference"], found["ci95"])
        good = _starred(found) and found["difference"] > 0
        rows.append([noise, arm if good else "nothing helps", text])
    return rows


def _write_csv(path: pathlib.Path, cells, arms, noises, chosen: np.ndarray) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["remedy", "noise", "gain", "low", "high", "learning_rate"])
        for (arm, noise), found in cells.items():
            low, high = found["ci95"] or (None, None)
            rate = chosen[arms.index(arm), noises.index(noise)]
            writer.writerow([arm, noise, found["difference"], low, high, rate])


def _draw(path: pathlib.Path, cells, shown, noises) -> None:
    values = np.array([[cells[arm, noise]["difference"] for noise in noises] for arm in shown])
    width, height = 1.5 + 0.75 * len(noises), 1.5 + 0.35 * len(shown)
    figure, axes = figures.new_figure(width=width, height=height)
    limit = max(float(np.nanmax(np.abs(values))), 1e-3)
    picture = axes[0, 0].imshow(values, cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    for i, arm in enumerate(shown):
        for j, noise in enumerate(noises):
            text = f"{values[i, j]:+.2f}" + ("*" if _starred(cells[arm, noise]) else "")
            axes[0, 0].text(j, i, text, ha="center", va="center", fontsize=7)
    axes[0, 0].set_xticks(range(len(noises)), noises, rotation=40, ha="right")
    axes[0, 0].set_yticks(range(len(shown)), shown)
    axes[0, 0].set_title("test success minus that without a remedy")
    figure.colorbar(picture, ax=axes[0, 0])
    figures.save(figure, path)
