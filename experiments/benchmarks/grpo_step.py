"""One GRPO iteration (rollout, reward, update) against TRL's GRPOTrainer.

A random Llama-like policy of 4 layers, width 128, vocabulary 66; 32 prompts x 8 samples x 32
new tokens, no KL term; TRL from PyPI on torch CPU with the same shapes, each framework in
turn on the same cores. Here the prompts are split over one CPU device per core and the
gradient is accumulated over micro-batches that fit the cache; the update is the same.
"""

import json
import os
import subprocess
import sys
from typing import Any

SHAPES = dict(
    prompts=32,
    group_size=8,
    new_tokens=32,
    prompt_length=16,
    vocabulary=66,
    width=128,
    intermediate=256,
    layers=4,
    heads=4,
    kv_heads=2,
)
BAR = 4.0
"""Times TRL's samples per second that this must reach."""


def run(workdir: str, quick: bool) -> dict[str, Any]:
    """Measures both; TRL is skipped with a note where it is not installed."""
    del workdir
    repeats = 5 if quick else 20
    ours, samples = _ours(repeats), SHAPES["prompts"] * SHAPES["group_size"]
    from experiments.benchmarks import timing

    rows = [["implementation", "ms per iteration (min to max)", "samples/s"]]
    mid = sorted(ours)[len(ours) // 2]
    rows.append(["jaxreward", timing.middle(ours), f"{samples / mid:.0f}"])
    result: dict[str, Any] = {"shapes": SHAPES, "seconds": {"jaxreward": ours}, "rows": rows}
    theirs = _trl(4 if quick else 8)
    if isinstance(theirs, str):
        return {**result, "notes": [theirs]}
    other = sorted(theirs["seconds"])[len(theirs["seconds"]) // 2]
    rows.append(["TRL GRPOTrainer", timing.middle(theirs["seconds"]), f"{samples / other:.0f}"])
    ratio = other / mid
    verdict = "reached" if ratio >= BAR else "not reached"
    result["seconds"]["trl"] = theirs["seconds"]
    result["trl_versions"], result["ratio"] = theirs["versions"], ratio
    return {**result, "notes": [f"ratio {ratio:.2f}; bar {BAR:g}: {verdict}"]}


def _ours(repeats: int) -> list[float]:
    """Seconds of whole iterations, state carried from one to the next."""
    import time

    import jax

    from experiments import cli

    cli.spread_over_cores()
    state, iteration = make_iteration()
    state = jax.block_until_ready(iteration(state))
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        state = jax.block_until_ready(iteration(state))
        found.append(time.perf_counter() - start)
    return found


def make_iteration():
    """`(state, iteration)`: the whole GRPO step as one jitted function of the state."""
    import jax
    import jax.numpy as jnp
    import optax
    from jax.sharding import NamedSharding, PartitionSpec

    from jaxreward.losses.policy import policy_objective
    from jaxreward.networks.transformer_config import TransformerConfig
    from jaxreward.policies import language
    from jaxreward.training import sharding
    from jaxreward.training.step import make_update_step, sample_key
    from jaxreward.transforms import advantage
    from jaxreward.types import make_signal

    names = ("width", "intermediate", "layers", "heads", "kv_heads")
    config = TransformerConfig(SHAPES["vocabulary"], **{name: SHAPES[name] for name in names})
    mesh = sharding.make_mesh()
    decoding = dict(max_new_tokens=SHAPES["new_tokens"], stop_tokens=(2,), pad_token=0)
    whole, own = sharding.language_layout(config, mesh), sharding.copy_layout(mesh)
    policy = language.language_policy(config, layout=whole, **decoding)
    learner = language.language_policy(config, layout=own, **decoding)
    loss = policy_objective(learner, normalize="token")
    options = dict(accumulate=8, mesh=mesh)
    step = make_update_step(loss, advantage.grpo(), optax.adamw(1e-4), **options)
    tokens = 3 + jnp.arange(SHAPES["prompt_length"], dtype=jnp.int32) % 10
    shape = (SHAPES["prompts"], SHAPES["prompt_length"])
    lengths = jnp.full(shape[:1], shape[1], jnp.int32)
    prompts = language.Prompts(jnp.broadcast_to(tokens[None], shape), lengths)
    prompts = jax.device_put(prompts, NamedSharding(mesh, PartitionSpec(sharding.BATCH)))

    def iteration(state, prompts):
        trajectories = policy.sample(
            state.params, sample_key(state), prompts, SHAPES["group_size"]
        )
        rewards = jnp.any(trajectories.actions == 5, axis=-1).astype(jnp.float32)
        return step.update(state, make_signal(rewards, trajectories=trajectories))[0]

    state = step.init(jax.random.key(0), policy.init(jax.random.key(1)))
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    jitted = jax.jit(iteration, donate_argnums=0)
    return state, lambda state: jitted(state, prompts)


def _trl(repeats: int) -> dict[str, Any] | str:
    shapes = {**SHAPES, "threads": os.cpu_count(), "warmup": 2, "repeats": repeats}
    command = [sys.executable, "-m", "experiments.benchmarks.trl_reference", json.dumps(shapes)]
    try:
        import importlib.util

        if importlib.util.find_spec("trl") is None:
            return "TRL is not installed (pip install trl torch): comparison skipped"
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        return f"TRL did not run: {last}"
    return json.loads(done.stdout.strip().splitlines()[-1])
