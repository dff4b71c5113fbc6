"""Sampling from a denoiser: ODE, SDE and DDIM, each one `lax.scan` over a grid of times.

A denoiser is a function `(x [B, ...], t) -> Estimate`, with parameters and condition closed over;
`make_denoiser` builds one from a network, `guided` adds classifier-free guidance. A grid is a
float32 array of times; sampling walks it from the first (`schedule.last`) to the last (0).
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreward import schedules
from jaxreward.checks import Number, check_choice, check_number
from jaxreward.schedules import Parameterization, Schedule

METHODS = ("euler", "heun")

Apply = Callable[[Any, Array, Array, Any], Array]
"""`(params, x [B, ...], time [R] in [0, 1], condition [R]) -> [B, ...]`, as `networks.diffusion`."""


class Estimate(NamedTuple):
    """A denoiser's two estimates, with `x = alpha clean + sigma noise`."""

    clean: Array
    noise: Array


class Gaussian(NamedTuple):
    """Independent normal variables.

    Attributes:
      mean: `[B, ...]`.
      std: broadcastable to the mean, >= 0.
    """

    mean: Array
    std: Array


Denoiser = Callable[[Array, Array], Estimate]


def make_denoiser(
    apply: Apply, schedule: Schedule, parameterization: Parameterization
) -> Callable[[Any, Array, Array | Number, Any], Estimate]:
    """`(params, x [B, ...], t, condition [R]) -> Estimate` of a network; `t` is a scalar or `[R]`.

    Row `b` of `x` has the time and condition of row `b % R`, which the network encodes once for
    all rows that share it.
    """

    def denoise(params: Any, x: Array, t: Array | Number, condition: Any) -> Estimate:
        t = jnp.asarray(t, jnp.float32)
        rows = [leaf.shape[:1] for leaf in jax.tree.leaves(condition)] or [t.shape or x.shape[:1]]
        if t.shape not in ((), rows[0]):
            raise ValueError(f"t has shape {t.shape}; allowed is a scalar or {rows[0]}, the condition's")
        t = jnp.broadcast_to(t, rows[0])
        output = apply(params, x, t / schedule.last, condition)
        alpha, sigma = schedules.levels(schedule, t, x)
        parts = (output, x, alpha, sigma)
        return Estimate(parameterization.clean(*parts), parameterization.noise(*parts))

    return denoise


def guided(apply: Apply, null: Callable[[Any], Any], scale: Number) -> Apply:
    """Classifier-free guidance, `without + scale (with - without)` (arXiv 2207.12598).

    Every parameterization is linear in the output, so this guides clean and noise alike.

    Args:
      apply: a network that knows the null condition.
      null: from a condition to the null one.
      scale: scalar or `[R]`; 1 is no guidance. LCM's weight `w` is `scale = 1 + w`.
    """

    def both(params: Any, x: Array, time: Array, condition: Any) -> Array:
        rows = time.shape[0]
        twice = lambda a, b: jnp.concatenate([a, b], axis=0)
        conditions = jax.tree.map(twice, condition, null(condition))
        samples = x.reshape((-1, 1, rows) + x.shape[1:])
        pairs = jnp.concatenate([samples, samples], axis=1)
        found = apply(params, pairs.reshape((-1,) + x.shape[1:]), twice(time, time), conditions)
        conditional, without = jnp.moveaxis(found.reshape(pairs.shape), 1, 0)
        conditional, without = conditional.reshape(x.shape), without.reshape(x.shape)
        return without + schedules.over(scale, x) * (conditional - without)

    return both


def grid(schedule: Schedule, steps: int, end: float = 0.0) -> Float[Array, "S1"]:
    """`steps + 1` equally spaced times from `schedule.last` down to `end`.

    Raises:
      ValueError: `steps` < 1 or `end` outside [0, last).
    """
    check_number("steps", steps, lambda x: x >= 1, ">= 1")
    inside = lambda x: (x >= 0) & (x < schedule.last)
    check_number("end", end, inside, f"[0, {schedule.last})")
    return jnp.linspace(schedule.last, end, steps + 1, dtype=jnp.float32)


def velocity(schedule: Schedule, estimate: Estimate, t: Array | Number) -> Array:
    """The drift of the probability flow, `alpha'(t) clean + sigma'(t) noise`.

    Without noise sigma may rise infinitely steeply, as the root of a table that starts at 1 does;
    the second part is left out there.
    """
    rate_of_alpha, rate_of_sigma = schedules.slopes(schedule, t, estimate.clean)
    rate_of_sigma = jnp.where(jnp.isfinite(rate_of_sigma), rate_of_sigma, 0.0)
    return rate_of_alpha * estimate.clean + rate_of_sigma * estimate.noise


def solve_ode(
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *shape"],
    times: Float[Array, "S1"],
    *,
    method: str = "euler",
) -> Float[Array, "B *shape"]:
    """Follows the probability flow over the grid, in either direction of time.

    Args:
      denoise: the denoiser.
      schedule: its schedule.
      x: the state at `times[0]`.
      times: the grid, at least two.
      method: "euler", one call a step; "heun", two calls, second order (Euler's step to a time at
        which sigma is infinitely steep, as arXiv 2206.00364 does at 0).

    Raises:
      ValueError: an unknown method.
    """
    check_choice("method", method, METHODS)
    drift = lambda x, t: velocity(schedule, denoise(x, t), t)

    def step(x: Array, pair: tuple[Array, Array]):
        t, after = pair
        first = drift(x, t)
        moved = x + (after - t) * first
        if method == "heun":
            smooth = jnp.isfinite(schedules.slopes(schedule, after, x)[1])
            second = x + 0.5 * (after - t) * (first + drift(moved, after))
            moved = jnp.where(smooth, second, moved)
        return moved, None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]


def sde_move(
    schedule: Schedule,
    x: Float[Array, "B *shape"],
    estimate: Estimate,
    t: Array,
    after: Array,
    diffusion: Array,
) -> Gaussian:
    """An Euler-Maruyama step from `t` to the earlier time `after`.

    The reverse SDE `dx = (velocity + g^2 noise / (2 sigma)) dt + g dW`, which has the marginals
    of the flow for every `g >= 0` (arXiv 2011.13456, eq. 6 for the flow's drift).

    Args:
      schedule: of `x`.
      x: state at `t`, where sigma > 0.
      estimate: the denoiser's, of `x` at `t`.
      t: scalar or `[B]`.
      after: likewise, <= `t`.
      diffusion: likewise, `g`.
    """
    _, sigma = schedules.levels(schedule, t, x)
    diffusion, passed = schedules.over(diffusion, x), schedules.over(t - after, x)
    pull = 0.5 * jnp.square(diffusion) * estimate.noise / sigma
    drift = velocity(schedule, estimate, t) + pull
    return Gaussian(x - passed * drift, diffusion * jnp.sqrt(passed))


def solve_sde(
    key: jax.Array,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *shape"],
    times: Float[Array, "S1"],
    diffusion: Callable[[Array], Array],
) -> Float[Array, "B *shape"]:
    """Samples the reverse SDE over a descending grid; `diffusion(t)` is `g`. See `sde_move`."""

    def step(x: Array, entry: tuple[Array, Array, Array]):
        i, t, after = entry
        move = sde_move(schedule, x, denoise(x, t), t, after, diffusion(t))
        return draw(jax.random.fold_in(key, i), move), None

    return jax.lax.scan(step, x, (jnp.arange(len(times) - 1), times[:-1], times[1:]))[0]


def ddim_move(
    schedule: Schedule,
    x: Float[Array, "B *shape"],
    estimate: Estimate,
    t: Array | Number,
    after: Array | Number,
    eta: Number = 0.0,
) -> Gaussian:
    """A DDIM step (arXiv 2010.02502, eq. 12 and 16) from `t` to the earlier time `after`.

    Args:
      schedule: of `x`.
      x: state at `t`.
      estimate: the denoiser's, of `x` at `t`.
      t: scalar or `[B]`.
      after: likewise, <= `t`.
      eta: 0 is deterministic, 1 is ancestral sampling.
    """
    alpha, sigma = schedules.levels(schedule, t, x)
    alpha_after, sigma_after = schedules.levels(schedule, after, x)
    posterior = jnp.square(sigma) - jnp.square(alpha * sigma_after / alpha_after)
    variance = jnp.square(sigma_after / sigma) * jnp.maximum(posterior, 0.0)
    variance = jnp.square(jnp.asarray(eta, x.dtype)) * variance
    direction = jnp.sqrt(jnp.maximum(jnp.square(sigma_after) - variance, 0.0))
    mean = alpha_after * estimate.clean + direction * estimate.noise
    return Gaussian(mean, jnp.sqrt(variance))


def ddim(
    key: jax.Array,
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *shape"],
    times: Float[Array, "S1"],
    *,
    eta: Number = 0.0,
) -> Float[Array, "B *shape"]:
    """Samples by DDIM steps over a descending grid; with `eta` 0 the key has no effect."""

    def step(x: Array, entry: tuple[Array, Array, Array]):
        i, t, after = entry
        move = ddim_move(schedule, x, denoise(x, t), t, after, eta)
        return draw(jax.random.fold_in(key, i), move), None

    return jax.lax.scan(step, x, (jnp.arange(len(times) - 1), times[:-1], times[1:]))[0]


def clean_estimates(
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *shape"],
    times: Float[Array, "S1"],
) -> Float[Array, "S B *shape"]:
    """The clean estimate of each call of deterministic DDIM over a descending grid.

    The last one is the sample itself where sigma is 0 at the end of the grid.
    """

    def step(x: Array, pair: tuple[Array, Array]):
        estimate = denoise(x, pair[0])
        return ddim_move(schedule, x, estimate, *pair).mean, estimate.clean

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[1]


def ddim_invert(
    denoise: Denoiser,
    schedule: Schedule,
    x: Float[Array, "B *shape"],
    times: Float[Array, "S1"],
    *,
    refine: int = 0,
) -> Float[Array, "B *shape"]:
    """The state at `times[0]` from which deterministic DDIM over the grid arrives at `x`.

    A step needs the estimate at the state that it looks for. It starts from the estimate at the
    state it comes from (arXiv 2105.05233, appendix F) and is made consistent by fixed-point
    iterations, which converge on a grid that is fine enough. They follow the noise estimate where
    there is more signal than noise and the clean one elsewhere: each hardly depends on the state
    there. (At alpha 0 the noise estimate is the state itself, and says nothing.)

    Args:
      denoise: the denoiser; needs sigma > 0 at `times[-1]` only if its noise estimate does.
      schedule: its schedule.
      x: `[B, ...]` at `times[-1]`.
      times: the descending grid of the sampling that is undone.
      refine: iterations for each step, >= 0; each costs a call.

    Raises:
      ValueError: `refine` < 0.
    """
    check_number("refine", refine, lambda x: x >= 0, ">= 0")

    def step(x: Array, pair: tuple[Array, Array]):
        t, before = pair
        alpha, sigma = schedules.levels(schedule, t, x)
        alpha_before, sigma_before = schedules.levels(schedule, before, x)

        def undone(estimate: Estimate) -> Array:
            clean = (x - sigma * estimate.noise) / jnp.where(alpha > 0, alpha, 1.0)
            noise = (x - alpha * estimate.clean) / jnp.where(sigma > 0, sigma, 1.0)
            by_noise = alpha_before * clean + sigma_before * estimate.noise
            by_clean = alpha_before * estimate.clean + sigma_before * noise
            return jnp.where(sigma > alpha, by_clean, by_noise)

        again = lambda _, guess: undone(denoise(guess, before))
        return jax.lax.fori_loop(0, refine, again, undone(denoise(x, t))), None

    upward = times[::-1]
    return jax.lax.scan(step, x, (upward[:-1], upward[1:]))[0]


def draw(key: jax.Array, gaussian: Gaussian) -> Array:
    """A sample."""
    noise = jax.random.normal(key, gaussian.mean.shape, gaussian.mean.dtype)
    return gaussian.mean + gaussian.std * noise
