"""Prototypes: refinement by hand, clusters, neighbours, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.rewards import prototypes as protos

attention = jax.jit(protos.history_attention, static_argnames="as_released")
margin = jax.jit(protos.refined_margin)
loss = jax.jit(protos.refinement_loss, static_argnames="as_released")
kmeans = jax.jit(protos.kmeans, static_argnums=2, static_argnames=("starts", "iterations"))
assign = jax.jit(protos.assign)
neighbours = jax.jit(protos.neighbours, static_argnames="count")

QUERY, PROTOTYPE = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
RECORDS = jnp.array([[0.5, 0.2], [-0.3, 0.9], [0.1, -0.4]])


def by_hand(mask=True):
    """Query and record matrices such that the records are those above."""
    eye = np.eye(2, dtype=np.float32)
    record, prototype = np.concatenate([0 * eye, eye]), np.asarray(PROTOTYPE)[None]
    refiner = protos.Refiner(prototype, record, np.zeros(2, np.float32), eye, eye)
    row = protos.Row(
        QUERY, np.array([0.6, 0.8], np.float32), np.array([0.8, -0.6], np.float32),
        np.zeros((3, 2), np.float32), np.arctanh(RECORDS), np.full(3, mask),
    )  # fmt: skip
    return jax.tree.map(jnp.asarray, (refiner, row))


def test_attention_by_hand():
    weights = np.asarray(attention(RECORDS, QUERY, PROTOTYPE))
    np.testing.assert_allclose(weights, [0.427891, 0.311273, 0.260836], atol=1e-6)
    np.testing.assert_allclose(weights @ np.asarray(RECORDS), [0.146647, 0.261389], atol=1e-6)
    code = attention(RECORDS, QUERY, PROTOTYPE, as_released=True)
    np.testing.assert_allclose(code, [0.356598, 0.440866, 0.202537], atol=1e-6)


def test_margin_and_loss_by_hand():
    refiner, row = by_hand()
    assert float(margin(refiner, PROTOTYPE, row)) == pytest.approx(1.536615, abs=1e-5)
    rows = jax.tree.map(lambda x: jnp.asarray(np.stack([x, x])), row)
    args = (refiner, jnp.int32(0), rows, jnp.array([True, False]), PROTOTYPE, PROTOTYPE)
    assert float(loss(*args)) == pytest.approx(0.194833, abs=1e-5)
    apart = (*args[:4], PROTOTYPE + 1.0, PROTOTYPE - 2.0)
    more = float(loss(*apart)) - float(loss(*args))
    assert more == pytest.approx(1e-3 * 2 + 1e-3 * 8, rel=1e-3)
    released = loss(*args, as_released=True)
    assert float(loss(*apart, as_released=True)) == float(released)


def test_without_rho_attention_does_not_see_the_prototype():
    first = attention(RECORDS, QUERY, PROTOTYPE, rho=0.0)
    second = attention(RECORDS, QUERY, -5.0 * PROTOTYPE, rho=0.0)
    np.testing.assert_array_equal(first, second)


def test_an_empty_history_counts_nothing():
    refiner, row = by_hand(mask=False)
    found, grads = jax.jit(jax.value_and_grad(protos.refined_margin))(refiner, PROTOTYPE, row)
    assert float(found) == pytest.approx(-0.2 + 1.4, abs=1e-6)  # (a + q) . (y+ - y-)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))


def test_all_parameters_learn(key):
    refiner, row = by_hand()
    refiner = jax.jit(protos.init_refiner)(key, refiner.prototypes)
    rows = jax.tree.map(lambda x: x[None], row)._replace(past_queries=jnp.ones((1, 3, 2)))
    one = jnp.ones(1, bool)
    of = lambda r: protos.refinement_loss(r, jnp.int32(0), rows, one, PROTOTYPE, PROTOTYPE)
    both = jax.jit(jax.value_and_grad(of))
    before, grads = both(refiner)
    assert all(np.max(np.abs(g)) > 0 for g in grads)
    moved = jax.tree.map(lambda p, g: jnp.asarray(np.asarray(p) - np.float32(0.1) * g), refiner, grads)
    assert float(both(moved)[0]) < float(before)


def test_clusters_are_found(key):
    unit = lambda x: np.float32(x / np.linalg.norm(x, axis=-1, keepdims=True))
    centres = unit(np.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, 0]]))
    noise = 0.05 * np.random.default_rng(0).normal(size=(25, 4, 3))
    rows = np.float32(centres[None] + noise).reshape(-1, 3)
    found = np.asarray(kmeans(key, jnp.asarray(rows), 4))
    distance = np.linalg.norm(found[:, None] - centres[None], axis=-1)
    assert np.max(np.min(distance, axis=0)) < 4 * 0.05 * 3**0.5 / 5
    members = assign(jnp.asarray(unit(rows)), jnp.asarray(unit(found)))
    grid = np.asarray(members).reshape(25, 4)
    assert np.all(grid == grid[0]) and len(set(grid[0])) == 4
    mean = np.asarray(kmeans(key, jnp.asarray(rows), 1))[0]
    np.testing.assert_allclose(mean, rows.mean(0), atol=1e-6)


def test_equal_rows_are_no_trouble(key):
    assert np.all(np.isfinite(kmeans(key, jnp.ones((6, 2)), 3)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_that_are_not_finite_take_no_part(key, value):
    """The clusters are those of the other rows; the damaged ones are members and neighbours of none."""
    rows = np.array([[1, 0], [5, 5], [0.9, 0.1], [0, 1], [7, 7], [0.1, 0.9]], np.float32)
    damaged = rows.copy()
    damaged[1, 0] = damaged[4] = value
    damaged, first = jnp.asarray(damaged), jnp.asarray(rows[:1])
    found = kmeans(key, damaged, 2, starts=3, iterations=5)
    ordered = sorted(np.asarray(found).tolist(), reverse=True)
    np.testing.assert_allclose(ordered, [[0.95, 0.05], [0.05, 0.95]], atol=1e-6)
    members = np.asarray(assign(damaged, found))
    np.testing.assert_array_equal(members < 0, [False, True, False, False, True, False])
    near = neighbours(damaged, damaged, jnp.zeros(6, jnp.int32), first, count=6)
    valid, index = np.asarray(near.valid), np.asarray(near.index)
    np.testing.assert_array_equal(valid.sum(axis=1), [4, 0, 4, 4, 0, 4])
    assert not np.any(valid & ((index == 1) | (index == 4)))
    few = kmeans(key, damaged[:2], 2, starts=1, iterations=2)
    np.testing.assert_array_equal(few, rows[:1].repeat(2, axis=0))
    assert np.all(np.isnan(kmeans(key, damaged[1:2], 1, starts=1, iterations=1)))


def test_neighbours_are_members_of_the_nearest_prototype():
    rows = jnp.array([[1.0, 0.0], [2.0, 0.2], [0.9, 0.8], [0.0, 1.0], [0.1, 1.0]])
    members = jnp.array([0, 0, 1, 1, 1])
    centres, query = jnp.eye(2), jnp.array([[1.0, 0.1]])
    found = neighbours(query, rows, members, centres, count=3)
    np.testing.assert_array_equal(found.valid, [[True, True, False]])
    np.testing.assert_array_equal(np.asarray(found.index)[0, :2], [1, 0])
    allowed = jnp.asarray(np.arange(5)[None] != 1)
    alone = neighbours(query, rows, members, centres, allowed, count=3)
    assert np.asarray(alone.index)[0, 0] == 0 and np.asarray(alone.valid).sum() == 1


def test_one_prototype_means_the_nearest_of_all():
    rng = np.random.default_rng(0)
    rows, query = np.float32(rng.normal(size=(20, 3))), np.float32(rng.normal(size=(1, 3)))
    given = map(jnp.asarray, (query, rows, np.zeros(20, np.int32), rows[:1]))
    found = neighbours(*given, count=5)
    cosine = rows @ query[0] / np.linalg.norm(rows, axis=1)
    np.testing.assert_array_equal(found.index, np.argsort(-cosine)[None, :5])


def test_settling_and_bad_input(key):
    before, after = jnp.eye(2), -jnp.eye(2)[::-1]
    settled = np.asarray(protos.settle(after, before))
    np.testing.assert_allclose(np.linalg.norm(settled, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(settled[0] / settled[0, 0], [1, -0.02 / 0.98], rtol=1e-5)
    with pytest.raises(ValueError, match="clusters = 3"):
        protos.kmeans(key, before, 3)
    with pytest.raises(ValueError, match="count = 0"):
        protos.neighbours(before, before, jnp.array([0, 1]), before, count=0)
