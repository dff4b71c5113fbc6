"""KL-regularised optima under noise: closed forms, and what optimisation converges to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward import channel as channels
from jaxreward.channel import binary
from jaxreward.evaluation import enumeration, fixed_point
from jaxreward.transforms import advantage, base, correction
from jaxreward.transforms.exact_correction import exact_group_correction

ROWS = [  # reference, true rewards, beta, (fp, fn), clean, noisy, beta / J
    ([0.5, 0.3, 0.2], [1, 0, 0], 0.5, (0.1, 0.2),
     [0.880797, 0.071522, 0.047681], [0.802184, 0.118690, 0.079126], 0.714286),
    ([0.7, 0.2, 0.1], [0, 0, 1], 0.25, (0.3, 0.1),
     [0.110066, 0.031447, 0.858486], [0.349595, 0.099884, 0.550521], 0.416667),
    ([0.4, 0.3, 0.2, 0.1], [0, 1, 0, 1], 0.1, (0.2, 0.4),
     [0.000045, 0.749949, 0.000023, 0.249983], [0.017826, 0.729946, 0.008913, 0.243315], 0.25),
]
each_row = pytest.mark.parametrize("row", ROWS, ids=["first", "second", "third"])


def arrays(row):
    return jnp.asarray(row[0]), jnp.asarray(row[1], jnp.float32), row[2], binary(*row[3])


def chained(fix, estimator):
    return base.chain(fix, estimator, provided=("rates",), on_inert="allow")


@each_row
def test_closed_forms(row):
    reference, true, beta, channel = arrays(row)
    clean = fixed_point.regularized_optimum(reference, true, beta)
    noisy = fixed_point.noisy_optimum(reference, true, beta, channel)
    larger = fixed_point.effective_kl_coefficient(beta, channel)
    np.testing.assert_allclose(clean, row[4], atol=1e-6)
    np.testing.assert_allclose(noisy, row[5], atol=1e-6)
    np.testing.assert_allclose(larger, row[6], atol=1e-6)
    np.testing.assert_allclose(
        noisy, fixed_point.regularized_optimum(reference, true, larger), rtol=1e-5
    )
    restored = fixed_point.restored_optimum(reference, true, beta, channel, channel)
    np.testing.assert_allclose(restored, clean, rtol=1e-5)


def test_false_positives_alone_act_as_their_determinant():
    reference, true, beta, _ = arrays(ROWS[0])
    seen = 0.25 + true  # a constant on every reward
    np.testing.assert_allclose(
        fixed_point.regularized_optimum(reference, seen, beta),
        fixed_point.regularized_optimum(reference, true, beta),
        rtol=1e-5,
    )


def test_success_probability_of_the_noisy_verifier():
    reference, true = jnp.asarray([0.05, 0.95]), jnp.asarray([1.0, 0.0])
    clean = fixed_point.regularized_optimum(reference, true, 0.2)
    noisy = fixed_point.noisy_optimum(reference, true, 0.2, binary(0.1, 0.2))
    np.testing.assert_allclose([clean[0], noisy[0]], [0.886508, 0.635425], atol=1e-6)


def test_an_average_rate_does_not_undo_an_answer_that_is_always_accepted():
    reference, true = jnp.asarray([0.6, 0.3, 0.1]), jnp.asarray([1.0, 0.0, 0.0])
    per_action = binary(np.array([0.0, 0.05, 0.9]), np.full(3, 0.2))
    marginal = binary((0.3 * 0.05 + 0.1 * 0.9) / 0.4, 0.2)
    np.testing.assert_allclose(marginal.false_positive, 0.2625, atol=1e-6)
    clean = fixed_point.regularized_optimum(reference, true, 0.2)
    noisy = fixed_point.noisy_optimum(reference, true, 0.2, per_action)
    worse = fixed_point.restored_optimum(reference, true, 0.2, per_action, marginal)
    np.testing.assert_allclose(
        [clean[0], noisy[0], worse[0]], [0.9955, 0.7773, 0.7027], atol=5e-5
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def optimise(transform, group_size, reference, true, beta, channel):
    """Ascends the exact gradient of the surrogate minus `beta KL` until it stands still.

    Preconditioned by the inverse Fisher matrix (gradient over probability), without which
    actions of probability 1e-5 would take forever; the point where it is 0 is the same.
    """

    def step(_, logits):
        policy = jax.nn.softmax(logits)
        reward = enumeration.expected_gradient(logits, true, transform, group_size, channel)
        penalty = jnp.log(policy) - jnp.log(reference)
        kl = policy * (penalty - jnp.sum(policy * penalty))
        return logits + 0.3 / beta * (reward - beta * kl) / policy

    start = jnp.log(reference)
    logits = jax.lax.fori_loop(0, 150, step, start)
    return jax.nn.softmax(logits), jnp.max(jnp.abs(step(0, logits) - logits))



OPTIMISED = {
    "noisy, leave one out": (advantage.rloo(), 4, lambda j, n: j),
    "noisy, group mean": (advantage.dr_grpo(), 4, lambda j, n: j * (1 - 1 / n)),
    "forward, direct": (chained(correction.forward(), advantage.direct()), 4, lambda j, n: j),
    "forward / J, direct": (
        chained(correction.forward(scale="determinant"), advantage.direct()), 4, lambda j, n: 1.0
    ),
    "backward, leave one out": (
        chained(correction.backward(), advantage.rloo()), 4, lambda j, n: 1.0
    ),
    "backward, group mean": (
        chained(correction.backward(), advantage.dr_grpo()), 4, lambda j, n: 1 - 1 / n
    ),
    "corrected without std": (
        correction.corrected_group_normalization(scale="none"), 4, lambda j, n: 1 - 1 / n
    ),
}


@pytest.mark.parametrize("name", OPTIMISED)
def test_optimisation_reaches_the_closed_form(name):
    transform, n, strength = OPTIMISED[name]
    for row in ROWS:
        reference, true, beta, channel = arrays(row)
        policy, moved = optimise(transform, n, reference, true, beta, channel)
        factor = strength(1 - sum(row[3]), n)
        expected = fixed_point.regularized_optimum(reference, true, beta / factor)
        assert moved < 1e-4
        np.testing.assert_allclose(policy, expected, atol=1e-5)
        if name == "noisy, leave one out":
            np.testing.assert_allclose(policy, row[5], atol=1e-5)
        if name == "backward, leave one out":
            np.testing.assert_allclose(policy, row[4], atol=1e-5)


STANDARDISED = [  # reference success rate, beta, (fp, fn), clean, noisy
    (0.2, 1.0, (0.1, 0.2), 0.681283, 0.504945),
    (0.3, 2.0, (0.2, 0.2), 0.538850, 0.438885),
    (0.5, 4.0, (0.3, 0.1), 0.626393, 0.577813),
]


@pytest.mark.parametrize("row", STANDARDISED)
def test_fixed_points_with_std(row):
    rate, beta, pair, clean, noisy = row
    channel = binary(*pair)

    def solve(power, channel):
        gap = lambda p: fixed_point.population_gap(p, channel, power=power, epsilon=1e-5)
        return fixed_point.success_rate_fixed_point(jnp.asarray(rate), beta, gap)

    np.testing.assert_allclose(solve(0.0, binary(0.0, 0.0)), clean, atol=1e-6)
    np.testing.assert_allclose(solve(0.0, channel), noisy, atol=1e-6)
    np.testing.assert_allclose(solve(-1.0, channel), clean, atol=1e-6)


@pytest.mark.parametrize("rate, beta, power", [(0.001, 4.0, 0.0), (0.001, 1.0, 1.0)])
def test_a_rare_success_has_a_fixed_point_too(rate, beta, power):
    """Whole steps jump to and fro around it."""
    channel = binary(0.01, 0.01)
    gap = lambda p: fixed_point.population_gap(p, channel, power=power, epsilon=1e-5)
    found = fixed_point.success_rate_fixed_point(jnp.asarray(rate), beta, gap)
    logit = lambda p: np.log(p / (1 - p))
    np.testing.assert_allclose(logit(found), logit(rate) + gap(found) / beta, atol=1e-3)


GRPO = advantage.grpo()


@functools.cache
def self_consistent(transform, n, false_positive, false_negative):
    """Of the first standardised row, with a transform's `D(p)` for groups of `n`."""
    rate, beta, *_ = STANDARDISED[0]
    channel = binary(false_positive, false_negative)
    gap = lambda p: enumeration.class_gap(transform, p, n, channel)
    solve = jax.jit(lambda rate: fixed_point.success_rate_fixed_point(rate, beta, gap))
    return float(solve(jnp.asarray(rate)))


@pytest.mark.parametrize("name", ["noisy", "backward", "plug-in", "exact"])
def test_optimisation_with_std_reaches_the_self_consistent_success_rate(name):
    """For a finite group, with `D(p)` from enumeration; the exact correction restores it."""
    n, (rate, beta, pair, _, _) = 4, STANDARDISED[0]
    transform = {
        "noisy": GRPO,
        "backward": chained(correction.backward(), GRPO),
        "plug-in": correction.corrected_group_normalization(),
        "exact": exact_group_correction(GRPO),
    }[name]
    reference, true = jnp.asarray([rate, 0.5, 0.3]), jnp.asarray([1.0, 0, 0])

    policy, moved = optimise(transform, n, reference, true, beta, binary(*pair))
    assert moved < 1e-4
    policy = np.asarray(policy)
    np.testing.assert_allclose(policy[0], self_consistent(transform, n, *pair), atol=1e-5)
    clean, noisy = (self_consistent(GRPO, n, *rates) for rates in ((0.0, 0.0), pair))
    assert clean - noisy > 0.1
    target, tolerance = {
        "noisy": (noisy, 1e-6), "backward": (noisy, 1e-5), "plug-in": (clean, 5e-3),
        "exact": (clean, 1e-5),
    }[name]
    np.testing.assert_allclose(policy[0], target, atol=tolerance)


def test_noise_removes_the_amplification_of_rare_failures():
    """As p goes to 1 the clean strength grows without bound, the noisy one does not."""
    p = jnp.asarray([0.9, 0.99, 0.999])
    clean = fixed_point.population_gap(p, binary(0.0, 0.0))
    noisy = fixed_point.population_gap(p, binary(0.1, 0.2))
    np.testing.assert_allclose(clean, 1 / np.sqrt(p * (1 - p)), rtol=1e-5)
    assert np.all(np.asarray(noisy) < 0.7 / np.sqrt(0.8 * 0.2) + 1e-6)
    kappa = channels.reliability(p, binary(0.1, 0.2))
    np.testing.assert_allclose(noisy / clean, kappa, rtol=1e-5)
