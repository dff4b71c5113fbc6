"""Guards that keep majority rewards from locking in a mistake (TTRL-Guard, arXiv 2605.19444).

Where a prompt's majority is wrong, rewarding it drives the right answers out within few visits. The
majority changes ("flips") while right answers still hold it; once it stays, nothing brings them
back. `vote_history` remembers each prompt's votes, and three pieces read them:

    chain(vote_history(num_prompts=N), majority_reward(), pause_locked(), grpo(),
          scale_by_flips(num_prompts=N), keep_minority())

Numbers and conditions are those of the released code (linhxkkkk/TTRL-Guard, `ttrl_utils.py`), which
compares the majority with that of the visit before. The abstract says that updates are scaled down
"as the flip rate declines"; the code does so while it is high, and where it has never been.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from jaxreward import masked
from jaxreward.checks import Number, check_number
from jaxreward.transforms import base
from jaxreward.transforms.base import RewardTransform, Spec, keep_true_rewards
from jaxreward.transforms.majority import majority_vote
from jaxreward.types import Signal

_HISTORY = ("aux/vote_flip_rate", "aux/vote_share", "aux/vote_visits", "aux/vote_competed")


class VoteState(NamedTuple):
    """What is remembered of one prompt.

    Attributes:
      visits: int32, those with an answer.
      last: uint32, the majority answer of the last of them.
      flips: float32 `[flip_window]`, 1 where the majority was another than the visit before.
      shares: float32 `[window]`, of the majority.
      competed: whether the flip rate has ever exceeded the threshold.
    """

    visits: Int[Array, ""]
    last: UInt[Array, ""]
    flips: Float[Array, "F"]
    shares: Float[Array, "W"]
    competed: Bool[Array, ""]


def vote_history(
    *, num_prompts: int, window: int = 5, flip_window: int = 1, threshold: Number = 0.3
) -> RewardTransform:
    """Says how a prompt's majority has behaved over its visits; changes no reward.

    Writes, `[P]`: `aux["vote_flip_rate"]`, float32 share of the last `flip_window` visits at which
    the majority changed (0 at the first visit; with 1, as released, it is 0 or 1);
    `aux["vote_share"]`, float32 mean share of the majority over the last `window` visits;
    `aux["vote_visits"]`, int32; `aux["vote_competed"]`, whether the flip rate has ever been above
    `threshold`. This visit counts. A visit without any answer leaves all as it was, and missing
    rewards do not vote.

    Metrics, means over the batch's prompts: `majority/flip_rate`, `majority/competed`.

    Args:
      num_prompts: size of the data set; state is kept by `aux["prompt_id"]`.
      window: visits behind the share, >= 1.
      flip_window: visits behind the flip rate, >= 1.
      threshold: in [0, 1); may be traced.

    Raises:
      ValueError: a number out of its range.
    """
    check_number("window", window, lambda x: x >= 1, ">= 1")
    check_number("flip_window", flip_window, lambda x: x >= 1, ">= 1")
    check_number("threshold", threshold, lambda x: (x >= 0) & (x < 1), "[0, 1)")

    def init() -> VoteState:
        return VoteState(
            jnp.zeros((), jnp.int32),
            jnp.zeros((), jnp.uint32),
            jnp.zeros((flip_window,), jnp.float32),
            jnp.zeros((window,), jnp.float32),
            jnp.zeros((), bool),
        )

    def update(key: jax.Array, signal: Signal, state: VoteState):
        del key
        vote = majority_vote(signal.aux["answer_id"], signal.mask)
        visited = _visit(state, vote.answer_id[0], vote.share[0], threshold)
        voted = vote.answer_id[0] != 0
        state = jax.tree.map(lambda new, old: jnp.where(voted, new, old), visited, state)
        rate = _recent(state.flips, state.visits)
        signal = signal.with_aux(
            vote_flip_rate=rate[None],
            vote_share=_recent(state.shares, state.visits)[None],
            vote_visits=state.visits[None],
            vote_competed=state.competed[None],
        )
        competed = state.competed.astype(jnp.float32)
        return signal.with_metrics(majority__flip_rate=rate, majority__competed=competed), state

    reads = ("mask", "aux/prompt_id", "aux/answer_id")
    spec = Spec("vote_history", "record", reads, _HISTORY + ("metrics",))
    return base.per_prompt(RewardTransform(init, update, spec), num_prompts)


def _visit(state: VoteState, answer_id: Array, share: Array, threshold: Number) -> VoteState:
    flipped = (state.visits > 0) & (answer_id != state.last)
    put = lambda table, value: table.at[state.visits % table.shape[0]].set(value)
    flips = put(state.flips, flipped.astype(jnp.float32))
    visits = state.visits + 1
    competed = state.competed | (_recent(flips, visits) > threshold)
    return VoteState(visits, answer_id, flips, put(state.shares, share), competed)


def _recent(table: Float[Array, "W"], visits: Int[Array, ""]) -> Float[Array, ""]:
    """The mean of what has been written into a ring of visits."""
    return masked.mean(table, jnp.arange(table.shape[0], dtype=jnp.int32) < visits)


def scale_by_flips(
    *,
    num_prompts: int,
    penalty: Number = 0.5,
    confident_penalty: Number = 0.3,
    threshold: Number = 0.3,
    confident_share: Number = 0.6,
    window: int = 5,
    floor: Number = 0.1,
) -> RewardTransform:
    """Scales the advantages of prompts down whose majority is not to be trusted.

    The weight is `1 - penalty * flip rate`; times `1 - confident_penalty` where the flip rate is
    above `threshold` although this visit's majority is above `confident_share`; times
    `1 - confident_penalty / 2` where the majority never competed in at least `window` visits and its
    mean share is above `confident_share`, a suspicion that is held at `window` visits of a prompt
    and then given up; at least `floor`. After the estimator: group standardisation would undo it.

    Reads what `vote_history` writes. Metric `majority/flip_weight`, its mean.

    Args:
      num_prompts: size of the data set; suspicions are counted by `aux["prompt_id"]`.
      penalty: in [0, 1]; may be traced, as all numbers but `window`.
      confident_penalty: in [0, 1].
      threshold: in [0, 1).
      confident_share: in [0, 1].
      window: >= 1.
      floor: in [0, 1].

    Raises:
      ValueError: a number out of its range; when traced, advantages that are not `[P, G]`.
    """
    unit = dict(
        penalty=penalty, confident_penalty=confident_penalty, confident_share=confident_share,
        floor=floor,
    )  # fmt: skip
    for name, value in unit.items():
        check_number(name, value, lambda x: (x >= 0) & (x <= 1), "[0, 1]")
    check_number("threshold", threshold, lambda x: (x >= 0) & (x < 1), "[0, 1)")
    check_number("window", window, lambda x: x >= 1, ">= 1")

    def update(key: jax.Array, signal: Signal, suspected: Int[Array, ""]):
        del key
        own = _outcomes(signal)
        rate, mean_share = signal.aux["vote_flip_rate"][0], signal.aux["vote_share"][0]
        share = majority_vote(signal.aux["answer_id"], signal.mask).share[0]
        weight = 1.0 - penalty * rate
        contradicts = (rate > threshold) & (share > confident_share)
        weight = jnp.where(contradicts, weight * (1.0 - confident_penalty), weight)
        never = ~signal.aux["vote_competed"][0] & (signal.aux["vote_visits"][0] >= window)
        suspicious = never & (mean_share > confident_share) & (suspected < window)
        weight = jnp.where(suspicious, weight * (1.0 - confident_penalty / 2.0), weight)
        weight = jnp.maximum(weight, floor).astype(jnp.float32)
        signal = signal.replace(advantages=own * weight)
        suspected = suspected + suspicious.astype(jnp.int32)
        return signal.with_metrics(majority__flip_weight=weight), suspected

    reads = ("advantages", "mask", "aux/prompt_id", "aux/answer_id") + _HISTORY
    spec = Spec("scale_by_flips", "selection", reads, ("advantages", "metrics"))
    init = lambda: jnp.zeros((), jnp.int32)
    return base.per_prompt(RewardTransform(init, update, spec), num_prompts)


def keep_minority(
    *, strength: Number = 0.3, threshold: Number = 0.3, min_share: Number = 0.25
) -> RewardTransform:
    """Raises the advantages of answers that many gave, though not the majority, while it flips.

    A sample whose answer is not the majority's and has at least `min_share` of the group (at least
    one vote, rounded down) gets on top of its advantage

        strength * min(flip rate / threshold, 1) * (votes / votes of all such answers) * mean |A|

    with the mean over the prompt's samples. In the released code this never acts, as nothing fills
    the votes that it reads; a twentieth of the bonus for samples without an answer is left out here.

    Reads what `vote_history` writes. Metric `majority/minority_kept`, share of prompts with a bonus.

    Args:
      strength: >= 0; may be traced, as the others.
      threshold: > 0, the flip rate from which the bonus is whole.
      min_share: in [0, 1].

    Raises:
      ValueError: a number out of its range; when traced, advantages that are not `[P, G]`.
    """
    check_number("strength", strength, lambda x: (x >= 0) & (x < float("inf")), ">= 0 and finite")
    check_number("threshold", threshold, lambda x: x > 0, "> 0")
    check_number("min_share", min_share, lambda x: (x >= 0) & (x <= 1), "[0, 1]")

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        own, answers = _outcomes(signal), signal.aux["answer_id"]
        votes = signal.mask & (answers != 0)
        same = (answers[:, :, None] == answers[:, None, :]) & votes[:, None, :]
        size = jnp.where(votes, jnp.sum(same, axis=-1, dtype=jnp.int32), 0).astype(jnp.float32)
        least = jnp.maximum(jnp.floor(answers.shape[1] * jnp.asarray(min_share, jnp.float32)), 1.0)
        leader = majority_vote(answers, signal.mask).answer_id[:, None]
        minority = votes & (answers != leader) & (size >= least)
        number = masked.count(minority, 1, keepdims=True)
        rate = jnp.minimum(signal.aux["vote_flip_rate"] / threshold, 1.0)[:, None]
        scale = masked.mean(jnp.abs(own), signal.mask, 1, keepdims=True)
        bonus = jnp.where(minority, strength * rate * scale * size / jnp.maximum(number, 1.0), 0.0)
        kept = jnp.any(bonus > 0, axis=1).astype(jnp.float32)
        signal = signal.replace(advantages=own + bonus.astype(jnp.float32))
        return signal.with_metrics(majority__minority_kept=jnp.mean(kept))

    reads = ("advantages", "mask", "aux/answer_id", "aux/vote_flip_rate")
    spec = Spec("keep_minority", "selection", reads, ("advantages", "metrics"))
    return base.stateless(update, spec)


def pause_locked(
    *,
    min_share: Number = 0.5,
    window: int = 5,
    skip: Number = 0.7,
    most: Number = 0.25,
    axis_name: str | None = None,
) -> RewardTransform:
    """Leaves out prompts whose majority competed once and is locked in now.

    A prompt is at risk if its majority has competed, it has been visited `window` times or more, and
    the mean share of its majority is above `min_share`. Each such prompt is missing with probability
    `skip`, but at most `most` of the batch's prompts (rounded down, at least one), those with the
    smallest draws. (`min_share` is that of the released scripts; the class there has 0.7.)

    Reads what `vote_history` writes. Metrics `majority/at_risk` and `majority/paused`, shares of
    prompts.

    Args:
      min_share: in [0, 1]; may be traced, as `skip` and `most`.
      window: >= 1.
      skip: in [0, 1]; 0 leaves out none.
      most: in [0, 1].
      axis_name: mapped axis that the prompts are split over.

    Raises:
      ValueError: a number out of its range.
    """
    for name, value in (("min_share", min_share), ("skip", skip), ("most", most)):
        check_number(name, value, lambda x: (x >= 0) & (x <= 1), "[0, 1]")
    check_number("window", window, lambda x: x >= 1, ">= 1")

    def update(key: jax.Array, signal: Signal) -> Signal:
        signal = keep_true_rewards(signal)
        visits, share = signal.aux["vote_visits"], signal.aux["vote_share"]
        risk = signal.aux["vote_competed"] & (visits >= window) & (share > min_share)
        # keyed by the prompt, so that neither order nor devices change a draw
        draw = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (), jnp.float32))
        draws = draw(signal.aux["prompt_id"])
        chosen = risk & (draws < skip)
        waiting = jnp.where(chosen, draws, 2.0)
        every = waiting
        if axis_name is not None:
            every = jax.lax.all_gather(waiting, axis_name, axis=0, tiled=True)
        before = jnp.sum(every[None, :] < waiting[:, None], axis=1, dtype=jnp.int32)
        cap = jnp.maximum(jnp.floor(every.shape[0] * jnp.asarray(most, jnp.float32)), 1.0)
        paused = chosen & (before.astype(jnp.float32) < cap)
        by_prompt = paused.reshape(paused.shape + (1,) * (signal.mask.ndim - 1))
        rewards = jnp.where(by_prompt, 0.0, signal.rewards)
        signal = signal.replace(rewards=rewards, mask=signal.mask & ~by_prompt)
        everywhere = jnp.ones(paused.shape, bool)
        mean = lambda x: masked.mean(x.astype(jnp.float32), everywhere, axis_name=axis_name)
        return signal.with_metrics(majority__at_risk=mean(risk), majority__paused=mean(paused))

    reads = ("rewards", "mask", "aux/vote_visits", "aux/vote_share", "aux/vote_competed")
    writes = ("rewards", "mask", "aux/true_rewards", "metrics")
    return base.stateless(update, Spec("pause_locked", "selection", reads, writes))


def _outcomes(signal: Signal) -> Float[Array, "P G"]:
    """The advantages, which must be one a sample."""
    if signal.advantages is None or signal.advantages.ndim != 2:
        shape = None if signal.advantages is None else signal.advantages.shape
        raise ValueError(f"advantages have shape {shape}; allowed is [P, G], before any credit")
    return signal.advantages
