"""Policies over a few actions, small enough to enumerate: one decision, `S = 1`.

Both come with a function from parameters and prompts to the whole distribution, for exact
expectations and exact KL: `table_log_distribution` and `linear_log_distribution`.
"""

from typing import Any, Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxreward.losses.regularization import entropy
from jaxreward.types import Policy, StepScores, Trajectories

LogDistribution = Callable[[Any, Any], Array]
"""`(params, prompts) -> log-probabilities [P, V]` of every action."""


def tabular_policy(num_prompts: int, num_actions: int) -> Policy:
    """One row of logits for each prompt; starts uniform.

    Prompts are int32 `[P]` in `[0, num_prompts)`, actions and outputs int32 `[P, G]`,
    parameters float32 `[num_prompts, num_actions]`.

    Raises:
      ValueError: `num_prompts` < 1 or `num_actions` < 2.
    """
    _check_size("num_prompts", num_prompts, 1)
    _check_size("num_actions", num_actions, 2)

    def init(key: jax.Array) -> Float[Array, "N V"]:
        del key
        return jnp.zeros((num_prompts, num_actions), jnp.float32)

    return categorical_policy(init, table_log_distribution)


def linear_softmax_policy(num_features: int, num_actions: int) -> Policy:
    """A softmax over linear scores of the prompt's features; starts uniform.

    Prompts are float32 `[P, F]`, actions and outputs int32 `[P, G]`, parameters
    `{"weights": [F, V], "bias": [V]}` in float32.

    Raises:
      ValueError: `num_features` < 1 or `num_actions` < 2.
    """
    _check_size("num_features", num_features, 1)
    _check_size("num_actions", num_actions, 2)

    def init(key: jax.Array) -> dict[str, Array]:
        del key
        weights = jnp.zeros((num_features, num_actions), jnp.float32)
        return {"weights": weights, "bias": jnp.zeros((num_actions,), jnp.float32)}

    return categorical_policy(init, linear_log_distribution)


def table_log_distribution(
    params: Float[Array, "N V"], prompts: Int[Array, "P"]
) -> Float[Array, "P V"]:
    """Log-probability of every action under a `tabular_policy`."""
    return jax.nn.log_softmax(params[prompts].astype(jnp.float32), axis=-1)


def linear_log_distribution(
    params: dict[str, Array], prompts: Float[Array, "P F"]
) -> Float[Array, "P V"]:
    """Log-probability of every action under a `linear_softmax_policy`."""
    logits = prompts @ params["weights"] + params["bias"][None, :]
    return jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)


def categorical_policy(
    init: Callable[[jax.Array], Any], log_distribution: LogDistribution
) -> Policy:
    """The policy that draws one action from a distribution over a few.

    Args:
      init: `(key) -> params`.
      log_distribution: `(params, prompts) -> [P, V]`, normalised, differentiable in params.
    """

    def sample(params: Any, key: jax.Array, prompts: Any, group_size: int) -> Trajectories:
        log_p = log_distribution(params, prompts)
        uniform = jax.random.uniform(key, (log_p.shape[0], group_size))
        actions = _inverse_distribution(log_p, uniform)
        log_probs = jnp.take_along_axis(log_p, actions, axis=1)
        mask = jnp.ones(actions.shape + (1,), bool)
        return Trajectories(prompts, actions, actions, log_probs[:, :, None], mask)

    def log_prob(params: Any, trajectories: Trajectories) -> StepScores:
        log_p = log_distribution(params, trajectories.prompts)
        log_probs = jnp.take_along_axis(log_p, trajectories.actions, axis=1)[:, :, None]
        entropies = jnp.broadcast_to(entropy(log_p)[:, None, None], log_probs.shape)
        mask = trajectories.mask
        return StepScores(jnp.where(mask, log_probs, 0.0), jnp.where(mask, entropies, 0.0))

    return Policy(init, sample, log_prob)


def _inverse_distribution(
    log_p: Float[Array, "P V"], uniform: Float[Array, "P G"]
) -> Int[Array, "P G"]:
    """The action at which the distribution function exceeds `uniform`: one draw, not `V`."""
    below = jnp.cumsum(jnp.exp(log_p), axis=-1)
    # Exactly 1 at the last possible action, so that one of probability 0 is never drawn.
    below = below[:, :-1] / below[:, -1:]
    reached = uniform[:, :, None] >= below[:, None, :]
    return jnp.sum(reached, axis=-1, dtype=jnp.int32)


def _check_size(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} = {value}; allowed is >= {least}")
