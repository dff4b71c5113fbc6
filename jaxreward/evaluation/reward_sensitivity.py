"""What else than quality moves a reward: length, format, style."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxreward import masked


def correlation(
    first: Float[Array, "B"], second: Float[Array, "B"], mask: Bool[Array, "B"] | None = None
) -> Float[Array, ""]:
    """Pearson correlation; 0 where one of the two is constant."""
    mask = jnp.ones(first.shape, bool) if mask is None else mask
    a, b = (jnp.where(mask, x - masked.mean(x, mask), 0.0) for x in (first, second))
    spread = masked.std(first, mask) * masked.std(second, mask)
    safe = jnp.where(spread > 0, spread, 1.0)
    found = masked.mean(a * b, mask) / safe
    return jnp.where(spread > 0, jnp.clip(found, -1.0, 1.0), 0.0)


def ranks(values: Float[Array, "B"], mask: Bool[Array, "B"] | None = None) -> Float[Array, "B"]:
    """Ranks from 1, equal values sharing the mean of theirs; 0 where masked."""
    mask = jnp.ones(values.shape, bool) if mask is None else mask
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf))
    below = jnp.searchsorted(ordered, values, side="left")
    up_to = jnp.minimum(jnp.searchsorted(ordered, values, side="right"), jnp.sum(mask))
    return jnp.where(mask, 0.5 * (below + up_to + 1).astype(jnp.float32), 0.0)


def rank_correlation(
    first: Float[Array, "B"], second: Float[Array, "B"], mask: Bool[Array, "B"] | None = None
) -> Float[Array, ""]:
    """Spearman correlation; 0 where one of the two is constant."""
    return correlation(ranks(first, mask), ranks(second, mask), mask)


def partial_correlation(
    first: Float[Array, "B"],
    second: Float[Array, "B"],
    given: Float[Array, "B"],
    mask: Bool[Array, "B"] | None = None,
) -> Float[Array, ""]:
    """Correlation of what a linear function of `given` leaves of the two.

    Of reward and length given correctness, for example: longer answers may be better ones.
    """
    xy, xz, yz = (
        correlation(a, b, mask) for a, b in ((first, second), (first, given), (second, given))
    )
    left = (1.0 - jnp.square(xz)) * (1.0 - jnp.square(yz))
    enough = left > 1e-6
    found = (xy - xz * yz) / jnp.sqrt(jnp.where(enough, left, 1.0))
    return jnp.where(enough, jnp.clip(found, -1.0, 1.0), 0.0)


class LengthEffect(NamedTuple):
    """How pairwise accuracy depends on which answer is longer.

    Attributes:
      accuracy_longer: where the right answer is the longer one; ties of reward are losses.
      accuracy_shorter: where it is the shorter one.
      bias: the first less the second; 0 for a reward that does not care.
      correlation: of reward difference and difference in length.
      longer: number of pairs with the right answer longer.
      shorter: likewise.
    """

    accuracy_longer: Float[Array, ""]
    accuracy_shorter: Float[Array, ""]
    bias: Float[Array, ""]
    correlation: Float[Array, ""]
    longer: Float[Array, ""]
    shorter: Float[Array, ""]


def length_effect(
    margin: Float[Array, "B"],
    length_difference: Float[Array, "B"],
    mask: Bool[Array, "B"] | None = None,
) -> LengthEffect:
    """See `LengthEffect`.

    Args:
      margin: reward of the right answer less that of the wrong one.
      length_difference: length of the right answer less that of the wrong one.
      mask: True where there is a pair.
    """
    mask = jnp.ones(margin.shape, bool) if mask is None else mask
    longer, shorter = mask & (length_difference > 0), mask & (length_difference < 0)
    right = (margin > 0).astype(jnp.float32)
    high, low = masked.mean(right, longer), masked.mean(right, shorter)
    both = jnp.any(longer) & jnp.any(shorter)
    return LengthEffect(
        high, low, jnp.where(both, high - low, 0.0),
        correlation(margin, length_difference, mask),
        masked.count(longer), masked.count(shorter),
    )


class FormatEffect(NamedTuple):
    """How rewards depend on how the same answer is written.

    Attributes:
      spread: root mean variance over forms, over the deviation between answers; 0 is best.
      flips: share of answers that some form puts on the other side of `against`.
      answers: how many have two forms or more.
    """

    spread: Float[Array, ""]
    flips: Float[Array, ""]
    answers: Float[Array, ""]


def format_effect(
    rewards: Float[Array, "B F"],
    against: Float[Array, "B"],
    mask: Bool[Array, "B F"] | None = None,
) -> FormatEffect:
    """See `FormatEffect`.

    Args:
      rewards: of the `F` forms of each answer.
      against: reward of the answer with which the forms are compared.
      mask: True where there is a form.
    """
    mask = jnp.ones(rewards.shape, bool) if mask is None else mask
    mask = mask & jnp.isfinite(rewards) & jnp.isfinite(against)[:, None]
    several = masked.count(mask, axis=1) >= 2
    within = masked.mean(masked.var(rewards, mask, axis=1, ddof=1), several)
    between = masked.std(masked.mean(rewards, mask, axis=1), several, ddof=1)
    spread = jnp.sqrt(within) / jnp.where(between > 0, between, 1.0)
    above = rewards > against[:, None]
    same = jnp.all(above | ~mask, axis=1) | jnp.all(~above | ~mask, axis=1)
    flips = masked.mean((~same).astype(jnp.float32), several)
    return FormatEffect(jnp.where(between > 0, spread, 0.0), flips, masked.count(several))


class WordingEffect(NamedTuple):
    """Whether preferences outlive another wording of the prompt.

    Attributes:
      kept: share of the pairs, over wordings, that stay in their order, for each problem; a tie is
        an order of its own.
      right: share in the right order under the other wordings; a tie is not.
      known: whether the problem has such a pair.
    """

    kept: Float[Array, "B"]
    right: Float[Array, "B"]
    known: Bool[Array, "B"]


def wording_effect(margins: Float[Array, "B R"], reworded: Float[Array, "B W R"]) -> WordingEffect:
    """See `WordingEffect`.

    Args:
      margins: reward of the right answer less those of the `R` others; not finite is missing.
      reworded: the same under each of the `W` other wordings.
    """
    mask = jnp.isfinite(margins)[:, None] & jnp.isfinite(reworded)
    mean = lambda held: masked.mean(held.astype(jnp.float32), mask, axis=(1, 2))
    kept = jnp.sign(reworded) == jnp.sign(margins)[:, None]
    return WordingEffect(mean(kept), mean(reworded > 0), jnp.any(mask, axis=(1, 2)))
