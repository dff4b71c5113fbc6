"""Rewards that only the host can compute, called from inside a `jit`.

    reward = on_host(my_score, axes=(3, 0), timeout_s=10.0)   # my_score(image, label) -> float
    reward.score(images, labels)                              # [P, G, H, W, C], [P, G] -> [P, G]

A sample whose score raises, takes too long or is no number is missing: NaN, which
`types.make_signal` masks and every search takes for the worst, counted and logged. Its siblings
keep theirs. Verifiers of texts that may hang in a C call belong into `rewards.pool`, whose processes
can be killed; the threads here cannot.
"""

import logging
import queue
import threading
from collections import Counter
from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxreward.checks import check_number

CAUSES = ("raised", "timeout", "no_number", "not_finite")
"""Why a score is missing."""

_log = logging.getLogger(__name__)


class HostReward(NamedTuple):
    """A score behind a callback.

    Attributes:
      score: `(*arguments [*batch, ...]) -> float32 [*batch]`, NaN where missing; under `jit` and
        `vmap`, without gradient (differentiating it raises).
      missing: `() -> {cause: count}` since it was built, all of `CAUSES`.
      function: the score of one sample that it was built from.
    """

    score: Callable[..., Array]
    missing: Callable[[], dict[str, int]]
    function: Callable[..., Any]


class Found(NamedTuple):
    """What a score says of one sample.

    Attributes:
      value: a finite float, or NaN where it is missing.
      cause: one of `CAUSES` where it is missing, else empty.
      detail: the same in words.
    """

    value: float
    cause: str = ""
    detail: str = ""


def on_host(
    score: Callable[..., Any], *, axes: Sequence[int], timeout_s: float | int | None = None
) -> HostReward:
    """A black box of one sample as a reward of batches.

    Args:
      score: of one sample, `(*arguments) -> number`, of numpy arrays that are its own to write to,
        and numpy scalars where an argument has no axes; pure, since it may be called once more or
        once less than the program says. Not called from two threads at once unless one has run
        out of time.
      axes: number of axes that one sample has in each argument, such as 3 for an image and 0 for
        a label; the axes before them are the batch's, the same in all.
      timeout_s: of one sample, in seconds; None waits for ever. What has run out of time goes on in
        a thread of its own, whose result nobody reads.

    Raises:
      ValueError: no arguments, a negative number of axes, a timeout <= 0; when called, another
        number of arguments, or batches that differ.
    """
    axes = tuple(axes)
    if not axes:
        raise ValueError("axes = (); allowed is one number for each argument")
    check_number("axes", np.asarray(axes), lambda v: v >= 0, ">= 0")
    if timeout_s is not None:
        check_number("timeout_s", timeout_s, lambda v: v > 0, "> 0 or None")
    counts: Counter[str] = Counter()
    alone = threading.Lock()  # a program may reach two of its callbacks at once

    def on_batch(*arguments: Any) -> np.ndarray:
        parts = [np.array(argument) for argument in arguments]
        batch = _batch(parts, axes)
        rows = [part.reshape((-1,) + part.shape[len(batch) :]) for part in parts]
        with alone:
            values = _run(score, list(zip(*rows)), timeout_s, counts)
        return np.asarray(values, np.float32).reshape(batch)

    def batched(*arguments: Array) -> Array:
        arguments = tuple(jnp.asarray(argument) for argument in arguments)
        shape = jax.ShapeDtypeStruct(_batch(arguments, axes), jnp.float32)
        return jax.pure_callback(on_batch, shape, *arguments, vmap_method="broadcast_all")

    return HostReward(batched, lambda: {cause: counts[cause] for cause in CAUSES}, score)


def score_one(score: Callable[..., Any], *sample: Any) -> Found:
    """One sample's score; what it raises, `sys.exit` too, and what is no number is missing."""
    try:
        return _number(score(*sample))
    except (Exception, SystemExit) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return Found(np.nan, "raised", said[:200])


def _batch(arguments: Sequence[Any], axes: tuple[int, ...]) -> tuple[int, ...]:
    if len(arguments) != len(axes):
        raise ValueError(f"{len(arguments)} arguments; allowed are {len(axes)}, as many as axes")
    shapes = [argument.shape for argument in arguments]
    batches = {shape[: len(shape) - own] for shape, own in zip(shapes, axes)}
    if len(batches) != 1 or any(len(shape) < own for shape, own in zip(shapes, axes)):
        raise ValueError(f"arguments of shapes {shapes}; allowed are equal axes before the last {axes}")
    return batches.pop()


def _run(score: Callable, samples: list[tuple], timeout_s: Any, counts: Counter) -> list[float]:
    """The scores in order, NaN where missing."""
    values: list[float] = []
    while len(values) < len(samples):
        results: queue.SimpleQueue = queue.SimpleQueue()
        left, stop = samples[len(values) :], threading.Event()
        if timeout_s is None:
            _work(score, left, results, stop)
        else:
            arguments = (score, left, results, stop)
            threading.Thread(target=_work, args=arguments, daemon=True).start()
        for _ in left:
            try:
                found = results.get(timeout=timeout_s)
            except queue.Empty:
                stop.set()
                found = Found(np.nan, "timeout", f"over {timeout_s:g} s")
            values.append(found.value)
            if found.cause:
                _count(counts, found, len(values), len(samples))
            if stop.is_set():
                break
    return values


def _work(score: Callable, samples: list[tuple], results: Any, stop: threading.Event) -> None:
    for sample in samples:
        if stop.is_set():
            return
        results.put(score_one(score, *sample))


def _number(found: Any) -> Found:
    """The score as a float, or NaN with a cause and what was there."""
    shown = np.asarray(found)
    if shown.size != 1 or not (np.issubdtype(shown.dtype, np.number) or shown.dtype == bool):
        return Found(np.nan, "no_number", f"{type(found).__name__} of shape {shown.shape}")
    if np.iscomplexobj(shown):
        return Found(np.nan, "no_number", "complex")
    with np.errstate(over="ignore"):
        value = float(shown.reshape(()).astype(np.float32))
    return Found(value) if np.isfinite(value) else Found(np.nan, "not_finite", str(value))


def _count(counts: Counter, found: Found, number: int, total: int) -> None:
    """Counts, and logs the first three and at powers of two."""
    counts[found.cause] += 1
    n = counts[found.cause]
    if n <= 3 or n & (n - 1) == 0:
        _log.warning(
            "reward of sample %d of %d is missing: %s (%s); %d so far",
            *(number, total, found.cause, found.detail, n),
        )
