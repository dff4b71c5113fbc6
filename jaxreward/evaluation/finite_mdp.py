"""Finite Markov decision processes: values, optimal policies and regret, exactly.

`S` is the number of states here and `A` that of actions. Rewards are `[S, A, S]`: of the state,
the action and the next state. Everything keeps the dtype of its arrays; float64, where jax
enables it, is for discounts near 1 and for invariances to many digits. `vmap` over MDPs with
`in_axes=FiniteMDP(0, 0, None)`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxreward.checks import Number, check_number
from jaxreward.evaluation import elimination

_CUTS = 16  # of the search for the worst case; each adds a vertex of a polygon


class FiniteMDP(NamedTuple):
    """Transitions, where an episode starts, and the discount; no reward.

    A state where episodes end is one that leads to itself with reward 0.

    Attributes:
      transitions: `[S, A, S]` probabilities of the next state.
      start: `[S]` distribution of the first state.
      discount: in [0, 1).
    """

    transitions: Float[Array, "S A S"]
    start: Float[Array, "S"]
    discount: Any


def make_mdp(transitions: Any, discount: Number, start: Any = None) -> FiniteMDP:
    """Checks and builds a `FiniteMDP`.

    Args:
      transitions: `[S, A, S]`; rows sum to 1.
      discount: in [0, 1).
      start: `[S]`, sums to 1; default uniform.

    Raises:
      ValueError: a shape or a value other than these.
    """
    table = np.asarray(transitions, np.float64)
    if table.ndim != 3 or table.shape[0] != table.shape[2] or 0 in table.shape:
        raise ValueError(f"transitions have shape {table.shape}; allowed is [S, A, S]")
    states = table.shape[0]
    first = np.full(states, 1 / states) if start is None else np.asarray(start, np.float64)
    if first.shape != (states,):
        raise ValueError(f"start has shape {first.shape}; allowed is {(states,)}")
    for name, rows in (("transitions", table), ("start", first)):
        if not (np.all(rows >= 0) and np.allclose(rows.sum(-1), 1, atol=1e-5)):
            raise ValueError(f"{name} have a row that is no distribution; allowed sum is 1")
    check_number("discount", discount, lambda x: (x >= 0) & (x < 1), "[0, 1)")
    return FiniteMDP(_real(table), _real(first), discount)


def _real(values: np.ndarray) -> Array:
    return jnp.asarray(values, jnp.float64 if jax.config.jax_enable_x64 else jnp.float32)


def uniform_policy(mdp: FiniteMDP) -> Float[Array, "S A"]:
    """Every action with the same probability."""
    states, actions, _ = mdp.transitions.shape
    return jnp.full((states, actions), 1.0 / actions, mdp.transitions.dtype)


def expected_reward(mdp: FiniteMDP, reward: Float[Array, "S A S"]) -> Float[Array, "S A"]:
    """The mean over next states; impossible ones do not count, whatever their reward."""
    possible = mdp.transitions > 0
    return jnp.sum(jnp.where(possible, mdp.transitions * reward, 0.0), axis=-1)


def state_values(
    mdp: FiniteMDP, reward: Float[Array, "S A S"], policy: Float[Array, "S A"]
) -> Float[Array, "S"]:
    """Discounted return of a policy from each state, by one linear solve."""
    one_step = expected_reward(mdp, reward)
    centre = jnp.mean(one_step)  # a constant reward is exact, and so costs no precision
    values = _solve(mdp, one_step - centre, policy)
    return values + centre / (1.0 - _discount(mdp))


def _solve(mdp: FiniteMDP, one_step: Array, policy: Array) -> Array:
    chain = jnp.einsum("sa,sat->st", policy, mdp.transitions)
    gain = jnp.sum(policy * one_step, axis=-1)
    identity = jnp.eye(gain.shape[0], dtype=gain.dtype)
    return elimination.solve(identity - _discount(mdp) * chain, gain)


def _discount(mdp: FiniteMDP) -> Array:
    return jnp.asarray(mdp.discount, mdp.transitions.dtype)


def policy_return(
    mdp: FiniteMDP, reward: Float[Array, "S A S"], policy: Float[Array, "S A"]
) -> Float[Array, ""]:
    """Expected discounted return `J` of a policy from the start distribution."""
    return jnp.sum(mdp.start * state_values(mdp, reward, policy))


def action_advantages(
    mdp: FiniteMDP, reward: Float[Array, "S A S"], policy: Float[Array, "S A"]
) -> Float[Array, "S A"]:
    """How much better than the policy an action is, if the policy goes on after it."""
    one_step = expected_reward(mdp, reward)
    one_step = one_step - jnp.mean(one_step)
    return _advantages(mdp, one_step, policy)


def _advantages(mdp: FiniteMDP, one_step: Array, policy: Array) -> Array:
    values = _solve(mdp, one_step, policy)
    return one_step + _discount(mdp) * (mdp.transitions @ values) - values[:, None]


def optimal_policy(
    mdp: FiniteMDP, reward: Float[Array, "S A S"], *, max_iterations: int = 100
) -> Float[Array, "S A"]:
    """A deterministic policy of greatest return from every state, by policy iteration.

    An action is changed only for a gain above rounding, so ties do not cycle.
    """
    one_step = expected_reward(mdp, reward)
    one_step = one_step - jnp.mean(one_step)
    actions, dtype = one_step.shape[1], one_step.dtype
    tolerance = 64 * jnp.finfo(dtype).eps * jnp.max(jnp.abs(one_step))

    def improve(state):
        policy, _, i = state
        advantages = _advantages(mdp, one_step, policy)
        gain = jnp.max(advantages, axis=-1) - jnp.sum(policy * advantages, axis=-1)
        best = jax.nn.one_hot(jnp.argmax(advantages, axis=-1), actions, dtype=dtype)
        better = gain > tolerance / (1.0 - _discount(mdp))
        return jnp.where(better[:, None], best, policy), jnp.any(better), i + 1

    greedy = jax.nn.one_hot(jnp.argmax(one_step, axis=-1), actions, dtype=dtype)
    going = lambda state: state[1] & (state[2] < max_iterations)
    return jax.lax.while_loop(going, improve, (greedy, jnp.array(True), 0))[0]


def extreme_policies(
    mdp: FiniteMDP, reward: Float[Array, "S A S"]
) -> tuple[Float[Array, "S A"], Float[Array, "S A"]]:
    """A policy of greatest and one of least return."""
    both = jax.vmap(lambda r: optimal_policy(mdp, r))(jnp.stack([reward, -reward]))
    return both[0], both[1]


def return_range(mdp: FiniteMDP, reward: Float[Array, "S A S"]) -> Float[Array, ""]:
    """Greatest minus least return of any policy; 0 for a reward trivial up to rounding."""
    return _range(mdp, reward, *extreme_policies(mdp, reward))


def _range(mdp: FiniteMDP, reward: Array, best: Array, worst: Array) -> Array:
    gap = _gap(mdp, reward, best, worst)
    size = jnp.max(jnp.abs(expected_reward(mdp, reward))) / (1.0 - _discount(mdp))
    return jnp.where(gap > 64 * jnp.finfo(gap.dtype).eps * size, gap, 0.0)


def _gap(mdp: FiniteMDP, reward: Array, first: Array, second: Array) -> Array:
    return policy_return(mdp, reward, first) - policy_return(mdp, reward, second)


def optimal_policy_regret(
    mdp: FiniteMDP, first: Float[Array, "S A S"], second: Float[Array, "S A S"]
) -> Float[Array, ""]:
    """Regret of optimising one reward where the other counts, in [0, 1], averaged both ways.

    `(J1(pi1) - J1(pi2)) / (max J1 - min J1)` for policies optimal under each (arXiv
    2309.15257, section 5), exact instead of by rollouts; 0 where the range is 0.
    """
    rewards = jnp.stack([first, second])
    best, worst = jax.vmap(extreme_policies, (None, 0))(mdp, rewards)

    def regret(reward, best, worst, other):
        return _share(_gap(mdp, reward, best, other), _range(mdp, reward, best, worst))

    return jnp.mean(jax.vmap(regret)(rewards, best, worst, best[::-1]))


def worst_case_regret(
    mdp: FiniteMDP, first: Float[Array, "S A S"], second: Float[Array, "S A S"]
) -> Float[Array, ""]:
    """The most that can be lost of `first` while `second` does not fall, in [0, 1].

    `max J1(a) - J1(b)` over policies with `J2(b) >= J2(a)`, over `max J1 - min J1`: what the
    bounds of arXiv 2309.15257 speak of. Returns are linear in occupancies, so by duality it is
    the least over `k >= 0` of the return range of `first - k second`, a convex piecewise linear
    function of one variable, minimised here by cutting planes.
    """
    whole, other = jax.vmap(return_range, (None, 0))(mdp, jnp.stack([first, second]))
    matters = other > 0

    def line(k):
        best, worst = extreme_policies(mdp, first - k * second)
        value = _gap(mdp, first - k * second, best, worst)
        return value, -_gap(mdp, second, best, worst)

    def cut(_, state):
        (low, low_value, low_slope), (high, high_value, high_slope), least = state
        rise = high_value - low_value - high_slope * (high - low)
        bend = low_slope - high_slope
        k = low + jnp.where(bend < 0, rise / jnp.where(bend < 0, bend, -1.0), 0.0)
        k = jnp.clip(k, low, high)
        value, slope = line(k)
        falls = slope < 0
        point = jnp.stack([k, value, slope])
        low, high = jnp.where(falls, point, state[0]), jnp.where(falls, state[1], point)
        return low, high, jnp.minimum(least, value)

    top = jnp.where(matters, 2.0 * whole / jnp.where(matters, other, 1.0), 0.0)
    ends = jnp.stack([jnp.zeros_like(top), top])
    low, high = jnp.stack([ends, *jax.vmap(line)(ends)], axis=1)
    least = jax.lax.fori_loop(0, _CUTS, cut, (low, high, whole))[2]
    return jnp.clip(_share(least, whole), 0.0, 1.0)


def _share(part: Array, whole: Array) -> Array:
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)
