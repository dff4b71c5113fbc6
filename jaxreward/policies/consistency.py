"""Consistency models: from any noise level to the clean sample in one call.

A consistency function is `f(params, x [B, ...], t, condition) -> clean [B, ...]`, the identity at
time 0 by its boundary scalings. Sampling alternates it with new noise at lower levels.
"""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxreward import schedules
from jaxreward.checks import Number, check_number
from jaxreward.policies import flow
from jaxreward.policies.denoising_chain import DenoisingChain, check_times
from jaxreward.schedules import Parameterization, Schedule

Scalings = Callable[[Array], tuple[Array, Array]]
"""From time to `c_skip` and `c_out`: 1 and 0 at time 0."""

ConsistencyFunction = Callable[[Any, Array, Array | Number, Any], Array]


def lcm_scalings(data_std: Number = 0.5, time_scale: Number = 10.0) -> Scalings:
    """Those of latent consistency models (arXiv 2310.04378); times count 0 to 999.

    `c_skip = d^2 / (u^2 + d^2)`, `c_out = u / sqrt(u^2 + d^2)`, `u = time_scale t`. Without the
    factor `d` in `c_out` that `edm_scalings` has: so this family of models is trained.

    Raises:
      ValueError: `data_std` or `time_scale` <= 0.
    """
    for name, value in (("data_std", data_std), ("time_scale", time_scale)):
        check_number(name, value, lambda x: x > 0, "> 0")

    def scalings(t: Array) -> tuple[Array, Array]:
        u = time_scale * t
        total = jnp.square(u) + data_std**2
        return data_std**2 / total, u / jnp.sqrt(total)

    return scalings


def edm_scalings(data_std: Number = 0.5, smallest: Number = 0.002) -> Scalings:
    """Those of arXiv 2303.01469, eq. 5 of its appendix C, for a schedule whose time is sigma.

    The identity at time `smallest`.

    Raises:
      ValueError: `data_std` <= 0 or `smallest` < 0.
    """
    check_number("data_std", data_std, lambda x: x > 0, "> 0")
    check_number("smallest", smallest, lambda x: x >= 0, ">= 0")

    def scalings(t: Array) -> tuple[Array, Array]:
        above = t - smallest
        skip = data_std**2 / (jnp.square(above) + data_std**2)
        return skip, data_std * above / jnp.sqrt(jnp.square(t) + data_std**2)

    return scalings


def consistency_function(
    apply: flow.Apply,
    schedule: Schedule,
    parameterization: Parameterization,
    scalings: Scalings | None = None,
) -> ConsistencyFunction:
    """`c_skip(t) x + c_out(t) clean(x, t)` of a network; default `lcm_scalings()`."""
    scalings = lcm_scalings() if scalings is None else scalings
    denoise = flow.make_denoiser(apply, schedule, parameterization)

    def function(params: Any, x: Array, t: Array | Number, condition: Any) -> Array:
        skip, out = scalings(jnp.asarray(t, jnp.float32))
        clean = denoise(params, x, t, condition).clean
        return schedules.over(skip, x) * x + schedules.over(out, x) * clean

    return function


def grid(steps: int, *, points: int = 50, last: int = 1000) -> Float[np.ndarray, "S"]:
    """The sampling times of latent consistency models: `steps` of `points`, from the top.

    The points are `k last / points - 1` for `k = 1..points`; every `points // steps`-th is taken.

    Raises:
      ValueError: `points` not in [1, last] or `steps` not in [1, points].
    """
    check_number("points", points, lambda x: (x >= 1) & (x <= last), f"[1, {last}]")
    check_number("steps", steps, lambda x: (x >= 1) & (x <= points), f"[1, {points}]")
    times = np.arange(1, points + 1) * (last // points) - 1
    return times[:: -(points // steps)][:steps].astype(np.float32)


def sample(
    key: jax.Array,
    function: Callable[[Array, Array], Array],
    schedule: Schedule,
    x: Float[Array, "B *shape"],
    times: Float[Array | np.ndarray, "S"],
) -> Float[Array, "B *shape"]:
    """Multistep sampling (arXiv 2303.01469, algorithm 1): one call for each time.

    Args:
      key: of the noise that is added again.
      function: `(x, t) -> clean`, parameters and condition closed over.
      schedule: of the states.
      x: the state at `times[0]`.
      times: descending; a single one is one-step sampling.
    """
    times = jnp.asarray(times, jnp.float32)

    def step(clean: Array, entry: tuple[Array, Array]):
        i, t = entry
        noise = jax.random.normal(jax.random.fold_in(key, i), clean.shape, clean.dtype)
        return function(schedules.add_noise(schedule, clean, noise, t), t), None

    rest = (jnp.arange(1, len(times)), times[1:])
    return jax.lax.scan(step, function(x, times[0]), rest)[0]


def consistency_chain(
    function: ConsistencyFunction,
    schedule: Schedule,
    times: Float[Array | np.ndarray, "S1"],
    *,
    last_action: bool = False,
) -> DenoisingChain:
    """Multistep sampling as a Markov decision process (arXiv 2404.03673, eq. 4).

    From the state at `times[i]` the action is the next state,
    `N(alpha f(x), sigma^2)` at `times[i + 1]`; what is shown is `f` of the last state.

    Args:
      function: the consistency function.
      schedule: of the states.
      times: descending, `n >= 2`; `n - 1` actions.
      last_action: whether, as in the released code, the last state has an action too: noise
        added at its own level. Nothing depends on it, so it only adds variance.

    Raises:
      ValueError: fewer than 2 times, which leave no action, or one without noise.
    """
    times = check_times(schedule, times)
    after = np.append(times[1:], times[-1:]) if last_action else times[1:]

    def move(params: Any, x: Array, i: Array, condition: Any) -> flow.Gaussian:
        t, then = jnp.asarray(times)[i], jnp.asarray(after)[i]
        alpha, sigma = schedules.levels(schedule, then, x)
        return flow.Gaussian(alpha * function(params, x, t, condition), sigma)

    def finish(params: Any, x: Array, condition: Any) -> Array:
        return function(params, x, times[-1], condition)

    return DenoisingChain(move, finish, len(after), len(times) - 1)
