"""Rates measured before training, on a held-out split with trusted labels (arXiv 2510.18924).

A verifier that gives scores is first made binary by a threshold that was fixed before. The
rates hold as long as the verifier and the kind of answers stay what they were in the split:
watch `rates/stale`.
"""

from typing import NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxreward.channel import MIN_DETERMINANT
from jaxreward.rate_estimates import Rates
from jaxreward.transforms import sources
from jaxreward.transforms.base import RewardTransform
from jaxreward.transforms.rates import known
from jaxreward.transforms.recheck_counts import Estimate, determinant_interval, estimate_metrics
from jaxreward.types import Signal


class Calibration(NamedTuple):
    """Rates from trusted labels, numpy arrays of the shape of the counts.

    Attributes:
      rates: the estimates; `success_rate` is the split's own.
      intervals: `{name: (low, high)}` of both rates and of the determinant, 95%.
      relative_half_width: of 1 / J, `1.96 sd(J) / J`: by how much, relatively, a correction
        may be off.
    """

    rates: Rates
    intervals: dict[str, tuple[np.ndarray, np.ndarray]]
    relative_half_width: np.ndarray


Counts = int | float | Sequence[int | float] | np.ndarray | np.generic
"""Real numbers are allowed, for example smoothed counts."""


def calibrate(
    false_positives: Counts, true_negatives: Counts, false_negatives: Counts, true_positives: Counts
) -> Calibration:
    """Rates and Jeffreys intervals from a split with trusted labels (arXiv 2510.18924).

    Args:
      false_positives: number of items observed 1, true 0; one number, or one for each index.
      true_negatives: observed 0, true 0.
      false_negatives: observed 0, true 1.
      true_positives: observed 1, true 1.

    Raises:
      ValueError: a count is negative or a class is empty.
    """
    given = (false_positives, true_negatives, false_negatives, true_positives)
    cells = [np.asarray(count, np.float64) for count in given]
    alike = all(cell.shape == cells[0].shape and cell.ndim <= 1 for cell in cells)
    if not (alike and _usable(np.stack(cells))):
        raise ValueError(
            f"counts = {given}; allowed are counts >= 0 of equal length, with both classes present"
        )
    positive, negative = (wrong / (wrong + right) for wrong, right in (cells[:2], cells[2:]))
    rates = Rates(positive, negative, (cells[2] + cells[3]) / sum(cells))
    intervals = {
        "false_positive": _jeffreys(*cells[:2]),
        "false_negative": _jeffreys(*cells[2:]),
    }
    intervals["determinant"] = determinant_interval(rates, intervals)
    variance = positive * (1 - positive) / (cells[0] + cells[1])
    variance = variance + negative * (1 - negative) / (cells[2] + cells[3])
    return Calibration(rates, intervals, 1.959964 * np.sqrt(variance) / rates.determinant)


def _usable(cells: np.ndarray) -> bool:
    both = (cells[0] + cells[1] > 0) & (cells[2] + cells[3] > 0)
    return bool(np.all(np.isfinite(cells)) and np.all(cells >= 0) and np.all(both))


def _jeffreys(wrong: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from scipy import stats  # slow to import

    posterior = stats.beta(wrong + 0.5, right + 0.5)
    low = np.where(wrong == 0, 0.0, posterior.ppf(0.025))
    return low, np.where(right == 0, 1.0, posterior.ppf(0.975))


def calibrated(
    false_positives: Counts,
    true_negatives: Counts,
    false_negatives: Counts,
    true_positives: Counts,
    *,
    by: str = "",
    per: str = "prompt",
    min_determinant: float = MIN_DETERMINANT,
    axis_name=None,
) -> RewardTransform:
    """Rates from a calibration split: `known`, with the intervals of `calibrate` as metrics.

    Args:
      false_positives, true_negatives, false_negatives, true_positives: see `calibrate`.
      by: entry of `aux` that indexes the counts; "" for one pair of rates.
      per: "prompt" if that is `[P]`, "sample" if it is `[P, G]`.
      min_determinant: smallest J accepted.
      axis_name: mapped axis that splits the prompts.

    Raises:
      ValueError: counts that allow no estimate, or rates that cannot be corrected.
    """
    counts = (false_positives, true_negatives, false_negatives, true_positives)
    found = calibrate(*counts)
    rates = found.rates
    if bool(by) != (np.ndim(rates.false_positive) > 0):
        raise ValueError(f"by = {by!r} with counts {false_positives}; allowed is one by index")
    if by:
        source = sources.by_index(by, rates.false_positive, rates.false_negative, per)
    else:
        source = sources.constant(float(rates.false_positive), float(rates.false_negative))
    told = known(source, min_determinant=min_determinant, axis_name=axis_name)
    metrics = _metrics(found, pooled=calibrate(*(np.sum(count) for count in counts)), by=by)

    def update(key: jax.Array, signal: Signal, state):
        signal, state = told.update(key, signal, state)
        figures = {name: jnp.asarray(value) for name, value in metrics.items()}
        return signal.replace(metrics={**signal.metrics, **figures}), state

    return RewardTransform(told.init, update, told.spec._replace(name="calibrated"))


def _metrics(found: Calibration, pooled: Calibration, by: str) -> dict[str, np.ndarray]:
    whole, parts = (
        Estimate(*jax.tree.map(lambda x: np.atleast_1d(x).astype(np.float32), split[:2]))
        for split in (pooled, found)
    )
    metrics = estimate_metrics(whole, parts if by else None)
    return {name: np.asarray(value, np.float32) for name, value in metrics.items()}
