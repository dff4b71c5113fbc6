"""Scores from generated rubrics, averaged over samples and over similar users (P-GenRM).

A generative reward model writes, for one user and one query, a rubric and the scores of the
candidates (arXiv 2602.12116). At test time its score is a mean over many generations for the user
(individual), plus the mean over generations from the histories of similar users (prototype).
A neighbour counts with a generation for the *current* query, never with a stored score.
"""

import json
import math
import re
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxreward import masked
from jaxreward.checks import Number, check_number

START, END = "<scores>", "</scores>"
"""Markers around the JSON of the final scores."""

_LONGEST = 10_000  # characters of JSON that are read


def parse_scores(
    text: str, candidates: int = 2, *, start: str = START, end: str = END
) -> list[float | None]:
    """The final scores of the candidates: the last JSON list or object between the markers.

    Of a list the last `candidates` entries count, of an object the last values. What is no
    finite number is None; without markers or valid JSON all are None. Never raises on text.

    Args:
      text: a generation.
      candidates: >= 1.
      start: marker before the JSON.
      end: marker after it.

    Raises:
      ValueError: `candidates` < 1.
    """
    check_number("candidates", candidates, lambda n: n >= 1, ">= 1")
    found = re.findall(re.escape(start) + "((?:(?!" + re.escape(start) + ").)*?)" + re.escape(end),
                       text, re.DOTALL)  # fmt: skip
    nothing: list[float | None] = [None] * candidates
    if not found or len(found[-1]) > _LONGEST:
        return nothing
    try:
        value = json.loads(found[-1])
    except (ValueError, RecursionError):
        return nothing
    items = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(items, list) or len(items) < candidates:
        return nothing
    return [_number(item) for item in items[-candidates:]]


def _number(item: object) -> float | None:
    if isinstance(item, bool) or not isinstance(item, (int, float)):
        return None
    try:
        return float(item) if math.isfinite(item) else None
    except OverflowError:
        return None


def weighted_score(
    weights: Float[Array, "*B K"], scores: Float[Array, "*B K"]
) -> Float[Array, "*B"]:
    """`s = sum_k w_k v_k`: criterion scores under the weights of a rubric."""
    return jnp.sum(weights * scores, axis=-1)


def composite_reward(
    persona: Float[Array, "*B"],
    right: Bool[Array, "*B"],
    valid: Bool[Array, "*B"] | None = None,
    *,
    alpha: Number = 0.5,
    beta: Number = 1.0,
    format_error: Number = -0.1,
) -> Float[Array, "*B"]:
    """`alpha PR + beta OR`, or `format_error` where no scores could be parsed (paper, eq. 3).

    Args:
      persona: PR, how well the chain covers the user's criteria, in [0, 1].
      right: OR, the chosen candidate scores higher, see `outcome`.
      valid: whether both scores could be parsed; default all.
      alpha: weight of PR; 0 in the last stage.
      beta: weight of OR.
      format_error: reward of a chain without scores.
    """
    reward = alpha * persona + beta * right.astype(jnp.float32)
    return reward if valid is None else jnp.where(valid, reward, jnp.float32(format_error))


def outcome(chosen: Float[Array, "*B"], rejected: Float[Array, "*B"]) -> Bool[Array, "*B"]:
    """Whether the chosen candidate scores higher; a tie is wrong."""
    return chosen > rejected


class Scaled(NamedTuple):
    """Scores after test-time scaling.

    Attributes:
      scores: of the candidates, 0 where missing.
      valid: whether a candidate has any score.
      choice: the candidate of the highest score, of equal ones the first.
    """

    scores: Float[Array, "*B C"]
    valid: Bool[Array, "*B C"]
    choice: Array


def scale_scores(
    individual: Float[Array, "*B M C"],
    prototype: Float[Array, "*B N C"],
    individual_valid: Bool[Array, "*B M C"] | None = None,
    prototype_valid: Bool[Array, "*B N C"] | None = None,
    *,
    weights: tuple[Number, Number] | None = None,
    whole_samples: bool = False,
) -> Scaled:
    """Means over the own and over the neighbours' generations, joined (paper, eq. 8 and 9).

    Either part may be empty (`m` or `n` = 0) or without a valid score; the other one is then
    all there is.

    Args:
      individual: scores of the candidates in M samples for the user.
      prototype: in N samples from neighbours' histories.
      individual_valid: what could be parsed; default all.
      prototype_valid: likewise.
      weights: None, the paper's sum; two weights >= 0, the released code's weighted mean over
        the parts that a candidate has (0.5 and 0.5 there). With None a candidate that lacks a
        part is compared by sums of fewer parts.
      whole_samples: drop a sample of which one candidate has no score. The released code does
        not, so that candidates may be averaged over different samples.

    Raises:
      ValueError: a known weight < 0.
    """
    own, own_there = _mean(individual, individual_valid, whole_samples)
    near, near_there = _mean(prototype, prototype_valid, whole_samples)
    parts = jnp.stack([own, near]), jnp.stack([own_there, near_there])
    factors = jnp.ones(2)
    if weights is not None:
        for weight in weights:
            check_number("weights", weight, lambda w: w >= 0, ">= 0")
        factors = jnp.asarray(weights, jnp.float32)
    factors = factors.reshape((2,) + (1,) * own.ndim) * parts[1].astype(jnp.float32)
    total = jnp.sum(factors * parts[0], axis=0)
    if weights is not None:
        present = jnp.sum(factors, axis=0)
        total = total / jnp.where(present > 0, present, 1.0)
    valid = own_there | near_there
    choice = jnp.argmax(jnp.where(valid, total, -jnp.inf), axis=-1)
    return Scaled(total, valid, choice)


def _mean(scores: Array, valid: Array | None, whole: bool) -> tuple[Array, Array]:
    """Mean over the samples, and whether there is one."""
    there = jnp.ones(scores.shape, bool) if valid is None else valid
    if whole:
        there = there & jnp.all(there, axis=-1, keepdims=True)
    return masked.mean(scores, there, axis=-2), jnp.any(there, axis=-2)
