"""The command line of every runner.

    python -m experiments.<runner> --config=configs/<method>.py[:variant] --workdir=DIR
        [--config.a.b=value ...]

Bad input ends, before jax is imported and before anything is written, in one line on standard
error that names the key, the value and what is allowed, and exit code 2. Other exit codes are
listed in `jaxreward.training.exits`.

`DIR/config.json` holds the resolved config. The same command on the same workdir continues. A
workdir that holds a run of another config is refused, whatever the difference: any key may
change what the numbers mean. A runner whose steps do not depend on how many there are may list
keys that may differ.
"""

import contextlib
import difflib
import fcntl
import json
import logging
import os
import pathlib
import shutil
import signal
import sys
import threading
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import ml_collections
from absl import logging as absl_logging

from jaxreward.training import config as config_lib
from jaxreward.training.exits import ConfigError, Interrupted, Stop
from jaxreward.training.files import atomic_write

Reference = str | Callable[..., Any]
"""A function, or its dotted path where importing it is slow."""


class Flag(NamedTuple):
    """A flag of one runner beside `--config` and `--workdir`.

    Attributes:
      name: without dashes.
      kind: bool, int, float or str.
      default: its value if not given.
      help: a few words.
    """

    name: str
    kind: type = str
    default: Any = None
    help: str = ""


_COMMON = (
    Flag("config", help="file of the config, with :variant"),
    Flag("workdir", help="folder of the run"),
)


class Command(NamedTuple):
    """A parsed command line.

    Attributes:
      values: by flag name.
      overrides: text by dotted path of the config.
    """

    values: dict[str, Any]
    overrides: dict[str, str]


def main(
    run: Reference,
    argv: Sequence[str] | None = None,
    *,
    flags: Sequence[Flag] = (),
    validate: Reference | None = None,
    prepare: Reference | None = None,
    may_differ: Sequence[str] = (),
) -> None:
    """Parses, validates, opens the workdir, runs; exits with a code unless all went well.

    Args:
      run: `(config, workdir, **flags)`; a dotted path is imported only after validation.
      argv: arguments; default those of the process.
      flags: further flags of the runner.
      validate: `(config)`, raises ConfigError or ValueError; must be light. A function of the
        same name in the config file is called too.
      prepare: `(config)`, the same, but may import jax; called before the workdir is made.
      may_differ: dotted paths of keys with which an existing run may be continued.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--help" in argv or "-h" in argv:
        print(usage(flags))
        return
    with exit_codes():
        _main(run, argv, flags, validate, prepare, may_differ)


def spread_over_cores(least: int = 1) -> None:
    """Lets jax see one CPU device per core, for runners that split their work over devices.

    Not where the environment says how many there are, and not once jax has started.

    Args:
      least: devices, also on fewer cores. A process has as many threads to run devices as it sees
        devices. Two of a program's sums over devices that are computed side by side, or a call of
        the host, hold a thread each until all devices have come, who may then have none left.
    """
    import jax

    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):
            count = max(least, len(os.sched_getaffinity(0)))
            jax.config.update("jax_num_cpu_devices", count)


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Turns what stops a program in the block into one line and an exit code."""
    try:
        with _log_in_lines(), _terminate_in_words():
            yield
    except Interrupted as stop:
        say(stop)
        _leave(stop.exit_code)
    except Stop as stop:
        say(stop)
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        say("stopped; the same command continues")
        _leave(Interrupted.exit_code)


def _leave(code: int) -> None:
    """Ends a runner's process at once, where a signal may have come while XLA was compiling.

    The interpreter's own end then crashes in XLA, and the exit code is that of the crash. All
    that has an end of its own (workers, checkpoints, metrics) is behind us: it is in `with`.
    """
    program = getattr(sys.modules["__main__"], "__spec__", None)
    if program is not None and program.name.partition(".")[0] == __name__.partition(".")[0]:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _main(run, argv, flags, validate, prepare, may_differ) -> None:
    command = parse(argv, (*_COMMON, *flags))
    config = load(command, validate)
    workdir = command.values.pop("workdir")
    if not workdir:
        raise ConfigError("--workdir is missing; allowed is the name of a folder")
    command.values.pop("config")
    check_workdir(workdir, config, may_differ)
    run, prepare = (config_lib.resolve(f) if isinstance(f, str) else f for f in (run, prepare))
    if prepare is not None:
        with _refused_in_words():
            prepare(config)
    tracked, unread = config_lib.track_reads(config)
    with open_workdir(workdir, config):
        run(tracked, workdir, **command.values)
    if unread():
        say(f"these keys of the config were not read: {', '.join(unread())}", "warning")


def load(command: Command, validate: Reference | None = None) -> ml_collections.ConfigDict:
    """The resolved, validated config of a command.

    Raises:
      ConfigError: anything about it is wrong.
    """
    spec = command.values["config"]
    if not spec:
        raise ConfigError("--config is missing; allowed is configs/<method>.py[:variant]")
    module = config_lib.load_module(config_lib.split_spec(spec)[0])
    config = config_lib.override(config_lib.call_get_config(module, spec), command.overrides)
    for check in (getattr(module, "validate", None), validate):
        check = config_lib.resolve(check) if isinstance(check, str) else check
        if check is not None:
            with _refused_in_words():
                check(config)
    return config


@contextlib.contextmanager
def _refused_in_words() -> Iterator[None]:
    try:
        yield
    except Stop:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from error


def parse(argv: Sequence[str], flags: Sequence[Flag]) -> Command:
    """Parses `--name=value` and `--name value`; `--name` alone sets a bool.

    Raises:
      ConfigError: a flag is unknown, given twice, lacks its value or has a wrong one.
    """
    known = {flag.name: flag for flag in flags}
    values: dict[str, Any] = {}
    overrides: dict[str, str] = {}
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        name, equals, text = argument.removeprefix("--").partition("=")
        key = name.removeprefix("config.")
        if not argument.startswith("--") or (name not in known and key == name):
            raise ConfigError(_unknown(argument, list(known)))
        if name in values or key in overrides:
            raise ConfigError(f"--{name} is given twice; allowed is once")
        is_bool = name in known and known[name].kind is bool
        if not equals:
            text = "true" if is_bool else rest.pop(0) if rest else None
        if text is None or (not equals and text.startswith("--")):
            raise ConfigError(f"--{name} lacks its value; allowed is --{name}=VALUE")
        if name in known:
            values[name] = _convert(known[name], text)
        else:
            overrides[key] = text
    defaults = {name: flag.default for name, flag in known.items()}
    return Command({**defaults, **values}, overrides)


def _unknown(argument: str, known: list[str]) -> str:
    names = [f"--{name}" for name in known]
    near = difflib.get_close_matches(argument.partition("=")[0], names, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    extra = ", --config.KEY" if "config" in known else ""
    return f"{argument} is not a flag{hint}; allowed are {', '.join(names)}{extra}"


def _convert(flag: Flag, text: str) -> Any:
    try:
        if flag.kind is bool:
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return flag.kind(text)
    except (ValueError, KeyError):
        kind = {bool: "true or false", int: "an integer", float: "a number"}.get(flag.kind)
        raise ConfigError(f"--{flag.name} = {text!r}; allowed is {kind}") from None


def usage(flags: Sequence[Flag]) -> str:
    """What `--help` prints."""
    about = (sys.modules["__main__"].__doc__ or "").strip()
    lines = [f"  --{flag.name}={flag.kind.__name__}  {flag.help}" for flag in (*_COMMON, *flags)]
    return "\n".join([about, "", "flags:", *lines, "  --config.KEY=VALUE  changes the config"])


def asked_for_help(argv: Sequence[str], flags: Sequence[Flag]) -> bool:
    """Prints, where it is asked for, what a program with these flags alone is and takes."""
    if not {"--help", "-h"} & set(argv):
        return False
    print((sys.modules["__main__"].__doc__ or "").strip(), "\n\nflags:")
    for flag in flags:
        print(f"  --{flag.name}={flag.kind.__name__}  {flag.help}")
    return True


def check_workdir(
    workdir: str, config: ml_collections.ConfigDict, may_differ: Sequence[str] = ()
) -> None:
    """Raises ConfigError unless the workdir is new, empty, or of a run of this config."""
    root = pathlib.Path(workdir)
    with _unusable_in_words(workdir):
        above = next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise ConfigError(f"workdir = {workdir!r}: {above} is not a folder that can be written")
    if not (root / "config.json").exists():
        left = [n for n in ("checkpoints", "metrics.jsonl", "summary.json") if (root / n).exists()]
        if left:
            raise ConfigError(
                f"workdir = {workdir!r} holds {left[0]} but no config.json; allowed is a new "
                "folder or one with a run of this config"
            )
        return
    try:
        old = _flat(json.loads((root / "config.json").read_text()))
    except (ValueError, AttributeError):
        raise ConfigError(f"workdir = {workdir!r}: its config.json is damaged") from None
    new = _flat(config_lib.plain(config))
    missing = "absent"
    for path in dict.fromkeys([*new, *old]):
        there, here = old.get(path, missing), new.get(path, missing)
        if there != here and path not in may_differ:
            raise ConfigError(
                f"workdir = {workdir!r} holds a run with config.{path} = {there!r}, this one has "
                f"{here!r}; allowed is another --workdir or the same config"
            )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        inner = _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {}
        flat.update(inner if isinstance(value, dict) else {f"{prefix}{key}": value})
    return flat


@contextlib.contextmanager
def open_workdir(workdir: str, config: ml_collections.ConfigDict) -> Iterator[None]:
    """Makes the workdir, locks it, writes `config.json`.

    If the run refuses its config after all, what was made here is taken away again, and a new
    folder with the data sets that were prepared in it.

    Raises:
      ConfigError: another process is running in it, or it cannot be made or written.
    """
    root = pathlib.Path(workdir)
    existed, made = root.exists(), not (root / "config.json").exists()
    with _unusable_in_words(workdir):
        root.mkdir(parents=True, exist_ok=True)
        lock = open(root / ".lock", "w")
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # ends with the process
        except BlockingIOError:
            raise ConfigError(f"workdir = {workdir!r} is in use by another process") from None
        except OSError:
            pass  # a file system without locks
        try:
            with _unusable_in_words(workdir):
                atomic_write(root / "config.json", config_lib.canonical_json(config))
            yield
        except ConfigError:
            left = {p.name for p in root.iterdir()}
            if not existed and left <= {".lock", "config.json", "data"}:
                shutil.rmtree(root)
            elif made and left <= {".lock", "config.json"}:
                (root / "config.json").unlink(missing_ok=True)
                (root / ".lock").unlink()
            raise


@contextlib.contextmanager
def _unusable_in_words(workdir: str) -> Iterator[None]:
    """What the system says against a workdir: no such place, a name too long, a full disk."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"workdir = {workdir!r}: {error.strerror}; allowed is a folder that can be written"
        ) from error


@contextlib.contextmanager
def _terminate_in_words() -> Iterator[None]:
    """SIGTERM outside the training loop, which handles its own, ends the run cleanly.

    An exception that a signal raises may land in a callback of the garbage collector, where it
    ends, or in a library that catches it and fails with another. So in the first case the
    signal is sent again, and in the second the signal is what is told.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[Interrupted] = []

    def handle(number: int, _: Any) -> None:
        came.append(Interrupted(f"stopped by signal {number}; the same command continues"))
        raise came[-1]

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        with _signals_sent_again():
            yield
    except Exception as error:
        if came and not isinstance(error, Stop):
            raise came[-1] from error
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextlib.contextmanager
def _signals_sent_again() -> Iterator[None]:
    """Where Python ignores the exception of a signal, the signal comes again a moment later."""
    before, timers = sys.unraisablehook, []

    def unraisable(found: Any) -> None:
        kinds = {Interrupted: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}
        if found.exc_type not in kinds:
            before(found)
            return
        timer = threading.Timer(0.05, os.kill, (os.getpid(), kinds[found.exc_type]))
        timer.daemon = True
        timers.append(timer)
        timer.start()

    sys.unraisablehook = unraisable
    try:
        yield
    finally:
        sys.unraisablehook = before
        for timer in timers:
            timer.cancel()


def say(message: Any, kind: str = "error") -> None:
    """One line on standard error."""
    print(f"{kind}: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _log_in_lines() -> Iterator[None]:
    """Warnings of this library as lines; what absl logs of an error that we name is noise."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logger, verbosity = logging.getLogger("jaxreward"), absl_logging.get_verbosity()
    logger.addHandler(handler)
    absl_logging.set_verbosity(absl_logging.FATAL)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        absl_logging.set_verbosity(verbosity)
