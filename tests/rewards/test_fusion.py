"""RewardFusion by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.rewards.fusion import fuse_rewards

OWN = jnp.array([2.0])


def test_by_hand():
    similarity = jnp.array([[0.95, 0.2, 0.92, 0.89]])
    rewards = jnp.array([1.0, 100.0, 3.0, 100.0])
    assert fuse_rewards(OWN, similarity, rewards)[0] == pytest.approx(1.989547, abs=1e-6)
    one = fuse_rewards(OWN, similarity, rewards, top_k=1)[0]
    assert one == pytest.approx((2 + 0.95) / 1.95)
    not_first = jnp.array([[False, True, True, True]])
    other = fuse_rewards(OWN, similarity, rewards, not_first)[0]
    assert other == pytest.approx((2 + 0.92 * 3) / 1.92)


def test_weights_by_hand():
    similarity = jnp.array([[0.95, 0.92]])
    weight = lambda own, *rewards: fuse_rewards(jnp.array([own]), similarity, jnp.array(rewards))[0]
    found = [weight(0.0, 1.0, 0.0), weight(0.0, 0.0, 1.0), weight(1.0, 0.0, 0.0)]
    np.testing.assert_allclose(found, [0.331010, 0.320557, 0.348432], atol=1e-6)


def test_without_neighbours_and_with_a_constant():
    similarity = jnp.array([[0.5, -1.0]])
    assert fuse_rewards(OWN, similarity, jnp.array([jnp.nan, jnp.inf]))[0] == 2
    near = jnp.array([[0.95, 0.99]])
    assert fuse_rewards(OWN, near, jnp.array([2.0, 2.0]))[0] == pytest.approx(2.0)


def test_no_gradient_passes():
    f = lambda own: fuse_rewards(own, jnp.array([[0.95]]), jnp.array([1.0]))[0]
    np.testing.assert_array_equal(jax.grad(f)(OWN), [0.0])


@pytest.mark.parametrize("option", [dict(top_k=0), dict(threshold=0.0)])
def test_bad_options(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        fuse_rewards(OWN, jnp.ones((1, 1)), jnp.ones(1), **option)
