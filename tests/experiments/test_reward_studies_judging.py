"""The studies that judge rewards: their worlds and networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import contrast_instructions as contrast_config
from experiments.reward_studies import contrast_instructions, reward_math, toy_mlp
from jaxreward import masked
from jaxreward.evaluation import reward_benchmarks


def test_wrong_solutions_are_wrong_and_right_ones_right(key):
    keys = jax.random.split(key, 3)
    digits = jax.random.randint(keys[0], (500, 4), 0, 7)
    totals = reward_math.wrong_totals(keys[1], digits, 0.9, 7)
    style = jnp.zeros(500)
    wrong = reward_math.Solutions(digits, totals, style)
    assert not reward_math.is_right(wrong, 7).any()
    exact = reward_math.write(keys[2], digits, 1.0, 7)
    assert reward_math.is_right(reward_math.Solutions(digits, exact, style), 7).all()
    np.testing.assert_array_equal(exact, np.cumsum(digits, axis=1) % 7)
    some = reward_math.write(keys[2], digits, 0.8, 7)
    right = reward_math.is_right(reward_math.Solutions(digits, some, style), 7).mean()
    share = 0.8**4  # plus the errors that cancel
    assert share - 0.06 < right < share + 0.12


def test_contrast_sets_hold_in_all_four_comparisons(key):
    study = contrast_config.get_config().study
    world = contrast_instructions.make_world(key, study)
    perfect = lambda texts: contrast_instructions.gold(texts, world, study)
    blind = lambda texts: world.worth[texts.fillers[..., 0] // 2]

    @functools.partial(jax.jit, static_argnums=1)
    def consistency(key, reward):
        rewards, valid = contrast_instructions.contrast_rewards(key, reward, world, study)
        mean = lambda values: masked.mean(values, valid)
        return (mean(reward_benchmarks.response_consistency(rewards)),
                mean(reward_benchmarks.instruction_consistency(rewards)), jnp.sum(valid))

    response, instruction, count = consistency(key, perfect)
    assert response == instruction == 1 and count > 1000
    response, instruction, _ = consistency(key, blind)
    assert instruction == 0 and 0.2 < response < 0.6


def test_perceptron():
    params = [(jnp.eye(2), jnp.array([-1.0, 0.0])), (jnp.array([[1.0], [2.0]]), jnp.array([0.5]))]
    assert toy_mlp.apply(params, jnp.array([0.5, 3.0])) == pytest.approx(6.5)
    shapes = [k.shape for k, _ in toy_mlp.init(jax.random.key(0), (5, 3, 1))]
    assert shapes == [(5, 3), (3, 1)]
