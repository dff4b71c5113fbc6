"""The TPU kernels in the interpreter, against float64."""

import jax.numpy as jnp
import linear_log_prob_oracle as oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxreward.kernels.linear_log_prob import api
from jaxreward.kernels.linear_log_prob.blocks import Tile, TpuBlocks, tpu_blocks, vmem_bytes

SMALL = TpuBlocks(Tile(32, 128), Tile(16, 256), Tile(32, 128), 16 << 20)


def _kernel(**options):
    def function(hidden, weight, targets, bias):
        return api.linear_log_prob(
            hidden, weight, targets, bias, implementation="pallas_tpu", blocks=SMALL,
            interpret=True, **options,
        )  # fmt: skip

    return function


@settings(max_examples=8)
@given(
    rows=st.sampled_from([1, 16, 45]),
    vocabulary=st.sampled_from([1, 128, 300]),
    width=st.sampled_from([8, 200]),
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
    np.testing.assert_array_equal(actual[1][1][:, vocabulary:], 0.0)


def test_bfloat16_accumulates_in_float32():
    problem = oracle.make(3, 40, 64, 300, dtype=jnp.bfloat16)
    actual = oracle.run(_kernel(), problem, jnp.bfloat16)
    expected = oracle.answer(problem)
    np.testing.assert_allclose(actual[0], expected[0], atol=1e-5)
    oracle.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


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
    np.testing.assert_array_equal(actual[1][1][:, 3:5], 0.0)


def test_poison_stays_in_its_row():
    problem = oracle.make(4, 40, 4, 7)
    problem.targets[:] = 1
    problem.hidden[5], problem.cotangents[:, 5] = np.nan, 0.0
    outputs, (d_hidden, d_weight, d_bias) = oracle.run(_kernel(), problem)
    finite = np.arange(40) != 5
    assert np.all(np.isfinite(np.asarray(outputs)[:, finite]))
    assert np.all(np.isnan(np.asarray(outputs)[:, 5]))
    assert all(np.all(np.isfinite(x)) for x in (d_hidden, d_weight, d_bias))


@pytest.mark.parametrize("kind", ["TPU v5e", "TPU v5p", "TPU v6e", "TPU7x", "something new"])
@pytest.mark.parametrize("width", [64, 1024, 4096, 8192])
def test_tiles_fit(kind, width):
    blocks = tpu_blocks(width, 2, 4, kind)
    for kernel in ("forward", "hidden", "weight"):
        tile = getattr(blocks, kernel)
        assert vmem_bytes(kernel, tile, width, 2, 4) <= blocks.vmem_limit_bytes
        assert tile.rows % 16 == 0 and tile.columns % 128 == 0


def test_no_tile_fits():
    with pytest.raises(ValueError, match="hidden width = 1048576; no tile fits"):
        tpu_blocks(1 << 20, 2, 4, "TPU v5p")
