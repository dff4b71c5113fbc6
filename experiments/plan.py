"""What a GRPO step of a language model costs on accelerators that need not be there.

    python -m experiments.plan --config=configs/<method>.py --model=qwen2.5-7b
        --topology=v5p:4x4x4 [--mesh=1,64,1] [--accumulate=2] [--search]

The step's programs (sample, score under the reference, update) are the library's own, with the
arm, loss and optimizer of the config. They are compiled for the topology; no TPU is needed. For
every program, per chip: memory and whether it fits, operations, bytes, what bounds the time,
collectives. The times are rooflines, the largest of operations, memory and links at the chip's
peak: a bound that no run goes below, not a forecast.

`--mesh=data,fsdp,tensor` and `--accumulate` are the split; `--search` tries splits from the
cheapest estimate on until one fits, and says which. With `--workdir` the figures are written to
`plan.json` there.
"""

import os

# The compiler for TPUs looks for a TPU unless it is told that there is none.
for _name, _value in {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}.items():
    os.environ.setdefault(_name, _value)

import json
import pathlib
import sys
import tempfile
import time
from typing import Any, Sequence

from experiments import cli, hardware, hlo_cost, model_shapes, plan_search
from experiments.hardware import Chip
from jaxreward.training.exits import ConfigError
from jaxreward.training.files import atomic_write

FLAGS = (
    cli.Flag("config", help="file of the config, with :variant"),
    cli.Flag("model", help="such as qwen2.5-7b"),
    cli.Flag("topology", help="such as v5e:16x16 or v5p:4x4x4"),
    cli.Flag("mesh", help="sizes of data, fsdp, tensor"),
    cli.Flag("accumulate", int, 1, "micro-batches of an update"),
    cli.Flag("search", bool, False, "find mesh and accumulate"),
    cli.Flag("arm", help="of the config; default its first corrected one"),
    cli.Flag("prompts", int, 256, "per step"),
    cli.Flag("group_size", int, 0, "samples of each; default the config's"),
    cli.Flag("prompt_length", int, 512, "tokens"),
    cli.Flag("response_length", int, 1024, "tokens"),
    cli.Flag("workdir", help="where plan.json is written"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, plans, prints; exits with a code unless all went well."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--help" in argv or "-h" in argv:
        print(cli.usage([flag for flag in FLAGS if flag.name not in ("config", "workdir")]))
        return
    with cli.exit_codes():
        command = cli.parse(argv, FLAGS)
        _plan(cli.load(command), command.values)


def _plan(config: Any, flags: dict[str, Any]) -> None:
    _check_sizes(flags)
    chip = hardware.chip_of(flags["topology"] or "")
    from experiments import plan_programs  # imports jax

    job = plan_programs.Job(
        network=model_shapes.model_shape(flags["model"] or ""),
        config=config,
        arm=_arm(config, flags["arm"]),
        prompts=flags["prompts"],
        group_size=flags["group_size"] or config.group_size,
        prompt_length=flags["prompt_length"],
        response_length=flags["response_length"],
    )
    devices = _devices(flags["topology"])
    splits = [_given(flags, len(devices))]
    if flags["search"]:
        splits = plan_search.candidates(job, len(devices), chip)
    print(f"{flags['model']} on {flags['topology']}: {len(devices)} chips, arm {job.arm}")
    print(f"{job.prompts} prompts of {job.prompt_length} tokens, {job.group_size} x "
          f"{job.response_length} tokens each")  # fmt: skip
    for split in splits:
        found = plan_split(job, devices, split, chip)
        fits = all(part["fits"] for part in found.values())
        if fits or not flags["search"]:
            break
    print(_verdict(found, split, fits))
    if flags["workdir"]:
        _write(flags, split, found)


def _check_sizes(flags: dict[str, Any]) -> None:
    for name in ("prompts", "prompt_length", "response_length", "accumulate"):
        if flags[name] < 1:
            raise ConfigError(f"--{name} = {flags[name]}; allowed is >= 1")
    if flags["group_size"] < 0:
        raise ConfigError(f"--group_size = {flags['group_size']}; allowed is >= 1, or 0")


def _devices(topology: str) -> list[Any]:
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)
    except Exception as error:  # jax raises several types for what the compiler refuses
        raise ConfigError(f"--topology = {topology!r}: {error}; libtpu must be installed") from error


def _arm(config: Any, name: str | None) -> str:
    arms = list(config.arms)
    name = name or next(iter(config.controls), arms[0])
    if name not in arms:
        raise ConfigError(f"--arm = {name!r}; allowed are {', '.join(arms)}")
    return name


def _given(flags: dict[str, Any], devices: int) -> plan_search.Split:
    text = flags["mesh"] or f"1,{devices},1"
    sizes = text.split(",")
    if len(sizes) != 3 or not all(size.isdecimal() for size in sizes):
        raise ConfigError(f"--mesh = {text!r}; allowed are three sizes, such as 1,{devices},1")
    return plan_search.Split(*map(int, sizes), flags["accumulate"])


def plan_split(job: Any, devices: list[Any], split: plan_search.Split, chip: Chip) -> dict:
    """Compiles the programs for one split; prints and gives their figures by name.

    Raises:
      ConfigError: the split does not fit the devices or the prompts.
    """
    from experiments import plan_programs
    from jaxreward.training import sharding

    print(f"\nmesh data={split.data} fsdp={split.fsdp} tensor={split.tensor}, "
          f"{split.accumulate} micro-batch(es)", flush=True)  # fmt: skip
    try:
        mesh = sharding.make_mesh(split.data, split.fsdp, split.tensor, devices=devices)
        parts = plan_programs.programs(job, mesh, split.accumulate)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    rules = sharding.transformer_rules(job.network, mesh)
    for line in sharding.left_whole(parts[0].state.params, mesh, rules):
        print(f"  whole on every chip: {line}")
    found = {}
    for part in parts:
        found[part.name] = figures(part, chip)
        print(_table(part.name, found[part.name]), flush=True)
        if not found[part.name]["fits"]:
            break
    return found


def figures(part: Any, chip: Chip) -> dict[str, Any]:
    """What a program needs and does on each chip; bytes, operations and seconds."""
    start = time.monotonic()
    try:
        compiled, text = _compiled(part.lower())
    except Exception as error:
        if "memory" not in str(error).lower():
            raise
        return {"fits": False, "compiler": " ".join(str(error).split())[:400]}
    memory = compiled.memory_analysis()
    cost = hlo_cost.count(text, rounds=part.rounds)
    arguments = memory.argument_size_in_bytes
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = arguments + fresh + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    seconds = {
        "operations": cost.flops / chip.flops,
        "memory": cost.bytes / chip.bandwidth,
        "links": sum(cost.wire.values()) / chip.link,
    }
    return {
        "arguments": arguments,
        "temporary": memory.temp_size_in_bytes,
        "peak": peak,
        "beside": part.beside,
        "fits": peak + part.beside <= chip.memory,
        "memory": chip.memory,
        "flops": cost.flops,
        "bytes": cost.bytes,
        "seconds": seconds,
        "bound_by": max(seconds, key=seconds.get),
        "collectives": _collectives(cost),
        "loops_assumed": cost.unknown,
        "rounds": part.rounds,
        "compile_seconds": time.monotonic() - start,
    }


def _compiled(lowered: Any) -> tuple[Any, str]:
    """The program and its text, from what the compiler writes where jax cannot give it.

    jax reads the program back from its serial form, which fails for some asynchronous
    collectives of v5p.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = lowered.compile(compiler_options=options)
        written = sorted(pathlib.Path(folder).glob("*.after_codegen.txt"))
        return compiled, written[-1].read_text() if written else compiled.as_text()


def _collectives(cost: hlo_cost.Cost) -> list[dict[str, Any]]:
    """By kind and size of the groups, largest first."""
    total: dict[tuple[str, int], list[float]] = {}
    for (kind, size, channel), sent in cost.wire.items():
        entry = total.setdefault((kind, size), [0.0, 0.0])
        entry[0] += sent
        entry[1] += cost.calls[kind, size, channel]
    rows = [
        {"kind": kind, "devices": size, "bytes": sent, "calls": calls}
        for (kind, size), (sent, calls) in total.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"])


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _table(name: str, part: dict[str, Any]) -> str:
    if "peak" not in part:
        return f"  {name}: does not fit; the compiler says: {part['compiler']}"
    seconds = part["seconds"]
    lines = [
        f"  {name}: {'fits' if part['fits'] else 'DOES NOT FIT'}: peak {_gib(part['peak'])} and "
        f"{_gib(part['beside'])} beside it, of {_gib(part['memory'])}",
        f"    arguments {_gib(part['arguments'])}, temporary {_gib(part['temporary'])}",
        f"    {part['flops'] / 1e12:.2f} TFLOP, {part['bytes'] / 1e9:.1f} GB of memory traffic",
        f"    at least {max(seconds.values()):.3f} s, bound by {part['bound_by']} ("
        + ", ".join(f"{what} {value:.3f} s" for what, value in seconds.items())
        + ")",
    ]
    for row in part["collectives"][:6]:
        lines.append(
            f"    {row['kind']} over {row['devices']}: {row['calls']:.0f} calls, "
            f"{row['bytes'] / 1e9:.3f} GB sent"
        )
    if part["loops_assumed"]:
        lines.append(
            f"    {part['loops_assumed']} loop(s) whose length is decided while they run are "
            f"counted {part['rounds']} time(s)"
        )
    lines.append(f"    compiled in {part['compile_seconds']:.0f} s")
    return "\n".join(lines)


def _verdict(found: dict[str, Any], split: plan_search.Split, fits: bool) -> str:
    mesh = f"--mesh={split.data},{split.fsdp},{split.tensor} --accumulate={split.accumulate}"
    if not fits:
        return f"\nDOES NOT FIT: {mesh}"
    total = sum(max(part["seconds"].values()) for part in found.values())
    return f"\nFITS: {mesh}; a step takes at least {total:.2f} s"


def _write(flags: dict[str, Any], split: plan_search.Split, found: dict[str, Any]) -> None:
    root = pathlib.Path(flags["workdir"])
    root.mkdir(parents=True, exist_ok=True)
    plan = {"flags": flags, "split": split._asdict(), "programs": found}
    atomic_write(root / "plan.json", json.dumps(plan, indent=1))


if __name__ == "__main__":
    main()
