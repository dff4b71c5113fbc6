"""Wall time of jitted calls, and how often something is compiled meanwhile."""

import contextlib
import time
from typing import Any, Callable, Iterator

import jax
import numpy as np


def seconds(
    function: Callable[..., Any], *args: Any, repeats: int, warm: bool = True
) -> list[float]:
    """Seconds of each of `repeats` calls, after one that is not counted unless `warm` is False."""
    if warm:
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


def ratio(slow: list[float], fast: list[float]) -> tuple[float, float, float]:
    """Median of `slow / fast` over turns, with a 95% interval by the bootstrap over turns."""
    each = np.asarray(slow) / np.asarray(fast)
    drawn = np.random.default_rng(0).choice(each, (2000, len(each)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(np.median(each)), float(low), float(high)


@contextlib.contextmanager
def compilations() -> Iterator[list[int]]:
    """Counts what jax compiles in the block; the count is the one entry of the list."""
    count = [0]

    def listen(name: str, duration: float, **_: Any) -> None:
        count[0] += name == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield count
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
