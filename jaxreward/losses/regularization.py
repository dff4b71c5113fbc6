"""Keeping a policy near a reference, and keeping it random.

Write `d = log ref(a) - log pi(a)` for a sampled decision `a ~ pi`. The estimators of
`KL(pi || ref)` of one decision are (J. Schulman, "Approximating KL divergence", 2020)

    k1 = -d                  k2 = d^2 / 2                  k3 = e^d - 1 - d

and two questions about them have different answers:

    estimator   expected value                   expected gradient, as a term of a loss
    k1          KL(pi || ref), any sign          0: it does nothing but add variance
    k2          biased in the third order of d   that of KL(pi || ref): the right one
    k3          KL(pi || ref), never negative    that of the *other* KL(ref || pi)

All of this on-policy. As terms of a loss they are differentiated at fixed samples, so the
change of the sampling distribution is lost, and `E[grad k] = E[k'(d) grad d]` with
`grad d = -grad log pi`. Near the reference the two divergences agree to second order, which
is why k3 works in practice. To *report* a KL use k3 or `exact_kl`; to *descend* it, k2 or
`exact_kl`. Under samples of an older policy all three are biased.
"""

from typing import Any, Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxreward.checks import Number, check_choice, check_number
from jaxreward.types import Signal

KL_ESTIMATORS = ("k1", "k2", "k3")


def kl_estimate(
    log_probs: Float[Array, "*shape"],
    reference_log_probs: Float[Array, "*shape"],
    mask: Bool[Array, "*shape"],
    estimator: str = "k3",
) -> Float[Array, "*shape"]:
    """One-sample estimate of `KL(pi || ref)` of each decision, in nats; 0 where masked.

    Differentiable in both; the module docstring says what the gradients mean.

    Args:
      log_probs: `log pi` of decisions sampled from `pi`.
      reference_log_probs: `log ref` of the same decisions.
      mask: False for padding, whose log-probabilities may be anything.
      estimator: "k1", "k2" or "k3".

    Raises:
      ValueError: unknown estimator.
    """
    check_choice("kl_estimator", estimator, KL_ESTIMATORS)
    # Padding is selected away before the arithmetic, so that it cannot poison the gradient.
    log_probs = jnp.where(mask, log_probs.astype(jnp.float32), 0.0)
    reference_log_probs = jnp.where(mask, reference_log_probs.astype(jnp.float32), 0.0)
    difference = reference_log_probs - log_probs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return 0.5 * jnp.square(difference)
    return jnp.expm1(difference) - difference


def exact_kl(
    log_p: Float[Array, "*shape V"], log_q: Float[Array, "*shape V"]
) -> Float[Array, "*shape"]:
    """`KL(p || q) = sum_v p_v (log p_v - log q_v)` in nats, from normalised log-probabilities.

    Outcomes with `p_v = 0` add nothing, whatever `q_v` is; infinite where `q_v = 0 < p_v`.
    """
    possible = log_p > -jnp.inf
    log_p = jnp.where(possible, log_p.astype(jnp.float32), 0.0)
    log_q = jnp.where(possible, log_q.astype(jnp.float32), 0.0)
    return jnp.sum(jnp.where(possible, jnp.exp(log_p) * (log_p - log_q), 0.0), axis=-1)


def entropy(log_p: Float[Array, "*shape V"]) -> Float[Array, "*shape"]:
    """`-sum_v p_v log p_v` in nats, from normalised log-probabilities; 0 log 0 is 0."""
    possible = log_p > -jnp.inf
    log_p = jnp.where(possible, log_p.astype(jnp.float32), 0.0)
    return -jnp.sum(jnp.where(possible, jnp.exp(log_p) * log_p, 0.0), axis=-1)


def penalized(
    loss: Callable[[Any, Signal], tuple[jax.Array, dict[str, jax.Array]]],
    penalty: Callable[[Any, Signal], Float[Array, ""]],
    coefficient: Number,
    name: str,
) -> Callable[[Any, Signal], tuple[jax.Array, dict[str, jax.Array]]]:
    """A loss plus `coefficient` times a penalty, which is recorded as metric `name`.

    Args:
      loss: `(params, signal) -> (float32 scalar, metrics)`.
      penalty: `(params, signal) -> float32 scalar`, for example the mean exact KL to a start.
      coefficient: finite; may be traced.
      name: of the metric, `room/what`.

    Raises:
      ValueError: a known coefficient is not finite.
    """
    check_number("coefficient", coefficient, lambda x: abs(x) < float("inf"), "a finite number")

    def total(params: Any, signal: Signal) -> tuple[jax.Array, dict[str, jax.Array]]:
        value, metrics = loss(params, signal)
        size = penalty(params, signal)
        return value + coefficient * size, {**metrics, name: size}

    return total
