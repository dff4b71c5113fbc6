"""Noise schedules and what a denoising network predicts, as data.

Everything here is about one equation, `x_t = alpha(t) clean + sigma(t) noise` with standard
normal noise: a schedule is the two functions, a parameterization says which combination of clean
and noise a network's output stands for. Samplers and losses take both and branch on neither.
"""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxreward.checks import Number, check_number

Level = Callable[[Array], Array]
"""A float32 function of time, elementwise."""


class Schedule(NamedTuple):
    """How much signal and noise there is at each time.

    Attributes:
      alpha: factor of the clean sample; 1 at time 0.
      sigma: standard deviation of the noise; 0 (or nearly) at time 0, increasing.
      last: the time at which sampling starts; > 0.
    """

    alpha: Level
    sigma: Level
    last: float


def flow() -> Schedule:
    """Straight lines, `(1 - t) clean + t noise` on [0, 1] (rectified flow, arXiv 2209.03003)."""
    return Schedule(lambda t: 1.0 - t, lambda t: 1.0 * t, 1.0)


def cosine() -> Schedule:
    """`cos(pi t / 2)` and `sin(pi t / 2)` on [0, 1] (arXiv 2102.09672 without its offset)."""
    angle = lambda t: 0.5 * np.float32(np.pi) * t
    return Schedule(lambda t: jnp.cos(angle(t)), lambda t: jnp.sin(angle(t)), 1.0)


def exploding(largest: float) -> Schedule:
    """`clean + t noise` on [0, largest]: time is the noise's deviation (arXiv 2206.00364).

    Raises:
      ValueError: `largest` <= 0.
    """
    check_number("largest", largest, lambda x: x > 0, "> 0")
    return Schedule(jnp.ones_like, lambda t: 1.0 * t, float(largest))


def from_alpha_bar(alpha_bar: Float[np.ndarray | Array, "T"]) -> Schedule:
    """A variance-preserving schedule from a table of `alpha(t)^2` at times `0..T-1`.

    Between whole times `alpha_bar` is interpolated linearly.

    Raises:
      ValueError: a table that is shorter than 2, outside (0, 1] or rises.
    """
    table = np.asarray(alpha_bar, np.float64)
    inside = np.all((table > 0) & (table <= 1)) and np.all(np.diff(table) <= 0)
    if table.ndim != 1 or len(table) < 2 or not inside:
        raise ValueError(
            f"alpha_bar has shape {table.shape}; allowed is [T], T >= 2, in (0, 1], not rising"
        )
    noise = 1.0 - table  # subtracted before it is rounded
    return Schedule(_root_of(table), _root_of(noise), float(len(table) - 1))


def _root_of(table: np.ndarray) -> Level:
    """Square roots of a table at whole times, linear in between before the root is taken."""
    values, last = table.astype(np.float32), len(table) - 1

    def level(t: Array | np.ndarray | Number) -> Array:
        t = jnp.clip(jnp.asarray(t, jnp.float32), 0.0, last)
        below = jnp.minimum(jnp.floor(t), last - 1.0)
        index = below.astype(jnp.int32)
        low, high = (jnp.asarray(values)[i] for i in (index, index + 1))
        return jnp.sqrt(low + (t - below) * (high - low))

    return level


def scaled_linear_alpha_bar(
    steps: int = 1000, first: float = 0.00085, last: float = 0.012
) -> Float[np.ndarray, "T"]:
    """The table of Stable Diffusion: betas linear in their square roots.

    Args:
      steps: >= 2, `T`.
      first: beta of time 0, in (0, 1).
      last: beta of time `T - 1`, in (0, 1).

    Raises:
      ValueError: a number out of its range.
    """
    check_number("steps", steps, lambda x: x >= 2, ">= 2")
    for name, value in (("first", first), ("last", last)):
        check_number(name, value, lambda x: (x > 0) & (x < 1), "(0, 1)")
    betas = np.linspace(first**0.5, last**0.5, steps) ** 2
    return np.cumprod(1.0 - betas)


class Parameterization(NamedTuple):
    """What a network's output `o` stands for; `a`, `s` are alpha and sigma, broadcastable.

    Attributes:
      target: `(clean, noise, a, s) -> o`, what to regress on.
      clean: `(o, x, a, s) -> clean`.
      noise: `(o, x, a, s) -> noise`; 0 where `s` is 0 and the noise cannot be told.
    """

    target: Callable[[Array, Array, Array, Array], Array]
    clean: Callable[[Array, Array, Array, Array], Array]
    noise: Callable[[Array, Array, Array, Array], Array]


def _noise_from_clean(clean: Array, x: Array, a: Array, s: Array) -> Array:
    return jnp.where(s > 0, (x - a * clean) / jnp.where(s > 0, s, 1.0), 0.0)


NOISE = Parameterization(
    target=lambda clean, noise, a, s: noise,
    clean=lambda o, x, a, s: (x - s * o) / a,
    noise=lambda o, x, a, s: o,
)
"""The network predicts the noise (arXiv 2006.11239); needs alpha > 0."""

CLEAN = Parameterization(
    target=lambda clean, noise, a, s: clean,
    clean=lambda o, x, a, s: o,
    noise=_noise_from_clean,
)
"""The network predicts the clean sample."""

VELOCITY = Parameterization(
    target=lambda clean, noise, a, s: a * noise - s * clean,
    clean=lambda o, x, a, s: (a * x - s * o) / (a * a + s * s),
    noise=lambda o, x, a, s: (s * x + a * o) / (a * a + s * s),
)
"""The network predicts `v = alpha noise - sigma clean` (arXiv 2202.00512)."""

FLOW = Parameterization(
    target=lambda clean, noise, a, s: noise - clean,
    clean=lambda o, x, a, s: (x - s * o) / (a + s),
    noise=lambda o, x, a, s: (x + a * o) / (a + s),
)
"""The network predicts `noise - clean`, the velocity of `flow()`."""


def over(level: Array | Number, x: Array) -> Array:
    """A scalar or `[R]` shaped to be multiplied with `x [B, ...]`, see `for_rows`."""
    level = jnp.asarray(level, x.dtype)
    level = for_rows(level, x) if level.ndim else level
    return level.reshape(level.shape + (1,) * (x.ndim - level.ndim))


def for_rows(leaf: Shaped[Array, "R *rest"], x: Array) -> Shaped[Array, "B *rest"]:
    """One row for each of `x [B, ...]`: row `b` of `x` gets row `b % R`.

    In this order a batch whose samples share times and conditions can be split over devices by
    sample.

    Raises:
      ValueError: `R` does not divide `B`.
    """
    rows, given = x.shape[0], leaf.shape[0]
    if rows == given:
        return leaf
    if not given or rows % given:
        raise ValueError(f"{given} rows for a batch of {rows}; allowed are divisors of {rows}")
    return jnp.tile(leaf, (rows // given,) + (1,) * (leaf.ndim - 1))


def levels(schedule: Schedule, t: Array | Number, x: Array) -> tuple[Array, Array]:
    """alpha and sigma at a time (scalar or `[R]`), shaped to be multiplied with `x [B, ...]`."""
    t = jnp.asarray(t, jnp.float32)
    return over(schedule.alpha(t), x), over(schedule.sigma(t), x)


def add_noise(
    schedule: Schedule,
    clean: Float[Array, "B *shape"],
    noise: Float[Array, "B *shape"],
    t: Array | Number,
) -> Float[Array, "B *shape"]:
    """`alpha(t) clean + sigma(t) noise`; `t` is a scalar or `[B]`."""
    alpha, sigma = levels(schedule, t, clean)
    return alpha * clean + sigma * noise


def slopes(schedule: Schedule, t: Array | Number, x: Array) -> tuple[Array, Array]:
    """The derivatives of alpha and sigma with respect to time, shaped as in `levels`."""
    t = jnp.asarray(t, jnp.float32)
    rate = lambda level: jax.jvp(level, (t,), (jnp.ones_like(t),))[1]
    return over(rate(schedule.alpha), x), over(rate(schedule.sigma), x)
