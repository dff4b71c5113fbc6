"""The head over many devices; the work is done in a process that has eight of them."""

import pathlib

import jax
import jax.numpy as jnp
import processes
import pytest

from jaxreward.kernels.linear_log_prob import sharded


def test_equals_one_device():
    script = pathlib.Path(__file__).with_name("sharded_on_eight_devices.py")
    done = processes.python(script, devices=8)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "same"


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (dict(token_axes=("rows",)), "axis 'rows' is not in the mesh"),
        (dict(vocabulary_axis="columns"), "axis 'columns' is not in the mesh"),
        (dict(token_axes=("data",), vocabulary_axis="data"), "allowed is each axis once"),
    ],
)
def test_refusals(where, message):
    mesh = jax.make_mesh((1,), ("data",))
    hidden, weight, targets = jnp.zeros((3, 2)), jnp.zeros((2, 5)), jnp.zeros((3,), jnp.int32)
    with pytest.raises(ValueError, match=message):
        sharded.linear_log_prob(hidden, weight, targets, mesh=mesh, **where)


def test_no_rows():
    mesh = jax.make_mesh((1,), ("data",))
    outputs = sharded.linear_log_prob(
        jnp.zeros((0, 3)), jnp.zeros((3, 5)), jnp.zeros((0,), jnp.int32), mesh=mesh
    )
    assert [out.shape for out in outputs] == [(0,)] * 3
