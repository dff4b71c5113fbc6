"""Undoing a noisy verifier, given its rates.

A true reward `r*` in {0, 1} is observed as `r` with `a = false_positive`,
`b = false_negative` and `J = 1 - a - b`, so `E[r | r*] = a + J r*`. Within one prompt an
advantage that looks only at rewards has expected gradient `D grad p`, where `p` is the
prompt's success rate and `D = E[A | r* = 1] - E[A | r* = 0]`: noise never turns the
direction, it changes the scale `D`. That matters as soon as prompts share parameters and
their `D` shrink differently, or a KL or entropy term is added.

`D`, and what each correction makes of it (groups of `n`, `q = a + J p`, `kappa` the
reliability `J sqrt(p (1-p)) / sqrt(q (1-q))`):

    baseline         clean     noisy     forward      backward  corrected_group_normalization
    none             1         J         J / scale    1         -
    leave-one-out    1         J         J / scale    1         -
    group mean       1 - 1/n   as J      as noisy     as clean  as clean (scale="none")
    mean and std     D(p, n)   smaller   as noisy     as noisy  close to clean ("group_std")

Read as: forward with scale 1 is the noisy reward with a constant baseline, so *any* group
baseline makes it the uncorrected run exactly, whatever happens afterwards (its scale, when
it is not "none", survives a baseline without std). Backward is affine: dividing by a
group's own standard deviation cancels it exactly, rates and all. For large groups noisy
GRPO has `D = kappa D_clean`. `chain` refuses the combinations that cancel. Only
`corrected_group_normalization` and `exact_correction` correct *through* the
normalisation; the second makes `D` exactly the clean one.

With a KL term of coefficient `beta` the noisy optimum is the clean one at `beta / J`;
backward restores it (`evaluation.fixed_point`).

All assume flips that depend on the true reward and on what the rates vary by, nothing
else: a wrong answer that is *always* accepted is not undone by an average rate, and
correcting with one can make things worse.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreward import channel as channels
from jaxreward import masked
from jaxreward.channel import MIN_DETERMINANT, Channel
from jaxreward.checks import Number, check_choice, check_number
from jaxreward.transforms.base import RewardTransform, Spec, stateless
from jaxreward.transforms.moments import (
    Moments,
    check_group_size,
    moments,
    safe_sqrt,
    sample_weights,
)
from jaxreward.types import Signal


def backward(
    *, min_determinant: float = MIN_DETERMINANT, axis_name=None
) -> RewardTransform:
    """Rewards become `(r - false_positive) / J`, unbiased for the true ones.

    arXiv 2510.00915 (PGBC), Natarajan et al. 2013. Affine in the reward: survives no
    baseline, leave-one-out and a group mean; a group's standard deviation cancels it, and
    that of a batch where one pair of rates holds for all of it.

    Args:
      min_determinant: in (0, 1], smallest J divided by. Rates known outside `jit` with a
        smaller J raise; traced ones are floored and counted in `correction/floored`, the
        share of rewards whose J was too small.
      axis_name: mapped axis that splits the prompts, for the metric.

    Raises:
      ValueError: `min_determinant` outside (0, 1]; concrete rates that cannot be corrected.
    """
    check_knobs(min_determinant)

    def update(key, signal):
        del key
        rates, floored = usable_rates(signal, min_determinant, axis_name)
        rewards = channels.correct(signal.rewards, rates, min_determinant=min_determinant)
        signal = signal.replace(rewards=jnp.where(signal.mask, rewards, 0.0))
        return signal.with_metrics(correction__floored=floored)

    return stateless(update, _reward_spec("backward", "affine"))


def forward(
    *,
    scale: str = "none",
    as_released: bool = False,
    min_determinant: float = MIN_DETERMINANT,
    axis_name=None,
) -> RewardTransform:
    """Rewards become the weight `(r - (1 - false_negative)) / s` (arXiv 2510.00915, PGFC).

    Its mean is 0 where the true reward is 1 and `-J / s` where it is 0, so used directly
    (`advantage.direct`) the expected gradient is `J / s` of the clean one. It shifts the
    reward by a constant: with `s = 1` it is the noisy reward with another baseline, has the
    noisy expectation, and vanishes under any baseline taken from the group.

    Args:
      scale: `s`: "none" for 1, which needs the false-negative rate only (then tune the KL
        coefficient); "determinant" for J, which restores the clean size; "true_positive"
        for `1 - false_negative`, the same where there are no false positives.
      as_released: the product `r (r - (1 - false_negative))` of the paper's first versions,
        which for binary rewards is `false_negative r`.
      min_determinant: in (0, 1], smallest `s` divided by, and the smallest J at which
        concrete rates are accepted with scale "determinant".
      axis_name: as in `backward`.

    Raises:
      ValueError: unknown `scale`; concrete rates that cannot be corrected.
    """
    check_choice("scale", scale, ("none", "determinant", "true_positive"))
    check_knobs(min_determinant)

    def update(key, signal):
        del key
        if scale == "determinant":
            rates, floored = usable_rates(signal, min_determinant, axis_name)
        else:
            rates, floored = _rates(signal), jnp.zeros((), jnp.float32)
        rates = rates.expand(signal.rewards.ndim)
        true_positive = 1.0 - rates.false_negative
        weight = signal.rewards - true_positive
        weight = signal.rewards * weight if as_released else weight
        size = {"none": 1.0, "determinant": rates.determinant, "true_positive": true_positive}
        weight = weight / jnp.maximum(size[scale], min_determinant if scale != "none" else 1.0)
        signal = signal.replace(rewards=jnp.where(signal.mask, weight, 0.0))
        return signal.with_metrics(correction__floored=floored)

    affine = as_released or scale != "none"
    return stateless(update, _reward_spec("forward", "affine" if affine else "shift"))


def backward_levels(
    values: Float[Array, "M"] | tuple[float, ...],
    *,
    min_determinant: float = MIN_DETERMINANT,
    axis_name=None,
) -> RewardTransform:
    """Rewards with `M` levels become unbiased estimates of the true ones (arXiv 1810.01032).

    Solves `matrix @ estimate = values`. For two levels it is `backward`, and the same
    baselines cancel it; for more it is not affine and nothing cancels it exactly.

    Args:
      values: the `M` >= 2 different rewards; an observed reward counts as the nearest.
      min_determinant: as in `backward`.
      axis_name: likewise.

    Raises:
      ValueError: fewer than two values; concrete rates that cannot be corrected.
    """
    levels = len(values)
    if levels < 2:
        raise ValueError(f"values = {values}; allowed are at least 2 levels")
    check_knobs(min_determinant)
    values = jnp.asarray(values, jnp.float32)

    def update(key, signal):
        del key
        rates, floored = usable_rates(signal, min_determinant, axis_name)
        if rates.levels != levels:
            raise ValueError(f"rates have {rates.levels} levels, values have {levels}")
        level = _nearest(signal.rewards, values)
        rewards = channels.correct_levels(level, rates, values, min_determinant=min_determinant)
        signal = signal.replace(rewards=jnp.where(signal.mask, rewards, 0.0))
        return signal.with_metrics(correction__floored=floored)

    reward_map = "affine" if levels == 2 else "nonlinear"
    return stateless(update, _reward_spec("backward_levels", reward_map))


def corrected_group_normalization(
    *,
    power: Number = -1.0,
    scale: str = "group_std",
    floor: str | Number = "one_success",
    on_negative: str = "floor",
    unbiased_variance: bool = False,
    max_abs: Number | None = None,
    min_determinant: float = MIN_DETERMINANT,
    axis_name=None,
) -> RewardTransform:
    """Group normalisation with the clean mean and standard deviation recovered from noise.

    Advantage = noisy advantage times (the factor by which noise shrinks it) ** `power`. The
    factor is J without standard deviation, and with it the reliability `kappa`, the
    correlation of observed and true reward in the group, recovered from the observed ones:
    with `x = (r - a) / J` and its group mean `m` (the clean mean), the clean variance is

        Z = var(x) - mean[(x b (1-b) + (1-x) a (1-a)) / J^2] = m (1 - m)

    (the bracket is what the channel adds; the identity holds for binary rewards, also where
    rates vary within the group), and `kappa = sqrt(Z / var(x))`.

    `power` -1 is noise-corrected GRPO and Dr. GRPO (arXiv 2510.18924), unbiased without
    standard deviation and consistent with it; 0 is the uncorrected advantage; +1 with
    "group_std" has minimum mean square error and is S-GRPO (arXiv 2508.05928): opposite
    answers to the same noise.

    Where every observed reward of a group is the same (and the rates are) the advantages
    are 0. A prompt that never succeeds still looks alive through false positives, and the
    floor decides how loud its pure noise is: see `correction/variance_floored` and `max_abs`.

    Args:
      power: exponent of the factor.
      scale: "group_std" (GRPO) or "none" (Dr. GRPO).
      floor: smallest Z that is divided by, so used where `power` < 0. "one_success" is
        `(1/n) (1 - 1/n)`, the smallest that a clean group of n with spread can have (with
        weights: if its lightest sample alone succeeds); or a number > 0.
      on_negative: what to do there with a group whose Z is not positive: "floor" it, or
        "zero" for advantages 0. Where `power` > 0 they are 0 in any case.
      unbiased_variance: adds `var(x) / (n - 1)` to Z, whose expectation is then `p (1 - p)`
        exactly; its root, which is used, stays biased.
      max_abs: cap of the absolute advantage, None for no cap.
      min_determinant, axis_name: as in `backward`.

    Metrics: `correction/floored` as in `backward`; `correction/variance_floored`, share of
    the groups with spread whose Z was below the floor.

    Raises:
      ValueError: a parameter out of its range; concrete rates that cannot be corrected;
        when traced, a group of one sample.
    """
    check_choice("scale", scale, ("group_std", "none"))
    check_choice("on_negative", on_negative, ("floor", "zero"))
    if isinstance(floor, str):
        check_choice("floor", floor, ("one_success",))
    check_number("floor", floor, lambda x: x > 0, "'one_success' or > 0")
    check_knobs(min_determinant, max_abs)

    def update(key, signal):
        del key
        check_group_size(signal, "mean")
        rates, floored = usable_rates(signal, min_determinant, axis_name)
        estimate = channels.correct(signal.rewards, rates, min_determinant=min_determinant)
        group = moments(estimate, signal.mask, sample_weights(signal))
        variance = clean_variance(group, unbiased=unbiased_variance)
        low = _variance_floor(signal, group, floor)
        if scale == "none":
            factor = _mean_determinant(rates, signal, min_determinant)
            advantages = group.centred * jnp.power(factor, power + 1.0)
        else:
            advantages = _standardized(group, variance, low, power, on_negative)
        advantages = capped(jnp.where(signal.mask, advantages, 0.0), max_abs)
        below = masked.mean(variance < low, group.variance > 0, axis_name=axis_name)
        signal = signal.replace(advantages=advantages)
        return signal.with_metrics(
            correction__floored=floored, correction__variance_floored=below
        )

    return stateless(update, advantage_spec("corrected_group_normalization"))


def clean_variance(corrected: Moments, *, unbiased: bool = False) -> Float[Array, "..."]:
    """Variance of the true rewards of a group, from moments of the backward-corrected ones.

    `m (1 - m)`, which may be negative. Plus `var / (n - 1)` where `unbiased`: then its
    expectation is `p (1 - p)` exactly.
    """
    variance = corrected.mean * (1.0 - corrected.mean)
    if unbiased:
        variance += corrected.variance / jnp.maximum(corrected.effective - 1.0, 1.0)
    return variance


def _variance_floor(signal: Signal, group: Moments, floor: str | Number) -> Array:
    """`floor`, or the variance of a clean group in which the lightest sample alone succeeds."""
    if not isinstance(floor, str):
        return jnp.full_like(group.variance, floor)
    weights = sample_weights(signal)
    weights = jnp.ones_like(signal.rewards) if weights is None else weights
    lightest = masked.minimum(weights, signal.mask & (weights > 0), axis=1, keepdims=True)
    share = lightest / jnp.where(group.total > 0, group.total, 1.0)
    return share * (1.0 - share)


def _standardized(group: Moments, variance: Array, low: Array, power, on_negative: str) -> Array:
    """The noisy z-score times `kappa ** power`."""
    alive = group.variance > 0
    spread = jnp.where(alive, group.variance, 1.0)
    divides = jnp.asarray(power, jnp.float32) < 0
    kappa = safe_sqrt(jnp.maximum(variance, jnp.where(divides, low, 0.0)) / spread)
    if on_negative == "zero":
        alive &= (variance > 0) | ~divides
    return jnp.where(alive, group.centred / jnp.sqrt(spread) * jnp.power(kappa, power), 0.0)


def capped(advantages: Array, max_abs) -> Array:
    """The advantages with absolute values of at most `max_abs`; None is no cap."""
    return advantages if max_abs is None else jnp.clip(advantages, -max_abs, max_abs)


def _mean_determinant(rates: Channel, signal: Signal, min_determinant) -> Array:
    determinant = jnp.maximum(rates.expand(signal.rewards.ndim).determinant, min_determinant)
    determinant = jnp.broadcast_to(determinant, signal.rewards.shape)
    return moments(determinant, signal.mask, sample_weights(signal)).mean


def _nearest(rewards: Float[Array, "*shape"], values: Float[Array, "M"]) -> Array:
    values = values.reshape((1,) * rewards.ndim + (-1,))
    return jnp.argmin(jnp.abs(rewards[..., None] - values), axis=-1)


def _rates(signal: Signal) -> Channel:
    if signal.rates is None:
        raise ValueError("signal.rates is None; allowed is a channel, set by transforms.rates")
    return signal.rates


def usable_rates(
    signal: Signal, min_determinant: float, axis_name=None
) -> tuple[Channel, Array]:
    """The rates, checked where concrete, and the share of rewards whose J is too small."""
    rates = _rates(signal)
    channels.check_correctable(rates, min_determinant)
    determinant = jnp.abs(rates.determinant) if rates.levels > 2 else rates.determinant
    short = (determinant < min_determinant).astype(jnp.float32)
    short = short.reshape(short.shape + (1,) * (signal.rewards.ndim - short.ndim))
    short = jnp.broadcast_to(short, signal.rewards.shape)
    return rates, masked.mean(short, signal.mask, axis_name=axis_name)


def _reward_spec(name: str, reward_map: str) -> Spec:
    return Spec(
        name, "correction", reads=("rates",), writes=("rewards", "metrics"), reward_map=reward_map
    )


def advantage_spec(name: str) -> Spec:
    """What a correction that sets the advantages itself declares."""
    return Spec(name, "correction", reads=("rates",), writes=("advantages", "metrics"))


def check_knobs(min_determinant: float, max_abs: Number | None = None) -> None:
    """Raises ValueError if the floor of J or the cap of the advantages is out of range."""
    check_number("min_determinant", min_determinant, lambda x: (x > 0) & (x <= 1), "(0, 1]")
    check_number("max_abs", max_abs, lambda x: x > 0, "> 0 or None")
