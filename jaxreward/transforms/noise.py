"""Channels that corrupt rewards: what an imperfect verifier does, simulated.

Every noise keeps the clean rewards in `aux["true_rewards"]` (NaN where missing) unless they
are there already. Draws are a function of the key, the prompt's id and the sample's place in
its group, not of where the prompt stands in the batch or on which device; a prompt that
stands twice in a batch gets the same draws twice. A missing reward stays missing.
"""

from typing import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

from jaxreward.channel import Channel, check_channel, check_rate
from jaxreward.checks import Number, check_choice, check_number
from jaxreward.transforms import sources
from jaxreward.transforms.base import RewardTransform, Spec, keep_true_rewards, stateless
from jaxreward.transforms.sources import ChannelSource
from jaxreward.types import Signal

FIXED_BY = ("draw", "prompt", "output")


def class_conditional(
    source: ChannelSource, *, fixed_by: str = "draw", seed: int | jax.Array = 0
) -> RewardTransform:
    """Flips binary rewards through a channel: P(flip) depends on the true reward.

    Args:
      source: the rates, global, by prompt or by sample (instance-dependent noise).
      fixed_by: what a flip is decided by. "draw": afresh for every sample and step. "prompt":
        by prompt and seed, so a wrong label stays wrong for all samples and steps: a share
        `false_positive` of the prompts accepts everything, a share `false_negative` nothing.
        "output": by prompt, seed and `aux["output_id"]` (uint32 `[P, G]`, see `output_id`),
        so the same response always gets the same verdict.
      seed: of "prompt" and "output"; the key is not used by them.

    Raises:
      ValueError: unknown `fixed_by`.
    """
    check_choice("fixed_by", fixed_by, FIXED_BY)

    def update(key: jax.Array, signal: Signal) -> Signal:
        uniform = _uniform(key, signal, fixed_by, seed)
        channel = source.read(signal).expand(signal.rewards.ndim)
        accepted = jnp.where(
            signal.rewards > 0.5, 1.0 - channel.false_negative, channel.false_positive
        )
        observed = (uniform < accepted).astype(jnp.float32)
        return _observe(signal, jnp.where(jnp.isnan(accepted), jnp.nan, observed))

    reads = source.reads + (("aux/output_id",) if fixed_by == "output" else ())
    spec = _spec("class_conditional", reads)
    return stateless(update, spec._replace(writes=spec.writes + ("mask",)))  # rates may be unknown


def group_flip(
    rate: Number, *, persistent: bool = False, seed: int | jax.Array = 0, answered: str = ""
) -> RewardTransform:
    """Replaces the rewards `r` in [0, 1] of whole groups by `1 - r`: one draw for all samples.

    With a group baseline a flip negates the advantages of its group, so the expected advantage
    is `1 - 2 rate` times the clean one (arXiv 2505.22653, the group-wise flips).

    Args:
      rate: probability that a group is flipped; may be traced.
      persistent: by prompt and `seed`, so that a flipped prompt stays flipped; else each visit
        of a prompt draws afresh.
      seed: of persistent flips.
      answered: entry of `aux`, `[P, G]`, that is 0 or False for samples without an answer to
        judge; they keep their reward, because a flip would pay for rubbish. "": none is.

    Raises:
      ValueError: `rate` is not a probability.
    """
    check_rate("rate", rate)

    def update(key: jax.Array, signal: Signal) -> Signal:
        keys = _keys(jax.random.key(seed) if persistent else key, signal)
        draw = jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))(keys)
        flipped = jnp.broadcast_to(_first_axis(draw < rate, signal.rewards.ndim), signal.mask.shape)
        if answered:
            given = signal.aux[answered] != 0
            flipped &= given.reshape(given.shape + (1,) * (signal.rewards.ndim - given.ndim))
        return _observe(signal, jnp.where(flipped, 1.0 - signal.rewards, signal.rewards))

    return stateless(update, _spec("group_flip", (f"aux/{answered}",) if answered else ()))


def symmetric(
    rate: Number, *, fixed_by: str = "draw", seed: int | jax.Array = 0
) -> RewardTransform:
    """Flips binary rewards with one probability: `class_conditional` with equal rates."""
    return class_conditional(sources.constant(rate, rate), fixed_by=fixed_by, seed=seed)


def levels(channel: Channel, values: Sequence[float]) -> RewardTransform:
    """Passes graded rewards through a channel of `M` levels (arXiv 1810.01032).

    Args:
      channel: `M` levels, global or per prompt.
      values: the reward of each level; a reward counts as the nearest of them.

    Raises:
      ValueError: as many values as levels are needed; a row of the channel is no distribution.
    """
    check_channel(channel)
    if len(values) != channel.levels:
        raise ValueError(f"values has {len(values)} entries; allowed are {channel.levels}")
    table = jnp.asarray(values, jnp.float32)

    def update(key: jax.Array, signal: Signal) -> Signal:
        distance = jnp.abs(signal.rewards[..., None] - _last_axis(table, signal.rewards.ndim))
        level = jnp.argmin(distance, axis=-1)
        matrix = channel.expand(signal.rewards.ndim).matrix
        shape = signal.rewards.shape + matrix.shape[-2:]
        rows = jnp.take_along_axis(
            jnp.broadcast_to(matrix, shape), level[..., None, None], axis=-2
        )[..., 0, :]
        uniform = _uniform(key, signal, "draw", 0)[..., None]
        seen = jnp.sum(uniform >= jnp.cumsum(rows, axis=-1)[..., :-1], axis=-1)
        return _observe(signal, table[seen])

    return stateless(update, _spec("levels", ()))


def gaussian(std: Number) -> RewardTransform:
    """Adds independent Gaussian noise of standard deviation `std` >= 0.

    Raises:
      ValueError: `std` is negative or not finite.
    """
    check_number("std", std, lambda x: (x >= 0) & (x < float("inf")), ">= 0 and finite")

    def update(key: jax.Array, signal: Signal) -> Signal:
        shape = signal.rewards.shape[1:]
        noise = jax.vmap(lambda k: jax.random.normal(k, shape, jnp.float32))(_keys(key, signal))
        return _observe(signal, signal.rewards + jnp.asarray(std, jnp.float32) * noise)

    return stateless(update, _spec("gaussian", ()))


def hackable(pattern: str) -> RewardTransform:
    """A verifier with a hole: samples where bool `aux[pattern]` `[P, G]` holds get reward 1."""

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        hit = signal.aux[pattern]
        hit = hit.reshape(hit.shape + (1,) * (signal.rewards.ndim - hit.ndim))
        return _observe(signal, jnp.where(hit, 1.0, signal.rewards))

    return stateless(update, _spec("hackable", (f"aux/{pattern}",)))


def random_reward(rate: Number = 0.5) -> RewardTransform:
    """The control arm: rewards replaced by coin flips with P(1) = `rate`, per sample.

    Whatever it gains is not due to the reward (arXiv 2506.10947).

    Raises:
      ValueError: `rate` is not a probability.
    """
    check_rate("rate", rate)

    def update(key: jax.Array, signal: Signal) -> Signal:
        uniform = _uniform(key, signal, "draw", 0)
        return _observe(signal, (uniform < rate).astype(jnp.float32))

    return stateless(update, _spec("random_reward", ())._replace(reward_map="replaced"))


def inverted() -> RewardTransform:
    """The adversarial control: rewards `r` in [0, 1] replaced by `1 - r`."""

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        return _observe(signal, 1.0 - signal.rewards)

    return stateless(update, _spec("inverted", ()))


def drop(rate: Number) -> RewardTransform:
    """Makes each reward missing with probability `rate`, independently.

    Raises:
      ValueError: `rate` is not a probability.
    """
    check_rate("rate", rate)

    def update(key: jax.Array, signal: Signal) -> Signal:
        kept = _uniform(key, signal, "draw", 0) >= rate
        return _observe(signal, signal.rewards).replace(mask=signal.mask & kept)

    spec = _spec("drop", ())._replace(writes=("mask", "aux/true_rewards"), reward_map="none")
    return stateless(update, spec)


def use_true_rewards() -> RewardTransform:
    """The oracle arm: rewards replaced by `aux["true_rewards"]`; NaN there is missing."""

    def update(key: jax.Array, signal: Signal) -> Signal:
        del key
        true = signal.aux["true_rewards"]
        known = jnp.isfinite(true)
        return signal.replace(rewards=jnp.where(known, true, 0.0), mask=known)

    spec = _spec("use_true_rewards", ("aux/true_rewards",))
    return stateless(update, spec._replace(writes=("rewards", "mask"), reward_map="replaced"))


def output_id(
    tokens: Int[Array, "P G S"], mask: Bool[Array, "P G S"]
) -> UInt[Array, "P G"]:
    """A hash of each output's tokens, equal for equal outputs whatever their padding.

    32-bit FNV-1a with a token in place of a byte; two given outputs collide about once in
    2^32.
    """
    prime = jnp.uint32(16777619)

    def absorb(state, column):
        token, valid = column
        mixed = (state ^ (token.astype(jnp.uint32) + jnp.uint32(1))) * prime
        return jnp.where(valid, mixed, state), None

    start = jnp.full(tokens.shape[:2], 2166136261, jnp.uint32)
    columns = (jnp.moveaxis(tokens, 2, 0), jnp.moveaxis(mask, 2, 0))
    return jax.lax.scan(absorb, start, columns)[0]


def _keys(key: jax.Array, signal: Signal) -> jax.Array:
    """A key per prompt."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(signal.aux["prompt_id"])


def _uniform(key: jax.Array, signal: Signal, fixed_by: str, seed) -> Float[Array, "P G *S"]:
    """Uniform draws in [0, 1) for every reward, decided by what `fixed_by` says."""
    shape = signal.rewards.shape[1:]
    if fixed_by == "draw":
        keys = _keys(key, signal)
        return jax.vmap(lambda k: jax.random.uniform(k, shape, jnp.float32))(keys)
    keys = _keys(jax.random.key(seed), signal)
    if fixed_by == "prompt":
        draw = jax.vmap(lambda k: jax.random.uniform(k, (), jnp.float32))(keys)
        return jnp.broadcast_to(_first_axis(draw, 1 + len(shape)), signal.rewards.shape)

    def of_output(k, output):
        return jax.random.uniform(jax.random.fold_in(k, output), shape[1:], jnp.float32)

    return jax.vmap(jax.vmap(of_output, in_axes=(None, 0)))(keys, signal.aux["output_id"])


def _observe(signal: Signal, observed: Array) -> Signal:
    """The signal with observed rewards, the clean ones kept; NaN makes a reward missing."""
    mask = signal.mask & ~jnp.isnan(observed)
    rewards = jnp.where(mask, observed, signal.rewards)
    return keep_true_rewards(signal).replace(rewards=rewards, mask=mask)


def _first_axis(values: Array, ndim: int) -> Array:
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def _last_axis(values: Array, ndim: int) -> Array:
    return values.reshape((1,) * ndim + values.shape)


def _spec(name: str, reads: tuple[str, ...]) -> Spec:
    writes = ("rewards", "aux/true_rewards")
    return Spec(name, "noise", ("rewards", "mask") + reads, writes, reward_map="nonlinear")
