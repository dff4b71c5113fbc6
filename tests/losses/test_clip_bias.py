"""Why random rewards can move a policy: the clipped term is not symmetric in the ratio.

Exact check 3 and 5 of arXiv 2507.10532: with advantages of +mu and -mu equally likely, the
expected gradient of the clipped term with respect to the ratio is +mu/2 below the band, 0
inside and -mu/2 above it. Without clipping, or where the policy is still the one that sampled,
it is 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.losses.policy import policy_loss


def gradient(ratio, advantage, objective="clip"):
    """d(objective)/d(ratio) of one token whose behaviour log-probability is -1."""
    one = lambda value: jnp.full((1, 1, 1), value, jnp.float32)

    def objective_of(r):
        loss, _ = policy_loss(
            one(-1.0) + jnp.log(r), one(-1.0), jnp.full((1, 1), advantage, jnp.float32),
            jnp.ones((1, 1, 1), bool), objective=objective,
        )  # fmt: skip
        return -loss

    return float(jax.grad(objective_of)(jnp.float32(ratio)))


@pytest.mark.parametrize("ratio, expected", [(0.7, 0.5), (0.9, 0.0), (1.1, 0.0), (1.3, -0.5)])
def test_card_check_3_expected_gradient_of_random_advantages(ratio, expected):
    found = (gradient(ratio, 1.0) + gradient(ratio, -1.0)) / 2
    assert found == pytest.approx(expected, abs=1e-6)


def test_card_check_3_likely_tokens_cannot_reach_the_upper_bound():
    bounds = lambda p: np.round([0.8 * p, 1.2 * p], 6).tolist()
    assert bounds(0.85)[1] == 1.02 and bounds(0.5) == [0.4, 0.6]


@pytest.mark.parametrize("objective, ratio", [("clip", 1.0), ("reinforce", 1.0)])
def test_card_check_5_one_update_per_rollout_has_no_bias(objective, ratio):
    up, down = (gradient(ratio, mu, objective) for mu in (1.0, -1.0))
    assert up + down == pytest.approx(0, abs=1e-6) and abs(up) > 0.5
