"""Trains small image generators by reward and compares the ways to.

`python -m experiments.generate_rl --config=configs/<method>.py[:variant] --workdir=DIR`

Every method is a study (see `experiments.studies`): `config.study.fn` builds it from generators,
rewards and arms that the config describes; each seed trains its own generator first, which is kept
in the workdir. The same command continues with what is missing.
"""

import ml_collections


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Runs the study and reports. `config` has passed `validate`."""
    from experiments import generator_figures, studies  # imports jax

    generator_figures.draw(studies.run(config, workdir), workdir)


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError, naming the key, the value and what is allowed."""
    from experiments import generator_checks, studies

    studies.validate(config)
    generator_checks.validate(config)


if __name__ == "__main__":
    from experiments import cli

    cli.spread_over_cores()
    cli.main(run, validate=validate)
