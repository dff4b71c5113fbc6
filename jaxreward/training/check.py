"""Checks of a config's values, before anything heavy is loaded.

Each function takes the config and dotted paths, passes what is unset, looks at every element
of a tuple, and raises `ConfigError` with the key, the value and what is allowed.
"""

import difflib
import os
from typing import Any, Callable, Iterable

import ml_collections

from jaxreward.training import config as config_lib
from jaxreward.training.exits import ConfigError

Config = ml_collections.ConfigDict
Number = float | int


def that(config: Config, path: str, holds: Callable[[Any], bool], allowed: str) -> None:
    """`holds(value)`; `allowed` completes the sentence "allowed is ..."."""
    value = config_lib.get(config, path)
    items = value if isinstance(value, (tuple, list)) else [value]
    if not all(item is None or holds(item) for item in items):
        raise ConfigError(f"config.{path} = {value!r}; allowed is {allowed}")


def in_range(config: Config, path: str, low: Number, high: Number, ends: str = "[]") -> None:
    """A number between `low` and `high`; `ends` such as `[)` says which ends belong."""

    def holds(value: Any) -> bool:
        above = value >= low if ends[0] == "[" else value > low
        below = value <= high if ends[1] == "]" else value < high
        return above and below

    that(config, path, _number(holds), f"{ends[0]}{low:g}, {high:g}{ends[1]}")


def rate(config: Config, *paths: str) -> None:
    """Probabilities in [0, 1)."""
    for path in paths:
        in_range(config, path, 0, 1, "[)")


def positive(config: Config, *paths: str) -> None:
    """Numbers > 0."""
    for path in paths:
        that(config, path, _number(lambda value: value > 0), "> 0")


def at_least(config: Config, path: str, low: Number, why: str = "") -> None:
    """A number >= `low`; `why` names what needs it, such as "a group baseline"."""
    reason = f" for {why}" if why else ""
    that(config, path, _number(lambda value: value >= low), f">= {low:g}{reason}")


def choice(config: Config, path: str, allowed: Iterable[Any]) -> None:
    """One of `allowed`; of a tuple, every element."""
    allowed = list(allowed)
    value = config_lib.get(config, path)
    items = value if isinstance(value, (tuple, list)) else [value]
    wrong = [item for item in items if item is not None and item not in allowed]
    if wrong:
        near = difflib.get_close_matches(str(wrong[0]), [str(a) for a in allowed], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        names = ", ".join(str(a) for a in allowed) or "nothing"
        raise ConfigError(f"config.{path} = {value!r}; allowed is {names}{hint}")


def required(config: Config, *paths: str) -> None:
    """Values that must be set, and strings and tuples that must not be empty."""
    for path in paths:
        if config_lib.get(config, path) in (None, "", (), []):
            kind = config_lib.get_type(config, path).__name__
            kind = "a value" if kind == "NoneType" else f"a {kind}"
            raise ConfigError(f"config.{path} is not set; needed is {kind}")


def divisible(config: Config, path: str, by: int, what: str) -> None:
    """A multiple of `by`; `what` says what that is, such as "the number of devices"."""
    that(config, path, lambda value: value % by == 0, f"a multiple of {by}, {what}")


def correctable(
    config: Config, false_positive: str, false_negative: str, min_determinant: Number = 0.05
) -> None:
    """Two rates whose channel can be inverted: 1 - sum >= `min_determinant`.

    Tuples are compared element by element, a single number with every element.
    """
    rate(config, false_positive, false_negative)
    values = [config_lib.get(config, path) for path in (false_positive, false_negative)]
    lists = [list(v) if isinstance(v, (tuple, list)) else [v] for v in values]
    longest = max(len(items) for items in lists)
    first, second = (items * longest if len(items) == 1 else items for items in lists)
    if len(first) != len(second):
        raise ConfigError(
            f"config.{false_positive} = {values[0]!r} and config.{false_negative} = "
            f"{values[1]!r} differ in length; allowed are equal lengths"
        )
    for a, b in zip(first, second):
        if a is not None and b is not None and 1.0 - a - b < min_determinant - 1e-9:
            raise ConfigError(
                f"config.{false_positive} = {a} and config.{false_negative} = {b} cannot be "
                f"corrected; allowed is a sum <= {1 - min_determinant:g}"
            )


def file_exists(config: Config, *paths: str) -> None:
    """Names of readable files."""
    for path in paths:
        that(config, path, _is_readable_file, "the name of a readable file")


def _is_readable_file(name: str) -> bool:
    return os.path.isfile(name) and os.access(name, os.R_OK)


def _number(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (int, float)) and bool(holds(value))
