"""The launch files parse, and what they run exists."""

import pathlib
import re
import shlex
import subprocess

import pytest
import yaml

from experiments import plan, rlvr_mesh

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "experiments" / "launch"
SCRIPTS = ("tpu_queued_resource.sh", "slurm_gpu.sbatch")
RUNNERS = {"experiments.rlvr_mesh": rlvr_mesh.FLAGS, "experiments.plan": plan.FLAGS}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_bash(name):
    done = subprocess.run(["bash", "-n", str(FOLDER / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_ask_for_what_they_need(name):
    """Without a workdir they stop before anything is started."""
    done = subprocess.run(["bash", str(FOLDER / name)], capture_output=True, text=True, env={})
    assert done.returncode != 0 and re.search("PROJECT|WORKDIR", done.stderr)


def _commands():
    """`(file, command)` of every runner that a file names, the variables left as they are."""
    for path in sorted(FOLDER.iterdir()):
        text = path.read_text().replace("\\\n", " ")
        for found in re.finditer(r"-m (experiments\.\w+)([^\n`]*)", text):
            yield path.name, [found[1], *shlex.split(found[2].split("||")[0])]
    jobset = yaml.safe_load((FOLDER / "gke_jobset.yaml").read_text())
    yield "gke_jobset.yaml", _container(jobset)["command"][2:]


def _container(jobset):
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    return pod["containers"][0]


def test_commands_name_real_runners_and_flags():
    found = list(_commands())
    assert {name for name, _ in found} >= {*SCRIPTS, "gke_jobset.yaml", "README.md"}
    for name, (runner, *arguments) in found:
        known = {flag.name for flag in RUNNERS[runner]}
        for argument in arguments:
            assert argument.startswith("--"), (name, argument)
            flag = argument[2:].partition("=")[0]
            assert flag in known or flag.startswith("config."), (name, argument)
        given = dict(a[2:].partition("=")[::2] for a in arguments)
        if not given["config"].startswith("$"):
            assert (ROOT / given["config"]).is_file()
        if runner == "experiments.rlvr_mesh":
            assert {"distributed", "workdir", "mesh"} <= given.keys()


def test_the_jobset_has_a_pod_for_every_host_of_the_slice():
    jobset = yaml.safe_load((FOLDER / "gke_jobset.yaml").read_text())
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    rows, columns = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = _container(jobset)["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == int(rows) * int(columns) // chips
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0


CHIPS = 256
"""Of the largest slice that a file names; that of the others divides it."""


def test_prompts_of_a_step_split_over_the_devices():
    """The config alone has 16, which no slice of these files can share out."""
    for path in sorted(FOLDER.iterdir()):
        text = path.read_text()
        if "rlvr_mesh" not in text:
            continue
        assert "--config.prompts_per_step=" in text, path.name
        found = re.findall(r"(?:prompts_per_step=|PROMPTS:-)(\d+)", text)
        assert found and all(int(count) % CHIPS == 0 for count in found), path.name
