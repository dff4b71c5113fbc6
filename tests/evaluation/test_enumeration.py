"""What corrections do to the expected gradient: direction and scale, against closed forms.

The closed forms here are float64 numpy and share no code with the library. For a centred
advantage of a binary group, `D = E[A_i t_i] / (p (1 - p))`, which turns a sum over the own
bit and the others into one over the number of ones `K` of the whole group.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward import channel as channels
from jaxreward.channel import Channel, binary
from jaxreward.evaluation import enumeration
from jaxreward.transforms import advantage, base, correction
from jaxreward.transforms.exact_correction import exact_group_correction
from jaxreward.types import make_signal

PAIRS = np.array(
    [(fp, fn) for fp in (0.0, 0.05, 0.1, 0.21, 0.31) for fn in (0.0, 0.1, 0.21, 0.41, 0.56)],
    np.float64,
)  # 25 pairs; J from .13 to 1. No observed mean of a group is fp or 1 - fn.
RATES = np.array([0.05, 0.2, 0.5, 0.9])
SIZES = np.arange(2, 17)


def chained(fix, estimator):
    return base.chain(fix, estimator, provided=("rates",), on_inert="allow")


def ones_of_group(n, q):
    """Number of ones `K` and its probability, `[..., n + 1]`."""
    k = np.arange(n + 1)
    ways = np.array([math.comb(n, i) for i in k], float)
    q = np.asarray(q)[..., None]
    return k / n, ways * q**k * (1 - q) ** (n - k)


def noisy_std_gap(n, q, j, ddof=0):
    """`J E[sqrt(m (1 - m))] / (q (1 - q))`."""
    m, probability = ones_of_group(n, q)
    spread = np.sqrt(m * (1 - m) * ((n - ddof) / n))
    return j * np.sum(probability * spread, axis=-1) / (q * (1 - q))


def corrected_std_gap(n, q, j, fp, power):
    """The noisy advantage of a group with `m` times its reliability to a power."""
    m, probability = ones_of_group(n, q)
    clean = (m - np.asarray(fp)[..., None]) / np.asarray(j)[..., None]
    floor = (1 / n) * (1 - 1 / n) if power < 0 else 0.0
    clean_std = np.sqrt(np.maximum(clean * (1 - clean), floor))
    std = np.sqrt(m * (1 - m))
    kappa = np.asarray(j)[..., None] * clean_std / np.where(std > 0, std, 1.0)
    factor = np.where(std > 0, np.where(kappa > 0, kappa, 1.0) ** power, 0.0)
    factor = np.where((kappa > 0) | (power == 0), factor, 0.0)
    return j * np.sum(probability * std * factor, axis=-1) / (q * (1 - q))


def clean_gap(n, p):
    return noisy_std_gap(n, p, 1.0)


FIXES = {
    "noisy": lambda: base.identity(),
    "forward": correction.forward,
    "forward / J": functools.partial(correction.forward, scale="determinant"),
    "forward / true positives": functools.partial(correction.forward, scale="true_positive"),
    "backward": correction.backward,
}


def factor_of(fix, j, fn):
    """`D` of a correction of the reward without std, over that of the clean reward."""
    return {
        "noisy": j, "forward": j, "forward / J": j / j, "backward": j / j,
        "forward / true positives": j / (1 - fn),
    }[fix]


BASELINES = {
    "none": (advantage.direct, lambda n: 1.0),
    "constant scale": (functools.partial(advantage.direct, 0.5), lambda n: 2.0),
    "leave one out": (advantage.rloo, lambda n: 1.0),
    "group mean": (advantage.dr_grpo, lambda n: 1 - 1 / n),
}


def gaps(transform, width=16):
    """`D`, `[group sizes, pairs, success rates]`, of groups of 2 to `width` in one program.

    Smaller groups are groups of `width` with missing rewards;
    `test_a_group_with_missing_rewards_is_a_smaller_group` ties them to the real ones.
    """
    rates = jnp.asarray(RATES, jnp.float32)

    def gap(n, pair):
        return enumeration.class_gap(transform, rates, width, binary(*pair), valid=n)

    over_pairs = jax.vmap(gap, in_axes=(None, 0))
    sizes = jnp.arange(2, width + 1, dtype=jnp.int32)
    over_both = jax.jit(jax.vmap(over_pairs, in_axes=(0, None)))
    return over_both(sizes, jnp.asarray(PAIRS, jnp.float32))


@pytest.fixture(name="grid")
def closed_form_inputs():
    fp, fn = PAIRS.T[:, :, None]
    j = 1 - fp - fn
    return fp, fn, j, fp + j * RATES[None, :]


@pytest.mark.parametrize("fix", FIXES)
@pytest.mark.parametrize("baseline", BASELINES)
def test_scale_without_std(fix, baseline, grid):
    _, fn, j, q = grid
    make, clean = BASELINES[baseline]
    factor = np.broadcast_to(factor_of(fix, j, fn), q.shape)
    expected = np.stack([clean(n) * factor for n in SIZES])
    measured = gaps(chained(FIXES[fix](), make()))
    np.testing.assert_allclose(measured, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fix", FIXES)
@pytest.mark.parametrize("ddof", [0, 1])
def test_scale_with_std_is_the_noisy_one_after_any_reward_correction(fix, ddof, grid):
    _, _, j, q = grid
    measured = gaps(chained(FIXES[fix](), advantage.grpo(ddof=ddof)))
    expected = np.stack([noisy_std_gap(n, q, j, ddof) for n in SIZES])
    np.testing.assert_allclose(measured, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("power", [-1.0, 0.0, 1.0])
def test_scale_of_the_corrected_normalisation(power, grid):
    fp, _, j, q = grid
    fp, j = np.broadcast_to(fp, q.shape), np.broadcast_to(j, q.shape)
    measured = gaps(correction.corrected_group_normalization(power=power))
    expected = np.stack([corrected_std_gap(n, q, j, fp, power) for n in SIZES])
    np.testing.assert_allclose(measured, expected, rtol=1e-5, atol=1e-6)
    without_std = gaps(correction.corrected_group_normalization(power=power, scale="none"))
    expected = np.stack([(1 - 1 / n) * j ** (1 + power) for n in SIZES])
    np.testing.assert_allclose(without_std, expected, rtol=1e-5, atol=1e-6)


EXACT = {
    "mean and std": (advantage.grpo(), clean_gap),
    "leave one out": (advantage.rloo(), lambda n, p: np.ones_like(p)),
    "pass@2": (advantage.pass_at_k(2), lambda n, p: 2 * (1 - p) * (n > 2)),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_correction_has_the_clean_scale(name, grid):
    """Where J is small the table's entries are large and cancel: the sum's own rounding."""
    _, _, j, q = grid
    estimator, clean = EXACT[name]
    sizes = np.arange(2, 9)
    measured = np.asarray(gaps(exact_group_correction(estimator), width=8), float)
    expected = np.stack([np.broadcast_to(clean(n, RATES), q.shape) for n in sizes])
    solid = np.broadcast_to(j >= 0.5, expected.shape)
    np.testing.assert_allclose(measured[solid], expected[solid], rtol=1e-5, atol=1e-5)
    largest = j ** -(sizes[:, None, None] - 1.0)  # of an inverse channel applied to the others
    assert np.all(np.abs(measured - expected) < 1e-6 * largest + 1e-5 * expected)


def plain_table(n, corrected):
    """Tables of backward + Dr. GRPO and of corrected GRPO at rates .1 and .2."""
    own, ones = np.meshgrid([0, 1], np.arange(n), indexing="ij")
    m = (own + ones) / n
    recovered = (m - 0.1) / 0.7
    std = np.sqrt(np.maximum(recovered * (1 - recovered), (1 / n) * (1 - 1 / n)))
    return (own - m) / 0.7 / np.where(corrected, std, 1.0)


@pytest.mark.parametrize("corrected", [False, True])
def test_a_group_with_missing_rewards_is_a_smaller_group(corrected):
    transform = chained(correction.backward(), advantage.dr_grpo())
    if corrected:
        transform = correction.corrected_group_normalization()
    rates = binary(0.1, 0.2)
    for n in SIZES:
        padded = np.asarray(enumeration.advantage_table(transform, 16, rates, valid=int(n)))
        expected = plain_table(n, corrected)
        np.testing.assert_allclose(padded[:, :n], expected, rtol=1e-5, atol=2e-6)
        assert np.all(padded[:, n:] == 0)
    for n in (2, 5, 16):
        whole = enumeration.advantage_table(transform, n, rates)
        np.testing.assert_allclose(whole, plain_table(n, corrected), rtol=1e-5, atol=2e-6)


CLEAN_STD = {0.2: [1, 1.6578, 2.1067, 2.3462], 0.5: [1, 1.6160, 1.8557, 1.9341],
             0.9: [1, 1.6903, 2.3277, 2.8478]}
NOISY_STD = {0.2: [0.7, 1.1532, 1.4286, 1.5566], 0.5: [0.7, 1.1320, 1.3035, 1.3601],
             0.9: [0.7, 1.1484, 1.3992, 1.5059]}
CORRECTED_STD = {0.2: [1.0, 1.6531, 2.0877, 2.4376], 0.5: [1.0, 1.6249, 1.9562, 2.0205],
                 0.9: [1.0, 1.6467, 2.2778, 2.9409]}


def test_the_table_of_what_survives():
    """The table of arXiv 2510.18924's card: rates .1 and .2, G = 2, 4, 8, 16."""
    rates, sizes = tuple(CLEAN_STD), (2, 4, 8, 16)
    table = enumeration.survival_table(binary(0.1, 0.2), jnp.asarray(rates), sizes)
    ones = np.ones((3, 4))
    mean = ones * [0.5, 0.75, 0.875, 0.9375]
    std = [np.array([column[p] for p in rates]) for column in (CLEAN_STD, NOISY_STD, CORRECTED_STD)]
    expected = {
        "none": (ones, 0.7 * ones, 0.7 * ones, ones, ones),
        "leave-one-out": (ones, 0.7 * ones, 0.7 * ones, ones, ones),
        "group mean": (mean, 0.7 * mean, 0.7 * mean, mean, mean),
        "mean and std": (std[0], std[1], std[1], std[1], std[2]),
    }
    assert set(table) == set(expected)
    for name, columns in expected.items():
        for measured, column in zip(table[name], columns):
            np.testing.assert_allclose(measured, column, atol=6e-5)


def test_large_groups_shrink_by_the_reliability():
    p = jnp.asarray([0.2, 0.5, 0.9])
    kappa = channels.reliability(p, binary(0.1, 0.2))
    np.testing.assert_allclose(kappa, [0.6556, 0.7035, 0.4730], atol=5e-5)
    clean, noisy = (
        np.asarray(enumeration.class_gap(advantage.grpo(), p, 256, channel))
        for channel in (binary(0.0, 0.0), binary(0.1, 0.2))
    )
    np.testing.assert_allclose(clean, 1 / np.sqrt(np.asarray(p * (1 - p))), rtol=0.02)
    np.testing.assert_allclose(noisy / clean, kappa, rtol=0.02)


def test_the_floor_keeps_the_scale_near_the_clean_one():
    p, sizes = jnp.asarray([0.05, 0.2, 0.5, 0.8, 0.95]), jnp.asarray([2, 4, 8, 16])

    def gap(transform, *pairs):
        one = lambda pair, n: enumeration.class_gap(transform, p, 16, binary(*pair), valid=n)
        over_pairs = jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))
        return np.asarray(jax.jit(over_pairs)(jnp.asarray(pairs), sizes))

    clean = gap(advantage.grpo(), (0.0, 0.0))
    floor = correction.corrected_group_normalization()
    zero = correction.corrected_group_normalization(on_negative="zero", floor=1e-6)
    for transform, low, high, digits in ((floor, 0.910, 1.118, 5e-4), (zero, 0.52, 1.37, 5e-3)):
        ratio = gap(transform, (0.1, 0.2), (0.2, 0.2), (0.3, 0.1)) / clean
        np.testing.assert_allclose([ratio.min(), ratio.max()], [low, high], atol=digits)


def test_without_a_floor_the_scale_explodes():
    tiny = correction.corrected_group_normalization(floor=1e-6)
    gap = enumeration.class_gap(tiny, jnp.asarray(0.05), 4, binary(0.3, 0.1))
    np.testing.assert_allclose(gap, 337.6, atol=0.05)


@pytest.mark.parametrize(("power", "loudness"), [(-1.0, 1.196), (0.0, 0.570), (1.0, 0.143)])
def test_prompts_that_never_succeed_look_alive(power, loudness):
    """p = 0, false positives .1, G = 8: mean squared advantage, all of it noise."""
    k, weight = ones_of_group(7, 0.1)
    table = np.asarray(
        enumeration.advantage_table(
            correction.corrected_group_normalization(power=power), 8, binary(0.1, 0.2)
        ), float,
    )
    second = weight @ (0.1 * table[1] ** 2 + 0.9 * table[0] ** 2)
    np.testing.assert_allclose(second, loudness, atol=6e-4)
    _, of_group = ones_of_group(8, 0.1)
    np.testing.assert_allclose(1 - of_group[0] - of_group[8], 0.57, atol=5e-3)


def test_wrong_rates_rescale_without_std_and_bend_with_it():
    true, wrong = binary(0.3, 0.1), binary(0.35, 0.1)
    p = jnp.asarray([0.5, 0.1])
    perfect = binary(0.0, 0.0)

    def ratio(fix, plain):
        gap = enumeration.class_gap(fix, p, 8, true, rates=wrong)
        return gap / enumeration.class_gap(plain, p, 8, perfect)

    dr_grpo = advantage.dr_grpo()
    np.testing.assert_allclose(
        ratio(chained(correction.backward(), dr_grpo), dr_grpo), 1.0909, atol=5e-5
    )
    grpo = correction.corrected_group_normalization()
    np.testing.assert_allclose(ratio(grpo, advantage.grpo()), [1.206, 1.111], atol=5e-4)


def gradient_signal_to_noise(table, p, fp, fn, n):
    """Mean over standard deviation of one group's gradient along the only direction."""
    table, moments = np.asarray(table, float), np.zeros(2)
    for true, hits, false in itertools.product(range(n + 1), repeat=3):
        if hits > true or false > n - true:
            continue
        probability = (
            math.comb(n, true) * p**true * (1 - p) ** (n - true)
            * math.comb(true, hits) * (1 - fn) ** hits * fn ** (true - hits)
            * math.comb(n - true, false) * fp**false * (1 - fp) ** (n - true - false)
        )
        ones = hits + false
        one = table[1, ones - 1] if ones else 0.0
        zero = table[0, ones] if ones < n else 0.0
        gradient = (1 - p) * (hits * one + (true - hits) * zero) / n
        gradient -= p * (false * one + (n - true - false) * zero) / n
        moments += probability * np.array([gradient, gradient**2])
    return moments[0] / np.sqrt(moments[1] - moments[0] ** 2)


def test_exactness_costs_variance():
    exact = exact_group_correction(advantage.grpo(), max_group_size=16)
    for transform, expected in (
        (exact, 0.703), (correction.corrected_group_normalization(), 1.096),
    ):
        table = enumeration.advantage_table(transform, 16, binary(0.2, 0.2))
        np.testing.assert_allclose(
            gradient_signal_to_noise(table, 0.9, 0.2, 0.2, 16), expected, atol=6e-4
        )


# Expected gradients of a softmax bandit


LOGITS = np.array([0.5, -0.2, 0.1, 0.0])
TRUE = np.array([0.0, 1.0, 0.0, 1.0])
CLEAN_GRADIENT = np.array([-0.143412, 0.107834, -0.096132, 0.131709])


def gradient(transform, n, channel, rates=None, logits=LOGITS, true=TRUE, valid=None):
    return enumeration.expected_gradient(
        jnp.asarray(logits, jnp.float32), jnp.asarray(true, jnp.float32), transform, n, channel,
        rates, valid=valid,
    )


def test_the_gradient_of_the_noisy_verifier():
    noisy, perfect = binary(0.1, 0.2), binary(0.0, 0.0)
    direct, rloo = advantage.direct(), advantage.rloo()
    for transform, channel, factor in (
        (direct, perfect, 1.0),
        (direct, noisy, 0.7),
        (rloo, noisy, 0.7),
        (chained(correction.forward(), direct), noisy, 0.7),
        (chained(correction.forward(scale="determinant"), direct), noisy, 1.0),
        (chained(correction.backward(), rloo), noisy, 1.0),
        (advantage.dr_grpo(), noisy, 0.6125),
    ):
        measured = gradient(transform, 8, channel)
        np.testing.assert_allclose(measured, factor * CLEAN_GRADIENT, atol=1e-6)


def gradient_cases():
    """Transforms and the `D` of each, from group size, q, J, fp, p."""
    return {
        "noisy, leave one out": (advantage.rloo(), lambda n, q, j, fp: j),
        "forward, direct": (
            chained(correction.forward(), advantage.direct()), lambda n, q, j, fp: j
        ),
        "backward, leave one out": (
            chained(correction.backward(), advantage.rloo()), lambda n, q, j, fp: j / j
        ),
        "backward, mean": (
            chained(correction.backward(), advantage.dr_grpo()),
            lambda n, q, j, fp: (1 - 1 / n) * j / j,
        ),
        "backward, mean and std": (
            chained(correction.backward(), advantage.grpo()),
            lambda n, q, j, fp: noisy_std_gap(n, q, j),
        ),
        "corrected, mean and std": (
            correction.corrected_group_normalization(),
            lambda n, q, j, fp: corrected_std_gap(n, q, j, fp, -1.0),
        ),
    }


@pytest.mark.parametrize("name", gradient_cases())
def test_direction_and_scale_of_the_gradient(name):
    """Every pair of rates, groups of 2 to 16: `D(p) grad p`."""
    transform, scale = gradient_cases()[name]
    logits, true = np.array([0.3, -1.2, 0.7]), np.array([1.0, 0.0, 0.0])
    policy = np.exp(logits) / np.exp(logits).sum()
    p = policy @ true
    fp, fn = PAIRS.T
    j = 1 - fp - fn
    expected = np.stack([
        scale(n, fp + j * p, j, fp)[:, None] * policy * (true - p) for n in SIZES
    ])

    def one(n, pair):
        return gradient(transform, 16, binary(*pair), logits=logits, true=true, valid=n)

    over_pairs = jax.vmap(one, in_axes=(None, 0))
    measured = jax.jit(jax.vmap(over_pairs, in_axes=(0, None)))(
        jnp.asarray(SIZES, jnp.int32), jnp.asarray(PAIRS, jnp.float32)
    )
    np.testing.assert_allclose(measured, expected, rtol=1e-5, atol=1e-6)


def listed_gradient(transform, n, accept, logits, rates):
    """`E[mean_i A_i grad log pi(a_i)]` over every group of (action, observed bit)."""
    policy = np.exp(logits) / np.exp(logits).sum()
    pairs = list(itertools.product(range(len(logits)), (0, 1)))
    chance = np.array([policy[a] * (accept[a] if o else 1 - accept[a]) for a, o in pairs])
    index = np.array(list(itertools.product(range(len(pairs)), repeat=n)))
    actions, seen = np.array(pairs)[index].transpose(2, 0, 1)
    signal = make_signal(jnp.asarray(seen, jnp.float32)).replace(rates=rates)
    after, _ = jax.jit(transform.update)(jax.random.key(0), signal, ())
    advantages = np.asarray(after.advantages)
    scores = np.eye(len(logits))[actions] - policy
    return np.einsum("g,gn,gnv->v", chance[index].prod(axis=1), advantages / n, scores)


@pytest.mark.parametrize(
    "transform",
    [
        advantage.grpo(),
        advantage.pass_at_k(2),
        correction.corrected_group_normalization(),
        exact_group_correction(advantage.grpo()),
    ],
)
def test_counting_ones_equals_listing_every_group(transform):
    """Also with a channel per action, where a wrong one is accepted more often."""
    logits, true = np.array([0.4, -0.3, 0.0]), np.array([0.0, 1.0, 0.0])
    believed = binary(0.1, 0.2)
    per_action = binary(np.array([0.05, 0.1, 0.6]), np.array([0.2, 0.2, 0.2]))
    fp, fn = (np.asarray(x, float) for x in (per_action.false_positive, per_action.false_negative))
    for channel, accept in (
        (believed, 0.1 + 0.7 * true), (per_action, np.where(true == 1, 1 - fn, fp)),
    ):
        measured = gradient(transform, 4, channel, believed, logits, true)
        expected = listed_gradient(transform, 4, accept, logits, believed)
        np.testing.assert_allclose(measured, expected, atol=2e-6)


def test_one_pair_of_rates_is_a_change_of_step_size_and_kl():
    """Corrected at (lr, beta) is uncorrected at (lr / J, beta J), gradient by gradient."""
    learning_rate, beta, j = 0.3, 0.5, 0.7
    policy = np.exp(LOGITS) / np.exp(LOGITS).sum()
    penalty = np.log(policy) + np.log(4.0)
    kl = policy * (penalty - np.sum(policy * penalty))
    noisy = binary(0.1, 0.2)
    corrected = np.asarray(gradient(chained(correction.backward(), advantage.dr_grpo()), 8, noisy))
    plain = np.asarray(gradient(advantage.dr_grpo(), 8, noisy))
    np.testing.assert_allclose(
        learning_rate * (corrected - beta * kl),
        learning_rate / j * (plain - beta * j * kl),
        rtol=1e-5,
        atol=1e-7,
    )


def test_success_rates_in_double_precision():
    with jax.enable_x64(True):
        p = jnp.asarray([0.3, 0.6], jnp.float64)
        channel = Channel(binary(0.1, 0.2).matrix.astype(jnp.float64))
        gap = enumeration.class_gap(
            advantage.direct(), p, 8, channel, rates=binary(0.1, 0.2)
        )
        assert gap.dtype == jnp.float64
        fp, fn = (float(x) for x in (channel.false_positive, channel.false_negative))
        np.testing.assert_allclose(gap, [1 - fp - fn] * 2, rtol=1e-12)


def test_bad_input():
    with pytest.raises(ValueError, match="rates = None with a channel per action"):
        gradient(advantage.rloo(), 4, binary(np.full(4, 0.1), np.full(4, 0.2)))
    with pytest.raises(ValueError, match="cannot be corrected"):
        enumeration.class_gap(
            chained(correction.backward(), advantage.rloo()), jnp.asarray(0.5), 4, binary(0.5, 0.5)
        )
