"""Supervised training on contaminated data: accuracy against noise.

`python -m experiments.supervised --config=configs/<method>.py[:variant] --workdir=DIR`

Every arm is one data set, made from `config.task` and the arm's own changes; its seeds train
side by side in one program. After training, answers to the clean test prompts are sampled
greedily and at temperature 1, and judged by what follows their last `=`.

Writes `summary.json` and `report.png`. A finished arm is kept in `arms/`; the same command
continues with the next one.
"""

import ml_collections

from experiments.supervised_metrics import GREEDY, TRUE
from jaxreward.training import check
from jaxreward.training.exits import ConfigError


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Trains every arm and reports. `config` has passed `validate`."""
    from experiments import supervised_report, supervised_training  # heavy imports

    found, programs = {}, supervised_training.make_programs(config)
    for arm in config.arms:
        found[arm] = supervised_training.finished(config, arm, workdir)
        if found[arm] is None:
            found[arm] = supervised_training.train(config, programs, arm, workdir)
        numbers = {name: sum(v) / len(v) for name, v in found[arm].items()}
        print(f"{arm}: greedy {numbers[GREEDY]:.3f}, T=1 {numbers[TRUE]:.3f}", flush=True)
    supervised_report.write(config, workdir, found)


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError, naming the key, the value and what is allowed."""
    check.required(config, "method", "task.dataset", "task.alphabet", "task.spec")
    positive = ("seeds", "steps", "batch_size", "learning_rate", "samples_tested")
    check.positive(config, *positive, "sampler.max_new_tokens", "model.width", "model.layers")
    check.at_least(config, "warm_up", 0)
    if not config.arms:
        raise ConfigError("config.arms is empty; needed is at least one arm")
    for arm in config.arms:
        for key in config.arms[arm]:
            if key not in config.task.spec:
                known = ", ".join(config.task.spec)
                raise ConfigError(f"config.arms.{arm} changes {key!r}; allowed are {known}")
    for name in config.claims:
        for side in ("better", "worse"):
            check.choice(config, f"claims.{name}.{side}", list(config.arms))
        check.choice(config, f"claims.{name}.metric", (TRUE, GREEDY))
        check.at_least(config, f"claims.{name}.margin", 0)


if __name__ == "__main__":
    from experiments import cli

    cli.spread_over_cores()
    cli.main(run, validate=validate)
