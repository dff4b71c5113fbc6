"""Where steps end, and from their scores to one reward of the whole; process reward models."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreward import masked
from jaxreward.checks import check_choice

AGGREGATIONS = (
    "min", "max", "prod", "geometric_mean", "mean", "mean_logit", "mean_odd", "last"
)
_EDGE = 1e-6  # scores are kept this far from 0 and 1 where odds are taken
_LEAST = 1e-30


def step_ends(
    tokens: Int[Array, "B T"], spans: Int[Array, "B 2"], separators: tuple[int, ...]
) -> Int[Array, "B T"]:
    """Index of the last token of each step where that token stands, -1 elsewhere.

    A step ends with the separator after it; what follows the last separator is a step as well,
    and ends where the response does. A separator at the beginning, or after another one, ends
    none. This is the `ends` of `networks.heads.StepScores`.

    Args:
      tokens: texts.
      spans: first token of each response, and the one after its last.
      separators: tokens that end a step, one or more.
    """
    place = jnp.arange(tokens.shape[1], dtype=spans.dtype)[None, :]
    inside = (spans[:, :1] <= place) & (place < spans[:, 1:])
    splits = inside & jnp.isin(tokens, jnp.asarray(separators, tokens.dtype))
    content = inside & ~splits
    after_content = jnp.pad(content[:, :-1], ((0, 0), (1, 0)))
    ends = (splits & after_content) | (content & (place == spans[:, 1:] - 1))
    return jnp.where(ends, place, -1)


def aggregate_steps(
    scores: Float[Array, "*B S"],
    mask: Bool[Array, "*B S"],
    how: str,
    *,
    empty: float = 0.5,
) -> Float[Array, "*B"]:
    """One score of a solution from those of its steps (arXiv 2410.01729).

    "prod" falls with every step, "geometric_mean" does not: report both.

    Args:
      scores: probabilities that a step is right.
      mask: True where there is a step.
      how: one of `AGGREGATIONS`; "mean_logit" is the sigmoid of the mean log-odds, "mean_odd"
        the mean odds.
      empty: the score of a solution without steps.
    """
    check_choice("how", how, AGGREGATIONS)
    return jnp.where(jnp.any(mask, axis=-1), _aggregate(scores, mask, how), empty)


def _aggregate(scores: Array, mask: Array, how: str) -> Array:
    if how in ("min", "max"):
        reduce = masked.minimum if how == "min" else masked.maximum
        return reduce(scores, mask, axis=-1)
    if how == "prod":
        return jnp.prod(jnp.where(mask, scores, 1.0), axis=-1)
    if how == "geometric_mean":
        return jnp.exp(masked.mean(jnp.log(jnp.maximum(scores, _LEAST)), mask, axis=-1))
    if how == "mean":
        return masked.mean(scores, mask, axis=-1)
    if how == "last":
        last = scores.shape[-1] - 1 - jnp.argmax(jnp.flip(mask, axis=-1), axis=-1)
        return jnp.take_along_axis(scores, last[..., None], axis=-1)[..., 0]
    inner = jnp.clip(scores, _EDGE, 1.0 - _EDGE)
    if how == "mean_odd":
        return masked.mean(inner / (1.0 - inner), mask, axis=-1)
    log_odds = jnp.log(inner) - jnp.log1p(-inner)
    return jax.nn.sigmoid(masked.mean(log_odds, mask, axis=-1))
