"""What the studies of noise search share: a generator that is pretrained for each seed."""

from typing import Any, Callable

import jax
import ml_collections

from experiments import generator_checks
from experiments.image_studies import problem, report
from experiments.studies import Study


def make_study(
    c: ml_collections.ConfigDict, run: Callable[..., dict[str, Any]], *, keys: int, iterations: int
) -> Study:
    """A study whose generator is pretrained: the one-step student, if `c` has one.

    Args:
      c: a config's `study`.
      run: `(c, banks, keys, generator, tick) -> found` of one seed.
      keys: how many a seed has; the first is the pretraining's.
      iterations: how often `run` calls `tick()`.
    """
    banks = problem.load_banks()
    split = lambda key: jax.random.split(key, keys)

    def prepare(key: jax.Array, tick: Callable[[], None]) -> Any:
        first = split(key)[0]
        teacher = problem.train_teacher(first, banks.train, c.generator, tick=tick)
        if "student" not in c:
            return teacher.params
        return problem.train_student(jax.random.fold_in(first, 1), teacher, c.student, tick).params

    def run_seed(key: jax.Array, params: Any, tick: Callable[[], None]) -> dict[str, Any]:
        generator = problem.build_teacher(c.generator)._replace(params=params)
        return run(c, banks, split(key), generator, tick)

    steps = c.generator.steps + (c.student.steps if "student" in c else 0)
    return Study(
        run_seed, draw=report.PANELS, iterations=iterations, prepare=prepare, preparing=steps
    )


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks the size of the generator.

    Raises:
      ConfigError: naming the key, the value and what is allowed.
    """
    with generator_checks.named("study.generator"):
        problem.build_teacher(config.study.generator)
