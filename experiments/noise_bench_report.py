"""What the noise bench leaves behind: a table, `summary.json`, a grid figure, a csv."""

import csv
import pathlib

import ml_collections
import numpy as np

from experiments.noise_bench_training import Outcome
from jaxreward.training import figures, report
from jaxreward.training.files import atomic_path

METRIC = "eval/success"


def write(
    config: ml_collections.ConfigDict, workdir: str, arms: list[str], outcome: Outcome
) -> None:
    """Writes the files and prints the table.

    Args:
      config: of the run.
      workdir: folder of the run.
      arms: names of the remedies.
      outcome: what the runs found.
    """
    root, noises, baseline = pathlib.Path(workdir), list(config.noises), config.baseline
    others = [arm for arm in arms if arm != baseline]
    results = report.summarize(
        {
            arm: {f"{METRIC}/{noise}": outcome.success[i, j] for j, noise in enumerate(noises)}
            for i, arm in enumerate(arms)
        }
    )
    claims = [
        report.claim(results, f"{a} beats {baseline} under {n}", a, baseline, f"{METRIC}/{n}")
        for a in others for n in noises
    ]
    summary = report.make_summary(config, config.method, range(config.seeds), results, claims)
    chosen = {name: own[..., 0] for name, own in outcome.chosen._asdict().items()}
    listed = {name: own.tolist() for name, own in chosen.items()}
    path = report.write_summary(root, {**summary, "chosen": listed})
    pairs = [(arm, noise) for arm in others for noise in noises]
    cells = dict(zip(pairs, claims))
    _write_csv(root / "noise_bench.csv", cells, arms, noises, chosen)
    _draw(root / "noise_bench.png", cells, others, noises)
    print(report.markdown_table(_rows(results, cells, baseline, others, noises)))
    print(f"\ntest success; below the first row the gain over {baseline!r}, paired over "
          f"{config.seeds} seeds; * : the 95% interval excludes 0")
    print("\nover the control that differs in the remedy alone")
    print(report.markdown_table(_against(config, results, noises)))
    edges = [f"{name} {share:.2f}" for name, share in at_the_edge(config, chosen).items()]
    print(f"\nshare of cells tuned to an end of the grid: {', '.join(edges)}")
    print("\nbest remedy by noise")
    print(report.text_table(_best(cells, others, noises)))
    print(f"\nwrote {path}, {root / 'noise_bench.csv'}, {root / 'noise_bench.png'}")


def at_the_edge(
    config: ml_collections.ConfigDict, chosen: dict[str, np.ndarray]
) -> dict[str, float]:
    """Share of the cells whose best setting is the last of the grid, where more may be better.

    A KL coefficient of 0 is no edge: there is nothing below.
    """
    rates, coefficients = config.learning_rates, config.kl_coefficients
    ends = {
        "lowest learning rate": chosen["learning_rate"] == min(rates),
        "highest learning rate": chosen["learning_rate"] == max(rates),
        "lowest KL coefficient": (chosen["kl_coefficient"] == min(coefficients))
        & (min(coefficients) > 0),
        "highest KL coefficient": chosen["kl_coefficient"] == max(coefficients),
    }
    return {name: float(np.mean(own)) for name, own in ends.items()}


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
    """For each noise the remedy whose gain is surest: the highest low end of an interval."""
    rows = [["noise", "remedy", "gain"]]
    named = [arm for arm in others if arm not in _CONTROLS]
    for noise in noises:
        low = lambda arm: (cells[arm, noise]["ci95"] or (cells[arm, noise]["difference"],))[0]
        arm = max(named, key=low)
        found = cells[arm, noise]
        text = report.figure(found["difference"], found["ci95"])
        good = _starred(found) and found["difference"] > 0
        rows.append([noise, arm if good else "nothing is sure to help", text])
    return rows


def _write_csv(path: pathlib.Path, cells, arms, noises, chosen) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["remedy", "noise", "gain", "low", "high", *chosen])
        for (arm, noise), found in cells.items():
            low, high = found["ci95"] or (None, None)
            place = arms.index(arm), noises.index(noise)
            settings = [own[place] for own in chosen.values()]
            writer.writerow([arm, noise, found["difference"], low, high, *settings])


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
