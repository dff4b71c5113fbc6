"""Trains small image generators by reward and compares the ways to.

`python -m experiments.generate_rl --config=configs/<method>.py[:variant] --workdir=DIR`

Every method is a study (see `experiments.studies`): `config.study.fn` builds it from generators,
rewards and arms that the config describes; each seed trains its own generator first, which is kept
in the workdir. The same command continues with what is missing.

A reward of your own, a function `(image, label) -> number` of a float32 image [8, 8, 1] in [-1, 1]:

    --config=configs/rlcm.py       --config.study.reward=my_rewards:score
    --config=configs/find.py:own   --config.study.reward=my_rewards:score
    --config=configs/rg_lcd.py:own --config.study.reward=my_rewards:score

It runs on the host, and what it raises costs the sample alone (metric `reward/missing`);
`jit:my_rewards:score` is a function of jax and may be differentiated (`configs/rg_lcd.py:own_direct`).
See `experiments.generator_studies.own_reward`.
"""

import ml_collections
import numpy as np

THREADS = 8
"""Least number of devices that are seen where the samples are split over some of them."""


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Runs the study and reports. `config` has passed `validate`."""
    from experiments import cli, generator_figures, studies  # imports jax

    found = studies.run(config, workdir)
    generator_figures.draw(found, workdir)
    missing = {arm: np.sum(own.get("reward/missing", 0.0)) for arm, own in found.items()}
    counts = ", ".join(f"{arm} {count:.0f}" for arm, count in missing.items() if count)
    if counts:
        cli.say(f"missing rewards, of all seeds: {counts}", "warning")


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError, naming the key, the value and what is allowed."""
    from experiments import cli, generator_checks, studies

    if config.study.get("devices", 1) != 1:
        cli.spread_over_cores(least=THREADS)
    studies.validate(config)
    generator_checks.validate(config)


if __name__ == "__main__":
    from experiments import cli

    cli.spread_over_cores()
    cli.main(run, validate=validate)
