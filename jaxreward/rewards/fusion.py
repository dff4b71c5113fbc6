"""RewardFusion: a reward averaged over what is nearly the same text (arXiv 2309.16155)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxreward.checks import Number, check_number


def fuse_rewards(
    own: Float[Array, "B"],
    similarity: Float[Array, "B N"],
    neighbours: Float[Array, "N"],
    allowed: Bool[Array, "B N"] | None = None,
    *,
    top_k: int = 5,
    threshold: Number = 0.9,
) -> Float[Array, "B"]:
    """Mean reward of a text and of its nearest neighbours, weighted by similarity.

    The text itself has similarity 1. No gradient passes: this is for inference. A neighbour whose
    reward or similarity is not finite is passed over, as if it were not in the index; a text
    without a reward of its own, NaN, has none.

    Args:
      own: reward of the text.
      similarity: cosine of the embeddings of the text and of those in the index.
      neighbours: rewards of the texts in the index.
      allowed: False where a text of the index must not be used: it repeats another one or the
        text itself, or belongs to what is evaluated; default all.
      top_k: neighbours at most, >= 1.
      threshold: least similarity, > 0.
    """
    check_number("top_k", top_k, lambda k: k >= 1, ">= 1")
    check_number("threshold", threshold, lambda x: x > 0, "> 0")
    usable = (similarity >= threshold) & jnp.isfinite(neighbours)[None, :]
    usable = usable if allowed is None else usable & allowed
    ranked = jnp.where(usable, similarity, -jnp.inf)
    nearest, index = jax.lax.top_k(ranked, min(top_k, similarity.shape[1]))
    weights = jnp.where(jnp.isfinite(nearest), nearest, 0.0)
    rewards = jnp.where(jnp.isfinite(nearest), neighbours[index], 0.0)
    total = own + jnp.sum(weights * rewards, axis=-1)
    return jax.lax.stop_gradient(total / (1.0 + jnp.sum(weights, axis=-1)))
