"""The audit as markdown."""

from typing import Any

from jaxreward.evaluation.correction_advice import Advice

RATE_HEADER = (
    "", "false positives", "false negatives", "J", "true success", "accepted",
    "re-checked (accepted + rejected)",
)


def markdown(title: str, result: dict[str, Any], advice: Advice, left_out: dict[str, int]) -> str:
    """The whole report."""
    parts = [
        f"# Verifier audit: {title}",
        f"**{advice.title}**",
        "\n".join(f"- {reason}" for reason in advice.reasons),
        *([f"Warning: {warning}" for warning in result["warnings"]]),
        "## The log",
        _log(result["log"], left_out),
        f"## Error rates ({100 * result['settings']['confidence']:.4g}% intervals)",
        _rates(result),
        *_tests(result),
        *_groups(result),
        "## Re-checks for a tighter interval",
        _plan(result),
        "## What this rests on",
        _assumptions(result),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def truth_table(result: dict[str, Any], truth: dict[str, float]) -> str:
    """Known values beside the estimates, for a generated log."""
    estimates = {name: result["rates"][name] for name in
                 ("false_positive", "false_negative", "determinant", "success_rate")}
    if result["groups"]:
        estimates["noise_share"] = headline_share(result)["share"]
        for name, key in (("dead_groups", "true"), ("falsely_alive", "falsely_alive")):
            value = result["groups"]["dead_groups"][key]
            estimates[name] = {"estimate": value, "low": None, "high": None}
    rows = []
    for name, entry in estimates.items():
        inside = "" if entry["low"] is None else (
            "yes" if entry["low"] <= truth[name] <= entry["high"] else "no")
        rows.append((name, f"{truth[name]:.3f}", interval(entry), inside))
    return "## Truth beside estimate\n\n" + table(
        ("", "truth", "estimate", "interval holds it"), rows)


def headline_share(result: dict[str, Any]) -> dict[str, Any]:
    """The noise share with rates by the feature they vary with most clearly, if any."""
    noise = result["groups"]["noise"]
    clearest = [
        test["feature"]
        for test in sorted(result["tests"], key=lambda test: test["p_value"])
        if test["feature"] in noise["by_feature"]
    ]
    return noise["by_feature"][clearest[0]] if clearest else noise["centred"]


def table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A markdown table, columns padded so that it also reads well on a terminal."""
    cells = [header, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |"
        for row in cells
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def interval(entry: dict[str, float | None]) -> str:
    """`0.12 (0.10 to 0.15)`, or the bounds alone without an estimate."""
    if entry["low"] is None:
        return f"{entry['estimate']:.3f}"
    if entry["estimate"] is None and entry["low"] <= 0 and entry["high"] >= 1:
        return "unknown"
    limits = f"{entry['low']:.3f} to {entry['high']:.3f}"
    return f"in {limits}" if entry["estimate"] is None else f"{entry['estimate']:.3f} ({limits})"


def _log(log: dict[str, Any], left_out: dict[str, int]) -> str:
    size = log["group_size"]
    lines = [
        f"- {log['rollouts']:,} rollouts of {log['prompts']:,} prompts in {log['groups']:,} groups "
        f"of {size['min']} to {size['max']} (median {size['median']:g}); "
        f"{log['single_rollout_groups']:,} groups have a single rollout and carry no signal",
        f"- accepted {log['accepted']:,}, rejected {log['rejected']:,}"
        + (f"; groups with a single verdict (dead): {log['dead_groups']:.1%}"
           if log["complete"] else "; only re-checked rollouts, so nothing about groups"),
        f"- re-checked {log['rechecked_accepted']:,} accepted and {log['rechecked_rejected']:,} "
        f"rejected rollouts, of {log['rechecked_prompts']:,} prompts",
    ]
    names = {
        "no_reward": "without a reward", "not_finite": "with an infinite reward",
        "no_prompt": "without a prompt id", "repeated_rollouts": "with a repeated rollout id",
    }
    gone = [f"{left_out[key]:,} {name}" for key, name in names.items() if left_out.get(key)]
    if gone:
        lines.append(f"- left out: {', '.join(gone)}")
    if left_out.get("identical_records"):
        lines.append(
            f"- {left_out['identical_records']:,} records repeat an earlier one to the letter "
            "(kept; give --columns rollout_id=... if a resumed run wrote them twice)"
        )
    return "\n".join(lines)


def _rates(result: dict[str, Any]) -> str:
    rows = [_rate_row("all", result["rates"])]
    for name, feature in result["features"].items():
        rows += [_rate_row(f"{name} = {v}", entry) for v, entry in feature["values"].items()]
    return table(RATE_HEADER, rows)


def _rate_row(label: str, entry: dict[str, Any]) -> tuple[str, ...]:
    count = entry["counts"]
    accepted = count["accepted_right"] + count["accepted_wrong"]
    rejected = count["rejected_right"] + count["rejected_wrong"]
    rates = (interval(entry[name]) for name in
             ("false_positive", "false_negative", "determinant", "success_rate"))
    return (label.replace("|", "/"), *rates, f"{entry['observed_success']:.3f}",
            f"{accepted:.0f} + {rejected:.0f}")


def _tests(result: dict[str, Any]) -> list[str]:
    if not result["tests"]:
        return []
    rows = [
        (test["feature"] or "(prompt to prompt)", test["rate"].replace("_", " "),
         f"{test['p_value']:.2g}", f"{test['adjusted']:.2g}", "yes" if test["varies"] else "no")
        for test in result["tests"]
    ]
    header = ("with", "rate", "p", f"p for all {len(rows)} tests (Holm)", "varies")
    return ["### Do the rates vary?", table(header, rows)]


def _groups(result: dict[str, Any]) -> list[str]:
    groups = result["groups"]
    if not groups:
        return []
    dead, noise = groups["dead_groups"], groups["noise"]
    rows = [("Dr. GRPO, RLOO (centred)", "same everywhere", interval(noise["centred"]["share"]),
             f"{noise['centred']['flips']['estimate']:.3f}", "")]
    for name, entry in noise["by_feature"].items():
        split = (f"{entry['flips']['estimate']:.3f}", f"{entry['reweighting']:.3f}") \
            if "flips" in entry else ("", "")
        rows.append(("Dr. GRPO, RLOO (centred)", f"by {name}", interval(entry["share"]), *split))
    by = groups["strata_feature"]
    rows.append(("GRPO (divided by std)", f"by {by}" if by else "same everywhere",
                 interval(noise["standardized"]), f"{noise['standardized']['estimate']:.3f}", ""))
    return [
        "## How much of the group-relative signal is noise",
        table(("advantage", "rates", "share of its variance that is noise", "random flips",
               "wrong weights"), rows),
        *_mixed(result),
        f"Groups: {dead['observed']:.1%} are dead in the log, about {dead['true']:.1%} in truth. "
        f"Of those that look alive, {dead['falsely_alive']:.1%} are truly dead: their whole "
        "advantage is noise.",
        f"## Expected gradient relative to the clean one (groups of {groups['group_size']})",
        _factors(groups),
    ]


def _mixed(result: dict[str, Any]) -> list[str]:
    mixed = sorted({
        test["feature"] for test in result["tests"]
        if test["varies"] and test["feature"] and
        result["features"][test["feature"]]["level"] == "output"
    })
    if not mixed:
        return []
    return [
        f"The rates vary with {', '.join(mixed)} within groups; what follows (and GRPO's share) "
        "uses the average rates and is approximate."
    ]


def _factors(groups: dict[str, Any]) -> str:
    rows = [
        (f"true success {row['low']:.1f} to {row['high']:.1f}", row)
        for row in groups["buckets"]
    ]
    if groups["strata_feature"]:
        rows += [(f"{groups['strata_feature']} = {row['value']}", row) for row in groups["strata"]]
    return table(
        ("prompts", "share", "Dr. GRPO and RLOO (J)", "GRPO", "kappa"),
        [
            (label.replace("|", "/"), f"{row['share']:.1%}", interval(row["dr_grpo"]),
             interval(row["grpo"]), f"{row['kappa']:.3f}")
            for label, row in rows
        ],
    )


def _plan(result: dict[str, Any]) -> str:
    rows = []
    for row in result["plan"]:
        if row["accepted"] is None:
            rows.append((f"+-{row['half_width']:g}", "", "", "", "no: needs more prompts"))
            continue
        more = row["more_accepted"] + row["more_rejected"]
        reach = "reached" if more == 0 else ("yes" if row["in_log"] else "no: needs more rollouts")
        rows.append((f"+-{row['half_width']:g}", f"{row['more_accepted']:,}",
                     f"{row['more_rejected']:,}", f"{more:,}", reach))
    kind = (
        "The cheapest split between verdicts that brings both rates to the half-width."
        if result["state"] == "both"
        else "For planning, whatever the rates turn out to be (the worst case); a pilot of 100 of "
        "each verdict will cut these numbers."
    )
    header = ("both rates to", "more accepted", "more rejected", "together", "in this log")
    return kind + "\n\n" + table(header, rows)


def _assumptions(result: dict[str, Any]) -> str:
    lines = [
        "- The re-check is right. Its own errors enter the rates in full.",
        "- Within a verdict, what was re-checked is a random sample, or its probabilities are "
        "given.",
        "- Intervals treat the prompt as the unit: rollouts of a prompt are alike.",
    ]
    if result["groups"]:
        lines.append(
            "- The noise share is the part of the variance of the observed advantages that no "
            "multiple of the true ones explains, if flips are independent between rollouts given "
            "the truth and the feature. Errors that all rollouts of a prompt share (a wrong "
            "reference answer) are not; the test from prompt to prompt looks for them."
        )
    return "\n".join(lines)
