"""Trains and compares reward models on preferences or feedback with known defects.

`python -m experiments.reward_model --config=configs/<method>.py[:variant] --workdir=DIR`

Every method is a study (see `experiments.studies`): `config.study.fn` builds it from data, network
and arms that the config describes. The same command continues with the seeds that are missing.
"""

import ml_collections


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Runs the study and reports. `config` has passed `validate`."""
    from experiments import studies  # imports jax

    studies.run(config, workdir)


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError, naming the key, the value and what is allowed."""
    from experiments import studies

    studies.validate(config)


if __name__ == "__main__":
    from experiments import cli

    cli.spread_over_cores()
    cli.main(run, validate=validate)
