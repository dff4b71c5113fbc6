"""Rewards from agreement: the majority of a prompt's final answers as its label.

Answers are compared by `aux["answer_id"]` (uint32 `[P, G]`, 0 where a sample gives no answer),
so that no text is needed. A majority reward is a noisy verifier whose noise depends on the
answer: where the majority is wrong, every right answer is rejected and every copy of the
majority is accepted (arXiv 2504.16084). Corrections assume independent flips and do not help;
a guard that leaves out prompts without a clear majority does.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, UInt

from jaxreward import masked
from jaxreward.checks import Number, check_number
from jaxreward.transforms.base import RewardTransform, Spec, keep_true_rewards, stateless
from jaxreward.types import Signal


class Vote(NamedTuple):
    """What the samples of each prompt agree on.

    Attributes:
      answer_id: uint32 `[P]`, the most frequent answer, of equals the one given first; 0 where
        no sample gives an answer.
      share: float32 `[P]`, its share among the samples that count.
    """

    answer_id: UInt[Array, "P"]
    share: Float[Array, "P"]


def majority_vote(
    answer_id: UInt[Array, "P G"], mask: Bool[Array, "P G"] | None = None
) -> Vote:
    """The majority among the samples under the mask; samples without answer count as votes
    for nothing: they lower the share."""
    counts = jnp.ones(answer_id.shape, bool) if mask is None else mask
    votes = counts & (answer_id != 0)
    same = (answer_id[:, :, None] == answer_id[:, None, :]) & votes[:, None, :]
    size = jnp.where(votes, jnp.sum(same, axis=-1, dtype=jnp.int32), 0)
    best = jnp.argmax(size, axis=-1)[:, None]
    number = jnp.take_along_axis(size, best, axis=1)[:, 0]
    winner = jnp.take_along_axis(answer_id, best, axis=1)[:, 0]
    total = jnp.maximum(jnp.sum(counts, axis=-1, dtype=jnp.int32), 1)
    share = number.astype(jnp.float32) / total.astype(jnp.float32)
    return Vote(jnp.where(number > 0, winner, jnp.uint32(0)), share)


def majority_reward(
    *, min_share: Number = 0.0, max_share: Number = 1.0, axis_name: str | None = None
) -> RewardTransform:
    """Replaces rewards by 1 for the group's majority answer and 0 for the others.

    The guard: prompts whose majority has a share below `min_share` (no clear label) or above
    `max_share` (nothing to learn but to be surer) are missing, and so are prompts without any
    answer. Missing rewards do not vote.

    Metrics `majority/share` and `majority/kept` (share of the prompts), and where the true
    rewards are known `majority/label_accuracy`, the share of samples with the label that are right,
    and `majority/reward_accuracy`, the share of right verdicts.

    Args:
      min_share: in [0, 1]; may be traced.
      max_share: in [0, 1]; may be traced.
      axis_name: mapped axis that the prompts are split over, for the metrics.

    Raises:
      ValueError: a share outside [0, 1].
    """
    for name, value in (("min_share", min_share), ("max_share", max_share)):
        check_number(name, value, lambda share: 0 <= share <= 1, "in [0, 1]")

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        vote = majority_vote(signal.aux["answer_id"], signal.mask)
        kept = (vote.answer_id > 0) & (vote.share >= min_share) & (vote.share <= max_share)
        return _labelled(signal, vote.answer_id, kept, vote.share, axis_name)

    return stateless(update, _spec("majority_reward", ("aux/answer_id",)))


def label_reward(
    label: str = "reference_id", *, leave_out: str | None = None, axis_name: str | None = None
) -> RewardTransform:
    """Replaces rewards by 1 for samples whose answer is `aux[label]`, 0 for the others.

    With `label="initial_majority_id"` this is the frozen pseudo-label of the initial policy.
    With `leave_out="reference_id"` prompts whose label is the reference are missing, which
    leaves those where the initial policy is wrong ("majority, incorrect" of arXiv 2507.10532).

    Args:
      label: entry of `aux`, uint32 `[P]`; prompts with label 0 are missing.
      leave_out: another such entry; prompts where both are equal are missing.
      axis_name: mapped axis that the prompts are split over, for the metrics.
    """

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        wanted = signal.aux[label]
        kept = wanted > 0
        if leave_out is not None:
            kept = kept & (wanted != signal.aux[leave_out])
        right = signal.aux["answer_id"] == wanted[:, None]
        share = jnp.mean(right.astype(jnp.float32), axis=-1)
        return _labelled(signal, wanted, kept, share, axis_name)

    reads = ("aux/answer_id", f"aux/{label}") + ((f"aux/{leave_out}",) if leave_out else ())
    return stateless(update, _spec("label_reward", reads))


def answered_reward() -> RewardTransform:
    """Replaces rewards by 1 for every sample that gives an answer: the format-only control."""

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        given = (signal.aux["answer_id"] != 0).astype(jnp.float32)
        return keep_true_rewards(signal).replace(rewards=jnp.where(signal.mask, given, 0.0))

    spec = _spec("answered_reward", ("aux/answer_id",))
    return stateless(update, spec._replace(writes=("rewards", "aux/true_rewards")))


def _labelled(signal: Signal, label, kept, share, axis_name: str | None) -> Signal:
    """Rewards by `label` `[P]` where `kept` `[P]`; the others missing."""
    signal = keep_true_rewards(signal)
    agrees = signal.aux["answer_id"] == label[:, None]
    mask = signal.mask & kept[:, None]
    true = signal.aux["true_rewards"]
    right, known = true > 0.5, mask & jnp.isfinite(true)

    def mean(values, of):
        return masked.mean(values.astype(jnp.float32), of, axis_name=axis_name)

    everywhere = jnp.ones(kept.shape, bool)
    metrics = {
        "majority/share": mean(share, everywhere),
        "majority/kept": mean(kept, everywhere),
        "majority/label_accuracy": mean(right, known & agrees),
        "majority/reward_accuracy": mean(agrees == right, known),
    }
    rewards = jnp.where(mask, agrees.astype(jnp.float32), 0.0)
    return signal.replace(rewards=rewards, mask=mask, metrics={**signal.metrics, **metrics})


def _spec(name: str, reads: tuple[str, ...]) -> Spec:
    writes = ("rewards", "mask", "aux/true_rewards", "metrics")
    return Spec(name, "noise", ("rewards", "mask") + reads, writes, reward_map="replaced")
