"""Sharded against single-device on 8 forced host devices; a failed check ends the process."""

import functools

import jax
import jax.numpy as jnp
import linear_log_prob_oracle as oracle
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxreward.kernels.linear_log_prob import api, core, sharded, xla
from jaxreward.kernels.linear_log_prob.blocks import GpuBlocks, Tile, TpuBlocks

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

TPU = TpuBlocks(Tile(16, 128), Tile(16, 128), Tile(16, 128), 16 << 20)
GPU = GpuBlocks(rows=16, columns=16, depth=16, shares=2)
CAPPED = dict(temperature=0.7, logit_softcap=4.0)


def make_mesh(sizes, names):
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(names))


def same(mesh, problem, options, **where):
    """Values and gradients against float64 and against one device."""
    scaling = {name: options.get(name) for name in ("logit_softcap", "vocabulary")}
    scaling["temperature"] = options.get("temperature", 1.0)

    def split(hidden, weight, targets, bias):
        return sharded.linear_log_prob(
            hidden, weight, targets, bias, mesh=mesh, **where, **options
        )

    actual, expected = oracle.run(split, problem), on_one_device(problem, scaling)
    oracle.assert_close(actual, oracle.answer(problem, **scaling))
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(actual[1][0][oracle.idle_rows(problem)], 0.0)


def on_one_device(problem, scaling):
    single = functools.partial(api.linear_log_prob, implementation="xla", **scaling)
    return oracle.run(single, problem)


def several_meshes():
    tokens, columns = dict(token_axes=("data", "fsdp")), dict(vocabulary_axis="tensor")
    xla_blocks = dict(implementation="xla", block_rows=3, block_columns=5)
    problem = oracle.make(0, 21, 8, 45)
    for shape, where in (
        ((8, 1, 1), tokens),
        ((1, 1, 8), columns),
        ((2, 2, 2), {**tokens, **columns}),
        ((1, 2, 4), dict(token_axes=("fsdp",), **columns)),
    ):
        mesh = make_mesh(shape, ("data", "fsdp", "tensor"))
        same(mesh, problem, {**CAPPED, **xla_blocks}, **where)
    mesh = make_mesh((2, 4), ("data", "tensor"))
    where = dict(token_axes=("data",), vocabulary_axis="tensor")
    problem = oracle.make(1, 10, 8, 64, bias=False)
    same(mesh, problem, xla_blocks, **where)
    problem.targets[problem.targets >= 18] = 5
    same(mesh, problem, {**xla_blocks, "vocabulary": 18}, **where)  # two parts without columns
    for implementation, blocks in (("pallas_tpu", TPU), ("pallas_gpu", GPU)):
        chosen = dict(implementation=implementation, blocks=blocks, interpret=True)
        same(mesh, problem, {**CAPPED, **chosen, "vocabulary": 18}, **where)


def under_the_callers_shard_map():
    """Gradients of a mean taken inside `shard_map`, checked and unchecked."""
    mesh = make_mesh((2, 4), ("data", "tensor"))
    problem = oracle.make(2, 12, 8, 32)
    hidden, weight, bias = (
        jnp.asarray(x, jnp.float32) for x in (problem.hidden, problem.weight, problem.bias)
    )
    targets = jnp.asarray(problem.targets)

    def score(log_prob, entropy, normalizer):
        return jnp.sum(jnp.exp(log_prob) + 0.3 * entropy + 0.1 * jnp.square(normalizer))

    def part(hidden, weight, bias, targets):
        outputs = core.linear_log_prob(
            xla.kernel(Tile(4, 3)), hidden, weight, targets, bias, axis="tensor", vocabulary=30
        )
        return jax.lax.psum(score(*outputs), "data")

    P = PartitionSpec
    specs = P("data"), P(None, "tensor"), P("tensor"), P("data")

    def whole(hidden, weight, bias):
        outputs = api.linear_log_prob(
            hidden, weight, targets, bias, vocabulary=30, implementation="xla"
        )
        return score(*outputs)

    expected = jax.jit(jax.value_and_grad(whole, (0, 1, 2)))(hidden, weight, bias)
    for check in (True, False):
        split = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check)
        actual = jax.jit(jax.value_and_grad(split, (0, 1, 2)))(hidden, weight, bias, targets)
        for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
            np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)


def nothing_large_travels():
    """Vocabulary-parallel: no collective carries weights or logits, in a program as users run it."""
    jax.config.update("jax_disable_most_optimizations", False)
    mesh = make_mesh((8,), ("tensor",))
    place = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))
    rows, width, vocabulary = 64, 16, 4096

    def loss(hidden, weight, targets):
        log_prob, entropy, _ = sharded.linear_log_prob(
            hidden, weight, targets, mesh=mesh, vocabulary_axis="tensor", block_rows=16
        )
        return jnp.sum(log_prob + 0.1 * entropy)

    shapes = (
        jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=place()),
        jax.ShapeDtypeStruct((width, vocabulary), jnp.float32, sharding=place(None, "tensor")),
        jax.ShapeDtypeStruct((rows,), jnp.int32, sharding=place()),
    )
    gradient = jax.jit(jax.grad(loss, (0, 1)), out_shardings=(place(), place(None, "tensor")))
    text = gradient.lower(*shapes).compile().as_text()
    sizes = oracle.collective_sizes(text)
    assert sizes and max(sizes) <= rows * width, sizes


if __name__ == "__main__":
    several_meshes()
    under_the_callers_shard_map()
    nothing_large_travels()
    print("same")
