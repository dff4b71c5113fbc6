"""One reward from the scores of an ensemble of reward models (arXiv 2310.02743).

Members that differ by their seed alone agree where they have data and disagree where a policy
that optimises them goes; an aggregate that punishes disagreement gives it nothing to gain there.
Minimum and variance compare members, so their scores must share a zero and a unit: subtract the
mean and divide by the standard deviation of each on one reference set (`member_scale`), never on
the candidates that are being ranked.

Scores are `[..., K]` with `K` members last, aggregates `[...]`, float32. Nothing here belongs
inside a gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreward import masked
from jaxreward.checks import Number, check_choice, check_number
from jaxreward.transforms.base import RewardTransform, Spec, stateless
from jaxreward.types import Signal

AGGREGATES = ("mean", "worst_case", "uncertainty_weighted")

Scores = Float[Array, "*shape K"]
Aggregate = Float[Array, "*shape"]


class MemberScale(NamedTuple):
    """Zero and unit of each member's scores."""

    mean: Float[Array, "K"]
    std: Float[Array, "K"]


def member_scale(scores: Float[Array, "N K"]) -> MemberScale:
    """Mean and standard deviation of each member's scores of `N` reference samples."""
    return MemberScale(jnp.mean(scores, axis=0), jnp.std(scores, axis=0))


def normalize_members(scores: Scores, scale: MemberScale) -> Scores:
    """`(score - mean) / std` of each member; one whose std is 0 is centred only."""
    shape = (1,) * (scores.ndim - 1) + (-1,)
    std = jnp.where(scale.std > 0, scale.std, 1.0)
    return (scores - scale.mean.reshape(shape)) / std.reshape(shape)


def mean_score(scores: Scores) -> Aggregate:
    """The mean over members."""
    return jnp.mean(scores.astype(jnp.float32), axis=-1)


def worst_case(scores: Scores) -> Aggregate:
    """The least score (worst-case optimisation, WCO)."""
    return jnp.min(scores.astype(jnp.float32), axis=-1)


def uncertainty_weighted(scores: Scores, *, weight: Number = 0.5, ddof: int = 0) -> Aggregate:
    """Mean less `weight` times the variance over members (UWO).

    The paper's best-of-n has weight 0.5 and `ddof` 0, its policy optimisation 0.1 and 1.

    Args:
      scores: of `K` members; with `ddof` members or fewer the variance is 0.
      weight: >= 0, per unit of score; 0 is the mean. May be traced.
      ddof: 0 (population variance) or 1 (sample variance).

    Raises:
      ValueError: `weight` < 0 or another `ddof`.
    """
    check_number("weight", weight, lambda x: x >= 0, ">= 0")
    check_choice("ddof", ddof, (0, 1))
    variance = masked.var(scores, jnp.ones(scores.shape, bool), axis=-1, ddof=ddof)
    return mean_score(scores) - jnp.asarray(weight, jnp.float32) * variance


def aggregate_scores(
    scores: Scores, aggregate: str = "mean", *, weight: Number = 0.5, ddof: int = 0
) -> Aggregate:
    """One of `AGGREGATES`; `weight` and `ddof` are those of `uncertainty_weighted`.

    Raises:
      ValueError: an unknown aggregate, a number out of range, or no member.
    """
    check_choice("aggregate", aggregate, AGGREGATES)
    if not scores.shape[-1]:
        raise ValueError(f"scores have shape {scores.shape}; allowed is [..., K] with K >= 1")
    if aggregate == "uncertainty_weighted":
        return uncertainty_weighted(scores, weight=weight, ddof=ddof)
    return mean_score(scores) if aggregate == "mean" else worst_case(scores)


def aggregate_members(
    aggregate: str = "mean",
    *,
    weight: Number = 0.1,
    ddof: int = 1,
    scale: MemberScale | None = None,
    bound: Number | None = None,
    axis_name=None,
) -> RewardTransform:
    """The reward becomes an aggregate of `aux["member_rewards"]`, `[P, G, K]` or `[P, G, S, K]`.

    A sample that a member could not score (NaN or infinite) is missing: a minimum over fewer
    members is not as cautious as its siblings'.

    Args:
      aggregate: one of `AGGREGATES`.
      weight: of the variance, >= 0; may be traced.
      ddof: 0 or 1.
      scale: from `member_scale`; None leaves the scores as they are.
      bound: > 0, aggregates are clipped to [-bound, bound] (the paper has 10); None is no bound.
      axis_name: mapped axis of the prompts, for the metrics.

    Metrics: `aggregation/disagreement`, mean standard deviation over members;
    `aggregation/clipped`, share of the rewards that the bound changed.

    Raises:
      ValueError: a parameter out of its range.
    """
    check_choice("aggregate", aggregate, AGGREGATES)
    check_choice("ddof", ddof, (0, 1))
    check_number("weight", weight, lambda x: x >= 0, ">= 0")
    check_number("bound", bound, lambda x: x > 0, "> 0 or None")

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        scores = _members(signal)
        mask = signal.mask & jnp.all(jnp.isfinite(scores), axis=-1)
        scores = jnp.where(mask[..., None], scores, 0.0)
        if scale is not None:
            scores = normalize_members(scores, scale)
        rewards = aggregate_scores(scores, aggregate, weight=weight, ddof=ddof)
        limited = rewards if bound is None else jnp.clip(rewards, -bound, bound)
        spread = masked.std(scores, jnp.ones(scores.shape, bool), axis=-1)
        return signal.replace(rewards=jnp.where(mask, limited, 0.0), mask=mask).with_metrics(
            aggregation__disagreement=masked.mean(spread, mask, axis_name=axis_name),
            aggregation__clipped=masked.mean(limited != rewards, mask, axis_name=axis_name),
        )

    reads, writes = ("mask", "aux/member_rewards"), ("rewards", "mask", "metrics")
    return stateless(
        update, Spec("aggregate_members", "aggregation", reads, writes, reward_map="replaced")
    )


def _members(signal: Signal) -> Float[Array, "P G *S K"]:
    scores = signal.aux["member_rewards"]
    if scores.shape[:-1] != signal.rewards.shape:
        raise ValueError(
            f"aux/member_rewards has shape {scores.shape}; allowed is "
            f"{signal.rewards.shape} and one axis of members"
        )
    return scores.astype(jnp.float32)
