"""Studies of reward models: their smoke variants through the runner, and what they rely on."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import reward_model
from experiments.reward_studies import dmoerm, soli_reward
from jaxreward.training.exits import ConfigError

pytestmark = pytest.mark.usefixtures("compile_fast")


def config_of(name):
    return importlib.import_module(f"configs.{name}").get_config("smoke")


@pytest.mark.parametrize(
    "name", ["soli_reward", pytest.param("dmoerm", marks=pytest.mark.slow)]  # slow to compile
)
def test_smoke(name, tmp_path):
    config = config_of(name)
    reward_model.validate(config)
    reward_model.run(config, str(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["claims"]) == len(config.claims)
    for own in summary["results"].values():
        for metric in own.values():
            assert np.all(np.isfinite(metric["per_seed"])) and len(metric["per_seed"]) == 2
    accuracies = {arm: own["accuracy"]["mean"] for arm, own in summary["results"].items()}
    assert len(set(accuracies.values())) > len(accuracies) // 2  # the arms are different models


def test_dmoerm_measures_what_it_claims(key):
    config = config_of("dmoerm")
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
    config = config_of(name)
    config.update_from_flattened_dict({key: value})
    make = {"soli_reward": soli_reward.make, "dmoerm": dmoerm.make}[name]
    with pytest.raises(ConfigError, match=f"config.{key} = {value}"):
        make(config)


@pytest.mark.parametrize("name", ["soli_reward", "dmoerm"])
def test_unknown_variants(name):
    with pytest.raises(ValueError, match="variant 'large'"):
        importlib.import_module(f"configs.{name}").get_config("large")


def test_a_concentrated_group_has_a_smaller_top_advantage():
    scores = jnp.array([[4, 1, 0.9, 0.8], [1.2, 1, 0.9, 0.8], [1, 1, 1, 1]], jnp.float32)
    top = jnp.max(soli_reward.advantages(scores), axis=1)
    np.testing.assert_allclose(top, [1.729653, 1.521278, 0.0], atol=1e-6)


def test_the_gold_reward_is_standard_where_the_data_is(key):
    gold = soli_reward.draw_gold(key)
    values = gold(jax.random.normal(jax.random.key(1), (4000, soli_reward.WIDTH)))
    # of two samples of 4000: 4 standard errors
    assert abs(float(jnp.median(values))) < 4 * 1.25 * (2 / 4000) ** 0.5
    assert abs(float(jnp.std(values)) - 1) < 0.1
    far = gold(2.5 * jax.random.normal(jax.random.key(2), (1000, soli_reward.WIDTH)))
    assert float(jnp.mean(far)) < -3
