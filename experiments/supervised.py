"""Supervised training on contaminated data: accuracy against noise.

`python -m experiments.supervised --config=configs/<method>.py[:variant] --workdir=DIR`

Every arm is one data set, made from `config.task` and the arm's own changes; its seeds train
side by side in one program. After training, answers to the clean test prompts are sampled
greedily and at temperature 1, and judged by what follows their last `=`.

Writes `summary.json` and `report.png`. A finished arm is kept in `arms/`; the same command
continues with the next one.
"""

import ml_collections

from experiments.supervised_config import GREEDY, TRUE, validate


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Trains every arm and reports. `config` has passed `supervised_config.validate`."""
    from experiments import supervised_report, supervised_training  # heavy imports

    found, programs = {}, supervised_training.make_programs(config)
    for arm in config.arms:
        found[arm] = supervised_training.finished(config, arm, workdir)
        if found[arm] is None:
            found[arm] = supervised_training.train(config, programs, arm, workdir)
        numbers = {name: sum(v) / len(v) for name, v in found[arm].items()}
        print(f"{arm}: greedy {numbers[GREEDY]:.3f}, T=1 {numbers[TRUE]:.3f}", flush=True)
    supervised_report.write(config, workdir, found)


if __name__ == "__main__":
    from experiments import cli

    cli.spread_over_cores()
    cli.main(run, validate=validate)
