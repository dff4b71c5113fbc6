"""The noise channel: what is observed given what is true.

One object serves noise, rate estimation and correction, for verifier rewards and for
reward-model labels alike. Level `i` of a binary channel is the reward `i`.

For a binary channel write `J = 1 - false_positive - false_negative` (Youden's J, the
determinant). Then `E[observed | true] = false_positive + J * true`.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from jaxreward.pytree import pytree_dataclass

MIN_DETERMINANT = 0.05
"""Smallest J a correction divides by unless it is told otherwise: below it the corrected
reward's standard deviation exceeds ten times the noise's own."""


@pytree_dataclass
class Channel:
    """`matrix[..., i, j] = P(observe level j | true level i)`; rows sum to 1.

    Leading axes say how far the channel is known to vary: `[]` global, `[P]` per prompt,
    `[P, G]` per sample (for example by a feature of the output).
    """

    matrix: Float[Array, "*batch M M"]

    @property
    def levels(self) -> int:
        """Number of reward levels `M`."""
        return self.matrix.shape[-1]

    @property
    def false_positive(self) -> Float[Array, "*batch"]:
        """P(observed 1 | true 0) of a binary channel."""
        return self._binary[..., 0, 1]

    @property
    def false_negative(self) -> Float[Array, "*batch"]:
        """P(observed 0 | true 1) of a binary channel."""
        return self._binary[..., 1, 0]

    @property
    def determinant(self) -> Float[Array, "*batch"]:
        """Determinant of the matrix: Youden's J for two levels."""
        if self.levels == 2:
            return 1.0 - self.false_positive - self.false_negative
        return jnp.linalg.det(self.matrix)

    @property
    def _binary(self) -> Array:
        if self.levels != 2:
            raise ValueError(f"a binary channel is needed, this one has {self.levels} levels")
        return self.matrix

    def expand(self, ndim: int) -> "Channel":
        """The channel with trailing length-1 axes, to broadcast against `ndim` axes."""
        batch = self.matrix.shape[:-2]
        ones = (1,) * (ndim - len(batch))
        return Channel(self.matrix.reshape(batch + ones + self.matrix.shape[-2:]))


def binary(false_positive, false_negative) -> Channel:
    """A binary channel from its two rates, which broadcast against each other.

    Args:
      false_positive: P(observed 1 | true 0), in [0, 1].
      false_negative: P(observed 0 | true 1), in [0, 1].

    Raises:
      ValueError: a concrete rate is outside [0, 1].
    """
    rates = {"false_positive": false_positive, "false_negative": false_negative}
    for name, value in rates.items():
        check_rate(name, value)
    false_positive, false_negative = jnp.broadcast_arrays(
        *(jnp.asarray(value, jnp.float32) for value in rates.values())
    )
    rows = [
        jnp.stack([1.0 - false_positive, false_positive], axis=-1),
        jnp.stack([false_negative, 1.0 - false_negative], axis=-1),
    ]
    return Channel(jnp.stack(rows, axis=-2))


def from_matrix(matrix) -> Channel:
    """A channel from `matrix[..., i, j] = P(observe level j | true level i)`.

    Raises:
      ValueError: the matrix is not square with two levels or more, or a concrete row is not
        a distribution.
    """
    matrix = jnp.asarray(matrix, jnp.float32)
    _check_square(matrix.shape)
    channel = Channel(matrix)
    check_channel(channel)
    return channel


def check_channel(channel: Channel) -> None:
    """Raises ValueError if the shape, or a concrete row, is not that of a channel."""
    _check_square(channel.matrix.shape)
    matrix = _concrete(channel.matrix)
    if matrix is None:
        return
    rows = matrix.reshape(-1, channel.levels)
    bad = ~(np.all((rows >= 0) & (rows <= 1), axis=-1) & (np.abs(rows.sum(-1) - 1) < 1e-5))
    if np.any(bad):
        row = ", ".join(f"{entry:.6g}" for entry in rows[np.argmax(bad)])
        raise ValueError(f"matrix has the row ({row}); allowed are probabilities that sum to 1")


def _check_square(shape: tuple[int, ...]) -> None:
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] < 2:
        raise ValueError(f"matrix has shape {shape}; allowed is [..., M, M] with M >= 2")


def symmetric(rate, levels: int = 2) -> Channel:
    """A channel that replaces the level, with probability `rate`, by a uniform other one.

    Raises:
      ValueError: a concrete rate is outside [0, 1], or there are fewer than two levels.
    """
    check_rate("rate", rate)
    if levels < 2:
        raise ValueError(f"levels = {levels}; allowed is >= 2")
    rate = jnp.asarray(rate, jnp.float32)[..., None, None]
    identity = jnp.broadcast_to(
        jnp.eye(levels, dtype=jnp.float32), rate.shape[:-2] + (levels, levels)
    )
    return Channel((1.0 - rate) * identity + rate * (1.0 - identity) / (levels - 1))


def check_rate(name: str, value) -> None:
    """Raises ValueError if a concrete rate is not a probability; tracers pass."""
    concrete = _concrete(value)
    if concrete is not None and not np.all((concrete >= 0) & (concrete <= 1)):
        raise ValueError(f"{name} = {value} is not a probability; allowed is [0, 1]")


def check_correctable(channel: Channel, min_determinant: float = MIN_DETERMINANT) -> None:
    """Raises ValueError if a concrete channel is too close to singular to be inverted.

    Args:
      channel: any channel; a traced one passes (its determinant is floored at run time).
      min_determinant: smallest determinant allowed.
    """
    matrix = _concrete(channel.matrix)  # in numpy, so that constants are checked under jit too
    if matrix is None:
        return
    false_positive, false_negative = matrix[..., 0, 1], matrix[..., 1, 0]
    if channel.levels == 2:
        determinant = 1.0 - false_positive - false_negative
    else:
        determinant = np.abs(np.linalg.det(matrix))  # one below 0 can be inverted as well
    if np.any(np.isnan(determinant)):
        raise ValueError(
            "rates are NaN, so they cannot be corrected; allowed are probabilities (an index "
            "outside the table of rates gives NaN)"
        )
    if np.all(determinant >= min_determinant):
        return
    worst = float(np.min(determinant))
    if channel.levels == 2:
        flat = int(np.argmin(determinant))
        false_positive = float(np.ravel(false_positive)[flat])
        false_negative = float(np.ravel(false_negative)[flat])
        raise ValueError(
            f"false_positive = {false_positive:.6g} and false_negative = {false_negative:.6g} "
            f"cannot be corrected: 1 - false_positive - false_negative = {worst:.3g}, "
            f"allowed is >= {min_determinant:g}"
        )
    raise ValueError(
        f"channel with determinant {worst:.3g} cannot be corrected, allowed is "
        f">= {min_determinant:g}"
    )


def correct(
    observed: Float[Array, "*shape"],
    channel: Channel,
    *,
    min_determinant: float = MIN_DETERMINANT,
) -> Float[Array, "*shape"]:
    """The unbiased estimate of the true binary reward (backward correction).

    `(observed - false_positive) / J`, whose expectation over the channel is the true reward
    (Natarajan et al. 2013; arXiv 2510.00915). Affine, so any real `observed` is allowed.
    J is floored at `min_determinant`, where the estimate is biased towards 0.
    """
    channel = channel.expand(observed.ndim)
    determinant = jnp.maximum(channel.determinant, min_determinant)
    return (observed - channel.false_positive) / determinant


def correct_levels(
    observed_level: Shaped[Array, "*shape"],
    channel: Channel,
    values: Float[Array, "M"],
    *,
    min_determinant: float = MIN_DETERMINANT,
) -> Float[Array, "*shape"]:
    """The unbiased reward estimate for a channel of `M` levels (arXiv 1810.01032).

    Solves `matrix @ estimate = values` and looks up the observed level. Where the
    determinant is below `min_determinant`, the matrix is first moved towards the identity
    until it is not, as far as that makes it invertible.

    Args:
      observed_level: integer level in `[0, M)`.
      channel: leading axes as in `Channel`.
      values: the reward of each level.
    """
    channel = channel.expand(observed_level.ndim)
    determinant = jnp.abs(channel.determinant)
    short = jnp.clip(1.0 - determinant / min_determinant, 0.0, 1.0)[..., None, None]
    identity = jnp.broadcast_to(
        jnp.eye(channel.levels, dtype=jnp.float32), channel.matrix.shape
    )
    safe = channel.matrix + short * (identity - channel.matrix)
    estimate = jnp.linalg.solve(safe, jnp.broadcast_to(values, safe.shape[:-1])[..., None])
    estimate = jnp.broadcast_to(
        estimate[..., 0], observed_level.shape + (channel.levels,)
    )
    index = observed_level.astype(jnp.int32)[..., None]
    return jnp.take_along_axis(estimate, index, axis=-1)[..., 0]


def observed_mean(true_mean: Float[Array, "*shape"], channel: Channel) -> Float[Array, "*shape"]:
    """Mean observed reward `q = false_positive + J p` where the mean true reward is `p`."""
    channel = channel.expand(true_mean.ndim)
    return channel.false_positive + channel.determinant * true_mean


def reliability(success_rate: Float[Array, "*shape"], channel: Channel) -> Float[Array, "*shape"]:
    """Correlation of observed and true reward (phi coefficient) at a true success rate.

    `kappa = J sqrt(p (1 - p)) / sqrt(q (1 - q))`, in [0, 1] for J > 0; 0 where p is 0 or 1.
    It is the factor by which noise shrinks the expected std-normalised advantage
    (arXiv 2510.18924).
    """
    p = jnp.clip(success_rate, 0.0, 1.0)
    q = observed_mean(p, channel)
    determinant = channel.expand(success_rate.ndim).determinant
    true_var, seen_var = p * (1.0 - p), q * (1.0 - q)
    ratio = jnp.where(seen_var > 0, true_var / jnp.where(seen_var > 0, seen_var, 1.0), 0.0)
    return determinant * _safe_sqrt(ratio)


def _safe_sqrt(x: Array) -> Array:
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _concrete(value) -> np.ndarray | None:
    """`value` as numpy, or None while tracing."""
    if isinstance(value, (int, float)):
        return np.asarray(value, np.float64) if math.isfinite(value) else np.asarray(np.nan)
    try:
        return np.asarray(value)
    except Exception:  # a tracer has no concrete value; jax raises several types here
        return None
