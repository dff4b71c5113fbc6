"""A policy whose parameters hold an older copy of themselves."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxreward.checks import Number, check_number
from jaxreward.types import LinearScores, Policy, StepScores, Trajectories

LEARNED, LAGGED = "learned", "lagged"


def start(params: Any) -> dict[str, Any]:
    """Parameters and their copy."""
    return {LEARNED: params, LAGGED: params}


def with_lagged(policy: Policy) -> Policy:
    """The policy over `{"learned", "lagged"}`; `Policy.lagged` gives the older one.

    Args:
      policy: samples and scores with what is learned.
    """

    def sample(params: Any, key: jax.Array, prompts: Any, group_size: int) -> Trajectories:
        return policy.sample(params[LEARNED], key, prompts, group_size)

    def log_prob(params: Any, trajectories: Trajectories) -> StepScores:
        return policy.log_prob(params[LEARNED], trajectories)

    def linear(params: Any, trajectories: Trajectories) -> LinearScores:
        return policy.linear(params[LEARNED], trajectories)

    return Policy(
        lambda key: start(policy.init(key)),
        sample,
        log_prob,
        linear if policy.linear else None,
        lambda params: start(params[LAGGED]),
    )


def keep_lagged(
    optimizer: optax.GradientTransformation, every: Number
) -> optax.GradientTransformation:
    """Optimizes `params["learned"]` and copies it to `params["lagged"]` after `every` updates.

    The copy is right up to the rounding of one addition.

    Args:
      optimizer: of what is learned.
      every: >= 1, updates between two copies; 1 keeps the copy up to date. May be traced.

    Raises:
      ValueError: `every` < 1.
    """
    check_number("every", every, lambda value: value >= 1, ">= 1")

    def init(params: Any):
        return optimizer.init(params[LEARNED]), jnp.zeros((), jnp.int32)

    def update(grads: Any, state: Any, params: Any):
        inner, count = state
        updates, inner = optimizer.update(grads[LEARNED], inner, params[LEARNED])
        count = count + 1
        due = count % jnp.asarray(every).astype(jnp.int32) == 0
        move = lambda new, step, old: jnp.where(due, new + step - old, jnp.zeros_like(old))
        lagged = jax.tree.map(move, params[LEARNED], updates, params[LAGGED])
        return {LEARNED: updates, LAGGED: lagged}, (inner, count)

    return optax.GradientTransformation(init, update)


def adam(
    learning_rate: Number, *, every: Number = 1, **options: Any
) -> optax.GradientTransformation:
    """`optax.adam` with `keep_lagged`."""
    return keep_lagged(optax.adam(learning_rate, **options), every)
