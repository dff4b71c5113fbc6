"""Prototypes: refinement by hand, clusters, neighbours, limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.rewards import prototypes as protos

QUERY, PROTOTYPE = jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0])
RECORDS = jnp.array([[0.5, 0.2], [-0.3, 0.9], [0.1, -0.4]])


def by_hand(mask=True):
    """Query and record matrices such that the records are those above."""
    eye = jnp.eye(2)
    record = jnp.concatenate([0 * eye, eye])
    refiner = protos.Refiner(PROTOTYPE[None], record, jnp.zeros(2), eye, eye)
    row = protos.Row(
        QUERY, jnp.array([0.6, 0.8]), jnp.array([0.8, -0.6]),
        jnp.zeros((3, 2)), jnp.arctanh(RECORDS), jnp.full(3, mask),
    )  # fmt: skip
    return refiner, row


def test_attention_by_hand():
    weights = protos.history_attention(RECORDS, QUERY, PROTOTYPE)
    np.testing.assert_allclose(weights, [0.427891, 0.311273, 0.260836], atol=1e-6)
    np.testing.assert_allclose(weights @ RECORDS, [0.146647, 0.261389], atol=1e-6)
    code = protos.history_attention(RECORDS, QUERY, PROTOTYPE, as_released=True)
    np.testing.assert_allclose(code, [0.356598, 0.440866, 0.202537], atol=1e-6)


def test_margin_and_loss_by_hand():
    refiner, row = by_hand()
    margin = protos.refined_margin(refiner, PROTOTYPE, row)
    assert float(margin) == pytest.approx(1.536615, abs=1e-5)
    rows = jax.tree.map(lambda x: jnp.stack([x, x]), row)
    args = (refiner, jnp.int32(0), rows, jnp.array([True, False]), PROTOTYPE, PROTOTYPE)
    assert float(protos.refinement_loss(*args)) == pytest.approx(0.194833, abs=1e-5)
    apart = (*args[:4], PROTOTYPE + 1.0, PROTOTYPE - 2.0)
    more = float(protos.refinement_loss(*apart)) - float(protos.refinement_loss(*args))
    assert more == pytest.approx(1e-3 * 2 + 1e-3 * 8, rel=1e-3)
    released = protos.refinement_loss(*args, as_released=True)
    assert float(protos.refinement_loss(*apart, as_released=True)) == float(released)


def test_without_rho_attention_does_not_see_the_prototype():
    first = protos.history_attention(RECORDS, QUERY, PROTOTYPE, rho=0.0)
    second = protos.history_attention(RECORDS, QUERY, -5.0 * PROTOTYPE, rho=0.0)
    np.testing.assert_array_equal(first, second)


def test_an_empty_history_counts_nothing():
    refiner, row = by_hand(mask=False)
    margin = protos.refined_margin(refiner, PROTOTYPE, row)
    assert float(margin) == pytest.approx(-0.2 + 1.4, abs=1e-6)  # (a + q) . (y+ - y-)
    grads = jax.grad(lambda r: protos.refined_margin(r, PROTOTYPE, row))(refiner)
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(grads))


def test_all_parameters_learn(key):
    refiner, row = by_hand()
    refiner = protos.init_refiner(key, refiner.prototypes)
    rows = jax.tree.map(lambda x: x[None], row)._replace(past_queries=jnp.ones((1, 3, 2)))
    one = jnp.ones(1, bool)
    loss = lambda r: protos.refinement_loss(r, jnp.int32(0), rows, one, PROTOTYPE, PROTOTYPE)
    grads = jax.grad(loss)(refiner)
    assert all(float(jnp.max(jnp.abs(g))) > 0 for g in grads)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, refiner, grads)
    assert float(loss(moved)) < float(loss(refiner))


def test_clusters_are_found(key):
    centres = protos.normalize(jnp.array([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [-1, -1, 0]]))
    of_noise, of_starts = jax.random.split(key)
    noise = 0.05 * jax.random.normal(of_noise, (25, 4, 3))
    rows = (centres[None] + noise).reshape(-1, 3)
    found = protos.kmeans(of_starts, rows, 4)
    distance = jnp.linalg.norm(found[:, None] - centres[None], axis=-1)
    assert float(jnp.max(jnp.min(distance, axis=0))) < 4 * 0.05 * 3**0.5 / 5
    members = protos.assign(protos.normalize(rows), protos.normalize(found))
    grid = np.asarray(members).reshape(25, 4)
    assert np.all(grid == grid[0]) and len(set(grid[0])) == 4
    np.testing.assert_allclose(protos.kmeans(key, rows, 1)[0], rows.mean(0), atol=1e-6)


def test_equal_rows_are_no_trouble(key):
    assert bool(jnp.all(jnp.isfinite(protos.kmeans(key, jnp.ones((6, 2)), 3))))


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf])
def test_rows_that_are_not_finite_take_no_part(key, value):
    """The clusters are those of the other rows; the damaged ones are members and neighbours of none."""
    rows = jnp.array([[1.0, 0.0], [5.0, 5.0], [0.9, 0.1], [0.0, 1.0], [7.0, 7.0], [0.1, 0.9]])
    damaged = rows.at[1, 0].set(value).at[4].set(value)
    found = protos.kmeans(key, damaged, 2, starts=3, iterations=5)
    np.testing.assert_allclose(found[jnp.argsort(found[:, 1])], [[0.95, 0.05], [0.05, 0.95]], atol=1e-6)
    members = protos.assign(damaged, found)
    np.testing.assert_array_equal(members < 0, [False, True, False, False, True, False])
    near = protos.neighbours(damaged, damaged, jnp.zeros(6, jnp.int32), rows[:1], count=6)
    np.testing.assert_array_equal(near.valid.sum(axis=1), [4, 0, 4, 4, 0, 4])
    assert not bool(jnp.any(near.valid & ((near.index == 1) | (near.index == 4))))
    few = protos.kmeans(key, damaged[:2], 2, starts=1, iterations=2)
    np.testing.assert_array_equal(few, rows[:1].repeat(2, axis=0))
    assert bool(jnp.all(jnp.isnan(protos.kmeans(key, damaged[1:2], 1, starts=1, iterations=1))))


def test_neighbours_are_members_of_the_nearest_prototype():
    rows = jnp.array([[1.0, 0.0], [2.0, 0.2], [0.9, 0.8], [0.0, 1.0], [0.1, 1.0]])
    members = jnp.array([0, 0, 1, 1, 1])
    centres = jnp.eye(2)
    found = protos.neighbours(jnp.array([[1.0, 0.1]]), rows, members, centres, count=3)
    np.testing.assert_array_equal(found.valid, [[True, True, False]])
    np.testing.assert_array_equal(found.index[0, :2], [1, 0])
    allowed = jnp.arange(5)[None] != 1
    alone = protos.neighbours(jnp.array([[1.0, 0.1]]), rows, members, centres, allowed, count=3)
    assert int(alone.index[0, 0]) == 0 and int(alone.valid.sum()) == 1


def test_one_prototype_means_the_nearest_of_all(key):
    rows = jax.random.normal(key, (20, 3))
    query = jax.random.normal(jax.random.key(1), (1, 3))
    found = protos.neighbours(query, rows, jnp.zeros(20, jnp.int32), rows[:1], count=5)
    cosine = (protos.normalize(rows) @ protos.normalize(query)[0])
    np.testing.assert_array_equal(found.index[0], jnp.argsort(-cosine)[:5])


def test_settling_and_bad_input(key):
    before, after = jnp.eye(2), -jnp.eye(2)[::-1]
    settled = protos.settle(after, before)
    np.testing.assert_allclose(jnp.linalg.norm(settled, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(settled[0] / settled[0, 0], [1, -0.02 / 0.98], rtol=1e-5)
    with pytest.raises(ValueError, match="clusters = 3"):
        protos.kmeans(key, before, 3)
    with pytest.raises(ValueError, match="count = 0"):
        protos.neighbours(before, before, jnp.array([0, 1]), before, count=0)
