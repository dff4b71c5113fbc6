"""Speed, measured: `python -m experiments.benchmark NAME --workdir=DIR [--quick]`.

Names: `grpo_step`, one GRPO iteration against TRL's GRPOTrainer on the same cores in the same
run; `seed_sweep`, eight seeds under one `vmap` against eight single runs; `linear_log_prob`,
the loss path; `rollout`, sampling against transformers and Tunix; `reward_ensemble`, five reward
models against one; `generate`, RL of a sampler and noise search against eager PyTorch; `all`.
Each prints a table and writes `DIR/NAME.json`. Ratios within a run are what to quote: absolute
times depend on the machine and what else it does.
"""

import json
import pathlib
import sys
from typing import Any

from experiments import cli
from jaxreward.training import report
from jaxreward.training.config import resolve
from jaxreward.training.exits import ConfigError
from jaxreward.training.files import atomic_write

NAMES = ("grpo_step", "seed_sweep", "linear_log_prob", "rollout", "reward_ensemble", "generate")


def main(argv: list[str]) -> int:
    """Runs the named benchmarks; returns the exit code."""
    flags = (
        cli.Flag("workdir", default="runs/benchmark", help="folder for the results"),
        cli.Flag("quick", bool, False, "fewer repetitions"),
    )
    if cli.asked_for_help(argv, flags):
        return 0
    try:
        names = [argument for argument in argv if not argument.startswith("--")]
        if len(names) != 1 or names[0] not in (*NAMES, "all"):
            allowed = ", ".join((*NAMES, "all"))
            given = " ".join(names) or "nothing"
            raise ConfigError(f"benchmark = {given!r}; allowed are {allowed}")
        options = [argument for argument in argv if argument.startswith("--")]
        values = cli.parse(options, flags).values
    except ConfigError as error:
        cli.say(error)
        return error.exit_code
    workdir = pathlib.Path(values["workdir"])
    workdir.mkdir(parents=True, exist_ok=True)
    for name in NAMES if names[0] == "all" else names:
        measure(name, workdir, values["quick"])
    return 0


def measure(name: str, workdir: pathlib.Path, quick: bool) -> dict[str, Any]:
    """Runs one benchmark, prints its rows and writes its file."""
    result = resolve(f"experiments.benchmarks.{name}:run")(str(workdir), quick)
    result = {"benchmark": name, "device": report.device(), "versions": report.versions(), **result}
    print(f"\n{name} on {result['device']}")
    print(report.text_table(result["rows"]))
    for note in result.get("notes", ()):
        print(note)
    atomic_write(workdir / f"{name}.json", json.dumps(result, indent=1) + "\n")
    return result


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
