"""One state and a few tokens: where REINFORCE with each form of the KL term ends.

The optimum is known, `ref exp((1 - alpha) r / alpha)`, and so is how far a policy is from it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreward.evaluation.fixed_point import regularized_optimum
from jaxreward.losses import kl_reinforce
from jaxreward.losses.regularization import exact_kl

TOKENS, BATCH, STEPS, ALPHA, RATE = 6, 16, 2000, 0.3, 0.1
FORMS = ("exact", "sampled", "printed")


def penalty(form: str, log_p: Float[Array, "V"], log_q: Float[Array, "V"], token: Array) -> Array:
    """What stands for the KL: "exact", the "sampled" log-ratio, or the "printed" sum of ratios."""
    if form == "exact":
        return jnp.broadcast_to(exact_kl(log_p, log_q), token.shape)
    if form == "sampled":
        return (log_p - log_q)[token]
    return jnp.broadcast_to(jnp.sum(log_p - log_q), token.shape)


def compare(key: jax.Array) -> dict[str, dict[str, Any]]:
    """Total variation between the mean of the last half's policies and the optimum, by form."""
    keys = jax.random.split(key, 3)
    reference = jax.nn.log_softmax(jax.random.normal(keys[0], (TOKENS,)))
    rewards = jax.random.normal(keys[1], (TOKENS,)) * 0.5
    optimum = regularized_optimum(jnp.exp(reference), rewards, ALPHA / (1.0 - ALPHA))

    def run(form: str) -> Array:
        def objective(logits: Array, token: Array) -> Array:
            log_p = jax.nn.log_softmax(logits)
            mean = jax.lax.stop_gradient(jnp.sum(jnp.exp(log_p) * rewards))
            column = lambda x: x[:, None]
            parts = log_p[token], rewards[token], jnp.broadcast_to(mean, token.shape)
            kl = penalty(form, log_p, reference, token)
            mask = jnp.ones((BATCH, 1), bool)
            return kl_reinforce.mixed_objective(
                *map(column, parts), column(kl), mask, alpha=ALPHA
            )

        def step(logits: Array, i: Array):
            token = jax.random.categorical(jax.random.fold_in(keys[2], i), logits, shape=(BATCH,))
            logits = logits + RATE * jax.grad(objective)(logits, token)
            return logits, jax.nn.softmax(logits)

        _, seen = jax.lax.scan(step, reference, jnp.arange(STEPS))
        return 0.5 * jnp.sum(jnp.abs(jnp.mean(seen[STEPS // 2 :], axis=0) - optimum))

    return {f"one_token_{form}": {"off_optimum": run(form)} for form in FORMS}
