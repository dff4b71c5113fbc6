"""Judges a reward function from items and their scores, for `experiments.evaluate_reward`.

`judge` returns plain numbers: every figure is `{"value", "low", "high", "count"}`, the interval
at 95% over problems, or None where there is nothing to measure.
"""

import math
from typing import Any, Mapping, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.reward_items import Item
from jaxreward.evaluation import best_of_n, finite_mdp, reward_benchmarks as benchmarks
from jaxreward.evaluation import reward_calibration as calibration
from jaxreward.evaluation import reward_distances, reward_sensitivity as sensitivity

METRICS = ("VAL-2-2", "Minimal-2-2", "EPIC-2-2", "DARD-2-2")
Z = 1.959964

Figure = dict[str, float | int | None]


class Scored(NamedTuple):
    """Scores of all items, padded; NaN is missing.

    Attributes:
      chosen: `[B]`.
      rejected: `[B, R]`.
      contrast: `[B, 2, 2]`, see `reward_benchmarks.response_consistency`.
      forms: `[B, F]`.
      samples: `[B, M]`.
      gold: `[B, M]`.
      answers: `[B, M]` codes.
      chosen_length: characters, NaN without text.
      rejected_length: likewise.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    contrast: np.ndarray
    forms: np.ndarray
    samples: np.ndarray
    gold: np.ndarray
    answers: np.ndarray
    chosen_length: np.ndarray
    rejected_length: np.ndarray


def texts(items: Sequence[Item]) -> tuple[list[str], list[str]]:
    """Prompts and responses of all that has to be scored, in the order `scored` expects."""
    pairs = [pair for item in items for group in _groups(item) for pair in group]
    return [p for p, _ in pairs], [r for _, r in pairs]


def _groups(item: Item) -> list[list[tuple[str, str]]]:
    own = [[(item.prompt, item.chosen)], [(item.prompt, r) for r in item.rejected]]
    contrast = []
    if item.contrast is not None:
        prompt, chosen = item.contrast
        contrast = [
            (item.prompt, item.chosen), (item.prompt, chosen), (prompt, item.chosen),
            (prompt, chosen),
        ]
    forms = [(item.prompt, form) for form in item.forms]
    samples = [(item.prompt, s) for s in item.samples] if item.gold else []
    return [*own, contrast, forms, samples]


def scored(items: Sequence[Item], scores: np.ndarray) -> Scored:
    """Puts the scores of `texts` back in their places."""
    rows, position = [], 0
    for item in items:
        row = []
        for group in _groups(item):
            row.append(scores[position : position + len(group)])
            position += len(group)
        rows.append(row)
    return _arrays(items, rows)


def from_file(items: Sequence[Item]) -> Scored:
    """The scores that the file itself holds."""
    names = ("chosen_score", "rejected_score", "contrast_score", "form_scores", "sample_scores")
    return _arrays(items, [[item.scores[name] for name in names] for item in items])


def _arrays(items: Sequence[Item], rows: list[list[Sequence[float]]]) -> Scored:
    chosen, rejected, contrast, forms, samples = zip(*rows)
    whole = [list(c) if len(c) == 4 else [math.nan] * 4 for c in contrast]
    codes: dict[str, int] = {}
    answers = [[codes.setdefault(a, len(codes)) for a in item.answers] for item in items]
    width = max(map(len, samples))
    return Scored(
        np.array([row[0] for row in chosen]), _padded(rejected),
        np.array(whole).reshape(-1, 2, 2), _padded(forms), _padded(samples, width),
        _padded([item.gold for item in items], width), _padded(answers, width),
        np.array([len(item.chosen) or math.nan for item in items], float),
        _padded([[len(r) for r in item.rejected] for item in items], max(map(len, rejected))),
    )


def _padded(rows: Sequence[Sequence[float]], width: int = 0) -> np.ndarray:
    width = max([width, 1, *map(len, rows)])
    found = np.full((len(rows), width), np.nan)
    for row, values in zip(found, rows):
        row[: len(values)] = values
    return found


def judge(items: Sequence[Item], s: Scored, *, bins: int = 10) -> dict[str, Any]:
    """All figures that the items allow; a section without data is None."""
    chosen, rejected = _f32(s.chosen), _f32(s.rejected)
    mask = benchmarks.compared(chosen, rejected, jnp.ones(rejected.shape, bool))
    return {
        "scores": _scores(s),
        "preference": _preference(chosen, rejected, mask),
        "categories": _categories(items, chosen, rejected, mask),
        "calibration": _calibration(chosen, rejected, mask, bins),
        "contrast": _contrast(s),
        "length": _length(s, mask),
        "format": _format(s),
        "best_of_n": _best_of_n(s),
    }


def _f32(values: np.ndarray) -> jax.Array:
    return jnp.asarray(values, jnp.float32)


def mean(values: Any, mask: Any = None) -> Figure | None:
    """Mean with a normal interval over the selected entries; a Wilson interval for zeros and ones."""
    values = np.asarray(values, np.float64)
    values = values[np.asarray(mask)] if mask is not None else values
    count = len(values)
    if not count:
        return None
    centre = float(values.mean())
    if np.isin(values, (0.0, 1.0)).all():
        middle = (centre + Z * Z / (2 * count)) / (1 + Z * Z / count)
        inner = centre * (1 - centre) / count + (Z / (2 * count)) ** 2
        half = Z * math.sqrt(inner) / (1 + Z * Z / count)
        low, high = min(middle - half, centre), max(middle + half, centre)
        return _figure(centre, max(low, 0.0), min(high, 1.0), count)
    half = Z * float(values.std(ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return _figure(centre, centre - half, centre + half, count)


def _figure(value: Any, low: Any = None, high: Any = None, count: int | None = None) -> Figure:
    clean = lambda x: None if x is None or not math.isfinite(float(x)) else float(x)
    return {"value": clean(value), "low": clean(low), "high": clean(high), "count": count}


def _scores(s: Scored) -> dict[str, Any]:
    every = np.concatenate([s.chosen, s.rejected[np.isfinite(s.rejected_length) | np.isfinite(s.rejected)]])
    known = every[np.isfinite(every)]
    return {
        "count": len(every),
        "missing": int((~np.isfinite(every)).sum()),
        "mean": float(known.mean()) if len(known) else None,
        "std": float(known.std()) if len(known) else None,
        "distinct": len(np.unique(known)),
    }


def _preference(chosen, rejected, mask) -> dict[str, Figure | None]:
    present = np.asarray(mask).any(1)
    tied = np.asarray(mask & (chosen[:, None] == rejected))
    return {
        "pairwise_accuracy": mean(benchmarks.wins(chosen, rejected)[mask]),
        "pairwise_ties": mean(tied[np.asarray(mask)].astype(float)),
        "accuracy": mean(benchmarks.beats_all(chosen, rejected, mask), present),
        "accuracy_with_ties": mean(
            benchmarks.beats_all(chosen, rejected, mask, ties=True), present),
        "reciprocal_rank": mean(benchmarks.reciprocal_rank(chosen, rejected, mask), present),
        "win_rate": mean(benchmarks.win_rate(chosen, rejected, mask), present),
    }


def _categories(items, chosen, rejected, mask) -> dict[str, Figure | None]:
    names = sorted({item.category for item in items if item.category is not None})
    hits = np.asarray(benchmarks.beats_all(chosen, rejected, mask))
    present = np.asarray(mask).any(1)
    own = lambda name: np.array([item.category == name for item in items])
    return {name: mean(hits, present & own(name)) for name in names}


def _calibration(chosen, rejected, mask, bins: int) -> dict[str, Any] | None:
    margin = (chosen[:, None] - rejected)[mask]
    if not margin.size:
        return None
    scale = float(calibration.best_scale(margin))
    found = {"best_scale": scale}
    for name, factor in (("raw", 1.0), ("scaled", scale)):
        confidence, right = calibration.preference_confidence(margin, jnp.float32(factor))
        diagram = calibration.reliability_diagram(confidence, right, bins=bins)
        found[name] = {
            "expected_calibration_error": float(calibration.expected_calibration_error(diagram)),
            "brier_score": mean(jnp.square(confidence - right)),
            "diagram": {k: np.asarray(v).tolist() for k, v in diagram._asdict().items()},
        }
    return found


def _contrast(s: Scored) -> dict[str, Figure | None] | None:
    known = np.isfinite(s.contrast).all((1, 2))
    if not known.any():
        return None
    rewards = _f32(s.contrast[known])
    return {
        f"{what}_consistency{suffix}": mean(measure(rewards, both_directions=both))
        for what, measure in (
            ("response", benchmarks.response_consistency),
            ("instruction", benchmarks.instruction_consistency),
        )
        for suffix, both in (("", False), ("_both_directions", True))
    }


def _length(s: Scored, mask) -> dict[str, Any] | None:
    mask = np.asarray(mask) & np.isfinite(s.rejected_length) & np.isfinite(s.chosen_length)[:, None]
    if not mask.any():
        return None
    pairs = np.nonzero(mask)
    margin = _f32((s.chosen[:, None] - s.rejected)[pairs])
    length = _f32((s.chosen_length[:, None] - s.rejected_length)[pairs])
    effect = sensitivity.length_effect(margin, length)
    right = np.asarray(margin > 0, float)
    scores = np.concatenate([s.chosen, s.rejected.ravel()])
    lengths = np.concatenate([s.chosen_length, s.rejected_length.ravel()])
    known = np.isfinite(scores) & np.isfinite(lengths)
    both = _f32(scores[known]), _f32(np.log(lengths[known]))
    preferred = _f32((np.arange(len(scores)) < len(s.chosen)).astype(float)[known])
    return {
        "accuracy_longer": mean(right, np.asarray(length > 0)),
        "accuracy_shorter": mean(right, np.asarray(length < 0)),
        "bias": _figure(effect.bias),
        "correlation_of_differences": _figure(effect.correlation),
        "rank_correlation": _figure(sensitivity.rank_correlation(*both)),
        "correlation_given_preferred": _figure(sensitivity.partial_correlation(*both, preferred)),
    }


def _format(s: Scored) -> dict[str, Any] | None:
    forms = np.concatenate([s.chosen[:, None], s.forms], axis=1)
    best = np.where(np.isfinite(s.rejected), s.rejected, -np.inf).max(1)
    effect = sensitivity.format_effect(_f32(forms), _f32(best))
    if not effect.answers:
        return None
    return {
        "spread": _figure(effect.spread, count=int(effect.answers)),
        "flips": _figure(effect.flips, count=int(effect.answers)),
    }


def _best_of_n(s: Scored) -> dict[str, Any] | None:
    """Proxy and gold along n; the proxy in units of its deviation over samples."""
    known = np.isfinite(s.samples) & np.isfinite(s.gold)
    rows = known.sum(1) >= 2
    if not rows.any():
        return None
    proxy, gold, mask = _f32(s.samples[rows]), _f32(s.gold[rows]), jnp.asarray(known[rows])
    most = int(known[rows].sum(1).min())
    sizes = [2**i for i in range(most.bit_length())]
    centre, unit = (float(f(s.samples[rows][known[rows]])) for f in (np.mean, np.std))
    at = jax.vmap(best_of_n.best_of_n, (0, 0, None, 0))
    along = lambda values: [mean(at(proxy, values, n, mask)) for n in sizes]
    kl = best_of_n.best_of_n_kl(jnp.array(sizes))
    golds = along(gold)
    found = {
        "n": sizes,
        "kl": np.asarray(kl).tolist(),
        "proxy": along((proxy - centre) / (unit or 1.0)),
        "gold": golds,
        "correlation": _figure(sensitivity.correlation(proxy[mask], gold[mask])),
    }
    if len(sizes) >= 3:
        fit = best_of_n.over_optimization(kl, _f32(np.array([g["value"] for g in golds])))
        found.update(collapse=float(fit.collapse), peak_n=sizes[int(fit.peak)])
    return {**found, "top_with_majority": _top(s, rows, known)}


def _top(s: Scored, rows: np.ndarray, known: np.ndarray) -> Figure | None:
    """Gold reward of the top sample of all, ties going to the majority answer among the tied."""
    if not np.isfinite(s.answers).any():
        return None
    answers = jnp.asarray(np.nan_to_num(s.answers[rows], nan=-1.0).astype(np.int32))
    top = jax.vmap(benchmarks.pick_top)(_f32(s.samples[rows]), answers, jnp.asarray(known[rows]))
    return mean(np.take_along_axis(s.gold[rows], np.asarray(top)[:, None], axis=1)[:, 0])


def judge_mdp(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Distances and regrets of every reward from `gold` in a finite MDP.

    Args:
      arrays: `transitions` [S, A, S], `discount`, `gold` [S, A, S], optionally `start` [S]; all
        others are rewards [S, A, S].

    Raises:
      ValueError: an array is missing or has another shape.
    """
    for name in ("transitions", "discount", "gold"):
        if name not in arrays:
            raise ValueError(f"--mdp has no array {name!r}; there are {', '.join(arrays)}")
    discount = np.asarray(arrays["discount"])
    if discount.shape != ():
        raise ValueError(f"discount has shape {discount.shape}; allowed is a number")
    mdp = finite_mdp.make_mdp(arrays["transitions"], float(discount), arrays.get("start"))
    rest = [n for n in arrays if n not in ("transitions", "discount", "start", "gold")]
    for name in ("gold", *rest):
        if np.shape(arrays[name]) != mdp.transitions.shape:
            allowed = mdp.transitions.shape
            raise ValueError(f"{name} has shape {np.shape(arrays[name])}; allowed is {allowed}")
    if not rest:
        raise ValueError("--mdp holds no reward beside gold")
    gold = jnp.asarray(arrays["gold"], mdp.transitions.dtype)
    return {name: _distances(mdp, gold, jnp.asarray(arrays[name], gold.dtype)) for name in rest}


def _distances(mdp, gold, reward) -> dict[str, float]:
    found = {
        name: float(reward_distances.reward_distance(
            mdp, gold, reward, reward_distances.reward_metric(name)))
        for name in METRICS
    }
    found["regret"] = float(finite_mdp.optimal_policy_regret(mdp, gold, reward))
    found["worst_case_regret"] = float(finite_mdp.worst_case_regret(mdp, gold, reward))
    return found
