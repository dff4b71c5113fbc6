"""Policy-gradient objectives for groups of trajectories.

A loss is put together from independent choices; the methods in use are points of the grid:

    method                          ratio             objective    normalize   clip_low, _high
    REINFORCE                       any               "reinforce"  "constant"  -
    PPO, GRPO (arXiv 2402.03300)    "token"           "clip"       "sequence"  .2, .2
    DAPO, clip-higher (2503.14476)  "token"           "clip"       "token"     .2, .28
    Dr. GRPO (2503.20783)           "token"           "clip"       "constant"  .2, .2
    GSPO (2507.18071)               "sequence"        "clip"       "sequence"  3e-4, 4e-4
    GSPO-token (2507.18071)         "sequence_token"  "clip"       "sequence"  3e-4, 4e-4
    CISPO (2506.13585)              "token"           "cispo"      "token"     1 (no floor), > 0
    FIND (2407.19453)               "token"           "clip_always" "token"    .2, .2
    dual clip (1912.09729)          any               "clip" with `dual_clip`

Advantages come from `transforms.advantage`. At the policy that sampled, every choice of
`ratio` and `objective` has the gradient of REINFORCE under the same normalisation.

What counts: a sample whose reward is missing is treated as if it had never been drawn. It
enters no numerator and no denominator, neither of the surrogate nor of the KL and entropy
terms, so its siblings have the gradient that they have in the batch without it. Only
"constant" divides by the full size of the batch whatever is missing; there a sibling's
gradient does not even depend on how many are. A weight `w` makes a sample count `w` times,
in numerator and denominator alike (under "constant" in the numerator only).
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxreward import masked
from jaxreward.checks import Number, check_choice, check_number
from jaxreward.losses.reduction import with_weight
from jaxreward.losses.regularization import KL_ESTIMATORS, kl_estimate
from jaxreward.types import Policy, Signal, StepScores

RATIOS = ("token", "sequence", "sequence_token")
OBJECTIVES = ("clip", "clip_always", "cispo", "reinforce")
NORMALIZATIONS = ("token", "sequence", "constant")
OLD_POLICIES = ("behaviour", "recomputed", "current")
TRUNCATION_LEVELS = ("token", "sequence")


class Surrogate(NamedTuple):
    """The value to be maximised at each decision, and what is reported about it.

    Attributes:
      value: differentiable.
      ratio: the importance ratio in use.
      clipped: True where a clip bounds the ratio.
    """

    value: Float[Array, "P G S"]
    ratio: Float[Array, "P G S"]
    clipped: Bool[Array, "P G S"]


def policy_loss(
    log_probs: Float[Array, "P G S"],
    old_log_probs: Float[Array, "P G S"],
    advantages: Float[Array, "P G *A"],
    mask: Bool[Array, "P G S"],
    *,
    ratio: str = "token",
    objective: str = "clip",
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
    dual_clip: Number | None = None,
    normalize: str = "token",
    max_length: int | None = None,
    behaviour_log_probs: Float[Array, "P G S"] | None = None,
    truncation: Number | None = None,
    truncation_level: str = "token",
    weights: Float[Array, "P G"] | None = None,
) -> tuple[Float[Array, ""], dict[str, jax.Array]]:
    """The loss to minimise, float32, and metrics. The module docstring lists the methods.

    Args:
      log_probs: of the decisions under the policy that learns; the only argument that is
        differentiated.
      old_log_probs: under the policy that the ratio is taken to.
      advantages: `[P, G]`, or `[P, G, S]` by decision.
      mask: True for decisions that count; False for padding and for every decision of a
        sample whose reward is missing. Values under False are never used.
      ratio: "token", `pi(a_t) / old(a_t)`; "sequence", the geometric mean of these over the
        trajectory; "sequence_token", the sequence ratio in value and the token ratio in
        gradient, which is what dense advantages need.
      objective: "clip", the smaller of `r A` and `clip(r, 1 - clip_low, 1 + clip_high) A`;
        "clip_always", the latter alone, so that beyond a bound neither sign of A has a gradient;
        "cispo", `stop_gradient(clip(r, ...)) A log pi`; "reinforce", `A log pi`.
      clip_low: in [0, 1].
      clip_high: >= 0; larger than `clip_low` is "clip-higher".
      dual_clip: > 1, for "clip": a negative advantage counts at most this many times.
      normalize: "token", mean over the batch's decisions; "sequence", mean over trajectories
        of their means over decisions; "constant", sum over `P G max_length`.
      max_length: for "constant"; default `S`.
      behaviour_log_probs: under the policy that sampled, where it is not the old one
        (another engine, another precision, stale weights).
      truncation: > 0; each surrogate is multiplied by `min(old / behaviour, truncation)`
        without gradient (truncated importance sampling, Ionides 2008).
      truncation_level: "token", or "sequence" for the ratio of whole trajectories (the
        product: unbiased but for the truncation, and of high variance).
      weights: >= 0, how often each sample counts; default 1.

    Metrics: `policy/ratio_mean`, `policy/ratio_max`, the size of its logarithm in nats as
    `policy/log_ratio_abs_mean` and `_max`, and `policy/clip_fraction` over decisions
    that count; `policy/dead_groups`, share of the groups with a sample that counts whose
    advantages are all 0; with `truncation`, `policy/truncated_fraction`; `weight/loss` and, for
    each mean NAME of these, `weight/NAME`, the denominators, by which micro-batches are averaged.

    Raises:
      ValueError: an unknown choice, a number out of its range, or one of `truncation` and
        `behaviour_log_probs` without the other.
    """
    _check_surrogate(ratio, objective, clip_low, clip_high, dual_clip)
    _check_average(normalize, max_length)
    _check_truncation(truncation, truncation_level)
    if (truncation is None) != (behaviour_log_probs is None):
        raise ValueError("truncation and behaviour_log_probs belong together; give both or none")
    log_probs, old_log_probs = _selected(mask, log_probs, old_log_probs)
    advantages = _per_decision(advantages, mask)
    ratios = importance_ratio(log_probs, old_log_probs, mask, ratio)
    bounds = (clip_low, clip_high, dual_clip)
    surrogate = _surrogate(objective, log_probs, ratios, advantages, bounds)
    value, metrics = surrogate.value, _ratio_metrics(surrogate, mask)
    if truncation is not None:
        size = _behaviour_ratio(old_log_probs, behaviour_log_probs, mask, truncation_level)
        value = value * jnp.minimum(size, truncation)
        cut = (size > truncation).astype(jnp.float32)
        cut = {"policy/truncated_fraction": masked.mean(cut, mask)}
        metrics.update(with_weight(cut, masked.count(mask)))
    loss, weight = average(-value, mask, weights, normalize=normalize, max_length=max_length)
    return loss, {**metrics, **_dead_groups(advantages, mask), "weight/loss": weight}


def policy_objective(
    policy: Policy,
    *,
    ratio: str = "token",
    objective: str = "clip",
    clip_low: Number = 0.2,
    clip_high: Number = 0.2,
    dual_clip: Number | None = None,
    normalize: str = "token",
    max_length: int | None = None,
    old: str = "behaviour",
    truncation: Number | None = None,
    truncation_level: str = "token",
    kl_coefficient: Number = 0.0,
    kl_estimator: str = "k2",
    entropy_coefficient: Number = 0.0,
) -> Callable[[Any, Signal], tuple[jax.Array, dict[str, jax.Array]]]:
    """The loss of a policy, as `training.step.make_update_step` takes it.

        policy_loss + kl_coefficient * KL estimate - entropy_coefficient * entropy

    all averaged in the same way. Reads `trajectories`, `advantages`, `mask` (a sample counts
    if any of its rewards is there) and `weights` of the signal; `aux["reference_log_probs"]`
    `[P, G, S]` where there is a KL term; `aux["old_log_probs"]` for old "recomputed".

    Args:
      policy: what is trained.
      old: which log-probabilities the ratio is taken to. "behaviour", those recorded while
        sampling; "recomputed", `aux["old_log_probs"]`, the trainer's own from before the
        first update on this rollout; "current", the policy itself, for one update per
        rollout (ratio 1, nothing clipped).
      truncation: as in `policy_loss`, of the old log-probabilities to the recorded ones, so
        for old "recomputed" or "current".
      kl_coefficient: >= 0, may be traced (then the term is always computed).
      kl_estimator: "k1", "k2" or "k3". "k2" has the gradient of `KL(pi || ref)`; "k3", which
        GRPO uses, that of `KL(ref || pi)`; see `losses.regularization`.
      entropy_coefficient: >= 0, may be traced.
      ratio, objective, clip_low, clip_high, dual_clip, normalize, max_length,
        truncation_level: as in `policy_loss`.

    Metrics: those of `policy_loss`; `policy/entropy` and, where there are reference
    log-probabilities, `policy/kl` (k3), means over decisions that count in nats;
    `policy/length`, mean number of decisions of all trajectories.

    Raises:
      ValueError: an unknown choice or a number out of its range; when traced, a signal
        without what the loss needs.
    """
    _check_surrogate(ratio, objective, clip_low, clip_high, dual_clip)
    _check_average(normalize, max_length)
    _check_truncation(truncation, truncation_level)
    _check_terms(old, truncation, kl_coefficient, kl_estimator, entropy_coefficient)
    options = dict(ratio=ratio, objective=objective, clip_low=clip_low, clip_high=clip_high)
    options.update(dual_clip=dual_clip, truncation=truncation, truncation_level=truncation_level)
    averaging = dict(normalize=normalize, max_length=max_length)
    needs_kl = not (isinstance(kl_coefficient, (int, float)) and kl_coefficient == 0)

    def loss_fn(params: Any, signal: Signal) -> tuple[jax.Array, dict[str, jax.Array]]:
        _check_signal(signal, needs_kl, old)
        scores = policy.log_prob(params, signal.trajectories)
        mask, weights = counted(signal), signal.weights
        loss, metrics = policy_loss(
            scores.log_probs,
            _old_log_probs(signal, scores.log_probs, old),
            signal.advantages,
            mask,
            behaviour_log_probs=None if truncation is None else signal.trajectories.log_probs,
            weights=weights,
            **options,
            **averaging,
        )
        if needs_kl:
            reference = signal.aux["reference_log_probs"]
            kl = kl_estimate(scores.log_probs, reference, mask, kl_estimator)
            loss += kl_coefficient * average(kl, mask, weights, **averaging)[0]
        loss -= entropy_coefficient * average(scores.entropies, mask, weights, **averaging)[0]
        return loss, {**metrics, **_policy_metrics(signal, scores, mask)}

    return loss_fn


def counted(signal: Signal) -> Bool[Array, "P G S"]:
    """True for the decisions that a loss counts: taken, and their sample has a reward."""
    scored = signal.mask if signal.mask.ndim == 2 else jnp.any(signal.mask, axis=-1)
    return signal.trajectories.mask & scored[:, :, None]


def importance_ratio(
    log_probs: Float[Array, "P G S"],
    old_log_probs: Float[Array, "P G S"],
    mask: Bool[Array, "P G S"],
    level: str = "token",
) -> Float[Array, "P G S"]:
    """The importance ratio of each decision, 1 where masked; levels as in `policy_loss`."""
    log_probs, old_log_probs = _selected(mask, log_probs, old_log_probs)
    log_ratio = log_probs - old_log_probs
    if level == "token":
        return jnp.exp(log_ratio)
    sequence = jnp.exp(masked.mean(log_ratio, mask, axis=-1, keepdims=True))
    if level == "sequence_token":
        stop = jax.lax.stop_gradient
        sequence = stop(sequence) * jnp.exp(log_probs - stop(log_probs))
    return jnp.where(mask, sequence, 1.0)


def average(
    values: Float[Array, "P G S"],
    mask: Bool[Array, "P G S"],
    weights: Float[Array, "P G"] | None = None,
    *,
    normalize: str = "token",
    max_length: int | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """One number from the values of decisions, and the denominator that it was divided by.

    An average over nothing is 0. Arguments as in `policy_loss`.
    """
    prompts, group, steps = mask.shape
    if normalize == "sequence":
        values = masked.mean(values, mask, axis=-1, keepdims=True)
        mask = jnp.any(mask, axis=-1, keepdims=True)
    weights = jnp.ones((prompts, group), jnp.float32) if weights is None else weights
    weights = jnp.broadcast_to(weights[:, :, None], mask.shape)
    mask = mask & (weights > 0)
    total = masked.sum(jnp.where(mask, values, 0.0) * weights, mask)
    if normalize == "constant":
        count = float(prompts * group * (steps if max_length is None else max_length))
        return total / count, jnp.asarray(count, jnp.float32)
    count = masked.sum(weights, mask)
    return total / jnp.where(count > 0, count, 1.0), count


def _surrogate(
    objective: str, log_probs: Array, ratio: Array, advantages: Array, bounds: tuple
) -> Surrogate:
    low, high, dual_clip = 1.0 - bounds[0], 1.0 + bounds[1], bounds[2]
    positive, negative = advantages > 0, advantages < 0
    if objective == "reinforce":
        return Surrogate(advantages * log_probs, ratio, jnp.zeros_like(positive))
    if objective == "cispo":
        weight = jax.lax.stop_gradient(jnp.clip(ratio, low, high))
        outside = (positive | negative) & ((ratio < low) | (ratio > high))
        return Surrogate(weight * advantages * log_probs, ratio, outside)
    if objective == "clip_always":
        positive = negative = positive | negative
    # By selection: at a ratio exactly on a bound, `minimum` would pass half the gradient.
    too_high, too_low = positive & (ratio > high), negative & (ratio < low)
    bounded = jnp.where(too_high, high, jnp.where(too_low, low, ratio))
    clipped = too_high | too_low
    if dual_clip is not None:
        too_negative = negative & (ratio > dual_clip)
        bounded, clipped = jnp.where(too_negative, dual_clip, bounded), clipped | too_negative
    return Surrogate(bounded * advantages, ratio, clipped)


def _behaviour_ratio(old: Array, behaviour: Array, mask: Array, level: str) -> Array:
    """`old / behaviour` of each decision or, repeated, of its trajectory; no gradient."""
    old, behaviour = _selected(mask, old, behaviour)
    log_ratio = old - behaviour
    if level == "sequence":
        log_ratio = jnp.where(mask, masked.sum(log_ratio, mask, axis=-1, keepdims=True), 0.0)
    return jax.lax.stop_gradient(jnp.exp(log_ratio))


def _selected(mask: Array, *log_probs: Array) -> tuple[Array, ...]:
    """Log-probabilities in float32, 0 under the mask: padding may hold infinities."""
    return tuple(jnp.where(mask, x.astype(jnp.float32), 0.0) for x in log_probs)


def _per_decision(advantages: Array, mask: Array) -> Array:
    if advantages.ndim == 2:
        advantages = advantages[:, :, None]
    return jnp.where(mask, jax.lax.stop_gradient(advantages.astype(jnp.float32)), 0.0)


def _old_log_probs(signal: Signal, log_probs: Array, old: str) -> Array:
    if old == "behaviour":
        return signal.trajectories.log_probs
    if old == "recomputed":
        return signal.aux["old_log_probs"]
    return jax.lax.stop_gradient(log_probs)


def _ratio_metrics(surrogate: Surrogate, mask: Array) -> dict[str, jax.Array]:
    ratio = jax.lax.stop_gradient(surrogate.ratio)
    size = jnp.abs(jnp.log(jnp.where(mask, ratio, 1.0)))
    means = {
        "policy/ratio_mean": masked.mean(ratio, mask),
        "policy/log_ratio_abs_mean": masked.mean(size, mask),
        "policy/clip_fraction": masked.mean(surrogate.clipped.astype(jnp.float32), mask),
    }
    largest = {
        "policy/ratio_max": masked.maximum(ratio, mask),
        "policy/log_ratio_abs_max": masked.maximum(size, mask),
    }
    return {**with_weight(means, masked.count(mask)), **largest}


def _dead_groups(advantages: Array, mask: Array) -> dict[str, jax.Array]:
    dead = jnp.all(advantages == 0, axis=(1, 2)).astype(jnp.float32)
    there = jnp.any(mask, axis=(1, 2))
    return with_weight({"policy/dead_groups": masked.mean(dead, there)}, masked.count(there))


def _policy_metrics(signal: Signal, scores: StepScores, mask: Array) -> dict[str, jax.Array]:
    scores = jax.lax.stop_gradient(scores)
    lengths = signal.trajectories.lengths.astype(jnp.float32)
    of_all = {"policy/length": jnp.mean(lengths)}
    counted = {"policy/entropy": masked.mean(scores.entropies, mask)}
    reference = signal.aux.get("reference_log_probs")
    if reference is not None:
        counted["policy/kl"] = masked.mean(kl_estimate(scores.log_probs, reference, mask), mask)
    return {
        **with_weight(counted, masked.count(mask)),
        **with_weight(of_all, jnp.asarray(lengths.size, jnp.float32)),
    }


def _check_surrogate(ratio: str, objective: str, clip_low, clip_high, dual_clip) -> None:
    check_choice("ratio", ratio, RATIOS)
    check_choice("objective", objective, OBJECTIVES)
    check_number("clip_low", clip_low, lambda x: (x >= 0) & (x <= 1), "[0, 1]")
    check_number("clip_high", clip_high, lambda x: x >= 0, ">= 0")
    check_number("dual_clip", dual_clip, lambda x: x > 1, "> 1")
    if dual_clip is not None and objective != "clip":
        raise ValueError(
            f"dual_clip = {dual_clip} with objective = {objective!r}; allowed is 'clip'"
        )


def _check_average(normalize: str, max_length: int | None) -> None:
    check_choice("normalize", normalize, NORMALIZATIONS)
    if max_length is not None and (normalize != "constant" or max_length < 1):
        raise ValueError(
            f"max_length = {max_length} with normalize = {normalize!r}; allowed is >= 1 with "
            "'constant'"
        )


def _check_truncation(truncation, level: str) -> None:
    check_choice("truncation_level", level, TRUNCATION_LEVELS)
    check_number("truncation", truncation, lambda x: x > 0, "> 0")


def _check_terms(old: str, truncation, kl_coefficient, kl_estimator: str, entropy) -> None:
    check_choice("old", old, OLD_POLICIES)
    check_choice("kl_estimator", kl_estimator, KL_ESTIMATORS)
    for name, value in (("kl_coefficient", kl_coefficient), ("entropy_coefficient", entropy)):
        check_number(name, value, lambda x: (x >= 0) & (x < float("inf")), ">= 0 and finite")
    if truncation is not None and old == "behaviour":
        raise ValueError(
            "truncation with old = 'behaviour' has no effect; allowed are 'recomputed', 'current'"
        )


def _check_signal(signal: Signal, needs_kl: bool, old: str) -> None:
    needs = {"advantages": signal.advantages, "trajectories": signal.trajectories}
    if needs_kl:
        needs["aux['reference_log_probs']"] = signal.aux.get("reference_log_probs")
    if old == "recomputed":
        needs["aux['old_log_probs']"] = signal.aux.get("old_log_probs")
    for name, value in needs.items():
        if value is None:
            raise ValueError(f"signal.{name} is None; the loss needs it, so set it before")
