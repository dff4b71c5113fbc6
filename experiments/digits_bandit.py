"""The fast bench: corrections of a noisy verifier on a bandit of real digits.

`python -m experiments.digits_bandit --config=configs/digits_bandit.py[:smoke] --workdir=DIR`

Arms x pairs of rates x KL coefficients x seeds train as one program. Prints test success for
every cell of the grid, what each correction adds to its control, a comparison with the figures
of an independent implementation, and the claims; writes `summary.json` and `report.png`. It
checkpoints, and the same command continues.
"""

import ml_collections

from jaxreward.training import check
from jaxreward.training.exits import ConfigError

START = "start"
"""The arm that does not learn; claims may name it."""


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Trains everything and reports. `config` has passed `validate`."""
    from experiments import arms as arms_lib  # heavy imports only once the config is good
    from experiments import digits_report, digits_training

    arms = arms_lib.build_arms(config, digits_training.PROVIDED)
    problem = digits_training.load_problem(config)
    grid = digits_training.make_grid(config)
    final = digits_training.train(config, problem, arms, grid, workdir)
    digits_report.write(config, workdir, grid, final)


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError, naming the key, the value and what is allowed."""
    check.required(config, "method", "optimizer.fn", "grid.kl_coefficient")
    positive = ("seeds", "steps", "prompts_per_step", "learning_rate", "warm_start.learning_rate")
    check.positive(config, *positive, "evaluation.every", "checkpoint.every")
    check.positive(config, "safety.max_skipped_in_a_row")
    check.at_least(config, "seed", 0)
    check.at_least(config, "group_size", 2, "a group baseline")
    check.at_least(config, "warm_start.steps", 0)
    check.at_least(config, "checkpoint.keep", 2)
    check.at_least(config, "grid.kl_coefficient", 0)
    check.correctable(config, "grid.false_positive", "grid.false_negative")
    check.in_range(config, "task.train_prompts", 1, 1796)
    check.in_range(config, "task.labels", 1, config.task.train_prompts)
    check.divisible(config, "steps", config.evaluation.every, "evaluation.every")
    _check_arms(config)
    _check_claims(config)


def _check_arms(config: ml_collections.ConfigDict) -> None:
    if not config.arms or START in config.arms:
        raise ConfigError(f"config.arms = {list(config.arms)}; allowed are arms, none {START!r}")
    for arm in config.arms:
        check.required(config, f"arms.{arm}")
        check.choice(config, f"arms.{arm}", list(config.transforms))
    for arm in config.controls:
        check.choice(config, f"controls.{arm}", list(config.arms))
        if arm not in config.arms:
            raise ConfigError(
                f"config.controls names the arm {arm!r}; allowed are {', '.join(config.arms)}"
            )
    for path in ("inert", "rescaled"):
        check.choice(config, path, list(config.arms))


def _check_claims(config: ml_collections.ConfigDict) -> None:
    """Claims name arms that are there and a cell that is on the grid."""
    at, grid = config.claims_at, config.grid
    if len(grid.false_positive) != len(grid.false_negative):
        raise ConfigError(
            f"config.grid.false_positive = {grid.false_positive} and false_negative = "
            f"{grid.false_negative} differ in length; allowed are equal lengths"
        )
    pairs = list(zip(grid.false_positive, grid.false_negative))
    if (at.false_positive, at.false_negative) not in pairs:
        raise ConfigError(
            f"config.claims_at.false_positive = {at.false_positive} and false_negative = "
            f"{at.false_negative} are not a pair of the grid; allowed are {pairs}"
        )
    check.choice(config, "claims_at.kl_coefficient", grid.kl_coefficient)
    for name in config.claims:
        check.choice(config, f"claims.{name}.kind", ("better", "equal"))
        check.at_least(config, f"claims.{name}.margin", 0)
        if config.claims[name].kind == "equal":
            check.positive(config, f"claims.{name}.margin")
        for side in ("better", "worse"):
            check.choice(config, f"claims.{name}.{side}", [*config.arms, START])


if __name__ == "__main__":
    from experiments import cli

    cli.main(run, validate=validate)
