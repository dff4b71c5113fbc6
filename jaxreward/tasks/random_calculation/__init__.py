"""RandomCalculation: exact values of random expressions (arXiv 2507.10532).

Importing this registers the builder, so that `tfds.data_source("random_calculation/digits")`
finds it.
"""

from jaxreward.tasks.random_calculation.builder import RandomCalculation, RandomCalculationConfig

Builder, Config = RandomCalculation, RandomCalculationConfig

__all__ = ["Builder", "Config", "RandomCalculation", "RandomCalculationConfig"]
