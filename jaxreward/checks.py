"""Checks of the parameters of a factory, made when it is called."""

from typing import Any, Callable, Sequence

import jax
import numpy as np

Number = float | int | np.ndarray | np.generic | jax.Array
"""A numeric parameter; it may be traced, and then no check can look at it."""


def check_number(name: str, value: Any, holds: Callable[[Any], Any], allowed: str) -> None:
    """Raises ValueError if `value` is known and `holds(value)` is not true everywhere.

    Args:
      name: of the parameter.
      value: numbers of Python and numpy are known; arrays of jax pass.
      holds: elementwise condition.
      allowed: the condition in words.
    """
    known = isinstance(value, (int, float, np.ndarray, np.generic))
    if known and not np.all(holds(np.asarray(value))):
        raise ValueError(f"{name} = {value}; allowed is {allowed}")


def check_choice(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises ValueError if `value` is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} = {value!r}; allowed are {', '.join(map(repr, choices))}")
