"""Checks of configs: what is allowed passes, what is not is named."""

import functools

import ml_collections
import pytest

from jaxreward.training import check
from jaxreward.training import config as config_lib
from jaxreward.training.exits import ConfigError


def make_config(**values):
    return config_lib.finish(ml_collections.ConfigDict({"a": {"b": 1.0, **values}}))


@pytest.mark.parametrize(
    "holds, good, bad, allowed",
    [
        (check.rate, (0.0, 0.999, (0.1, 0.2)), (1.0, 1.2, -0.1, (0.1, 1.0)), r"\[0, 1\)"),
        (check.positive, (1, 0.1), (0, -1.0, (1.0, 0.0)), "> 0"),
        (functools.partial(check.at_least, low=2, why="a group baseline"), (2, 3), (1, 0),
         ">= 2 for a group baseline"),
        (functools.partial(check.in_range, low=0, high=1, ends="(]"), (1, 0.5), (0, 1.1),
         r"\(0, 1\]"),
        (functools.partial(check.in_range, low=-1, high=2), (-1, 2), (3, "text"), r"\[-1, 2\]"),
        (functools.partial(check.choice, allowed=("mean", "none")), ("mean", ("none", "mean")),
         ("meen", ("mean", "x")), "mean, none"),
        (functools.partial(check.divisible, by=8, what="the number of devices"), (8, 16, 0),
         (9, 12), "a multiple of 8, the number of devices"),
        (check.file_exists, (__file__,), ("/not/there", "/"), "the name of a readable file"),
    ],
)  # fmt: skip
def test_values(holds, good, bad, allowed):
    for value in good:
        holds(make_config(x=value), "a.x")
    for value in bad:
        with pytest.raises(ConfigError, match=rf"^config\.a\.x = .*; allowed is {allowed}"):
            holds(make_config(x=value), "a.x")
    holds(make_config(x=config_lib.optional(float)), "a.x")  # unset is not wrong


def test_a_near_choice_is_offered():
    with pytest.raises(ConfigError, match="did you mean 'leave_one_out'"):
        check.choice(make_config(x="leave_one"), "a.x", ["mean", "leave_one_out"])


def test_required():
    check.required(make_config(x=0, y="t"), "a.x", "a.y")
    for value in ("", (), config_lib.optional(int)):
        with pytest.raises(ConfigError, match="config.a.x is not set; needed is a"):
            check.required(make_config(x=value), "a.x")


def test_correctable_rates():
    check.correctable(make_config(x=0.5, y=0.45), "a.x", "a.y")
    check.correctable(make_config(x=(0.1, 0.5), y=0.2), "a.x", "a.y")
    for x, y in ((0.5, 0.5), ((0.1, 0.9), 0.2), (0.96, 0.0)):
        with pytest.raises(ConfigError, match=r"cannot be corrected; allowed is a sum <= 0.95"):
            check.correctable(make_config(x=x, y=y), "a.x", "a.y")
    with pytest.raises(ConfigError, match=r"config.a.y = 1.2; allowed is \[0, 1\)"):
        check.correctable(make_config(x=0.1, y=1.2), "a.x", "a.y")
    with pytest.raises(ConfigError, match="differ in length"):
        check.correctable(make_config(x=(0.1, 0.2), y=(0.1, 0.1, 0.1)), "a.x", "a.y")


def test_a_path_that_is_not_there():
    with pytest.raises(ConfigError, match="config.a has no 'z'; allowed are b"):
        check.rate(make_config(), "a.z")
