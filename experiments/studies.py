"""Studies: arms x seeds of a small experiment as one program, with claims and a figure.

    python -m experiments.studies --config=configs/<method>.py[:variant] --workdir=DIR

A study is a function of a config, named by `config.study.fn`, that returns a `Study`; runners with
names of their own (`reward_model`, `noise_search`, `generate_rl`) are the same. `run`

1. runs the seeds, `config.seeds_at_a_time` together under `vmap`, and keeps each finished
   batch of seeds in `seeds/`, and what a seed pretrains in `pretrained/`, where the same command
   finds them again;
2. writes `summary.json`, `curves.npz` and `report.png`, and prints what was found.

Keys of such a config: `method`, `seed`, `seeds`, `seeds_at_a_time`, `study` (with `fn` and the
study's own settings), `claims` (each `claim, kind, better, worse, metric, margin`, kind "better",
"lower" or "equal", see `configs.study`) and `show` (metrics of the printed table and of the bars).
"""

import contextlib
import itertools
import pathlib
import time
import zipfile
from typing import Any, Callable, Iterator, NamedTuple

import jax
import ml_collections
import numpy as np

from jaxreward.training import check, figures, progress, report
from jaxreward.training.config import resolve
from jaxreward.training.exits import ConfigError, StorageError
from jaxreward.training.files import atomic_path, clear_temporary

KINDS = ("better", "lower", "equal")

Found = dict[str, dict[str, np.ndarray]]
"""`{arm: {metric: [seeds, ...]}}`; metrics with further axes are curves."""


class Study(NamedTuple):
    """An experiment.

    Attributes:
      run: `(key) -> {arm: {metric: number or curve}}` of one seed; pure, unless `on_host`.
      iterations: how often `run`, which then is `(key, tick)`, calls `tick()`, under `jit` too;
        0 where it takes the key alone. A progress bar counts them.
      on_host: whether `run` talks to the host, and so is called seed by seed, without `jit`.
      draw: `(config, found, results, axes)`, the method's own panel beside the bars; a tuple of
        several; or None.
      prepare: `(key) -> pytree` of arrays, such as pretrained parameters, that `run` takes as its
        second argument; kept in the workdir before a seed goes on. Pure; None for nothing.
      preparing: how often `prepare`, which then is `(key, tick)`, calls `tick()`.
    """

    run: Callable[..., dict[str, dict[str, Any]]]
    on_host: bool = False
    draw: Callable[..., None] | tuple[Callable[..., None], ...] | None = None
    iterations: int = 0
    prepare: Callable[..., Any] | None = None
    preparing: int = 0


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks the keys that all studies share.

    Raises:
      ConfigError: naming the key, the value and what is allowed.
    """
    check.required(config, "method", "study.fn", "show")
    check.positive(config, "seeds", "seeds_at_a_time")
    for name in config.claims:
        check.choice(config, f"claims.{name}.kind", KINDS)
        check.at_least(config, f"claims.{name}.margin", 0)
        if config.claims[name].kind == "equal":
            check.positive(config, f"claims.{name}.margin")


def run(config: ml_collections.ConfigDict, workdir: str) -> Found:
    """Runs a study to its end and returns what it found. `config` has passed `validate`."""
    root = pathlib.Path(workdir)
    study = resolve(config.study.fn)(config)
    found = _all_seeds(config, study, root)
    scalars = {
        arm: {name: values for name, values in own.items() if values.ndim == 1}
        for arm, own in found.items()
    }
    results = report.summarize(scalars)
    claims = [_claim(results, config.claims[name]) for name in config.claims]
    summary = report.make_summary(config, config.method, range(config.seeds), results, claims)
    path = report.write_summary(root, summary)
    _write_curves(root / "curves.npz", found)
    _draw(config, study, found, results, root / "report.png")
    print(f"\n{config.method}: {config.seeds} seeds")
    print(report.text_table(_rows(results, config.show)))
    print("\nclaims (paired over seeds, 95% interval)")
    print(report.text_table(report.claim_rows(claims)))
    print(f"\nwrote {path}, {root / 'report.png'}", flush=True)
    return found


def _all_seeds(config: ml_collections.ConfigDict, study: Study, root: pathlib.Path) -> Found:
    folder, size = root / "seeds", config.seeds_at_a_time
    folder.mkdir(parents=True, exist_ok=True)
    for place in (root, folder, root / "pretrained"):
        clear_temporary(place)
    key_of = lambda number: jax.random.fold_in(jax.random.key(config.seed), number)
    batches = {}
    for first in range(0, config.seeds, size):
        numbers = range(first, min(first + size, config.seeds))
        batches[folder / f"{numbers[0]}-{numbers[-1]}.npz"] = numbers
    left = [numbers for path, numbers in batches.items() if not path.exists()]
    if not left:
        config.to_dict()  # read when the seeds that are there ran: no key is superfluous
    unprepared = sum(not _prepared(root, n).exists() for numbers in left for n in numbers)
    ticks = study.iterations * len(left) + study.preparing * unprepared
    with _ticking(study, ticks, config.method) as study:
        jitted = None if study.on_host else jax.jit(jax.vmap(study.run) if size > 1 else study.run)
        if left and jitted is not None:
            _check_names(config, _measured(study, jitted, size, key_of(0)))
        many = _runner(study, jitted, size)
        for path, numbers in batches.items():
            if not path.exists():
                _save(path, many([_arguments(study, root, n, key_of(n)) for n in numbers]))
            print(f"{config.method}: seeds {numbers[0]} to {numbers[-1]} are done", flush=True)
    parts = [_load(path) for path in batches]
    known = [arm for arm in config.study.get("arms", {}) if arm in parts[0]]
    arms = dict.fromkeys([*known, *parts[0]])  # jax sorts; the config's order is to be shown
    return {
        arm: {name: np.concatenate([part[arm][name] for part in parts]) for name in parts[0][arm]}
        for arm in arms
    }


@contextlib.contextmanager
def _ticking(study: Study, ticks: int, name: str) -> Iterator[Study]:
    """The study without `tick` in its functions: they move a progress bar over so many."""
    if not ticks:
        yield _bound(study, lambda: None)
        return
    with progress.open_progress(ticks, name=name) as bar:
        count = itertools.count(1)
        yield _bound(study, lambda: jax.debug.callback(lambda: bar.update(next(count), {})))
        jax.effects_barrier()


def _bound(study: Study, tick: Callable[[], None]) -> Study:
    run, prepare = study.run, study.prepare
    if study.iterations:
        run = lambda *given: study.run(*given, tick)
    if study.preparing:
        prepare = lambda key: study.prepare(key, tick)
    return study._replace(run=run, prepare=prepare)


def _runner(study: Study, jitted: Any, size: int) -> Callable[[list[tuple[Any, ...]]], Found]:
    """From the `_arguments` of `size` seeds to what they found; `jitted` is None on the host.

    A seed on its own is not mapped: convolutions with mapped kernels are far slower on a CPU.
    """
    stack = lambda *leaves: jax.numpy.stack(leaves)
    if size > 1 and jitted is not None:
        return lambda given: _fetched(jitted(*jax.tree.map(stack, *given)))
    one = study.run if jitted is None else jitted
    join = lambda *leaves: np.stack(leaves)
    return lambda given: jax.tree.map(join, *(_fetched(one(*own)) for own in given))


def _fetched(tree: Any) -> Any:
    """What a program computes, as numpy. Python hears no signal while it waits inside of jax."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    while not all(array.is_ready() for array in arrays):
        time.sleep(0.02)
    return jax.tree.map(np.asarray, tree)


def _measured(study: Study, jitted: Any, size: int, key: jax.Array) -> dict[str, list[str]]:
    """Metrics by arm, curves aside, of a program that is traced here and not again."""
    own = (key,) if study.prepare is None else (key, jax.eval_shape(study.prepare, key))
    axes = (size,) if size > 1 else ()
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*axes, *x.shape), x.dtype), own)
    found = jitted.eval_shape(*given)
    return {arm: [m for m in own if own[m].ndim == len(axes)] for arm, own in found.items()}


def _check_names(config: ml_collections.ConfigDict, measured: dict[str, list[str]]) -> None:
    """Raises ConfigError for an arm or a metric that the study will not measure."""
    for name in config.claims:
        claim = config.claims[name]
        for side in ("better", "worse"):
            check.choice(config, f"claims.{name}.{side}", measured)
            check.choice(config, f"claims.{name}.metric", measured[claim[side]])
    check.choice(config, "show", dict.fromkeys(m for own in measured.values() for m in own))


def _arguments(study: Study, root: pathlib.Path, number: int, key: jax.Array) -> tuple[Any, ...]:
    """What `run` takes of one seed; what it prepares is read from the workdir or put there."""
    if study.prepare is None:
        return (key,)
    path, tree = _prepared(root, number), jax.tree.structure(jax.eval_shape(study.prepare, key))
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        leaves = jax.tree.leaves(_fetched(jax.jit(study.prepare)(key)))
        with atomic_path(path) as temporary:
            np.savez(temporary, *leaves)
    kept = _read(path)
    leaves = [jax.numpy.asarray(kept[f"arr_{i}"]) for i in range(len(kept))]
    return key, jax.tree.unflatten(tree, leaves)


def _prepared(root: pathlib.Path, number: int) -> pathlib.Path:
    return root / "pretrained" / f"{number}.npz"


_SPLIT = "::"  # between arm and metric; slashes stand in metrics


def _save(path: pathlib.Path, found: Found) -> None:
    flat = {f"{arm}{_SPLIT}{name}": v for arm, own in found.items() for name, v in own.items()}
    with atomic_path(path) as temporary:
        np.savez(temporary, **flat)


def _load(path: pathlib.Path) -> Found:
    found: Found = {}
    for label, values in _read(path).items():
        arm, _, name = label.partition(_SPLIT)
        found.setdefault(arm, {})[name] = values
    return found


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of a file that a run keeps."""
    try:
        with open(path, "rb") as stream, np.load(stream) as file:
            return {name: file[name] for name in file.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise StorageError(
            f"{path} cannot be read ({error}); without it the same command makes it again"
        ) from error


def _write_curves(path: pathlib.Path, found: Found) -> None:
    curves = {
        arm: {name: values for name, values in own.items() if values.ndim > 1}
        for arm, own in found.items()
    }
    if any(curves.values()):
        _save(path, curves)


def _claim(results: report.Results, c: ml_collections.ConfigDict) -> report.Claim:
    own = (results, c.claim, c.better, c.worse, c.metric)
    if c.kind == "equal":
        return report.equivalence(*own, margin=c.margin)
    return report.claim(*own, margin=c.margin, lower_is_better=c.kind == "lower")


def _rows(results: report.Results, shown) -> report.Table:
    rows = [["arm", *shown]]
    for arm, own in results.items():
        cells = [
            report.figure(own[name]["mean"], own[name]["ci95"]) if name in own else ""
            for name in shown
        ]
        rows.append([arm, *cells])
    return rows


def _draw(config, study: Study, found: Found, results: report.Results, path) -> None:
    """A row with bars of the shown metrics; with the study's own panels beside or below."""
    shown = [name for name in config.show if any(name in own for own in results.values())]
    if not shown:
        raise ConfigError(f"config.show = {tuple(config.show)}; the study measured none of these")
    own = study.draw if isinstance(study.draw, tuple) else (study.draw,) if study.draw else ()
    beside = len(own) == 1
    columns = len(shown) + 1 if beside else max(len(shown), len(own))
    height = max(3.0, 0.8 + 0.3 * len(results))
    rows = 1 if len(own) < 2 else 2
    figure, axes = figures.new_figure(rows, columns, width=5.0, height=height)
    for panel, metric in zip(axes[0], shown):
        figures.bars(panel, results, metric)
    places = axes[0, -1:] if beside else axes[-1]
    for panel, draw in zip(places, own):
        draw(config, found, results, panel)
    for panel in axes.flat:
        panel.set_visible(panel.has_data())
    figure.suptitle(f"{config.method}: {config.seeds} seeds, bars with 95% intervals")
    figures.save(figure, path)


if __name__ == "__main__":
    from experiments import cli

    cli.spread_over_cores()
    cli.main(run, validate=validate)
