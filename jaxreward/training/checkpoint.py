"""Checkpoints that are whole or not used.

A step is a folder `<directory>/<step>` written by Orbax: item `state`, the arrays by name, and
item `host`, JSON. When it is complete it is *sealed* by `manifest.json`, which holds the size
and SHA-256 of each of its files. Restoring takes the newest step that is as its manifest
says, so that a file that was truncated, zeroed, deleted or flipped is noticed, also where
Orbax would load it. A step without manifest (the process died between the two) is tried only
when no sealed one can be read.

Saving is asynchronous: only the copy from the device blocks. An error in the background is
raised by the next `save`, `check` or `wait`.
"""

import base64
import concurrent.futures
import contextlib
import json
import logging
import os
import pathlib
import shutil
from typing import Any, Callable, Iterator, NamedTuple
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np

from jaxreward.training import files
from jaxreward.training.exits import CheckpointError, ConfigError

_log = logging.getLogger("jaxreward")
_MANIFEST = "manifest.json"
_TMP = "*.orbax-checkpoint-tmp*"
_MEETING_MS = 600_000  # how long a process waits for process 0 to seal a checkpoint


class Restored(NamedTuple):
    """A checkpoint that was read.

    Attributes:
      step: its step.
      state: pytree, structured and placed as the template.
      host: the JSON value given to `save` (tuples come back as lists).
    """

    step: int
    state: Any
    host: Any


class Checkpoints(NamedTuple):
    """An open folder of checkpoints.

    Attributes:
      save: `(step, state, host)`; starts writing and returns once the arrays are copied.
      restore_newest: `(template) -> Restored`, or None where there is no checkpoint. The
        template is a state or its `ShapeDtypeStruct`s; a leaf with a sharding is restored
        onto it.
      newest: `() -> int`, the newest sealed step, or None.
      check: `()`, raises if a save failed.
      wait: `()`, returns when the last save is sealed, or raises.
    """

    save: Callable[[int, Any, Any], None]
    restore_newest: Callable[[Any], Restored | None]
    newest: Callable[[], int | None]
    check: Callable[[], None]
    wait: Callable[[], None]


@contextlib.contextmanager
def open_checkpoints(directory: str | os.PathLike, *, keep: int = 3) -> Iterator[Checkpoints]:
    """Opens a folder of checkpoints; it is created by the first save.

    Args:
      directory: on a local or mounted file system.
      keep: number of newest sealed steps kept, >= 2 so that a torn one has a predecessor.

    Raises:
      ConfigError: `keep` < 2.
      CheckpointError: from the functions, when writing or reading fails, or on leaving.
    """
    if keep < 2:
        raise ConfigError(f"checkpoint keep = {keep}; allowed is >= 2")
    import orbax.checkpoint as ocp  # slow to import

    root = pathlib.Path(directory).absolute()
    _remove_unfinished(root)
    pending: list[concurrent.futures.Future] = []
    saver = ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler())
    meet = ocp.multihost.get_barrier_sync_fn()
    sealer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="seal")

    def check(wait: bool = False) -> None:
        if pending and (wait or pending[0].done()):
            with _failure_named(f"cannot write a checkpoint in {root}", root):
                pending.pop().result()

    def save(step: int, state: Any, host: Any) -> None:
        check(wait=True)
        named = _named(state)
        spec = {name: _describe(name, leaf) for name, leaf in named.items()}
        blob = {"format": 1, "leaves": spec, "host": encode(host)}
        stored = {quote(n): _to_store(x) for n, x in named.items() if x.size}
        with _failure_named(f"cannot write checkpoint {step} in {root}", root):
            root.mkdir(parents=True, exist_ok=True)
            saver.save(
                root / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.PyTreeSave(stored), host=ocp.args.JsonSave(blob)
                ),
            )
        pending.append(sealer.submit(_finish, saver, root, step, keep, meet))

    try:
        yield Checkpoints(
            save,
            lambda template: _restore_newest(root, template, set_aside=True),
            lambda: _newest_sealed(root),
            check,
            lambda: check(wait=True),
        )
        check(wait=True)
    finally:
        sealer.shutdown(wait=True)
        with contextlib.suppress(Exception):  # it is either raised above or not the first
            saver.close()


@contextlib.contextmanager
def _failure_named(what: str, root: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        last = _newest_sealed(root)
        kept = "there is no older one" if last is None else f"step {last} is whole"
        raise CheckpointError(f"{what}: {_one_line(error)}; {kept}") from error


def _finish(saver: Any, root: pathlib.Path, step: int, keep: int, meet: Any) -> None:
    """Waits for Orbax, seals the step, removes old ones. Runs in the background.

    Process 0 does it for all; the others wait until it has.
    """
    saver.wait_until_finished()
    if jax.process_index() == 0:
        _seal_and_remove(root, step, keep)
    meet(key=f"sealed {root}/{step}", timeout_ms=_MEETING_MS)


def _seal_and_remove(root: pathlib.Path, step: int, keep: int) -> None:
    _seal(root / str(step))
    sealed = [s for s in _steps(root) if (root / str(s) / _MANIFEST).exists()]
    oldest = sealed[:keep][-1]
    for old in _steps(root):
        if old < oldest:
            (root / str(old) / _MANIFEST).unlink(missing_ok=True)  # then never half whole
            shutil.rmtree(root / str(old))


def _seal(folder: pathlib.Path) -> None:
    inside = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != _MANIFEST]
    entries = {
        p.relative_to(folder).as_posix(): {"size": p.stat().st_size, "sha256": files.sha256(p)}
        for p in inside
    }
    files.atomic_write(folder / _MANIFEST, json.dumps({"files": entries}, indent=1))


def find_damage(folder: str | os.PathLike) -> str | None:
    """What is wrong with a step's folder: None if every file is as the manifest says."""
    folder = pathlib.Path(folder)
    try:
        entries = json.loads((folder / _MANIFEST).read_bytes())["files"]
        for name, expected in entries.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["size"]:
                return f"{name} has {path.stat().st_size} bytes instead of {expected['size']}"
            if files.sha256(path) != expected["sha256"]:
                return f"{name} was changed"
    except FileNotFoundError:
        return f"it has no {_MANIFEST}: it was not finished"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} is damaged"
    return None


def _steps(root: pathlib.Path) -> list[int]:
    """Steps with a folder, newest first."""
    if not root.is_dir():
        return []
    return sorted((int(p.name) for p in root.iterdir() if p.name.isdecimal()), reverse=True)


def _newest_sealed(root: pathlib.Path) -> int | None:
    sealed = [s for s in _steps(root) if (root / str(s) / _MANIFEST).exists()]
    return sealed[0] if sealed else None


def _remove_unfinished(root: pathlib.Path) -> None:
    if root.is_dir() and jax.process_index() == 0:
        for path in root.glob(_TMP):
            shutil.rmtree(path, ignore_errors=True)


def _restore_newest(root: pathlib.Path, template: Any, set_aside: bool) -> Restored | None:
    for name, leaf in _named(template).items() if template is not None else ():
        _describe(name, leaf)  # what could not be saved is refused now, not at the first save
    found = _steps(root)
    if not found:
        return None
    sealed = [s for s in found if (root / str(s) / _MANIFEST).exists()]
    problems = {}
    for step in sealed + [s for s in found if s not in sealed]:
        damage = _from_first_process(lambda: find_damage(root / str(step)))
        if damage and step in sealed:
            problems[step] = damage
            continue
        try:
            restored = _read(root / str(step), template)
        except CheckpointError:  # it is whole, but of another state
            raise
        except Exception as error:
            problems[step] = damage or _one_line(error)
            continue
        unused = {s: problems.get(s) or find_damage(root / str(s)) for s in found if s > step}
        for bad, why in unused.items():
            _log.warning("checkpoint %d in %s is not used: %s", bad, root, why)
        if damage:
            _log.warning("checkpoint %d in %s is used unverified: %s", step, root, damage)
        if set_aside:
            _set_aside(root, list(unused))
        return restored
    listed = "; ".join(f"{step}: {why}" for step, why in problems.items())
    raise CheckpointError(
        f"none of the checkpoints in {root} can be read, nothing was changed ({listed})"
    )


def _set_aside(root: pathlib.Path, steps: list[int]) -> None:
    """Renames steps that will be written again; only the latest such folders are kept."""
    if steps and jax.process_index() == 0:
        for old in root.glob("torn-*"):
            shutil.rmtree(old)
        for step in steps:
            os.replace(root / str(step), root / f"torn-{step}")


def read_newest(directory: str | os.PathLike) -> Restored | None:
    """The newest readable checkpoint as a dict of NumPy arrays by name; changes nothing.

    Typed keys are given as their key data.
    """
    return _restore_newest(pathlib.Path(directory).absolute(), None, set_aside=False)


def _read(folder: pathlib.Path, template: Any) -> Restored:
    """Reads one step. Raises CheckpointError where it does not fit the template."""
    import orbax.checkpoint as ocp

    reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    blob = reader.restore(folder, args=ocp.args.Composite(host=ocp.args.JsonRestore()))["host"]
    spec = blob["leaves"]
    leaves = dict.fromkeys(spec) if template is None else _named(template)
    if template is not None:
        _check_fit(folder, spec, {name: _describe(name, leaf) for name, leaf in leaves.items()})
    args = {
        quote(name): _restore_args(ocp, leaf)
        for name, leaf in leaves.items()
        if 0 not in spec[name]["shape"]  # Orbax stores no empty arrays
    }
    stored = {}
    if args:
        restore = ocp.args.PyTreeRestore(item=dict.fromkeys(args, 0), restore_args=args)
        stored = reader.restore(folder, args=ocp.args.Composite(state=restore))["state"]
    state = {
        name: _place(stored.get(quote(name)), spec[name], leaf) for name, leaf in leaves.items()
    }
    if template is not None:
        state = jax.tree.unflatten(jax.tree.structure(template), list(state.values()))
    return Restored(int(folder.name), state, decode(blob["host"]))


def _check_fit(folder: pathlib.Path, there: dict[str, Any], here: dict[str, Any]) -> None:
    for name in [*here, *there]:
        ours, stored = _in_words(here.get(name)), _in_words(there.get(name))
        if ours != stored:
            raise CheckpointError(
                f"checkpoint {folder} does not fit: {name} is {stored} there and {ours} here"
            )


def _in_words(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "absent"
    return f"{entry['dtype']}[{','.join(str(n) for n in entry['shape'])}]"


def _named(state: Any) -> dict[str, Any]:
    """Leaves by path, such as `params/layers/0/kernel`."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name in named:
            raise CheckpointError(f"two leaves of the state are called {name}")
        named[name] = leaf
    return named


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(name: str, leaf: Any) -> dict[str, Any]:
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise CheckpointError(
            f"leaf {name} of the state is {leaf!r}, a {type(leaf).__name__}; allowed are arrays"
        )
    entry = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    if isinstance(leaf, jax.Array) and _is_key(leaf):
        entry["impl"] = str(jax.random.key_impl(leaf))
    return entry


def _to_store(leaf: Any) -> Any:
    if isinstance(leaf, jax.Array):
        return jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return np.array(leaf)  # the caller may change its own while this one is written


def _sharding(leaf: Any) -> Any:
    """Where a leaf of the template wants to be; None if it does not say."""
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    return getattr(leaf, "sharding", None)


def _restore_args(ocp: Any, leaf: Any) -> Any:
    if leaf is None or _sharding(leaf) is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    return ocp.ArrayRestoreArgs(sharding=_sharding(leaf))


def _place(stored: Any, entry: dict[str, Any], leaf: Any) -> Any:
    """What was read as the leaf of the template is; as NumPy where there is no template."""
    if stored is None:
        stored = np.zeros(entry["shape"], np.uint32 if "impl" in entry else entry["dtype"])
    if leaf is None or isinstance(leaf, (np.ndarray, np.generic)):
        return stored
    if not isinstance(stored, jax.Array):
        stored = _array(stored, _sharding(leaf))
    return jax.random.wrap_key_data(stored, impl=entry["impl"]) if "impl" in entry else stored


def _array(stored: np.ndarray, sharding: Any) -> jax.Array:
    """On devices, of which this process need not have all."""
    if sharding is None:
        return jnp.array(stored)
    return jax.make_array_from_callback(stored.shape, sharding, lambda index: stored[index])


def encode(value: Any, path: str = "host") -> Any:
    """A JSON value in which bytes and NumPy scalars are allowed too.

    Raises:
      CheckpointError: something else is inside; the message names its path.
    """
    if isinstance(value, bytes):
        return {"__bytes__": base64.b64encode(value).decode()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [encode(item, f"{path}/{i}") for i, item in enumerate(value)]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: encode(item, f"{path}/{key}") for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise CheckpointError(
        f"{path} = {value!r} cannot be saved; allowed are None, bool, int, float, str, bytes, "
        "and lists and string-keyed dicts of those"
    )


def decode(value: Any) -> Any:
    """What `encode` was given, with lists for tuples."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        if set(value) == {"__bytes__"}:
            return base64.b64decode(value["__bytes__"])
        return {key: decode(item) for key, item in value.items()}
    return value


def _from_first_process(find: Callable[[], str | None]) -> str | None:
    """`find()` of process 0, of which the other processes learn only whether it is None."""
    if jax.process_count() == 1:
        return find()
    from jax.experimental import multihost_utils

    found = find() if jax.process_index() == 0 else None
    bad = multihost_utils.broadcast_one_to_all(np.int32(found is not None))
    return (found or "process 0 found it damaged") if bad else None


def _one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:300]}..."
