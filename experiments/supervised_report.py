"""What `experiments.supervised` leaves behind: `summary.json`, `report.png` and two tables."""

import pathlib

import ml_collections

from experiments.supervised_metrics import GREEDY, TRUE
from experiments.supervised_training import Found
from jaxreward.training import figures, report

RIGHT = "train/right_answers"


def write(config: ml_collections.ConfigDict, workdir: str, found: dict[str, Found]) -> None:
    """Writes summary and figure, prints tables and the paths of what was written."""
    results = report.summarize(found)
    claims = [_claim(results, config.claims[name]) for name in config.claims]
    summary = report.make_summary(config, config.method, range(config.seeds), results, claims)
    path = report.write_summary(workdir, summary)
    figure = pathlib.Path(workdir) / "report.png"
    _draw(config, results, figure)
    print(f"\n{config.method}: clean test prompts")
    print(report.text_table(_rows(results)))
    print("\nclaims (paired over seeds, 95% interval)")
    print(report.text_table(report.claim_rows(claims)))
    print(f"\nwrote {path}, {figure}", flush=True)


def _claim(results, c: ml_collections.ConfigDict) -> report.Claim:
    own = (results, c.claim, c.better, c.worse, c.metric)
    if c.equivalent:
        return report.equivalence(*own, margin=c.margin)
    return report.claim(*own, margin=c.margin)


def _rows(results) -> list[list[str]]:
    columns = {
        "right in training": RIGHT,
        "T=1": TRUE,
        "greedy": GREEDY,
        "T=1 lines equal": "trace/true_equal",
        "T=1 lines consistent": "trace/true_consistent",
    }
    rows = [["arm", *columns]]
    for arm, own in results.items():
        cells = [report.figure(own[name]["mean"], own[name]["ci95"]) for name in columns.values()]
        rows.append([arm, *cells])
    return rows


def _draw(config: ml_collections.ConfigDict, results, path: pathlib.Path) -> None:
    """Both decoders as bars, and accuracy at T=1 against the data's share of right answers."""
    figure, axes = figures.new_figure(1, 3, width=5.0, height=0.6 + 0.3 * len(results))
    for panel, metric, title in zip(axes[0], (TRUE, GREEDY), ("T = 1", "greedy")):
        figures.bars(panel, results, metric)
        panel.set(xlim=(0, 1.02), xlabel=f"true accuracy, {title}")
    panel = axes[0, 2]
    for position, (arm, own) in enumerate(results.items()):
        x, y = own[RIGHT]["mean"], own[TRUE]["mean"]
        panel.plot(x, y, "o", color=f"C{position % 10}")
        panel.annotate(arm, (x, y), fontsize=6)
    panel.plot((0, 1), (0, 1), ":", color="gray")
    panel.set(xlabel="right answers in the training data", ylabel="true accuracy, T = 1")
    figure.suptitle(f"{config.method}: {config.seeds} seeds, bars with 95% intervals")
    figures.save(figure, path)
