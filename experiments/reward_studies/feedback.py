"""Items with a graded gold reward, of which those that are liked get feedback more often."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from experiments.reward_studies import toy_mlp
from jaxreward.channel import Channel
from jaxreward.tasks import preference_draws
from jaxreward.types import Feedback

REFERENCE = 20000
"""Items that the levels of a gold reward are cut on."""


class Gold(NamedTuple):
    """A random network and the scores at which its levels begin."""

    params: toy_mlp.Params
    cuts: Float[Array, "M"]


class Items(NamedTuple):
    """A sample of the population.

    Attributes:
      x: features.
      level: of the gold reward, from 0.
      liked: 1 where the level is above the middle one.
      propensity: P(observed).
    """

    x: Float[Array, "N D"]
    level: Int[Array, "N"]
    liked: Float[Array, "N"]
    propensity: Float[Array, "N"]


def make_gold(key: jax.Array, features: int, width: int, levels: int = 5) -> Gold:
    """A gold reward whose levels are equally frequent."""
    keys = jax.random.split(key)
    params = toy_mlp.init(keys[0], (features, width, width, 1))
    scores = toy_mlp.apply(params, jax.random.normal(keys[1], (REFERENCE, features)))[:, 0]
    inner = jnp.arange(1, levels, dtype=jnp.float32) / levels
    return Gold(params, jnp.quantile(scores, inner))


def sample_items(
    key: jax.Array, gold: Gold, count: int, *, decay: Array | float, mean: float
) -> Items:
    """Items with standard normal features."""
    features, highest = gold.params[0][0].shape[0], gold.cuts.shape[0]
    x = jax.random.normal(key, (count, features))
    level = jnp.searchsorted(gold.cuts, toy_mlp.apply(gold.params, x)[:, 0]).astype(jnp.int32)
    liked = (2 * level > highest).astype(jnp.float32)
    below = (highest - level).astype(jnp.float32)
    propensity = preference_draws.feedback_propensity(below, decay=decay, mean=mean)
    return Items(x, level, liked, propensity)


def observe(key: jax.Array, items: Items, channel: Channel) -> Feedback:
    """Feedback on some items, with flipped labels; labels of the others are NaN."""
    keys = jax.random.split(key)
    rate = jnp.where(items.liked == 1, channel.false_negative, channel.false_positive)
    labels = preference_draws.turn_round(keys[1], items.liked, rate)
    labels, observed = preference_draws.hide(keys[0], labels, items.propensity)
    return Feedback(items.x, labels, observed, items.propensity, jnp.zeros_like(items.level))
