"""Run by test_sharding_multi_device.py on eight forced host devices; prints one JSON line."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import toy_language_run as toy

from jaxreward.training import checkpoint, sharding

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILED.append(seconds) if "backend_compile" in event else None
)
MESHES = ((1, 1, 1), (8, 1, 1), (2, 2, 2), (1, 4, 2))
COPIES = MESHES[1]
"""Here each device differentiates its own prompts, in two micro-batches."""


def train(mesh, steps=10):
    """Tokens and losses of every step, the figures at learning rate 0, the final state."""
    copies = tuple(mesh.shape.values()) == COPIES
    step = toy.iteration(mesh, accumulate=2 if copies else 1, copies=copies)
    state, prompts = toy.start(mesh)
    start = state.params
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    same, still = step(state, prompts, jnp.float32(0.0))
    figures = {
        "moved": max(_distance(same.params, state.params)),
        "ratio": max(abs(float(still[f"policy/ratio_{end}"]) - 1) for end in ("mean", "max")),
        "gap": float(still["sampler_gap"]),
    }
    tokens, losses = [], []
    for index in range(steps):
        if index == 1:
            compiled = len(COMPILED)
        state, metrics = step(state, prompts, jnp.float32(0.003))
        tokens.append(np.asarray(metrics["tokens"]))
        losses.append(float(metrics["train/loss"]))
    assert placed == jax.tree.map(lambda leaf: leaf.sharding, state)
    assert len(COMPILED) == compiled, "a later step was compiled again"
    figures["learned"] = max(_distance(state.params, start))
    return np.stack(tokens), np.array(losses), figures, state


def _distance(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other))
    return [float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs]


def compare(folder):
    """Every mesh against the first; the second's checkpoint is restored on the others."""
    found, states = {}, {}
    for sizes in MESHES:
        mesh = sharding.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
        tokens, losses, figures, state = train(mesh)
        states[sizes] = state
        if sizes == MESHES[0]:
            first = tokens, losses, state
        figures["tokens"] = bool(np.array_equal(tokens, first[0]))
        figures["loss"] = float(np.max(np.abs(losses / first[1] - 1)))
        figures["params"] = max(_distance(state.params, first[2].params))
        found["x".join(map(str, sizes))] = figures
    with checkpoint.open_checkpoints(folder) as checkpoints:
        checkpoints.save(10, states[MESHES[2]], {})
        checkpoints.wait()
        for sizes in MESHES:
            restored = checkpoints.restore_newest(states[sizes]).state
            same = jax.tree.map(lambda a, b: a.sharding == b.sharding, restored, states[sizes])
            assert all(jax.tree.leaves(same)), same
            assert max(_distance(_raw(restored), _raw(states[MESHES[2]]))) == 0
    return found


def _raw(state):
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        state,
    )


if __name__ == "__main__":
    assert jax.device_count() == 8
    print(json.dumps(compare(sys.argv[1])))
