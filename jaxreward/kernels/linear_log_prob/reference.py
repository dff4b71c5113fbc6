"""The oracle: materialises the logits, follows the formula, differentiates itself."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Outputs = tuple[Float[Array, "N"], Float[Array, "N"], Float[Array, "N"]]


def linear_log_prob(
    hidden: Float[Array, "N D"],
    weight: Float[Array, "D V"],
    targets: Int[Array, "N"],
    bias: Float[Array, "V"] | None = None,
    *,
    temperature=1.0,
    logit_softcap: float | None = None,
) -> Outputs:
    """See `api.linear_log_prob`. Works in float64 where the inputs are."""
    accumulate = jnp.float64 if hidden.dtype == jnp.float64 else jnp.float32
    logits = jnp.dot(hidden, weight.astype(hidden.dtype), preferred_element_type=accumulate)
    if bias is not None:
        logits = logits + bias.astype(accumulate)[None, :]
    if logit_softcap is not None:
        logits = logit_softcap * jnp.tanh(logits / logit_softcap)
    logits = logits / jnp.asarray(temperature, accumulate)
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    log_probs = logits - log_normalizer[:, None]
    probs = jnp.exp(log_probs)
    entropy = -jnp.sum(jnp.where(probs > 0, probs * log_probs, 0.0), axis=-1)
    safe = jnp.clip(targets, 0, weight.shape[1] - 1)
    log_prob = jnp.take_along_axis(log_probs, safe[:, None], axis=-1)[:, 0]
    valid = targets >= 0
    zero = jnp.zeros((), accumulate)
    return (
        jnp.where(valid, log_prob, zero),
        jnp.where(valid, entropy, zero),
        jnp.where(valid, log_normalizer, zero),
    )
