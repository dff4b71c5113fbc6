"""Random finite MDPs and rewards, as in the benchmark of arXiv 2309.15257."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreward.checks import Number, check_number
from jaxreward.evaluation.finite_mdp import FiniteMDP
from jaxreward.evaluation.reward_distances import shape


def random_mdp(
    key: jax.Array,
    states: int,
    actions: int,
    discount: Number,
    *,
    threshold: Number = 1.0,
    absent_logit: Number = -math.inf,
    dtype: Any = jnp.float32,
) -> FiniteMDP:
    """Few transitions are possible; episodes start anywhere.

    Args:
      key: of the transitions, whose logits are standard normal.
      states: >= 1.
      actions: >= 1.
      discount: in [0, 1).
      threshold: transitions with logits up to it get `absent_logit`, unless all from a state
        and action do, which then are equally likely; 1 in the paper below 50 states.
      absent_logit: -inf for impossible ones. The paper has -20; a sparse reward that is 0 on
        all others then decides the order of policies by transitions that never happen.
      dtype: float32, or float64 where jax enables it.
    """
    check_number("states", states, lambda n: n >= 1, ">= 1")
    check_number("actions", actions, lambda n: n >= 1, ">= 1")
    check_number("discount", discount, lambda x: (x >= 0) & (x < 1), "[0, 1)")
    logits = jax.random.normal(key, (states, actions, states), dtype)
    possible = logits > threshold
    some = jnp.any(possible, axis=-1, keepdims=True)
    logits = jnp.where(possible, logits, jnp.where(some, absent_logit, 0.0))
    transitions = jax.nn.softmax(logits, axis=-1)
    return FiniteMDP(transitions, jnp.full((states,), 1.0 / states, dtype), discount)


def random_reward(key: jax.Array, mdp: FiniteMDP) -> Float[Array, "S A S"]:
    """Standard normal; then perhaps sparse, scaled, shifted, shaped, by independent draws.

    With probability 0.2 only entries above 3 stay; 0.7 scaled by up to 10; 0.3 shifted by up to
    10; 0.5 shaped by a normal potential scaled by up to 10.
    """
    draw = jax.random.split(key, 9)
    dtype, states = mdp.transitions.dtype, mdp.transitions.shape[0]
    chance = lambda k, p: jax.random.bernoulli(k, p)
    up_to_ten = lambda k: jax.random.uniform(k, (), dtype, 0.0, 10.0)
    reward = jax.random.normal(draw[0], mdp.transitions.shape, dtype)
    reward = jnp.where(chance(draw[1], 0.2) & (reward <= 3.0), 0.0, reward)
    reward = reward * jnp.where(chance(draw[2], 0.7), up_to_ten(draw[3]), 1.0)
    reward = reward + jnp.where(chance(draw[4], 0.3), up_to_ten(draw[5]), 0.0)
    potential = jax.random.normal(draw[6], (states,), dtype) * up_to_ten(draw[7])
    return jnp.where(chance(draw[8], 0.5), shape(reward, potential, mdp.discount), reward)


def between(
    first: Float[Array, "S A S"], second: Float[Array, "S A S"], steps: int
) -> Float[Array, "steps S A S"]:
    """`first + (second - first) i / steps` for `i` from 1 to `steps`."""
    share = jnp.arange(1, steps + 1, dtype=first.dtype) / steps
    return first[None] + share[:, None, None, None] * (second - first)[None]
