"""ExactFraction: small fraction arithmetic whose answers have many equivalent forms.

Importing this registers the builder, so that `tfds.data_source("exact_fraction/small")`
finds it.
"""

from jaxreward.tasks.exact_fraction.builder import ExactFraction, ExactFractionConfig

Builder, Config = ExactFraction, ExactFractionConfig

__all__ = ["Builder", "Config", "ExactFraction", "ExactFractionConfig"]
