"""Grade-school word problems and sums made by reasoning-gym (arXiv 2410.05229, 2505.24760).

Importing this registers the builder, so that `tfds.data_source("gsm_symbolic/words")` finds it.
reasoning-gym is needed only where a data set is generated.
"""

from jaxreward.tasks.gsm_symbolic.builder import GsmSymbolic, GsmSymbolicConfig

Builder, Config = GsmSymbolic, GsmSymbolicConfig

__all__ = ["Builder", "Config", "GsmSymbolic", "GsmSymbolicConfig"]
