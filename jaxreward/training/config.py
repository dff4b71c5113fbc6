"""Configs: load, override, name objects, hash, and watch which keys are read.

A config file holds `get_config(arg="") -> ConfigDict`. Its values are booleans, integers,
finite floats, strings, tuples or lists of those, and sections; a value that may be unset is
`optional(kind)`. Iteration is in the order in which keys were written, not alphabetical.

This module imports nothing heavy: a bad config is refused before jax is loaded.
"""

import ast
import copy
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import pathlib
import traceback
from types import ModuleType
from typing import Any, Callable, Iterator, Mapping

import ml_collections
from ml_collections import config_dict

from jaxreward.training.exits import ConfigError


def section(**entries: Any) -> ml_collections.ConfigDict:
    """A sub-config with the given entries."""
    return ml_collections.ConfigDict(entries)


def optional(kind: type) -> config_dict.FieldReference:
    """A value of type `kind` that is unset (reads `None`) until it is given."""
    return config_dict.placeholder(kind)


def load_module(path: str) -> ModuleType:
    """Executes a config file.

    Raises:
      ConfigError: there is no such file, it fails, or it has no `get_config`.
    """
    file = pathlib.Path(path)
    if file.suffix != ".py" or not file.is_file():
        there = sorted(str(p) for p in file.parent.glob("*.py") if p.stem != "__init__")
        raise ConfigError(f"config = {path!r} is not a file;{_suggest(path, there)}")
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(f"config = {path!r} fails: {_where(error, path)}") from error
    if not callable(getattr(module, "get_config", None)):
        raise ConfigError(f"config = {path!r} does not define get_config(arg='')")
    return module


def split_spec(spec: str) -> tuple[str, str]:
    """`configs/x.py:smoke` to `("configs/x.py", "smoke")`; the variant may be empty."""
    path, colon, variant = spec.partition(".py:")
    return (f"{path}.py", variant) if colon else (spec, "")


def load_config(spec: str) -> ml_collections.ConfigDict:
    """The locked config of `configs/x.py[:variant]`.

    Raises:
      ConfigError: the file or the variant does not exist, or a value has no place in a config.
    """
    return call_get_config(load_module(split_spec(spec)[0]), spec)


def call_get_config(module: ModuleType, spec: str) -> ml_collections.ConfigDict:
    """The locked config of a loaded file; `spec` says which variant. See `load_config`."""
    path, variant = split_spec(spec)
    try:
        config = module.get_config(variant) if variant else module.get_config()
    except Exception as error:
        raise ConfigError(f"config = {spec!r} fails: {_where(error, path)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise ConfigError(f"config = {spec!r}: get_config returned {type(config).__name__}")
    return finish(config)


def finish(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Locks a config, makes it iterate in the order of writing and checks its values.

    Raises:
      ConfigError: a value is of a kind that a config cannot hold.
    """
    for path, value in leaves(config):
        if value is None and get_type(config, path) is type(None):
            raise ConfigError(f"config.{path} is a bare None; use optional(kind)")
        _check_value(path, value)
    return _in_order(config).lock()


def _in_order(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    # ConfigDict sorts its keys unless told otherwise when made, and does not tell sections
    # assigned as plain dicts, nor copies; the order of writing is there nevertheless.
    object.__setattr__(config, "_sort_keys", False)
    for _, value in _entries(config):
        if isinstance(value, ml_collections.ConfigDict):
            _in_order(value)
    return config


def _check_value(path: str, value: Any) -> None:
    if isinstance(value, (tuple, list)):
        for item in value:
            _check_value(path, item)
    elif value is not None and not isinstance(value, (bool, int, float, str)):
        raise ConfigError(
            f"config.{path} = {value!r} has no place in a config; allowed are bool, int, "
            "float, str, tuples of those, and the dotted path of anything else"
        )
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"config.{path} = {value}; allowed are finite numbers")


def leaves(config: ml_collections.ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of everything that is not a section."""
    for key, value in _entries(config):
        if isinstance(value, ml_collections.ConfigDict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _entries(config: ml_collections.ConfigDict) -> list[tuple[str, Any]]:
    """Keys and resolved values, read so that no tracking notices."""
    entries = config.items(preserve_field_references=True)
    reference = config_dict.FieldReference
    return [(k, v.get() if isinstance(v, reference) else v) for k, v in entries]


def get(config: ml_collections.ConfigDict, path: str) -> Any:
    """The value at a dotted path.

    Raises:
      ConfigError: there is none; the message lists what is there and the nearest name.
    """
    parent, key = _parent(config, path)
    return dict(_entries(parent))[key]


def get_type(config: ml_collections.ConfigDict, path: str) -> type:
    """The type that the value at a dotted path has or, if unset, must have."""
    parent, key = _parent(config, path)
    return parent.get_type(key)


def _parent(config: ml_collections.ConfigDict, path: str):
    """The section that holds the last key of `path`, and that key."""
    *names, last = path.split(".")
    seen, here = "config", config
    for name in [*names, last]:
        entries = dict(_entries(here)) if isinstance(here, ml_collections.ConfigDict) else {}
        if name not in entries:
            raise ConfigError(_no_such_key(config, path, seen, name, list(entries)))
        parent, here, seen = here, entries[name], f"{seen}.{name}"
    return parent, last


def _no_such_key(config, path: str, seen: str, name: str, siblings: list[str]) -> str:
    if not siblings:
        return f"config.{path} is not a key: {seen} is a value or an empty section"
    if not difflib.get_close_matches(name, siblings, 1):
        last = path.rpartition(".")[2]
        same = [known for known, _ in leaves(config) if known.rpartition(".")[2] == last]
        if same:
            return f"config.{path} is not a key; did you mean config.{same[0]}?"
    return f"config.{path} is not a key: {seen} has no {name!r};{_suggest(name, siblings)}"


def _suggest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, 1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return f"{hint} allowed are {', '.join(known) if known else 'none'}"


def override(
    config: ml_collections.ConfigDict, assignments: Mapping[str, str]
) -> ml_collections.ConfigDict:
    """A copy of `config` with values given as text, as on a command line, then resolved.

    References between keys follow the new values. Texts: `true`/`false`; integers; numbers;
    strings as they are; tuples as Python literals or comma-separated (`a,b` or `a,`).

    Args:
      config: as from `load_config`.
      assignments: text by dotted path.

    Raises:
      ConfigError: a key does not exist or a text does not fit its type.
    """
    config = _in_order(copy.deepcopy(config))
    for path, text in assignments.items():
        parent, key = _parent(config, path)
        current = dict(_entries(parent))[key]
        if isinstance(current, ml_collections.ConfigDict):
            raise ConfigError(
                f"config.{path} = {text!r}: this is a section; allowed are its keys "
                f"{', '.join(current) or '(none)'}"
            )
        value = _parse(path, text, parent.get_type(key), current)
        try:
            parent[key] = value
        except TypeError as error:
            raise ConfigError(f"config.{path} = {text!r}: {_one_line(error)}") from error
    for path, value in leaves(config):
        _check_value(path, value)
    return resolved(config)


def resolved(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A locked copy without references between keys; what is unset is None."""
    copied = ml_collections.ConfigDict(sort_keys=False)
    for key, value in _entries(config):
        is_section = isinstance(value, ml_collections.ConfigDict)
        copied[key] = resolved(value) if is_section else value
    return copied.lock()


def _parse(path: str, text: str, kind: type, current: Any) -> Any:
    try:
        if kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        if kind in (int, float, str):
            return kind(text)
        return _parse_sequence(text, kind, current or ())
    except (ValueError, SyntaxError, KeyError, TypeError):
        kinds = {bool: "true or false", int: "an integer", float: "a number"}
        example = f"e.g. {current!r}" if current else "e.g. (1, 2)"
        allowed = kinds.get(kind, f"a {kind.__name__}, {example}")
        raise ConfigError(f"config.{path} = {text!r}; allowed is {allowed}") from None


def _parse_sequence(text: str, kind: type, current: Any) -> Any:
    kinds = {type(item) for item in current}
    if kinds <= {str} and not text.lstrip().startswith(("(", "[", "'", '"')):
        return kind(part.strip() for part in text.split(",") if part.strip())
    value = ast.literal_eval(text)
    if not isinstance(value, (tuple, list)):
        raise TypeError("not a sequence")
    if kinds == {float}:
        value = [float(v) if type(v) is int else v for v in value]
    if len(kinds) == 1 and {type(v) for v in value} - kinds:
        raise TypeError("an element is of another type")
    return kind(value)


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The config as nested dicts and lists that JSON can hold, in order."""
    values = {}
    for key, value in _entries(config):
        is_section = isinstance(value, ml_collections.ConfigDict)
        values[key] = plain(value) if is_section else value
    return json.loads(json.dumps(values, allow_nan=False))


def canonical_json(config: ml_collections.ConfigDict) -> str:
    """The one text of a resolved config. Order counts: it may be the order of a chain."""
    return json.dumps(plain(config), indent=2, allow_nan=False) + "\n"


def sha(config: ml_collections.ConfigDict) -> str:
    """SHA-256 of the canonical text, hexadecimal."""
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()


def resolve(path: str) -> Any:
    """The object that a dotted path `package.module:name[.attribute]` names.

    Raises:
      ConfigError: the path is malformed, or there is no such module or name.
    """
    module_name, colon, names = path.partition(":")
    if not colon or not names or not module_name:
        raise ConfigError(f"{path!r} is not a path; allowed is package.module:name")
    try:
        here = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{path!r}: {error}") from error
    for name in names.split("."):
        if not hasattr(here, name):
            public = [known for known in dir(here) if not known.startswith("_")]
            near = difflib.get_close_matches(name, public, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"{path!r}: {module_name} has no {name!r}{hint}")
        here = getattr(here, name)
    return here


def build(call: ml_collections.ConfigDict, *args: Any, **extra: Any) -> Any:
    """Calls `resolve(call.fn)` with the section's other keys and `extra` as keywords.

    A section inside that has an `fn` is built first; another one is passed as a dict. A key
    that is unset is not passed.

    Raises:
      ConfigError: the function does not take these arguments or refuses them (ValueError).
    """
    entries = {key: call[key] for key in call if key != "fn"}
    given = {key: _argument(value) for key, value in entries.items() if value is not None}
    fn, name = resolve(call.fn), call.fn
    try:
        inspect.signature(fn).bind(*args, **given, **extra)
    except TypeError as error:
        known = ", ".join(inspect.signature(fn).parameters)
        raise ConfigError(f"{name}: {error}; its parameters are {known}") from error
    try:
        return fn(*args, **given, **extra)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def _argument(value: Any) -> Any:
    if not isinstance(value, ml_collections.ConfigDict):
        return value
    if "fn" in value:
        return build(value)
    return {key: _argument(value[key]) for key in value}


class _TrackedConfig(ml_collections.ConfigDict):
    """A locked config that notes which of its keys are read."""

    def __init__(self, config: ml_collections.ConfigDict, prefix: str, reads: set[str]):
        super().__init__(sort_keys=False)
        for key, value in _entries(config):
            if isinstance(value, ml_collections.ConfigDict):
                value = _TrackedConfig(value, f"{prefix}{key}.", reads)
            self[key] = value
        object.__setattr__(self, "_note", lambda key: reads.add(f"{prefix}{key}"))
        self.lock()

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if "_note" in vars(self):
            self._note(key)
        return value

    def to_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        for value in self.values():
            if isinstance(value, _TrackedConfig):
                value.to_dict()
        return super().to_dict(*args, **kwargs)

    def __reduce__(self):
        return _in_order, (resolved(self),)


def track_reads(
    config: ml_collections.ConfigDict,
) -> tuple[ml_collections.ConfigDict, Callable[[], list[str]]]:
    """A copy of a resolved config that notes reads, and a function listing unread keys.

    Attribute and item access, iteration over values, `**` and `to_dict` count as reading;
    `plain`, `canonical_json`, `sha` and the checks do not. Copies by `pickle` or `copy` are
    not tracked.
    """
    reads: set[str] = set()
    tracked = _TrackedConfig(config, "", reads)
    return tracked, lambda: [path for path, _ in leaves(config) if path not in reads]


def _where(error: Exception, path: str) -> str:
    """One line: what went wrong, and at which line of the file."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(path)]
    line = f" (line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {_one_line(error)}{line}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
