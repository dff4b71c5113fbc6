"""The figure of the audit."""

import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.audit_report import headline_share
from jaxreward.evaluation.correction_advice import Advice

BLUE, RED, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#E69F00", "#009E73", "#8C8C8C"
LINES = (BLUE, "#CC79A7", GREEN, ORANGE)
MAX_ROWS = 14
"""Feature values shown; those with most rollouts."""

STYLE = {
    "font.size": 11, "axes.titlesize": 12, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
    "legend.frameon": False, "legend.fontsize": 9.5,
}


def save_figure(path: Path, title: str, result: dict[str, Any], advice: Advice) -> None:
    """Writes the figure: rates; where the variance goes; gradient scale; re-checks needed.

    Without re-checks of both verdicts there are no groups to show, and two panels are left.
    """
    with matplotlib.rc_context(STYLE):
        whole = result["groups"] is not None
        figure = Figure(figsize=(13.3, 7.5 if whole else 4.4), layout="constrained", dpi=150)
        axes = figure.subplots(2 if whole else 1, 2).reshape(-1)
        _rates(axes[0], result)
        _plan(axes[-1], result)
        if whole:
            _shares(axes[1], result)
            _factors(axes[2], result)
        figure.get_layout_engine().set(hspace=0.08, wspace=0.06)
        figure.suptitle(f"{title}: {advice.title}", fontsize=15, x=0.01, ha="left")
        with warnings.catch_warnings():  # the table shows the letters that this font lacks
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            figure.savefig(path)


def _rates(axis, result: dict[str, Any]) -> None:
    rows = _rate_rows(result)
    for index, (_, entry) in enumerate(rows):
        for name, color, offset in (
            ("false_positive", RED, -0.14), ("false_negative", BLUE, 0.14)
        ):
            own = entry[name]
            axis.plot([own["low"], own["high"]], [index + offset] * 2, color=color, lw=2.5,
                      solid_capstyle="round", alpha=0.5 if own["estimate"] is None else 1.0)
            if own["estimate"] is not None:
                axis.plot(own["estimate"], index + offset, "o", color=color, ms=6)
    axis.plot([], [], "o-", color=RED, label="false positives (wrong, accepted)")
    axis.plot([], [], "o-", color=BLUE, label="false negatives (right, rejected)")
    axis.set_yticks(range(len(rows)), [label for label, _ in rows])
    axis.set_ylim(len(rows) - 0.3 + 0.13 * len(rows), -0.5)  # room for the legend
    axis.axhline(0.5, color=GREY, lw=0.8)
    top = max(entry[name]["high"] for _, entry in rows for name in
              ("false_positive", "false_negative"))
    axis.set_xlim(0, min(1.0, 1.08 * top))
    axis.grid(axis="x", alpha=0.3)
    axis.legend(loc="lower center", ncols=2, columnspacing=1.2, handlelength=1.4)
    level = result["settings"]["confidence"]
    axis.set_title(f"How often the verifier errs ({100 * level:.4g}% intervals)")


def _rate_rows(result: dict[str, Any]) -> list[tuple[str, dict]]:
    rows = [
        (f"{name} = {value}", entry)
        for name, feature in result["features"].items()
        for value, entry in feature["values"].items()
    ]
    size = [entry["counts"]["accepted"] + entry["counts"]["rejected"] for _, entry in rows]
    kept = sorted(np.argsort([-n for n in size], kind="stable")[:MAX_ROWS])
    rows = [("all rollouts", result["rates"])] + [rows[index] for index in kept]
    return [(label if len(label) <= 32 else label[:31] + "…", entry) for label, entry in rows]


def _shares(axis, result: dict[str, Any]) -> None:
    groups = result["groups"]
    centred, dead = headline_share(result), groups["dead_groups"]
    flips = centred.get("flips", centred["share"])["estimate"]
    rest = max(centred["share"]["estimate"] - flips, 0.0)
    noisy = groups["noise"]["standardized"]["estimate"]
    alive = 1.0 - dead["observed"]
    bars = [
        ("Dr. GRPO, RLOO\nadvantage", [(1 - flips - rest, BLUE, "signal"), (flips, RED, "noise"),
                                       (rest, ORANGE, "wrong weights")]),
        ("GRPO (std)\nadvantage", [(1 - noisy, BLUE, "signal"), (noisy, RED, "noise")]),
        ("groups", [(alive * (1 - dead["falsely_alive"]), BLUE, "mixed"),
                    (alive * dead["falsely_alive"], RED, "alive by\nnoise"),
                    (dead["observed"], GREY, "dead")]),
    ]
    for index, (_, parts) in enumerate(bars):
        left = 0.0
        for width, color, name in parts:
            axis.barh(index, width, left=left, color=color, height=0.6, edgecolor="white")
            if width > 0.09:
                axis.text(left + width / 2, index, f"{name}\n{width:.0%}", color="white",
                          ha="center", va="center", fontsize=10, linespacing=1.15)
            left += width
    axis.set_yticks(range(len(bars)), [label for label, _ in bars])
    axis.set_ylim(len(bars) - 0.5, -0.5)
    axis.set_xlim(0, 1)
    axis.set_xticks(np.linspace(0, 1, 6), [f"{x:.0%}" for x in np.linspace(0, 1, 6)])
    axis.set_title("What the group-relative signal is made of")


def _factors(axis, result: dict[str, Any]) -> None:
    groups = result["groups"]
    centres = [(row["low"] + row["high"]) / 2 for row in groups["buckets"]]
    axis.bar(centres, [row["share"] for row in groups["buckets"]], width=0.18, color=GREY,
             alpha=0.25, label="share of prompts")
    for curve, color in zip(groups["curve"], LINES):
        named = groups["strata_feature"] is not None
        x = curve["success_rate"]
        axis.plot(x, curve["grpo"], color=color, lw=2.2,
                  label=f"GRPO, {curve['value']}" if named else "GRPO")
        axis.fill_between(x, curve["low"], curve["high"], color=color, alpha=0.18, lw=0)
        axis.plot([0, 1], [curve["dr_grpo"]] * 2, color=color, lw=1.4, ls="--")
    axis.plot([], [], color=GREY, lw=1.4, ls="--", label="Dr. GRPO, RLOO: J")
    axis.axhline(1.0, color="black", lw=0.8)
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.4)
    axis.set_yticks(np.linspace(0, 1, 6))
    axis.set_xlabel("true success rate of the prompt")
    axis.set_ylabel("noisy / clean gradient")
    axis.legend(loc="upper center", ncols=3, columnspacing=0.9, handlelength=1.4, fontsize=9)
    axis.set_title(f"What noise leaves of the gradient (groups of {groups['group_size']})")


def _plan(axis, result: dict[str, Any]) -> None:
    rows = [row for row in result["plan"] if row["accepted"] is not None]
    axis.set_title("What a tighter interval costs")
    axis.set_xlabel("half-width of the interval of both rates")
    axis.set_ylabel("re-checks")
    if not rows:
        axis.text(0.5, 0.5, "more prompts are needed first", ha="center", transform=axis.transAxes)
        return
    widths = [row["half_width"] for row in rows]
    for verdict, color, marker in (("accepted", GREEN, "o"), ("rejected", ORANGE, "s")):
        axis.plot(widths, [row[verdict] for row in rows], color=color, marker=marker, lw=2,
                  label=f"needed of {verdict} rollouts")
        have, limit = result["log"][f"rechecked_{verdict}"], result["log"][verdict]
        axis.axhline(limit, color=color, lw=1, ls=":")
        if have:
            axis.axhline(have, color=color, lw=1, ls="--")
    for row in rows:
        more = row["more_accepted"] + row["more_rejected"]
        axis.annotate("reached" if more == 0 else f"+{more:,}",
                      (row["half_width"], max(row["accepted"], row["rejected"])), xytext=(4, 7),
                      textcoords="offset points", ha="center", fontsize=10)
    axis.plot([], [], color=GREY, lw=1, ls="--", label="re-checked so far")
    axis.plot([], [], color=GREY, lw=1, ls=":", label="in this log")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xticks(widths, [f"±{width:g}" for width in widths])
    axis.set_xticks([], minor=True)
    low, high = axis.get_ylim()
    axis.set_ylim(low / 1.5, high * 2)
    axis.set_xlim(min(widths) / 1.3, max(widths) * 1.3)
    axis.legend(loc="upper right")
