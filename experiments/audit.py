"""Audits a verifier from the log of a training run: how noisy it is, and what to do about it.

    python -m experiments.audit --rollouts=FILE.jsonl --columns prompt_id=prompt,reward=score
    python -m experiments.audit --synthetic            # a generated log with known noise

For those who train elsewhere (TRL, verl, Tunix, ...). It reads one record for each rollout:
which prompt, what the verifier said (0 or 1, or a graded reward with --threshold), and for
some of them what a trusted verifier said: a person, a stronger model, a slow exact check. It
answers how often the verifier errs, what share of the group-relative advantage is noise,
what noise does to the gradient of GRPO, Dr. GRPO and RLOO, which correction to use, and how
many more re-checks a tighter answer costs. It writes `audit.md` (also printed), `audit.json`
and `audit.png` to --out.

The log. One JSON object per line, or a parquet file with the same columns:

    {"step": 12, "prompt": "2 + 2 = ?", "completion": "four", "reward": 0, "recheck": 1}
    {"step": 12, "prompt": "2 + 2 = ?", "completion": "4", "reward": 1}

`recheck` may be null or absent where nobody looked. Re-check a random sample of the accepted
and of the rejected rollouts; the two samples may have different sizes. Name your columns with
--columns: `prompt_id` (anything equal for equal prompts, the text will do), `reward`,
`recheck`, and optionally `group` (what separates visits to the same prompt, the step for
example; without it all rollouts of a prompt are one group), `rollout_id` (repeats are
dropped), `inclusion` (the probability with which this rollout was drawn for the re-check, if
it differs within a verdict). `a.b` reads key `b` of object `a`. --features names columns by
which the rates may vary: prompt source, answer format, length, a suspicious phrase. A reward
that is null or NaN is missing; it is left out and counted, never taken for 0.

From TRL. A reward function sees everything; let it write the log:

    def accuracy(prompts, completions, trainer_state, **columns):
        rewards = [verify(completion) for completion in completions]
        with open("rollouts.jsonl", "a") as log:
            for prompt, completion, reward in zip(prompts, completions, rewards):
                again = trusted(prompt, completion) if random.random() < 0.05 else None
                log.write(json.dumps({
                    "step": trainer_state.global_step, "prompt": prompt,
                    "completion": completion, "reward": reward, "recheck": again,
                    "long": len(completion) > 2000}) + "\\n")
        return rewards

    python -m experiments.audit --rollouts=rollouts.jsonl \\
        --columns prompt_id=prompt,group=step --features long

The parquet files of TRL's `log_completions` have the columns `step`, `prompt` and one for each
reward function; verl's rollout dumps have `input`, `score` and `step`. Add a column with the
re-checks and name them.

If the file holds only the re-checked rollouts, and accepted and rejected ones were drawn with
different probabilities, say so with --positive-share and --negative-share; what depends on
whole groups is then left out.

Bad input ends in one line on stderr and exit code 2, with nothing written.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from experiments import command_line

COLUMN_NAMES = ("prompt_id", "reward", "recheck", "group", "rollout_id", "inclusion")


def main(arguments: list[str] | None = None) -> int:
    """Runs the audit; returns the exit code."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # leave accelerators to those who train

    def run() -> int:
        options = _parse(arguments)
        _check(options)
        return _run(options)

    return command_line.exit_code("audit", run)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = command_line.new_parser("audit", __doc__)
    add = parser.add_argument
    add("--rollouts", type=Path, metavar="FILE", help=".jsonl or .parquet")
    add("--synthetic", nargs="?", const="prompt", metavar="SCENARIO",
        help="generated log: prompt (default), constant, hackable or broken")
    add("--columns", default="", metavar="NAME=COLUMN,...", help=", ".join(COLUMN_NAMES))
    add("--features", default="", metavar="COLUMN,...")
    add("--threshold", type=float, help="graded rewards: accepted from here on")
    add("--positive-share", type=float, help="share of the accepted that was re-checked, (0, 1]")
    add("--negative-share", type=float, help="share of the rejected that was re-checked, (0, 1]")
    add("--confidence", type=float, default=0.95, help="of intervals and tests (default 0.95)")
    add("--half-width", type=float, default=0.05, help="aimed at by the plan (default 0.05)")
    add("--seed", type=int, default=0, help="of the bootstrap and of --synthetic")
    add("--out", type=Path, default=Path("audit"), metavar="DIR", help="default: audit")
    return parser.parse_args(arguments)


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError for options that cannot work, before anything slow is imported."""
    from experiments.audit_log import check_file
    from experiments.audit_synthetic import SCENARIOS

    if (options.rollouts is None) == (options.synthetic is None):
        raise ValueError("give either --rollouts=FILE or --synthetic")
    if options.synthetic is not None and options.synthetic not in SCENARIOS:
        raise ValueError(
            f"--synthetic = {options.synthetic!r}; allowed are {', '.join(SCENARIOS)}"
        )
    ranges = {
        "confidence": (0.5, 1.0, "[0.5, 1)"), "half_width": (1e-4, 0.5, "[0.0001, 0.5)")
    }
    for name, (low, high, allowed) in ranges.items():
        value = getattr(options, name)
        if not low <= value < high:
            raise ValueError(f"--{name.replace('_', '-')} = {value:g}; allowed is {allowed}")
    for name in ("positive_share", "negative_share"):
        value = getattr(options, name)
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"--{name.replace('_', '-')} = {value:g}; allowed is (0, 1]")
    if options.threshold is not None and not abs(options.threshold) < float("inf"):
        raise ValueError(f"--threshold = {options.threshold:g}; allowed are finite numbers")
    if options.seed < 0:
        raise ValueError(f"--seed = {options.seed}; allowed is >= 0")
    if (options.positive_share is None) != (options.negative_share is None):
        raise ValueError("--positive-share and --negative-share only work together")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out = {options.out} exists and is not a directory")
    if options.rollouts is not None:
        check_file(options.rollouts)
    command_line.column_names(options.columns, COLUMN_NAMES)


def _run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        made = None
        if options.synthetic is not None:
            made = _synthesize(options, Path(scratch) / "rollouts.jsonl")
        rollouts, left_out = _read(options)
        files = _audit(options, rollouts, left_out, made, Path(scratch))
        if options.synthetic is not None:
            files = [options.rollouts, *files]
        _publish(files, options.out)
    print("\n".join(f"wrote {options.out / file.name}" for file in files))
    return 0


def _synthesize(options: argparse.Namespace, path: Path) -> dict[str, float]:
    """Writes the generated log, points the options to it and returns the truth."""
    from experiments import audit_synthetic

    log = audit_synthetic.generate(options.synthetic, seed=options.seed)
    audit_synthetic.write(log, path)
    options.rollouts = path
    options.columns, options.features = audit_synthetic.COLUMNS, audit_synthetic.FEATURES
    return audit_synthetic.truth(log)


def _read(options: argparse.Namespace):
    """The log as `Rollouts`, and the counts of what was left out."""
    import numpy as np

    from experiments.audit_log import Columns, binary, read_log

    columns = Columns(**command_line.column_names(options.columns, COLUMN_NAMES))
    features = tuple(filter(None, options.features.split(",")))
    explicit = columns.recheck is not None
    log = read_log(
        options.rollouts,
        columns if explicit else columns._replace(recheck="recheck"),
        features,
        optional=() if explicit else ("recheck",),
        graded=options.threshold is not None,
    )
    observed = binary(log.reward, options.threshold, columns.reward)
    known = ~np.isnan(log.recheck)
    recheck = np.full(len(observed), -1, np.int64)
    graded = not np.isin(log.recheck[known], (0.0, 1.0)).all()
    threshold = options.threshold if graded else None
    recheck[known] = binary(log.recheck[known], threshold, columns.recheck or "recheck")
    weight = _weights(options, observed, known)
    from jaxreward.evaluation.rollout_log import Feature, Rollouts

    rollouts = Rollouts(
        log.prompt, log.group, observed, recheck,
        {name: Feature(*coded) for name, coded in log.features.items()}, weight, log.inclusion,
    )
    return rollouts, log.left_out


def _weights(options: argparse.Namespace, observed, known):
    """Rollouts that each record stands for; None if the log is complete.

    The shares matter only if what was not re-checked is absent: P(true | verdict) needs
    nothing but a random sample within the verdict. In a complete log they are checked
    against what was drawn.
    """
    import numpy as np

    if options.positive_share is None:
        return None
    if known.all():
        if options.positive_share == options.negative_share == 1:
            return None
        return np.where(observed, 1 / options.positive_share, 1 / options.negative_share)
    for name, share, where in (
        ("--positive-share", options.positive_share, observed),
        ("--negative-share", options.negative_share, ~observed),
    ):
        count = int(where.sum())
        drawn = float(known[where].mean()) if count else share
        spread = (share * (1 - share) / max(count, 1)) ** 0.5
        if abs(drawn - share) > 6 * spread + 0.02:
            raise ValueError(
                f"{name} = {share:g}, but {drawn:.3g} of these {count} rollouts have a re-check; "
                "correct it or leave both out (a complete log does not need them)"
            )
    return None


def _audit(options, rollouts, left_out, truth, scratch: Path) -> list[Path]:
    """Computes, prints and writes the reports to `scratch`; returns their paths."""
    from jaxreward.evaluation.correction_advice import advise
    from jaxreward.evaluation.noise_audit import Settings, audit

    settings = Settings(options.confidence, options.half_width, seed=options.seed)
    result = audit(rollouts, settings)
    from experiments import audit_figure, audit_report

    advice = advise(result)
    title = options.rollouts.name if truth is None else f"synthetic log ({options.synthetic})"
    text = audit_report.markdown(title, result, advice, left_out)
    if truth is not None:
        text += "\n" + audit_report.truth_table(result, truth) + "\n"
    print(text)
    result = {**result, "left_out": left_out, "advice": advice._asdict(), "truth": truth}
    files = [scratch / name for name in ("audit.md", "audit.json", "audit.png")]
    files[0].write_text(text)
    files[1].write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    audit_figure.save_figure(files[2], title, result, advice)
    return files


def _publish(files: list[Path], out: Path) -> None:
    """Moves finished files into place, each in one step."""
    out.mkdir(parents=True, exist_ok=True)
    for file in files:
        beside = out / f".{file.name}.{os.getpid()}"
        try:
            beside.write_bytes(file.read_bytes())
            beside.replace(out / file.name)
        finally:
            beside.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
