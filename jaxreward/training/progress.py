"""What a person sees while a run goes on."""

import contextlib
import sys
import time
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Sequence

import numpy as np

_LINES = 20  # of a whole run, where there is no terminal
_SECONDS = 30.0  # at most between lines


class Progress(NamedTuple):
    """A progress bar on a terminal, plain lines elsewhere.

    Attributes:
      update: `(steps done, metrics by slash name)`.
      note: `(text)`, a line of its own.
    """

    update: Callable[[int, Mapping[str, Any]], None]
    note: Callable[[str], None]


@contextlib.contextmanager
def open_progress(
    steps: int,
    done: int = 0,
    *,
    name: str = "train",
    show: Sequence[str] = (),
    stream: Any = None,
) -> Iterator[Progress]:
    """Opens the progress display.

    Args:
      steps: number of steps of the whole run.
      done: steps done before, by an earlier process.
      name: what is going on.
      show: names of the metrics shown; default the first four scalars.
      stream: a text file; default standard error.
    """
    stream = sys.stderr if stream is None else stream
    opened = _bar if stream.isatty() else _lines
    with opened(steps, done, name, show, stream) as progress:
        yield progress


@contextlib.contextmanager
def _bar(steps, done, name, show, stream) -> Iterator[Progress]:
    from tqdm import tqdm

    with tqdm(total=steps, initial=done, desc=name, file=stream, dynamic_ncols=True) as bar:

        def update(step: int, metrics: Mapping[str, Any]) -> None:
            bar.set_postfix_str(figures(metrics, show), refresh=False)
            bar.update(step - bar.n)

        yield Progress(update, lambda text: bar.write(text, file=stream))


@contextlib.contextmanager
def _lines(steps, done, name, show, stream) -> Iterator[Progress]:
    every = max(steps // _LINES, 1)
    start = last = time.monotonic()

    def note(text: str) -> None:
        print(text, file=stream, flush=True)

    def update(step: int, metrics: Mapping[str, Any]) -> None:
        nonlocal last
        now = time.monotonic()
        if step % every and step != steps and now - last < _SECONDS:
            return
        last = now
        rate = (step - done) / max(now - start, 1e-9)
        left = f"{(steps - step) / rate:.0f} s left" if rate > 0 else ""
        note(f"{name} {step}/{steps}  {rate:.3g} steps/s  {left}  {figures(metrics, show)}")

    yield Progress(update, note)


def figures(metrics: Mapping[str, Any], show: Sequence[str] = ()) -> str:
    """The metrics of `show` that are there, or the first four scalars, in one line."""
    scalars = [name for name in metrics if np.ndim(metrics[name]) == 0]
    names = [name for name in show if name in metrics] if show else scalars[:4]
    return "  ".join(f"{name} {float(np.mean(metrics[name])):.4g}" for name in names)
