"""Where a channel's rates come from: one description for the noise and for its oracle.

A `ChannelSource` reads the channel off a signal. The same source configures the noise that
corrupts (`noise.class_conditional`) and the rates that a correction is told (`rates.known`).
"""

from typing import Callable, NamedTuple, Sequence

import jax.numpy as jnp
import numpy as np

from jaxreward import channel as channels
from jaxreward.channel import Channel
from jaxreward.checks import Number, check_choice
from jaxreward.types import Signal


class ChannelSource(NamedTuple):
    """A channel that may depend on the signal.

    Attributes:
      read: `(signal) -> Channel`.
      reads: signal fields that `read` needs.
      vary: "prompt" if the rates are constant within a group, "sample" if not.
    """

    read: Callable[[Signal], Channel]
    reads: tuple[str, ...] = ()
    vary: str = "prompt"


def constant(false_positive: Number, false_negative: Number) -> ChannelSource:
    """One channel for every prompt and sample; the rates may be traced."""
    channel = channels.binary(false_positive, false_negative)
    return ChannelSource(lambda signal: channel)


def by_index(
    name: str,
    false_positive: Sequence[float],
    false_negative: Sequence[float],
    per: str = "prompt",
) -> ChannelSource:
    """Rates looked up by `aux[name]`.

    Args:
      name: entry of `aux` holding int32 indices: a type of prompt `[P]`, or a feature of the
        output `[P, G]`.
      false_positive: rate by index.
      false_negative: rate by index, of the same length.
      per: "prompt" if the entry is `[P]`, "sample" if it is `[P, G]`.

    Raises:
      ValueError: the tables differ in length or hold no probability.
    """
    check_choice("per", per, ("prompt", "sample"))
    if len(false_positive) != len(false_negative) or not len(false_positive):
        raise ValueError(
            f"false_positive has {len(false_positive)} rates, false_negative "
            f"{len(false_negative)}; allowed are equal numbers, at least one"
        )
    tables = [np.asarray(table, np.float32) for table in (false_positive, false_negative)]
    for label, table in zip(("false_positive", "false_negative"), tables):
        channels.check_rate(label, table)

    def read(signal: Signal) -> Channel:
        index = signal.aux[name]
        return channels.binary(*(jnp.asarray(table)[index] for table in tables))

    return ChannelSource(read, (f"aux/{name}",), per)


def from_aux(false_positive: str, false_negative: str, per: str = "prompt") -> ChannelSource:
    """Rates that the caller puts into two entries of `aux`, `[P]` or `[P, G]`."""
    check_choice("per", per, ("prompt", "sample"))

    def read(signal: Signal) -> Channel:
        return channels.binary(signal.aux[false_positive], signal.aux[false_negative])

    return ChannelSource(read, (f"aux/{false_positive}", f"aux/{false_negative}"), per)
