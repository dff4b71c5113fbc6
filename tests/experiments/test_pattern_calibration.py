"""Reward models of several strengths: what the task gives, what is ordered right, a small run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import pattern_calibration as calibration_config
from experiments import pattern_calibration as study


@pytest.fixture(scope="module")
def settings():
    return calibration_config.get_config("smoke").study


@pytest.fixture(scope="module")
def task(settings):
    teacher = study._init(jax.random.key(1), settings.features, settings.width)
    return study.make_task(jax.random.key(0), teacher, settings)


def test_related_patterns_follow_the_gold_and_the_others_do_not(task):
    of = lambda own: np.corrcoef(np.asarray(own).ravel(), np.asarray(task.gold).ravel())[0, 1]
    # 1024 candidates: a standard error of .03; .4 of the rank beside .6 of a uniform gives .55
    assert of(task.related) == pytest.approx(0.55, abs=0.1)
    assert abs(of(task.unrelated)) < 4 * 0.032
    assert 0 <= float(task.related.min()) and float(task.related.max()) <= 1


def test_pair_accuracy(task):
    assert study.pair_accuracy(task.gold, task.gold) == 1.0
    assert study.pair_accuracy(-task.gold, task.gold) == 0.0
    scores, gold = jnp.array([[3.0, 1.0, 2.0]]), jnp.array([[3.0, 2.0, 1.0]])
    assert study.pair_accuracy(scores, gold) == pytest.approx(2 / 3)


def test_every_arm_is_measured_and_learning_helps():
    config = calibration_config.get_config("smoke")
    config.study.steps, config.study.prompts = 60, 16
    with jax.numpy_dtype_promotion("standard"):
        found = jax.jit(study.make_study(config).run)(jax.random.key(0))
    assert len(found) == 1 + 3 * 3
    assert float(found["strong"]["gold"]) > float(found["start"]["gold"]) + 0.1
    accuracy = [float(found[name]["pair_accuracy"]) for name in ("weak", "medium", "strong")]
    assert accuracy[0] < accuracy[2]
    assert found["weak"]["gold"] != found["weak_patterns"]["gold"]
