"""Tests of jaxreward.transforms.exact_correction."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.channel import binary
from jaxreward.evaluation import enumeration
from jaxreward.transforms import advantage, base, correction, exact_correction
from jaxreward.types import make_signal

KEY = jax.random.key(0)
GROUPS = np.array(list(itertools.product([0.0, 1.0], repeat=4)))  # all groups of four bits
ESTIMATORS = {
    "grpo": advantage.grpo(),
    "rloo": advantage.rloo(),
    "direct": advantage.direct(),
    "pass@2": advantage.pass_at_k(2),
    "sample std": advantage.grpo(ddof=1),
}


def advantages(transform, rewards, rates=None, mask=None):
    signal = make_signal(jnp.asarray(rewards, jnp.float32), mask).replace(rates=rates)
    return np.asarray(jax.jit(transform.update)(KEY, signal, ())[0].advantages)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("missing", [None, 1])
def test_the_expectation_given_the_true_group_is_the_clean_advantage(name, missing):
    """With rates that differ from sample to sample, summed over all 16 observations."""
    fp = np.array([0.1, 0.3, 0.0, 0.2])
    fn = np.array([0.2, 0.1, 0.4, 0.05])
    mask = np.ones((16, 4), bool)
    if missing is not None:
        mask[:, missing] = False
    rates = binary(np.tile(fp, (16, 1)), np.tile(fn, (16, 1)))
    transform = exact_correction.exact_group_correction(ESTIMATORS[name])
    observed = advantages(transform, GROUPS, rates, jnp.asarray(mask))
    clean = advantages(ESTIMATORS[name], GROUPS, None, jnp.asarray(mask))
    accept = np.where(GROUPS == 1, 1 - fn, fp)  # P(observe 1 | true), [true groups, 4]
    likelihood = np.prod(
        np.where(GROUPS[None] == 1, accept[:, None], 1 - accept[:, None]), axis=-1
    )
    np.testing.assert_allclose(likelihood @ observed, clean, atol=2e-5)
    assert np.all(observed[~mask] == 0)


def test_the_table_of_the_method():
    rates = binary(0.1, 0.2)
    table = enumeration.advantage_table(
        exact_correction.exact_group_correction(advantage.grpo()), 4, rates
    )
    expected = [
        [0, -0.860868, -1.315816, -2.717910], [2.582604, 1.315816, 0.905970, 0],
    ]
    np.testing.assert_allclose(table, expected, atol=2e-6)
    assert table[0, 0] == 0 and table[1, 3] == 0  # no spread: exactly
    plug_in = enumeration.advantage_table(
        correction.corrected_group_normalization(), 4, rates
    )
    np.testing.assert_allclose(plug_in[0], [0, -0.824786, -1.443376, -2.474358], atol=2e-6)
    pair = enumeration.advantage_table(
        exact_correction.exact_group_correction(advantage.grpo()), 2, rates
    )
    np.testing.assert_allclose(pair, [[0, -1 / 0.7], [1 / 0.7, 0]], rtol=1e-6)


@pytest.mark.parametrize("group_size", [2, 4, 8])
def test_without_noise_it_is_the_advantage(group_size):
    rewards = np.random.default_rng(0).integers(0, 2, (8, group_size))
    transform = exact_correction.exact_group_correction(advantage.grpo())
    np.testing.assert_allclose(
        advantages(transform, rewards, binary(0.0, 0.0)),
        advantages(advantage.grpo(), rewards),
        atol=1e-6,
    )


def test_a_cap_and_rates_of_each_prompt():
    rewards = np.array([[1.0, 1, 1, 0], [1, 1, 1, 0]])
    rates = binary(np.array([0.1, 0.0]), np.array([0.2, 0.0]))
    transform = exact_correction.exact_group_correction(advantage.grpo(), max_abs=2.0)
    result = advantages(transform, rewards, rates)
    np.testing.assert_allclose(result[0, 2:], [0.905970, -2.0], atol=2e-6)
    np.testing.assert_allclose(result[1, 2:], [0.577350, -1.732051], atol=2e-6)


def running():
    return advantage.group_relative(scale="running_std")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: exact_correction.exact_group_correction(running()), "without state"),
        (lambda: exact_correction.exact_group_correction(base.identity()), "advantage = identity"),
        (
            lambda: exact_correction.exact_group_correction(advantage.grpo(), max_abs=0.0),
            "max_abs = 0.0",
        ),
        (
            lambda: advantages(
                exact_correction.exact_group_correction(advantage.grpo()),
                np.zeros((1, 9)), binary(0.1, 0.1),
            ),
            r"shape \(1, 9\); allowed is \[P, G\] with G <= 8",
        ),
        (
            lambda: enumeration.advantage_table(
                exact_correction.exact_group_correction(advantage.grpo()), 4, binary(0.5, 0.5)
            ),
            "cannot be corrected",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
