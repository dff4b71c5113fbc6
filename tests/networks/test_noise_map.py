import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.networks import noise_map
from jaxreward.networks.noise_map import NoiseMap


def small(**changes):
    return NoiseMap(hidden=8, wide=16, channels=4, heads=2, **changes)


def made(key, network, channels=1):
    noise = jax.random.normal(key, (3, channels, 4, 6))
    prompts = jax.random.normal(jax.random.key(1), (3, 2, 5))
    return jax.jit(network.init)(key, noise[0], prompts[0]), noise, prompts


def test_fold_of_the_card():
    rows = noise_map.fold(jnp.arange(16.0).reshape(4, 2, 2))
    np.testing.assert_array_equal(
        rows, [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    )
    np.testing.assert_array_equal(noise_map.unfold(rows, 4).reshape(-1), np.arange(16.0))
    uneven = jax.random.normal(jax.random.key(0), (4, 3, 5))
    np.testing.assert_array_equal(noise_map.unfold(noise_map.fold(uneven), 4), uneven)
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


def test_gate_of_the_card(key):
    """Only the prompt's branch depends on `a` where `b` is 0."""
    network = small()
    params, noise, prompts = made(key, network)

    def at(a):
        changed = {"params": {**params["params"], "a": jnp.float32(a)}}
        return network.apply(changed, noise[0], prompts[0])

    dense = params["params"]["modulation"]
    both = prompts[0].reshape(-1) @ dense["kernel"] + dense["bias"]
    embedded = noise_map.modulate(noise[0], *jnp.split(both, 2))
    alone = NoiseMap(False, 8, 16, 4, 2, parts="svd").apply(params, noise[0], prompts[0])
    gates = {0.0: 0.0, 0.5: 0.2449187, 1.0: 0.4621172, -1.0: -0.4621172}
    for a, gate in gates.items():
        np.testing.assert_allclose(at(a), alone + gate * embedded, atol=1e-5)


@pytest.mark.parametrize("attention", [False, True])
def test_at_the_start_it_is_the_svd_branch(key, attention):
    network = small(svd_attention=attention)
    params, noise, prompts = made(key, network, channels=4)
    out = network.apply(params, noise[0], prompts[0])
    alone = NoiseMap(attention, 8, 16, 4, 2, parts="svd").apply(params, noise[0], prompts[0])
    np.testing.assert_allclose(out, alone, atol=1e-6)
    assert out.shape == noise[0].shape
    # a left and right singular basis of the noise makes the output diagonal
    left, _, right = np.linalg.svd(noise_map.fold(noise[0]))
    mixed = left.T @ np.asarray(noise_map.fold(out)) @ right.T
    off = mixed - np.pad(np.diag(np.diag(mixed)), ((0, 0), (0, mixed.shape[1] - mixed.shape[0])))
    assert np.max(np.abs(off)) < 1e-4


def test_zero_gates_hold_back_the_other_branches_for_one_step(key):
    network = small()
    params, noise, prompts = made(key, network)
    grads = jax.grad(lambda p: jnp.sum(jnp.square(network.apply(p, noise[0], prompts[0]))))(params)
    size = jax.tree.map(lambda leaf: float(jnp.max(jnp.abs(leaf))), grads["params"])
    assert size["a"] > 0 and size["b"] > 0
    assert max(jax.tree.leaves([size["modulation"], size["conv_0"], size["conv_2"]])) == 0
    assert max(jax.tree.leaves(size["values"])) > 0


def test_every_sample_has_its_own_prompt_unless_as_released(key):
    network = small(parts="svd+prompt")
    params, noise, prompts = made(key, network)
    params = {"params": {**params["params"], "a": jnp.float32(1.0)}}
    run = lambda **options: noise_map.map_batch(network.apply, params, noise, prompts, **options)
    own, released = run(), run(as_released=True)
    np.testing.assert_allclose(own[0], released[0], rtol=1e-5)
    assert float(jnp.max(jnp.abs(own[1] - released[1]))) > 1e-2
    first = network.apply(params, noise[1], prompts[0])
    np.testing.assert_allclose(released[1], first, rtol=1e-4, atol=1e-5)


def test_released_inference_runs_an_attention_that_nobody_trained(key):
    """The mismatch of the card of golden noise: trained without attention, used with it."""
    without, with_it = small(parts="svd"), small(parts="svd", svd_attention=True)
    trained, noise, prompts = made(key, without)
    start = with_it.init(jax.random.key(7), noise[0], prompts[0])
    released = noise_map.released_params(trained, start)
    values, attention = released["params"]["values"], "MultiHeadDotProductAttention_0"
    for name, leaf in trained["params"]["values"].items():
        assert jax.tree.all(jax.tree.map(np.array_equal, values[name], leaf))
    assert set(values) == set(trained["params"]["values"]) | {attention}
    assert jax.tree.all(
        jax.tree.map(np.array_equal, values[attention], start["params"]["values"][attention])
    )
    used = with_it.apply(released, noise[0], prompts[0])
    assert np.max(np.abs(used - without.apply(trained, noise[0], prompts[0]))) > 1e-3
    # where the attention says nothing, the last layers see zeros: the trained biases alone
    values[attention] = jax.tree.map(jnp.zeros_like, values[attention])
    last = [trained["params"]["values"][f"Dense_{i}"] for i in (6, 5)]
    change = jax.nn.relu(last[0]["bias"]) @ last[1]["kernel"] + last[1]["bias"]
    expected = noise_map.shift_singular_values(noise[0, 0], change)
    np.testing.assert_allclose(with_it.apply(released, noise[0], prompts[0])[0], expected, atol=1e-5)


def test_a_known_decomposition_changes_nothing(key):
    network = small()
    params, noise, prompts = made(key, network, channels=4)
    run = lambda *known: noise_map.map_batch(network.apply, params, noise, prompts, *known)
    known = jax.vmap(noise_map.decompose)(noise)
    assert known.values.shape == (3, 8) and known.right.shape == (3, 8, 12)
    np.testing.assert_allclose(run(known), run(), atol=1e-5)


def test_residual_alone_starts_as_the_identity(key):
    network = small(parts="residual")
    params, noise, prompts = made(key, network)
    np.testing.assert_array_equal(network.apply(params, noise[0], prompts[0]), noise[0])


def test_unknown_parts_are_refused(key):
    with pytest.raises(ValueError, match="parts = 'h'"):
        made(key, small(parts="h"))


@pytest.mark.parametrize("shape", [(1, 5, 7), (4, 3, 1), (9, 1, 1)])
def test_odd_noises(shape, key):
    """Not square, of one row or one column; alone and in a batch, with gradients everywhere."""
    network = NoiseMap(hidden=4, wide=4, channels=2)
    noises = jax.random.normal(key, (2, *shape))
    prompts = jax.random.normal(jax.random.key(1), (2, 3))
    params = jax.jit(network.init)(key, noises[0], prompts[0])
    moved = jax.tree.map(lambda leaf: leaf + 0.1, params)
    alone = jax.jit(network.apply)
    mapped = jax.jit(lambda p, z: noise_map.map_batch(network.apply, p, z, prompts))(moved, noises)
    assert mapped.shape == noises.shape and np.all(np.isfinite(mapped))
    for i in range(2):
        np.testing.assert_allclose(mapped[i], alone(moved, noises[i], prompts[i]), atol=1e-5)
    apply = lambda p: noise_map.map_batch(network.apply, p, noises, prompts)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(jnp.square(apply(p)))))(moved)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))


def test_heads_divide_the_rank(key):
    network = NoiseMap(svd_attention=True, heads=8)
    with pytest.raises(ValueError, match="heads = 8; allowed are divisors of the rank, 5"):
        network.init(key, jnp.ones((1, 5, 7)), jnp.ones(3))
