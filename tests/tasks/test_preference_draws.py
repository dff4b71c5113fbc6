"""Defects of preferences one at a time: their rates, and what they leave alone."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.tasks import preference_draws as draws

COUNT = 20_000


def check_share(found, rate):
    """Within 4.5 standard errors."""
    found = np.asarray(found, float)
    error = (max(rate * (1 - rate), 1e-12) / found.size) ** 0.5
    assert abs(found.mean() - rate) <= 4.5 * error


@pytest.mark.parametrize("labels", [jnp.arange(COUNT) % 2 == 0, jnp.arange(COUNT) % 3 / 2])
def test_labels_are_turned_round_at_their_rate(key, labels):
    for rate in (0.0, 0.25, 1.0):
        found = draws.turn_round(key, labels, rate)
        assert found.dtype == labels.dtype
        sided = np.asarray(labels) != 0.5
        check_share((found != labels)[sided], rate)
        np.testing.assert_array_equal(found[~sided], 0.5)
    few, more = (draws.turn_round(key, labels, rate) != labels for rate in (0.1, 0.3))
    assert not np.any(few & ~more)  # the same ones and others


def test_each_label_may_have_its_own_rate(key):
    labels = jnp.ones(COUNT)
    rate = jnp.where(jnp.arange(COUNT) < COUNT // 2, 0.1, 0.4)
    wrong = draws.turn_round(key, labels, rate) == 0
    check_share(wrong[: COUNT // 2], 0.1)
    check_share(wrong[COUNT // 2 :], 0.4)


def test_another_value_is_any_other(key):
    values = jnp.arange(COUNT) % 5
    found = draws.another(key, values, 5, 0.4)
    changed = np.asarray(found != values)
    check_share(changed, 0.4)
    for shift in range(1, 5):
        check_share(((found - values) % 5 == shift)[changed], 0.25)
    np.testing.assert_array_equal(draws.another(key, values, 5, 0.0), values)
    np.testing.assert_array_equal(draws.another(key, values % 1, 1, 0.0), 0)


def test_verdicts():
    lead = jnp.array([-1.0, -0.2, 0.0, 0.2, 1.0])
    np.testing.assert_array_equal(draws.verdict(lead), [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(draws.verdict(lead, 0.5), [0, 0.5, 0.5, 0.5, 1])


def test_hidden_labels(key):
    propensity = jnp.where(jnp.arange(COUNT) % 2 == 0, 0.1, 0.8)
    labels, observed = draws.hide(key, jnp.ones(COUNT), propensity)
    np.testing.assert_array_equal(np.isnan(labels), ~observed)
    check_share(observed[::2], 0.1)
    check_share(observed[1::2], 0.8)


def test_propensities_by_hand():
    below = 4.0 - jnp.array([0.0, 1, 2, 3, 4, 4, 3, 2, 1, 0])  # levels 0 to 4
    found = draws.feedback_propensity(below, decay=0.5, mean=0.2)
    half = [0.032258, 0.064516, 0.129032, 0.258065, 0.516129]
    np.testing.assert_allclose(found, half + half[::-1], atol=1e-6)
    assert float(found.mean()) == pytest.approx(0.2, rel=1e-6)
    np.testing.assert_allclose(draws.feedback_propensity(below, decay=1.0, mean=0.3), 0.3, rtol=1e-6)
    bounded = draws.feedback_propensity(below, decay=0.1, mean=0.4)
    assert float(bounded.max()) == 1.0 and float(bounded.mean()) < 0.4


def test_own_tastes(key):
    found = draws.own_tastes(key, COUNT, 8)
    np.testing.assert_allclose(found.mean(0), 0.0, atol=4.5 / (8 * COUNT) ** 0.5)
    assert float(jnp.mean(jnp.sum(found**2, axis=1))) == pytest.approx(1.0, abs=0.02)
    np.testing.assert_allclose(np.linalg.norm(draws.unit(found), axis=1), 1.0, rtol=1e-5)


def test_the_preferred_comes_first():
    first = {"x": jnp.array([[1.0, 2], [3, 4]]), "n": jnp.array([1, 2])}
    second = {"x": -first["x"], "n": -first["n"]}
    winner, loser = draws.preferred_first(jnp.array([True, False]), first, second)
    np.testing.assert_array_equal(winner["x"], [[1, 2], [-3, -4]])
    np.testing.assert_array_equal(winner["n"], [1, -2])
    np.testing.assert_array_equal(loser["n"], [-1, 2])
