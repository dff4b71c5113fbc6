"""Low-probability regularization: what is rare but sensible is not erased (arXiv 2510.03222).

A filtered copy of a policy, the proxy, drops the tokens below a threshold and renormalises the
others. Tokens that are rare, about to be punished and kept by the proxy are pulled towards it.

If proxy and policy have the same parameters the divergence is `-log kept_mass` and its gradient
only moves the dropped tail onto the kept tokens, so a fresh proxy on policy does almost
nothing; a lagged one (the policy that sampled, over several updates, or older) protects.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreward import masked
from jaxreward.checks import Number, check_choice, check_number
from jaxreward.kernels.linear_log_prob import rows

FORMS, SELECTIONS = ("full_kl", "k3_token"), ("paper", "code")

K3_LIMIT = 10.0
"""Where the released code clamps the sampled divergence, and with it its gradient."""


class Proxy(NamedTuple):
    """A filtered, renormalised distribution.

    Attributes:
      log_probs: float32, -inf where dropped.
      kept_mass: float32, probability of what is kept, before renormalisation.
    """

    log_probs: Float[Array, "*batch V"]
    kept_mass: Float[Array, "*batch"]


def filtered_proxy(
    log_probs: Float[Array, "*batch V"], *, min_p: Number = 0.02, threshold: Number | None = None
) -> Proxy:
    """Keeps the tokens at or above a threshold, the most probable one always; no gradient.

    Args:
      log_probs: normalised, at temperature 1.
      min_p: the threshold is this share of the largest probability.
      threshold: a fixed one in its place.
    """
    log_probs = jax.lax.stop_gradient(log_probs)
    top = jnp.max(log_probs, axis=-1, keepdims=True)
    least = top + jnp.log(jnp.asarray(min_p, jnp.float32))
    if threshold is not None:
        least = jnp.log(jnp.asarray(threshold, jnp.float32)) + jnp.zeros_like(top)
    # Equality keeps, to a rounding error; so the most probable token is always kept.
    kept = (log_probs >= least - 1e-6) | (log_probs == top)
    mass = jnp.sum(jnp.where(kept, jnp.exp(log_probs), 0.0), axis=-1)
    return Proxy(jnp.where(kept, log_probs - jnp.log(mass)[..., None], -jnp.inf), mass)


class ProxyScores(NamedTuple):
    """What the penalty needs of each decision.

    Attributes:
      log_prob: of the taken token under the proxy, -inf where it is dropped; no gradient.
      divergence: KL(proxy || policy) in nats, with the policy's gradient.
      kept_mass: see `Proxy`.
    """

    log_prob: Float[Array, "*batch"]
    divergence: Float[Array, "*batch"]
    kept_mass: Float[Array, "*batch"]


def proxy_scores(
    log_probs: Float[Array, "*batch V"], proxy: Proxy, taken: Int[Array, "*batch"]
) -> ProxyScores:
    """Scores from whole distributions.

    Args:
      log_probs: of the policy, normalised.
      proxy: from `filtered_proxy`.
      taken: the sampled tokens.
    """
    kept = jnp.isfinite(proxy.log_probs)
    target = jnp.where(kept, proxy.log_probs, 0.0)  # dropped tokens never enter: no 0 * -inf
    terms = jnp.where(kept, jnp.exp(target) * (target - log_probs), 0.0)
    own = jnp.take_along_axis(proxy.log_probs, taken[..., None], axis=-1)[..., 0]
    return ProxyScores(own, jnp.sum(terms, axis=-1), proxy.kept_mass)


def linear_proxy_scores(
    hidden: Float[Array, "N D"],
    weight: Float[Array, "D V"],
    proxy_hidden: Float[Array, "N D"],
    proxy_weight: Float[Array, "D V"],
    taken: Int[Array, "N"],
    *,
    min_p: Number = 0.02,
    threshold: Number | None = None,
    block_rows: int = 256,
) -> ProxyScores:
    """`proxy_scores` of two linear heads, without ever holding `[N, V]`.

    Blocks of rows are scored one after the other and again in the backward pass, so that one
    block of logits of each head is held at a time.

    Args:
      hidden: of the policy.
      weight: its head.
      proxy_hidden: of the policy that is filtered; no gradient.
      proxy_weight: its head; no gradient.
      taken: the sampled tokens; -1 gives log_prob -inf and divergence 0.
      min_p: see `filtered_proxy`.
      threshold: likewise.
      block_rows: rows of a block.

    Raises:
      ValueError: `block_rows` < 1.
    """
    if block_rows < 1:
        raise ValueError(f"block_rows = {block_rows}; allowed is >= 1")
    count = hidden.shape[0]
    block_rows = min(block_rows, count)
    proxy_hidden, proxy_weight = jax.lax.stop_gradient((proxy_hidden, proxy_weight))

    @jax.checkpoint
    def score(block):
        own, other, targets = block
        proxy = filtered_proxy(_log_probs(other, proxy_weight), min_p=min_p, threshold=threshold)
        found = proxy_scores(_log_probs(own, weight), proxy, jnp.maximum(targets, 0))
        valid = targets >= 0
        return ProxyScores(
            jnp.where(valid, found.log_prob, -jnp.inf),
            jnp.where(valid, found.divergence, 0.0),
            jnp.where(valid, found.kept_mass, 1.0),
        )

    blocks = (
        rows.pad(hidden, block_rows),
        rows.pad(proxy_hidden, block_rows),
        rows.pad(taken, block_rows, -1),
    )
    _, found = jax.lax.scan(lambda _, block: ((), score(block)), (), blocks)
    return jax.tree.map(lambda leaf: leaf.reshape(-1)[:count], found)


def _log_probs(hidden: Array, weight: Array) -> Array:
    precision = jax.lax.Precision.HIGHEST if hidden.dtype == jnp.float32 else None
    logits = jnp.dot(
        hidden, weight.astype(hidden.dtype), precision=precision,
        preferred_element_type=jnp.float32,
    )  # fmt: skip
    return jax.nn.log_softmax(logits, axis=-1)


def rare_decisions(
    log_probs: Float[Array, "P G S"],
    proxy_log_probs: Float[Array, "P G S"],
    advantages: Float[Array, "P G S"],
    mask: Bool[Array, "P G S"],
    *,
    share: float = 0.01,
    select: str = "paper",
) -> Bool[Array, "P G S"]:
    """Which decisions are protected.

    "paper": less probable than the `share` quantile of all decisions, punished, and kept by the
    proxy. "code": the `share` least probable of the punished ones (none if that is fewer than
    two), of which those whose probability is below the proxy's.

    Args:
      log_probs: of the decisions under the policy.
      proxy_log_probs: under the proxy, -inf where dropped.
      advantages: of the decisions.
      mask: True where a decision counts.
      share: in (0, 1].
      select: one of `SELECTIONS`.

    Raises:
      ValueError: an unknown `select`, or a share out of range.
    """
    check_choice("select", select, SELECTIONS)
    check_number("share", share, lambda value: 0 < value <= 1, "in (0, 1]")
    punished = mask & (advantages < 0)
    if select == "paper":
        least = _quantile(log_probs, mask, share)
        return punished & (log_probs < least) & jnp.isfinite(proxy_log_probs)
    count = jnp.floor(share * jnp.sum(punished, dtype=jnp.int32).astype(jnp.float32))
    flat = jnp.where(punished, log_probs, jnp.inf).reshape(-1)
    rank = jnp.argsort(jnp.argsort(flat)).reshape(log_probs.shape)
    lowest = punished & (rank.astype(jnp.float32) < count) & (count > 1)
    return lowest & (log_probs < proxy_log_probs)


def _quantile(values: Array, mask: Array, share: float) -> Array:
    """The `share` quantile of what is under the mask, interpolated; -inf for nothing."""
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf).reshape(-1))
    number = jnp.sum(mask, dtype=jnp.int32)
    place = share * jnp.maximum(number - 1, 0).astype(jnp.float32)
    low = jnp.floor(place).astype(jnp.int32)
    high = jnp.minimum(low + 1, jnp.maximum(number - 1, 0))
    part = place - low.astype(jnp.float32)
    between = ordered[low] + part * jnp.where(high > low, ordered[high] - ordered[low], 0.0)
    return jnp.where(number > 0, between, -jnp.inf)


def low_probability_loss(
    log_probs: Float[Array, "P G S"],
    old_log_probs: Float[Array, "P G S"],
    advantages: Float[Array, "P G S"],
    mask: Bool[Array, "P G S"],
    scores: ProxyScores,
    *,
    coefficient: Number = 1.0,
    share: float = 0.01,
    select: str = "paper",
    form: str = "full_kl",
    ratio_limit: float = 10.0,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The Lp-Reg objective: a policy gradient whose ratio is bounded above only, and the pull.

    "full_kl" is the paper's: minus `clip(ratio, 0, limit) A`, plus `coefficient` times
    KL(proxy || policy) on the protected decisions. "k3_token" is its released code's: the
    larger of the clipped and the unclipped loss (no bound where the advantage is negative); a
    protected decision has `-ratio A + coefficient min(e^d - d - 1, 10)` instead, with d its
    log-prob under the proxy minus the policy's. The average is over all decisions.

    Args:
      log_probs: of the decisions, with gradient.
      old_log_probs: under the policy that sampled.
      advantages: of the decisions.
      mask: True where a decision counts.
      scores: of the decisions, from `proxy_scores`.
      coefficient: of the pull, >= 0; may be traced.
      share: see `rare_decisions`.
      select: likewise.
      form: one of `FORMS`.
      ratio_limit: > 0.

    Metrics `low_probability/protected` (share of the decisions), `low_probability/divergence`
    (mean of the protected) and `low_probability/kept_mass`.

    Raises:
      ValueError: an unknown form or a number out of its range.
    """
    check_choice("form", form, FORMS)
    check_number("coefficient", coefficient, lambda value: value >= 0, ">= 0")
    check_number("ratio_limit", ratio_limit, lambda value: value > 0, "> 0")
    chosen = rare_decisions(
        jax.lax.stop_gradient(log_probs), scores.log_prob, advantages, mask,
        share=share, select=select,
    )  # fmt: skip
    ratio = jnp.exp(jnp.where(mask, log_probs - old_log_probs, 0.0))
    plain, bounded = -ratio * advantages, -jnp.minimum(ratio, ratio_limit) * advantages
    weight = jnp.asarray(coefficient, jnp.float32)
    pull = protective_pull(log_probs, scores, chosen, form)
    if form == "full_kl":
        loss = bounded + weight * pull
    else:
        loss = jnp.where(chosen, plain + weight * pull, jnp.maximum(plain, bounded))
    return masked.mean(loss, mask), protection_metrics(scores, chosen, pull, mask)


def protective_pull(
    log_probs: Float[Array, "P G S"],
    scores: ProxyScores,
    chosen: Bool[Array, "P G S"],
    form: str,
) -> Float[Array, "P G S"]:
    """What draws protected decisions to the proxy, 0 at the others; `form` is one of `FORMS`."""
    if form == "full_kl":
        return jnp.where(chosen, scores.divergence, 0.0)
    target = jax.lax.stop_gradient(scores.log_prob)
    gap = jnp.where(chosen, target, 0.0) - jnp.where(chosen, log_probs, 0.0)
    return jnp.minimum(jnp.exp(gap) - gap - 1.0, K3_LIMIT)


def protection_metrics(
    scores: ProxyScores, chosen: Bool[Array, "P G S"], pull: Array, mask: Bool[Array, "P G S"]
) -> dict[str, Array]:
    """The metrics of `low_probability_loss`."""
    stop = jax.lax.stop_gradient
    return {
        "low_probability/protected": masked.mean(chosen.astype(jnp.float32), mask),
        "low_probability/divergence": masked.mean(stop(pull), chosen),
        "low_probability/kept_mass": masked.mean(stop(scores.kept_mass), mask),
    }
