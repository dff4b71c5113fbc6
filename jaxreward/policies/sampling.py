"""From logits to a token: temperature, top-k and top-p, and the log-probability they give."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxreward.policies.gumbel import gumbel

GREEDY = 0.0
"""The temperature that stands for the most probable token."""
COLDEST = 1e-6
"""The least other: below it the rounding of a logit, over it, is as large as a whole nat."""


def processed_log_probs(
    logits: Float[Array, "*batch V"], *, temperature=1.0, top_k: int = 0, top_p: float = 1.0
) -> Float[Array, "*batch V"]:
    """Log-probabilities of the distribution that is sampled from; -inf where filtered out.

    Temperature first, then top-k, then top-p over what is left, each renormalised.

    Args:
      logits: float32.
      temperature: at least `COLDEST`; may be traced.
      top_k: keep the `top_k` most probable tokens; 0 keeps all.
      top_p: keep the fewest most probable tokens whose probabilities sum to `top_p`, at least
        one; 1 keeps all.

    Tokens as probable as the last one kept, to 1e-5 nats, are kept too: the compiler may round
    a log-probability differently where it is compared.
    """
    log_probs = jax.nn.log_softmax(logits / jnp.asarray(temperature, logits.dtype), axis=-1)
    if top_k:
        border = jax.lax.top_k(log_probs, min(top_k, logits.shape[-1]))[0][..., -1:]
        log_probs = _keep(log_probs, border)
    if top_p < 1.0:
        ordered = -jnp.sort(-log_probs, axis=-1)
        before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
        inside = jnp.where(before < top_p, ordered, jnp.inf)
        log_probs = _keep(log_probs, jnp.min(inside, axis=-1, keepdims=True))
    return log_probs


def _keep(log_probs: Array, border: Array) -> Array:
    kept = log_probs >= border - _TIE
    return jax.nn.log_softmax(jnp.where(kept, log_probs, -jnp.inf), axis=-1)


_TIE = 1e-5


def sample(
    key: jax.Array, log_probs: Float[Array, "*batch V"]
) -> tuple[Int[Array, "*batch"], Float[Array, "*batch"]]:
    """A token of each row, int32, and its log-probability (Gumbel maximum)."""
    noisy = log_probs + gumbel(key, log_probs.shape)
    # Two reductions instead of argmax, which CPUs run one number at a time. The border is a
    # rounding error wide, because the compiler may add again where it compares.
    border = jnp.max(noisy, axis=-1, keepdims=True) - _ROUNDING
    index = jax.lax.broadcasted_iota(jnp.int32, noisy.shape, noisy.ndim - 1)
    last = noisy.shape[-1] - 1
    return _pick(log_probs, jnp.min(jnp.where(noisy >= border, index, last), axis=-1))


_ROUNDING = 4e-6


def most_probable(
    log_probs: Float[Array, "*batch V"],
) -> tuple[Int[Array, "*batch"], Float[Array, "*batch"]]:
    """The first most probable token of each row, int32, and its log-probability."""
    return _pick(log_probs, jnp.argmax(log_probs, axis=-1))


def _pick(log_probs: Array, tokens: Array) -> tuple[Array, Array]:
    picked = jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]
    return tokens.astype(jnp.int32), picked


def is_greedy(temperature) -> bool:
    """Whether a temperature stands for the most probable token; a traced one never does."""
    return not isinstance(temperature, jax.core.Tracer) and bool(temperature == GREEDY)


def check(temperature, top_k: int, top_p: float) -> None:
    """Raises ValueError for sampling settings that mean nothing."""
    known = not isinstance(temperature, jax.core.Tracer)
    if known and temperature != GREEDY and not COLDEST <= temperature < float("inf"):
        raise ValueError(
            f"temperature = {temperature}; allowed is >= {COLDEST:g} and finite, or 0 for greedy"
        )
    if top_k < 0:
        raise ValueError(f"top_k = {top_k}; allowed is >= 1, or 0 for no filter")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p}; allowed is (0, 1]")
