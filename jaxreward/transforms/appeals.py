"""Which verdicts to send to a trusted verifier, and what it answers in a simulation.

`select_appeals` runs between sampling and the host; the host then fills `aux["recheck"]`.
Where the true rewards are known, `simulated_appeals` does both inside the chain.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxreward.channel import check_rate
from jaxreward.checks import Number
from jaxreward.transforms.base import RewardTransform, Spec, stateless
from jaxreward.types import Signal


def select_appeals(
    key: jax.Array,
    signal: Signal,
    *,
    negative_share: Number,
    positive_share: Number = 0.0,
    budget: int = 0,
) -> Bool[Array, "P G"]:
    """A random share of the rejected, and of the accepted, samples.

    Args:
      key: draws depend on it and on prompt ids.
      signal: outcome rewards `[P, G]`, observed.
      negative_share: probability that a rejected sample is appealed.
      positive_share: probability that an accepted one is.
      budget: at most this many appeals, chosen at random among those drawn; 0 for no limit.
        Within a verdict the chosen ones stay a random sample, which is all that the estimator
        needs.
    """
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(signal.aux["prompt_id"])
    shape = signal.rewards.shape[1:]
    draws = jax.vmap(lambda k: jax.random.uniform(k, (2,) + shape, jnp.float32))(keys)
    share = jnp.where(signal.rewards > 0.5, positive_share, negative_share)
    chosen = signal.mask & (draws[:, 0] < share)
    if not budget or budget >= chosen.size:
        return chosen
    priority = jnp.where(chosen, draws[:, 1], jnp.inf)
    border = jax.lax.top_k(-priority.reshape(-1), budget)[0][-1]
    return chosen & (-priority >= border)


def simulated_appeals(
    *,
    negative_share: Number,
    positive_share: Number = 0.0,
    budget: int = 0,
    judge_false_positive: Number = 0.0,
    judge_false_negative: Number = 0.0,
) -> RewardTransform:
    """Appeals decided by `aux["true_rewards"]`, through a judge that may err.

    Sets `aux["appealed"]` (bool `[P, G]`) and `aux["recheck"]` (float32, NaN where the true
    reward is missing).

    Raises:
      ValueError: a rate or share is not a probability.
    """
    rates = {
        "negative_share": negative_share,
        "positive_share": positive_share,
        "judge_false_positive": judge_false_positive,
        "judge_false_negative": judge_false_negative,
    }
    for name, value in rates.items():
        check_rate(name, value)

    def update(key: jax.Array, signal: Signal) -> Signal:
        draw_key, judge_key = jax.random.split(key)
        appealed = select_appeals(
            draw_key,
            signal,
            negative_share=negative_share,
            positive_share=positive_share,
            budget=budget,
        )
        true = signal.aux["true_rewards"]
        keys = jax.vmap(lambda i: jax.random.fold_in(judge_key, i))(signal.aux["prompt_id"])
        uniform = jax.vmap(lambda k: jax.random.uniform(k, true.shape[1:], jnp.float32))(keys)
        accepts = jnp.where(true > 0.5, 1.0 - judge_false_negative, judge_false_positive)
        verdict = jnp.where(jnp.isfinite(true), (uniform < accepts).astype(jnp.float32), jnp.nan)
        return signal.with_aux(appealed=appealed, recheck=verdict)

    reads = ("rewards", "mask", "aux/true_rewards")
    writes = ("aux/appealed", "aux/recheck")
    return stateless(update, Spec("simulated_appeals", "rates", reads, writes))
