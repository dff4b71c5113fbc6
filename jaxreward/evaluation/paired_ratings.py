"""Two systems rated side by side: who wins among the pairs that are decided."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreward import masked


def decided_win_rate(
    first: Float[Array, "B"], second: Float[Array, "B"], weights: Float[Array, "B"] | None = None
) -> Float[Array, ""]:
    """`wins / (wins + losses)` of the first; ties are dropped, 1/2 if there is nothing else.

    Args:
      first: ratings of the first system's answers.
      second: of the second's, to the same prompts.
      weights: >= 0, how often each pair counts; default 1.
    """
    weights = jnp.ones(first.shape, jnp.float32) if weights is None else weights
    wins, losses = masked.sum(weights, first > second), masked.sum(weights, first < second)
    decided = wins + losses
    return jnp.where(decided > 0, wins / jnp.where(decided > 0, decided, 1.0), 0.5)
