"""Which correction to use, from the audit of a log: the decision rule in plain words.

Facts the rule rests on (arXiv 2510.00915, 2510.18924; J = 1 - false_positive -
false_negative):
- With rates that are the same everywhere the expected noisy gradient of Dr. GRPO and RLOO is
  J times the clean one. Correcting the reward then only rescales the step and the balance
  against the KL term: the same as learning rate / J and KL coefficient * J.
- Dividing by the group's standard deviation cancels any affine correction and leaves a
  factor kappa that differs from prompt to prompt. Noise-corrected group normalisation
  divides by kappa and so restores the weights of the prompts.
- If errors depend on what the policy wrote, a correction with the average rates moves the
  optimum further away: rates must be conditional on it, or the verifier mended.
- A correction divides by J; near 0 it multiplies noise.
"""

from typing import Any, NamedTuple

from jaxreward.evaluation.noise_audit import known_rates

MIN_DETERMINANT = 0.1
"""No correction is advised if J may be below this."""

SPREAD = 1.25
"""Ratio of the 90% to the 10% quantile of GRPO's gradient factor from which re-weighting is
worth a change."""


class Advice(NamedTuple):
    """What to do, and why.

    Attributes:
      code: "measure", "fix_verifier", "condition_on_output", "correct_by_prompt",
        "find_feature" or "rescale".
      title: one line.
      reasons: sentences with the figures behind it.
    """

    code: str
    title: str
    reasons: tuple[str, ...]


def advise(result: dict[str, Any]) -> Advice:
    """The advice for the result of `jaxreward.evaluation.noise_audit.audit`."""
    if not known_rates(result):
        return _measure(result)
    if result["rates"]["determinant"]["low"] < MIN_DETERMINANT:
        return _unusable(result)
    varying = [test for test in result["tests"] if test["varies"]]
    level = {name: entry["level"] for name, entry in result["features"].items()}
    by_output = [test for test in varying if level.get(test["feature"]) == "output"]
    by_prompt = [test for test in varying if level.get(test["feature"]) == "prompt"]
    if by_output:
        return _condition(result, by_output)
    if by_prompt:
        return _by_prompt(result, by_prompt)
    if varying:
        return _find_feature(result, varying)
    return _rescale(result)


def concentrated(result: dict[str, Any], feature: str) -> str | None:
    """The value of a feature on which false positives concentrate, if there is one.

    Its lower limit is above the overall upper limit, and its rate at least twice the
    overall one.
    """
    overall = result["rates"]["false_positive"]
    worst, rate = None, 0.0
    for value, entry in result["features"][feature]["values"].items():
        own = entry["false_positive"]
        if own["estimate"] is None or own["estimate"] <= rate:
            continue
        if own["low"] > overall["high"] and own["estimate"] >= 2 * overall["estimate"]:
            worst, rate = value, own["estimate"]
    return worst


def _measure(result: dict) -> Advice:
    bounds, state = result["bounds"], result["state"]
    reasons = []
    if state == "both":
        lacking = "wrong" if result["rates"]["false_positive"]["estimate"] is None else "right"
        reasons.append(
            f"No re-checked rollout is {lacking}: the rate of errors among those is unknown."
        )
    elif state == "none":
        reasons.append("No re-check is in the log: the rates cannot be estimated.")
    else:
        other = {"accepted": "rejected", "rejected": "accepted"}[state]
        known = {
            "accepted": "how many accepted rollouts are wrong",
            "rejected": "how many rejected rollouts are right",
        }[state]
        reasons.append(
            f"Only {state} rollouts were re-checked: that tells {known}, but both rates need "
            f"the {other} ones as well. The rates below are bounds."
        )
    if state == "rejected":
        reasons.append(
            "If every accepted rollout is right (the assumption of arXiv 2510.00915), false "
            f"negatives are {_assuming_precision(result['rates']['counts']):.3f} and false "
            "positives 0."
        )
    if bounds is not None:
        reasons.append(
            "From the verdicts alone, if the rates are the same for all prompts and the "
            f"verifier is better than chance: false positives <= {bounds['false_positive']:.2f}, "
            f"false negatives <= {bounds['false_negative']:.2f}, noise share <= "
            f"{bounds['noise_share']:.2f}"
            + (" (no bound)." if bounds["noise_share"] > 0.995 else ".")
        )
    reasons.append(_purchase(result))
    return Advice("measure", "Measure before correcting: re-check a random sample.", tuple(reasons))


def _assuming_precision(counts: dict[str, float]) -> float:
    checked = counts["rejected_right"] + counts["rejected_wrong"]
    missed = counts["rejected"] * counts["rejected_right"] / checked
    return missed / (missed + counts["accepted"])


def _purchase(result: dict) -> str:
    target = result["settings"]["half_width"]
    row = next(row for row in result["plan"] if row["half_width"] == target)
    if row["accepted"] is None:
        return (
            f"No number of re-checks of this log gives +-{target:g}: it needs more prompts."
        )
    text = (
        f"For +-{target:g} on both rates, re-check {row['more_accepted']:,} more accepted and "
        f"{row['more_rejected']:,} more rejected rollouts, drawn at random within each verdict"
    )
    if row["more_accepted"] + row["more_rejected"] == 0:
        return f"Both rates are known to +-{target:g} or better."
    return text + ("." if row["in_log"] else " (more than this log holds: collect more rollouts).")


def _unusable(result: dict) -> Advice:
    j = result["rates"]["determinant"]
    if j["high"] < 0:
        return Advice(
            "fix_verifier",
            "Do not correct: the verdicts contradict the re-checks.",
            (f"J = {j['estimate']:.2f}, interval {j['low']:.2f} to {j['high']:.2f}, is below 0: "
             "what is accepted is right less often than what is rejected.",
             "See first whether one of the two columns is coded the other way round (1 for an "
             "error, say). If not, the policy is paid for wrong answers."),
        )
    reason = (
        f"J = {j['estimate']:.2f}, interval {j['low']:.2f} to {j['high']:.2f}: it may be below "
        f"{MIN_DETERMINANT:g}, where a correction multiplies the noise more than "
        f"{1 / MIN_DETERMINANT:.0f} times."
    )
    if j["estimate"] > 3 * MIN_DETERMINANT:
        return Advice(
            "measure",
            "Do not correct yet: too few re-checks to rule out a verifier near chance.",
            (reason, _purchase(result)),
        )
    return Advice(
        "fix_verifier",
        "Do not correct: fix the verifier.",
        (reason, "Its verdict says almost nothing about the truth; no reward transform adds "
         "information that is not there."),
    )


def _condition(result: dict, tests: list[dict]) -> Advice:
    feature = min(tests, key=lambda test: test["adjusted"])["feature"]
    hits = [(test["feature"], concentrated(result, test["feature"])) for test in tests]
    hits = [(name, value) for name, value in hits if value is not None]
    reasons = [_varies(test) for test in tests]
    title = f"Use rates by {feature}, or mend the verifier there; no single rate pair."
    if hits:
        feature, value = hits[0]
        rate = result["features"][feature]["values"][value]["false_positive"]
        title = f"Hackable: fix the verifier for {feature} = {value}, or use rates by {feature}."
        reasons.insert(
            0,
            f"With {feature} = {value} the verifier accepts {rate['estimate']:.0%} of the wrong "
            f"rollouts ({rate['low']:.0%} to {rate['high']:.0%}), against "
            f"{result['rates']['false_positive']['estimate']:.0%} overall. The policy can learn "
            "to write it.",
        )
    reasons.append(
        "The errors depend on what was written, so the noise changes the direction of the "
        "gradient within a group. The correction with the average rates keeps that direction "
        "and takes bigger steps along it: it would make things worse."
    )
    return Advice("condition_on_output", title, tuple(reasons + _shares(result, feature)))


def _by_prompt(result: dict, tests: list[dict]) -> Advice:
    feature = result["groups"]["strata_feature"] if result["groups"] else tests[0]["feature"]
    reasons = [_varies(test) for test in tests] + _spread(result) + _shares(result, feature)
    reasons.append(
        "A backward correction with one rate pair, or one followed by division by the group's "
        "standard deviation, does not change those weights."
    )
    return Advice(
        "correct_by_prompt",
        f"Use noise-corrected group normalisation with rates by {feature}.",
        tuple(reasons),
    )


def _find_feature(result: dict, tests: list[dict]) -> Advice:
    names = " and ".join(sorted({_plain(test["rate"]) for test in tests}))
    given = ", ".join(result["features"]) or "none given"
    reasons = [
        f"The {names} vary from prompt to prompt (errors within a prompt are more alike than "
        f"chance allows), and the features do not explain it ({given}).",
        *_spread(result),
        "Find what they depend on (prompt source, answer format, length) and pass it with "
        "--features. Until then a correction with the average rates is right on average only.",
    ]
    title = "Find what the rates depend on before correcting."
    return Advice("find_feature", title, tuple(reasons))


def _rescale(result: dict) -> Advice:
    j = result["rates"]["determinant"]
    counts = result["rates"]["counts"]
    if counts["accepted_wrong"] + counts["rejected_right"] == 0:
        return Advice(
            "rescale",
            "No errors were found: nothing to correct.",
            (f"All {result['log']['rechecked']:,} re-checks agree with the verdict; J is at least "
             f"{j['low']:.2f}.", _purchase(result)),
        )
    tested = ", ".join(result["features"])
    scope = f"by {tested} or from prompt to prompt" if tested else "from prompt to prompt"
    reasons = [
        f"No variation of the rates {scope} was found; a small one may be hidden by "
        f"{result['log']['rechecked']:,} re-checks.",
        f"Dr. GRPO and RLOO: the corrections only rescale. Multiply the KL coefficient by J = "
        f"{j['estimate']:.2f} ({j['low']:.2f} to {j['high']:.2f}) and divide the learning rate "
        "by it: that is the corrected run. Without a KL term Adam undoes the scale, and there is "
        "nothing to correct.",
    ]
    spread = result["groups"]["factor"] if result["groups"] else None
    title = f"Constant rates: rescale (KL coefficient times {j['estimate']:.2f})."
    if spread is not None and spread["ratio"] is not None and spread["ratio"] >= SPREAD:
        title = f"{title[:-1]}; under GRPO with the standard deviation, noise-corrected " \
            "normalisation also re-weights prompts."
    return Advice("rescale", title, tuple(reasons + _spread(result)))


def _spread(result: dict) -> list[str]:
    groups = result["groups"]
    if not groups or groups["factor"] is None or groups["factor"]["ratio"] is None:
        return []
    factor, kappa = groups["factor"], groups["kappa"]
    return [
        f"GRPO with the standard deviation, groups of {groups['group_size']}: noise scales the "
        f"gradient of 80% of the informative prompts by {factor['low']:.2f} to "
        f"{factor['high']:.2f}, a ratio of {factor['ratio']:.2f} (in large groups by kappa, "
        f"{kappa['low']:.2f} to {kappa['high']:.2f}). Noise-corrected group normalisation "
        "multiplies by 1 / kappa and so gives prompts their weight back."
    ]


def _shares(result: dict, feature: str) -> list[str]:
    entry = result["groups"]["noise"]["by_feature"].get(feature) if result["groups"] else None
    if entry is None:
        return []
    text = f"With rates by {feature}, {entry['share']['estimate']:.0%} of the variance of the " \
        "centred advantage is not a multiple of the true advantage"
    if "flips" in entry:
        text += f": {entry['flips']['estimate']:.0%} random flips, " \
            f"{entry['reweighting']:.0%} wrong weights between prompts"
    return [text + "."]


def _varies(test: dict) -> str:
    where = "from prompt to prompt" if test["feature"] is None else f"with {test['feature']}"
    return f"The {_plain(test['rate'])} rate varies {where} (adjusted p = {test['adjusted']:.1g})."


def _plain(rate: str) -> str:
    return rate.replace("_", "-")
