"""The command line: bad input in one line, and runs that survive being killed."""

import errno
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import processes
import pytest

from experiments import cli
from jaxreward.training import config as config_lib
from jaxreward.training import faults
from jaxreward.training import logging as metrics_lib
from jaxreward.training.exits import ConfigError

HERE = pathlib.Path(__file__).parent
CONFIG = HERE / "toy_config.py"
TOY = [sys.executable, str(HERE / "toy_cli.py")]


def toy(workdir, *arguments, config=CONFIG):
    command = [*TOY, f"--config={config}", f"--workdir={workdir}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def ended(capsys, workdir, *arguments, config=CONFIG):
    """Exit code and standard error of the same in this process."""
    import toy_cli

    argv = (f"--config={config}", f"--workdir={workdir}", *arguments)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main(toy_cli.run, argv, flags=toy_cli.FLAGS, may_differ=("mode",))
    return stopped.value.code, capsys.readouterr().err


def nothing(config, workdir, **flags):
    raise AssertionError("bad input reached the run")


def refused(capsys, *arguments, **kwargs):
    """The one line with which `main` refuses."""
    with pytest.raises(SystemExit) as caught:
        cli.main(kwargs.pop("run", nothing), arguments, **kwargs)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


BAD = [
    ((), "--config is missing; allowed is configs/<method>.py"),
    (("--config=nowhere/x.py",), "config = 'nowhere/x.py' is not a file"),
    (("--config",), "--config lacks its value"),
    (("--config", "--workdir=w"), "--config lacks its value"),
    ((f"--config={CONFIG}",), "--workdir is missing"),
    ((f"--config={CONFIG}", "--workdir=W", "--wrokdir=V"), "--wrokdir=V is not a flag; did you"),
    ((f"--config={CONFIG}", "stray"), "stray is not a flag; allowed are --config, --workdir"),
    ((f"--config={CONFIG}", "--workdir=a", "--workdir=b"), "--workdir is given twice"),
    (("--number=x",), "--number = 'x'; allowed is an integer"),
    (("--loud=maybe",), "--loud = 'maybe'; allowed is true or false"),
    ((f"--config={HERE / 'test_cli.py'}", "--workdir=W"), "does not define get_config"),
]
BAD_KEYS = [
    ("stesp=3", "config has no 'stesp'; did you mean 'steps'?"),
    ("steps=many", "config.steps = 'many'; allowed is an integer"),
    ("steps=0", "config.steps = 0; allowed is > 0"),
    ("transforms.noise.false_positive=1.2", "false_positive = 1.2; allowed is [0, 1)"),
    ("transforms.noise.false_positive=0.8", "0.8 and config.transforms.noise.false_negative = 0.2"),
    ("group_size=1", "config.group_size = 1; allowed is >= 2 for a group baseline"),
    ("transforms.nois.false_positive=0", "did you mean 'noise'?"),
    ("transforms=3", "config.transforms = '3': this is a section"),
]
FLAGS = (cli.Flag("number", int), cli.Flag("loud", bool))


@pytest.mark.parametrize("arguments, message", BAD)
def test_bad_flags(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments, flags=FLAGS)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("assignment, message", BAD_KEYS)
def test_bad_keys(capsys, tmp_path, assignment, message):
    arguments = (f"--config={CONFIG}", f"--workdir={tmp_path / 'w'}", f"--config.{assignment}")
    assert message in refused(capsys, *arguments)
    assert os.listdir(tmp_path) == []


def test_validators_of_the_runner(capsys, tmp_path):
    def picky(config):
        raise ValueError(f"config.seed = {config.seed};\n  allowed is 1")

    arguments = (f"--config={CONFIG}", f"--workdir={tmp_path / 'w'}")
    for kind in ("validate", "prepare"):
        line = refused(capsys, *arguments, **{kind: picky})
        assert line == "error: config.seed = 0; allowed is 1\n"
    assert "test_cli has no 'nowhere'" in refused(capsys, *arguments, run=f"{__name__}:nowhere")
    assert os.listdir(tmp_path) == []


def test_bad_input_is_refused_before_jax_is_imported_and_within_two_seconds(tmp_path):
    before = os.times()
    done = toy(tmp_path / "w", "--config.group_size=1")
    after = os.times()  # its own seconds: a busy machine takes longer
    spent = after.children_user + after.children_system
    assert spent - before.children_user - before.children_system < 2.0
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "group_size = 1" in done.stderr
    code = (
        "import sys; sys.argv = ['x', '--config=no.py']\n"
        "from experiments import cli\n"
        "try: cli.main('jax:jit')\n"
        "except SystemExit as e: sys.exit(10 + e.code + 50 * ('jax' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE.parents[1], capture_output=True)
    assert done.returncode == 12


def collect(tmp_path, *arguments, config=CONFIG, **kwargs):
    """What a run was called with."""
    calls = []
    run = lambda config, workdir, **flags: calls.append((config, workdir, flags))
    argv = (f"--config={config}", "--workdir", str(tmp_path / "w"), *arguments)
    cli.main(run, argv, **kwargs)
    return calls[0]


def test_a_run_gets_config_workdir_and_flags(tmp_path, capsys):
    config, workdir, flags = collect(
        tmp_path, "--config.steps=9", "--loud", "--number", "4", "--config.mode=x=y", flags=FLAGS
    )
    assert (config.steps, config.mode, workdir) == (9, "x=y", str(tmp_path / "w"))
    assert flags == {"number": 4, "loud": True}
    stored = json.loads((tmp_path / "w" / "config.json").read_text())
    assert stored == config_lib.plain(config)
    assert list(stored)[:3] == ["steps", "seed", "mode"]
    assert "warning: these keys of the config were not read: steps" in capsys.readouterr().err


def test_the_same_config_continues_and_another_is_refused(tmp_path, capsys):
    collect(tmp_path)
    collect(tmp_path)
    arguments = (f"--config={CONFIG}", f"--workdir={tmp_path / 'w'}")
    line = refused(capsys_drained(capsys), *arguments, "--config.seed=2")
    assert "holds a run with config.seed = 0, this one has 2" in line
    line = refused(capsys, f"--config={CONFIG}:smoke", arguments[1])
    assert "config.steps = 60, this one has 6" in line
    collect(tmp_path, "--config.seed=2", may_differ=("seed",))
    assert json.loads((tmp_path / "w" / "config.json").read_text())["seed"] == 2


def capsys_drained(capsys):
    capsys.readouterr()
    return capsys


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda w: w.write_text(""), "is not a folder that can be written"),
        (lambda w: (w.mkdir(), (w / "metrics.jsonl").write_text("")), "metrics.jsonl but no"),
        (lambda w: (w.mkdir(), (w / "config.json").write_text("{")), "config.json is damaged"),
    ],
)
def test_a_workdir_that_is_something_else(tmp_path, capsys, spoil, message):
    spoil(tmp_path / "w")
    before = faults.fingerprint_files(tmp_path)
    line = refused(capsys, f"--config={CONFIG}", f"--workdir={tmp_path / 'w'}")
    assert message in line
    assert faults.fingerprint_files(tmp_path) == before


def test_a_workdir_that_the_system_refuses(tmp_path, capsys, monkeypatch):
    (tmp_path / "loop").symlink_to("loop")
    for name in ("a" * 300, "loop/w"):
        line = refused(capsys, f"--config={CONFIG}", f"--workdir={tmp_path / name}")
        assert "allowed is a folder that can be written" in line

    def full(path, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cli, "atomic_write", full)
    line = refused(capsys, f"--config={CONFIG}", f"--workdir={tmp_path / 'w'}")
    assert "No space left on device; allowed is" in line
    assert not (tmp_path / "w").exists()


def test_a_workdir_in_use_is_refused(tmp_path):
    code = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX)"
    code += "; print('locked', flush=True); time.sleep(60)"
    (tmp_path / "w").mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "w" / ".lock")], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout.readline() == b"locked\n"
        done = toy(tmp_path / "w")
        assert done.returncode == 2 and "is in use by another process" in done.stderr
        assert not (tmp_path / "w" / "config.json").exists()
    finally:
        holder.kill()
        holder.communicate()


def test_help(capsys):
    cli.main(nothing, ["--help"], flags=FLAGS)
    assert "--number=int" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["explain", "transforms_table", "reliability", "parity", "benchmark"]
)
def test_programs_without_a_config_help_too(name, capsys):
    flag = {"explain": "out", "transforms_table": "out", "parity": "gguf"}.get(name, "workdir")
    assert importlib.import_module(f"experiments.{name}").main(["--help"]) == 0
    assert f"--{flag}=str" in capsys.readouterr().out


def test_a_run_that_refuses_its_config_after_all_leaves_nothing(tmp_path, capsys):
    def run(config, workdir):
        assert (pathlib.Path(workdir) / "config.json").exists()
        raise ConfigError("config.mode = 'slow'; allowed is anything else")

    arguments = (f"--config={CONFIG}", f"--workdir={tmp_path / 'w'}")
    assert "config.mode = 'slow'" in refused(capsys, *arguments, run=run)
    assert os.listdir(tmp_path) == []
    (tmp_path / "w").mkdir()
    refused(capsys, *arguments, run=run)
    assert os.listdir(tmp_path) == ["w"] and os.listdir(tmp_path / "w") == []


def test_prepared_data_go_with_the_folder_of_a_refused_run(tmp_path, capsys):
    def run(config, workdir):
        (pathlib.Path(workdir) / "data").mkdir(exist_ok=True)
        raise ConfigError("config.mode = 'slow'; allowed is anything else")

    arguments = (f"--config={CONFIG}", f"--workdir={tmp_path / 'w'}")
    refused(capsys, *arguments, run=run)
    assert os.listdir(tmp_path) == []
    (tmp_path / "w" / "data").mkdir(parents=True)
    refused(capsys, *arguments, run=run)
    assert (tmp_path / "w" / "data").exists()  # it was there before


def test_a_whole_run_and_what_happens_when_its_checkpoints_are_lost(tmp_path, capsys):
    smoke = f"{CONFIG}:smoke"
    done = toy(tmp_path, "--shout", "--config.mode=", config=smoke)
    assert done.returncode == 0 and done.stdout == "DONE\n", done.stderr
    assert "train 6/6" in done.stderr
    assert done.stderr.endswith("warning: these keys of the config were not read: unused\n")
    expected = {"config.json", "metrics.jsonl", "timings.jsonl", "tensorboard", "checkpoints"}
    assert expected | {"summary.json", ".lock"} == set(os.listdir(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    config = config_lib.override(config_lib.load_config(smoke), {"mode": ""})
    assert summary["config_sha"] == config_lib.sha(config)
    for path in faults.files_in(tmp_path / "checkpoints"):
        faults.damage(path, "zero")
    before = faults.fingerprint_files(tmp_path)
    code, said = ended(capsys, tmp_path, "--config.mode=", config=smoke)
    assert code == 4 and "none of the checkpoints" in said
    assert faults.fingerprint_files(tmp_path) == before


def test_a_signal_ends_with_its_own_code(tmp_path):
    command = [*TOY, f"--config={CONFIG}", f"--workdir={tmp_path}", "--config.steps=100000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    limit = time.monotonic() + 60
    while len(metrics_lib.read_metrics(tmp_path)) < 3 and time.monotonic() < limit:
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "saving after this step" in err
    assert "error: stopped by a signal, saved at step" in err and "Traceback" not in err


SIGNALLED = """
import gc, os, signal, sys, time
sys.modules["__main__"].__spec__ = __import__("importlib.util").util.find_spec("experiments.rlvr")
from experiments import cli

def callback(phase, info):
    if os.path.exists(sys.argv[2]):
        os.remove(sys.argv[2])
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)

with cli.exit_codes():
    if sys.argv[1] == "in a callback":
        gc.callbacks.append(callback)
        gc.collect()
        time.sleep(30)
    if sys.argv[1] == "in a library":
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            raise AttributeError("half imported") from None
    import functools, threading, jax
    slow = jax.jit(lambda x: functools.reduce(lambda y, i: jax.numpy.sin(y) @ y + i, range(99), x))
    lowered = slow.lower(jax.numpy.ones((8, 8)))
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
    lowered.compile()
    time.sleep(30)
"""


@pytest.mark.parametrize("where", ["in a callback", "in a library", "in a compilation"])
def test_a_signal_before_the_loop_is_not_lost(where, tmp_path):
    """Raised there, its exception would be ignored, misnamed or crash what XLA leaves behind."""
    (tmp_path / "now").touch()
    done = processes.python("-c", SIGNALLED, where, tmp_path / "now", timeout=60)
    assert done.returncode == 75, done.stderr
    assert done.stderr == "error: stopped by signal 15; the same command continues\n"


def test_other_ends_have_their_codes(tmp_path, capsys):
    full = toy(tmp_path / "full", "--config.mode=full")  # limits the files of its process
    ends = ((full.returncode, full.stderr), ended(capsys, tmp_path / "nan", "--config.mode=nan"))
    expected = ((4, "cannot write"), (3, "last good checkpoint: step 14"))
    for (code, said), (own, message) in zip(ends, expected):
        assert code == own, said
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert message in line


def test_killed_anywhere_a_run_continues_to_the_same_bytes(tmp_path):
    command = [*TOY, f"--config={CONFIG}", "--workdir={workdir}"]
    outcomes = faults.kill_and_resume(command, tmp_path / "runs", ["save:2", 0.4])
    assert [o.detail for o in outcomes] == ["", ""]
    assert all(o.equal and o.killed for o in outcomes)


def test_a_run_that_is_split_sees_devices_enough_for_its_threads():
    """And no more than the environment says, where it says how many there are."""
    code = "from experiments import cli; cli.spread_over_cores(least=5); import jax; print({})"
    assert processes.found("-c", code.format("jax.device_count()"), devices=None) >= 5
    assert processes.found("-c", code.format("jax.device_count()"), devices=2) == 2
