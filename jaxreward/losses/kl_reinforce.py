"""REINFORCE mixed with the exact KL divergence from a reference (MusicRL, arXiv 2402.04229).

    J = (1 - alpha) sum_t ln pi(a_t) stop(R_t - V_t) - alpha sum_t KL(pi(. | s_t) || ref(. | s_t))

Strictly on-policy: no ratio, no clip, no normalisation of advantages, no discount. The KL term is
`regularization.exact_kl`, over the whole vocabulary at every visited state. The equation as printed
sums `ln (pi / ref)` without the weights `pi`, which may be negative and is no divergence.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxreward import masked
from jaxreward.checks import Number, check_number


def reward_to_go(rewards: Float[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B T"]:
    """`R_t = sum_{i >= t} r_i`, undiscounted; a reward at the last token reaches every token."""
    rewards = jnp.where(mask, rewards, 0.0)
    return jnp.where(mask, jnp.cumsum(rewards[:, ::-1], axis=1)[:, ::-1], 0.0)


def mixed_objective(
    log_probs: Float[Array, "B T"],
    returns: Float[Array, "B T"],
    baseline: Float[Array, "B T"],
    kl: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    alpha: Number,
) -> Float[Array, ""]:
    """`J`, to be maximised: summed over tokens, mean over sequences.

    Args:
      log_probs: of the sampled tokens under the policy that sampled them.
      returns: `R_t`, see `reward_to_go`; no gradient.
      baseline: `V_t`; no gradient.
      kl: exact, of the policy from the reference at each state; differentiated.
      mask: False for padding.
      alpha: in [0, 1]; 0 is REINFORCE, 1 the return to the reference.

    Raises:
      ValueError: a known `alpha` is out of range.
    """
    check_number("alpha", alpha, lambda x: (x >= 0) & (x <= 1), "[0, 1]")
    advantages = jax.lax.stop_gradient(returns - baseline)
    value = (1.0 - alpha) * log_probs * advantages - alpha * kl
    return jnp.mean(masked.sum(jnp.where(mask, value, 0.0), mask, axis=1))


def baseline_loss(
    baseline: Float[Array, "B T"], returns: Float[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, ""]:
    """`sum_t (R_t - V_t)^2`, mean over sequences; the returns have no gradient."""
    error = jnp.where(mask, jax.lax.stop_gradient(returns) - baseline, 0.0)
    return jnp.mean(masked.sum(jnp.square(error), mask, axis=1))
