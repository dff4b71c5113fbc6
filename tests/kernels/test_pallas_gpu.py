"""The Triton kernel: exact in the interpreter, lowered for CUDA."""

import jax
import jax.numpy as jnp
import linear_log_prob_oracle as oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

from jaxreward.kernels.linear_log_prob import api
from jaxreward.kernels.linear_log_prob.blocks import GpuBlocks

SMALL = GpuBlocks(rows=16, columns=64, depth=16, shares=3)


def _kernel(**options):
    def function(hidden, weight, targets, bias):
        return api.linear_log_prob(
            hidden, weight, targets, bias, implementation="pallas_gpu", blocks=SMALL,
            block_rows=16, interpret=True, **options,
        )  # fmt: skip

    return function


@settings(max_examples=8)
@given(
    rows=st.sampled_from([1, 16, 45]),
    vocabulary=st.sampled_from([1, 128, 300]),
    width=st.sampled_from([8, 50]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    softcap=st.sampled_from([None, 4.0]),
    padding=st.sampled_from([0, 5, 150]),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_values_and_gradients(
    rows, vocabulary, width, temperature, softcap, padding, bias, seed
):
    problem = oracle.make(seed, rows, width, vocabulary + padding, bias=bias)
    problem.targets[problem.targets >= vocabulary] = 0
    options = dict(temperature=temperature, logit_softcap=softcap)
    if padding:
        options["vocabulary"] = vocabulary
    actual = oracle.run(_kernel(**options), problem)
    oracle.assert_close(actual, oracle.answer(problem, **options))
    assert np.all(np.asarray(actual[0][1]) <= np.float32(np.log(vocabulary)))
    np.testing.assert_array_equal(actual[1][0][oracle.idle_rows(problem)], 0.0)


def test_bfloat16_accumulates_in_float32():
    problem = oracle.make(3, 40, 64, 300, dtype=jnp.bfloat16)
    actual = oracle.run(_kernel(), problem, jnp.bfloat16)
    np.testing.assert_allclose(actual[0], oracle.answer(problem)[0], atol=1e-5)


@pytest.mark.parametrize("size", [1e4, -1e4, 0.0])
def test_extreme_logits(size):
    problem = oracle.extreme(size)
    oracle.assert_close(
        oracle.run(_kernel(), problem), oracle.answer(problem), rtol=1e-6, atol=1e-5
    )


def test_banned_tokens():
    problem = oracle.make(2, 6, 4, 9)
    problem.bias[3:5] = -np.inf
    problem.targets[np.isin(problem.targets, (3, 4))] = 0
    actual = oracle.run(_kernel(), problem)
    oracle.assert_close(actual, oracle.answer(problem))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_lowers_for_cuda(dtype):
    def loss(hidden, weight, bias, targets, temperature):
        log_prob, entropy, _ = api.linear_log_prob(
            hidden, weight, targets, bias, implementation="pallas_gpu",
            temperature=temperature, logit_softcap=30.0, vocabulary=50000,
        )  # fmt: skip
        return jnp.sum(0.3 * log_prob + entropy)

    shapes = [
        jax.ShapeDtypeStruct((1000, 200), dtype),
        jax.ShapeDtypeStruct((200, 50257), jnp.float32),
        jax.ShapeDtypeStruct((50257,), jnp.float32),
        jax.ShapeDtypeStruct((1000,), jnp.int32),
        jax.ShapeDtypeStruct((), jnp.float32),
    ]
    device = AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    mesh = AbstractMesh((1,), ("data",), (AxisType.Explicit,), abstract_device=device)
    with use_abstract_mesh(mesh):  # newer Pallas asks what it lowers for
        traced = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).trace(*shapes)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "linear_log_prob_forward_kernel" in text
    assert "triton" in text.lower() and "mosaic" not in text.lower()


@pytest.mark.parametrize("side", ["rows", "columns", "depth"])
def test_sides_are_powers_of_two(side):
    blocks = GpuBlocks(**{side: 48})
    with pytest.raises(ValueError, match=f"{side} = 48; allowed are powers of two"):
        api.linear_log_prob(
            jnp.zeros((3, 2)), jnp.zeros((2, 5)), jnp.zeros((3,), jnp.int32),
            implementation="pallas_gpu", blocks=blocks, interpret=True,
        )  # fmt: skip
