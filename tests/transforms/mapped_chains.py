"""Run by test_mapped_chains.py on eight forced host devices; prints one JSON line.

Chains that reduce over the batch, under `jax.pmap` and `jax.shard_map` with `axis_name`, against
the same chains on one device.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxreward.transforms import advantage, appeals, base, correction, noise, rates, sources
from jaxreward.types import make_signal

DEVICES, P, G, AXIS = 8, 24, 4, "devices"
PROVIDED = ("aux/true_rewards", "aux/prompt_type")


def chains(axis_name):
    """By name, noise, an estimator, a correction and an advantage that look at the batch."""
    tail = dict(axis_name=axis_name)
    channel = sources.by_index("prompt_type", [0.1, 0.3], [0.2, 0.3])
    some = dict(negative_share=0.6, **tail)
    asked = appeals.simulated_appeals(positive_share=0.5, budget=20, **some)
    indexed = rates.appeals(by="prompt_type", num=2, rechecks_positives=True, decay=0.9, **tail)
    running = advantage.group_relative(baseline="leave_one_out", scale="running_std", **tail)
    parts = {
        "known": (
            rates.known(channel, **tail),
            correction.corrected_group_normalization(**tail),
        ),
        "appeals": (asked, indexed, correction.backward(**tail), running),
        "released": (
            appeals.simulated_appeals(positive_share=0.5, **some),
            rates.appeals_as_released(**some),
            correction.forward(scale="determinant", **tail),
            advantage.batch_normalized(**tail),
        ),
    }
    control = advantage.group_relative(scale="batch_std", **tail)
    made = {}
    for name, own in parts.items():
        corrected = base.chain(*own, provided=PROVIDED, on_inert="allow")
        last = advantage.audited(corrected, control, **tail)
        flips = noise.class_conditional(channel)
        made[name] = base.chain(flips, last, provided=PROVIDED, on_inert="allow")
    return made


def make_batch(seed):
    """Rewards with some missing, and what the chains read."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 2, size=(P, G)).astype(np.float32)
    missing = rng.random((P, G)) < 0.1
    return make_signal(
        np.where(missing, np.nan, true),
        true_rewards=jnp.asarray(true),
        prompt_id=jnp.asarray(rng.permutation(1000)[:P], jnp.int32),
        prompt_type=jnp.asarray(rng.integers(0, 2, P), jnp.int32),
    )


def updater(transform):
    """`(key, signal, state) -> (by prompt, of the batch)`."""

    def update(key, signal, state):
        signal, state = transform.update(key, signal, state)
        channel = signal.rates.expand(2).matrix
        shape = signal.rewards.shape
        matrix = jnp.broadcast_to(channel, shape + channel.shape[-2:])
        by_prompt = (signal.rewards, signal.mask, signal.advantages, matrix)
        return by_prompt, (signal.metrics, state)

    return update


def pmapped(update):
    """One call per step, the state copied to every device."""
    mapped = jax.pmap(update, axis_name=AXIS, in_axes=(None, 0, None))

    def call(key, signal, state):
        split = jax.tree.map(lambda x: x.reshape((DEVICES, -1) + x.shape[1:]), signal)
        by_prompt, of_batch = mapped(key, split, state)
        for leaf in jax.tree.leaves(of_batch):
            assert np.all(np.asarray(leaf) == np.asarray(leaf)[:1])
        joined = jax.tree.map(lambda x: x.reshape((-1,) + x.shape[2:]), by_prompt)
        return jax.device_get((joined, jax.tree.map(lambda x: x[0], of_batch)))

    return call


def shard_mapped(update):
    """The compiler checks that metrics and state are the same on every device."""
    mesh = Mesh(np.array(jax.devices()), (AXIS,))
    split, whole = PartitionSpec(AXIS), PartitionSpec()
    mapped = jax.shard_map(
        update, mesh=mesh, in_specs=(whole, split, whole), out_specs=(split, whole)
    )
    return jax.jit(mapped)


def difference(one, other):
    """Largest relative difference, by where it is."""
    worst = {}
    pairs = zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other))
    for (path, a), b in pairs:
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        apart = np.max(np.abs(a - b) / np.maximum(np.abs(a), 1.0), initial=0.0)
        assert np.array_equal(np.isnan(a), np.isnan(b))
        worst[jax.tree_util.keystr(path)] = float(apart)
    return max(worst.values()), max(worst, key=worst.get)


def compare(steps=3):
    """Every chain both ways for some steps."""
    found, alone = {}, chains(None)
    for name, transform in chains(AXIS).items():
        single = jax.jit(updater(alone[name]))
        for way in (pmapped, shard_mapped):
            mapped, expected, got = way(updater(transform)), None, None
            state = own = transform.init()
            worst = []
            for step in range(steps):
                key = jax.random.key(step)
                expected = single(key, make_batch(step), state)
                got = mapped(key, make_batch(step), own)
                state, own = expected[1][1], got[1][1]
                worst.append(difference(expected, got))
            found[f"{name}/{way.__name__}"] = max(worst)
    return found


if __name__ == "__main__":
    assert jax.device_count() == DEVICES
    print(json.dumps(compare()))
