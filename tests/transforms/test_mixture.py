"""The weighted sum of advantages: by hand, with missing rewards, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.transforms import advantage, base, calibration, credit, mixture, noise
from jaxreward.types import Trajectories, make_signal

REWARDS = jnp.array([[1.0, 0, 0, 1], [0, 1, 0, 0]])
SECOND = jnp.array([[0.9, 0.1, 0.4, 0.2], [0.3, 0.3, 0.5, 0.1]])


def run(transform, signal, key=jax.random.key(0)):
    return transform.update(key, signal, transform.init())[0]


def test_each_reward_is_normalised_for_itself():
    likelihood = base.chain(calibration.replace_reward("second"), advantage.grpo())
    both = mixture.weighted_sum((advantage.grpo(), likelihood), (1.0, 0.25))
    signal = make_signal(REWARDS, second=SECOND)
    found = run(both, signal)
    first, second = run(advantage.grpo(), signal), run(likelihood, signal)
    expected = first.advantages + 0.25 * second.advantages
    np.testing.assert_allclose(found.advantages, expected, rtol=1e-6)
    np.testing.assert_array_equal(found.rewards, REWARDS)
    assert set(found.metrics) >= set(first.metrics)
    assert any(name.startswith("part_1/") for name in found.metrics)


def test_what_one_part_misses_the_other_still_counts():
    second = jnp.where(jnp.arange(4)[None] == 2, jnp.nan, SECOND)

    def without_third(key, signal):
        del key
        own = jnp.where(jnp.isfinite(signal.aux["second"]), signal.aux["second"], 0.0)
        return signal.replace(rewards=own, mask=jnp.isfinite(signal.aux["second"]))

    spec = base.Spec("some", "calibration", ("aux/second",), ("rewards", "mask"), "nonlinear")
    part = base.chain(base.stateless(without_third, spec), advantage.rloo())
    found = run(mixture.weighted_sum((part, advantage.rloo()), (2.0, 1.0)),
                make_signal(REWARDS, second=second))  # fmt: skip
    alone = run(advantage.rloo(), make_signal(REWARDS)).advantages
    np.testing.assert_allclose(found.advantages[:, 2], alone[:, 2], rtol=1e-6)
    assert found.mask.all()
    of_rest = run(advantage.rloo(), make_signal(SECOND[:, jnp.array([0, 1, 3])])).advantages
    np.testing.assert_allclose(
        found.advantages[:, jnp.array([0, 1, 3])],
        2 * of_rest + alone[:, jnp.array([0, 1, 3])],
        rtol=1e-5,
    )


def test_dense_and_outcome_advantages_add():
    mask = jnp.ones((2, 4, 3), bool)
    zeros = jnp.zeros((2, 4, 3))
    own = Trajectories(jnp.arange(2), zeros, zeros, zeros, mask)
    dense = base.chain(advantage.rloo(), credit.broadcast())
    signal = make_signal(REWARDS, trajectories=own)
    found = run(mixture.weighted_sum((dense, advantage.grpo()), (1.0, 1.0)), signal).advantages
    expected = run(advantage.rloo(), signal).advantages + run(advantage.grpo(), signal).advantages
    np.testing.assert_allclose(found, np.repeat(expected[..., None], 3, -1), rtol=1e-6)


def test_parts_draw_for_themselves_and_keep_their_state():
    part = base.chain(noise.symmetric(0.5), advantage.rloo())
    both = mixture.weighted_sum((part, part), (1.0, -1.0))
    signal = make_signal(jnp.tile(REWARDS, (8, 4)))
    assert np.abs(run(both, signal).advantages).max() > 0  # not the same draws twice
    counting = base.chain(calibration.warm_up("second", steps=1), advantage.rloo())
    both = mixture.weighted_sum((counting, advantage.rloo()), (1.0, 1.0))
    signal = make_signal(REWARDS, second=SECOND)
    first, state = both.update(jax.random.key(0), signal, both.init())
    later, _ = both.update(jax.random.key(0), signal, state)
    assert np.abs(first.advantages - later.advantages).max() > 0.1


@pytest.mark.parametrize(
    "parts, weights, message",
    [
        ((advantage.rloo(),), (1.0,), "1 parts with 1 weights"),
        ((advantage.rloo(), advantage.rloo()), (1.0,), "2 parts with 1 weights"),
        ((advantage.rloo(), noise.symmetric(0.1)), (1.0, 1.0), "never sets advantages"),
        ((advantage.rloo(), advantage.rloo()), (1.0, float("inf")), "weights = inf"),
    ],
)
def test_refused(parts, weights, message):
    with pytest.raises(ValueError, match=message):
        mixture.weighted_sum(parts, weights)
