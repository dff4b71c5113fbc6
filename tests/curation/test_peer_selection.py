"""Peers that choose each other's pairs: the numbers of the method, orders, ties, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.curation import peer_selection as peers
from jaxreward.losses import preference

FIRST = jnp.array([2, -1.5, 0.3, 0.1, -0.2, 1])
SECOND = jnp.array([1.2, -0.8, -0.4, 0.9, 0.5, 1.6])
ONE = jnp.ones(6)
LOSSES = [preference.bradley_terry(margins, ONE) for margins in (FIRST, SECOND)]
KEY = jax.random.key(0)


@pytest.mark.parametrize("keep", [0.5, 0.6])  # floor(3.6) = 3
def test_selections_and_losses_by_hand(keep):
    chosen = peers.peer_exchange(*LOSSES, keep)
    np.testing.assert_array_equal(np.flatnonzero(chosen.second), [0, 2, 5])  # small to the first
    np.testing.assert_array_equal(np.flatnonzero(chosen.first), [0, 3, 5])
    mean = lambda margins, mask: float(
        preference.pair_loss(margins, ONE, mask.astype(jnp.float32))
    )
    assert mean(FIRST, chosen.first) == pytest.approx(0.361529, abs=1e-6)
    assert mean(SECOND, chosen.second) == pytest.approx(0.453399, abs=1e-6)
    assert mean(FIRST, chosen.second) == pytest.approx(0.331515, abs=1e-6)  # for oneself
    assert mean(SECOND, chosen.first) == pytest.approx(0.262779, abs=1e-6)


def test_equal_models_select_as_for_themselves():
    chosen = peers.peer_exchange(LOSSES[0], LOSSES[0], 0.5)
    np.testing.assert_array_equal(chosen.first, chosen.second)
    np.testing.assert_array_equal(chosen.first, peers.small_loss(LOSSES[0], 0.5))


def test_small_loss_counts_ties_and_what_is_no_number():
    assert [int(peers.small_loss(jnp.arange(10.0), k).sum()) for k in (0.0, 0.3, 0.7, 1.0)] == [
        0, 3, 7, 10,  # 0.7 * 10 is below 7 in float32
    ]
    np.testing.assert_array_equal(
        peers.small_loss(jnp.array([1.0, 0.0, 1.0, 1.0]), 0.5), [True, True, False, False]
    )
    np.testing.assert_array_equal(
        peers.small_loss(jnp.array([jnp.nan, 2.0, jnp.inf]), 0.67), [False, True, True]
    )
    traced = jax.jit(peers.small_loss)(jnp.arange(10.0), 0.3)
    assert int(traced.sum()) == 3


def test_keep_ratio():
    found = [float(peers.keep_ratio(t, 0.4, 2)) for t in (0, 1, 2, 3)]
    np.testing.assert_allclose(found, [1, 0.8, 0.6, 0.6], atol=1e-6)
    assert float(peers.keep_ratio(5, 0.0, 2)) == 1.0
    assert bool(jnp.all(peers.small_loss(FIRST, peers.keep_ratio(5, 0.0, 2))))


def test_sorted_order_by_hand():
    order = peers.epoch_order(KEY, (FIRST + SECOND) / 2, order="sorted", batch=2)
    np.testing.assert_array_equal(order, [0, 5, 3, 4, 2, 1])


@pytest.mark.parametrize("order", peers.ORDERS)
@pytest.mark.parametrize("batch", [4, 5])  # 23 is a multiple of neither
def test_an_order_has_every_pair_once(order, batch):
    found = peers.epoch_order(KEY, jnp.sin(jnp.arange(23.0)), order=order, batch=batch)
    np.testing.assert_array_equal(np.sort(found), np.arange(23))


def test_the_pool_holds_the_easiest_only():
    easiness = jnp.sin(jnp.arange(20.0))
    easiest = set(np.argsort(-np.sin(np.arange(20.0)))[:10].tolist())
    order = jax.jit(lambda f: peers.epoch_order(KEY, easiness, order="pool", batch=4, fraction=f))
    found = np.asarray(order(0.5))
    assert set(found.tolist()) == easiest
    np.testing.assert_array_equal(np.sort(found[:10]), np.sort(found[10:]))  # each twice
    assert set(np.asarray(order(1.0)).tolist()) == set(range(20))
    other = peers.epoch_order(jax.random.key(1), easiness, order="pool", batch=4, fraction=0.5)
    assert not np.array_equal(found, other)


def test_a_stratified_batch_has_one_of_each_stratum():
    easiness = jnp.cos(3.0 * jnp.arange(24.0))
    found = peers.epoch_order(KEY, easiness, order="stratified", batch=6)
    place = np.empty(24, int)
    place[np.argsort(-np.asarray(easiness), kind="stable")] = np.arange(24)
    for batch in np.asarray(found).reshape(4, 6):
        np.testing.assert_array_equal(place[batch] // 4, np.arange(6))


def test_difficulty_and_thirds():
    losses = jnp.array([[0.1, 2.0, 1.0], [0.3, 2.0, 3.0]])
    found = peers.pair_difficulty(losses)
    np.testing.assert_allclose(found.hardness, [0.2, 2.0, 2.0], atol=1e-6)
    np.testing.assert_allclose(found.fluctuation, [0.01, 0.0, 1.0], atol=1e-6)
    np.testing.assert_array_equal(peers.thirds(found.hardness), [0, 1, 2])
    np.testing.assert_array_equal(peers.thirds(jnp.arange(7.0)[::-1]), [2, 2, 1, 1, 0, 0, 0])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: peers.keep_ratio(-1, 0.2, 2), "time = -1"),
        (lambda: peers.keep_ratio(0, 1.0, 2), "rate = 1.0"),
        (lambda: peers.keep_ratio(0, 0.2, 0), "warm_up = 0"),
        (lambda: peers.small_loss(FIRST, 1.5), "keep = 1.5"),
        (lambda: peers.epoch_order(KEY, FIRST, order="hard", batch=2), "order = 'hard'"),
        (lambda: peers.epoch_order(KEY, FIRST, batch=0), "batch = 0"),
        (lambda: peers.epoch_order(KEY, FIRST, batch=2, fraction=0.0), "fraction = 0.0"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
