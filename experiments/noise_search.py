"""Spends compute on the noise of a frozen image generator, and reports what a trusted judge says.

`python -m experiments.noise_search --config=configs/<method>.py[:variant] --workdir=DIR`

Every method is a study (see `experiments.studies`) of `experiments.image_studies`. A seed trains its
own generator, rewards and judge; the trained generator and what was found are kept in the workdir,
where the same command goes on with what is missing. A progress bar counts steps of training and
search.
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

    cli.main(run, validate=validate)
