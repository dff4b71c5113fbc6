import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.networks import noise_map
from jaxreward.networks.noise_map import NoiseMap


def small(**changes):
    return NoiseMap(hidden=8, wide=16, channels=4, heads=2, **changes)


@functools.cache
def compiled(network):
    return jax.jit(network.init), jax.jit(network.apply)


def made(network, channels=1):
    """Its parameters, three noises and their prompts."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((3, channels, 4, 6), np.float32)
    prompts = rng.standard_normal((3, 2, 5), np.float32)
    return compiled(network)[0](jax.random.key(0), noise[0], prompts[0]), noise, prompts


def test_fold_of_the_card():
    rows = noise_map.fold(jnp.arange(16.0).reshape(4, 2, 2))
    np.testing.assert_array_equal(
        rows, [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    )
    np.testing.assert_array_equal(noise_map.unfold(rows, 4).reshape(-1), np.arange(16.0))
    uneven = np.random.default_rng(0).standard_normal((4, 3, 5), np.float32)
    back = jax.jit(lambda noise: noise_map.unfold(noise_map.fold(noise), 4))
    np.testing.assert_array_equal(back(uneven), uneven)
    with pytest.raises(ValueError, match="channels = 3"):
        noise_map.fold(jnp.zeros((3, 2, 2)))


def test_singular_values_of_the_card():
    shifted = noise_map.shift_singular_values(jnp.diag(jnp.array([2.0, 1.0])), jnp.array([0.5, -0.25]))
    np.testing.assert_allclose(shifted, np.diag([2.5, 0.75]), atol=1e-6)
    shifted = noise_map.shift_singular_values(jnp.array([[1.0, 2], [3, 4]]), jnp.array([0.1, 0.2]))
    expected = [[0.873797, 2.138430], [3.118818, 4.028145]]
    np.testing.assert_allclose(shifted, expected, atol=2e-6)
    np.testing.assert_allclose(jnp.linalg.norm(shifted), 5.593691, atol=2e-6)


def test_modulation_of_the_card():
    noise = jnp.array([[1.0, 3], [2, 4], [0, 2], [1, 3]])[:, None, :]
    scale, shift = jnp.full(4, 0.5), jnp.full(4, 0.1)
    np.testing.assert_allclose(noise_map.group_norm(noise)[0, 0], [-0.816496, 0.816496], atol=1e-6)
    own = noise_map.modulate(noise, scale, shift)
    np.testing.assert_allclose(own[0, 0], [-1.124744, 1.324744], atol=2e-6)


def test_gate_of_the_card():
    """Only the prompt's branch depends on `a` where `b` is 0."""
    network = small()
    params, noise, prompts = made(network)

    @jax.jit
    def run(gates, noise, prompt):
        at = lambda a: network.apply({"params": {**params["params"], "a": a}}, noise, prompt)
        dense = params["params"]["modulation"]
        both = prompt.reshape(-1) @ dense["kernel"] + dense["bias"]
        embedded = noise_map.modulate(noise, *jnp.split(both, 2))
        return jax.vmap(at)(gates), embedded, small(parts="svd").apply(params, noise, prompt)

    gates = {0.0: 0.0, 0.5: 0.2449187, 1.0: 0.4621172, -1.0: -0.4621172}
    found, embedded, alone = run(jnp.array(list(gates)), noise[0], prompts[0])
    for out, gate in zip(found, gates.values()):
        np.testing.assert_allclose(out, alone + np.float32(gate) * embedded, atol=1e-5)


@pytest.mark.parametrize("attention", [False, True])
def test_at_the_start_it_is_the_svd_branch(attention):
    network, branch = (small(svd_attention=attention, parts=parts) for parts in ("full", "svd"))
    params, noise, prompts = made(network, channels=4)

    @jax.jit
    def run(noise, prompt):
        out, alone = (of.apply(params, noise, prompt) for of in (network, branch))
        return out, alone, noise_map.fold(noise), noise_map.fold(out)

    out, alone, *matrices = run(noise[0], prompts[0])
    np.testing.assert_allclose(out, alone, atol=1e-6)
    assert out.shape == noise[0].shape
    # a left and right singular basis of the noise makes the output diagonal
    left, _, right = np.linalg.svd(matrices[0])
    mixed = left.T @ np.asarray(matrices[1]) @ right.T
    off = mixed - np.pad(np.diag(np.diag(mixed)), ((0, 0), (0, mixed.shape[1] - mixed.shape[0])))
    assert np.max(np.abs(off)) < 1e-4


def test_zero_gates_hold_back_the_other_branches_for_one_step():
    network = small()
    params, noise, prompts = made(network)
    loss = lambda *inputs: jnp.sum(jnp.square(network.apply(*inputs)))
    grads = jax.jit(jax.grad(loss))(params, noise[0], prompts[0])
    size = jax.tree.map(lambda leaf: np.max(np.abs(leaf)), grads["params"])
    assert size["a"] > 0 and size["b"] > 0
    assert max(jax.tree.leaves([size["modulation"], size["conv_0"], size["conv_2"]])) == 0
    assert max(jax.tree.leaves(size["values"])) > 0


def test_every_sample_has_its_own_prompt_unless_as_released():
    network = small(parts="svd+prompt")
    params, noise, prompts = made(network)
    params = {"params": {**params["params"], "a": jnp.float32(1.0)}}
    run = functools.partial(noise_map.map_batch, network.apply)
    both = jax.jit(lambda *inputs: (run(*inputs), run(*inputs, as_released=True)))
    own, released = both(params, noise, prompts)
    np.testing.assert_allclose(own[0], released[0], rtol=1e-5)
    assert np.max(np.abs(own[1] - released[1])) > 1e-2
    first = compiled(network)[1](params, noise[1], prompts[0])
    np.testing.assert_allclose(released[1], first, rtol=1e-4, atol=1e-5)


def test_released_inference_runs_an_attention_that_nobody_trained():
    """The mismatch of the card of golden noise: trained without attention, used with it."""
    without, with_it = small(parts="svd"), small(parts="svd", svd_attention=True)
    trained, noise, prompts = made(without)
    init, apply = compiled(with_it)
    start = init(jax.random.key(7), noise[0], prompts[0])
    released = noise_map.released_params(trained, start)
    values, attention = released["params"]["values"], "MultiHeadDotProductAttention_0"
    for name, leaf in trained["params"]["values"].items():
        assert jax.tree.all(jax.tree.map(np.array_equal, values[name], leaf))
    assert set(values) == set(trained["params"]["values"]) | {attention}
    assert jax.tree.all(
        jax.tree.map(np.array_equal, values[attention], start["params"]["values"][attention])
    )
    used, own = apply(released, noise[0], prompts[0]), compiled(without)[1]
    assert np.max(np.abs(used - own(trained, noise[0], prompts[0]))) > 1e-3
    # where the attention says nothing, the last layers see zeros: the trained biases alone
    values[attention] = jax.tree.map(np.zeros_like, values[attention])
    last = [trained["params"]["values"][f"Dense_{i}"] for i in (6, 5)]
    change = np.maximum(last[0]["bias"], 0) @ last[1]["kernel"] + last[1]["bias"]
    expected = jax.jit(noise_map.shift_singular_values)(noise[0, 0], change)
    np.testing.assert_allclose(apply(released, noise[0], prompts[0])[0], expected, atol=1e-5)


def test_a_known_decomposition_changes_nothing():
    network = small()
    params, noise, prompts = made(network, channels=4)

    @jax.jit
    def run(noise, prompts):
        known = jax.vmap(noise_map.decompose)(noise)
        mapped = lambda *known: noise_map.map_batch(network.apply, params, noise, prompts, *known)
        return known, mapped(known), mapped()

    known, found, expected = run(noise, prompts)
    assert known.values.shape == (3, 8) and known.right.shape == (3, 8, 12)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_residual_alone_starts_as_the_identity():
    network = small(parts="residual")
    params, noise, prompts = made(network)
    found = compiled(network)[1](params, noise[0], prompts[0])
    np.testing.assert_array_equal(found, noise[0])


def test_unknown_parts_are_refused():
    with pytest.raises(ValueError, match="parts = 'h'"):
        made(small(parts="h"))


@pytest.mark.parametrize("shape", [(1, 5, 7), (4, 3, 1), (9, 1, 1)])
def test_odd_noises(shape):
    """Not square, of one row or one column; alone and in a batch, with gradients everywhere."""
    network, rng = NoiseMap(hidden=4, wide=4, channels=2), np.random.default_rng(0)

    @jax.jit
    def run(key, noises, prompts):
        moved = jax.tree.map(lambda leaf: leaf + 0.1, network.init(key, noises[0], prompts[0]))

        def mapped(params):
            found = noise_map.map_batch(network.apply, params, noises, prompts)
            return jnp.sum(jnp.square(found)), found

        alone = jax.lax.map(lambda row: network.apply(moved, *row), (noises, prompts))
        return alone, *jax.grad(mapped, has_aux=True)(moved)

    noises, prompts = (rng.standard_normal((2, *of), np.float32) for of in (shape, (3,)))
    alone, grads, found = run(jax.random.key(0), noises, prompts)
    assert found.shape == noises.shape and np.all(np.isfinite(found))
    np.testing.assert_allclose(found, alone, atol=1e-5)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


def test_heads_divide_the_rank(key):
    network = NoiseMap(svd_attention=True, heads=8)
    with pytest.raises(ValueError, match="heads = 8; allowed are divisors of the rank, 5"):
        jax.eval_shape(network.init, key, jnp.ones((1, 5, 7)), jnp.ones(3))
