"""Breaks things on purpose and prints one line per test.

    python -m experiments.reliability --workdir=DIR [--only=NAME,...] [--instants=20]

`kill_anywhere`, `same_command_twice`, `config_refusals` and `soak` run real commands here; the
others are tests of the suite, run by pytest and reported by name. Run from a checkout.
"""

import gc
import os
import pathlib
import subprocess
import sys
import time
from typing import Callable, NamedTuple

from experiments import cli
from jaxreward.training import faults
from jaxreward.training.exits import ConfigError


class Line(NamedTuple):
    """The outcome of one test."""

    name: str
    passed: bool
    detail: str


SUITE = {
    "torn_checkpoints": ("tests/training/test_checkpoint.py",),
    "failing_async_save_and_complete_state": (
        "tests/training/test_checkpoint.py",
        "tests/training/test_loop.py",
    ),
    "learning_rate_0": ("tests/training/test_sharding_multi_device.py",),
    "hostile_rewards_and_poison_text": ("tests/rewards/test_pool.py",),
    "unscorable_never_pays": ("tests/transforms/test_battery.py",),
    "verifier_table": ("tests/rewards/test_verifiers.py",),
    "nan_and_spike_injection": ("tests/training/test_step.py",),
}
"""Test files behind the other lines."""

RUN = (
    sys.executable,
    "-m",
    "experiments.rlvr",
    "--config=configs/noise_corrected_grpo.py:fault",
    "--workdir={workdir}",
)

REFUSED = (
    ("unknown key", ("--config.stepz=3",)),
    ("unknown nested key", ("--config.loss.clip=0.1",)),
    ("mistyped value", ("--config.steps=many",)),
    ("not a boolean or number", ("--config.hyper.learning_rate=fast",)),
    ("rate of 1.2", ("--config.transforms.noise.source.false_negative=(0.1,1.2,0.1)",)),
    ("negative rate", ("--config.transforms.noise.source.false_positive=(-0.1,0.1,0.1)",)),
    (
        "rates that sum to 1",
        (
            "--config.transforms.noise.source.false_positive=(0.5,0.1,0.1)",
            "--config.transforms.noise.source.false_negative=(0.5,0.1,0.1)",
        ),
    ),
    ("group size 1", ("--config.group_size=1",)),
    ("no steps", ("--config.steps=0",)),
    ("no dataset", ("--config.task.dataset=",)),
    ("unknown estimator", ("--config.loss.kl_estimator=k9",)),
    ("unknown ratio", ("--config.loss.ratio=word",)),
    ("heads that do not divide", ("--config.model.heads=3",)),
    ("temperature 0 in training", ("--config.sampler.temperature=0",)),
    ("top-p of 0", ("--config.sampler.top_p=0",)),
    ("arm of unknown pieces", ("--config.arms.backward=(noize,backward)",)),
    ("unknown flag", ("--verbose",)),
)
"""What is wrong, and the arguments that make it so."""


def main(argv: list[str]) -> int:
    """Runs the tests; 0 if all passed."""
    flags = (
        cli.Flag("workdir", default="runs/reliability", help="new folder"),
        cli.Flag("only", default="", help="names of tests, comma-separated"),
        cli.Flag("instants", int, 20, "how often a run is killed"),
    )
    if cli.asked_for_help(argv, flags):
        return 0
    try:
        values = cli.parse(argv, flags).values
        root = pathlib.Path(values["workdir"])
        if root.exists():
            raise ConfigError(f"workdir = {str(root)!r} exists; allowed is a new folder")
        tests = _tests(root, values["instants"])
        chosen = [name for name in values["only"].split(",") if name] or list(tests)
        for name in chosen:
            if name not in tests:
                raise ConfigError(f"only names {name!r}; allowed are {', '.join(tests)}")
    except ConfigError as error:
        cli.say(error)
        return error.exit_code
    root.mkdir(parents=True)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(root.absolute() / "compiled")
    lines = []
    for name in chosen:
        start = time.monotonic()
        passed, detail = tests[name]()
        lines.append(Line(name, passed, detail))
        took = time.monotonic() - start
        print(f"{'passed' if passed else 'FAILED'}  {name}: {detail} ({took:.0f} s)", flush=True)
    failed = sum(not line.passed for line in lines)
    print(f"{len(lines) - failed} passed, {failed} failed")
    return 1 if failed else 0


def _tests(root: pathlib.Path, instants: int) -> dict[str, Callable[[], tuple[bool, str]]]:
    heavy = {
        "config_refusals": lambda: config_refusals(root),
        "soak": soak,
        "same_command_twice": lambda: same_command_twice(root),
        "kill_anywhere": lambda: kill_anywhere(root, instants),
    }
    suite = {name: (lambda files=files: _pytest(files)) for name, files in SUITE.items()}
    return {**heavy, **suite}


def kill_anywhere(root: pathlib.Path, instants: int) -> tuple[bool, str]:
    """SIGKILL at random instants, a third inside saves; metrics and parameters byte-equal."""
    when = faults.random_instants(instants, saves=instants // 3)
    outcomes = faults.kill_and_resume(RUN, root / "kill", when)
    equal, killed = sum(o.equal for o in outcomes), sum(o.killed for o in outcomes)
    detail = f"{equal} of {len(outcomes)} byte-equal after SIGKILL, {killed} killed while running"
    wrong = next((f"; at {o.instant}: {o.detail[-200:]}" for o in outcomes if not o.equal), "")
    return equal == len(outcomes) and killed > 0, detail + wrong


def same_command_twice(root: pathlib.Path) -> tuple[bool, str]:
    """Two fresh runs of one command are byte-equal."""
    prints = []
    for name in ("first", "second"):
        folder = root / name
        command = [argument.replace("{workdir}", str(folder)) for argument in RUN]
        subprocess.run(command, check=True, capture_output=True)
        prints.append(faults.fingerprint_run(folder))
    names = sorted({*prints[0], *prints[1]})
    different = [name for name in names if prints[0].get(name) != prints[1].get(name)]
    detail = f"{len(names)} files and arrays compared"
    detail += f"; {len(different)} differ, first {different[0]}" if different else ""
    return not different and len(names) > 0, detail


def config_refusals(root: pathlib.Path) -> tuple[bool, str]:
    """Each wrong input ends in one line, exit code 2, under 2 s, with nothing written."""
    slowest, wrong = 0.0, []
    for what, arguments in REFUSED:
        folder = root / "refused"
        command = [part.replace("{workdir}", str(folder)) for part in RUN]
        start = time.monotonic()
        done = subprocess.run([*command, *arguments], capture_output=True, text=True)
        slowest = max(slowest, time.monotonic() - start)
        lines = done.stderr.strip().splitlines()
        if done.returncode != 2 or len(lines) != 1 or folder.exists():
            wrong.append(f"{what} (exit {done.returncode}, {len(lines)} lines)")
    detail = f"{len(REFUSED) - len(wrong)} of {len(REFUSED)} refused, slowest {slowest:.2f} s"
    return not wrong and slowest < 2.0, detail + "".join(f"; {w}" for w in wrong)


def soak(steps: int = 2000) -> tuple[bool, str]:
    """Tiny steps: no recompilation, host memory flat, no process or thread left over."""
    import threading

    import jax
    import psutil

    from experiments.benchmarks.seed_sweep import make_sweep

    process = psutil.Process()
    state, iteration = make_sweep([0])
    state = jax.block_until_ready(iteration(state))
    before = None
    for step in range(steps):
        state = iteration(state)
        if step == steps // 10:
            jax.block_until_ready(state)
            gc.collect()
            before = (process.memory_info().rss, threading.active_count(), len(process.children()))
    jax.block_until_ready(state)
    gc.collect()
    after = (process.memory_info().rss, threading.active_count(), len(process.children()))
    growth = after[0] / before[0] - 1.0
    compilations = iteration._cache_size()
    leaked = after[1] > before[1] or after[2] > before[2]
    detail = f"{steps} steps, {compilations} compilation, memory {100 * growth:+.2f}%"
    return compilations == 1 and growth < 0.01 and not leaked, detail


def _pytest(files: tuple[str, ...]) -> tuple[bool, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *files], capture_output=True, text=True
    )
    lines = (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()
    return done.returncode == 0, lines[-1].strip("= ")  # pytest ends with its counts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
