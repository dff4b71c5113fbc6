"""WorkedCalculation: random arithmetic with written-out steps, for reasoning of a few words.

Importing this registers the builder, so that `tfds.data_source("worked_calculation/steps")`
finds it.
"""

from jaxreward.tasks.worked_calculation.builder import WorkedCalculation, WorkedCalculationConfig

Builder, Config = WorkedCalculation, WorkedCalculationConfig

__all__ = ["Builder", "Config", "WorkedCalculation", "WorkedCalculationConfig"]
