"""jaxreward: learning from noisy and imperfect rewards, as composable pure functions."""

__version__ = "0.1.0"
