"""Distributions whose denoiser is known: mixtures of normal distributions on a line."""

import jax
import jax.numpy as jnp

from jaxreward import schedules
from jaxreward.policies.flow import Estimate

SINGLE = ((0.7,), (0.4,), (1.0,))
MIXTURE = ((-1.2, 0.9), (0.3, 0.5), (0.35, 0.65))
"""Means, deviations, weights."""


def denoiser(schedule, mixture):
    """`E[clean | x_t]` and `E[noise | x_t]`, for `x [B]`."""
    means, stds, weights = (jnp.array(part, jnp.float32)[None, :] for part in mixture)

    def denoise(x, t):
        alpha, sigma = schedules.levels(schedule, t, x[:, None])
        alpha, sigma = jnp.reshape(alpha, (-1, 1)), jnp.reshape(sigma, (-1, 1))
        variance = (alpha * stds) ** 2 + sigma**2
        off = x[:, None] - alpha * means
        logits = jnp.log(weights) - 0.5 * off**2 / variance - 0.5 * jnp.log(variance)
        share = jax.nn.softmax(logits, axis=1)
        clean = jnp.sum(share * (means + alpha * stds**2 * off / variance), axis=1)
        return Estimate(clean, jnp.sum(share * sigma * off / variance, axis=1))

    return denoise


def data(key, mixture, count):
    """Exact samples `[count]`."""
    means, stds, weights = (jnp.array(part, jnp.float32) for part in mixture)
    of_part, of_noise = jax.random.split(key)
    part = jax.random.choice(of_part, len(means), (count,), p=weights)
    return means[part] + stds[part] * jax.random.normal(of_noise, (count,))
