"""Studies of reward models: what they measure and what they rely on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import smokes

from experiments.reward_studies import dmoerm, soli_reward


def test_the_map_over_experts_starts_at_their_mean(key):
    scores = np.asarray(jax.random.normal(key, (5, 2, 4)))

    @jax.jit
    def mapped(scores):
        params = dmoerm.mean_map(dmoerm.HEAD.init(key, scores)["params"])
        return dmoerm.HEAD.apply({"params": params}, scores)[..., 0]

    found = mapped(scores)
    np.testing.assert_allclose(found, scores.mean(-1), atol=1e-6)


def test_dmoerm_measures_what_it_claims(key):
    config = smokes.variant("dmoerm")
    found = jax.eval_shape(dmoerm.make(config).run, key)
    for claim in config.claims.values():
        for arm in (claim.better, claim.worse):
            assert found[arm][claim.metric].shape == (), (claim.claim, arm)


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("soli_reward", "study.flips", 1.5),
        ("soli_reward", "study.examples", 0),
        ("dmoerm", "study.phase_one", 1.0),
        ("dmoerm", "study.judged", 0),
    ],
)
def test_bad_configs(name, key, value):
    smokes.refuses(name, key, value)


def test_a_concentrated_group_has_a_smaller_top_advantage():
    scores = jnp.array([[4, 1, 0.9, 0.8], [1.2, 1, 0.9, 0.8], [1, 1, 1, 1]], jnp.float32)
    top = np.max(jax.jit(soli_reward.advantages)(scores), axis=1)
    np.testing.assert_allclose(top, [1.729653, 1.521278, 0.0], atol=1e-6)


def test_the_gold_reward_is_standard_where_the_data_is(key):
    @jax.jit
    def draw():
        gold = soli_reward.draw_gold(key)
        near = jax.random.normal(jax.random.key(1), (4000, soli_reward.WIDTH))
        return gold(near), gold(2.5 * jax.random.normal(jax.random.key(2), (1000, soli_reward.WIDTH)))

    values, far = jax.device_get(draw())
    # of two samples of 4000: 4 standard errors
    assert abs(np.median(values)) < 4 * 1.25 * (2 / 4000) ** 0.5
    assert abs(np.std(values) - 1) < 0.1
    assert np.mean(far) < -3
