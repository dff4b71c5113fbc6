"""What an rlvr run leaves behind: `summary.json`, `report.png` and two tables."""

import json
import pathlib
import sys

import numpy as np

from experiments import rlvr_curve
from experiments.rlvr_programs import Context
from experiments.rlvr_stages import COMPARE, Stage
from experiments.rlvr_start import Scores
from jaxreward.training import figures, report

TRUE = "eval/true_accuracy"


def write(
    context: Context, stage: Stage, final: dict[str, np.ndarray], scores: Scores
) -> None:
    """Writes summary and figure, prints the tables and the paths of what was written.

    Args:
      context: of the run.
      stage: the comparison.
      final: final evaluation by name, `[A, M]`, member = setting x seed.
      scores: of the start, the same for every seed.
    """
    config, workdir = context.config, pathlib.Path(context.workdir)
    text = (workdir / COMPARE / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    fixed = {a: {m: [v] * stage.seeds for m, v in own.items()} for a, own in scores.items()}
    results = report.summarize({**_per_seed(context, stage, final), **fixed})
    claims = _claims(config, results)
    seeds = list(range(stage.first_seed, stage.first_seed + stage.seeds))
    summary = report.make_summary(config, config.method, seeds, results, claims)
    path = report.write_summary(workdir, summary)
    figure = _draw(context, workdir, lines, stage.settings[0])
    curve = rlvr_curve.draw(config, results, TRUE, workdir)
    for setting in stage.settings:
        print(f"\n{config.method}, {_title(setting)}")
        print(report.text_table(_rows(context, results, lines, setting)))
    print("* means over the last 10 updates and all seeds")
    for name, own in scores.items():
        print(f"{name}: " + ", ".join(f"{metric} {value:.3f}" for metric, value in own.items()))
    print("\nclaims (paired over seeds, 95% interval)")
    print(report.text_table(report.claim_rows(claims)))
    print(f"\nverifier: {json.dumps(context.verification.stats())}")
    figures_made = ", ".join(str(made) for made in (figure, curve) if made)
    print(f"wrote {path}, {figures_made}, {workdir / COMPARE / 'metrics.jsonl'}")
    sys.stdout.flush()


def _per_seed(context: Context, stage: Stage, final) -> dict[str, dict[str, np.ndarray]]:
    """`{setting/arm: {metric: [seeds]}}`, with the hyper-parameters of each arm."""
    per_seed = {}
    for s, setting in enumerate(stage.settings):
        own = slice(s * stage.seeds, (s + 1) * stage.seeds)
        for a, arm in enumerate(context.arms):
            columns = {name: values[a, own] for name, values in final.items()}
            knobs = {f"hyper/{name}": values[a, own] for name, values in stage.hyper.items()}
            per_seed[f"{setting}/{arm}"] = {**columns, **knobs}
    return per_seed


def _claims(config, results) -> list[report.Claim]:
    claims = []
    for name in config.claims:
        c = config.claims[name]
        better, worse = (
            arm if arm in results else f"{c.setting}/{arm}" for arm in (c.better, c.worse)
        )
        metric = c.get("metric", TRUE)
        if c.get("equivalent", False):
            claims.append(
                report.equivalence(results, c.claim, better, worse, metric, margin=c.margin)
            )
            continue
        # "at most `margin` below" is one-sided: the interval lies above -margin
        claims.append(report.claim(results, c.claim, better, worse, metric, margin=-c.margin))
    return claims


def _title(setting: str) -> str:
    return {"equal": "equal hyper-parameters", "tuned": "tuned per arm, same budget"}[setting]


def _rows(context: Context, results, lines, setting: str) -> list[list[str]]:
    """One row an arm: accuracy, what it was shown, its audit against its control, its knobs."""
    audit = ("audit/cosine", "audit/mean_abs_difference", "audit/max_abs_difference")
    head = ["arm", "true accuracy", "observed*", "control", "cosine*", "mean diff*", "max diff*"]
    rows = [head + ["learning rate", "KL coef.", "chain"]]
    for arm in context.arms:
        found = results[f"{setting}/{arm}"]
        accuracy = report.figure(found[TRUE]["mean"], found[TRUE]["ci95"])
        late = [_late(lines, f"{setting}/{arm}/{name}") for name in ("reward/observed", *audit)]
        knobs = [f"{found[f'hyper/{k}']['mean']:.3g}" for k in ("learning_rate", "kl_coefficient")]
        control = context.config.controls.get(arm, "")
        chain = " > ".join(context.config.arms[arm])
        rows.append([arm, accuracy, late[0], control, *late[1:], *knobs, chain])
    return rows


def _late(lines: list[dict], name: str, window: int = 10) -> str:
    """Mean of a metric over the last updates, or nothing."""
    values = _series(lines, name)[1][-window:]
    return f"{values.mean():.3f}" if len(values) else ""


def _draw(
    context: Context, workdir: pathlib.Path, lines: list[dict], setting: str
) -> pathlib.Path:
    """The curves of one setting."""
    figure, axes = figures.new_figure(3, 2, width=6.5, height=3.8)
    arms = list(context.arms)
    panels = [
        (axes[0, 0], arms, "eval/true_accuracy", "true accuracy"),
        (axes[0, 1], arms, "reward/observed", "observed reward, training"),
        (axes[1, 1], arms, "policy/kl", "KL to the start [nats]"),
        (axes[2, 0], arms, "policy/entropy", "entropy [nats]"),
        (axes[2, 1], arms, "policy/length", "response length [tokens]"),
    ]
    for panel, shown, metric, label in panels:
        for position, arm in enumerate(shown):
            _curve(panel, lines, f"{setting}/{arm}/{metric}", arm, position, context.config.seeds)
        panel.set(xlabel="update", ylabel=label)
    axes[0, 0].legend(fontsize=6, ncols=2)
    _draw_rates(axes[1, 0], context, lines, setting)
    figure.suptitle(f"{context.config.method}: {_title(setting)}, mean and 95% band")
    path = workdir / "report.png"
    figures.save(figure, path)
    return path


def _series(lines: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    found = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
    return tuple(np.array(column) for column in zip(*found)) if found else (np.array([]),) * 2


def _curve(axes, lines, name: str, label: str, position: int, seeds: int) -> None:
    steps, mean = _series(lines, name)
    style = dict(color=f"C{position % 10}", linestyle=("-", "--")[position // 10 % 2])
    axes.plot(steps, mean, label=label, linewidth=1.2, **style)
    _, sd = _series(lines, f"{name}_sd")
    if len(sd) == len(mean) and seeds > 1 and len(mean):
        from scipy.special import stdtrit

        half = stdtrit(seeds - 1, 0.975) * sd / np.sqrt(seeds)
        axes.fill_between(steps, mean - half, mean + half, color=style["color"], alpha=0.12)


def running_rate(lines: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and errors over chances up to each of them, of all seeds; NaN before a chance.

    A seed's rates are not averaged: the one of a batch without a chance is 0.
    """
    steps, errors = _series(lines, f"{name}_errors")
    _, counts = _series(lines, f"{name}_count")
    chances = np.cumsum(counts[len(counts) - len(errors) :])  # older lines have no errors
    known = chances > 0
    return steps, np.where(known, np.cumsum(errors) / np.where(known, chances, 1.0), np.nan)


def _draw_rates(axes, context: Context, lines, setting: str) -> None:
    """Estimated rates of the appeals arm with their intervals, and the true ones dashed."""
    arm = next((a for a in context.arms if a.startswith("appeals")), None)
    suffixes = [f"_{i}" for i in range(len(context.problem.prompt_types))] if arm else []
    position = 0
    for rate in ("false_positive", "false_negative"):
        for index, suffix in enumerate(suffixes):
            name = f"{setting}/{arm}/rates/{rate}{suffix}"
            steps, mean = _series(lines, name)
            if not len(mean):
                continue
            label = f"{rate} {context.problem.prompt_types[index]}"
            axes.plot(steps, mean, color=f"C{position}", label=label, linewidth=1.2)
            low, high = (_series(lines, f"{name}_{end}")[1] for end in ("low", "high"))
            axes.fill_between(steps, low, high, color=f"C{position}", alpha=0.12)
            real = running_rate(lines, f"{setting}/{arm}/channel/{rate}{suffix}")
            axes.plot(*real, color=f"C{position}", linestyle=":", linewidth=1.2)
            position += 1
    axes.set(xlabel="update", ylabel="noise rate: estimate, interval; dotted: real", ylim=(0, 1))
    if position:
        axes.legend(fontsize=6, ncols=2)
