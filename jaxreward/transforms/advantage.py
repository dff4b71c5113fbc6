"""From rewards to advantages.

`group_relative` holds the estimators in use, told apart by a baseline and a scale:

    estimator                          baseline          scale
    REINFORCE, the coefficient as is   "none"            "none"         direct()
    RLOO (arXiv 2402.14740)            "leave_one_out"   "none"         rloo()
    Dr. GRPO (arXiv 2503.20783)        "mean"            "none"         dr_grpo()
    GRPO (arXiv 2402.03300)            "mean"            "group_std"    grpo()
    GRPO with batch scale              "mean"            "batch_std"

In each: a missing reward has advantage exactly 0 and changes no sibling; a group whose
rewards are all equal, or that has one reward, has advantages exactly 0 (unless there is no
baseline); `signal.weights` enter means and standard deviations, and are not multiplied
into the advantages. Dense rewards `[P, G, S]` are compared position by position.

In expectation a group mean multiplies the gradient by `1 - 1/n`, because the sample is part
of its own baseline; leave-one-out does not.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxreward import masked
from jaxreward.checks import Number, check_choice, check_number
from jaxreward.transforms.base import RewardTransform, Spec, stateless
from jaxreward.transforms.moments import (
    Moments,
    check_group_size,
    moments,
    safe_sqrt,
    sample_weights,
    signal_moments,
)
from jaxreward.types import Signal

BASELINES = ("none", "mean", "leave_one_out")
SCALES = ("none", "group_std", "batch_std", "running_std")


class RunningVariance(NamedTuple):
    """Exponential average of the variance of the batch, with its own weight (no start bias)."""

    variance: Float[Array, ""]
    weight: Float[Array, ""]


def group_relative(
    *,
    baseline: str = "mean",
    scale: str | Number = "none",
    ddof: int = 0,
    epsilon: Number = 0.0,
    decay: Number = 0.99,
    axis_name=None,
) -> RewardTransform:
    """Advantage `(reward - baseline) / (scale + epsilon)`.

    The metric `advantage/dead_groups` is the share of groups whose rewards are all equal.

    Args:
      baseline: "mean" of the group's rewards, "leave_one_out" for the mean of the others,
        "none". Which corrections each of them cancels is in `transforms.correction`.
      scale: "none"; "group_std"; "batch_std", over all rewards of the batch; "running_std",
        the root of an exponential average of the batch's variance, kept in the state; or a
        number > 0, divided by as is. Every standard deviation follows the rewards' units,
        so one that is common to the batch still cancels a correction whose rates are the
        same for all prompts: to compare scales, give both arms the same number.
      ddof: 0 for the population's standard deviation (the default of the cited equations),
        1 for the sample's (what TRL and verl compute).
      epsilon: >= 0, added to a standard deviation. The default 0 is exact: groups without
        spread are 0 by selection, so nothing needs it.
      decay: in [0, 1), of "running_std".
      axis_name: mapped axis that splits the prompts, for statistics of the batch.

    Raises:
      ValueError: unknown baseline or scale, a number out of its range; when traced, a group
        of one sample with a group baseline.
    """
    check_choice("baseline", baseline, BASELINES)
    _check_scale(scale)
    _check_deviation(ddof, epsilon)
    check_number("decay", decay, lambda x: (x >= 0) & (x < 1), "[0, 1)")

    def init():
        zeros = [jnp.zeros((), jnp.float32) for _ in range(2)]  # own buffers: both can be donated
        return RunningVariance(*zeros) if _is(scale, "running_std") else ()

    def update(key, signal, state):
        del key
        check_group_size(signal, baseline)
        group = signal_moments(signal, ddof=ddof)
        if _is(scale, "running_std"):
            state = _update_running(state, signal, ddof, decay, axis_name)
        divisor = _divisor(scale, signal, group, state, ddof, axis_name)
        advantages = _divide(_centred(signal, baseline, group), divisor, signal.mask, epsilon)
        dead = _dead_groups(signal, group, axis_name)
        signal = signal.replace(advantages=advantages)
        return signal.with_metrics(advantage__dead_groups=dead), state

    return RewardTransform(init, update, _spec(baseline, scale))


def grpo(*, ddof: int = 0, epsilon: Number = 0.0, axis_name=None) -> RewardTransform:
    """Group mean and standard deviation (arXiv 2402.03300)."""
    return group_relative(
        baseline="mean", scale="group_std", ddof=ddof, epsilon=epsilon, axis_name=axis_name
    )


def dr_grpo(*, axis_name=None) -> RewardTransform:
    """Group mean without standard deviation (arXiv 2503.20783)."""
    return group_relative(baseline="mean", scale="none", axis_name=axis_name)


def rloo(*, axis_name=None) -> RewardTransform:
    """Mean of the other samples of the group (arXiv 2402.14740)."""
    return group_relative(baseline="leave_one_out", scale="none", axis_name=axis_name)


def direct(scale: str | Number = 1.0, *, axis_name=None) -> RewardTransform:
    """The reward itself, divided by `scale`, as the coefficient (arXiv 2510.00915, step 3)."""
    return group_relative(baseline="none", scale=scale, axis_name=axis_name)


def batch_normalized(
    *, baseline: str = "none", ddof: int = 0, epsilon: Number = 0.0, axis_name=None
) -> RewardTransform:
    """Whitens over the batch, after an optional group baseline.

    With baseline "none" the advantage of REINFORCE++, with "mean" of REINFORCE++-baseline
    (arXiv 2501.03262). A batch without spread has advantages exactly 0.

    Args:
      baseline: as in `group_relative`.
      ddof: as in `group_relative`.
      epsilon: >= 0, added to the standard deviation.
      axis_name: mapped axis that splits the prompts.

    Raises:
      ValueError: unknown baseline, `epsilon` < 0.
    """
    check_choice("baseline", baseline, BASELINES)
    _check_deviation(ddof, epsilon)

    def update(key, signal):
        del key
        check_group_size(signal, baseline)
        group = signal_moments(signal)
        batch = moments(
            _centred(signal, baseline, group),
            signal.mask,
            sample_weights(signal),
            axis=None,
            ddof=ddof,
            axis_name=axis_name,
        )
        advantages = _divide(batch.centred, safe_sqrt(batch.variance), signal.mask, epsilon)
        dead = _dead_groups(signal, group, axis_name)
        return signal.replace(advantages=advantages).with_metrics(advantage__dead_groups=dead)

    spec = _spec(baseline, "none")  # centred rewards, whitened or not, see no shift
    spec = spec._replace(name=f"batch_normalized({baseline})", ignores_common="step")
    return stateless(update, spec)


def pass_at_k(k: int, *, axis_name=None) -> RewardTransform:
    """The unbiased advantage for the best of `k` samples, with a leave-one-out baseline.

    For sample `i` of a group of `n`, with `R(S)` the largest reward in a set `S`:

        A_i = k (mean of R(S) over S of size k with i - the same over S of size k without i)

    Sets without `i` do not depend on it, so `mean_i A_i grad log pi` has expectation
    `grad E[R(S)]`: for rewards in {0, 1} the gradient of pass@k, which is
    `k (1 - p)^(k-1) grad p` at success rate `p`. `k = 1` is RLOO. The estimator without the
    baseline is in arXiv 2505.15201. Weights are not used. The map from rewards is not
    linear: to undo noise use `exact_correction.exact_group_correction(pass_at_k(k))`.

    Args:
      k: number of tries, >= 1. A group with `k` rewards or fewer has advantage 0.
      axis_name: mapped axis that splits the prompts, for the metric.

    Raises:
      ValueError: `k` < 1; when traced, `k` >= group size.
    """
    if k < 1:
        raise ValueError(f"k = {k}; allowed is >= 1")

    def update(key, signal):
        del key
        group_size = signal.rewards.shape[1]
        if k >= group_size:
            raise ValueError(f"k = {k} with group size {group_size}; allowed is < group size")
        group = signal_moments(signal.replace(weights=None))
        columns = jax.vmap(_best_of_k, in_axes=(0, 0, None))
        if signal.rewards.ndim == 3:
            columns = jax.vmap(columns, in_axes=(2, 2, None), out_axes=2)
        advantages = columns(group.centred, signal.mask, k)
        alive = signal.mask & (group.variance > 0)
        dead = _dead_groups(signal, group, axis_name)
        signal = signal.replace(advantages=jnp.where(alive, advantages, 0.0))
        return signal.with_metrics(advantage__dead_groups=dead)

    spec = _spec("leave_one_out", "none")._replace(name=f"pass_at_{k}")
    return stateless(update, spec)


def _best_of_k(
    rewards: Float[Array, "G"], mask: Bool[Array, "G"], k: int
) -> Float[Array, "G"]:
    """`pass_at_k` of one group, by the probability that sample `j` is the best of a set."""
    index = jnp.arange(rewards.shape[0])
    row, column = rewards[:, None], rewards[None, :]
    tie = (row == column) & (index[:, None] > index[None, :])
    valid = mask[:, None] & mask[None, :]
    above = ((row > column) | tie) & valid  # [j, i]: j ranks above i
    rank = jnp.sum(above, axis=1, dtype=jnp.float32)[:, None]  # entries below j
    count = jnp.sum(mask, dtype=jnp.float32)
    same = index[:, None] == index[None, :]
    # Sets without i: j and k - 1 of the entries below j other than i.
    without = _choose_ratio(rank - above.astype(jnp.float32), k - 1, count - 1.0, k)
    # Sets with i: j = i and k - 1 below it, or j above i, i itself and k - 2 others below j.
    own = _choose_ratio(rank, k - 1, count - 1.0, k - 1)
    others = _choose_ratio(rank - 1.0, k - 2, count - 1.0, k - 1)
    with_i = jnp.where(same, own, jnp.where(above, others, 0.0))
    difference = with_i - jnp.where(same, 0.0, without)
    advantages = k * jnp.sum(jnp.where(valid, difference * row, 0.0), axis=0)
    return jnp.where(mask & (count > k), advantages, 0.0)


def _choose_ratio(top: Array, chosen: int, total: Array, of: int) -> Array:
    """`C(top, chosen) / C(total, of)` for real `top`, `total` and `of - chosen` in {0, 1}."""
    if chosen < 0:
        return jnp.zeros_like(top)
    ratio = jnp.ones_like(top)
    for t in range(chosen):
        ratio *= jnp.maximum(top - t, 0.0) / jnp.maximum(total - t, 1.0)
    if of > chosen:
        ratio *= of / jnp.maximum(total - chosen, 1.0)
    return ratio


def audited(
    transform: RewardTransform, control: RewardTransform, *, axis_name=None
) -> RewardTransform:
    """Runs `transform` and records how far its advantages are from those of a control.

    The control is the matched uncorrected arm: same baseline and scale, no correction. Both
    see the same signal and key; only `transform`'s result goes on. A cosine of 1 with a
    mean difference near 0 means that the correction is inert (arXiv 2510.00915, audit).

    Metrics `audit/mean_abs_difference`, `audit/max_abs_difference` and `audit/cosine` (0
    where either is all zero) are over decisions: an outcome advantage counts once per
    decision of its trajectory where the signal has trajectories.

    Args:
      transform: sets advantages.
      control: sets advantages of the same shape.
      axis_name: mapped axis that splits the prompts.

    Raises:
      ValueError: one of them does not set advantages.
    """
    for role, part in (("transform", transform), ("control", control)):
        if "advantages" not in part.spec.writes:
            raise ValueError(f"{role} {part.spec.name} never sets advantages, so none to audit")

    def init():
        return transform.init(), control.init()

    def update(key, signal, state):
        after, own = transform.update(key, signal, state[0])
        matched, other = control.update(key, signal, state[1])
        metrics = _compare(after, matched.advantages, axis_name)
        return after.replace(metrics={**after.metrics, **metrics}), (own, other)

    spec = transform.spec
    spec = spec._replace(
        name=f"audited({spec.name})",
        reads=tuple(dict.fromkeys(spec.reads + control.spec.reads)),
        writes=tuple(dict.fromkeys(spec.writes + ("metrics",))),
    )
    return RewardTransform(init, update, spec)


def _compare(signal: Signal, control: Array, axis_name) -> dict[str, Any]:
    own = signal.advantages
    mask = signal.mask if signal.mask.shape == own.shape else jnp.ones_like(own, bool)
    weights = jnp.ones_like(own)
    if signal.trajectories is not None and own.ndim == 2:
        weights = signal.trajectories.lengths.astype(jnp.float32)
    elif signal.trajectories is not None and own.shape == signal.trajectories.mask.shape:
        mask = signal.trajectories.mask

    def total(values):
        return masked.sum(weights * values, mask, axis_name=axis_name)

    difference = jnp.abs(own - control)
    norms = safe_sqrt(total(jnp.square(own))) * safe_sqrt(total(jnp.square(control)))
    count = total(jnp.ones_like(own))
    return {
        "audit/mean_abs_difference": total(difference) / jnp.where(count > 0, count, 1.0),
        "audit/max_abs_difference": masked.maximum(
            difference, mask & (weights > 0), axis_name=axis_name
        ),
        "audit/cosine": total(own * control) / jnp.where(norms > 0, norms, 1.0),
    }


def _centred(signal: Signal, baseline: str, group: Moments) -> Array:
    if baseline == "none":
        return jnp.where(signal.mask, signal.rewards, 0.0)
    if baseline == "mean":
        return group.centred
    weights = sample_weights(signal)
    others = group.total - (1.0 if weights is None else weights)
    # r_i minus the mean of the others is (r_i - mean) sum(w) / (sum(w) - w_i).
    return jnp.where(others > 0, group.centred * group.total / jnp.where(others > 0, others, 1), 0)


def _divisor(scale, signal: Signal, group: Moments, state, ddof: int, axis_name) -> Array:
    if not isinstance(scale, str):
        return jnp.asarray(scale, jnp.float32)
    if scale == "none":
        return jnp.ones((), jnp.float32)
    if scale == "group_std":
        return safe_sqrt(group.variance)
    if scale == "batch_std":
        return safe_sqrt(signal_moments(signal, None, ddof=ddof, axis_name=axis_name).variance)
    return safe_sqrt(state.variance / jnp.where(state.weight > 0, state.weight, 1.0))


def _update_running(
    state: RunningVariance, signal: Signal, ddof: int, decay, axis_name
) -> RunningVariance:
    batch = signal_moments(signal, None, ddof=ddof, axis_name=axis_name)
    kept = jnp.asarray(decay, jnp.float32)
    seen = jnp.sum(batch.total) > 0
    variance = kept * state.variance + (1.0 - kept) * jnp.sum(batch.variance)
    weight = kept * state.weight + (1.0 - kept)
    return RunningVariance(
        jnp.where(seen, variance, state.variance), jnp.where(seen, weight, state.weight)
    )


def _divide(values: Array, divisor: Array, mask: Array, epsilon) -> Array:
    alive = mask & (divisor > 0)
    return jnp.where(alive, values / (jnp.where(divisor > 0, divisor, 1.0) + epsilon), 0.0)


def _dead_groups(signal: Signal, group: Moments, axis_name) -> Array:
    some = jnp.any(signal.mask, axis=1, keepdims=True)
    dead = (group.variance == 0).astype(jnp.float32)
    return masked.mean(dead, some, axis_name=axis_name)


def _spec(baseline: str, scale) -> Spec:
    invariant = "none" if baseline == "none" else "shift"
    if _is(scale, "batch_std") or _is(scale, "running_std"):
        invariant = "none"
    elif _is(scale, "group_std") and baseline != "none":
        invariant = "affine"
    label = scale if isinstance(scale, str) else "number"
    common = {"batch_std": "step", "running_std": "run"}.get(label, "none")
    return Spec(
        name=f"group_relative({baseline}, {label})",
        role="advantage",
        writes=("advantages", "metrics"),
        invariant_to=invariant,
        ignores_common="none" if baseline == "none" else common,
    )


def _is(scale, name: str) -> bool:
    return isinstance(scale, str) and scale == name


def _check_scale(scale) -> None:
    if isinstance(scale, str) and scale not in SCALES:
        allowed = ", ".join(map(repr, SCALES))
        raise ValueError(f"scale = {scale!r}; allowed are {allowed} or a number > 0")
    check_number("scale", scale, lambda x: x > 0, f"> 0 or one of {', '.join(SCALES)}")


def _check_deviation(ddof: int, epsilon) -> None:
    check_choice("ddof", ddof, (0, 1))
    check_number("epsilon", epsilon, lambda x: (x >= 0) & (x < float("inf")), ">= 0 and finite")
