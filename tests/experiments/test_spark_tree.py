"""The spark tree: an up-to-date proxy is GRPO, a lagged one keeps the spark, and small pieces."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax

from configs import spark_tree as tree_config
from experiments import spark_tree


def run(arms, rollouts, seeds=8, **changes):
    config = tree_config.get_config()
    config.study.rollouts = rollouts
    config.study.update(changes)
    for arm in [arm for arm in config.study.arms if arm not in arms]:
        del config.study.arms[arm]
    keys = jax.random.split(jax.random.key(1), seeds)
    # what runs for longer than it compiles is optimized a little
    options = {"xla_backend_optimization_level": 1} if rollouts > 100 else {}
    return jax.jit(jax.vmap(spark_tree.make_study(config).run), compiler_options=options)(keys)


def test_an_up_to_date_proxy_is_grpo():
    found = run(("open_grpo", "fresh_k3", "fresh_full_kl"), 41)
    for arm in ("fresh_k3", "fresh_full_kl"):
        gap = np.abs(found[arm]["spark_early"] - found["open_grpo"]["spark_early"])
        assert gap.max() < 1e-2


def test_a_lagged_proxy_keeps_the_spark():
    found = run(("grpo", "lagged_k3"), 400)
    wins = {arm: float(own["spark_wins"].mean()) for arm, own in found.items()}
    assert wins["lagged_k3"] >= 0.875 > wins["grpo"]
    kept = np.asarray(found["lagged_k3"]["spark_wins"]) == 1
    np.testing.assert_allclose(found["lagged_k3"]["reward"][kept], 1.0, atol=0.05)


def test_minibatches_divide_the_groups_and_change_the_result():
    whole, parts = (run(("grpo",), 3, seeds=2, minibatches=n)["grpo"] for n in (1, 8))
    assert whole["spark_curve"].shape == parts["spark_curve"].shape == (2, 3)
    assert not np.allclose(whole["spark"], parts["spark"])


def test_follow_ups_of_every_choice_erase_the_spark():
    """The card's tree: noise that has yet to learn its own follow-ups makes the default look better."""
    found = run(("grpo", "lagged_k3"), 400, every_follow_up=True)
    wins = {arm: float(own["spark_wins"].mean()) for arm, own in found.items()}
    assert wins["grpo"] <= 0.125 and wins["lagged_k3"] >= 0.75
    np.testing.assert_allclose(found["grpo"]["reward"].mean(), 0.5, atol=0.06)


def test_where_only_the_spark_has_a_follow_up_only_that_counts():
    keys = jax.random.split(jax.random.key(0), 2)
    for every in (False, True):
        config = tree_config.get_config()
        config.study.every_follow_up = every
        start = jax.jit(lambda: spark_tree._start(config.study))
        params = jax.tree.map(np.asarray, start())
        rollout = jax.jit(lambda params: spark_tree._sample(params, keys[0], config.study))(params)
        first = np.asarray(rollout.taken[..., 0])
        np.testing.assert_array_equal(rollout.mask[..., 1], (first == 1) | every)
        logs = [log_softmax(params[name], axis=-1) for name in ("first", "second")]
        row = first if every else 0 * first
        np.testing.assert_allclose(rollout.log_probs[..., 0], logs[0][first], rtol=1e-5)
        expected = logs[1][row, np.asarray(rollout.taken[..., 1])]
        np.testing.assert_allclose(rollout.log_probs[..., 1], expected, rtol=1e-5)


def test_every_variant_of_the_config():
    for variant in tree_config.VARIANTS:
        assert set(tree_config.get_config(variant).study.arms) >= {"grpo", "lagged_k3"}
    with pytest.raises(ValueError, match="variant 'large'"):
        tree_config.get_config("large")
