"""Run by test_generators_multi_device.py on eight forced host devices; prints one JSON line.

One iteration of FIND and one of RLCM, as their studies run them, with the batch on one device and
split over eight.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np

from configs import find as find_config
from configs import rlcm as rlcm_config
from experiments.generator_studies import devices, digits, find, rlcm
from jaxreward.policies import consistency
from jaxreward.rewards.compression import compressed_bytes

COUNT = 8


def generator(settings):
    settings.generator.kind = "transformer"  # as in full size
    base = digits.build(settings.generator)
    params = base.network.init(jax.random.key(0))
    noisy = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    return base._replace(params=jax.tree.map(noisy, params))  # the start is zero in places


def find_iteration(mesh):
    """The parameters after one iteration for eight wishes, what it saw, and the start."""
    settings = find_config.get_config("smoke").study
    arm = settings.arms.find
    ink = lambda images, prompt: jnp.mean(images, axis=(-3, -2, -1)) * (prompt + 1.0)
    times = consistency.grid(settings.sampler_steps)
    task = find.Task(generator(settings), settings.eta, times, ink, ink)
    policy = find.noise_policy(task)

    def one(prompt, key):
        start, iteration = find.make_iteration(policy, task, arm, settings, prompt, mesh)
        (state, _), seen = iteration(start(key))
        return state.params, seen

    wishes = jnp.arange(COUNT, dtype=jnp.float32)
    many = jax.jit(devices.vmap_over(mesh, one))
    return many(wishes, jax.random.split(jax.random.key(1), COUNT)), policy.init(jax.random.key(0))


def rlcm_iteration(mesh):
    """The state after one iteration of 16 prompts, and what it saw; the host gives the reward."""
    settings = rlcm_config.get_config("smoke").study
    settings.prompts_per_step = 2 * COUNT
    arm, own = settings.arms.rlcm_4, generator(settings)
    reward = lambda images, labels: -compressed_bytes(jnp.sign(images))  # noise differs in nothing
    task = rlcm.Task(own, own.params, reward, None)
    policy = rlcm.make_policy(task, arm, mesh)
    start, iteration = rlcm.make_iteration(policy, task.reward, arm, settings)
    begin = start(jax.random.key(1))
    step = jax.jit(iteration).lower(begin).compile()
    state, seen = step(begin)
    return (state.params, seen), begin.params, "all-reduce" in step.as_text()


def distance(one, other):
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other))
    return max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)


def compare():
    mesh, found = devices.mesh_over(COUNT), {}
    (one, _), (many, start) = find_iteration(None), find_iteration(mesh)
    leaf = jax.tree.leaves(many[0])[0]
    found["find"] = {
        "apart": distance(one, many),
        "moved": distance(jax.tree.map(lambda x: x[0], many[0]), start),
        "split": len(leaf.sharding.device_set) == COUNT and not leaf.is_fully_replicated,
    }
    one, start, alone = rlcm_iteration(None)
    many, _, together = rlcm_iteration(mesh)
    apart, moved = distance(one, many), distance(many[0], start)
    found["rlcm"] = {"apart": apart, "moved": moved, "split": together and not alone}
    return found


if __name__ == "__main__":
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
        print(json.dumps(compare()))
