"""How far apart two reward functions are: STARC, and EPIC and DARD to compare (arXiv 2309.15257).

A distance has three parts: a canonicalisation, which removes what does not change the order
of policies (potential shaping, and what depends on the next state beyond its mean); a norm by
which the rest is divided, which removes scale; and a measure of the difference.

Potential shaping by `phi` adds `discount * phi(s') - phi(s)`. Rewards are `[S, A, S]`.
"""

import math
from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreward.checks import check_choice
from jaxreward.evaluation import elimination
from jaxreward.evaluation.finite_mdp import (
    FiniteMDP, action_advantages, expected_reward, state_values, uniform_policy,
)

Canonicalize = Callable[[FiniteMDP, Float[Array, "S A S"]], Float[Array, "S A S"]]
Size = Callable[[FiniteMDP, Float[Array, "S A S"]], Float[Array, ""]]


class RewardMetric(NamedTuple):
    """A pseudometric on rewards.

    Attributes:
      canonicalize: `(mdp, reward) -> reward`, linear in the reward.
      normalize: `(mdp, canonical) -> ()`, a norm; None leaves the scale.
      measure: `(mdp, difference) -> ()`, a norm.
    """

    canonicalize: Canonicalize
    normalize: Size | None
    measure: Size


def shape(
    reward: Float[Array, "S A S"], potential: Float[Array, "S"], discount: float | Array
) -> Float[Array, "S A S"]:
    """`reward + discount * potential(s') - potential(s)`: the same order of policies."""
    return reward + discount * potential[None, None, :] - potential[:, None, None]


def redistribute(
    mdp: FiniteMDP, reward: Float[Array, "S A S"], change: Float[Array, "S A S"]
) -> Float[Array, "S A S"]:
    """Adds as much of `change` as leaves the mean over next states what it was."""
    return reward + change - expected_reward(mdp, change)[:, :, None]


# Canonicalisations


def unchanged(mdp: FiniteMDP, reward: Float[Array, "S A S"]) -> Float[Array, "S A S"]:
    """No canonicalisation."""
    del mdp
    return reward


def value_adjusted(
    mdp: FiniteMDP, reward: Float[Array, "S A S"], policy: Float[Array, "S A"] | None = None
) -> Float[Array, "S A S"]:
    """Value-adjusted levelling: the advantage of every action over a fixed policy.

    Args:
      mdp: transitions and discount.
      reward: any.
      policy: default uniform; its mean of the result is 0 in every state.

    Returns:
      The same for every next state.
    """
    policy = uniform_policy(mdp) if policy is None else policy
    return _level(mdp, action_advantages(mdp, reward, policy))


def _level(mdp: FiniteMDP, values: Array) -> Array:
    return jnp.broadcast_to(values[:, :, None], mdp.transitions.shape)


def value_potential(mdp: FiniteMDP, reward: Float[Array, "S A S"]) -> Float[Array, "S A S"]:
    """Shaping by the uniform policy's values without levelling; no STARC metric in general."""
    return shape(reward, state_values(mdp, reward, uniform_policy(mdp)), mdp.discount)


def epic(
    mdp: FiniteMDP,
    reward: Float[Array, "S A S"],
    state_weights: Float[Array, "S"] | None = None,
    action_weights: Float[Array, "A"] | None = None,
) -> Float[Array, "S A S"]:
    """EPIC (arXiv 2006.13900): shaping by mean rewards over all next states, possible or not.

    Args:
      mdp: the discount; transitions do not enter.
      reward: any.
      state_weights: coverage distribution, default uniform.
      action_weights: likewise.
    """
    states = _weights(state_weights, reward, 0)
    mean = jnp.einsum("a,t,sat->s", _weights(action_weights, reward, 1), states, reward)
    return shape(reward, mean, mdp.discount) - mdp.discount * jnp.sum(states * mean)


def dard(
    mdp: FiniteMDP,
    reward: Float[Array, "S A S"],
    action_weights: Float[Array, "A"] | None = None,
) -> Float[Array, "S A S"]:
    """DARD (arXiv 2201.10081): shaping by mean rewards over what follows each of the states.

    One action, drawn from `action_weights` (default uniform), is shared by all expectations.
    """
    actions = _weights(action_weights, reward, 1)
    mean = jnp.einsum("a,sa->s", actions, expected_reward(mdp, reward))
    after = jnp.einsum("sax,xay->say", mdp.transitions, reward)
    after = jnp.einsum("a,say,tay->st", actions, after, mdp.transitions)
    return shape(reward, mean, mdp.discount) - mdp.discount * after[:, None, :]


def _weights(given: Array | None, reward: Array, axis: int) -> Array:
    size = reward.shape[axis]
    return jnp.full((size,), 1.0 / size, reward.dtype) if given is None else given


def minimal(
    mdp: FiniteMDP, reward: Float[Array, "S A S"], *, weighted: bool = False
) -> Float[Array, "S A S"]:
    """The equivalent reward of least L2 norm, in closed form.

    For fixed shaping the best way to spread a mean `a` over next states is in proportion to
    their probabilities; the shaping is then a least-squares solution.

    Args:
      mdp: transitions and discount.
      reward: any.
      weighted: the norm weights entries by the probability of the transition; the result is
        then the same for every next state.
    """
    states, actions, _ = mdp.transitions.shape
    own = jnp.eye(states, dtype=reward.dtype)[:, None, :]
    rows = mdp.discount * mdp.transitions - own
    target = expected_reward(mdp, reward)
    target = target - jnp.mean(target)  # a constant is shaping
    length = jnp.linalg.norm(mdp.transitions, axis=-1)
    scale = jnp.ones_like(length) if weighted else 1.0 / length
    matrix = (scale[:, :, None] * rows).reshape(states * actions, states)
    potential = elimination.least_squares(matrix, -(scale * target).reshape(states * actions))
    level = target + rows @ potential
    if weighted:
        return _level(mdp, level)
    return (level / jnp.square(length))[:, :, None] * mdp.transitions


def minimal_potential(mdp: FiniteMDP, reward: Float[Array, "S A S"]) -> Float[Array, "S A S"]:
    """The reward of least L2 norm that shaping alone can reach; no STARC metric in general."""
    states, actions, _ = mdp.transitions.shape
    identity = jnp.eye(states, dtype=reward.dtype)
    rows = mdp.discount * identity[None, :, :] - identity[:, None, :]
    matrix = jnp.broadcast_to(rows[:, None], (states, actions, states, states))
    size = states * actions * states
    potential = elimination.least_squares(matrix.reshape(size, states), -reward.reshape(size))
    return shape(reward, potential, mdp.discount)


# Norms and metrics


def entrywise_norm(
    values: Float[Array, "*shape"],
    order: float | int,
    weights: Float[Array, "*shape"] | None = None,
) -> Float[Array, ""]:
    """`(sum weights |values|^order)^(1/order)`, or `max weights |values|` for infinite order.

    Args:
      values: any.
      order: >= 1 or `math.inf`; static.
      weights: >= 0, default 1; where it is 0 a value does not count even if not finite.
    """
    if not order >= 1:
        raise ValueError(f"order = {order}; allowed is >= 1, math.inf included")
    size = jnp.abs(values)
    if weights is not None:
        size = jnp.where(weights > 0, size, 0.0)
    weights = jnp.ones_like(size) if weights is None else weights
    if order == math.inf:
        flat = (weights * size).reshape(-1)
        return flat[jnp.argmax(flat)]  # the slope of a maximum may be 0 / 0 by rounding
    # So that powers neither overflow nor underflow; the norm does not depend on it.
    top = jax.lax.stop_gradient(jnp.max(size))
    safe = jnp.where(top > 0, top, 1.0)
    total = jnp.sum(weights * (size / safe) ** order)
    return top * jnp.where(top > 0, total, 1.0) ** (1.0 / order)


CANONICAL: dict[str, Canonicalize] = {
    "None": unchanged,
    "VAL": value_adjusted,
    "VALPotential": value_potential,
    "EPIC": epic,
    "DARD": dard,
    "Minimal": minimal,
    "MinimalWeighted": lambda mdp, reward: minimal(mdp, reward, weighted=True),
    "MinimalPotential": minimal_potential,
}
"""By the name that stands first in the name of a metric."""

_ORDERS = {"1": 1, "2": 2, "inf": math.inf}


def reward_metric(name: str) -> RewardMetric:
    """The metric `canonicalisation-norm-distance`, such as "VAL-2-2" (arXiv 2309.15257).

    Norms are "1", "2" and "inf", or with transition probabilities as weights "weighted_1" and
    so on; the middle one may be "0", no normalisation. Canonicalisations: see `CANONICAL`.

    Raises:
      ValueError: a part is none of these.
    """
    parts = name.split("-")
    if len(parts) != 3:
        raise ValueError(f"metric = {name!r}; allowed is CANONICAL-NORM-DISTANCE, as VAL-2-2")
    check_choice("canonicalisation", parts[0], list(CANONICAL))
    normalize = None if parts[1] == "0" else _norm_named(parts[1])
    return RewardMetric(CANONICAL[parts[0]], normalize, _norm_named(parts[2]))


def _norm_named(name: str) -> Size:
    order = name.removeprefix("weighted_")
    check_choice("norm", order, list(_ORDERS))
    if order == name:
        return lambda mdp, values: entrywise_norm(values, _ORDERS[order])
    return lambda mdp, values: entrywise_norm(values, _ORDERS[order], mdp.transitions)


def standardize(
    mdp: FiniteMDP, reward: Float[Array, "S A S"], metric: RewardMetric
) -> Float[Array, "S A S"]:
    """The canonical reward at norm 1; exactly 0 for a reward that is trivial up to rounding."""
    canonical = metric.canonicalize(mdp, reward)
    if metric.normalize is None:
        return canonical
    size = metric.normalize(mdp, canonical)
    before = metric.normalize(mdp, reward)
    known = size > 32 * jnp.finfo(reward.dtype).eps * jnp.where(jnp.isfinite(before), before, 0.0)
    known = known & (size > 0)
    return jnp.where(known, canonical / jnp.where(known, size, 1.0), 0.0)


def reward_distance(
    mdp: FiniteMDP,
    first: Float[Array, "S A S"],
    second: Float[Array, "S A S"],
    metric: RewardMetric,
) -> Float[Array, ""]:
    """Distance of two rewards; in [0, 2] where norm and distance are the same.

    EPIC's own definition is half of "EPIC-2-2".
    """
    difference = standardize(mdp, first, metric) - standardize(mdp, second, metric)
    return metric.measure(mdp, difference)


def regret_bounds(mdp: FiniteMDP) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Factors `(lower, upper)` with `lower d <= worst-case regret <= upper d` for "VAL-2-2".

    The return range `N` of a canonical reward `c`, the advantage `a` over the uniform policy,
    is between two multiples of its norm `|c| = sqrt(S) |a|`. Occupancies differ by at most
    `sqrt(2) / (1 - discount)` in L2, so `N <= sqrt(2 / S) |c| / (1 - discount)`. A greedy policy
    gains in every state at least as often as episodes start there, so
    `N >= sum_s start(s) (max a - min a) >= 2 min(start) |c| / sqrt(A S)`. Regret being the least
    of `N(c1 - k c2)` over `k >= 0`, `upper` is the ratio of the two and `lower` half its inverse.
    Of a trivial reward nothing can be lost, and only the upper bound holds.

    Both are loose: they hold for all rewards. `upper` is infinite and `lower` 0 where an episode
    cannot start in some state.
    """
    actions = mdp.transitions.shape[1]
    upper = math.sqrt(actions / 2) / ((1.0 - mdp.discount) * jnp.min(mdp.start))
    return 0.5 / upper, upper
