"""Checks of the settings of studies of generators, by the names of their keys.

A name means one thing in every such config, so that one table says what is allowed. What keys mean
together is checked by `validate(config)` of the study's own module, where it has one.
"""

import contextlib
import importlib
from typing import Any, Callable, Iterator

import ml_collections

from jaxreward.networks.diffusion import KINDS
from jaxreward.training import check
from jaxreward.training.exits import ConfigError

Holds = Callable[[Any], bool]

_COUNTS = (
    "backward_price batch budgets buffer calls candidates canvases channels devices draws features "
    "fresh group_size heads hidden iterations layers levels levels_shown members min_count opinions "
    "pairs patch pretraining prompts prompts_per_step reader readers real reno_steps sampler_steps "
    "rows sampling_steps seeds steps test_prompts test_samples tested train_prompts "
    "train_samples updates wide"
)
_POSITIVE = (
    "clip denoise_cost expert_scale learning_rate logit_scale positions pretraining_rate reward_cost "
    "reward_weight scale sweep temperature"
)
_NOT_NEGATIVE = (
    "augmentation baseline_rate beta checkerboard drift eta flaw guidances opinion_noise prior "
    "reward_noise schedule smoothness"
)
_RATES = "decay dimming drop momentum"
_SHARES = "keep"
_FREE = "guidance inversion_guidance margin redenoise_guidance sampling_guidance wishes"

_FINITE: Holds = lambda value: abs(value) < float("inf")
_WHOLE: Holds = lambda value: 1 <= value < float("inf") and value == int(value)
RULES: dict[str, tuple[Holds, str]] = {
    **dict.fromkeys(_COUNTS.split(), (_WHOLE, "whole numbers >= 1")),
    **dict.fromkeys(_POSITIVE.split(), (lambda value: 0 < value < float("inf"), "> 0")),
    **dict.fromkeys(_NOT_NEGATIVE.split(), (lambda value: 0 <= value < float("inf"), ">= 0")),
    **dict.fromkeys(_RATES.split(), (lambda value: 0 <= value < 1, "[0, 1)")),
    **dict.fromkeys(_SHARES.split(), (lambda value: 0 < value <= 1, "(0, 1]")),
    **dict.fromkeys(_FREE.split(), (_FINITE, "a finite number")),
}
"""By the name of a key with numbers: what every number in it fulfils, and how to say so."""


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks all numbers of `config.study` and the networks' kinds, then what its module checks.

    Claims are about arms of the study: those of `config.study.arms`, or of the module's `arms`.

    Raises:
      ConfigError: naming the key, the value and what is allowed.
    """
    for path, value in leaves(config.study, "study"):
        holds, allowed = RULES.get(path.rpartition(".")[2], (_FINITE, "a finite number"))
        found = list(numbers(value))
        if isinstance(value, (tuple, list)) and not value:
            raise ConfigError(f"config.{path} = {value!r}; allowed is at least one entry")
        if not all(holds(number) for number in found):
            raise ConfigError(f"config.{path} = {value!r}; allowed is {allowed}")
        if path.endswith(".kind") and path.startswith(("study.generator.", "study.networks.")):
            check.choice(config, path, KINDS)
    module = importlib.import_module(config.study.fn.partition(":")[0])
    own = getattr(module, "validate", None)
    if own is not None:
        own(config)
    known = module.arms(config.study) if hasattr(module, "arms") else tuple(config.study.arms)
    for name in config.claims:
        for side in ("better", "worse"):
            check.choice(config, f"claims.{name}.{side}", known)


@contextlib.contextmanager
def named(path: str) -> Iterator[None]:
    """What a function refuses becomes a ConfigError about `config.path`."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"config.{path}: {error}") from error


def leaves(tree: ml_collections.ConfigDict, path: str) -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything that is not a sub-config."""
    for name, value in tree.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaves(value, f"{path}.{name}")
        else:
            yield f"{path}.{name}", value


def numbers(value: Any) -> Iterator[float | int]:
    """The numbers in a value, tuples of tuples included; truth values are none."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
