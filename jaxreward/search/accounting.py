"""The accountant: what a search spent, so that comparisons are made at equal budget."""

from typing import NamedTuple

import numpy as np

from jaxreward.checks import Number, check_number


class Spent(NamedTuple):
    """Counts for one prompt; each may be an array that broadcasts with the others.

    Attributes:
      network_calls: forward evaluations of the generating network.
      decodes: images made from the network's output.
      reward_calls: evaluations of a reward on one image.
      backward_calls: backward passes through network, decoder and rewards together.
    """

    network_calls: Number = 0
    decodes: Number = 0
    reward_calls: Number = 0
    backward_calls: Number = 0


class Costs(NamedTuple):
    """Price of each count, in any unit of work; a backward pass costs about two forward ones."""

    network_call: Number = 1.0
    decode: Number = 0.0
    reward_call: Number = 0.0
    backward_call: Number = 2.0


def add(*parts: Spent) -> Spent:
    """What several searches spent together."""
    return Spent(*(sum(column) for column in zip(*parts)))


def times(spent: Spent, repeats: Number) -> Spent:
    """`repeats` searches that spent as much each."""
    return Spent(*(count * repeats for count in spent))


def cost(spent: Spent, costs: Costs = Costs()) -> Number:
    """Work that the counts stand for, `sum_i count_i * cost_i`.

    Raises:
      ValueError: a cost below 0.
    """
    for name, value in costs._asdict().items():
        check_number(name, value, lambda v: v >= 0, ">= 0")
    return sum(float(price) * np.asarray(count) for price, count in zip(costs, spent))




def as_metrics(spent: Spent, costs: Costs = Costs()) -> dict[str, np.ndarray]:
    """Each count and their cost as float32 `spent/<name>`, as reports list them."""
    named = {**spent._asdict(), "cost": cost(spent, costs)}
    return {f"spent/{name}": np.asarray(count, np.float32) for name, count in named.items()}
