"""Judges a reward function from items and their scores, for `experiments.evaluate_reward`.

`judge` returns plain numbers: every figure is `{"value", "low", "high", "count"}`, the interval
at 95% over problems, or None where there is nothing to measure.
"""

import functools
import math
from typing import Any, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.reward_items import Item
from jaxreward import masked
from jaxreward.evaluation import best_of_n, reward_benchmarks as benchmarks
from jaxreward.evaluation import reward_calibration as calibration
from jaxreward.evaluation import reward_sensitivity as sensitivity

Z = 1.959964

Figure = dict[str, float | int | None]


class Scored(NamedTuple):
    """Scores of all items, padded; NaN is missing.

    Attributes:
      chosen: `[B]`.
      rejected: `[B, R]`.
      others: `[B]`, how many rejected answers there are.
      contrast: `[B, 2, 2]`, see `reward_benchmarks.response_consistency`.
      forms: `[B, F]`.
      reworded: `[B, W, 1 + R]`, the chosen and the rejected under other wordings of the prompt.
      samples: `[B, M]`.
      gold: `[B, M]`.
      answers: `[B, M]` codes.
      chosen_length: characters, NaN without text.
      rejected_length: likewise.
    """

    chosen: np.ndarray
    rejected: np.ndarray
    others: np.ndarray
    contrast: np.ndarray
    forms: np.ndarray
    reworded: np.ndarray
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
    answers = (item.chosen, *item.rejected)
    reworded = [(prompt, answer) for prompt in item.prompt_forms for answer in answers]
    samples = [(item.prompt, s) for s in item.samples] if item.gold else []
    return [*own, contrast, forms, reworded, samples]


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
    names = (
        "chosen_score", "rejected_score", "contrast_score", "form_scores", "prompt_form_scores",
        "sample_scores",
    )  # fmt: skip
    return _arrays(items, [[item.scores[name] for name in names] for item in items])


def _arrays(items: Sequence[Item], rows: list[list[Sequence[float]]]) -> Scored:
    chosen, rejected, contrast, forms, reworded, samples = zip(*rows)
    whole = [c if len(c) == 4 else () for c in contrast]
    codes: dict[str, int] = {}
    answers = [[codes.setdefault(a, len(codes)) for a in item.answers] for item in items]
    width = max(map(len, samples))
    return Scored(
        _padded([row[:1] for row in chosen])[:, 0], _padded(rejected),
        np.nan_to_num(_padded([[len(row)] for row in rejected])[:, 0]),
        _padded(whole)[:, :4].reshape(-1, 2, 2), _padded(forms), _reworded(rejected, reworded),
        _padded(samples, width),
        _padded([item.gold for item in items], width), _padded(answers, width),
        _padded([[len(item.chosen) or math.nan] for item in items])[:, 0],
        _padded([[len(r) for r in item.rejected] for item in items], max(map(len, rejected))),
    )


def _padded(rows: Sequence[Sequence[float]], width: int = 0) -> np.ndarray:
    """Rows and columns up to powers of two, so that few programs are compiled."""
    width = max([width, 4, *map(len, rows)])
    found = np.full((_power(max(len(rows), 32)), _power(width)), np.nan)
    for row, values in zip(found, rows):
        row[: len(values)] = values
    return found


def _reworded(rejected: Sequence[Sequence[float]], rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Rows of scores, those of a wording together, as `[B, W, 1 + R]`."""
    shape = (len(rows), max(len(r) // (1 + len(own)) for own, r in zip(rejected, rows)))
    answers = 1 + _padded(rejected).shape[1]
    found = np.full((_power(max(shape[0], 32)), _power(max(shape[1], 1)), answers), np.nan)
    for place, own, row in zip(found, rejected, rows):
        part = np.asarray(row, float).reshape(-1, 1 + len(own))
        place[: part.shape[0], : part.shape[1]] = part
    return found


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()


def judge(items: Sequence[Item], s: Scored, *, bins: int = 10) -> dict[str, Any]:
    """All figures that the items allow; a section without data is None."""
    arrays = (jax.tree.map(_f32, own) for own in (s, _differences(s)))
    m = jax.tree.map(np.asarray, _measure(*arrays, bins))
    return {
        "scores": _scores(s, m["mask"]),
        "preference": _preference(m),
        "categories": _categories(items, m),
        "calibration": _calibration(m),
        "contrast": _contrast(m),
        "wording": _wording(m),
        "length": _length(m),
        "format": _format(m),
        "best_of_n": _best_of_n(s, m),
    }


def _differences(s: Scored) -> Scored:
    """Scores less one of those they are compared with: float32 keeps the order of what is left."""
    finite = lambda values: np.where(np.isfinite(values), values, 0.0)
    zero = finite(s.chosen)
    many = np.isfinite(s.samples)
    mean = np.where(many, s.samples, 0.0).sum(1) / np.maximum(many.sum(1), 1)
    return s._replace(
        chosen=s.chosen - zero,
        rejected=s.rejected - zero[:, None],
        contrast=s.contrast - finite(s.contrast[:, :1, :1]),
        forms=s.forms - zero[:, None],
        reworded=s.reworded - finite(s.reworded[:, :, :1]),
        samples=s.samples - mean[:, None],
    )


def _f32(values: np.ndarray) -> jax.Array:
    return jnp.asarray(values, jnp.float32)


@functools.partial(jax.jit, static_argnums=2)
def _measure(whole: Scored, s: Scored, bins: int) -> dict[str, Any]:
    """Everything that is computed, as one program; masks say where it means something.

    Args:
      whole: scores as they are.
      s: their `_differences`.
      bins: of the reliability diagram.
    """
    mask = benchmarks.compared(s.chosen, s.rejected, jnp.ones(s.rejected.shape, bool))
    margin = jnp.where(mask, s.chosen[:, None] - s.rejected, 0.0).ravel()
    return {
        "mask": mask,
        "present": jnp.any(mask, axis=1),
        "won": benchmarks.wins(s.chosen, s.rejected),
        "tied": s.chosen[:, None] == s.rejected,
        "accuracy": benchmarks.beats_all(s.chosen, s.rejected, mask),
        "accuracy_with_ties": benchmarks.beats_all(s.chosen, s.rejected, mask, ties=True),
        "reciprocal_rank": benchmarks.reciprocal_rank(s.chosen, s.rejected, mask),
        "win_rate": benchmarks.win_rate(s.chosen, s.rejected, mask),
        "calibration": _measure_calibration(margin, mask.ravel(), bins),
        "contrast": _measure_contrast(s.contrast),
        "wording": sensitivity.wording_effect(
            jnp.where(mask, s.chosen[:, None] - s.rejected, jnp.nan),
            s.reworded[:, :, :1] - s.reworded[:, :, 1:],
        ),
        "length": _measure_length(whole, margin, mask),
        "format": _measure_format(whole)._replace(flips=_measure_format(s).flips),
        "best_of_n": _measure_best_of_n(whole, s),
    }


def _measure_calibration(margin, mask, bins: int) -> dict[str, Any]:
    scale = calibration.best_scale(margin, mask)
    found: dict[str, Any] = {"best_scale": scale}
    for name, factor in (("raw", jnp.ones(())), ("scaled", scale)):
        confidence, right = calibration.preference_confidence(margin, factor)
        diagram = calibration.reliability_diagram(confidence, right, mask, bins=bins)
        error = calibration.expected_calibration_error(diagram)
        found[name] = (error, jnp.square(confidence - right), diagram)
    return found


def _measure_contrast(rewards) -> dict[str, Any]:
    measures = {"response": benchmarks.response_consistency,
                "instruction": benchmarks.instruction_consistency}
    return {
        "known": jnp.all(jnp.isfinite(rewards), axis=(1, 2)),
        **{
            f"{what}_consistency{suffix}": measure(rewards, both_directions=both)
            for what, measure in measures.items()
            for suffix, both in (("", False), ("_both_directions", True))
        },
    }


def _measure_length(s: Scored, margin, mask) -> dict[str, Any]:
    difference = s.chosen_length[:, None] - s.rejected_length
    pairs = (mask & jnp.isfinite(difference)).ravel()
    scores = jnp.concatenate([s.chosen, s.rejected.ravel()])
    lengths = jnp.log(jnp.concatenate([s.chosen_length, s.rejected_length.ravel()]))
    known = jnp.isfinite(scores) & jnp.isfinite(lengths)
    preferred = (jnp.arange(scores.shape[0]) < s.chosen.shape[0]).astype(jnp.float32)
    return {
        "pairs": pairs,
        "difference": difference.ravel(),
        "effect": sensitivity.length_effect(margin, difference.ravel(), pairs),
        "rank_correlation": sensitivity.rank_correlation(scores, lengths, known),
        "given_preferred": sensitivity.partial_correlation(scores, lengths, preferred, known),
    }


def _measure_format(s: Scored) -> sensitivity.FormatEffect:
    best = jnp.max(jnp.where(jnp.isfinite(s.rejected), s.rejected, -jnp.inf), axis=1)
    return sensitivity.format_effect(jnp.concatenate([s.chosen[:, None], s.forms], axis=1), best)


def _measure_best_of_n(whole: Scored, s: Scored) -> dict[str, Any]:
    """Proxy and gold at powers of two; the proxy in units of its deviation over samples."""
    known = jnp.isfinite(s.samples) & jnp.isfinite(s.gold)
    unit = masked.std(s.samples, known)
    proxy = (s.samples - masked.mean(s.samples, known)) / jnp.where(unit > 0, unit, 1.0)
    sizes = jnp.array([2.0**i for i in range(s.samples.shape[1].bit_length())])
    at = jax.vmap(best_of_n.best_of_n, (0, 0, None, 0))
    along = lambda values: jax.vmap(lambda n: at(s.samples, values, n, known))(sizes)
    answers = jnp.where(jnp.isfinite(s.answers), s.answers, -1.0).astype(jnp.int32)
    return {
        "known": known,
        "kl": best_of_n.best_of_n_kl(sizes),
        "proxy": along(proxy),
        "gold": along(s.gold),
        "correlation": sensitivity.correlation(
            whole.samples.ravel(), s.gold.ravel(), known.ravel()),
        "top": jax.vmap(benchmarks.pick_top)(s.samples, answers, known),
    }


def mean(values: Any, mask: Any = None) -> Figure | None:
    """Mean with a normal interval over the selected entries; a Wilson interval for zeros and ones."""
    values = np.asarray(values, np.float64)
    values = values[np.asarray(mask)] if mask is not None else values
    count = values.size
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


def _scores(s: Scored, mask: np.ndarray) -> dict[str, Any]:
    there = np.arange(s.rejected.shape[1])[None, :] < s.others[:, None]
    every = np.concatenate([s.chosen[s.others > 0], s.rejected[there]])
    known = every[np.isfinite(every)]
    return {
        "count": len(every),
        "missing": int((~np.isfinite(every)).sum()),
        "mean": float(known.mean()) if len(known) else None,
        "std": float(known.std()) if len(known) else None,
        "distinct": len(np.unique(known)),
        "comparisons": int(mask.sum()),
    }


def _preference(m: dict[str, Any]) -> dict[str, Figure | None]:
    names = ("accuracy", "accuracy_with_ties", "reciprocal_rank", "win_rate")
    return {
        "pairwise_accuracy": mean(m["won"], m["mask"]),
        "pairwise_ties": mean(m["tied"].astype(float), m["mask"]),
        **{name: mean(m[name], m["present"]) for name in names},
    }


def _categories(items: Sequence[Item], m: dict[str, Any]) -> dict[str, Figure | None]:
    names = sorted({item.category for item in items if item.category is not None})
    own = np.full(len(m["present"]), None, object)
    own[: len(items)] = [item.category for item in items]
    return {name: mean(m["accuracy"], m["present"] & (own == name)) for name in names}


def _calibration(m: dict[str, Any]) -> dict[str, Any] | None:
    if not m["mask"].any():
        return None
    own = m["calibration"]
    found: dict[str, Any] = {"best_scale": float(own["best_scale"])}
    for name in ("raw", "scaled"):
        error, squares, diagram = own[name]
        found[name] = {
            "expected_calibration_error": float(error),
            "brier_score": mean(squares, m["mask"].ravel()),
            "diagram": {k: v.tolist() for k, v in diagram._asdict().items()},
        }
    return found


def _contrast(m: dict[str, Any]) -> dict[str, Figure | None] | None:
    own = dict(m["contrast"])
    known = own.pop("known")
    return {name: mean(values, known) for name, values in own.items()} if known.any() else None


def _wording(m: dict[str, Any]) -> dict[str, Figure | None] | None:
    own = m["wording"]
    if not own.known.any():
        return None
    return {"order_kept": mean(own.kept, own.known), "reworded_right": mean(own.right, own.known)}


def _length(m: dict[str, Any]) -> dict[str, Any] | None:
    own = m["length"]
    if not own["pairs"].any():
        return None
    right, longer = m["won"].ravel(), own["difference"] > 0
    return {
        "accuracy_longer": mean(right, own["pairs"] & longer),
        "accuracy_shorter": mean(right, own["pairs"] & (own["difference"] < 0)),
        "bias": _figure(own["effect"].bias) if own["effect"].longer * own["effect"].shorter else None,
        "correlation_of_differences": _figure(own["effect"].correlation),
        "rank_correlation": _figure(own["rank_correlation"]),
        "correlation_given_preferred": _figure(own["given_preferred"]),
    }


def _format(m: dict[str, Any]) -> dict[str, Any] | None:
    own = m["format"]
    if not own.answers:
        return None
    count = int(own.answers)
    return {"spread": _figure(own.spread, count=count), "flips": _figure(own.flips, count=count)}


def _best_of_n(s: Scored, m: dict[str, Any]) -> dict[str, Any] | None:
    own = m["best_of_n"]
    number = own["known"].sum(1)
    rows = number >= 2
    if not rows.any():
        return None
    sizes = [2**i for i in range(int(number[rows].min()).bit_length())]
    golds = [mean(values, rows) for values in own["gold"][: len(sizes)]]
    kl = own["kl"][: len(sizes)]
    found = {
        "n": sizes,
        "kl": kl.tolist(),
        "proxy": [mean(values, rows) for values in own["proxy"][: len(sizes)]],
        "gold": golds,
        "correlation": _figure(own["correlation"]),
        "top_with_majority": None,
    }
    if len(sizes) >= 3:
        fit = best_of_n.over_optimization(_f32(kl), _f32(np.array([g["value"] for g in golds])))
        found.update(collapse=float(fit.collapse), peak_n=sizes[int(fit.peak)])
    if np.isfinite(s.answers).any():
        top = np.take_along_axis(s.gold, own["top"][:, None], axis=1)[:, 0]
        found["top_with_majority"] = mean(top, rows)
    return found
