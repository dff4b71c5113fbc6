"""What single arms change in the loss and the optimizer, and first parameters with a copy.

And a run whose data cannot be made.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import gsm_symbolic, lp_reg, noise_corrected_grpo
from experiments import rlvr_config, rlvr_model, rlvr_problem, rlvr_programs, rlvr_stages
from jaxreward.policies import tabular
from jaxreward.training.exits import ConfigError


def test_numbers_of_single_arms_become_columns_of_hyper_parameters():
    config = lp_reg.get_config()
    arms = list(config.arms)
    hyper = {"learning_rate": np.full((len(arms), 3), 1e-3, np.float32)}
    found = rlvr_programs.arm_knobs(config, hyper)
    assert set(found) == {
        "learning_rate", "loss/clip_low", "loss/clip_high", "loss/entropy_coefficient",
        "loss/k3_coefficient", "loss/full_kl_coefficient", "optimizer/every",
    }  # fmt: skip
    row = lambda name, arm: found[name][arms.index(arm)].tolist()
    assert row("optimizer/every", "lagged_k3") == [40.0] * 3
    assert row("optimizer/every", "grpo") == [1.0] * 3
    assert row("loss/clip_high", "clip_higher") == pytest.approx([0.28] * 3)
    assert row("loss/clip_high", "grpo") == pytest.approx([0.2] * 3)
    assert row("loss/k3_coefficient", "lagged_full_kl") == [0.0] * 3
    config.own = type(config)()
    assert set(rlvr_programs.arm_knobs(config, hyper)) == {"learning_rate"}


def test_knobs_replace_what_the_section_says():
    config = lp_reg.get_config()
    optimizer = rlvr_programs._build(config.optimizer, {"every": 2, "learning_rate": 0.5})
    params = {"learned": jnp.zeros(1), "lagged": jnp.zeros(1)}
    grads = {"learned": jnp.ones(1), "lagged": jnp.zeros(1)}
    state, moved = optimizer.init(params), []
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(2):
            updates, state = optimizer.update(grads, state, params)
            params = jax.tree.map(jnp.add, params, updates)
            moved.append(float(params["lagged"][0]))
    assert moved[0] == 0.0 and moved[1] == pytest.approx(-1.0, rel=1e-4)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"other": {"loss": {"clip_low": 0.1}}}, "config.own names the arm 'other'"),
        ({"grpo": {"sampler": {"top_k": 1}}}, "config.own.grpo changes 'sampler'"),
        ({"grpo": {"loss": {"clip_lo": 0.1}}}, "config.loss has no number 'clip_lo'"),
        ({"grpo": {"loss": {"objective": "clip"}}}, "config.loss has no number 'objective'"),
    ],
)
def test_changes_that_cannot_be(changes, message):
    config = lp_reg.get_config()
    config.own = type(config)(changes)
    with pytest.raises(ConfigError, match=message):
        rlvr_config.validate(config)


def test_first_parameters_hold_a_copy(key):
    config, policy = lp_reg.get_config(), tabular.tabular_policy(2, 3)
    first = rlvr_model.first_params(config, policy, policy.init(key))
    assert set(first) == {"learned", "lagged"}
    assert rlvr_model.learner(config, policy, None).lagged is not None
    config.lagged = False
    assert rlvr_model.first_params(config, policy, policy.init(key)).shape == (2, 3)


def test_a_config_may_compare_tuned_arms_only():
    config = lp_reg.get_config()
    config.settings = ("tuned",)
    best = {"learning_rate": np.array([1e-3, 2e-3]), "kl_coefficient": np.zeros(2)}
    stage = rlvr_stages.comparison_stage(config, 2, best)
    assert stage.settings == ("tuned",) and stage.seed_index.tolist() == list(range(config.seeds))
    np.testing.assert_allclose(stage.hyper["learning_rate"], [[1e-3] * 3, [2e-3] * 3])
    config.settings = ("equal",)
    stage = rlvr_stages.comparison_stage(config, 2, {})
    np.testing.assert_allclose(stage.hyper["learning_rate"], np.full((2, 3), 1e-4))
    config.settings = ()
    with pytest.raises(ConfigError, match="config.settings is not set"):
        rlvr_config.validate(config)
    config.settings, config.claims.grpo.setting = ("tuned",), "equal"
    with pytest.raises(ConfigError, match="config.claims.grpo.setting = 'equal'; allowed is tuned"):
        rlvr_config.validate(config)


def test_data_that_cannot_be_used(tmp_path):
    config = noise_corrected_grpo.get_config("smoke")
    config.task.alphabet = "jaxreward.rewards.patterns:ANSWER_FORM"
    with pytest.raises(ConfigError, match="ANSWER_FORM"):
        rlvr_problem.load_problem(config, str(tmp_path))
    config.task.alphabet = "string:ascii_lowercase"
    said = "config.task.dataset = 'random_calculation/digits': .* holds the character"
    with pytest.raises(ConfigError, match=said):
        rlvr_problem.load_problem(config, str(tmp_path))
    config.task.dataset = "random_calculation/nope"
    with pytest.raises(ConfigError, match="config.task.dataset = .* has no config 'nope'"):
        rlvr_problem.load_problem(config, str(tmp_path))


def test_data_whose_package_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    said = "config.task.dataset = 'gsm_symbolic/sums': .*reasoning-gym; install jaxreward"
    with pytest.raises(ConfigError, match=said):
        rlvr_problem.load_problem(gsm_symbolic.get_config("smoke"), str(tmp_path))
