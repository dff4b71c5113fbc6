"""Lp-Reg as a term beside the policy objectives, for policies with a linear last layer."""

from typing import Any, Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxreward import masked
from jaxreward.checks import Number, check_choice, check_number
from jaxreward.losses import low_probability as lp
from jaxreward.losses.policy import average, counted, policy_objective
from jaxreward.types import LinearScores, Policy, Signal


def low_probability_objective(
    policy: Policy,
    *,
    full_kl_coefficient: Number = 0.0,
    k3_coefficient: Number = 0.0,
    share: float = 0.01,
    select: str = "paper",
    min_p: Number = 0.02,
    threshold: Number | None = None,
    rare: Number = 0.1,
    block_rows: int = 256,
    **options: Any,
) -> Callable[[Any, Signal], tuple[Array, dict[str, Array]]]:
    """`losses.policy.policy_objective` and a pull on rare, sensible, punished decisions.

        policy objective + full_kl_coefficient * average(chosen KL(proxy || policy))
                         + k3_coefficient * average(chosen k3(log proxy - log policy))

    See `losses.low_probability` (Lp-Reg, arXiv 2510.03222). The proxy filters the older policy
    that the parameters hold (`policies.lagged`), the policy itself where they hold none. With
    `clip_low=1, clip_high=9` and `k3_coefficient=1` this is the released code's objective, and
    with `full_kl_coefficient=1` the paper's (but for punished decisions whose ratio exceeds 10).
    The proxy is of temperature 1, and so must the policy be. No `[P G S, V]` is ever held.

    Args:
      policy: what is trained; it must offer `linear`.
      full_kl_coefficient: >= 0; may be traced.
      k3_coefficient: >= 0; may be traced.
      share: see `low_probability.rare_decisions`.
      select: likewise.
      min_p: see `low_probability.filtered_proxy`.
      threshold: likewise.
      rare: in (0, 1], below which a kept decision counts as rare in `low_probability/survival`.
      block_rows: see `low_probability.linear_proxy_scores`.
      **options: of `policy_objective`.

    Metrics: those of `policy_objective` and of `low_probability_loss` (its divergence is the KL),
    and `low_probability/survival`, the share of sampled decisions that are rare and kept.

    Raises:
      ValueError: a number out of its range, an unknown choice, or a policy without `linear`.
    """
    for name, value in (
        ("full_kl_coefficient", full_kl_coefficient),
        ("k3_coefficient", k3_coefficient),
    ):
        check_number(name, value, lambda x: x >= 0, ">= 0")
    check_number("rare", rare, lambda x: (x > 0) & (x <= 1), "(0, 1]")
    check_choice("select", select, lp.SELECTIONS)
    if policy.linear is None:
        raise ValueError("policy.linear is None; allowed are policies with a linear last layer")
    policy_objective(policy, **options)  # refuses what it cannot take before anything is traced
    averaging = {name: options[name] for name in ("normalize", "max_length") if name in options}
    blocked = dict(min_p=min_p, threshold=threshold, block_rows=block_rows)

    def loss_fn(params: Any, signal: Signal) -> tuple[Array, dict[str, Array]]:
        # scored once: each call would be a backward pass of its own
        own_scores = policy.log_prob(params, signal.trajectories)
        scored = policy._replace(log_prob=lambda *_: own_scores)
        value, metrics = policy_objective(scored, **options)(params, signal)
        older = params if policy.lagged is None else policy.lagged(params)
        own = policy.linear(params, signal.trajectories)
        other = policy.linear(jax.lax.stop_gradient(older), signal.trajectories)
        scores = _scores(own, other, blocked)
        mask, log_probs = counted(signal), own_scores.log_probs
        chosen = lp.rare_decisions(
            jax.lax.stop_gradient(log_probs), scores.log_prob, _by_decision(signal), mask,
            share=share, select=select,
        )  # fmt: skip
        term = lambda form: average(
            lp.protective_pull(log_probs, scores, chosen, form), mask, signal.weights, **averaging
        )[0]
        value += full_kl_coefficient * term("full_kl") + k3_coefficient * term("k3_token")
        alive = (log_probs < jnp.log(rare)) & jnp.isfinite(scores.log_prob)
        metrics |= lp.protection_metrics(scores, chosen, scores.divergence, mask)
        metrics["low_probability/survival"] = masked.mean(alive.astype(jnp.float32), mask)
        return value, metrics

    return loss_fn


def _by_decision(signal: Signal) -> Float[Array, "P G S"]:
    advantages = signal.advantages
    if advantages.ndim == 2:
        advantages = advantages[:, :, None]
    return jnp.broadcast_to(advantages, signal.trajectories.mask.shape)


def _scores(own: LinearScores, other: LinearScores, blocked: dict[str, Any]) -> lp.ProxyScores:
    rows = lambda hidden: hidden.reshape(-1, hidden.shape[-1])
    found = lp.linear_proxy_scores(
        rows(own.hidden), own.head, rows(other.hidden), other.head, own.taken.reshape(-1), **blocked
    )
    return jax.tree.map(lambda leaf: leaf.reshape(own.taken.shape), found)
