"""Generators under rewards against the same in eager PyTorch, in turn on the same cores.

`RLCM`: one iteration of RL of a consistency model, that is sampling, the host's reward, credit
and two updates, of 10 classes x 8 samples, 4 steps. `ReNO`: 20 steps of noise optimisation for
16 prompts against five losses. Both for the network of the study `configs/rlcm.py`, a larger
diffusion transformer and a U-Net. Before anything is timed the two must agree: log-probabilities,
images, loss and gradient of RLCM, every loss of the whole climb of ReNO. PyTorch gets the number
of threads that is best for it and a fused optimizer. It runs RLCM in two ways: by step, with one
forward and backward pass for every step of a trajectory, as the released trainers of this field
do (DDPO, RLCM), and whole, with one for all steps, as here. Here every case says whether its batch
is split over the cores, which the smallest is too small for.

Found (two cores, jax 0.10.2, torch 2.13): ReNO on the study's network 4.1 times (bar 3), with
patches of 2 3.2, on the U-Net 2.6. RLCM 1.9, 1.5 and 1.2 against PyTorch by step, 1.2 (another day
1.6), 1.3 and 0.9 against PyTorch whole: its products are large enough that both sides spend most of
their time in them, at the same rate; what is won there is the condition, which is encoded once for
a group.
"""

import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

BAR = 3.0
QUICK, FULL = 5, 15
PAUSE = 0.3
"""Seconds before a turn, in which the other's threads stop waiting for work and sleep."""
WAYS = {"rlcm": ("by step", "whole"), "reno": ("whole",)}
"""How PyTorch does each work, see `torch_generate.Work`."""
IN_A_ROW = 3
"""Runs of a turn, as in training, after one that wakes the threads and is not counted."""


def cases() -> dict[str, Any]:
    """What is timed, by name."""
    from experiments.benchmarks.generator_programs import Case
    from jaxreward.networks.diffusion import DiffusionConfig
    from jaxreward.tasks.digit_canvases import WORDS

    digit = dict(height=8, width=8, classes=10)
    canvas = dict(height=8, width=16, vocabulary=len(WORDS), prompt_length=3)
    study = dict(features=96, layers=2, heads=2, patch=8)
    fine = dict(features=64, layers=2, heads=4, patch=2)
    unet = dict(features=16, layers=1, heads=2)
    made = {}
    for name, kind, shape in (
        ("study's DiT", "transformer", study),
        ("DiT, patches of 2", "transformer", fine),
        ("U-Net", "unet", unet),
    ):
        rlcm, reno = DiffusionConfig(**digit, **shape), DiffusionConfig(**canvas, **shape)
        cores = 1 if shape is study else os.cpu_count()
        made[f"rlcm_{len(made)}"] = Case(f"RLCM, {name}", "rlcm", kind, rlcm, 4, 8, cores)
        made[f"reno_{len(made)}"] = Case(f"ReNO, {name}", "reno", kind, reno, 20, 16, os.cpu_count())
    return made


def run(workdir: str, quick: bool) -> dict[str, Any]:
    """Measures every case; PyTorch is skipped with a note where it is not installed."""
    import importlib.util

    import numpy as np

    from experiments import cli
    from experiments.benchmarks import generator_programs

    cli.spread_over_cores()
    chosen = cases()
    folder = pathlib.Path(workdir) / "generate"
    folder.mkdir(parents=True, exist_ok=True)
    programs = {name: generator_programs.build(case) for name, case in chosen.items()}
    for name, program in programs.items():
        (folder / f"{name}.json").write_text(json.dumps(program.settings))
        np.savez(folder / f"{name}.npz", **program.arrays)
        program.run()
    there = importlib.util.find_spec("torch") is not None
    ways = {name: WAYS[case.work] for name, case in chosen.items()}
    measured = _measure(folder, programs, ways, QUICK if quick else FULL, there)
    titles = {name: case.title for name, case in chosen.items()}
    notes = [] if there else ["PyTorch is not installed (pip install torch): comparison skipped"]
    rows, verdicts = _table(titles, measured)
    return {"rows": rows, "notes": notes + verdicts, "measured": measured}


def _measure(folder: pathlib.Path, programs, ways, repeats: int, there: bool) -> dict[str, Any]:
    """Seconds of all, turn by turn, the agreement, and the compilations while timing."""
    import numpy as np

    from experiments.benchmarks import timing

    twin = _start(folder) if there else None
    try:
        found = {}
        for name, program in programs.items():
            own: dict[str, Any] = {}
            if twin:
                own["worst"] = _agreement(program.found, _ask(twin, ["check", name]))
                few = 3 if repeats < FULL else 7
                own["threads"] = {w: _best_threads(twin, name, w, few) for w in ways[name]}
            ours, theirs = [], {way: [] for way in own.get("threads", ())}
            with timing.compilations() as compiled:
                for _ in range(repeats):
                    time.sleep(PAUSE)
                    ours.append(np.mean(timing.seconds(program.run, repeats=IN_A_ROW)))
                    for way, found_there in theirs.items():
                        time.sleep(PAUSE)
                        task = ["time", name, way, own["threads"][way], IN_A_ROW]
                        found_there.append(_ask(twin, task))
            found[name] = {**own, "jaxreward": ours, "torch": theirs, "compiled": compiled[0]}
        return found
    finally:
        if twin:
            twin.stdin.close()
            twin.stdout.close()
            twin.wait()


def _start(folder: pathlib.Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "experiments.benchmarks.torch_generate", str(folder)]
    twin = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert json.loads(twin.stdout.readline())
    return twin


def _ask(twin: subprocess.Popen, task: list) -> Any:
    twin.stdin.write(json.dumps(task) + "\n")
    twin.stdin.flush()
    line = twin.stdout.readline()
    if not line:
        raise RuntimeError(f"the PyTorch process ended at {task}; its error is above")
    return json.loads(line)


def _best_threads(twin: subprocess.Popen, name: str, way: str, repeats: int) -> int:
    """The number of threads at which PyTorch is fastest on the cores of this process."""
    mean = {}
    for threads in range(1, len(os.sched_getaffinity(0)) + 1):
        mean[threads] = _ask(twin, ["time", name, way, threads, repeats])
    return min(mean, key=mean.get)


def _agreement(found: dict[str, Any], path: str) -> dict[str, float]:
    """Largest relative difference of each array to its twin's.

    Raises:
      ValueError: one exceeds 1e-4 (of the largest entry), for whole climbs 1e-3.
    """
    import numpy as np

    worst = {}
    with np.load(path) as theirs:
        for name, own in found.items():
            gap = np.max(np.abs(own - theirs[name]))
            worst[name] = float(gap / max(np.max(np.abs(own)), 1e-30))
            allowed = 1e-3 if name in ("course", "noise") else 1e-4
            if not worst[name] <= allowed:
                raise ValueError(f"{name} differs by {worst[name]:.1e}; allowed is {allowed:g}")
    return worst


def _table(titles: dict[str, str], measured: dict[str, Any]) -> tuple[list, list[str]]:
    from experiments.benchmarks import timing

    rows = [["what", "jaxreward [ms]", "PyTorch [ms]", "threads", "ratio (95%)", "compilations"]]
    verdicts = []
    for name, own in measured.items():
        mine, compiled = timing.middle(own["jaxreward"]), str(own["compiled"])
        own["ratio"] = {}
        for way, theirs in own["torch"].items():
            title = f"{titles[name]}, PyTorch {way}"
            mid, low, high = own["ratio"][way] = timing.ratio(theirs, own["jaxreward"])
            shown = f"{mid:.1f} ({low:.1f} to {high:.1f})"
            threads = str(own["threads"][way])
            rows.append([title, mine, timing.middle(theirs), threads, shown, compiled])
            reached = "reached" if low >= BAR else "not reached"
            verdicts.append(f"{title}: {mid:.1f} times; bar {BAR:g}: {reached}")
        if not own["torch"]:
            rows.append([titles[name], mine, "-", "-", "-", compiled])
    return rows, verdicts
