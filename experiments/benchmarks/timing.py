"""Wall time of jitted calls."""

import time
from typing import Any, Callable

import jax
import numpy as np


def seconds(function: Callable[..., Any], *args: Any, repeats: int) -> list[float]:
    """Seconds of each of `repeats` calls, after one that is not counted."""
    jax.block_until_ready(function(*args))
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        found.append(time.perf_counter() - start)
    return found


def middle(values: list[float]) -> str:
    """Median with minimum and maximum, in milliseconds."""
    low, mid, high = (1e3 * f(values) for f in (np.min, np.median, np.max))
    return f"{mid:.1f} ({low:.1f} to {high:.1f})"
