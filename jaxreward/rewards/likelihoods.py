"""Rewards from the policy's own probability of the reference answer, where nothing can verify.

A response is cut after its last separator and the reference answer is put in its place; one
teacher-forced pass scores the answer's tokens, and a reduction of their log-probabilities
`l_t` (with `S = sum l_t`, `n` tokens) is the reward:

    kind                reward           source
    prob                exp S            VeriFree
    mean_prob           mean exp l_t     RLPR, arXiv 2506.18254 section 3
    geometric_mean      exp(S / n)       RLPR, ablation
    log_prob            S                arXiv 2602.03979 section 2
    mean_log_prob       S / n            likewise

`prob` falls to 0 with the length of the answer, and one surprising token ruins it; the mean
moves by a share of one token; the logarithms never vanish but are unbounded below.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreward import masked
from jaxreward.checks import check_choice
from jaxreward.types import Trajectories

KINDS = ("prob", "mean_prob", "geometric_mean", "log_prob", "mean_log_prob")


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


def answer_reward(
    log_probs: Float[Array, "*rows T"], answer_mask: Bool[Array, "*rows T"], kind: str
) -> Float[Array, "*rows"]:
    """The reward of each response, float32; 0 where the mask is empty.

    Args:
      log_probs: of the tokens of `splice`, natural logarithm.
      answer_mask: True at those of the reference answer.
      kind: one of `KINDS`.

    Raises:
      ValueError: unknown kind.
    """
    check_choice("kind", kind, KINDS)
    log_probs = jnp.where(answer_mask, log_probs.astype(jnp.float32), 0.0)
    total, number = jnp.sum(log_probs, axis=-1), jnp.sum(answer_mask, axis=-1, dtype=jnp.int32)
    mean = total / jnp.maximum(number, 1).astype(jnp.float32)
    if kind == "mean_prob":
        return masked.mean(jnp.exp(log_probs), answer_mask, -1)
    found = {
        "prob": jnp.exp(total),
        "geometric_mean": jnp.exp(mean),
        "log_prob": total,
        "mean_log_prob": mean,
    }[kind]
    return jnp.where(number > 0, found, 0.0)


class Jepo(NamedTuple):
    """The group reward of JEPO and what its gradient is made of.

    Attributes:
      rewards: `log((1/m) sum_j P_j)` over the `m` valid samples of the group.
      advantages: that minus the same without the sample; 0 where it is not valid or alone.
      weights: `P_i / sum_j P_j`, of the gradient of each `log P_i`; 0 where not valid.
    """

    rewards: Float[Array, "P"]
    advantages: Float[Array, "P G"]
    weights: Float[Array, "P G"]


def jepo(answer_log_probs: Float[Array, "P G"], valid: Bool[Array, "P G"]) -> Jepo:
    """Log-mean-exp of the answer's probability over a group (Tang et al. 2025).

    Worked in logarithms: long answers have probabilities that float32 cannot hold.

    Args:
      answer_log_probs: `S` of each sample.
      valid: samples that count.
    """
    scores = jnp.where(valid, answer_log_probs.astype(jnp.float32), -jnp.inf)
    number = jnp.sum(valid, axis=-1, dtype=jnp.int32)
    rewards = _log_mean_exp(scores, number)
    group = scores.shape[1]
    other = ~jnp.eye(group, dtype=bool)[None]
    without = _log_mean_exp(jnp.where(other, scores[:, None, :], -jnp.inf), number[:, None] - 1)
    counts = valid & (number[:, None] > 1)
    weights = jax.nn.softmax(jnp.where(valid, scores, -1e30), axis=-1)
    return Jepo(
        jnp.where(number > 0, rewards, 0.0),
        jnp.where(counts, rewards[:, None] - without, 0.0),
        jnp.where(valid, weights, 0.0),
    )


class Nover(NamedTuple):
    """What NOVER rewards. See `nover`."""

    perplexity: Float[Array, "P G"]
    reasoning: Float[Array, "P G"]
    efficiency: Float[Array, "P G"]


def nover(
    mean_log_probs: Float[Array, "P G"],
    reasoning_lengths: Int[Array, "P G"],
    valid: Bool[Array, "P G"],
) -> Nover:
    """Reasoning perplexity, ranked within the group (NOVER, arXiv 2505.16022, released code).

    Perplexity is `exp(-(S/n) / N)` with `N = max(1, 1 + log10(reasoning tokens))`. Among the
    `m` valid samples the one with rank `r` from the lowest earns `(m - r) / m`; ties share the
    better rank. Efficiency is the share of the other valid samples that are strictly longer
    and strictly more perplexed.

    Args:
      mean_log_probs: `S / n` under the reference.
      reasoning_lengths: tokens of the reasoning.
      valid: samples that count; the others have 0 for both rewards.
    """
    longest = jnp.maximum(reasoning_lengths, 1).astype(jnp.float32)
    scale = jnp.maximum(1.0, 1.0 + jnp.log10(longest))
    perplexity = jnp.exp(-mean_log_probs.astype(jnp.float32) / scale)
    pair = valid[:, :, None] & valid[:, None, :]
    worse = perplexity[:, None, :] > perplexity[:, :, None]
    longer = reasoning_lengths[:, None, :] > reasoning_lengths[:, :, None]
    number = jnp.sum(valid, axis=-1, dtype=jnp.int32)[:, None]
    rank = jnp.sum(pair & (perplexity[:, None, :] < perplexity[:, :, None]), -1, dtype=jnp.int32)
    beaten = jnp.sum(pair & worse & longer, axis=-1, dtype=jnp.int32).astype(jnp.float32)
    share = (number - rank).astype(jnp.float32) / jnp.maximum(number, 1).astype(jnp.float32)
    others = jnp.maximum(number - 1, 1).astype(jnp.float32)
    return Nover(
        perplexity, jnp.where(valid, share, 0.0), jnp.where(valid, beaten / others, 0.0)
    )


def _log_mean_exp(scores: Array, number: Array) -> Array:
    """Over the last axis; -inf where nothing counts."""
    total = jax.nn.logsumexp(scores, axis=-1)
    return total - jnp.log(jnp.maximum(number, 1).astype(jnp.float32))


def _columns(width: int) -> Int[Array, "1 1 width"]:
    return jnp.arange(width, dtype=jnp.int32)[None, None, :]
