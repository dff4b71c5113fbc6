"""Which verdicts to send to a trusted verifier, and what it answers in a simulation.

`select_appeals` runs between sampling and the host; the host then fills `aux["recheck"]`.
Where the true rewards are known, `simulated_appeals` does both inside the chain. The rates
are estimated by `rates.appeals`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxreward.channel import check_rate
from jaxreward.checks import Number, check_number
from jaxreward.transforms.base import RewardTransform, Spec, stateless
from jaxreward.types import Signal


def select_appeals(
    key: jax.Array,
    signal: Signal,
    *,
    negative_share: Number,
    positive_share: Number = 0.0,
    budget: int = 0,
    axis_name=None,
) -> tuple[Bool[Array, "P G *S"], Float[Array, "P G *S"]]:
    """A random share of the rejected, and of the accepted, samples.

    Args:
      key: draws depend on it and on prompt ids.
      signal: observed binary rewards.
      negative_share: probability that a rejected sample is appealed.
      positive_share: probability that an accepted one is.
      budget: at most this many appeals, chosen at random among those drawn; 0 for no limit.
      axis_name: mapped axis that splits the prompts, so that the budget is that of all.

    Returns:
      Whether a sample is appealed, and the probability that it was: its share, times the
      part of the drawn that the budget allows. Both are False or 0 where a reward is missing.
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(signal.aux["prompt_id"])
    shape = (2,) + signal.rewards.shape[1:]
    draws = jax.vmap(lambda k: jax.random.uniform(k, shape, jnp.float32))(keys)
    share = jnp.where(signal.rewards > 0.5, positive_share, negative_share)
    share = jnp.where(signal.mask, share, 0.0).astype(jnp.float32)
    drawn = signal.mask & (draws[:, 0] < share)
    if not budget:
        return drawn, share
    rank = _rank(jnp.where(drawn, draws[:, 1], jnp.inf), axis_name)
    total = jnp.sum(drawn, dtype=jnp.float32)
    total = total if axis_name is None else jax.lax.psum(total, axis_name)
    return drawn & (rank < budget), share * jnp.minimum(budget / jnp.maximum(total, 1.0), 1.0)


def _rank(priority: Float[Array, "*shape"], axis_name) -> Array:
    """Place of each entry in ascending order, over all devices of the axis."""
    own = priority.reshape(-1)
    if axis_name is None:
        return jnp.argsort(jnp.argsort(own)).reshape(priority.shape)
    everyone = jax.lax.all_gather(own, axis_name, tiled=True)
    start = jax.lax.axis_index(axis_name) * own.size
    rank = jnp.argsort(jnp.argsort(everyone))
    return jax.lax.dynamic_slice_in_dim(rank, start, own.size).reshape(priority.shape)


def simulated_appeals(
    *,
    negative_share: Number,
    positive_share: Number = 0.0,
    budget: int = 0,
    judge_false_positive: Number = 0.0,
    judge_false_negative: Number = 0.0,
    judge_failure: Number = 0.0,
    axis_name=None,
) -> RewardTransform:
    """Appeals decided by `aux["true_rewards"]`, through a judge that may err or fail.

    Sets `aux["appealed"]` (bool), `aux["recheck"]` (float32 0 or 1; NaN where not appealed,
    where the judge fails and where the true reward is missing) and
    `aux["appeal_probability"]` (float32), each of the shape of the rewards.

    Raises:
      ValueError: a rate or share is not a probability, `budget` < 0.
    """
    rates = {
        "negative_share": negative_share,
        "positive_share": positive_share,
        "judge_false_positive": judge_false_positive,
        "judge_false_negative": judge_false_negative,
        "judge_failure": judge_failure,
    }
    for name, value in rates.items():
        check_rate(name, value)
    check_number("budget", budget, lambda value: value >= 0, ">= 0; 0 is no limit")

    def update(key: jax.Array, signal: Signal) -> Signal:
        draw_key, judge_key = jax.random.split(key)
        appealed, probability = select_appeals(
            draw_key,
            signal,
            negative_share=negative_share,
            positive_share=positive_share,
            budget=budget,
            axis_name=axis_name,
        )
        true = signal.aux["true_rewards"]
        keys = jax.vmap(lambda i: jax.random.fold_in(judge_key, i))(signal.aux["prompt_id"])
        shape = (2,) + true.shape[1:]
        uniform = jax.vmap(lambda k: jax.random.uniform(k, shape, jnp.float32))(keys)
        accepts = jnp.where(true > 0.5, 1.0 - judge_false_negative, judge_false_positive)
        answered = appealed & jnp.isfinite(true) & (uniform[:, 1] >= judge_failure)
        verdict = (uniform[:, 0] < accepts).astype(jnp.float32)
        recheck = jnp.where(answered, verdict, jnp.nan)
        return signal.with_aux(appealed=appealed, recheck=recheck, appeal_probability=probability)

    reads = ("rewards", "mask", "aux/true_rewards")
    writes = ("aux/appealed", "aux/recheck", "aux/appeal_probability")
    return stateless(update, Spec("simulated_appeals", "rates", reads, writes))
