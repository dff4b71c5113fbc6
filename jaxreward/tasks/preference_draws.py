"""How preferences go wrong: one function of a key for each defect.

`preference_worlds` puts them together for its builder; studies whose gold reward is of another form
draw their labels with the same functions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxreward.checks import Number

Rate = Number | Float[Array, "..."]
"""A probability for all, or one for each."""


def turn_round(key: jax.Array, labels: Shaped[Array, "*B"], rate: Rate) -> Shaped[Array, "*B"]:
    """Labels, each turned round with probability `rate`; at the same key a higher rate turns more.

    Args:
      key: of the draw.
      labels: bool, or numbers in [0, 1], of which 1 becomes 0 and a tie, 1/2, stays.
      rate: in [0, 1].
    """
    turned = jax.random.bernoulli(key, rate, labels.shape)
    if labels.dtype == bool:
        return labels ^ turned
    return jnp.where(turned, 1 - labels, labels)


def another(
    key: jax.Array, values: Int[Array, "*B"], choices: int, rate: Rate
) -> Int[Array, "*B"]:
    """Values in [0, `choices`), each replaced with probability `rate`, by any other alike."""
    of_where, of_shift = jax.random.split(key)
    shift = jax.random.randint(of_shift, values.shape, 1, max(choices, 2))
    wrong = jax.random.bernoulli(of_where, rate, values.shape)
    return jnp.where(wrong, (values + shift) % choices, values)


def verdict(lead: Float[Array, "B"], tie_zone: Number = 0.0) -> Float[Array, "B"]:
    """1 for the first item, 0 for the second, 1/2 where the lead is closer to 0 than `tie_zone`."""
    return jnp.where(jnp.abs(lead) < tie_zone, 0.5, (lead > 0).astype(jnp.float32))


def hide(
    key: jax.Array, labels: Float[Array, "B"], propensity: Float[Array, "B"]
) -> tuple[Float[Array, "B"], Bool[Array, "B"]]:
    """Labels that are NaN unless observed, which they are with probability `propensity`."""
    observed = jax.random.bernoulli(key, propensity)
    return jnp.where(observed, labels, jnp.nan), observed


def feedback_propensity(
    below: Float[Array, "B"], *, decay: Number, mean: Number
) -> Float[Array, "B"]:
    """`min(1, k decay^below)`, with `k` such that the mean over these is `mean`.

    CausalRM's simulation (arXiv 2603.18736); less than `mean` on average where the bound 1 is met.

    Args:
      below: how far from the strongest feeling, >= 0.
      decay: in (0, 1].
      mean: in (0, 1].
    """
    relative = jnp.power(jnp.asarray(decay, jnp.float32), below)
    return jnp.minimum(relative * (mean / jnp.mean(relative)), 1.0)


def own_tastes(key: jax.Array, users: int, aspects: int) -> Float[Array, "U A"]:
    """What users' tastes differ by from their group's, `N(0, I / A)`: of length about 1."""
    return jax.random.normal(key, (users, aspects)) / aspects**0.5


def unit(x: Float[Array, "*n A"]) -> Float[Array, "*n A"]:
    """Rows of length 1."""
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def preferred_first(won: Bool[Array, "B"], first: Any, second: Any) -> tuple[Any, Any]:
    """The labelled winners and losers of pairs, trees with leading axis `[B]`.

    Args:
      won: whether the first is labelled better.
      first: of each pair.
      second: likewise.
    """
    wide = lambda x: won.reshape(won.shape + (1,) * (x.ndim - 1))
    pick = lambda a, b: jnp.where(wide(a), a, b)
    return jax.tree.map(pick, first, second), jax.tree.map(pick, second, first)
