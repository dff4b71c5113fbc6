"""Rewards of generative judges: the verdict, and the argument that led to it (arXiv 2601.07349).

A judge of two answers that is rewarded for its verdict alone is right by luck half of the time.
Where a human critique exists its arguments are compared with the judge's; elsewhere a MetaRM, a
network that was trained on the former to predict the total reward, stands in:

    human critique   total = outcome (1 + weight process)                     `critique_reward`
    MetaRM           total = outcome (1 + weight max(0, prediction - 1))      `meta_reward`
    its target       outcome (1 + process)                                    `meta_target`

Rewards of critiques are summed before the advantages; `transforms.mixture` sums after them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxreward.checks import Number, check_number

Values = Float[Array, "*shape"]


class Agreement(NamedTuple):
    """How far two sets of arguments agree; all in [0, 1], 0 where a set is empty."""

    precision: Float[Array, "*shape"]
    recall: Float[Array, "*shape"]
    f1: Float[Array, "*shape"]


def argument_agreement(
    own: Bool[Array, "*shape A"],
    reference: Bool[Array, "*shape A"],
    mask: Bool[Array, "*shape A"] | None = None,
) -> Agreement:
    """Precision, recall and F1 of the arguments of a critique (section 3).

    Args:
      own: True for each of `A` known arguments that the judge makes.
      reference: the same of the human critique.
      mask: False for arguments that do not count (not at the core, padding).
    """
    if mask is not None:
        own, reference = own & mask, reference & mask
    size = lambda x: jnp.sum(x, axis=-1, dtype=jnp.float32)
    made, wanted, matched = size(own), size(reference), size(own & reference)
    some = (made > 0) & (wanted > 0)
    share = lambda part, whole: jnp.where(some, part / jnp.where(some, whole, 1.0), 0.0)
    # Of whole numbers, so that a threshold meets exactly 1/2.
    return Agreement(
        share(matched, made), share(matched, wanted), share(2.0 * matched, made + wanted)
    )


def process_reward(agreement: Values, threshold: Number = 0.5) -> Values:
    """1 where the agreement exceeds the threshold, else 0 (also at the threshold)."""
    return (agreement > threshold).astype(jnp.float32)


def critique_reward(
    outcome: Values,
    process: Values,
    *,
    weight: Number = 0.5,
    gate: bool = True,
    parsed: Bool[Array, "*shape"] | None = None,
) -> Values:
    """`outcome + weight process outcome`; -1 where the output could not be parsed.

    Args:
      outcome: 1 for the right verdict, else 0.
      process: in [0, 1], `process_reward` or the agreement itself.
      weight: >= 0.
      gate: False pays for the process of a wrong verdict too.
      parsed: False for malformed outputs.

    Raises:
      ValueError: a known weight is negative.
    """
    check_number("weight", weight, lambda x: x >= 0, ">= 0")
    total = outcome + weight * process * (outcome if gate else jnp.ones_like(outcome))
    return total if parsed is None else jnp.where(parsed, total, -1.0)


def meta_target(outcome: Values, process: Values) -> Values:
    """What a MetaRM learns: 0 for a wrong verdict, 1 right but unsound, 2 right and sound."""
    return outcome * (1.0 + process)


def meta_process(prediction: Values) -> Values:
    """The part of a MetaRM's prediction above 1, where the process begins; never negative."""
    return jnp.maximum(prediction - 1.0, 0.0)


def meta_reward(
    outcome: Values,
    prediction: Values,
    *,
    weight: Number = 0.5,
    parsed: Bool[Array, "*shape"] | None = None,
) -> Values:
    """`critique_reward` where a MetaRM stands in for the human critique; no upper bound.

    Args:
      outcome: 1 for the right verdict, else 0.
      prediction: of the total, from the question, the critique and the verdict alone.
      weight, parsed: as of `critique_reward`.

    Raises:
      ValueError: a known weight is negative.
    """
    return critique_reward(outcome, meta_process(prediction), weight=weight, parsed=parsed)


def tournament_scores(key: jax.Array, beats: Bool[Array, "P G G"]) -> Float[Array, "P G"]:
    """Double elimination among the answers of a prompt: pairwise verdicts as scores in [0, 1].

    In every round neighbours with equally many losses meet; who has lost twice is out. The last
    undefeated answer must be beaten twice. Scores are ranks by round of elimination, ties shared:
    1 for the winner. About `2 G` of the `G (G - 1)` ordered verdicts are read.

    Args:
      key: of the seeding, which also says who is shown first.
      beats: `[i, j]` True where answer `i`, shown first, is judged better than `j`.

    Raises:
      ValueError: when traced, a group of one answer.
    """
    if beats.shape[1] < 2:
        raise ValueError(f"beats of shape {beats.shape}; allowed is a group of 2 answers or more")
    return jax.vmap(_tournament)(jax.random.split(key, beats.shape[0]), beats)


def _tournament(key: jax.Array, beats: Bool[Array, "G G"]) -> Float[Array, "G"]:
    size = beats.shape[0]
    order = jax.random.permutation(key, size)
    beats = beats[order][:, order]

    def play(round_number: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        losses, out = state
        winner = _meetings(losses, beats)
        losses = losses + jnp.where(winner == -1, 1, 0)
        gone = (losses >= 2) & (out == 2 * size)
        return losses, jnp.where(gone, round_number, out)

    start = (jnp.zeros((size,), jnp.int32), jnp.full((size,), 2 * size, jnp.int32))
    # Every round has a meeting, and there are at most 2 G - 1 losses.
    _, out = jax.lax.fori_loop(0, 2 * size, play, start)
    below = jnp.sum(out[None, :] < out[:, None], axis=1, dtype=jnp.float32)
    tied = jnp.sum(out[None, :] == out[:, None], axis=1, dtype=jnp.float32) - 1.0
    scores = (below + 0.5 * tied) / (size - 1)
    return jnp.zeros((size,), jnp.float32).at[order].set(scores)


def _meetings(losses: Array, beats: Array) -> Array:
    """1 for who wins this round, -1 for who loses, 0 for who does not play."""
    size = losses.shape[0]
    alive = losses < 2
    same = (losses[:, None] == losses[None, :]) & alive[None, :] & alive[:, None]
    final = (jnp.sum(losses == 0) == 1) & (jnp.sum(losses == 1) == 1)
    same = jnp.where(final, alive[:, None] & alive[None, :], same)
    index = jnp.arange(size)
    place = jnp.sum(same & (index[None, :] < index[:, None]), axis=1)
    partner_place = jnp.where(place % 2 == 0, place + 1, place - 1)
    meets = same & (place[None, :] == partner_place[:, None])
    plays, partner = jnp.any(meets, axis=1), jnp.argmax(meets, axis=1)
    first = index < partner
    won = jnp.where(first, beats[index, partner], ~beats[partner, index])
    return jnp.where(plays, jnp.where(won, 1, -1), 0)
