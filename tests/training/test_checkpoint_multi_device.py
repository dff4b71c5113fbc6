"""A checkpoint of one mesh is restored onto another; its own process forces the devices."""

import processes

SCRIPT = """
import os, sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxreward.training import checkpoint

def state_on(devices):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("d",))
    split, whole = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
    tree = {
        "w": jnp.arange(32.0).reshape(8, 4),
        "b": jnp.arange(3, dtype=jnp.int32),
        "keys": jax.random.split(jax.random.key(0), 8),
        "free": jnp.ones(5),
    }
    placed = {"w": split, "b": whole, "keys": split}
    return {k: jax.device_put(v, placed[k]) if k in placed else v for k, v in tree.items()}

def values(tree):
    raw = {**tree, "keys": jax.random.key_data(tree["keys"])}
    return {k: np.asarray(v) for k, v in raw.items()}

assert jax.device_count() == 8
saved = state_on(8)
with checkpoint.open_checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(1, saved, {"a": 1})
    checkpoints.wait()
    for devices in (1, 2, 4, 8):
        here = jax.tree.map(jnp.zeros_like, {k: v for k, v in state_on(devices).items()
                                             if k != "keys"}) | {"keys": state_on(devices)["keys"]}
        abstract = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), here)
        for template in (here, abstract):
            state = checkpoints.restore_newest(template).state
            for name, value in values(state).items():
                np.testing.assert_array_equal(value, values(saved)[name])
            for name in ("w", "b", "keys"):
                assert state[name].sharding == here[name].sharding, (name, devices)
print("same")
"""


def test_restoring_onto_another_mesh(tmp_path):
    done = processes.python("-c", SCRIPT, tmp_path / "c", devices=8)
    assert done.stdout == "same\n", done.stderr
