"""Advantages of several rewards, each normalised for itself, as one weighted sum."""

from typing import Any, Sequence

import jax
import jax.numpy as jnp

from jaxreward.checks import Number, check_number
from jaxreward.transforms.base import RewardTransform, Spec, least_invariance
from jaxreward.types import Signal


def weighted_sum(
    parts: Sequence[RewardTransform], weights: Sequence[Number]
) -> RewardTransform:
    """`sum_k weights[k] * advantages of parts[k]`, every part starting from the same signal.

    Rewards of different scales are normalised before they are added (RLPR's use of a verifier
    beside a likelihood, arXiv 2506.18254). A sample that is missing for one part has that part's
    advantage 0; it is missing if all parts miss it. The rewards of the first part are kept, and its
    metrics; those of the others are called `part_k/...`.

    Args:
      parts: chains that set advantages, two or more.
      weights: one for each, finite; may be traced.

    Raises:
      ValueError: a part without advantages, or another number of weights.
    """
    if len(parts) < 2 or len(weights) != len(parts):
        raise ValueError(
            f"{len(parts)} parts with {len(weights)} weights; allowed are two parts or more and as "
            "many weights"
        )
    for weight in weights:
        check_number("weights", weight, lambda value: abs(value) < float("inf"), "finite numbers")
    for part in parts:
        if "advantages" not in part.spec.writes:
            raise ValueError(f"part {part.spec.name} never sets advantages; end it with one")

    def update(key: jax.Array, signal: Signal, states: tuple[Any, ...]):
        found, new = [], []
        for i, (part, state) in enumerate(zip(parts, states)):
            after, state = part.update(jax.random.fold_in(key, i), signal, state)
            found.append(after)
            new.append(state)
        ranks = max(own.advantages.ndim for own in found)
        terms = [_term(own, weight, ranks) for own, weight in zip(found, weights)]
        mask = found[0].mask
        for own in found[1:]:
            mask = mask | own.mask
        metrics = dict(found[0].metrics)
        for i, own in enumerate(found[1:], 1):
            metrics |= {
                f"part_{i}/{name}": value
                for name, value in own.metrics.items()
                if name not in signal.metrics
            }
        rewards = jnp.where(found[0].mask, found[0].rewards, 0.0)
        total = sum(terms[1:], terms[0])
        after = found[0].replace(advantages=total, mask=mask, rewards=rewards, metrics=metrics)
        return after, tuple(new)

    init = lambda: tuple(part.init() for part in parts)
    return RewardTransform(init, update, _spec(parts))


def _term(own: Signal, weight: Number, ranks: int) -> jax.Array:
    """A part's weighted advantages, 0 where the part misses the sample."""
    there = own.mask.reshape(own.mask.shape + (1,) * (own.advantages.ndim - own.mask.ndim))
    term = jnp.asarray(weight, jnp.float32) * jnp.where(there, own.advantages, 0.0)
    return term[..., None] if term.ndim < ranks else term


def _spec(parts: Sequence[RewardTransform]) -> Spec:
    reads = dict.fromkeys(field for part in parts for field in part.spec.reads)
    own = ("rewards", "mask", "advantages", "metrics")
    writes = dict.fromkeys(own + tuple(parts[0].spec.writes))
    name = "+".join(part.spec.name for part in parts)
    return Spec(
        f"weighted_sum({name})", "advantage", tuple(reads), tuple(writes), reward_map="nonlinear",
        **least_invariance([part.spec for part in parts]),
    )  # fmt: skip
