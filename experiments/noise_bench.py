"""Which remedy for which noise: a grid of every correction against every kind of noise.

    python -m experiments.noise_bench [--quick] [--transform=PATH:FACTORY,...] [--workdir=DIR]
        [--config=configs/noise_bench.py] [--config.a.b=value ...]

A user's own transform gets its row by import path. Prints a table of gains over no remedy with
paired 95% intervals and the best remedy of each noise; writes `summary.json`, `noise_bench.csv`
and `noise_bench.png`. The same command on the same workdir continues.
"""

import sys

import ml_collections

from jaxreward.training import check
from jaxreward.training.exits import ConfigError

CONFIG = "configs/noise_bench.py"


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Trains everything and reports. `config` has passed `validate`."""
    from experiments import noise_bench_report, noise_bench_training  # import jax

    arms = noise_bench_training.build_arms(config)
    outcome = noise_bench_training.train(config, arms, workdir)
    noise_bench_report.write(config, workdir, list(arms), outcome)


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError, naming the key, the value and what is allowed."""
    check.required(config, "method", "optimizer.fn", "learning_rates", "noises", "remedies")
    check.positive(config, "seeds", "tuning_seeds", "steps", "prompts_per_step", "learning_rates")
    check.at_least(config, "group_size", 2, "a group baseline")
    check.at_least(config, "kl_coefficients", 0)
    check.choice(config, "baseline", list(config.remedies))
    for name in config.remedies:
        check.choice(config, f"remedies.{name}", list(config.transforms))
    for name in config.noises:
        check.rate(config, f"noises.{name}.rates")
    for name in config.controls:
        check.choice(config, f"controls.{name}", list(config.remedies))
        if name not in config.remedies:
            raise ConfigError(f"config.controls names {name!r}, which is not among the remedies")
    for path in config.extra:
        if path.count(":") != 1:
            raise ConfigError(f"transform {path!r}; allowed is PATH:FACTORY")


def arguments(argv: list[str]) -> list[str]:
    """The command line of every runner from this one's shorter one."""
    quick, extra, rest = False, [], []
    for argument in argv:
        if argument == "--quick":
            quick = True
        elif argument.startswith("--transform="):
            extra += [path for path in argument.partition("=")[2].split(",") if path]
        else:
            rest.append(argument)
    given = {argument.partition("=")[0] for argument in rest}
    if "--config" not in given:
        rest.append(f"--config={CONFIG}" + (":quick" if quick else ""))
    elif quick:
        raise ConfigError("--quick with --config; allowed is one, or --config=FILE:quick")
    if "--workdir" not in given:
        rest.append("--workdir=runs/noise_bench" + ("_quick" if quick else ""))
    return rest + ([f"--config.extra={tuple(extra)!r}"] if extra else [])


if __name__ == "__main__":
    from experiments import cli

    cli.spread_over_cores()
    with cli.exit_codes():
        command = arguments(sys.argv[1:])
    cli.main(run, command, validate=validate)
