"""Tests of jaxreward.transforms.credit."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.channel import binary
from jaxreward.transforms import advantage, base, correction, credit
from jaxreward.types import Trajectories, make_signal

KEY = jax.random.key(0)


def trajectories(lengths, steps):
    lengths = np.asarray(lengths)
    mask = np.arange(steps) < lengths[..., None]
    return Trajectories(
        prompts=jnp.zeros((len(lengths),)),
        actions=jnp.zeros(mask.shape, jnp.int32),
        outputs=(),
        log_probs=jnp.zeros(mask.shape),
        mask=jnp.asarray(mask),
    )


def run(transform, signal):
    return jax.jit(transform.update)(KEY, signal, transform.init())[0]


def with_advantages(advantages, **fields):
    advantages = jnp.asarray(advantages, jnp.float32)
    return make_signal(jnp.zeros(advantages.shape)).replace(advantages=advantages, **fields)


def test_broadcast_gives_every_decision_the_outcome_and_padding_nothing():
    signal = with_advantages([[1.5, -2.0]], trajectories=trajectories([[3, 1]], 3))
    after = run(credit.broadcast(), signal)
    np.testing.assert_array_equal(after.advantages, [[[1.5, 1.5, 1.5], [-2.0, 0, 0]]])


values = hnp.arrays(np.float32, (2, 3, 4), elements=st.floats(-3, 3, width=32))


@hypothesis.given(values, st.sampled_from([0.0, 0.5, 0.9, 1.0]))
def test_return_to_go_is_the_discounted_sum_of_what_follows(a, discount):
    after = credit.return_to_go(discount=discount)
    signal, _ = after.update(KEY, with_advantages(a), ())
    expected = np.zeros(a.shape)
    for t in range(4):
        for u in range(t, 4):
            expected[:, :, t] += discount ** (u - t) * a[:, :, u]
    np.testing.assert_allclose(signal.advantages, expected, atol=1e-5)


def test_the_discount_may_be_traced():
    signal = with_advantages(np.ones((1, 1, 3)))
    first = jax.vmap(
        lambda d: credit.return_to_go(discount=d).update(KEY, signal, ())[0].advantages[0, 0, 0]
    )(jnp.asarray([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(first, [1.0, 1.75, 3.0])


ENDS = np.array([[[1, 3, 4], [0, 2, -1]]], np.int32)  # two responses, of three and two steps


def step_signal(rewards):
    """Process rewards of the two responses; the second has no third step."""
    mask = jnp.asarray(ENDS >= 0)
    signal = make_signal(jnp.asarray(rewards, jnp.float32), mask, step_ends=jnp.asarray(ENDS))
    return signal.replace(trajectories=trajectories([[5, 4]], 6), rates=binary(0.1, 0.2))


def plain_process_coefficient(step_values, t):
    """`A_t = sum over steps that end at or after t`, by a loop."""
    return np.array([
        sum(v for v, end in zip(row, ends) if end >= t >= 0)
        for row, ends in zip(step_values, ENDS[0])
    ])


@pytest.mark.parametrize("name", ["backward", "forward"])
def test_process_rewards_of_the_noisy_verifier(name):
    rewards = np.array([[[1.0, 0, 1], [0, 1, 0]]])
    if name == "backward":
        transforms = correction.backward(), advantage.rloo()
        hat = (rewards[0] - 0.1) / 0.7
        values = np.array([hat[0] - hat[1], hat[1] - hat[0]])
        values[:, 2] = 0.0  # one response alone reaches the third step
    else:
        transforms = correction.forward(scale="determinant"), advantage.direct()
        values = (rewards[0] - 0.8) / 0.7
        values[1, 2] = 0.0
    chain = base.chain(
        *transforms, credit.return_to_go(), credit.broadcast_steps(),
        provided=("rates", "trajectories", "aux/step_ends"),
    )
    advantages = run(chain, step_signal(rewards)).advantages
    assert advantages.shape == (1, 2, 6)
    for t in range(6):
        inside = np.array([t < 5, t < 4])
        expected = np.where(inside, plain_process_coefficient(values, t), 0.0)
        np.testing.assert_allclose(advantages[0, :, t], expected, atol=1e-5)
    assert np.all(np.asarray(advantages[0, 1, 3:]) == 0)  # after its last step, and padding


def test_without_return_to_go_a_decision_has_its_own_step():
    signal = step_signal(np.zeros((1, 2, 3))).replace(
        advantages=jnp.asarray([[[1.0, 2, 3], [4, 5, 0]]])
    )
    after = run(credit.broadcast_steps(), signal)
    np.testing.assert_array_equal(after.advantages, [[[1, 1, 2, 2, 3, 0], [4, 5, 5, 0, 0, 0]]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: credit.return_to_go(discount=1.5), r"discount = 1.5; allowed is \[0, 1\]"),
        (
            lambda: run(credit.return_to_go(), with_advantages([[1.0, 2.0]])),
            r"advantages have shape \(1, 2\); allowed is \[P, G, S\]",
        ),
        (
            lambda: run(credit.broadcast(), with_advantages(np.ones((1, 2, 3)))),
            r"allowed is \[P, G\]",
        ),
        (
            lambda: run(
                credit.broadcast_steps(),
                step_signal(np.zeros((1, 2, 3))).replace(advantages=jnp.ones((1, 2))),
            ),
            "allowed is that of aux/step_ends",
        ),
        (
            lambda: base.chain(credit.broadcast(), advantage.grpo()),
            "'broadcast' reads 'advantages'",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
