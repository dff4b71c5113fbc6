"""Rates without trusted labels, taken from a stand-in for the truth.

`off_majority` takes the majority of repeated verdicts for it (arXiv 1810.01032), `confident` the
confident predictions of another model (arXiv 1911.00068). Both inherit the errors of what they
trust: a majority that errs, or a model that copies the verifier, makes rates too small.
`rates.appeals` does not have this weakness; `rates_em.disagreement` models the errors of the votes.
"""

from typing import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxreward import channel as channels
from jaxreward.checks import Number, check_number
from jaxreward.label_estimates import confident_truth
from jaxreward.transforms.base import RewardTransform, Spec
from jaxreward.types import Signal


def off_majority(
    values: Sequence[float] = (0.0, 1.0),
    *,
    decay: Number = 1.0,
    pseudo_count: Number = 1.0,
    axis_name=None,
) -> RewardTransform:
    """Rates of graded rewards: the shares of verdicts that are not those of the majority.

    Reads `aux["verdicts"]`, `[P, G, K]`: repeated rewards of each output, NaN for a missing one.
    The most frequent level counts as the truth (shared evenly in a tie), and a verdict of level
    `j` on an output of majority `i` as `observe j | true i`. With `K` votes that err with probability
    `e` the estimate misses the outputs whose majority errs: three votes at `e = .3` give .21.

    Metrics `rates/determinant` and, for two levels, `rates/false_positive` and
    `rates/false_negative`.

    Args:
      values: the `M` >= 2 different rewards, ascending; a verdict counts as the nearest.
      decay: in (0, 1], by which earlier counts shrink at every step.
      pseudo_count: > 0, verdicts in favour of every level that are there from the beginning.
      axis_name: mapped axis that splits the prompts.

    Raises:
      ValueError: fewer than two values, values out of order, a number out of range.
    """
    if len(values) < 2 or any(a >= b for a, b in zip(values, values[1:])):
        raise ValueError(f"values = {tuple(values)}; allowed are at least 2, ascending")
    check_number("decay", decay, lambda v: (v > 0) & (v <= 1), "(0, 1]")
    check_number("pseudo_count", pseudo_count, lambda v: v > 0, "> 0")
    levels = jnp.asarray(values, jnp.float32)

    def update(key: jax.Array, signal: Signal, counts: Array):
        del key
        verdicts = signal.aux["verdicts"].astype(jnp.float32)
        nearest = jnp.argmin(jnp.abs(verdicts[..., None] - levels[None, None, None]), axis=-1)
        there = jnp.isfinite(verdicts) & signal.mask[..., None]
        votes = jax.nn.one_hot(nearest, len(values), dtype=jnp.float32)
        votes = jnp.where(there[..., None], votes, 0.0)
        of_output = jnp.sum(votes, axis=-2)  # [P, G, M]
        most = of_output == jnp.max(of_output, axis=-1, keepdims=True)
        truth = most.astype(jnp.float32) / jnp.sum(most, axis=-1, keepdims=True, dtype=jnp.float32)
        found = jnp.einsum("pgi,pgj->ij", truth, of_output, precision="highest")
        return _counted(signal, counts, found, decay, pseudo_count, axis_name)

    init = lambda: jnp.zeros((len(values), len(values)), jnp.float32)
    return RewardTransform(init, update, _spec("off_majority", ("mask", "aux/verdicts")))


def confident(
    predicted: str, *, decay: Number = 1.0, pseudo_count: Number = 1.0, axis_name=None
) -> RewardTransform:
    """Rates of a binary reward by confident learning (see `label_estimates.confident_counts`).

    The thresholds are the mean probabilities of a batch; the counts that they give are kept.
    Metrics as of `off_majority`.

    Args:
      predicted: entry of `aux`, `[P, G]`: P(the answer is right) of a model that was not trained
        on these rewards.
      decay: in (0, 1], by which earlier counts shrink at every step.
      pseudo_count: > 0, right rewards of each kind that are there from the beginning.
      axis_name: mapped axis that splits the prompts.

    Raises:
      ValueError: a number out of range.
    """
    check_number("decay", decay, lambda v: (v > 0) & (v <= 1), "(0, 1]")
    check_number("pseudo_count", pseudo_count, lambda v: v > 0, "> 0")

    def update(key: jax.Array, signal: Signal, counts: Array):
        del key
        label: Int[Array, "N"] = (signal.rewards > 0.5).astype(jnp.int32).reshape(-1)
        probability = signal.aux[predicted].astype(jnp.float32).reshape(-1)
        mask = signal.mask.reshape(-1) & jnp.isfinite(probability)
        probability = jnp.where(mask, probability, 0.0)
        joint = confident_truth(label, probability, mask, axis_name=axis_name).scaled
        return _counted(signal, counts, joint.T, decay, pseudo_count, None)

    init = lambda: jnp.zeros((2, 2), jnp.float32)
    spec = _spec("confident", ("rewards", "mask", f"aux/{predicted}"))
    return RewardTransform(init, update, spec)


def _spec(name: str, reads: tuple[str, ...]) -> Spec:
    return Spec(name, "rates", reads, ("rates", "metrics"), rates_vary="step")


def _counted(
    signal: Signal, counts: Float[Array, "M M"], found: Float[Array, "M M"], decay, pseudo, axis_name
) -> tuple[Signal, Array]:
    """The signal with the rates of all counts, rows the truth."""
    found = found if axis_name is None else jax.lax.psum(found, axis_name)
    counts = decay * counts + found
    smooth = counts + pseudo * jnp.eye(counts.shape[0], dtype=jnp.float32)
    rates = channels.from_matrix(smooth / jnp.sum(smooth, axis=1, keepdims=True))
    metrics = {"rates/determinant": rates.determinant}
    if rates.levels == 2:
        metrics["rates/false_positive"] = rates.false_positive
        metrics["rates/false_negative"] = rates.false_negative
    return signal.replace(rates=rates, metrics={**signal.metrics, **metrics}), counts
