"""What a chain of transforms does to the policy gradient, exactly, by enumeration.

For a binary reward and samples drawn independently, an advantage that looks only at the
rewards of a group is a table of the own bit and the number of ones among the others. The
chain itself fills that table, so everything here holds for any transform: put your own in.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxreward import channel as channels
from jaxreward.channel import Channel
from jaxreward.transforms import advantage, base, correction
from jaxreward.transforms.base import RewardTransform
from jaxreward.types import make_signal


def advantage_table(
    transform: RewardTransform,
    group_size: int,
    rates: Channel | None = None,
    *,
    valid: int | Int[Array, ""] | None = None,
) -> Float[Array, "2 G"]:
    """The advantage of the first sample by its own bit and the number of ones among the others.

    Each of the `2 G` groups goes through `transform` alone in its batch, with the
    transform's initial state.

    Args:
      transform: sets advantages `[P, G]`.
      group_size: `G` >= 1.
      rates: what the signal carries as rates, without leading axes, for chains that do not
        set them.
      valid: number of samples whose reward is not missing, default all; columns from
        `valid` on then hold 0. It may be traced: one program for groups of many sizes.
    """
    _check_rates(transform, group_size, rates)
    return _table(transform, group_size, _valid(group_size, valid), rates)


def expected_advantage(
    transform: RewardTransform,
    success_rate: Float[Array, "*batch"],
    group_size: int,
    channel: Channel,
    rates: Channel | None = None,
    *,
    valid: int | Int[Array, ""] | None = None,
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """`E[A | true reward 0]` and `E[A | true reward 1]` of a sample of a prompt.

    Args:
      transform: sets advantages from observed rewards.
      success_rate: true success rate of the prompt, in [0, 1]; float64 where enabled gives
        float64 weights.
      group_size: `G`.
      channel: binary, without leading axes; what the verifier does.
      rates: what the transform believes it does; default the truth.
      valid: as in `advantage_table`.
    """
    rates = channel if rates is None else rates
    _check_rates(transform, group_size, rates)
    valid = _valid(group_size, valid)
    return _expected_advantage(transform, group_size, valid, success_rate, channel, rates)


def class_gap(
    transform: RewardTransform,
    success_rate: Float[Array, "*batch"],
    group_size: int,
    channel: Channel,
    rates: Channel | None = None,
    *,
    valid: int | Int[Array, ""] | None = None,
) -> Float[Array, "*batch"]:
    """`D = E[A | true 1] - E[A | true 0]`: the expected gradient is `D` times that of `p`.

    Arguments as in `expected_advantage`. arXiv 2510.18924 for the noisy and corrected ones.
    """
    zero, one = expected_advantage(
        transform, success_rate, group_size, channel, rates, valid=valid
    )
    return one - zero


def expected_gradient(
    logits: Float[Array, "V"],
    true_rewards: Float[Array, "V"],
    transform: RewardTransform,
    group_size: int,
    channel: Channel,
    rates: Channel | None = None,
    *,
    valid: int | Int[Array, ""] | None = None,
) -> Float[Array, "V"]:
    """Exact expectation of `mean_i A_i grad log pi(a_i)` for a softmax bandit.

    The samples of a group are exchangeable, so it is `E[A_1 grad log pi(a_1)]`, and the
    others enter through the number of their observed ones, which is binomial.

    Args:
      logits: of the policy over `V` actions.
      true_rewards: in {0, 1}, per action.
      transform: sets advantages from observed rewards.
      group_size: `G`.
      channel: binary; without leading axes, or `[V]`, what the verifier does per action.
      rates: what the transform believes; default `channel`, needed where that is `[V]`.
      valid: as in `advantage_table`; the mean is over the valid samples.

    Raises:
      ValueError: a channel per action without `rates`.
    """
    if rates is None and channel.matrix.ndim > 2:
        raise ValueError("rates = None with a channel per action; allowed is one channel for all")
    rates = channel if rates is None else rates
    _check_rates(transform, group_size, rates)
    valid = _valid(group_size, valid)
    return _expected_gradient(transform, group_size, valid, logits, true_rewards, channel, rates)


def _valid(group_size: int, valid) -> Array:
    return jnp.asarray(group_size if valid is None else valid, jnp.int32)


def _check_rates(transform: RewardTransform, group_size: int, rates: Channel | None) -> None:
    """Traces a group without running it, so that known rates are checked as outside jit."""
    mask = jnp.ones((group_size,), bool)
    rewards = jnp.zeros((1, group_size), jnp.float32)
    jax.eval_shape(lambda rewards: _first(transform, rewards, mask, rates), rewards)


def _first(transform: RewardTransform, rewards: Array, mask: Array, rates: Channel | None) -> Array:
    """The first advantage of one group, `rewards [1, G]`."""
    signal = make_signal(rewards, mask[None]).replace(rates=rates)
    after, _ = transform.update(jax.random.key(0), signal, transform.init())
    return after.advantages[0, 0]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _table(
    transform: RewardTransform, group_size: int, valid: Array, rates: Channel | None
) -> Float[Array, "2 G"]:
    own, ones = np.divmod(np.arange(2 * group_size), group_size)
    position = np.arange(group_size)[None, :]
    rewards = np.where(position == 0, own[:, None], position <= ones[:, None])
    mask = jnp.arange(group_size, dtype=jnp.int32) < valid
    table = jax.vmap(lambda row: _first(transform, row, mask, rates))(
        jnp.asarray(rewards[:, None], jnp.float32)
    )
    return jnp.where(mask[None, :], table.reshape(2, group_size), 0.0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _expected_advantage(
    transform: RewardTransform,
    group_size: int,
    valid: Array,
    success_rate: Array,
    channel: Channel,
    rates: Channel,
) -> tuple[Array, Array]:
    seen = channels.observed_mean(success_rate, channel)
    table = _table(transform, group_size, valid, rates)
    zero, one = _average_over_others(table, valid, seen)
    false_positive = channel.false_positive.astype(success_rate.dtype)
    true_positive = 1.0 - channel.false_negative.astype(success_rate.dtype)
    return (
        (1.0 - false_positive) * zero + false_positive * one,
        (1.0 - true_positive) * zero + true_positive * one,
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _expected_gradient(
    transform: RewardTransform,
    group_size: int,
    valid: Array,
    logits: Array,
    true_rewards: Array,
    channel: Channel,
    rates: Channel,
) -> Array:
    policy = jax.nn.softmax(logits)
    accept = channels.observed_mean(true_rewards, channel)  # [V]
    table = _table(transform, group_size, valid, rates)
    zero, one = _average_over_others(table, valid, jnp.sum(policy * accept))
    value = (1.0 - accept) * zero + accept * one  # E[A_1 | a_1]
    return policy * (value - jnp.sum(policy * value))


def _average_over_others(
    table: Float[Array, "2 G"], valid: Array, seen: Float[Array, "*batch"]
) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
    """The table's rows averaged over the others' ones, each of which has mean `seen`."""
    weights = _binomial(table.shape[1] - 1, valid - 1, seen)
    zero, one = table.astype(weights.dtype)
    return weights @ zero, weights @ one


def _binomial(
    most: int, trials: Array, success: Float[Array, "*batch"]
) -> Float[Array, "*batch outcomes"]:
    """Probability of `0..most` ones in `trials`, one trial at a time (nothing to overflow)."""
    success = success[..., None]
    start = jnp.zeros(success.shape[:-1] + (most + 1,), success.dtype).at[..., 0].set(1.0)

    def one_more(trial, chance):
        shifted = jnp.concatenate([jnp.zeros_like(success), chance[..., :-1]], axis=-1)
        return jnp.where(
            trial < trials, (1.0 - success) * chance + success * shifted, chance
        )

    steps = jnp.arange(most, dtype=jnp.int32)
    return jax.lax.scan(lambda chance, trial: (one_more(trial, chance), None), start, steps)[0]


class Survival(NamedTuple):
    """`D` under one baseline, each `[success rates, group sizes]`; see `survival_table`."""

    clean: Float[Array, "p sizes"]
    noisy: Float[Array, "p sizes"]
    forward: Float[Array, "p sizes"]
    backward: Float[Array, "p sizes"]
    corrected: Float[Array, "p sizes"]


BASELINES = {
    "none": advantage.direct,
    "leave-one-out": advantage.rloo,
    "group mean": advantage.dr_grpo,
    "mean and std": advantage.grpo,
}


def survival_table(
    channel: Channel, success_rates: Float[Array, "p"], group_sizes: tuple[int, ...]
) -> dict[str, Survival]:
    """Which correction survives which baseline: `D` of each, by baseline.

    `corrected` is backward for "none" and "leave-one-out", and otherwise
    `corrected_group_normalization` with the matching scale.

    Args:
      channel: binary, without leading axes.
      success_rates: true success rates.
      group_sizes: each >= 2.
    """
    width, sizes = max(group_sizes), jnp.asarray(group_sizes, jnp.int32)
    perfect = channels.binary(0.0, 0.0)

    def gaps(transform, seen):
        gap = lambda n: class_gap(transform, success_rates, width, seen, valid=n)
        return jax.vmap(gap, out_axes=1)(sizes)

    table = {}
    for name, make in BASELINES.items():
        plain, *fixed = _columns(name, make())
        noisy = [gaps(transform, channel) for transform in (plain, *fixed)]
        corrected = noisy[-1:] if len(fixed) == 2 else []
        table[name] = Survival(gaps(plain, perfect), *noisy, *corrected)
    return table


def _columns(name: str, estimator: RewardTransform) -> list[RewardTransform]:
    """The estimator, after forward, after backward and, if that is another, corrected."""
    columns = [estimator] + [
        base.chain(fix, estimator, provided=("rates",), on_inert="allow")
        for fix in (correction.forward(), correction.backward())
    ]
    if name in ("group mean", "mean and std"):
        scale = "none" if name == "group mean" else "group_std"
        columns.append(correction.corrected_group_normalization(scale=scale))
    return columns
