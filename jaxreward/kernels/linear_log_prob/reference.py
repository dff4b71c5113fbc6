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
    vocabulary: int | Int[Array, ""] | None = None,
) -> Outputs:
    """See `api.linear_log_prob`. Works in float64 where the inputs are."""
    logits = _logits(hidden, weight, bias, temperature, logit_softcap, vocabulary)
    top = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    shifted = logits - top[:, None]
    log_total = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
    log_probs = shifted - log_total[:, None]
    safe_log_probs = jnp.where(log_probs > -jnp.inf, log_probs, 0.0)  # 0 log 0 = 0
    entropy = -jnp.sum(jnp.exp(log_probs) * safe_log_probs, axis=-1)
    columns = weight.shape[1] if vocabulary is None else vocabulary
    safe = jnp.clip(targets, 0, weight.shape[1] - 1)
    log_prob = jnp.take_along_axis(log_probs, safe[:, None], axis=-1)[:, 0]
    log_prob = jnp.where(targets < columns, log_prob, -jnp.inf)
    entropy = jnp.maximum(entropy, 0.0)
    results = (log_prob, entropy, top + log_total)
    return tuple(jnp.where(targets >= 0, x, jnp.zeros_like(x)) for x in results)


def _logits(hidden, weight, bias, temperature, logit_softcap, vocabulary):
    accumulate = jnp.float64 if hidden.dtype == jnp.float64 else jnp.float32
    precision = None if hidden.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST
    logits = jnp.dot(
        hidden,
        weight.astype(hidden.dtype),
        precision=precision,
        preferred_element_type=accumulate,
    )
    if bias is not None:
        logits = logits + bias.astype(accumulate)[None, :]
    if logit_softcap is not None:
        logits = logit_softcap * jnp.tanh(logits / logit_softcap)
    logits = logits / jnp.asarray(temperature, accumulate)
    if vocabulary is not None:
        real = jnp.arange(weight.shape[1]) < vocabulary
        logits = jnp.where(real[None, :], logits, -jnp.inf)
    return logits
