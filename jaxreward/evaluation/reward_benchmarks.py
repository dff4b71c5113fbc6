"""What a reward model prefers: pairs, one right answer among many, contrasts of instructions.

`B` problems, `R` rejected answers of each, padded under a mask. A score that is NaN or infinite
is missing: a rejected answer without one does not take part, nor does a problem whose chosen
answer has none or that has no rejected answer left. Per-problem functions leave the average to
the caller, who may want categories or a bootstrap; `one_to_many` averages.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreward import masked
from jaxreward.checks import check_choice

TIES = ("loss", "half", "win")


def compared(
    chosen: Float[Array, "B"], rejected: Float[Array, "B R"], mask: Bool[Array, "B R"]
) -> Bool[Array, "B R"]:
    """Where both scores of a comparison exist."""
    return mask & jnp.isfinite(rejected) & jnp.isfinite(chosen)[:, None]


def wins(
    chosen: Float[Array, "B"], rejected: Float[Array, "B R"], ties: str = "loss"
) -> Float[Array, "B R"]:
    """1 where the chosen answer has the higher score, else 0; a tie counts as `ties` says.

    Args:
      chosen: score of the right answer.
      rejected: scores of the wrong ones.
      ties: "loss", "half" or "win". Judges with integer grades tie often: "win" flatters them.
    """
    check_choice("ties", ties, TIES)
    equal = {"loss": 0.0, "half": 0.5, "win": 1.0}[ties]
    higher = (chosen[:, None] > rejected).astype(jnp.float32)
    return jnp.where(chosen[:, None] == rejected, equal, higher)


def beats_all(
    chosen: Float[Array, "B"],
    rejected: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    *,
    ties: bool = False,
) -> Float[Array, "B"]:
    """1 where the chosen answer beats every rejected one (arXiv 2410.01729), else 0.

    Args:
      chosen: score of the right answer.
      rejected: scores of the wrong ones.
      mask: True where there is one.
      ties: True lets a tie pass.
    """
    won = wins(chosen, rejected, "win" if ties else "loss") == 1.0
    return jnp.all(won | ~mask, axis=-1).astype(jnp.float32)


def reciprocal_rank(
    chosen: Float[Array, "B"], rejected: Float[Array, "B R"], mask: Bool[Array, "B R"]
) -> Float[Array, "B"]:
    """`1 / rank` of the chosen answer; ties count against it (arXiv 2410.01729)."""
    return 1.0 / (1.0 + masked.count(mask & (rejected >= chosen[:, None]), axis=-1))


def win_rate(
    chosen: Float[Array, "B"],
    rejected: Float[Array, "B R"],
    mask: Bool[Array, "B R"],
    ties: str = "loss",
) -> Float[Array, "B"]:
    """Share of the rejected answers that the chosen one beats."""
    return masked.mean(wins(chosen, rejected, ties), mask, axis=-1)


class OneToMany(NamedTuple):
    """Averages over problems.

    Attributes:
      accuracy: the chosen answer beats all others.
      accuracy_with_ties: no other answer beats the chosen one.
      reciprocal_rank: mean of `1 / rank`.
      win_rate: mean share of the others that are beaten.
      problems: how many took part.
    """

    accuracy: Float[Array, ""]
    accuracy_with_ties: Float[Array, ""]
    reciprocal_rank: Float[Array, ""]
    win_rate: Float[Array, ""]
    problems: Float[Array, ""]


def one_to_many(
    chosen: Float[Array, "B"],
    rejected: Float[Array, "B R"],
    mask: Bool[Array, "B R"] | None = None,
) -> OneToMany:
    """One right answer against many wrong ones (RewardMATH, arXiv 2410.01729).

    Args:
      chosen: score of the right answer.
      rejected: scores of the wrong ones; with `R` = 1 these are pairs.
      mask: True where there is one; default everywhere.
    """
    mask = jnp.ones(rejected.shape, bool) if mask is None else mask
    mask = compared(chosen, rejected, mask)
    present = jnp.any(mask, axis=-1)
    average = lambda values: masked.mean(values, present)
    return OneToMany(
        average(beats_all(chosen, rejected, mask)),
        average(beats_all(chosen, rejected, mask, ties=True)),
        average(reciprocal_rank(chosen, rejected, mask)),
        average(win_rate(chosen, rejected, mask)),
        masked.count(present),
    )


def duel_scores(
    won: Bool[Array, "B R"], mask: Bool[Array, "B R"] | None = None
) -> tuple[Float[Array, "B"], Float[Array, "B R"]]:
    """Scores that give the verdicts of a pairwise judge the same accuracy and rank.

    The chosen answer gets its wins plus 1; a rejected one 1 where beaten, else `R + 2`.

    Args:
      won: whether the judge preferred the chosen answer to each rejected one.
      mask: True where there was a duel.

    Returns:
      Chosen and rejected scores.
    """
    mask = jnp.ones(won.shape, bool) if mask is None else mask
    chosen = 1.0 + masked.count(won & mask, axis=-1)
    return chosen, jnp.where(won, 1.0, won.shape[-1] + 2.0)


def pick_top(
    scores: Float[Array, "N"], answers: Int[Array, "N"], mask: Bool[Array, "N"] | None = None
) -> Int[Array, ""]:
    """Index of the sample of highest score; among ties the answer that most of them give.

    The first sample with that answer, the first such answer if several are as frequent, and 0
    where the mask is empty.
    """
    mask = jnp.isfinite(scores) if mask is None else mask & jnp.isfinite(scores)
    top = mask & (scores == masked.maximum(scores, mask, empty=jnp.inf))
    votes = jnp.sum(top[None, :] & (answers[:, None] == answers[None, :]), axis=-1)
    return jnp.argmax(jnp.where(top, votes, -1)).astype(jnp.int32)


# Contrast instructions (arXiv 2309.16155)


def response_consistency(
    rewards: Float[Array, "*B 2 2"], *, both_directions: bool = False
) -> Float[Array, "*B"]:
    """1 where an instruction's own response beats that of a similar instruction, else 0.

    Args:
      rewards: `rewards[..., i, j]` of response `j` to instruction `i`; response `i` is the one
        preferred for instruction `i`.
      both_directions: average over both instructions instead of looking at the first.
    """
    first, second = rewards[..., 0, 0] > rewards[..., 0, 1], rewards[..., 1, 1] > rewards[..., 1, 0]
    return _directions(first, second, both_directions)


def instruction_consistency(
    rewards: Float[Array, "*B 2 2"], *, both_directions: bool = False
) -> Float[Array, "*B"]:
    """1 where a response is worth more to its own instruction than to a similar one, else 0.

    See `response_consistency`. A reward that ignores the instruction gets 0.
    """
    first, second = rewards[..., 0, 0] > rewards[..., 1, 0], rewards[..., 1, 1] > rewards[..., 0, 1]
    return _directions(first, second, both_directions)


def _directions(first: Array, second: Array, both: bool) -> Array:
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    return 0.5 * (first + second) if both else first
