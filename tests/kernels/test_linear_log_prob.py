"""The entry, the blocked XLA kernel and the materialising reference, against float64."""

import jax
import jax.numpy as jnp
import jaxtyping
import linear_log_prob_oracle as oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxreward.kernels.linear_log_prob import api, reference, rows
from jaxreward.kernels.linear_log_prob.blocks import GpuBlocks


def _kernel(implementation, block_rows=None, **options):
    def function(hidden, weight, targets, bias):
        return api.linear_log_prob(
            hidden, weight, targets, bias,
            implementation=implementation, block_rows=block_rows, **options,
        )  # fmt: skip

    return function


@settings(max_examples=16)
@given(
    count=st.sampled_from([1, 13, 40]),
    vocabulary=st.sampled_from([1, 2, 130]),
    block_rows=st.sampled_from([1, 8, 64]),
    block_columns=st.sampled_from([None, 1, 48, 65]),
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    softcap=st.sampled_from([None, 4.0]),
    padding=st.sampled_from([0, 5]),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_blocked_values_and_gradients(
    count, vocabulary, block_rows, block_columns, temperature, softcap, padding, bias, seed
):
    problem = oracle.make(seed, count, 5, vocabulary + padding, bias=bias)
    problem.targets[problem.targets >= vocabulary] = 0
    options = dict(temperature=temperature, logit_softcap=softcap)
    if padding:
        options["vocabulary"] = vocabulary
    kernel = _kernel("xla", block_rows, block_columns=block_columns, **options)
    actual = oracle.run(kernel, problem)
    oracle.assert_close(actual, oracle.answer(problem, **options))
    assert np.all(np.asarray(actual[0][1]) <= np.float32(np.log(vocabulary)))
    np.testing.assert_array_equal(actual[1][0][oracle.idle_rows(problem)], 0.0)
    np.testing.assert_array_equal(actual[1][1][:, vocabulary:], 0.0)


@pytest.mark.parametrize("options", [{}, dict(logit_softcap=3.0, temperature=0.5, vocabulary=7)])
def test_reference_in_float64(options):
    problem = oracle.make(1, 9, 4, 11)
    problem.targets[problem.targets >= 7] = 2
    with jax.enable_x64(True):
        operands = (problem.hidden, problem.weight, problem.bias)
        arrays = [jnp.asarray(x, jnp.float64) for x in operands]
        targets = jnp.asarray(problem.targets)
        outputs, pullback = jax.vjp(
            lambda h, w, b: reference.linear_log_prob(h, w, targets, b, **options), *arrays
        )
        gradients = pullback(tuple(jnp.asarray(problem.cotangents, jnp.float64)))
        expected = oracle.answer(problem, **options)
        for a, e in zip((*outputs, *gradients), (*expected[0], *expected[1])):
            np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
@pytest.mark.parametrize("size", [1e4, -1e4, 0.0])
def test_extreme_logits(implementation, size):
    problem = oracle.extreme(size)
    actual = oracle.run(_kernel(implementation), problem)
    oracle.assert_close(actual, oracle.answer(problem), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_banned_tokens(implementation):
    problem = oracle.make(2, 6, 4, 9)
    problem.bias[3:5] = -np.inf
    problem.targets[np.isin(problem.targets, (3, 4))] = 0
    actual = oracle.run(_kernel(implementation), problem)
    oracle.assert_close(actual, oracle.answer(problem))
    np.testing.assert_array_equal(actual[1][1][:, 3:5], 0.0)


def test_bfloat16_accumulates_in_float32():
    problem = oracle.make(3, 64, 256, 1000, dtype=jnp.bfloat16, bias=False)
    actual = oracle.run(_kernel("xla"), problem, jnp.bfloat16)
    expected = oracle.answer(problem)
    np.testing.assert_allclose(actual[0], expected[0], atol=1e-5)
    oracle.assert_close(actual, expected, rtol=2e-2, atol=2e-2)


def test_poison_stays_in_its_row():
    problem = oracle.make(4, 12, 4, 7)
    problem.targets[:] = 1
    problem.hidden[5] = np.nan
    outputs, (d_hidden, _, _) = oracle.run(_kernel("xla", 4), problem)
    finite = np.arange(12) != 5
    assert np.all(np.isfinite(np.asarray(outputs)[:, finite]))
    assert np.all(np.isnan(np.asarray(outputs)[:, 5]))
    assert np.all(np.isfinite(np.asarray(d_hidden)[finite]))


@pytest.mark.parametrize("idle", ["ignored", "no cotangent"])
def test_rows_without_gradient_are_not_read_in_the_backward(idle):
    problem = oracle.make(5, 12, 4, 7)
    problem.targets[:] = 1
    problem.hidden[5] = np.nan
    if idle == "ignored":
        problem.targets[5] = -1
    else:
        problem.cotangents[:, 5] = 0.0
    _, gradients = oracle.run(_kernel("xla", 4), problem)
    assert all(np.all(np.isfinite(x)) for x in gradients)


@pytest.mark.parametrize("count", [0, 1, 5, 8, 13])
def test_blocks_visited_are_those_that_hold_active_rows(count):
    active = np.random.default_rng(0).permutation(np.arange(13) < count)
    order = rows.active_first(jnp.asarray(active), 4)
    assert int(rows.blocks(order, 4)) == -(-count // 4)
    np.testing.assert_array_equal(order.index[:count], np.flatnonzero(active))
    assert len(set(order.index.tolist())) == 16 and np.all(order.index[count:] >= 13)


def test_a_target_that_does_not_exist_has_no_probability():
    hidden, weight = jnp.ones((2, 3)), jnp.ones((3, 5))
    targets = jnp.asarray([3, 7], jnp.int32)
    for implementation in ("reference", "xla"):
        log_prob, entropy, _ = api.linear_log_prob(
            hidden, weight, targets, vocabulary=3, implementation=implementation
        )
        np.testing.assert_array_equal(log_prob, -np.inf)
        np.testing.assert_allclose(entropy, np.log(3), rtol=1e-6)


def _token_loss(log_prob, entropy, advantage):
    loss = -advantage * jnp.exp(log_prob) + 0.1 * jnp.abs(advantage) * entropy
    return jnp.where(advantage != 0, loss, 1.0)


@pytest.mark.parametrize("options", [{}, dict(logit_softcap=3.0, temperature=0.5, vocabulary=40)])
def test_gradient_formed_in_the_forward_equals_recomputation(options):
    problem = oracle.make(4, 37, 8, 53)
    problem.targets[problem.targets >= 40] = 7
    problem.cotangents[0, 16:24] = 0  # a block without gradient
    arrays = [jnp.asarray(x, jnp.float32) for x in (problem.hidden, problem.weight, problem.bias)]
    targets, extras = jnp.asarray(problem.targets), jnp.asarray(problem.cotangents[0], jnp.float32)

    def fused(h, w, b):
        total, aux = api.linear_token_loss(
            h, w, targets, _token_loss, extras, b, block_rows=8, **options
        )
        return 2.0 * total, aux

    def plain(h, w, b):
        log_prob, entropy, _ = reference.linear_log_prob(h, w, targets, b, **options)
        loss = jnp.where(targets >= 0, _token_loss(log_prob, entropy, extras), 0.0)
        return 2.0 * jnp.sum(loss), (log_prob, entropy)

    actual, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(*arrays) for f in (fused, plain)
    )
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)
    without_gradient = fused(*arrays)
    np.testing.assert_allclose(without_gradient[0], actual[0][0], rtol=1e-6)


@pytest.mark.parametrize("scheme", ["recomputing", "forward"])
def test_no_buffer_holds_all_logits(scheme):
    rows, width, vocabulary = 2048, 8, 4096

    def total(h, w, t):
        if scheme == "forward":
            loss = lambda log_prob, entropy, _: -log_prob + entropy
            return api.linear_token_loss(h, w, t, loss, None, block_rows=64)[0]
        log_prob, entropy, _ = api.linear_log_prob(h, w, t, block_rows=64)
        return jnp.sum(log_prob + entropy)

    shapes = (
        jax.ShapeDtypeStruct((rows, width), jnp.float32),
        jax.ShapeDtypeStruct((width, vocabulary), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    compiled = jax.jit(jax.grad(total, (0, 1))).lower(*shapes).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < rows * vocabulary * 4 / 8


def test_no_rows():
    outputs = api.linear_log_prob(jnp.zeros((0, 3)), jnp.zeros((3, 5)), jnp.zeros((0,), jnp.int32))
    assert [out.shape for out in outputs] == [(0,)] * 3


def test_choice_on_this_device():
    assert api.choose(4096, 576, 49152) == "xla"
    assert 8 <= api.default_block_rows(1 << 30) < api.default_block_rows(49152) <= 4096
    assert api.default_block_rows(151936, "gpu") >= 1024
    for vocabulary in (1, 66, 5000, 151936):
        for count in (1, 300, 10000):
            tile = api.default_tile(count, vocabulary, platform="cpu")
            assert 1 <= tile.rows <= count and 1 <= tile.columns <= vocabulary
            assert tile.rows * tile.columns <= 2 << 20
        assert api.default_tile(8192, vocabulary, platform="gpu").columns == vocabulary


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(implementation="magic"), "implementation = 'magic'; allowed are"),
        (dict(block_rows=0), "block_rows = 0; allowed is >= 1"),
        (dict(block_columns=0), "block_columns = 0; allowed is >= 1"),
        (dict(block_columns=8, implementation="pallas_gpu"), "block_columns = 8 with"),
        (dict(temperature=0.0), "temperature = 0.0; allowed is > 0"),
        (dict(logit_softcap=-1.0), "logit_softcap = -1.0; allowed is None or > 0"),
        (dict(vocabulary=6), r"vocabulary = 6; allowed is in \[1, 5\]"),
        (dict(interpret=True, implementation="xla"), "interpret = True with implementation"),
        (dict(block_rows=8, implementation="pallas_tpu"), "block_rows = 8 with implementation"),
        (dict(blocks=GpuBlocks(), implementation="pallas_tpu"), "allowed is None or TpuBlocks"),
        (dict(blocks=GpuBlocks(), implementation="xla"), "allowed is None$"),
    ],
)
def test_refusals(change, message):
    hidden, weight, targets = jnp.zeros((3, 2)), jnp.zeros((2, 5)), jnp.zeros((3,), jnp.int32)
    with pytest.raises(ValueError, match=message):
        api.linear_log_prob(hidden, weight, targets, **change)


@pytest.mark.parametrize("change, name", [((jnp.int32, jnp.float32, jnp.int32), "hidden"),
    ((jnp.float32, jnp.int32, jnp.int32), "weight"),
    ((jnp.float32, jnp.float32, jnp.float32), "targets")])  # fmt: skip
def test_integers_in_place_of_floats_are_refused(change, name):
    """They would be multiplied as integers, the weight cut off after the point."""
    shapes = ((3, 2), (2, 5), (3,))
    arrays = [jnp.zeros(shape, dtype) for shape, dtype in zip(shapes, change)]
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match=name):
        api.linear_log_prob(*arrays)
    with pytest.raises(ValueError, match=f"{name}.*; allowed are"):
        api.check(*arrays, None, 1.0, None, None, None)


def test_shapes_are_refused():
    hidden, weight, targets = jnp.zeros((3, 2)), jnp.zeros((2, 5)), jnp.zeros((3,), jnp.int32)
    with pytest.raises((ValueError, jaxtyping.TypeCheckError), match="weight"):
        api.linear_log_prob(hidden, weight.T, targets)
