"""What a run found: intervals over seeds, claims, `summary.json`, tables.

A claim is a sentence and a test that is fixed before the run; its figures are computed from
the results and never typed. Intervals are Student's t over seeds; differences are paired by
seed, since arms share prompts and keys.
"""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
from typing import Any, Mapping, Sequence

import ml_collections
import numpy as np

from jaxreward.training import config as config_lib
from jaxreward.training.exits import ConfigError
from jaxreward.training.files import atomic_write

SUMMARY = "summary.json"

Estimate = dict[str, Any]
"""`{"mean": float, "ci95": [low, high], "per_seed": [...]}`; None for what cannot be said."""

Results = Mapping[str, Mapping[str, Estimate]]
"""Estimates by arm and metric."""

Claim = dict[str, Any]
"""`{"claim", "better", "worse", "metric", "difference", "ci95", "holds"}`."""

_KEYS = ("method", "config_sha", "versions", "device", "seeds", "results", "claims")
_CLAIM_KEYS = ("claim", "better", "worse", "metric", "difference", "ci95", "holds")
_PACKAGES = ("jaxreward", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def mean_ci(per_seed: Any) -> Estimate:
    """Mean and 95% t interval over seeds.

    A seed whose value is not finite makes mean and interval None rather than vanish; with one
    seed there is a mean and no interval.

    Args:
      per_seed: `[seeds]`, at least one.
    """
    values = np.asarray(per_seed, np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"per_seed has shape {values.shape}; allowed is [seeds], seeds >= 1")
    listed = [float(v) if math.isfinite(v) else None for v in values]
    if None in listed:
        return {"mean": None, "ci95": None, "per_seed": listed}
    mean, half = float(values.mean()), half_width(values)
    interval = None if half is None else [mean - float(half), mean + float(half)]
    return {"mean": mean, "ci95": interval, "per_seed": listed}


def half_width(values: np.ndarray, axis: int = 0) -> Any:
    """Half of the 95% t interval of the mean along `axis`; None for one value."""
    from scipy.special import stdtrit  # slow to import

    count = values.shape[axis]
    if count < 2:
        return None
    quantile = stdtrit(count - 1, 0.975)
    return quantile * values.std(axis=axis, ddof=1) / math.sqrt(count)


def summarize(per_seed: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Estimate]]:
    """Estimates from `{arm: {metric: [seeds]}}`."""
    return {
        arm: {metric: mean_ci(values) for metric, values in metrics.items()}
        for arm, metrics in per_seed.items()
    }


def claim(
    results: Results,
    text: str,
    better: str,
    worse: str,
    metric: str,
    *,
    margin: float | int = 0.0,
    lower_is_better: bool = False,
) -> Claim:
    """Tests that arm `better` beats arm `worse`.

    It holds iff the lower end of the interval of the paired difference exceeds `margin`. With
    one seed, or a seed that is not finite, there is no interval and it does not hold.

    Args:
      results: as from `summarize`.
      text: the claim in words.
      better: arm that should have more of the metric.
      worse: arm that should have less.
      metric: name.
      margin: by how much, in units of the metric.
      lower_is_better: the difference is then `worse - better`, so that it is positive where
        the claim is right.

    Raises:
      ConfigError: an arm or the metric is not in the results.
    """
    first, second = (worse, better) if lower_is_better else (better, worse)
    difference = _paired(results, first, second, metric)
    interval = difference["ci95"]
    holds = interval is not None and interval[0] > margin
    return _make_claim(text, better, worse, metric, difference, holds)


def equivalence(
    results: Results, text: str, first: str, second: str, metric: str, *, margin: float | int
) -> Claim:
    """Tests that two arms differ by less than `margin`: the whole interval lies within it.

    In the claim `first` stands under `better` and `second` under `worse`.
    """
    if margin <= 0:
        raise ConfigError(f"margin = {margin} of an equivalence; allowed is > 0")
    difference = _paired(results, first, second, metric)
    interval = difference["ci95"]
    holds = interval is not None and -margin < interval[0] and interval[1] < margin
    return _make_claim(text, first, second, metric, difference, holds)


def _make_claim(text, better, worse, metric, difference: Estimate, holds: bool) -> Claim:
    found = (text, better, worse, metric, difference["mean"], difference["ci95"], holds)
    return dict(zip(_CLAIM_KEYS, found))


def _paired(results: Results, first: str, second: str, metric: str) -> Estimate:
    columns = []
    for arm in (first, second):
        for name, known in ((arm, results), (metric, results.get(arm, {}))):
            if name not in known:
                allowed = ", ".join(known)
                raise ConfigError(f"a claim names {name!r}; measured are {allowed}")
        per_seed = results[arm][metric]["per_seed"]
        columns.append(np.array([math.nan if v is None else v for v in per_seed]))
    if columns[0].shape != columns[1].shape:
        raise ConfigError(
            f"{metric} of {first!r} and {second!r} have {len(columns[0])} and "
            f"{len(columns[1])} seeds; a paired difference needs as many"
        )
    return mean_ci(columns[0] - columns[1])


def make_summary(
    config: ml_collections.ConfigDict,
    method: str,
    seeds: Sequence[int],
    results: Results,
    claims: Sequence[Claim],
) -> dict[str, Any]:
    """The content of `summary.json`.

    Args:
      config: the resolved config.
      method: slug.
      seeds: the seeds, in the order of every `per_seed`.
      results: as from `summarize`.
      claims: as from `claim` and `equivalence`.
    """
    values = (method, config_lib.sha(config), versions(), device(), list(seeds), results, claims)
    return dict(zip(_KEYS, values))


def write_summary(workdir: str | os.PathLike, summary: Mapping[str, Any]) -> pathlib.Path:
    """Writes `summary.json` in one go; returns its path."""
    path = pathlib.Path(workdir) / SUMMARY
    atomic_write(path, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return path


def read_summary(path: str | os.PathLike) -> dict[str, Any]:
    """Reads a summary.

    Raises:
      ConfigError: it is not one.
    """
    try:
        summary = json.loads(pathlib.Path(path).read_text())
        complete = set(_KEYS) <= set(summary)
        complete &= all(set(_CLAIM_KEYS) <= set(claim) for claim in summary["claims"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} cannot be read as a summary: {error}") from error
    if not complete:
        raise ConfigError(f"{path} is not a summary; needed are the keys {', '.join(_KEYS)}")
    return summary


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def device() -> str:
    """The accelerators of this process in words, such as `2 x TPU v4` or `cpu (2 cores)`."""
    import jax

    kinds = [d.device_kind for d in jax.devices()]
    if jax.default_backend() == "cpu":
        return f"cpu ({os.cpu_count()} cores)"
    return f"{len(kinds)} x {kinds[0]}"


def figure(mean: float | None, interval: Sequence[float] | None) -> str:
    """`0.81 [0.79, 0.83]`, or what of it there is."""
    if mean is None:
        return "not finite"
    if interval is None:
        return f"{mean:.3g} (1 seed)"
    digits = _digits((interval[1] - interval[0]) / 2)
    return f"{mean:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _digits(half: float) -> int:
    """Decimals that show a half-width with two digits."""
    return 3 if half <= 0 else min(max(1 - math.floor(math.log10(half)), 0), 6)


Table = Sequence[Sequence[str]]
"""Rows of equal length; the first is the header."""


def results_rows(results: Results, metrics: Sequence[str] = ()) -> list[list[str]]:
    """Arms by metrics, each with its interval; by default all metrics."""
    names = list(metrics) or list(dict.fromkeys(m for arm in results.values() for m in arm))
    rows = [["arm", *names]]
    for arm, found in results.items():
        cells = [found.get(name) for name in names]
        rows.append([arm, *("" if c is None else figure(c["mean"], c["ci95"]) for c in cells)])
    return rows


def claim_rows(claims: Sequence[Claim]) -> list[list[str]]:
    """Claims with the measured difference and whether they hold."""
    rows = [["claim", "metric", "difference", "holds"]]
    for c in claims:
        holds = "yes" if c["holds"] else "no"
        rows.append([c["claim"], c["metric"], figure(c["difference"], c["ci95"]), holds])
    return rows


def text_table(rows: Table) -> str:
    """Columns aligned with spaces."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths)).rstrip() for row in rows]
    rule = "  ".join("-" * width for width in widths)
    return "\n".join([lines[0], rule, *lines[1:]])


def markdown_table(rows: Table) -> str:
    """A table of GitHub-flavoured Markdown."""
    cleaned = [[" ".join(cell.replace("|", "\\|").split()) for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in cleaned]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])
