"""Where a channel's rates come from: one description for the noise and for its oracle.

A `ChannelSource` reads the channel off a signal. The same source configures the noise that
corrupts (`noise.class_conditional`) and the rates that a correction is told (`rates.known`).
"""

from typing import Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxreward import channel as channels
from jaxreward.channel import Channel
from jaxreward.checks import Number, check_choice
from jaxreward.types import Signal


class ChannelSource(NamedTuple):
    """A channel that may depend on the signal.

    Attributes:
      read: `(signal) -> Channel`.
      reads: signal fields that `read` needs.
      vary: "never" if there is one pair of rates, "prompt" if they are constant within a group,
        "sample" if not.
      table: every channel that `read` can return, None if that is not known beforehand.
    """

    read: Callable[[Signal], Channel]
    reads: tuple[str, ...] = ()
    vary: str = "prompt"
    table: Channel | None = None


def constant(false_positive: Number, false_negative: Number) -> ChannelSource:
    """One channel for every prompt and sample; the rates may be traced.

    Raises:
      ValueError: a rate is not a probability.
    """
    channel = channels.binary(false_positive, false_negative)
    return ChannelSource(lambda signal: channel, vary="never", table=channel)


def by_index(
    name: str,
    false_positive: Sequence[Number] | np.ndarray | jax.Array,
    false_negative: Sequence[Number] | np.ndarray | jax.Array,
    per: str = "prompt",
) -> ChannelSource:
    """Rates looked up by `aux[name]`.

    Args:
      name: entry of `aux` holding int32 indices: a type of prompt `[P]`, or a feature of the
        output `[P, G]`. Rates at an index outside the tables are NaN: noise makes such a
        reward missing, a correction makes it NaN.
      false_positive: rate by index; entries may be traced.
      false_negative: rate by index, of the same length.
      per: "prompt" if the entry is `[P]`, "sample" if it is `[P, G]`.

    Raises:
      ValueError: the tables differ in length or hold something that is no probability.
    """
    check_choice("per", per, ("prompt", "sample"))
    if len(false_positive) != len(false_negative) or not len(false_positive):
        raise ValueError(
            f"false_positive has {len(false_positive)} rates, false_negative "
            f"{len(false_negative)}; allowed are equal numbers, at least one"
        )
    channels.check_rate("false_positive", false_positive)
    channels.check_rate("false_negative", false_negative)
    table = channels.binary(
        jnp.asarray(false_positive, jnp.float32), jnp.asarray(false_negative, jnp.float32)
    )
    return ChannelSource(
        lambda signal: look_up(table, signal.aux[name]), (f"aux/{name}",), per, table
    )


def from_aux(false_positive: str, false_negative: str, per: str = "prompt") -> ChannelSource:
    """Rates that the caller puts into two entries of `aux`, `[P]` or `[P, G]`."""
    check_choice("per", per, ("prompt", "sample"))

    def read(signal: Signal) -> Channel:
        return channels.binary(signal.aux[false_positive], signal.aux[false_negative])

    return ChannelSource(read, (f"aux/{false_positive}", f"aux/{false_negative}"), per)


def look_up(table: Channel, index: Int[Array, "*shape"]) -> Channel:
    """The channels of a table `[K]` at `index`; NaN where it is outside `[0, K)`."""
    size = table.matrix.shape[0]
    inside = jnp.where(index < 0, size, index)  # numpy counts negative ones from the end
    matrix = jnp.take(table.matrix, inside, axis=0, mode="fill", fill_value=jnp.nan)
    return Channel(matrix)
