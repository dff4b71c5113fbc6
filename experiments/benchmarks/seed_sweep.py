"""Eight seeds of a language-policy run under one `vmap` against eight single runs.

Both include everything a person waits for: compilation once for the sweep, once for each
single run (each is a run of its own), and the steps.
"""

import time
from typing import Any

SEEDS, BAR = 8, 0.5


def run(workdir: str, quick: bool) -> dict[str, Any]:
    """Times the sweep and the single runs, one after another in this process."""
    del workdir
    import jax

    steps = 10 if quick else 40
    jax.block_until_ready(jax.jit(lambda x: x + 1)(0))  # the backend's own start
    whole = _time(list(range(SEEDS)), steps)
    single = [_time([seed], steps) for seed in range(SEEDS)]
    rows = [["what", "compile and first step [s]", "steps after [s]", "total [s]"]]
    totals = [sum(column) for column in zip(*single)]
    for name, (first, rest) in (("sweep of 8", whole), ("8 single runs", tuple(totals))):
        rows.append([name, f"{first:.2f}", f"{rest:.2f}", f"{first + rest:.2f}"])
    ratio = sum(whole) / sum(totals)
    steady = whole[1] / totals[1]
    verdict = "reached" if ratio <= BAR else "not reached"
    notes = [f"ratio {ratio:.2f} (steps alone {steady:.2f}); bar {BAR:g}: {verdict}"]
    return {"rows": rows, "notes": notes, "ratio": ratio, "steady_ratio": steady, "steps": steps}


def _time(seeds: list[int], steps: int) -> tuple[float, float]:
    """Seconds of the first step with compilation, and of the others."""
    import jax

    state, iteration = make_sweep(seeds)
    start = time.perf_counter()
    state = jax.block_until_ready(iteration(state))
    middle = time.perf_counter()
    for _ in range(steps - 1):
        state = iteration(state)
    jax.block_until_ready(state)
    return middle - start, time.perf_counter() - middle


def make_sweep(seeds: list[int]):
    """A population of one arm over the seeds, and its jitted iteration."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from jaxreward.losses.policy import policy_objective
    from jaxreward.networks.transformer_config import TransformerConfig
    from jaxreward.policies import language
    from jaxreward.training.population import make_population
    from jaxreward.transforms import advantage

    config = TransformerConfig(23, width=32, layers=2, heads=2, kv_heads=1, intermediate=64)
    policy = language.language_policy(config, max_new_tokens=4, stop_tokens=(2,), pad_token=0)
    population = make_population(
        policy,
        {"grpo": advantage.grpo()},
        lambda hyper: policy_objective(policy),
        lambda hyper: optax.adam(hyper["learning_rate"]),
        {"learning_rate": jnp.full((1, len(seeds)), 1e-3)},
        np.arange(len(seeds), dtype=np.int32),
        group_size=8,
        first_seed=seeds[0],
    )
    tokens = jnp.broadcast_to(jnp.arange(3, 7, dtype=jnp.int32), (len(seeds), 8, 4))
    prompts = language.Prompts(tokens, jnp.full((len(seeds), 8), 4, jnp.int32))
    ids = jnp.broadcast_to(jnp.arange(8, dtype=jnp.int32), (len(seeds), 8))

    def iteration(state):
        trajectories = population.rollout(state, prompts)
        rewards = jnp.any(trajectories.actions == 5, axis=-1).astype(jnp.float32)
        mask = jnp.ones(rewards.shape, bool)
        return population.update(state, rewards, mask, trajectories, {"prompt_id": ids})[0]

    state = population.init(jax.random.key(0), policy.init(jax.random.key(1)))
    return state, jax.jit(iteration)
