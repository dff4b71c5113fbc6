"""What accelerators can do, from their makers' public tables."""

from typing import NamedTuple

from jaxreward.training.exits import ConfigError


class Chip(NamedTuple):
    """One chip.

    Attributes:
      memory: bytes of HBM that a program may use.
      flops: dense bfloat16 products, per second.
      bandwidth: bytes per second between HBM and the chip.
      link: bytes per second that a chip sends along one axis of the slice, both ways together.
      kind: what the device calls itself.
    """

    memory: float
    flops: float
    bandwidth: float
    link: float
    kind: str


_GIB = 2.0**30

CHIPS = {
    "v4": Chip(32 * _GIB, 275e12, 1228e9, 100e9, "TPU v4"),
    "v5e": Chip(15.75 * _GIB, 197e12, 819e9, 100e9, "TPU v5 lite"),
    "v5p": Chip(95 * _GIB, 459e12, 2765e9, 200e9, "TPU v5"),
    "v6e": Chip(31.25 * _GIB, 918e12, 1640e9, 224e9, "TPU v6 lite"),
}
"""TPUs by the name of their topologies, such as `v5e:16x16`."""


def chip_of(topology: str) -> Chip:
    """The chip of a topology.

    Raises:
      ConfigError: it is not known.
    """
    name, colon, shape = topology.partition(":")
    sizes = shape.split("x")
    if name not in CHIPS or not colon or not all(size.isdecimal() for size in sizes):
        raise ConfigError(
            f"--topology = {topology!r}; allowed are {', '.join(CHIPS)} with a shape, such as "
            "v5e:16x16 or v5p:4x4x4"
        )
    return CHIPS[name]
