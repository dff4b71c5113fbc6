"""The judgement of a reward function as markdown and as a figure."""

from pathlib import Path
from typing import Any, Callable

import numpy as np

from jaxreward.training import figures, report

LABELS = {
    "pairwise_accuracy": "pairs in the right order (a tie is not)",
    "pairwise_ties": "pairs tied",
    "accuracy": "right answer above all others",
    "accuracy_with_ties": "no other answer above the right one",
    "reciprocal_rank": "mean reciprocal rank",
    "win_rate": "share of the others beaten, by problem",
    "response_consistency": "own answer above that of a similar prompt",
    "response_consistency_both_directions": "the same, from both prompts",
    "instruction_consistency": "answer worth more for its own prompt",
    "instruction_consistency_both_directions": "the same, from both prompts",
    "order_kept": "pairs that another wording of the prompt leaves in their order",
    "reworded_right": "pairs in the right order under other wordings",
    "accuracy_longer": "right, where the better answer is longer",
    "accuracy_shorter": "right, where the better answer is shorter",
    "bias": "difference of the two",
    "correlation_of_differences": "correlation of reward and length differences",
    "rank_correlation": "rank correlation of reward and length",
    "correlation_given_preferred": "correlation of reward and log length, given which is better",
    "spread": "spread over forms, relative to that over answers",
    "flips": "answers that some form puts on the other side of the best rejected one",
    "top_with_majority": "gold of the top sample, ties to the majority",
}
SECTIONS = (
    ("preference", "Preference"), ("categories", "Right answer above all others, by category"),
    ("contrast", "Contrast"), ("wording", "Other wordings of the prompt"), ("length", "Length"),
    ("format", "Format"),
)


def markdown(result: dict[str, Any]) -> str:
    """The whole report: what was judged, warnings, and one table."""
    parts, rows = [f"# Reward: {result['reward']}"], [["", "value", "95% interval", "of"]]
    if "items" in result:
        parts += [_items(result), *_warnings(result)]
        for key, title in SECTIONS:
            rows += _titled(title, _measures(result[key] or {}))
        rows += _titled("Calibration", _calibration(result["calibration"]))
        rows += _titled("Best of n", _best_of_n(result["best_of_n"]))
    if "mdp" in result:
        rows += _titled("Distance from gold", _mdp(result["mdp"]))
    return "\n\n".join([*parts, report.markdown_table(rows)]) + "\n"


def _items(result: dict[str, Any]) -> str:
    scores, items = result["scores"], result["items"]
    lines = [f"{items['used']} problems, {scores['count']} scores, {scores['missing']} missing"]
    for reason, own in items["refused"].items():
        where = ", ".join(map(str, own["lines"]))
        lines.append(f"- refused: {own['count']} {reason.replace('_', ' ')} (first: line {where})")
    return "\n".join(lines)


def _warnings(result: dict[str, Any]) -> list[str]:
    ties = result["preference"]["pairwise_ties"]
    found = []
    if ties and ties["value"] == 1.0:
        found.append("Warning: every pair is tied; this reward prefers nothing.")
    elif ties and ties["value"] > 0.05:
        found.append("Warning: many ties; compare the accuracies with and without them.")
    if result["scores"]["missing"]:
        found.append("Warning: scores are missing; what they are compared with takes no part.")
    return found


def _titled(title: str, rows: list[list[str]]) -> list[list[str]]:
    return [[f"**{title}**", "", "", ""], *rows] if rows else []


def _measures(figures_: dict[str, Any]) -> list[list[str]]:
    return [[LABELS.get(name, name), *_cells(own)] for name, own in figures_.items() if own]


def _cells(own: dict[str, Any]) -> list[str]:
    number = lambda x: "" if x is None else f"{x:.3f}"
    interval = "" if own["low"] is None else f"[{number(own['low'])}, {number(own['high'])}]"
    return [number(own["value"]), interval, str(own["count"] or "")]


def _calibration(own: dict[str, Any] | None) -> list[list[str]]:
    if own is None:
        return []
    rows = []
    for name, label in (
        ("raw", "the difference"), ("scaled", f"{own['best_scale']:.3g} times the difference")
    ):
        error = own[name]["expected_calibration_error"]
        rows.append([f"calibration error, sigmoid of {label}", f"{error:.3f}", "", ""])
        rows.append([f"Brier score, sigmoid of {label}", *_cells(own[name]["brier_score"])])
    return rows


def _best_of_n(own: dict[str, Any] | None) -> list[list[str]]:
    if own is None:
        return []
    rows = [
        [f"gold of the best of {n} (KL {kl:.2f})", *_cells(gold)]
        for n, kl, gold in zip(own["n"], own["kl"], own["gold"])
    ]
    rows.append(["correlation of reward and gold", *_cells(own["correlation"])])
    if "collapse" in own:
        fall = f"fall of gold from its peak, at n = {own['peak_n']}"
        rows.append([fall, f"{own['collapse']:.3f}", "", ""])
    if own["top_with_majority"]:
        rows.append([LABELS["top_with_majority"], *_cells(own["top_with_majority"])])
    return rows


def _mdp(own: dict[str, dict[str, float]]) -> list[list[str]]:
    return [
        [f"{reward}: {name.replace('_', ' ')}", f"{value:.4f}", "", ""]
        for reward, found in own.items()
        for name, value in found.items()
    ]


def save_figure(path: Path, result: dict[str, Any]) -> None:
    """A panel for each section with data."""
    panels = _panels(result)
    figure, axes = figures.new_figure(1, len(panels), width=5.2, height=4.2)
    for panel, draw in zip(axes[0], panels):
        draw(panel)
    figure.suptitle(f"reward: {result['reward']}")
    figures.save(figure, path)


def _panels(result: dict[str, Any]) -> list[Callable[[Any], None]]:
    panels: list[Callable[[Any], None]] = []
    if "items" in result:
        shares = dict(result["preference"])
        for key in ("contrast", "wording", "format"):
            shares.update({k: v for k, v in (result[key] or {}).items() if k != "spread"})
        for key in ("accuracy_longer", "accuracy_shorter"):
            shares[key] = (result["length"] or {}).get(key)
        panels.append(lambda axes: _draw_shares(axes, shares))
        if result["calibration"]:
            panels.append(lambda axes: _draw_calibration(axes, result["calibration"]))
        if result["best_of_n"]:
            panels.append(lambda axes: _draw_best_of_n(axes, result["best_of_n"]))
    if "mdp" in result:
        panels.append(lambda axes: _draw_mdp(axes, result["mdp"]))
    return panels


def _draw_shares(axes: Any, shares: dict[str, Any]) -> None:
    shown = {name: own for name, own in shares.items() if own}
    for position, own in enumerate(shown.values()):
        axes.barh(position, own["value"], alpha=0.8, color=f"C{position % 10}")
        if own["low"] is not None:
            axes.plot([own["low"], own["high"]], [position] * 2, color="black", linewidth=1.5)
    axes.set_yticks(range(len(shown)), [name.replace("_", " ") for name in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.grid(axis="x", alpha=0.3)


def _draw_calibration(axes: Any, own: dict[str, Any]) -> None:
    axes.plot([0.5, 1], [0.5, 1], color="black", linewidth=1)
    for name, label in (("raw", "as it is"), ("scaled", "best scale")):
        diagram = {key: np.array(value) for key, value in own[name]["diagram"].items()}
        some = diagram["count"] > 0
        axes.plot(diagram["probability"][some], diagram["outcome"][some], "o-", label=label)
    axes.set_xlabel("confidence in the preferred answer")
    axes.set_ylabel("how often it is right")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _draw_best_of_n(axes: Any, own: dict[str, Any]) -> None:
    root = np.sqrt(own["kl"])
    for name, style in (("gold", "o-"), ("proxy", "s--")):
        values = np.array([point["value"] for point in own[name]])
        axes.plot(root, values, style, label="reward (deviations)" if name == "proxy" else name)
    axes.set_xlabel("square root of KL (nats) of best-of-n")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _draw_mdp(axes: Any, own: dict[str, dict[str, float]]) -> None:
    names = [name for name in next(iter(own.values())) if "regret" not in name]
    for name in names:
        points = [(found[name], found["worst_case_regret"]) for found in own.values()]
        axes.plot(*zip(*points), "o", label=name)
    axes.set_xlabel("distance from gold")
    axes.set_ylabel("worst-case regret")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
