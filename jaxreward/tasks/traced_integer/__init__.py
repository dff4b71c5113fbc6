"""TracedInteger: execution traces of integer programs with controlled noise (arXiv 2402.04004).

Importing this registers the builder, so that `tfds.data_source("traced_integer/runmax")`
finds it.
"""

from jaxreward.tasks.traced_integer.builder import TracedInteger, TracedIntegerConfig

Builder, Config = TracedInteger, TracedIntegerConfig

__all__ = ["Builder", "Config", "TracedInteger", "TracedIntegerConfig"]
