"""The part of a likelihood reward's gradient that goes through the reward itself."""

from typing import Any, Callable

import jax
import jax.numpy as jnp

from jaxreward.checks import Number, check_number
from jaxreward.losses.policy import policy_objective
from jaxreward.types import Policy, Signal


def policy_and_answer_objective(
    policy: Policy, *, answer_coefficient: Number = 1.0, **options: Any
) -> Callable[[Any, Signal], tuple[jax.Array, dict[str, jax.Array]]]:
    """`losses.policy.policy_objective` and the answer's own likelihood.

        policy objective - answer_coefficient * mean over samples of sum_t w_t log pi(a_t)

    where `a` is the reference answer behind the sample's reasoning, `aux["spliced"]`
    (`rewards.likelihoods.Spliced.trajectories`), and `w_t` are `aux["answer_weights"]`
    `[P, G, T]`, which are not differentiated. With `w_t` from `transforms.likelihood` this is
    the gradient of the mean reward at the given reasoning (arXiv 2602.03979, lemma in section 2);
    the two parts have the lemma's proportion where the policy objective sums over tokens
    (`normalize="constant", max_length=1`).

    Args:
      policy: what is trained.
      answer_coefficient: >= 0; may be traced. 1 is the lemma's.
      **options: of `policy_objective`.

    Metrics: those of `policy_objective`, and `likelihood/answer_log_prob`, the mean
    log-probability of the answers' weighted tokens.

    Raises:
      ValueError: a negative coefficient, or what `policy_objective` refuses.
    """
    check_number("answer_coefficient", answer_coefficient, lambda x: x >= 0, ">= 0")
    objective = policy_objective(policy, **options)

    def loss_fn(params: Any, signal: Signal) -> tuple[jax.Array, dict[str, jax.Array]]:
        value, metrics = objective(params, signal)
        weights = jax.lax.stop_gradient(signal.aux["answer_weights"].astype(jnp.float32))
        log_probs = policy.log_prob(params, signal.aux["spliced"]).log_probs
        counts = weights != 0
        log_probs = jnp.where(counts, log_probs, 0.0)
        term = jnp.mean(jnp.sum(weights * log_probs, axis=-1))
        number = jnp.maximum(jnp.sum(counts, dtype=jnp.int32), 1).astype(jnp.float32)
        metrics = {**metrics, "likelihood/answer_log_prob": jnp.sum(log_probs) / number}
        return value - answer_coefficient * term, metrics

    return loss_fn
