"""Host verifiers in a pool of worker processes that can be killed one by one.

    with open_pool({"symbolic": "jaxreward.rewards.verifiers:math_verify"}) as pool:
        verdicts = pool.verify("symbolic", responses, answers)

A verifier is a plain function `(response, answer) -> float | bool` named by dotted path.
Each worker imports the verifiers once, sees no accelerator and does not import jax; it is
replaced after `recycle_after` samples. One that hangs in a C call, raises, exits, is killed
or returns something that is no reward costs that sample only: its verdict is missing, with a
cause, counted and logged. Every other sample of the batch keeps its verdict.

What a verifier does with a text happens in a worker. The trainer's process handles texts as
data: it measures, hashes and sends them as JSON, and reads back JSON (never pickle). Verdicts
are taken to be deterministic, so real ones are cached; workers run with a fixed hash seed.

POSIX only. Workers die with the trainer, also when it is killed, and so does what they start,
but for processes that put themselves into a session of their own.
"""

import hashlib
import logging
import math
import os
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxreward.rewards import pool_loop, pool_process
from jaxreward.rewards.pool_loop import CAUSES, Crew, Outcome
from jaxreward.rewards.pool_process import Settings

_log = logging.getLogger(__name__)


class Verdicts(NamedTuple):
    """What a verifier said about `N` samples.

    Attributes:
      values: float32 `[N]`; NaN where missing, so that a forgotten mask cannot pay a 0.
      ok: bool `[N]`, True where there is a verdict.
      causes: `N` strings, "" where there is a verdict, else one of `CAUSES`.
    """

    values: np.ndarray
    ok: np.ndarray
    causes: tuple[str, ...]


def open_pool(
    verifiers: Mapping[str, str],
    *,
    workers: int = 2,
    timeout_s: float | int = 5.0,
    batch_timeout_s: float | int | None = None,
    recycle_after: int = 10_000,
    cache_size: int = 65_536,
    allowed_range: tuple[float | int, float | int] | None = (0.0, 1.0),
    max_length: int = 100_000,
    memory_limit_mb: int | None = 4096,
) -> "VerifierPool":
    """Starts the workers and waits until one has imported the verifiers.

    Args:
      verifiers: dotted path `module:function` of each verifier by name.
      workers: number of processes. While some are stuck up to 16 more stand in for them.
      timeout_s: hard deadline of one sample in seconds; must cover an honest verdict on the
        slowest machine used, because a timeout depends on the machine's load.
      batch_timeout_s: deadline of a whole call of `verify`; None for no other than that of
        its samples. Samples without a verdict by then are missing ("timeout").
      recycle_after: samples one worker serves before a fresh one replaces it.
      cache_size: verdicts kept (least recently used first out); 0 turns the cache off, for
        verifiers that draw at random: then equal samples of a batch are verified each.
      allowed_range: least and largest reward; a number outside is missing
        ("out_of_range"). None allows any finite number.
      max_length: longest response or answer in characters; a longer one is missing.
      memory_limit_mb: address space of a worker; None for no limit. Exceeding it raises
        MemoryError inside the verifier.

    Raises:
      ValueError: an argument outside its range, or a verifier that cannot be imported.
    """
    low, high = allowed_range or (-math.inf, math.inf)
    settings = Settings(
        verifiers=dict(verifiers),
        workers=workers,
        timeout_s=timeout_s,
        batch_timeout_s=math.inf if batch_timeout_s is None else batch_timeout_s,
        recycle_after=recycle_after,
        cache_size=cache_size,
        low=low,
        high=high,
        max_length=max_length,
        memory_limit_mb=memory_limit_mb,
    )
    _check(settings)
    _check_paths(verifiers)
    return VerifierPool(settings)


def _check(settings: Settings) -> None:
    for name in ("workers", "timeout_s", "recycle_after", "max_length", "memory_limit_mb"):
        limit = getattr(settings, name)
        if limit is not None and not 0 < limit < math.inf:
            raise ValueError(f"{name} = {limit}; allowed is > 0 and finite")
    if not settings.batch_timeout_s > 0:
        raise ValueError(f"batch_timeout_s = {settings.batch_timeout_s}; allowed is > 0 or None")
    if settings.cache_size < 0:
        raise ValueError(f"cache_size = {settings.cache_size}; allowed is >= 0")
    if not settings.low <= settings.high:
        bounds = (settings.low, settings.high)
        raise ValueError(f"allowed_range = {bounds}; allowed is (low, high), low <= high")


def _check_paths(verifiers: Mapping[str, str]) -> None:
    if not verifiers:
        raise ValueError("verifiers is empty; allowed is at least one `module:function` by name")
    for name, path in verifiers.items():
        if path.count(":") != 1 or not all(path.split(":")):
            raise ValueError(f"verifiers[{name!r}] = {path!r}; allowed is `module:function`")


class VerifierPool:
    """Worker processes and the verdict cache; build it with `open_pool`.

    A context manager. Safe to call from any thread; calls take turns.
    """

    def __init__(self, settings: Settings):
        pace = dict.fromkeys(settings.verifiers, 0.01)
        self._crew = Crew(settings, workers=[], counts=Counter(), pace=pace)
        self._cache: OrderedDict[bytes, float] = OrderedDict()
        self._lock = threading.Lock()
        self._owner = os.getpid()
        workers = self._crew.workers
        self._close = weakref.finalize(self, pool_process.stop_all, workers, self._owner)
        try:
            pool_loop.await_start(self._crew)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> "VerifierPool":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends every worker. Further calls of `verify` raise RuntimeError."""
        with self._lock:
            self._close()

    def stats(self) -> dict[str, int]:
        """Counts since the pool was opened.

        `samples` asked for, `cached` of them answered from the cache or from an equal sample
        of the same batch, missing ones by cause, workers `started`, `recycled` (after their
        share) and `lost` (killed at a deadline or dead).
        """
        names = ("samples", "cached", *CAUSES, "started", "recycled", "lost")
        with self._lock:
            return {name: self._crew.counts[name] for name in names}

    def verify(self, name: str, responses: Sequence, answers: Sequence) -> Verdicts:
        """Verdicts of verifier `name` on `N` pairs of response and reference answer (strings).

        Ends within the work of the honest samples + `timeout_s` + 2 s if no more than 16
        samples hang, and within `batch_timeout_s` + 2 s if that is set.

        Raises:
          ValueError: unknown `name`, lengths that differ, or something that is not a string.
          RuntimeError: the pool is closed, was opened by another process (before a fork), or
            its workers cannot be started any more.
        """
        _check_samples(name, self._crew.settings.verifiers, responses, answers)
        with self._lock:
            if not self._close.alive or self._owner != os.getpid():
                raise RuntimeError("the verifier pool is closed, or belongs to another process")
            outcomes = self._verify(name, list(zip(responses, answers)))
            self._report(name, outcomes)
        return Verdicts(
            values=np.array([math.nan if o.cause else o.value for o in outcomes], np.float32),
            ok=np.array([not o.cause for o in outcomes], bool),
            causes=tuple(o.cause for o in outcomes),
        )

    def _verify(self, name: str, texts: list[tuple[str, str]]) -> list[Outcome]:
        settings, cache = self._crew.settings, self._cache
        outcomes: list[Outcome | None] = [None] * len(texts)
        unseen: dict[bytes, list[int]] = {}
        for i, pair in enumerate(texts):
            if max(map(len, pair)) > settings.max_length:
                outcomes[i] = Outcome(None, "too_long", f"{max(map(len, pair))} characters")
                continue
            digest = _digest(name, *pair) if settings.cache_size else b"%d" % i
            if digest in cache:
                cache.move_to_end(digest)
                outcomes[i] = Outcome(cache[digest])
                self._crew.counts["cached"] += 1
            else:
                unseen.setdefault(digest, []).append(i)
        fresh = pool_loop.run(self._crew, name, [texts[same[0]] for same in unseen.values()])
        for outcome, (digest, same) in zip(fresh, unseen.items()):
            self._crew.counts["cached"] += len(same) - 1
            for i in same:
                outcomes[i] = outcome
            if settings.cache_size and not outcome.cause:
                cache[digest] = outcome.value
        while len(cache) > settings.cache_size:
            cache.popitem(last=False)
        return outcomes

    def _report(self, name: str, outcomes: list[Outcome]) -> None:
        """Counts, and logs a missing verdict the first three times and at powers of two."""
        self._crew.counts["samples"] += len(outcomes)
        for i, (_, cause, detail) in enumerate(outcomes):
            if not cause:
                continue
            self._crew.counts[cause] += 1
            n = self._crew.counts[cause]
            if n <= 3 or n & (n - 1) == 0:
                _log.warning(
                    "verifier %s: sample %d of %d is missing: %s (%s); %d so far",
                    *(name, i, len(outcomes), cause, detail, n),
                )


def _check_samples(name, verifiers, responses, answers) -> None:
    if name not in verifiers:
        raise ValueError(f"name = {name!r}; allowed are {sorted(verifiers)}")
    if len(responses) != len(answers):
        raise ValueError(
            f"{len(responses)} responses and {len(answers)} answers; allowed are equal numbers"
        )
    for field, texts in (("responses", responses), ("answers", answers)):
        for i, text in enumerate(texts):
            if not isinstance(text, str):
                raise ValueError(f"{field}[{i}] is a {type(text).__name__}; allowed is str")


def _digest(name: str, response: str, answer: str) -> bytes:
    """16 bytes that stand for the three texts, lone surrogates included."""
    parts = [text.encode("utf-8", "surrogatepass") for text in (name, response, answer)]
    head = b"%d,%d," % (len(parts[0]), len(parts[1]))
    return hashlib.blake2b(head + b"".join(parts), digest_size=16).digest()
