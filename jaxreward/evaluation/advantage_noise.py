"""What share of a group-relative advantage is noise, from a log and the verifier's rates.

A group is `n` rollouts of one prompt with observed rewards `o` and true rewards `t`, both in
{0, 1}. Its centred advantage is `A_i = o_i - mean(o)` (Dr. GRPO; RLOO is `n / (n - 1)` times
it), and with true rewards it would be `A*_i = t_i - mean(t)`.

Definition. The noise share is the part of the variance of `A`, over all rollouts of all
groups, that no multiple of `A*` explains:

    share = 1 - (sum A A*)^2 / (sum A^2  sum A*^2)        sums over groups and rollouts

One multiple for all groups, because a common factor is a step size and nothing else is.

Closed form. With the same rates `a` (false positives) and `b` (false negatives) everywhere,
a prompt with success rate `p` has `E[o | t] = a + J t` and `q = a + J p`. Regressing `o` on
`t` leaves `E Var(o | t) = (1 - p) a (1 - a) + p b (1 - b) = a (1 - b)(1 - q) + b (1 - a) q`,
which is linear in `q` and free of `J`. Centring multiplies signal and noise alike by
`1 - 1/n`, so with `m` the observed mean of a group

    share = sum (n - 1) [a (1 - b)(1 - m) + b (1 - a) m] / sum n m (1 - m)

where numerator and denominator are unbiased sums over groups. For a single prompt this is
`1 - kappa^2`, `kappa` being `jaxreward.channel.reliability` (arXiv 2510.18924).

With rates that depend on a feature of the rollout, the unbiased estimate of `t_i` is
`r_i = (o_i - a_i) / J_i`, and with independent flips the three sums have unbiased estimates:
`E[o_i t_i] = (1 - b_i) E[r_i]`, and `o_i r_j`, `r_i r_j` for pairs. The share then holds two
things: random flips, and a distortion of the weights between prompts or features whose J
differ. For a feature of the prompt the flips alone are the sum above with each prompt's
own rates.

Letters: `C` clusters, `F` feature values, `B` draws of the rates, `K` success rates.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from jaxreward import channel
from jaxreward.rate_estimates import Rates


class GroupSums(NamedTuple):
    """Sums over groups that the noise share needs; leading axes such as `[C]` or `[B]`.

    With `n_f` rollouts and `k_f` accepted ones of feature value `f`, in a group of `n`:
    `size` is the sum of `n_f`, `ones` of `k_f`, `size_mean` of `n_f / n`, `ones_mean` of
    `k_f / n`, and the last three of `k_f k_g / n`, `k_f n_g / n` and `n_f n_g / n`.
    """

    size: Float[np.ndarray, "*batch F"]
    ones: Float[np.ndarray, "*batch F"]
    size_mean: Float[np.ndarray, "*batch F"]
    ones_mean: Float[np.ndarray, "*batch F"]
    ones_ones: Float[np.ndarray, "*batch F F"]
    ones_size: Float[np.ndarray, "*batch F F"]
    size_size: Float[np.ndarray, "*batch F F"]


def group_sums(
    size: Float[np.ndarray, "groups F"],
    ones: Float[np.ndarray, "groups F"],
    cluster: Int[np.ndarray, "groups"],
) -> GroupSums:
    """The sums of each cluster; groups with fewer than two rollouts count as absent.

    Args:
      size: rollouts of each group by feature value.
      ones: accepted ones among them.
      cluster: index in `[0, C)` of each group's cluster.
    """
    clusters = int(cluster.max()) + 1
    total = size.sum(axis=1)
    keep = total >= 2
    size, ones, cluster, total = size[keep], ones[keep], cluster[keep], total[keep]
    total = total[:, None]
    pairs = [
        x[:, :, None] * (y / total)[:, None, :]
        for x, y in ((ones, ones), (ones, size), (size, size))
    ]
    terms = (size, ones, size / total, ones / total, *pairs)
    return GroupSums(*(_sum_by(cluster, term, clusters) for term in terms))


def _sum_by(index, values, count):
    flat = values.reshape(len(values), -1)
    columns = [np.bincount(index, column, minlength=count) for column in flat.T]
    return np.stack(columns, axis=-1).reshape(count, *values.shape[1:])


def weighted(sums: GroupSums, weights: Float[np.ndarray, "B C"]) -> GroupSums:
    """Bootstrap draws of the sums over all clusters, leading axis `[B]`."""
    def one(term):
        flat = term.reshape(len(term), -1)
        return (weights @ flat).reshape(len(weights), *term.shape[1:])
    return GroupSums(*(one(term) for term in sums))


def noise_share(
    sums: GroupSums,
    false_positive: Float[np.ndarray, "*batch F"],
    false_negative: Float[np.ndarray, "*batch F"],
    *,
    min_determinant: float = channel.MIN_DETERMINANT,
) -> Float[np.ndarray, "*batch"]:
    """The noise share of the module's definition, in [0, 1]; 1 where no signal is left.

    Args:
      sums: over all groups, leading axes `*batch`.
      false_positive: rates by feature value.
      false_negative: likewise.
      min_determinant: floor of J.
    """
    a, b = false_positive, false_negative
    j = np.maximum(1.0 - a - b, min_determinant)
    true = (sums.ones - a * sums.size) / j  # of the sum of t_i, by feature value
    true_mean = (sums.ones_mean - a * sums.size_mean) / j  # of the same over n
    crossed = sums.ones_ones - a[..., None, :] * sums.ones_size
    crossed = np.sum(crossed / j[..., None, :], axis=(-1, -2))
    own = np.sum(sums.ones_mean * (1.0 - a) / j, axis=-1)
    mixed = np.sum((1.0 - b) * (true - true_mean), axis=-1) - (crossed - own)
    squared = _paired(sums, a, j)
    own = (sums.ones_mean * (1.0 - a) ** 2 + (sums.size_mean - sums.ones_mean) * a**2) / j**2
    clean = np.sum(true - true_mean, axis=-1) - (squared - np.sum(own, axis=-1))
    seen = observed_square(sums)
    alive = (clean > 0) & (seen > 0) & (mixed > 0)
    explained = np.where(alive, mixed**2 / np.where(alive, clean * seen, 1.0), 0.0)
    return np.asarray(np.clip(1.0 - explained, 0.0, 1.0))


def _paired(sums, a, j):
    """Sum over groups of `(sum r_i)^2 / n`."""
    left, right = a[..., :, None], a[..., None, :]
    swapped = np.swapaxes(sums.ones_size, -1, -2)
    square = sums.ones_ones - right * sums.ones_size - left * swapped
    square = square + left * right * sums.size_size
    return np.sum(square / (j[..., :, None] * j[..., None, :]), axis=(-1, -2))


def observed_square(sums: GroupSums) -> Float[np.ndarray, "*batch"]:
    """Sum of the squared centred observed advantages."""
    return np.asarray(np.sum(sums.ones, axis=-1) - np.sum(sums.ones_ones, axis=(-1, -2)))


def flip_share(
    sums: GroupSums,
    false_positive: Float[np.ndarray, "*batch F"],
    false_negative: Float[np.ndarray, "*batch F"],
) -> Float[np.ndarray, "*batch"]:
    """The share that is random flips, `1 - kappa^2` pooled over groups, in [0, 1].

    For a feature that is constant within each group (one value: the same rates everywhere,
    where it equals `noise_share`).
    """
    a, b = false_positive, false_negative
    ones = sums.ones - sums.ones_mean  # (n - 1) m
    rest = sums.size - sums.size_mean - ones
    noise = np.sum(a * (1.0 - b) * rest + b * (1.0 - a) * ones, axis=-1)
    seen = observed_square(sums)
    return np.asarray(np.clip(noise / np.where(seen > 0, seen, np.inf), 0.0, 1.0))


def success_distribution(
    size: Int[np.ndarray, "groups"],
    ones: Int[np.ndarray, "groups"],
    false_positive: Float[np.ndarray, "groups"],
    false_negative: Float[np.ndarray, "groups"],
    grid: Float[np.ndarray, "K"],
    *,
    iterations: int = 300,
) -> Float[np.ndarray, "K"]:
    """Distribution of the true success rate over groups: the probability of each grid value.

    Nonparametric maximum likelihood (Kiefer and Wolfowitz 1956) by EM on a grid: the
    accepted count of a group is binomial with probability `false_positive + J p`.
    """
    rows = np.stack([size, ones, false_positive, false_negative], axis=1).astype(np.float64)
    rows, multiplicity = np.unique(rows, axis=0, return_counts=True)
    n, k, a, b = (column[:, None] for column in rows.T)
    likelihood = stats.binom.pmf(k, n, np.clip(a + (1.0 - a - b) * grid, 0.0, 1.0))
    mass = np.full(len(grid), 1.0 / len(grid))
    for _ in range(iterations):
        joint = likelihood * mass
        joint = joint / np.maximum(joint.sum(axis=1, keepdims=True), 1e-300)
        mass = multiplicity @ joint / multiplicity.sum()
    return mass


def reliability(
    success_rate: Float[np.ndarray, "K"],
    false_positive: Float[np.ndarray, "B"],
    false_negative: Float[np.ndarray, "B"],
) -> Float[np.ndarray, "B K"]:
    """`jaxreward.channel.reliability` for every pair of rates and success rate."""
    noise = channel.binary(
        np.asarray(false_positive, np.float32), np.asarray(false_negative, np.float32)
    )
    shape = (len(false_positive), len(success_rate))
    p = jnp.broadcast_to(jnp.asarray(success_rate, jnp.float32)[None, :], shape)
    return np.asarray(channel.reliability(p, noise), np.float64)


def gradient_gain(
    success_rate: Float[np.ndarray, "*shape"], group_size: int
) -> Float[np.ndarray, "*shape"]:
    """`E[A | own reward 1] - E[A | own reward 0]` of the std-normalised advantage.

    For independent rewards with this success rate in a group of `group_size`, standard
    deviation with division by the group size, 0 in a group without variance. The expected
    gradient of one prompt is this times the gradient of its success rate.
    """
    others = np.arange(group_size)
    chance = stats.binom.pmf(others, group_size - 1, success_rate[..., None])
    own_one, own_zero = (others + 1) / group_size, others / group_size
    one = np.where(own_one < 1, np.sqrt((1 - own_one) / own_one), 0.0)
    zero = np.sqrt(own_zero / (1 - own_zero))  # own_zero < 1 always
    return chance @ (one + zero)


def gradient_factor(
    success_rate: Float[np.ndarray, "K"],
    false_positive: Float[np.ndarray, "B"],
    false_negative: Float[np.ndarray, "B"],
    group_size: int,
) -> Float[np.ndarray, "B K"]:
    """Expected gradient of std-normalised GRPO under noise, relative to the clean one.

    `J gain(q) / gain(p)`; `kappa` for large groups. Without the standard deviation
    (Dr. GRPO, RLOO) the factor is J for every prompt.
    """
    a, b = false_positive[:, None], false_negative[:, None]
    seen = np.clip(a + (1.0 - a - b) * success_rate, 0.0, 1.0)
    clean = gradient_gain(success_rate, group_size)
    return (1.0 - a - b) * gradient_gain(seen, group_size) / clean


class DeadGroups(NamedTuple):
    """Shares of groups: without variance as observed, in truth, and falsely alive.

    `falsely_alive` is the share, among the groups that look alive, of those whose true
    rewards are all equal: their whole advantage is noise.
    """

    observed: float
    true: float
    falsely_alive: float


def dead_groups(
    size: Int[np.ndarray, "groups"],
    ones: Int[np.ndarray, "groups"],
    success_rate: Float[np.ndarray, "K"],
    probability: Float[np.ndarray, "K"],
    rates: Rates,
) -> DeadGroups:
    """Expected shares under the distribution of success rates and global rates."""
    a, b = float(rates.false_positive), float(rates.false_negative)
    sizes, multiplicity = np.unique(size, return_counts=True)
    n, share = sizes[:, None].astype(np.float64), multiplicity / len(size)
    right, wrong = success_rate**n, (1.0 - success_rate) ** n
    mixed_right = 1.0 - (1.0 - b) ** n - b**n
    mixed_wrong = 1.0 - (1.0 - a) ** n - a**n
    true = float(share @ (right + wrong) @ probability)
    hidden = float(share @ (right * mixed_right + wrong * mixed_wrong) @ probability)
    observed = float(np.mean((ones == 0) | (ones == size)))
    alive = 1.0 - observed
    return DeadGroups(observed, true, min(hidden / alive, 1.0) if alive > 0 else 0.0)
