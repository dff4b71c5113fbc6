"""The loop of `jaxreward.rewards.pool`: give work, listen, enforce deadlines."""

import dataclasses
import math
import multiprocessing.connection
import numbers
import time
from collections import Counter, deque
from typing import NamedTuple

from jaxreward.rewards import pool_process
from jaxreward.rewards.pool_process import Settings, Worker

CAUSES = (
    "timeout",  # no verdict within the deadline
    "raised",  # the verifier raised, or called sys.exit
    "died",  # the worker process ended
    "not_a_number",  # None, a string, a list, ...
    "non_finite",  # NaN or infinity
    "out_of_range",  # a number outside `allowed_range`
    "too_long",  # the response or the answer is longer than `max_length`
)
"""Why a verdict is missing. The cause of a verdict that exists is the empty string."""

MAX_STAND_INS = 16
"""Most workers that are started in place of stuck ones."""

_TICK_S = 0.02  # how often deadlines are looked at
_CHUNK_S = 0.05  # work handed to a worker at once, by the measured pace
_MAX_CHUNK, _MAX_CHUNK_CHARACTERS = 256, 65_536
_STALL_S = 0.5  # after this long on one sample a worker gets a stand-in, see `_enforce`
_STARTUP_S = 60.0
_MAX_FAILED_STARTS = 3


class Outcome(NamedTuple):
    """What became of a sample: a value, or a cause and a detail for the log."""

    value: float | None
    cause: str = ""
    detail: str = ""


@dataclasses.dataclass(eq=False)
class Crew:
    """The workers and what is known of them.

    Attributes:
      settings: of the pool.
      workers: every process, whatever its state.
      counts: workers `started`, `recycled`, `lost`.
      pace: measured seconds per sample of each verifier.
      failed_starts: workers in a row that ended before they were ready.
    """

    settings: Settings
    workers: list[Worker]
    counts: Counter[str]
    pace: dict[str, float]
    failed_starts: int = 0


class _Batch(NamedTuple):
    """Samples on their way: those waiting for a worker, and what became of the others."""

    verifier: str
    texts: list[tuple[str, str]]
    queue: deque[int]
    outcomes: dict[int, Outcome]
    ends: float


def run(crew: Crew, verifier: str, texts: list[tuple[str, str]]) -> list[Outcome]:
    """Has the crew verify `(response, answer)` pairs; every pair has an outcome.

    Raises:
      ValueError: a new worker cannot import the verifiers.
      RuntimeError: workers keep ending while they start.
    """
    crew.failed_starts = 0
    ends = time.monotonic() + crew.settings.batch_timeout_s
    batch = _Batch(verifier, texts, deque(range(len(texts))), {}, ends)
    try:
        while len(batch.outcomes) < len(texts):
            _give(crew, batch)
            _listen(crew, batch)
            _enforce(crew, batch)
    finally:  # also when interrupted: nobody works on a batch that is over
        _remove(crew, [w for w in crew.workers if w.pending or w.stale])
    tidy(crew)
    return [batch.outcomes[i] for i in range(len(texts))]


def await_start(crew: Crew) -> None:
    """Starts the workers and returns when one is ready. Raises as `run` does."""
    nothing = _Batch("", [], deque(), {}, math.inf)
    tidy(crew)
    while not any(worker.ready for worker in crew.workers):
        _listen(crew, nothing)
        _enforce(crew, nothing)
        tidy(crew)


def tidy(crew: Crew) -> None:
    """As many workers as asked for, none of them used up. Waits for none to start."""
    _recycle(crew)
    _remove(crew, crew.workers[crew.settings.workers :])
    while len(crew.workers) < crew.settings.workers:
        _start(crew)


def _start(crew: Crew) -> None:
    crew.workers.append(pool_process.start(crew.settings))
    crew.counts["started"] += 1


def _remove(crew: Crew, workers: list[Worker]) -> None:
    pool_process.stop(workers)
    for worker in workers:
        crew.workers.remove(worker)


def _recycle(crew: Crew) -> None:
    limit = crew.settings.recycle_after
    used_up = [w for w in crew.workers if w.served >= limit and not w.pending]
    _remove(crew, used_up)
    crew.counts["recycled"] += len(used_up)


def _give(crew: Crew, batch: _Batch) -> None:
    """Hands waiting samples to idle workers; starts workers in place of stuck ones."""
    _recycle(crew)
    for worker in [w for w in crew.workers if w.ready and not w.pending]:
        if not batch.queue:
            return
        if pool_process.has_exited(worker):  # while idle: no sample's fault
            _lose(crew, worker, batch, "died")
            continue
        chunk = _chunk(crew, worker, batch)
        if not pool_process.send_chunk(worker, batch.verifier, chunk, batch.texts):
            batch.queue.extendleft(reversed(chunk))
            _lose(crew, worker, batch, "died")
    stuck = min(sum(w.stalled for w in crew.workers), MAX_STAND_INS)
    while batch.queue and len(crew.workers) < crew.settings.workers + stuck:
        _start(crew)


def _chunk(crew: Crew, worker: Worker, batch: _Batch) -> list[int]:
    """Takes samples off the queue: what the worker does in 50 ms, and no unfair share."""
    queue, share = batch.queue, len(batch.queue) // (2 * crew.settings.workers)
    size = max(1, min(_MAX_CHUNK, share, int(_CHUNK_S / crew.pace[batch.verifier])))
    size = min(size, crew.settings.recycle_after - worker.served)
    chunk, characters = [], 0
    while queue and len(chunk) < size and characters < _MAX_CHUNK_CHARACTERS:
        chunk.append(queue.popleft())
        characters += sum(map(len, batch.texts[chunk[-1]]))
    return chunk


def _listen(crew: Crew, batch: _Batch) -> None:
    sockets = [worker.socket for worker in crew.workers]
    readable = set(multiprocessing.connection.wait(sockets, _TICK_S))
    for worker in list(crew.workers):
        if worker.socket in readable or pool_process.has_exited(worker):
            _hear(crew, worker, batch)


def _hear(crew: Crew, worker: Worker, batch: _Batch) -> None:
    gone = pool_process.has_exited(worker)  # asked first: what it said before still counts
    for message in pool_process.receive(worker):
        if not _take(crew, worker, message, batch):
            gone = True
            break
    if gone or worker.closed:
        _lose(crew, worker, batch, "died")


def _take(crew: Crew, worker: Worker, message, batch: _Batch) -> bool:
    """Acts on one message. False if the worker must go: it broke the protocol or is stale."""
    if not worker.ready:
        if isinstance(message, dict) and "broken" in message:
            raise ValueError(f"verifiers cannot be loaded: {_printable(message['broken'])}")
        worker.ready, crew.failed_starts = message == {"ready": True}, 0
        return worker.ready
    match message:
        case [int(i), value, str(cause), str(detail)]:
            if not worker.pending or i != worker.pending[0]:
                return False
            batch.outcomes[i] = _judge(crew.settings, value, cause, detail)
        case _:
            return False
    now, pace = time.monotonic(), crew.pace[batch.verifier]
    crew.pace[batch.verifier] = pace + 0.1 * (now - worker.since - pace)
    worker.pending.popleft()
    worker.since, worker.stalled = now, False
    return not worker.stale


def _judge(settings: Settings, value, cause: str, detail: str) -> Outcome:
    if cause in CAUSES:
        return Outcome(None, cause, _printable(detail))
    if not isinstance(value, numbers.Real):
        return Outcome(None, "not_a_number")
    if not math.isfinite(value):
        return Outcome(None, "non_finite", repr(value))
    if not settings.low <= value <= settings.high:
        return Outcome(None, "out_of_range", f"{value:g}")
    return Outcome(float(value))


def _printable(text) -> str:
    return ascii(str(text)[:200])[1:-1]


def _lose(crew: Crew, worker: Worker, batch: _Batch, cause: str, detail: str = "") -> None:
    """Ends a worker; the sample it was on is missing, the rest of its chunk waits again."""
    _remove(crew, [worker])
    crew.counts["lost"] += 1
    if worker.pending:
        detail = detail or f"exit code {worker.process.returncode}"
        batch.outcomes[worker.pending.popleft()] = Outcome(None, cause, detail)
    _requeue(worker, batch)
    if worker.ready:
        return
    crew.failed_starts += 1
    if crew.failed_starts >= _MAX_FAILED_STARTS:
        _remove(crew, [w for w in crew.workers if not w.ready])
        raise RuntimeError(
            f"{crew.failed_starts} verifier workers in a row ended while starting, the last "
            f"with exit code {worker.process.returncode}"
        )


def _requeue(worker: Worker, batch: _Batch) -> None:
    while worker.pending:
        batch.queue.appendleft(worker.pending.pop())


def _enforce(crew: Crew, batch: _Batch) -> None:
    """Ends what is past its deadline.

    A worker long on one sample is first only `stalled`: the rest of its chunk goes to
    others and a stand-in is started, so that samples that hang wait out their deadlines
    side by side and hold up nobody.
    """
    timeout_s = crew.settings.timeout_s
    for worker in list(crew.workers):
        since = worker.since
        taken = time.monotonic() - since
        if not worker.ready and taken > _STARTUP_S:
            _lose(crew, worker, batch, "died")
        elif worker.pending and taken > timeout_s:
            _hear(crew, worker, batch)  # this process may have slept: is it done after all?
            if worker.pending and worker.since == since:
                _lose(crew, worker, batch, "timeout", f"after {timeout_s:g} s")
        elif worker.pending and not worker.stalled and taken > min(_STALL_S, timeout_s / 4):
            culprit = worker.pending.popleft()
            worker.stalled, worker.stale = True, worker.stale or bool(worker.pending)
            _requeue(worker, batch)
            worker.pending.append(culprit)
    if time.monotonic() > batch.ends:
        for i in set(range(len(batch.texts))) - set(batch.outcomes):
            batch.outcomes[i] = Outcome(None, "timeout", "the batch's deadline")
