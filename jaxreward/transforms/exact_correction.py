"""Undoing a noisy verifier exactly, through any advantage of a binary group."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxreward import channel as channels
from jaxreward.channel import MIN_DETERMINANT, Channel
from jaxreward.checks import Number
from jaxreward.transforms.base import RewardTransform, stateless
from jaxreward.transforms.correction import advantage_spec, capped, check_knobs, usable_rates
from jaxreward.transforms.moments import moments
from jaxreward.types import Signal, make_signal


def exact_group_correction(
    advantage: RewardTransform,
    *,
    max_group_size: int = 8,
    max_abs: Number | None = None,
    min_determinant: float = MIN_DETERMINANT,
    axis_name=None,
) -> RewardTransform:
    """The advantage whose expectation over the channel is exactly `advantage`'s on true rewards.

    An advantage of a binary group is a table of the own bit and the number of ones among
    the others. Here the inverse channel is applied to every bit of it:

        A_i = sum over true groups t of prod_j inverse_j[r_j, t_j] T[t_i, sum of t without i]

    so `E[A_i | true rewards] = T[true]` for any rates (also where they vary within the
    group), group size and `advantage`, at a variance that grows with both.

    Args:
      advantage: sets advantages from the rewards of one group only and keeps no state, for
        example `advantage.grpo()` or `advantage.pass_at_k(4)`. Weights are not used.
      max_group_size: largest group accepted.
      max_abs: cap of the absolute advantage, None for no cap. A cap costs exactness.
      min_determinant: as in `backward`.
      axis_name: likewise.

    Raises:
      ValueError: `advantage` sets none or keeps state; concrete rates that cannot be
        corrected; when traced, a group larger than `max_group_size` or dense rewards.
    """
    if advantage.spec.role != "advantage" or jax.tree.leaves(advantage.init()):
        raise ValueError(
            f"advantage = {advantage.spec.name}; allowed is a transform of role 'advantage' "
            "without state"
        )
    check_knobs(min_determinant, max_abs)

    def update(key, signal):
        group_size = signal.rewards.shape[1]
        if signal.rewards.ndim != 2 or group_size > max_group_size:
            raise ValueError(
                f"rewards have shape {signal.rewards.shape}; allowed is [P, G] with "
                f"G <= {max_group_size} (max_group_size)"
            )
        rates, floored = usable_rates(signal, min_determinant, axis_name)
        table = _clean_table(key, advantage, group_size)
        advantages = capped(_through_inverse(signal, rates, table, min_determinant), max_abs)
        return signal.replace(advantages=advantages).with_metrics(correction__floored=floored)

    return stateless(update, advantage_spec(f"exact_group_correction({advantage.spec.name})"))


def _clean_table(
    key: jax.Array, advantage: RewardTransform, group_size: int
) -> Float[Array, "n 2 ones"]:
    """`T[n, own, ones]`: the advantage in a clean group of `n` with `ones` among the others."""
    index = np.indices((group_size + 1, 2, group_size)).reshape(3, -1)
    size, own, ones = index[:, (index[0] > 0) & (index[2] < index[0])]
    position = np.arange(group_size)[None, :]
    rewards = np.where(position == 0, own[:, None], position <= ones[:, None])
    mask = position < size[:, None]
    signal = make_signal(jnp.asarray(rewards, jnp.float32), jnp.asarray(mask))
    after, _ = advantage.update(key, signal, advantage.init())
    table = jnp.zeros((group_size + 1, 2, group_size), jnp.float32)
    return table.at[size, own, ones].set(after.advantages[:, 0])


def _through_inverse(
    signal: Signal, rates: Channel, table: Float[Array, "n 2 ones"], min_determinant
) -> Float[Array, "P G"]:
    """Applies the inverse channel of every sample to the table of its group."""
    # P(true 1 | observed) of the inverse channel is the backward estimate, P(true 0) the rest.
    one = channels.correct(signal.rewards, rates, min_determinant=min_determinant)
    own = jnp.stack([1.0 - one, one], axis=-1)  # [P, G, 2]
    counts = _others_counts(one, signal.mask)
    sizes = jnp.sum(signal.mask, axis=1, dtype=jnp.int32)
    by_size = table[sizes]  # [P, 2, G]
    advantages = jnp.einsum("pgs,pgt,pst->pg", own, counts, by_size)
    # Advantages that sum to 0 over every true group still do; centring again takes the
    # rounding out, so that a group without spread is exactly 0.
    centred = moments(advantages, signal.mask).centred
    return jnp.where(signal.mask, jnp.where(_sums_to_zero(table), centred, advantages), 0.0)


def _sums_to_zero(table: Float[Array, "n 2 ones"]) -> Array:
    """Whether the advantages of every clean group sum to 0."""
    size, count = np.indices((table.shape[0], table.shape[0]))
    size, count = size[count <= size], count[count <= size]
    # Of a group without ones, or without zeros, the entry read for them counts 0 times.
    zeros = table[size, 0, np.minimum(count, table.shape[2] - 1)]
    ones = table[size, 1, np.maximum(count - 1, 0)]
    total = jnp.asarray(count, jnp.float32) * ones + jnp.asarray(size - count, jnp.float32) * zeros
    return jnp.max(jnp.abs(total)) <= 1e-5 * jnp.max(jnp.abs(table))


def _others_counts(one: Float[Array, "P G"], mask: jax.Array) -> Float[Array, "P G G"]:
    """`[p, i, t]`: weight of `t` true ones among the valid samples other than `i`."""
    group_size = one.shape[1]
    none_yet = (jnp.arange(group_size) == 0)[None, None, :]
    # From `one`, so that under shard_map the loop starts as it goes on, varying by device.
    start = jnp.where(none_yet, jnp.ones_like(one)[:, :, None], 0.0)

    def include(j, counts):
        shifted = jnp.pad(counts[:, :, :-1], ((0, 0), (0, 0), (1, 0)))
        weight = one[:, j][:, None, None]
        counted = (1.0 - weight) * counts + weight * shifted
        other = mask[:, j][:, None] & (jnp.arange(group_size) != j)[None, :]
        return jnp.where(other[:, :, None], counted, counts)

    return jax.lax.fori_loop(0, group_size, include, start)
