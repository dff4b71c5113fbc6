"""Tests of jaxreward.transforms.correction. Expectations over the channel are exact sums."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward import channel as channels
from jaxreward.channel import Channel, binary
from jaxreward.transforms import advantage, base, correction, rates, sources
from jaxreward.transforms.base import InertCorrectionError, Spec, stateless
from jaxreward.transforms.moments import moments
from jaxreward.types import make_signal

KEY = jax.random.key(0)
NOISY = binary(0.1, 0.2)


@functools.lru_cache(maxsize=None)
def jitted(transform):
    def update(rewards, mask, fields):
        signal = make_signal(rewards, mask).replace(**fields)
        return transform.update(KEY, signal, transform.init())[0]

    return jax.jit(update)


def run(transform, rewards, rates=NOISY, mask=None, weights=None):
    """The signal after the transform, in numpy."""
    fields = {"rates": rates}
    if weights is not None:
        fields["weights"] = np.asarray(weights, np.float32)
    after = jitted(transform)(np.asarray(rewards, np.float32), mask, fields)
    return jax.tree.map(np.asarray, after)


@jax.jit
def group_of(rewards, rates, mask=None):
    """Of every group the mean of what `backward` makes of it, and `clean_variance` with both."""
    signal = make_signal(rewards, mask).replace(rates=rates)
    after, _ = correction.backward().update(KEY, signal, ())
    group = moments(after.rewards, after.mask)
    unbiased = correction.clean_variance(group, unbiased=True)
    return group.mean, {True: unbiased, False: correction.clean_variance(group)}


def chain(*transforms, **kwargs):
    return base.chain(*transforms, provided=("rates",), **kwargs)


# Rewards


def test_backward_and_forward_values():
    both = [[0.0, 1.0]]
    rhat = run(correction.backward(), both).rewards
    np.testing.assert_allclose(rhat, [[-0.142857, 1.285714]], atol=1e-6)
    for scale, expected in {
        "none": [-0.8, 0.2],
        "determinant": [-1.142857, 0.285714],
        "true_positive": [-1.0, 0.25],
    }.items():
        weight = run(correction.forward(scale=scale), both).rewards
        np.testing.assert_allclose(weight, [expected], atol=1e-6)


def channel_moments(values, fp, fn):
    """Mean and variance given the true reward 0 and 1, of a function of the observed one."""
    probabilities = np.array([[1 - fp, fp], [fn, 1 - fn]])
    mean = probabilities @ values
    return mean, probabilities @ values**2 - mean**2


@pytest.mark.parametrize(
    ("fp", "fn", "var_backward", "var_forward"),
    [(0.1, 0.2, 0.326531, 0.16), (0.3, 0.5, 6.25, 0.25)],
)
def test_mean_and_variance_over_the_channel(fp, fn, var_backward, var_forward):
    both = [[0.0, 1.0]]
    rhat = np.asarray(run(correction.backward(), both, binary(fp, fn)).rewards[0], float)
    mean, variance = channel_moments(rhat, fp, fn)
    np.testing.assert_allclose(mean, [0, 1], atol=1e-6)
    np.testing.assert_allclose(variance[1], var_backward, rtol=1e-5)
    weight = np.asarray(run(correction.forward(), both, binary(fp, fn)).rewards[0], float)
    mean, variance = channel_moments(weight, fp, fn)
    np.testing.assert_allclose(mean, [fp + fn - 1, 0], atol=1e-6)
    np.testing.assert_allclose(variance[1], var_forward, rtol=1e-5)


def test_too_small_assumed_rates_leave_a_bias():
    rhat = np.asarray(run(correction.backward(), [[0.0, 1.0]], binary(0.0, 0.2)).rewards[0])
    np.testing.assert_allclose(channel_moments(rhat, 0.1, 0.2)[0][0], 0.125, atol=1e-6)


def test_without_noise_backward_is_the_identity_and_forward_a_shift():
    rewards = np.array([[1.0, 0, 1, 0.25]])
    perfect = binary(0.0, 0.0)
    np.testing.assert_array_equal(run(correction.backward(), rewards, perfect).rewards, rewards)
    np.testing.assert_array_equal(
        run(correction.forward(), rewards, perfect).rewards, rewards - 1
    )


def test_the_released_forward_is_the_reward_times_the_false_negative_rate():
    rewards = [[1.0, 0, 0, 1, 0, 0, 0, 1]]
    transform = correction.forward(as_released=True)
    after = run(transform, rewards)
    np.testing.assert_allclose(after.rewards, 0.2 * np.asarray(rewards), atol=1e-6)
    normalized = chain(transform, advantage.grpo(ddof=1, epsilon=1e-6), on_inert="allow")
    np.testing.assert_allclose(
        run(normalized, rewards).advantages[0, :2], [1.207602, -0.724562], atol=1e-6
    )
    with pytest.raises(InertCorrectionError):
        chain(transform, advantage.grpo())


RATES = {
    "one": binary(0.1, 0.2),
    "prompt": binary(np.array([0.1, 0.0]), np.array([0.2, 0.3])),
    "sample": binary(np.full((2, 3), 0.1), np.array([[0.2, 0.0, 0.1], [0.3, 0.2, 0.1]])),
}


@pytest.mark.parametrize("vary", RATES)
def test_rates_by_prompt_and_sample(vary):
    rates = RATES[vary]
    rewards = np.array([[1.0, 0, 1], [0, 1, 0]])
    expand = lambda rate: np.asarray(rate).reshape(rate.shape + (1,) * (2 - rate.ndim))
    fp, fn = expand(rates.false_positive), expand(rates.false_negative)
    np.testing.assert_allclose(
        run(correction.backward(), rewards, rates).rewards,
        (rewards - fp) / (1 - fp - fn),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        run(correction.forward(), rewards, rates).rewards, rewards - (1 - fn), atol=1e-6
    )
    dense = np.stack([rewards, 1 - rewards], axis=-1)
    fp, fn = (np.broadcast_to(rate, (2, 3))[..., None] for rate in (fp, fn))
    np.testing.assert_allclose(
        run(correction.backward(), dense, rates).rewards,
        (dense - fp) / (1 - fp - fn),
        atol=1e-6,
    )


LEVELS = Channel(jnp.asarray([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.0, 0.25, 0.75]]))


def test_levels_are_unbiased():
    values = np.array([-1.0, 0.5, 2.0])
    transform = correction.backward_levels(tuple(values))
    after = run(transform, values[None], LEVELS)
    np.testing.assert_allclose(LEVELS.matrix @ after.rewards[0], values, atol=1e-5)
    two = run(correction.backward_levels((0.0, 1.0)), [[0.0, 1, 1]]).rewards
    np.testing.assert_allclose(two, run(correction.backward(), [[0.0, 1, 1]]).rewards, atol=1e-6)
    assert transform.spec.reward_map == "nonlinear"
    assert correction.backward_levels((0.0, 1.0)).spec.reward_map == "affine"
    with pytest.raises(ValueError, match="rates have 3 levels, values have 2"):
        run(correction.backward_levels((0.0, 1.0)), [[0.0, 1, 1]], LEVELS)


TRANSFORMS = {
    "backward": correction.backward(),
    "forward": correction.forward(scale="determinant"),
    "levels": correction.backward_levels((0.0, 1.0)),
    "corrected GRPO": correction.corrected_group_normalization(),
    "corrected Dr. GRPO": correction.corrected_group_normalization(scale="none"),
    "zero": correction.corrected_group_normalization(on_negative="zero", unbiased_variance=True),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_missing_rewards_have_no_effect(name):
    rewards = np.array([[1.0, 0, 1, 0, 0], [0, 0, 1, 1, 1]])
    mask = np.array([[1, 1, 0, 1, 1], [0, 0, 0, 1, 0]], bool)
    signal = make_signal(rewards, mask).replace(rates=NOISY)
    garbage = signal.replace(rewards=jnp.asarray(np.where(mask, rewards, np.inf), jnp.float32))
    update = jax.jit(TRANSFORMS[name].update)
    after, other = jax.tree.map(np.asarray, [update(KEY, s, ())[0] for s in (signal, garbage)])
    compact = run(TRANSFORMS[name], rewards[:1, mask[0]])
    for field in ("rewards", "advantages"):
        value = getattr(after, field)
        if value is None or field not in TRANSFORMS[name].spec.writes:
            continue
        np.testing.assert_array_equal(value, getattr(other, field))
        assert np.all(value[~mask] == 0)
        np.testing.assert_allclose(value[0][mask[0]], getattr(compact, field)[0], rtol=1e-6)
        if field == "advantages":
            assert np.all(value[1] == 0)  # one reward is left


# What survives what


@pytest.mark.parametrize("fix", [correction.backward(), correction.forward()])
@pytest.mark.parametrize(
    "baseline", ["mean", "leave_one_out"]
)
def test_grpo_after_a_reward_correction_is_grpo_on_the_noisy_reward(fix, baseline):
    rewards = np.random.default_rng(0).integers(0, 2, (16, 8))
    plain = advantage.group_relative(baseline=baseline, scale="group_std")
    corrected = chain(fix, plain, on_inert="allow")
    np.testing.assert_allclose(
        run(corrected, rewards).advantages, run(plain, rewards).advantages, atol=1e-6
    )


@pytest.mark.parametrize("estimator", [advantage.dr_grpo(), advantage.rloo()])
def test_forward_before_any_centring_is_the_noisy_reward(estimator):
    rewards = np.random.default_rng(0).integers(0, 2, (16, 8))
    np.testing.assert_allclose(
        run(chain(correction.forward(), estimator, on_inert="allow"), rewards).advantages,
        run(estimator, rewards).advantages,
        atol=1e-6,
    )


def test_z_scores_of_the_noisy_and_the_corrected_reward():
    rewards = [[1.0, 0, 0, 1, 0, 0, 0, 1]]
    grpo = advantage.grpo(ddof=1, epsilon=1e-6)
    corrected = chain(correction.backward(), grpo, on_inert="allow")
    np.testing.assert_allclose(
        run(corrected, rewards).advantages[0, :2], [1.207613, -0.724568], atol=1e-6
    )
    loo = run(chain(correction.backward(), advantage.rloo()), rewards).advantages[0, :2]
    np.testing.assert_allclose(loo, [1.020408, -0.612245], atol=1e-6)
    np.testing.assert_allclose(
        loo / run(advantage.rloo(), rewards).advantages[0, :2], 1.428571, atol=1e-5
    )


def by_sample():
    spec = Spec("rates by sample", "rates", writes=("rates",), rates_vary="sample")
    return stateless(lambda key, signal: signal, spec)


FORWARD, BACKWARD = correction.forward(), correction.backward()
SCALED = correction.forward(scale="determinant")
REFUSED = {
    "backward, mean and std": (BACKWARD, advantage.grpo()),
    "backward, mean and std with epsilon": (BACKWARD, advantage.grpo(epsilon=1e-6)),
    "forward, mean": (FORWARD, advantage.dr_grpo()),
    "forward, leave one out": (FORWARD, advantage.rloo()),
    "forward, mean and std": (FORWARD, advantage.grpo()),
    "forward, constant scale": (FORWARD, advantage.group_relative(scale=0.5)),
    "forward, centred and whitened": (FORWARD, advantage.batch_normalized(baseline="mean")),
    "forward, pass@k": (FORWARD, advantage.pass_at_k(2)),
    "scaled forward, mean and std": (SCALED, advantage.grpo()),
    "two levels, mean and std": (correction.backward_levels((0.0, 1.0)), advantage.grpo()),
}
ACCEPTED = {
    "backward, none": (BACKWARD, advantage.direct()),
    "backward, mean": (BACKWARD, advantage.dr_grpo()),
    "backward, leave one out": (BACKWARD, advantage.rloo()),
    "backward by sample, std": (by_sample(), BACKWARD, advantage.grpo()),
    "forward, none": (FORWARD, advantage.direct()),
    "forward by sample, mean": (by_sample(), FORWARD, advantage.dr_grpo()),
    "scaled forward, mean": (SCALED, advantage.dr_grpo()),
    "three levels, std": (correction.backward_levels((0.0, 0.5, 1.0)), advantage.grpo()),
    "corrected normalisation": (correction.corrected_group_normalization(),),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_chain_refuses_what_cancels(name):
    with pytest.raises(InertCorrectionError):
        chain(*REFUSED[name])
    chain(*REFUSED[name], on_inert="allow")


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_chain_accepts_what_does_not_cancel(name):
    chain(*ACCEPTED[name])


@pytest.mark.parametrize("scale", ["batch_std", "running_std"])
def test_a_scale_of_the_batch_cancels_rates_that_all_prompts_share(scale):
    """Which the chain cannot know: it is told whether rates vary within groups only."""
    rewards = np.random.default_rng(0).integers(0, 2, (6, 8))
    plain = advantage.group_relative(scale=scale)
    corrected = chain(BACKWARD, plain)
    noisy = run(plain, rewards).advantages
    np.testing.assert_allclose(run(corrected, rewards).advantages, noisy, atol=1e-5)
    by_prompt = binary(np.linspace(0, 0.4, 6), np.full(6, 0.2))
    different = run(corrected, rewards, by_prompt).advantages
    assert np.max(np.abs(different - noisy)) > 0.05


def test_a_second_correction_or_advantage_is_refused():
    corrected = correction.corrected_group_normalization()
    with pytest.raises(ValueError, match="both correct the same channel"):
        chain(BACKWARD, corrected)
    with pytest.raises(ValueError, match="overwrites the advantages"):
        chain(corrected, advantage.grpo())
    with pytest.raises(ValueError, match="reads 'rates'"):
        base.chain(BACKWARD)


# Corrected group normalisation


def test_a_corrected_group_by_hand():
    rewards = [[1.0, 1, 0, 1, 0, 0, 1, 0]]
    sign = 2 * np.asarray(rewards) - 1
    after = run(correction.corrected_group_normalization(), rewards)
    np.testing.assert_allclose(after.advantages, 1.443376 * sign, atol=2e-6)
    after = run(correction.corrected_group_normalization(scale="none"), rewards)
    np.testing.assert_allclose(after.advantages, 0.714286 * sign, atol=2e-6)
    mean, variance = group_of(np.float32(rewards), NOISY)
    np.testing.assert_allclose(mean, [[0.571429]], atol=1e-6)
    np.testing.assert_allclose(variance[False], [[0.244898]], atol=1e-6)


def test_a_group_below_the_floor():
    rewards, rates = [[1.0, 0, 0, 0, 1, 0, 0, 0]], binary(0.3, 0.1)
    after = run(correction.corrected_group_normalization(), rewards, rates)
    np.testing.assert_allclose(after.advantages[0, :2], [3.779645, -1.259882], atol=2e-6)
    assert after.metrics["correction/variance_floored"] == 1.0
    mean, variance = group_of(np.float32(rewards), rates)
    np.testing.assert_allclose(mean, [[-0.083333]], atol=1e-6)
    np.testing.assert_allclose(variance[False], [[-0.090278]], atol=1e-6)
    for options, expected in (
        (dict(on_negative="zero"), 0.0),
        (dict(max_abs=2.0), 2.0),
        (dict(floor=0.01), (0.25 + 1 / 3 + 1 / 6) / 0.6 / 0.1),
        (dict(power=1.0), 0.0),
    ):
        after = run(correction.corrected_group_normalization(**options), rewards, rates)
        np.testing.assert_allclose(after.advantages[0, 0], expected, rtol=1e-5)


def test_without_noise_it_is_grpo():
    rewards = np.array([[1.0, 1, 0, 1, 0, 0, 0, 0], [1] * 8, [0] * 8, [1] + [0] * 7])
    for power in (-1.0, 0.0, 1.0):
        after = run(
            correction.corrected_group_normalization(power=power), rewards, binary(0.0, 0.0)
        )
        np.testing.assert_allclose(
            after.advantages, run(advantage.grpo(), rewards).advantages, rtol=1e-5
        )
        assert np.all(after.advantages[1:3] == 0)


GRPO, DR_GRPO = advantage.grpo(), advantage.dr_grpo()  # so that they are compiled once


@pytest.mark.parametrize("power", [-1.0, -0.5, 0.0, 1.0, 2])
def test_the_family_is_the_z_score_times_a_power_of_the_reliability(power):
    rewards = np.array([[1.0] * k + [0] * (8 - k) for k in range(1, 8)])
    z = run(GRPO, rewards).advantages
    fraction = (rewards.mean(axis=1) - 0.1) / 0.7
    inside = (fraction > 1 / 8) & (fraction < 7 / 8)
    kappa = np.asarray(channels.reliability(jnp.asarray(fraction, jnp.float32), NOISY))
    after = run(correction.corrected_group_normalization(power=power), rewards).advantages
    assert inside.sum() == 4
    expected = z[inside] * kappa[inside, None] ** power
    np.testing.assert_allclose(after[inside], expected, rtol=2e-5)
    plain = run(correction.corrected_group_normalization(power=power, scale="none"), rewards)
    np.testing.assert_allclose(
        plain.advantages, run(DR_GRPO, rewards).advantages * 0.7**power, rtol=1e-5
    )


binary_groups = hnp.arrays(np.float32, (3, 5), elements=st.sampled_from([0.0, 1.0]))
masks = hnp.arrays(np.bool_, (3, 5))
sample_rates = hnp.arrays(np.float32, (3, 5), elements=st.sampled_from([0.0, 0.1, 0.3]))
weights = hnp.arrays(np.float32, (3, 5), elements=st.sampled_from([0.5, 1.0, 3.0]))


WITHOUT_STD = correction.corrected_group_normalization(scale="none")
IN_TWO_STEPS = chain(BACKWARD, advantage.dr_grpo())


@hypothesis.given(binary_groups, masks, weights, sample_rates, sample_rates)
def test_without_std_it_is_backward_then_centring(rewards, mask, weights, fp, fn):
    rates = binary(fp, fn)
    np.testing.assert_allclose(
        run(WITHOUT_STD, rewards, rates, mask, weights).advantages,
        run(IN_TWO_STEPS, rewards, rates, mask, weights).advantages,
        atol=1e-5,
    )


@hypothesis.given(binary_groups, masks, sample_rates, sample_rates)
def test_the_recovered_variance_takes_out_what_the_channel_adds(rewards, mask, fp, fn):
    """The bracket of the docstring, also with rates that vary within the group."""
    rates = binary(fp, fn)
    variance = np.asarray(group_of(rewards, rates, mask)[1][False])
    for row in range(3):
        keep = mask[row]
        if not keep.any():
            continue
        r, a, b = (x[row][keep].astype(float) for x in (rewards, fp, fn))
        j = 1 - a - b
        x = (r - a) / j
        added = np.mean((x * b * (1 - b) + (1 - x) * a * (1 - a)) / j**2)
        expected = x.var() - added
        np.testing.assert_allclose(variance[row, 0], expected, atol=1e-5)


@pytest.mark.parametrize("unbiased", [True, False])
def test_expected_clean_variance(unbiased):
    """p = .2, false positives .1, false negatives .2, G = 8: the observed mean is .24."""
    rewards = np.array([[1.0] * k + [0] * (8 - k) for k in range(9)])
    ways = np.array([1, 8, 28, 56, 70, 56, 28, 8, 1])
    probability = ways * 0.24 ** np.arange(9) * 0.76 ** (8 - np.arange(9))
    variance = np.asarray(group_of(np.float32(rewards), NOISY)[1][unbiased], float)
    np.testing.assert_allclose(
        probability @ variance[:, 0], 0.16 if unbiased else 0.113469, atol=1e-6
    )


def test_weights_enter_the_moments():
    rewards, weights = [[1.0, 0, 0, 1, 0]], [[0.5, 1, 2, 0.25, 1]]
    for power in (-1.0, 0.0):
        perfect = run(
            correction.corrected_group_normalization(power=power),
            rewards, binary(0.0, 0.0), weights=weights,
        )
        expected = run(advantage.grpo(), rewards, weights=weights)
        np.testing.assert_allclose(perfect.advantages, expected.advantages, rtol=1e-4)


# Rates that cannot be corrected, traced parameters


@pytest.mark.parametrize("name", [n for n in TRANSFORMS if n != "levels"])
@pytest.mark.parametrize("rates", [(0.6, 0.5), (0.5, 0.5), (0.5, 0.47)])
def test_known_rates_that_cannot_be_corrected_are_refused(name, rates):
    rates = binary(*rates)
    signal = make_signal(jnp.asarray([[1.0, 0.0]])).replace(rates=rates)
    message = "false_positive = 0.[56].* cannot be corrected.*allowed is >= 0.05"
    with pytest.raises(ValueError, match=message):
        TRANSFORMS[name].update(KEY, signal, ())
    constant = lambda signal: TRANSFORMS[name].update(KEY, signal.replace(rates=rates), ())
    with pytest.raises(ValueError, match=message):
        jax.jit(constant)(signal.replace(rates=None))


def test_forward_without_scale_needs_no_determinant():
    after = run(FORWARD, [[1.0, 0.0]], binary(0.9, 0.6))
    np.testing.assert_allclose(after.rewards, [[0.6, -0.4]], atol=1e-6)


def test_traced_rates_are_floored_and_counted():
    rates = binary(np.array([0.1, 0.5, 0.9]), np.array([0.2, 0.48, 0.6]))
    mask = jnp.asarray([[True, True], [True, False], [True, True]])
    after = run(BACKWARD, [[1.0, 0]] * 3, rates, mask)
    np.testing.assert_allclose(after.rewards[1, 0], 0.5 / 0.05, rtol=1e-5)
    np.testing.assert_allclose(after.rewards[2, 0], 0.1 / 0.05, rtol=1e-5)
    np.testing.assert_allclose(after.metrics["correction/floored"], 3 / 5)
    wide = run(correction.backward(min_determinant=0.5), [[1.0, 0]] * 3, rates, mask)
    np.testing.assert_allclose(wide.rewards[1, 0], 1.0, rtol=1e-5)


def test_rates_and_parameters_may_be_traced():
    rewards = jnp.asarray([[1.0, 1, 0, 0, 0, 0, 0, 1]])

    def update(fp, fn, power, floor, cap):
        transform = correction.corrected_group_normalization(
            power=power, floor=floor, max_abs=cap
        )
        signal = make_signal(rewards).replace(rates=binary(fp, fn))
        return transform.update(KEY, signal, ())[0].advantages

    grid = jnp.asarray([
        [0.1, 0.2, -1.0, 0.01, 9.0],
        [0.3, 0.1, 1.0, 0.01, 9.0],
        [0.1, 0.2, 0.0, 0.01, 1.0],
    ])
    mapped = np.asarray(jax.jit(jax.vmap(update))(*grid.T))
    for row, advantages in zip(np.asarray(grid), mapped):
        fp, fn, power, floor, cap = (float(x) for x in row)
        one = correction.corrected_group_normalization(power=power, floor=floor, max_abs=cap)
        np.testing.assert_allclose(
            advantages, run(one, rewards, binary(fp, fn)).advantages, rtol=1e-5
        )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: correction.backward(min_determinant=0.0), r"min_determinant = 0.0; .*\(0, 1\]"),
        (lambda: correction.forward(scale="J"), "scale = 'J'; allowed are 'none'"),
        (lambda: correction.backward_levels((1.0,)), "at least 2 levels"),
        (lambda: correction.corrected_group_normalization(scale="std"), "scale = 'std'"),
        (lambda: correction.corrected_group_normalization(floor=0.0), "floor = 0.0"),
        (lambda: correction.corrected_group_normalization(floor="x"), "floor = 'x'"),
        (lambda: correction.corrected_group_normalization(on_negative="x"), "on_negative = 'x'"),
        (lambda: correction.corrected_group_normalization(max_abs=-1), "max_abs = -1"),
        (
            lambda: run(correction.corrected_group_normalization(), [[1.0]]),
            "group size 1; allowed is >= 2",
        ),
        (lambda: run(BACKWARD, [[1.0, 0.0]], None), "signal.rates is None"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_minimum_error_weights_of_the_published_numbers():
    """S-GRPO (arXiv 2508.05928) is power +1: symmetric rate .1, groups of 8."""
    rewards = np.array([[1.0] * k + [0.0] * (8 - k) for k in range(1, 8)])
    source = sources.constant(0.1, 0.1)
    minimum = base.chain(rates.known(source), correction.corrected_group_normalization(power=1.0))
    found = run(minimum, rewards, rates=None).advantages
    z_score = (rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, keepdims=True)
    expected = [0.4209, 0.7211, 0.7849, 0.8, 0.7849, 0.7211, 0.4209]
    np.testing.assert_allclose((found / z_score)[:, 0], expected, atol=1e-4)
