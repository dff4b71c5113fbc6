"""A denoising sampler as a policy: every step a Gaussian decision, trajectories `[P, G, S]`.

A chain says how a state moves and what is shown at the end; `denoising_policy` samples and scores
it. Chains: `ddim_chain`, `sde_chain` here, `consistency_chain` in `policies.consistency`.
"""

import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxreward.checks import Number, check_choice, check_number
from jaxreward.policies import flow
from jaxreward.policies.flow import Gaussian
from jaxreward.schedules import Schedule, for_rows
from jaxreward.types import Policy, StepScores, Trajectories

REDUCTIONS = ("mean", "sum")

Denoise = Callable[[Any, Array, Array | Number, Any], flow.Estimate]
"""`(params, x, t, condition) -> Estimate`, of `flow.make_denoiser`."""


class DenoisingChain(NamedTuple):
    """A sampler as a Markov decision process that starts from standard normal noise.

    Attributes:
      move: `(params, x [B, ...], i, condition [R]) -> Gaussian` of the next state; `i` int32, a
        scalar or `[R]`, and the deviation is > 0. Row `b` of `x` has `i` and condition of row
        `b % R`.
      finish: `(params, x [B, ...], condition [R]) -> what is shown [B, ...]`, deterministic.
      actions: number of moves, `S`.
      shown: index of the state from which `finish` starts; states count 0 to `S`.
    """

    move: Callable[[Any, Array, Array, Any], Gaussian]
    finish: Callable[[Any, Array, Any], Array]
    actions: int
    shown: int


def denoising_policy(
    chain: DenoisingChain,
    init: Callable[[jax.Array], Any],
    shape: tuple[int, ...],
    *,
    reduction: str = "mean",
    shared: bool = False,
    place: Callable[[Any], Any] = lambda tree: tree,
) -> Policy:
    """The policy of a chain.

    Prompts are the condition, a pytree with leading axis `[P]`. Actions are the states
    `[P, G, S + 1, *shape]`, the noise first; outputs are what is shown, `[P, G, *shape]`.

    Args:
      chain: the sampler.
      init: `(key) -> params`.
      shape: of one state.
      reduction: a decision's log-probability is the "mean" of those of its coordinates
        (arXiv 2404.03673; ratios stay near 1 whatever the size, and so do clip ranges), or
        their "sum", the true log-density.
      shared: whether the network takes fewer rows of time and condition than of states, as those
        of `networks.diffusion` do (see `DenoisingChain.move`), and so encodes them once for a
        whole group. Otherwise every row gets its own.
      place: of leaves `[B, ...]`, one row for each sample or each of its steps, first samples of
        all prompts first; on several devices it says how rows are split.

    Raises:
      ValueError: an unknown reduction.
    """
    check_choice("reduction", reduction, REDUCTIONS)
    each = lambda tree, x: tree if shared else jax.tree.map(lambda y: place(for_rows(y, x)), tree)

    def sample(params: Any, key: jax.Array, prompts: Any, group_size: int) -> Trajectories:
        batch = jax.tree.leaves(prompts)[0].shape[0] * group_size
        start = place(jax.random.normal(jax.random.fold_in(key, chain.actions), (batch, *shape)))
        condition = each(prompts, start)

        def step(x: Array, i: Array):
            move = chain.move(params, x, i, condition)
            after = flow.draw(jax.random.fold_in(key, i), move)
            return after, (after, log_density(move, after, reduction))

        _, (states, log_probs) = jax.lax.scan(step, start, jnp.arange(chain.actions))
        states = jnp.concatenate([start[None], states], axis=0)
        shown = chain.finish(params, states[chain.shown], condition)
        split = lambda leaf: jnp.swapaxes(leaf.reshape((group_size, -1) + leaf.shape[1:]), 0, 1)
        states, log_probs = (split(jnp.moveaxis(leaf, 0, 1)) for leaf in (states, log_probs))
        mask = jnp.ones(log_probs.shape, bool)
        return Trajectories(prompts, states, split(shown), log_probs, mask)

    def log_prob(params: Any, trajectories: Trajectories) -> StepScores:
        # All states are known: one call of the network scores every step of every sample. Rows
        # go by sample, prompt and step, since those of a group share their time and condition.
        states, mask = jnp.swapaxes(trajectories.actions, 0, 1), trajectories.mask
        rows = lambda leaf: place(leaf.reshape((-1,) + leaf.shape[3:]))
        before = rows(states[:, :, :-1])
        index = jnp.tile(jnp.arange(chain.actions), mask.shape[0])
        told = each((index, repeat(trajectories.prompts, chain.actions)), before)
        move = chain.move(params, before, *told)
        found = log_density(move, rows(states[:, :, 1:]), reduction), entropy(move, reduction)
        back = lambda leaf: jnp.swapaxes(leaf.reshape(states.shape[:2] + (-1,)), 0, 1)
        return StepScores(*(jnp.where(mask, back(leaf), 0.0) for leaf in found))

    return Policy(init, sample, log_prob)


def ddim_chain(
    denoise: Denoise, schedule: Schedule, times: Float[Array | np.ndarray, "S1"], eta: Number = 1.0
) -> DenoisingChain:
    """Stochastic DDIM over `n` descending times, all with sigma > 0: `n - 1` actions.

    What is shown is the clean estimate at the last time. With `eta` 1 the sampler of DDPO
    (arXiv 2305.13301).

    Raises:
      ValueError: fewer than 2 times or one without noise, `eta` not in (0, 1].
    """
    check_number("eta", eta, lambda x: (x > 0) & (x <= 1), "(0, 1]; a decision is random")
    step = lambda x, found, t, then: flow.ddim_move(schedule, x, found, t, then, eta)
    return _chain(denoise, schedule, times, step)


def sde_chain(
    denoise: Denoise,
    schedule: Schedule,
    times: Float[Array | np.ndarray, "S1"],
    diffusion: Callable[[Array], Array],
) -> DenoisingChain:
    """Euler-Maruyama steps of the reverse SDE (see `flow.sde_move`), otherwise as `ddim_chain`."""
    step = lambda x, found, t, then: flow.sde_move(schedule, x, found, t, then, diffusion(t))
    return _chain(denoise, schedule, times, step)


def _chain(
    denoise: Denoise, schedule: Schedule, times, step: Callable[..., Gaussian]
) -> DenoisingChain:
    times = check_times(schedule, times)

    def move(params: Any, x: Array, i: Array, condition: Any) -> Gaussian:
        t, then = jnp.asarray(times)[i], jnp.asarray(times)[i + 1]
        return step(x, denoise(params, x, t, condition), t, then)

    def finish(params: Any, x: Array, condition: Any) -> Array:
        return denoise(params, x, times[-1], condition).clean

    return DenoisingChain(move, finish, len(times) - 1, len(times) - 1)


def check_times(
    schedule: Schedule, times: Float[Array | np.ndarray, "S1"]
) -> Float[np.ndarray, "S1"]:
    """The times of a chain as numpy.

    Raises:
      ValueError: fewer than 2, not descending, or one at which there is no noise.
    """
    times = np.asarray(times, np.float32)
    if len(times) < 2:
        raise ValueError(f"{len(times)} times leave no action; allowed are >= 2")
    with jax.ensure_compile_time_eval():
        noise = np.asarray(schedule.sigma(jnp.asarray(times)))
    if not (np.all(np.diff(times) < 0) and np.all(noise > 0)):
        raise ValueError(
            f"times = {times.tolist()}; allowed are descending ones at which sigma > 0, so that every "
            "action has a density"
        )
    return times


def repeat(tree: Any, times: int) -> Any:
    """Every row of every leaf `times` times, one after the other."""
    return jax.tree.map(lambda leaf: jnp.repeat(leaf, times, axis=0), tree)


def log_density(
    gaussian: Gaussian, value: Float[Array, "B *shape"], reduction: str = "sum"
) -> Float[Array, "B"]:
    """Log-density of `value`, summed or averaged over its coordinates; std > 0."""
    std = jnp.broadcast_to(gaussian.std, value.shape)
    each = -0.5 * jnp.square((value - gaussian.mean) / std) - jnp.log(std) - _HALF_LOG_2_PI
    return _reduce(each, reduction)


def entropy(gaussian: Gaussian, reduction: str = "sum") -> Float[Array, "B"]:
    """Entropy in nats, summed or averaged over coordinates."""
    std = jnp.broadcast_to(gaussian.std, gaussian.mean.shape)
    return _reduce(jnp.log(std) + 0.5 + _HALF_LOG_2_PI, reduction)


_HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)


def _reduce(each: Array, reduction: str) -> Array:
    axes = tuple(range(1, each.ndim))
    return jnp.mean(each, axis=axes) if reduction == "mean" else jnp.sum(each, axis=axes)
