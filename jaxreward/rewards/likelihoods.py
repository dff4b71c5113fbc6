"""The reference answer in place of a response's own, to be scored by a policy.

A response is cut after its last separator and the reference answer is put there; one
teacher-forced pass gives the log-probabilities of the answer's tokens, which
`transforms.likelihood` makes a reward of (RLPR, arXiv 2506.18254; arXiv 2602.03979).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxreward.types import Trajectories


class Spliced(NamedTuple):
    """Responses with the reference answer in place of their own.

    Attributes:
      trajectories: `[P, G, S + A]`: what stands before the answer, then the answer; the mask
        covers both. Their `log_probs` are 0: nobody sampled them.
      answer_mask: True at the tokens of the reference answer.
      valid: whether the response has a separator before its end of text.
    """

    trajectories: Trajectories
    answer_mask: Bool[Array, "P G T"]
    valid: Bool[Array, "P G"]


def splice(
    trajectories: Trajectories,
    answer_tokens: Int[Array, "P A"],
    answer_lengths: Int[Array, "P"],
    separator: int,
    *,
    once: bool = False,
) -> Spliced:
    """Replaces what follows the last `separator` of each response by the reference answer.

    Ids are joined, not texts: right where the separator is a token whatever follows it, as the
    end of a reasoning tag and every character of a character tokenizer are.

    Args:
      trajectories: with int32 token ids `[P, G, S]` as actions.
      answer_tokens: ids of the references, anything after their length.
      answer_lengths: ids of each, its end of text included, >= 1.
      separator: id that ends the reasoning.
      once: a response with more than one separator is not valid.

    Returns:
      The spliced trajectories. A response that is not valid keeps no token.
    """
    tokens, mask = trajectories.actions, trajectories.mask
    width, extra = tokens.shape[-1], answer_tokens.shape[-1]
    column = _columns(width)
    marks = (tokens == separator) & mask
    kept = jnp.max(jnp.where(marks, column, -1), axis=-1) + 1
    number = jnp.sum(marks, axis=-1, dtype=jnp.int32)
    valid = (number == 1) if once else (number > 0)
    lengths = jnp.broadcast_to(answer_lengths[:, None], kept.shape).astype(jnp.int32)
    column = _columns(width + extra)
    start, end = kept[..., None], (kept + lengths)[..., None]
    answers = jnp.broadcast_to(answer_tokens[:, None, :], (*kept.shape, extra))
    place = jnp.clip(column - start, 0, extra - 1)
    inside = (column >= start) & (column < end) & valid[..., None]
    own = jnp.pad(tokens, ((0, 0), (0, 0), (0, extra)))
    answer = jnp.take_along_axis(answers.astype(tokens.dtype), place, axis=-1)
    joined = jnp.where(inside, answer, jnp.where(column < start, own, 0))
    covered = (column < end) & valid[..., None]
    joined = jnp.where(covered, joined, 0)
    zeros = jnp.zeros(joined.shape, jnp.float32)
    spliced = Trajectories(trajectories.prompts, joined, joined, zeros, covered)
    return Spliced(spliced, inside, valid)


def _columns(width: int) -> Int[Array, "1 1 width"]:
    return jnp.arange(width, dtype=jnp.int32)[None, None, :]
