"""Spends compute on the noise of a frozen image generator, and reports what a trusted judge says.

`python -m experiments.noise_search --config=configs/<method>.py[:variant] --workdir=DIR`

Every method is a study (see `experiments.studies`) of `experiments.image_studies`. A seed trains its
own generator, rewards and judge; what it found is kept in the workdir, where the same command goes
on with the seeds that are missing.
"""

import ml_collections


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Runs the study and reports. `config` has passed `validate`."""
    from experiments import studies  # imports jax

    studies.run(config, workdir)


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError, naming the key, the value and what is allowed."""
    from experiments import studies
    from jaxreward.training import check

    studies.validate(config)
    check.positive(config, "study.generator.steps", "study.generator.batch")


if __name__ == "__main__":
    from experiments import cli

    cli.main(run, validate=validate)
