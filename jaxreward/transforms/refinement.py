"""Online label refinement: a prompt's own rising majority in place of a suspicious label.

Rewards compare answers with a given label that may be wrong. Early in training accuracy rises
alike on prompts with right and with wrong labels, so a majority answer whose share rises from
visit to visit and that stays the same is more often right than the label it contradicts
(arXiv 2604.03993). Answers are compared by `aux["answer_id"]`, uint32, 0 where a sample gives
none; labels by `aux["label_id"]`, uint32, 0 for a label that matches nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from jaxreward import masked
from jaxreward.checks import Number, check_choice, check_number
from jaxreward.transforms import base
from jaxreward.transforms.base import RewardTransform, Spec, keep_true_rewards, stateless
from jaxreward.types import Signal

KINDS = ("inactive", "active", "fixed")


class Majority(NamedTuple):
    """Whether the samples of a prompt agree on an answer.

    Attributes:
      answer_id: uint32 `[P]`; 0 where two answers share the largest count, or none is given.
      share: float32 `[P]`, its share of the samples that count, 0 where there is none.
    """

    answer_id: UInt[Array, "P"]
    share: Float[Array, "P"]


def unique_majority(
    answer_id: UInt[Array, "P G"], mask: Bool[Array, "P G"] | None = None
) -> Majority:
    """The answer with the unique largest count; a sample without answer is a cluster of its own.

    Unlike `majority.majority_vote`, a tie has no winner.

    Args:
      answer_id: answers.
      mask: samples that count; default all.
    """
    counts = jnp.ones(answer_id.shape, bool) if mask is None else mask
    given = counts & (answer_id != 0)
    same = (answer_id[:, :, None] == answer_id[:, None, :]) & given[:, None, :]
    size = jnp.where(given, jnp.sum(same, axis=-1, dtype=jnp.int32), counts.astype(jnp.int32))
    largest = jnp.max(size, axis=-1, keepdims=True)
    members = counts & (size == largest)
    first = jnp.argmax(members, axis=-1)[:, None]
    winner = jnp.take_along_axis(jnp.where(counts, answer_id, jnp.uint32(0)), first, axis=1)[:, 0]
    alone = jnp.sum(members, axis=-1, dtype=jnp.int32) == largest[:, 0]
    winner = jnp.where(alone, winner, jnp.uint32(0))
    total = jnp.maximum(jnp.sum(counts, axis=-1, dtype=jnp.int32), 1)
    share = largest[:, 0].astype(jnp.float32) / total.astype(jnp.float32)
    return Majority(winner, jnp.where(winner != 0, share, 0.0))


def share_slope(shares: Float[Array, "T"], visits: Int[Array, ""]) -> Float[Array, ""]:
    """Least-squares slope of the first `visits` shares against 0, 1, ...; 0 for one visit."""
    x = jnp.arange(shares.shape[0], dtype=jnp.float32)
    seen = jnp.arange(shares.shape[0]) < visits
    x_mean, y_mean = masked.mean(x, seen), masked.mean(shares, seen)
    covariance = masked.sum((x - x_mean) * (shares - y_mean), seen)
    variance = masked.sum((x - x_mean) ** 2, seen)
    return jnp.where(visits > 1, covariance / jnp.where(variance > 0, variance, 1.0), 0.0)


def is_consistent(majorities: UInt[Array, "T"], visits: Int[Array, ""]) -> Bool[Array, ""]:
    """Whether the last of the first `visits` majorities is their unique most frequent one."""
    seen = (jnp.arange(majorities.shape[0]) < visits)[None, :]
    mode = unique_majority(majorities[None, :], seen)
    # visits without a majority are clusters of their own, and never win
    last = majorities[jnp.maximum(visits - 1, 0)]
    return (last != 0) & (mode.answer_id[0] == last)


class RefinementState(NamedTuple):
    """What is remembered of one prompt.

    Attributes:
      visits: int32, so far.
      shares: float32 `[max_visits]`, of the majority at each visit.
      majorities: uint32 `[max_visits]`, the majority answers, 0 for none.
      replaced: whether its label was replaced at the last visit.
    """

    visits: Int[Array, ""]
    shares: Float[Array, "T"]
    majorities: UInt[Array, "T"]
    replaced: Bool[Array, ""]


def label_refinement(
    *,
    num_prompts: int,
    start_visit: int = 4,
    min_slope: Number = 0.05,
    use_slope: bool = True,
    use_consistency: bool = True,
    max_visits: int = 64,
) -> RewardTransform:
    """Scores a visit by the prompt's majority answer where that looks better than its label.

    At the visit with index t (from 0) of a prompt the label is replaced if t > `start_visit`,
    the least-squares slope of the majority's share over all visits is at least `min_slope`, and
    the majority is the unique most frequent one of all visits. The given label is never
    overwritten: every visit decides anew. The shares' slope falls once they saturate, so late
    labels revert; `refinement/reverted` counts them.

    Metrics, shares of the batch's prompts: `refinement/replaced`, `refinement/reverted`, and
    where `aux["reference_id"]` holds the true answers `refinement/precision` of the replaced
    labels weighted by `refinement/replaced_right`, the share replaced and right.

    Args:
      num_prompts: size of the data set; state is kept by `aux["prompt_id"]`.
      start_visit: >= 0.
      min_slope: share per visit; infinite never replaces. May be traced.
      use_slope: False leaves out the condition on the slope (an ablation).
      use_consistency: False leaves out the condition on the history.
      max_visits: visits remembered; later ones overwrite the last.

    Raises:
      ValueError: a number out of its range.
    """
    if start_visit < 0:
        raise ValueError(f"start_visit = {start_visit}; allowed is >= 0")
    if max_visits < 2:
        raise ValueError(f"max_visits = {max_visits}; allowed is >= 2")
    check_number("min_slope", min_slope, lambda value: value == value, "a number")

    def init() -> RefinementState:
        return RefinementState(
            jnp.zeros((), jnp.int32),
            jnp.zeros((max_visits,), jnp.float32),
            jnp.zeros((max_visits,), jnp.uint32),
            jnp.zeros((), bool),
        )

    def update(key, signal: Signal, state: RefinementState):
        del key
        signal = keep_true_rewards(signal)
        found = unique_majority(signal.aux["answer_id"], signal.mask)
        state, replace = visit(state, found)
        agrees = (signal.aux["answer_id"] == found.answer_id[:, None]).astype(jnp.float32)
        rewards = jnp.where(signal.mask & replace, agrees, signal.rewards)
        metrics = _metrics(signal, found, replace, state.replaced)
        signal = signal.replace(rewards=rewards, metrics={**signal.metrics, **metrics})
        return signal, state._replace(replaced=replace)

    def visit(state: RefinementState, found: Majority):
        at = jnp.minimum(state.visits, max_visits - 1)
        shares = state.shares.at[at].set(found.share[0])
        majorities = state.majorities.at[at].set(found.answer_id[0])
        seen = at + 1
        good = (state.visits > start_visit) & (found.answer_id[0] != 0)
        if use_slope:
            # by a rounding error less: shares are eighths, and 0.05 itself counts
            good &= share_slope(shares, seen) >= jnp.asarray(min_slope, jnp.float32) - 1e-6
        if use_consistency:
            good &= is_consistent(majorities, seen)
        return state._replace(visits=state.visits + 1, shares=shares, majorities=majorities), good

    reads = ("rewards", "mask", "aux/prompt_id", "aux/answer_id")
    spec = Spec(
        "label_refinement", "selection", reads, ("rewards", "metrics", "aux/true_rewards"),
        reward_map="nonlinear",
    )  # fmt: skip
    return base.per_prompt(RewardTransform(init, update, spec), num_prompts)


def _metrics(signal: Signal, found: Majority, replace, before) -> dict[str, Array]:
    as_share = lambda condition: jnp.asarray(condition, jnp.float32).reshape(())
    metrics = {
        "refinement/replaced": as_share(replace),
        "refinement/reverted": as_share(before & ~replace),
    }
    if "reference_id" in signal.aux:
        right = found.answer_id[0] == signal.aux["reference_id"][0]
        metrics["refinement/replaced_right"] = as_share(replace & right)
    return metrics


def label_noise(
    kind: str, rate: Number, *, seed: int | Int[Array, ""] = 0, wrong: str = "wrong_id"
) -> RewardTransform:
    """Gives a share of the prompts a wrong label, and scores answers by the label.

    Which prompts is a function of prompt id and seed. "inactive": the label matches nothing.
    "active": at each visit a uniformly drawn wrong answer among those of the group, so that it
    is always one that the policy gives; nothing where there is none. "fixed": `aux[wrong]`,
    always the same. Writes `aux["label_id"]`; the other prompts keep their rewards.

    Args:
      kind: one of `KINDS`.
      rate: share of the prompts, in [0, 1]; may be traced.
      seed: of the choice of prompts; may be traced.
      wrong: entry of `aux`, uint32 `[P]`, for "fixed".

    Raises:
      ValueError: an unknown kind, or a rate outside [0, 1].
    """
    check_choice("kind", kind, KINDS)
    check_number("rate", rate, lambda value: 0 <= value <= 1, "in [0, 1]")

    def update(key: jax.Array, signal: Signal) -> Signal:
        signal = keep_true_rewards(signal)
        answers, truth = signal.aux["answer_id"], signal.aux["reference_id"]
        ids = signal.aux["prompt_id"]
        chooser = jax.random.key(jnp.asarray(seed, jnp.uint32))
        uniform = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(chooser, i)))(ids)
        noisy = uniform < jnp.asarray(rate, jnp.float32)
        if kind == "inactive":
            label = jnp.zeros_like(truth)
        elif kind == "fixed":
            label = signal.aux[wrong]
        else:
            keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
            label = jax.vmap(_wrong_answer)(keys, answers, truth, signal.mask)
        given = jnp.where(noisy, label, truth)
        scored = (answers == label[:, None]) & (label != 0)[:, None]
        rewards = jnp.where(noisy[:, None], scored.astype(jnp.float32), signal.rewards)
        rewards = jnp.where(signal.mask, rewards, 0.0)
        return signal.replace(rewards=rewards).with_aux(label_id=given)

    reads = ("rewards", "mask", "aux/prompt_id", "aux/answer_id", "aux/reference_id")
    return stateless(
        update,
        Spec(
            f"label_noise({kind})", "noise", reads + ((f"aux/{wrong}",) if kind == "fixed" else ()),
            ("rewards", "aux/label_id", "aux/true_rewards"), reward_map="nonlinear",
        ),
    )  # fmt: skip


def _wrong_answer(key: jax.Array, answers, truth, mask):
    """A uniformly drawn wrong answer of a group, each different one once; 0 if there is none."""
    place = jnp.arange(answers.shape[0])
    counted = mask & (answers != 0) & (answers != truth)
    earlier = (answers[:, None] == answers[None, :]) & (place[:, None] > place[None, :])
    first = counted & ~jnp.any(earlier & counted[None, :], axis=1)
    scores = jnp.where(first, jax.random.uniform(key, answers.shape), -1.0)
    return jnp.where(jnp.any(first), answers[jnp.argmax(scores)], jnp.uint32(0))
