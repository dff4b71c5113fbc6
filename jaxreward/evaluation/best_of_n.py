"""Best-of-n by a proxy reward, and what it does to the gold one.

From `M` stored samples of a prompt every `n <= M` can be estimated without bias: the best of `n`
drawn without replacement, averaged over all draws. `vmap` over prompts.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jaxreward.checks import Number, check_number


def best_of_n_kl(n: Number | Shaped[Array, "*n"]) -> Float[Array, "*n"]:
    """`ln n - (n - 1) / n`: KL divergence of best-of-n from the policy, in nats, at most.

    Exact where no two samples have the same reward.
    """
    check_number("n", n, lambda x: x >= 1, ">= 1")
    n = jnp.asarray(n, jnp.float32)
    return jnp.log(n) - (n - 1.0) / n


def best_of_n_weights(
    proxy: Float[Array, "M"], n: Number, mask: Bool[Array, "M"] | None = None
) -> Float[Array, "M"]:
    """Probability of each sample to be the one picked of `n` drawn without replacement.

    `C(k - 1, n - 1) / C(M, n)` for the `k`-th lowest of `M` (arXiv 2410.01729); equal scores
    share theirs, as if picked at random.

    Args:
      proxy: the reward that picks; a sample where it is not finite is missing.
      n: >= 1; of more than there are, the best of all is meant. May be traced.
      mask: True where there is a sample; default everywhere.
    """
    check_number("n", n, lambda x: x >= 1, ">= 1")
    mask = jnp.isfinite(proxy) if mask is None else mask & jnp.isfinite(proxy)
    size = jnp.sum(mask)
    ordered = jnp.sort(jnp.where(mask, proxy, jnp.inf))
    below = jnp.searchsorted(ordered, proxy, side="left")
    up_to = jnp.minimum(jnp.searchsorted(ordered, proxy, side="right"), size)
    within = _all_within(proxy.shape[0], size, n)
    shared = jnp.maximum(up_to - below, 1).astype(jnp.float32)
    return jnp.where(mask, (within[up_to] - within[below]) / shared, 0.0)


def _all_within(most: int, size: Array, n: Number) -> Array:
    """Probability that `n` of `size` draws are all among the lowest `k`, for `k` from 0."""
    rank = jnp.arange(1, most + 1, dtype=jnp.float32)
    size = size.astype(jnp.float32)
    n = jnp.minimum(jnp.asarray(n, jnp.float32), size)
    # C(k, n) / C(size, n) is the product of 1 - n / j over j from k + 1 to size.
    counts = (rank > n) & (rank <= size)
    terms = jnp.where(counts, jnp.log1p(-jnp.where(counts, n / rank, 0.0)), 0.0)
    above = jnp.cumsum(terms[::-1])[::-1]
    above = jnp.concatenate([above, jnp.zeros(1)])
    lowest = jnp.arange(most + 1, dtype=jnp.float32)
    return jnp.where((lowest >= n) & (lowest > 0), jnp.exp(above), 0.0)


def best_of_n(
    proxy: Float[Array, "M"],
    values: Float[Array, "M"],
    n: Number,
    mask: Bool[Array, "M"] | None = None,
) -> Float[Array, ""]:
    """Expected value of the sample that `proxy` picks of `n`; see `best_of_n_weights`.

    Args:
      proxy: the reward that picks.
      values: what is averaged: a gold reward, or the proxy itself.
      n: >= 1.
      mask: True where there is a sample; without any the result is 0.
    """
    weights = best_of_n_weights(proxy, n, mask)
    return jnp.sum(weights * jnp.where(weights > 0, values, 0.0))


class OverOptimization(NamedTuple):
    """Summary of a gold reward along growing optimisation of its proxy.

    Attributes:
      collapse: its greatest value less the last; 0 if it never falls.
      peak: index of the greatest.
      alpha: of the fit `gold(d) = gold(0) + d (alpha - beta d)` with `d = sqrt(KL)`, the form
        for best-of-n of arXiv 2210.10760.
      beta: of the fit.
    """

    collapse: Float[Array, ""]
    peak: Shaped[Array, ""]
    alpha: Float[Array, ""]
    beta: Float[Array, ""]


def over_optimization(kl: Float[Array, "N"], gold: Float[Array, "N"]) -> OverOptimization:
    """See `OverOptimization`.

    Args:
      kl: >= 0, from 0 upwards; at least three values.
      gold: the gold reward there.
    """
    root, gain = jnp.sqrt(kl), gold - gold[0]
    # Least squares with the inputs d and -d^2: two equations in two unknowns.
    s2, s3, s4 = jnp.sum(kl), jnp.sum(kl * root), jnp.sum(jnp.square(kl))
    first, second = jnp.sum(root * gain), -jnp.sum(kl * gain)
    whole = s2 * s4 - jnp.square(s3)
    alpha, beta = (s4 * first + s3 * second) / whole, (s3 * first + s2 * second) / whole
    return OverOptimization(jnp.max(gold) - gold[-1], jnp.argmax(gold), alpha, beta)


class UpToKL(NamedTuple):
    """A gold reward along a training, up to one KL divergence; see `up_to_kl`.

    Attributes:
      gold: at the end.
      best_gold: its greatest value.
      collapse: by how much it fell from there.
      kl: at the end, in nats.
    """

    gold: Float[Array, ""]
    best_gold: Float[Array, ""]
    collapse: Float[Array, ""]
    kl: Float[Array, ""]


def up_to_kl(kl: Float[Array, "N"], gold: Float[Array, "N"], budget: Number) -> UpToKL:
    """What a training did to the gold reward until its KL first passed `budget`, or to its end.

    So runs are compared at the same distance from their start, whatever their pace. The last
    point is interpolated between the two around the budget.

    Args:
      kl: along the training, nats; need not grow.
      gold: the gold reward at the same points.
      budget: > 0; a run that is beyond it from its first point is judged there.

    Raises:
      ValueError: a known `budget` is not positive.
    """
    check_number("budget", budget, lambda x: x > 0, "> 0")
    inside = jnp.cumsum((kl > budget).astype(jnp.int32)) == 0
    last = jnp.maximum(jnp.sum(inside.astype(jnp.int32)) - 1, 0)
    after = jnp.minimum(last + 1, kl.shape[0] - 1)
    step = kl[after] - kl[last]
    share = jnp.clip((budget - kl[last]) / jnp.where(step > 0, step, 1.0), 0.0, 1.0)
    share = jnp.where(inside[after], 0.0, share)
    end = gold[last] + share * (gold[after] - gold[last])
    best = jnp.maximum(jnp.max(jnp.where(inside, gold, -jnp.inf)), end)
    return UpToKL(end, best, best - end, kl[last] + share * step)
