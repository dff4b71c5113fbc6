"""What every reward transform reads and writes in the signal, as a Markdown table.

What is read beside the rewards, their mask and the prompt ids, which are always there.

    python -m experiments.transforms_table [--out=experiments/results/transforms.md]
    python -m experiments.transforms_table --config=configs/olr.py

Without a config: every factory of `jaxreward.transforms`, built with arguments by name from
`EXAMPLES`. With one: the stages of each arm of the config in order, so that a chain can be read.
"""

import importlib
import inspect
import pathlib
import pkgutil
import sys
from typing import Any, Callable

from experiments import arms, cli
from jaxreward import channel, transforms
from jaxreward.training import config as config_lib
from jaxreward.training.exits import ConfigError
from jaxreward.transforms import advantage, sources
from jaxreward.transforms.base import ALWAYS, RewardTransform, Spec

OUT = "experiments/results/transforms.md"

EXAMPLES: dict[str, Callable[[], Any]] = {
    "pattern": lambda: "pattern",
    "parts": lambda: (advantage.rloo(), advantage.grpo()),
    "predicted": lambda: "predicted",
    "advantage": advantage.rloo,
    "channel": lambda: channel.symmetric(0.1, 2),
    "control": advantage.rloo,
    "false_negatives": lambda: 10,
    "false_positives": lambda: 10,
    "k": lambda: 2,
    "label_noise.kind": lambda: "active",
    "negative_share": lambda: 0.1,
    "num_features": lambda: 2,
    "num_prompts": lambda: 2,
    "rate": lambda: 0.1,
    "reference_likelihood.kind": lambda: "mean_prob",
    "second": lambda: "second",
    "source": lambda: sources.constant(0.1, 0.2),
    "std": lambda: 0.1,
    "steps": lambda: 1,
    "transform": advantage.rloo,
    "true_negatives": lambda: 90,
    "true_positives": lambda: 90,
    "values": lambda: (0.0, 1.0),
    "verifiers": lambda: 3,
    "weights": lambda: (1.0, 1.0),
}
"""Values of arguments without a default, by name or by `factory.name`."""

COMBINATORS = ("chain", "identity", "stateless", "where", "record", "per_prompt")
"""Factories of `transforms.base`: what they read and write is that of their parts."""

_HEADER = ("transform", "role", "also reads", "writes", "reward within a group", "advantages ignore")


def main(argv: list[str]) -> int:
    """Writes or prints the table; returns the exit code."""
    flags = (
        cli.Flag("out", default="", help=f"a file; {OUT} is kept with the code"),
        cli.Flag("config", default="", help="a config of experiments.rlvr: the table of its arms"),
    )
    if cli.asked_for_help(argv, flags):
        return 0
    try:
        values = cli.parse(argv, flags).values
        text = of_arms(values["config"]) if values["config"] else of_library()
        if values["out"]:
            _write(values["out"], text)
    except ConfigError as error:
        cli.say(error)
        return error.exit_code
    print(text if not values["out"] else f"wrote {values['out']}", end="\n")
    return 0


def factories() -> dict[str, Callable[..., RewardTransform]]:
    """`{file.name: factory}` of every public function that says it returns a transform."""
    found = {}
    for module in pkgutil.iter_modules(transforms.__path__):
        own = importlib.import_module(f"{transforms.__name__}.{module.name}")
        for name, function in inspect.getmembers(own, inspect.isfunction):
            ours = function.__module__ == own.__name__ and not name.startswith("_")
            if ours and inspect.signature(function).return_annotation is RewardTransform:
                if name not in COMBINATORS:
                    found[f"{module.name}.{name}"] = function
    return found


def example(name: str, factory: Callable[..., RewardTransform]) -> RewardTransform:
    """The transform of a factory, called with examples where it has no defaults.

    Raises:
      ValueError: an argument without a default is not in `EXAMPLES`.
    """
    values = {}
    for argument in inspect.signature(factory).parameters.values():
        if argument.default is inspect.Parameter.empty:
            own = f"{factory.__name__}.{argument.name}"
            found = EXAMPLES.get(own, EXAMPLES.get(argument.name))
            if found is None:
                raise ValueError(f"{name} needs {argument.name!r}, of which there is no example")
            values[argument.name] = found()
    return factory(**values)


def of_library() -> str:
    """The table of all factories, by file."""
    rows = [_row(f"`{name}`", example(name, own).spec) for name, own in factories().items()]
    return _markdown(rows)


def of_arms(path: str) -> str:
    """The tables of a config's arms, one section each, with what must come from outside."""
    config = config_lib.load_config(path)
    built = arms.build_arms(config, arms.provided(config))
    sections = []
    for name in config.arms:
        stages = [config_lib.build(config.transforms[stage]).spec for stage in config.arms[name]]
        rows = [_row(f"`{stage}`", spec) for stage, spec in zip(config.arms[name], stages)]
        outside = ", ".join(f"`{field}`" for field in built[name].spec.reads) or "nothing"
        sections.append(f"### {name}\n\nFrom the runner: {outside}.\n\n{_markdown(rows)}")
    return "\n\n".join(sections)


def _row(name: str, spec: Spec) -> tuple[str, ...]:
    fields = lambda names: ", ".join(f"`{field}`" for field in names) or "-"
    leaves = {"none": "unchanged", "shift": "shifted", "affine": "affine"}
    by_group = {"shift": "a shift", "affine": "any positive affine map"}.get(spec.invariant_to)
    common = {"step": "an affine map of the whole step", "run": "an affine map of the whole run"}
    ignored = [own for own in (by_group, common.get(spec.ignores_common)) if own]
    return (
        name,
        spec.role,
        fields(name for name in spec.reads if name not in ALWAYS),
        fields(spec.writes),
        leaves.get(spec.reward_map, spec.reward_map),
        (" or ".join(ignored) or "-") if "advantages" in spec.writes else "",
    )


def _markdown(rows: list[tuple[str, ...]]) -> str:
    lines = [_HEADER, ("---",) * len(_HEADER), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _write(out: str, text: str) -> None:
    if not pathlib.Path(out).parent.is_dir():
        raise ConfigError(f"out = {out!r}; allowed is a file in a folder that exists")
    pathlib.Path(out).write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
