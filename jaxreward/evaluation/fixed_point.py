"""Where a KL-regularised policy ends up on noisy rewards, in closed form.

The policy that maximises `E[r] - beta KL(pi || reference)` is `pi ~ reference exp(r/beta)`.
On observed rewards, whose mean is `false_positive + J r`, it is `reference exp(J r/beta)`:
*noise acts like the larger KL coefficient `beta / J`*, false positives alone only shift,
and backward correction restores the clean optimum. A baseline changes nothing, except that
the group mean's factor `1 - 1/n` acts like `beta / (1 - 1/n)`.

With the group's standard deviation divided out the strength `D(p)` of the reward depends on
the policy's own success rate `p`, so the optimum is the solution of
`logit p = logit p_reference + D(p) / beta`.
"""

from typing import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreward import channel as channels
from jaxreward.channel import Channel


def regularized_optimum(
    reference: Float[Array, "*batch V"], rewards: Float[Array, "*batch V"], kl_coefficient
) -> Float[Array, "*batch V"]:
    """Probabilities `~ reference exp(rewards / kl_coefficient)`.

    Args:
      reference: probabilities of the reference policy.
      rewards: expected reward of each action.
      kl_coefficient: `beta` > 0.
    """
    return jax.nn.softmax(jnp.log(reference) + rewards / kl_coefficient, axis=-1)


def noisy_optimum(
    reference: Float[Array, "V"],
    true_rewards: Float[Array, "V"],
    kl_coefficient,
    channel: Channel,
) -> Float[Array, "V"]:
    """`regularized_optimum` on what a noisy verifier pays on average.

    Args:
      reference: probabilities of the reference policy.
      true_rewards: per action, in {0, 1}.
      kl_coefficient: `beta` > 0.
      channel: binary; without leading axes, or `[V]`, one per action.
    """
    seen = channels.observed_mean(true_rewards, channel)
    return regularized_optimum(reference, seen, kl_coefficient)


def restored_optimum(
    reference: Float[Array, "V"],
    true_rewards: Float[Array, "V"],
    kl_coefficient,
    channel: Channel,
    rates: Channel,
) -> Float[Array, "V"]:
    """`noisy_optimum` after backward correction with `rates`.

    The clean optimum where `rates` are the channel. With one average channel for actions
    whose channels differ it is not, and can be worse than no correction.
    """
    seen = channels.observed_mean(true_rewards, channel)
    return regularized_optimum(reference, channels.correct(seen, rates), kl_coefficient)


def effective_kl_coefficient(kl_coefficient, channel: Channel) -> Float[Array, "*batch"]:
    """`beta / J`: the coefficient at which clean rewards have the noisy optimum."""
    return kl_coefficient / channel.determinant


def population_gap(
    success_rate: Float[Array, "*batch"], channel: Channel, *, power=0.0, epsilon=0.0
) -> Float[Array, "*batch"]:
    """`D(p)` of GRPO with a large group: `J / sqrt(q (1-q) + epsilon)` times `kappa^power`.

    Args:
      success_rate: true success rate `p`.
      channel: binary, without leading axes.
      power: 0 for noisy GRPO, -1 corrected (then it is the clean one), +1 minimum error.
      epsilon: added to both variances.
    """
    seen = channels.observed_mean(success_rate, channel)
    clean_std = jnp.sqrt(success_rate * (1.0 - success_rate) + epsilon)
    noisy_std = jnp.sqrt(seen * (1.0 - seen) + epsilon)
    determinant = channel.determinant
    return determinant / noisy_std * jnp.power(determinant * clean_std / noisy_std, power)


def success_rate_fixed_point(
    reference_rate: Float[Array, "*batch"],
    kl_coefficient,
    gap: Callable[[Float[Array, "*batch"]], Float[Array, "*batch"]],
    *,
    iterations: int = 500,
) -> Float[Array, "*batch"]:
    """Solves `logit p = logit reference_rate + gap(p) / kl_coefficient` by iteration.

    Starts at the reference and repeats `p <- sigmoid(...)`, as mirror descent would; where
    there are several solutions this is the one it reaches. A rare success can make that jump to
    and fro for ever (a gap that falls steeply); smaller steps from there end between.

    Args:
      reference_rate: success rate of the reference policy, in (0, 1).
      kl_coefficient: `beta` > 0.
      gap: `D(p)`, for example `population_gap` or `enumeration.class_gap`.
      iterations: number of repetitions.
    """
    start = jnp.log(reference_rate) - jnp.log1p(-reference_rate)

    def target(logit):
        return start + gap(jax.nn.sigmoid(logit)) / kl_coefficient

    def smaller(_, logit):
        wanted = target(logit)
        both = jnp.isfinite(wanted) & jnp.isfinite(logit)
        return jnp.where(both, logit + _STEP * (wanted - logit), wanted)

    logit = jax.lax.fori_loop(0, iterations, lambda _, logit: target(logit), start)
    return jax.nn.sigmoid(jax.lax.fori_loop(0, iterations, smaller, logit))


_STEP = 0.05
