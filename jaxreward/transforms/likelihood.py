"""Rewards from the policy's own probability of the reference answer, where nothing can verify.

Behind a response's reasoning the reference answer is put in place of the response's own
(`rewards.likelihoods.splice`) and scored; a reduction of the log-probabilities `l_t` of its `n`
tokens, with `S = sum l_t`, is the reward:

    kind             reward        its own gradient           source
    prob             exp S         exp(S) sum grad l_t        VeriFree
    mean_prob        mean exp l_t  (1/n) sum exp(l_t) grad    RLPR, arXiv 2506.18254
    geometric_mean   exp(S / n)    exp(S/n)/n sum grad l_t    RLPR, ablation
    log_prob         S             sum grad l_t               arXiv 2602.03979
    mean_log_prob    S / n         (1/n) sum grad l_t         likewise

`prob` falls to 0 with the length of the answer, and one surprising token ruins it; the mean
moves by a share of one token; the logarithms never vanish but are unbounded below.

The reward depends on the policy, so the gradient of its mean has a second part,
`E[grad R]`, which RLPR leaves out (arXiv 2602.03979, lemma in section 2). It is a weighted sum of
the gradients of `l_t`: transforms here write the weights as `aux["answer_weights"]`, and
`losses.answer_likelihood` turns them into a term of the loss.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreward import masked
from jaxreward.checks import check_choice
from jaxreward.transforms.base import RewardTransform, Spec, keep_true_rewards, stateless
from jaxreward.types import Signal

KINDS = ("prob", "mean_prob", "geometric_mean", "log_prob", "mean_log_prob")

LOGARITHMS = ("log_prob", "mean_log_prob")

INVALID = ("zero", "missing")


def reference_likelihood(
    kind: str, *, debias: bool = False, own_gradient: bool = False, invalid: str | None = None
) -> RewardTransform:
    """The likelihood of the reference answer as the reward.

    Reads `aux["answer_log_probs"]`, `aux["answer_mask"]` `[P, G, T]` and `aux["answer_valid"]`
    `[P, G]`; with `debias` also `aux["base_log_probs"]` and `aux["base_mask"]` `[P, A]`.

    Args:
      kind: one of `KINDS`.
      debias: subtract the same of the initial policy without any reasoning and clip to [0, 1]
        (RLPR section 3.2); for probabilities.
      own_gradient: also write `aux["answer_weights"]`, see the module.
      invalid: responses without an answer get reward "zero" (RLPR, VeriFree; default of
        probabilities), or are "missing", as a logarithm of nothing must be: 0 is its best value.

    Raises:
      ValueError: an unknown choice, `debias` of a logarithm, `debias` with `own_gradient`, or
        "zero" for a logarithm.
    """
    check_choice("kind", kind, KINDS)
    invalid = ("missing" if kind in LOGARITHMS else "zero") if invalid is None else invalid
    check_choice("invalid", invalid, INVALID)
    if kind in LOGARITHMS and invalid == "zero":
        raise ValueError(f"invalid = 'zero' with kind = {kind!r}; allowed is 'missing'")
    if debias and (kind in LOGARITHMS or own_gradient):
        raise ValueError(
            f"debias = True with kind = {kind!r}, own_gradient = {own_gradient}; allowed is a "
            "probability without its own gradient"
        )

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        signal = keep_true_rewards(signal)
        log_probs, inside = signal.aux["answer_log_probs"], signal.aux["answer_mask"]
        valid = _valid(signal)
        rewards = answer_reward(log_probs, inside & valid[..., None], kind)
        if debias:
            base = answer_reward(signal.aux["base_log_probs"], signal.aux["base_mask"], kind)
            rewards = jnp.clip(rewards - base[:, None], 0.0, 1.0)
        mask = signal.mask & valid if invalid == "missing" else signal.mask
        if own_gradient:
            weights = gradient_weights(log_probs, inside & valid[..., None], kind)
            signal = signal.with_aux(answer_weights=weights)
        given = signal.mask
        signal = signal.replace(rewards=jnp.where(mask, rewards, 0.0), mask=mask)
        return signal.with_metrics(
            likelihood__reward=masked.mean(rewards, mask),
            likelihood__valid=masked.mean(valid.astype(jnp.float32), given),
            likelihood__mean_log_prob=_mean_log_prob(signal),
        )

    base = ("aux/base_log_probs", "aux/base_mask") if debias else ()
    written = ("aux/answer_weights",) if own_gradient else ()
    written += ("mask",) if invalid == "missing" else ()
    return stateless(update, _spec("reference_likelihood", base, written))


def jepo_advantage(*, own_gradient: bool = True) -> RewardTransform:
    """JEPO: the group's log-mean-exp as reward, its leave-one-out gaps as advantages.

    Sets the rewards to `log P` of each sample and the advantages; see `jepo`.
    """

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        signal = keep_true_rewards(signal)
        log_probs, inside = signal.aux["answer_log_probs"], signal.aux["answer_mask"]
        valid = signal.mask & _valid(signal)
        total = answer_reward(log_probs, inside, "log_prob")
        found = jepo(total, valid)
        if own_gradient:
            weights = jnp.where(inside, found.weights[..., None], 0.0)
            signal = signal.with_aux(answer_weights=weights)
        signal = signal.replace(
            rewards=jnp.where(valid, total, 0.0), mask=valid, advantages=found.advantages
        )
        return signal.with_metrics(
            likelihood__reward=jnp.mean(found.rewards),
            likelihood__mean_log_prob=_mean_log_prob(signal),
        )

    written = ("mask", "advantages") + (("aux/answer_weights",) if own_gradient else ())
    return stateless(update, _spec("jepo_advantage", (), written))


def nover_reward() -> RewardTransform:
    """NOVER: ranks of the reasoning perplexity, efficiency and format; see `nover`.

    Reads `aux["answer_reference_log_probs"]`, of the KL reference, which stands for NOVER's proxy.
    A response without an answer gets 0.
    """

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        signal = keep_true_rewards(signal)
        inside = signal.aux["answer_mask"]
        scores = signal.aux["answer_reference_log_probs"]
        mean = answer_reward(scores, inside, "mean_log_prob")
        valid = signal.mask & _valid(signal)
        found = nover(mean, _reasoning_length(inside), valid)
        total = found.reasoning + found.efficiency + valid.astype(jnp.float32)
        signal = signal.replace(rewards=jnp.where(valid, total, 0.0))
        return signal.with_metrics(
            likelihood__reward=masked.mean(total, valid),
            likelihood__mean_log_prob=_mean_log_prob(signal),
        )

    return stateless(update, _spec("nover_reward", ("aux/answer_reference_log_probs",)))


def answer_reward(
    log_probs: Float[Array, "*rows T"], answer_mask: Bool[Array, "*rows T"], kind: str
) -> Float[Array, "*rows"]:
    """The reward of each response, float32; 0 where the mask is empty.

    Args:
      log_probs: natural logarithms of tokens.
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


def gradient_weights(
    log_probs: Float[Array, "*rows T"], answer_mask: Bool[Array, "*rows T"], kind: str
) -> Float[Array, "*rows T"]:
    """`w_t` with `grad R = sum_t w_t grad l_t`, float32, no gradient; 0 outside the mask.

    Arguments and errors as `answer_reward`.
    """
    value = lambda own: jnp.sum(answer_reward(own, answer_mask, kind))
    return jax.lax.stop_gradient(jax.grad(value)(log_probs.astype(jnp.float32)))


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


def _valid(signal: Signal) -> Bool[Array, "P G"]:
    return signal.aux["answer_valid"] > 0


def _mean_log_prob(signal: Signal) -> Float[Array, ""]:
    """Of the answers' tokens behind valid responses, in nats."""
    inside = signal.aux["answer_mask"] & _valid(signal)[..., None]
    return masked.mean(signal.aux["answer_log_probs"], inside)


def _reasoning_length(inside: Bool[Array, "P G T"]) -> Int[Array, "P G"]:
    """Tokens before the answer."""
    return jnp.argmax(inside, axis=-1).astype(jnp.int32)


def _spec(name: str, reads: tuple[str, ...] = (), writes: tuple[str, ...] = ()) -> Spec:
    common = ("aux/answer_log_probs", "aux/answer_mask", "aux/answer_valid")
    own = ("rewards", "aux/true_rewards", "metrics")
    return Spec(name, "calibration", common + reads, own + writes, reward_map="replaced")
