"""From outcomes and process steps to the decisions of a trajectory.

Process rewards are `[P, G, S]` with `S` process steps (a line of reasoning, a denoising
step), compared across the group step by step. A step-wise objective is then a chain such
as `backward(), rloo(), return_to_go(), broadcast_steps()`: arXiv 2510.00915, step 7.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxreward.checks import Number, check_number
from jaxreward.transforms.base import RewardTransform, Spec, stateless
from jaxreward.types import Signal


def broadcast() -> RewardTransform:
    """Every decision of a trajectory gets its outcome's advantage: `[P, G]` to `[P, G, S]`.

    Padding gets 0.

    Raises:
      ValueError: when traced, advantages are not `[P, G]`.
    """

    def update(key, signal):
        del key
        if signal.advantages.ndim != 2:
            raise ValueError(f"advantages have shape {signal.advantages.shape}; allowed is [P, G]")
        mask = signal.trajectories.mask
        return signal.replace(advantages=jnp.where(mask, signal.advantages[:, :, None], 0.0))

    return stateless(update, _spec("broadcast", ("advantages", "trajectories")))


def return_to_go(*, discount: Number = 1.0) -> RewardTransform:
    """A step's advantage becomes the discounted sum of its own and all later ones.

    `A_t = sum_{u >= t} discount^(u - t) a_u` along axis 2. A missing step adds nothing (its
    own return still counts what follows it).

    Args:
      discount: in [0, 1].

    Raises:
      ValueError: `discount` outside [0, 1]; when traced, advantages are not `[P, G, S]`.
    """
    check_number("discount", discount, lambda x: (x >= 0) & (x <= 1), "[0, 1]")

    def update(key, signal):
        del key
        if signal.advantages.ndim != 3:
            raise ValueError(
                f"advantages have shape {signal.advantages.shape}; allowed is [P, G, S]"
            )
        return signal.replace(advantages=_discounted_sum(signal.advantages, discount))

    return stateless(update, _spec("return_to_go", ("advantages",)))


def broadcast_steps() -> RewardTransform:
    """Every decision gets the advantage of the process step that it belongs to.

    Reads `aux["step_ends"]`, int32 `[P, G, J]`: the index of the last decision of each
    process step, increasing, and -1 for steps that a trajectory does not have. A decision
    belongs to the first step that ends at or after it; decisions after the last step, and
    padding, get 0. After `return_to_go()` this is `A_t = sum_{j: end_j >= t} a_j`.

    Raises:
      ValueError: when traced, advantages are not of the shape of `step_ends`.
    """

    def update(key, signal):
        del key
        ends = signal.aux["step_ends"]
        if signal.advantages.shape != ends.shape:
            raise ValueError(
                f"advantages have shape {signal.advantages.shape}; allowed is that of "
                f"aux/step_ends, {ends.shape}"
            )
        return signal.replace(advantages=_by_step(signal, ends))

    reads = ("advantages", "trajectories", "aux/step_ends")
    return stateless(update, _spec("broadcast_steps", reads))


def _discounted_sum(values: Float[Array, "P G S"], discount) -> Float[Array, "P G S"]:
    def step(later, value):
        total = value + discount * later
        return total, total

    _, totals = jax.lax.scan(
        step, jnp.zeros_like(values[:, :, 0]), jnp.moveaxis(values, 2, 0), reverse=True
    )
    return jnp.moveaxis(totals, 0, 2)


def _by_step(signal: Signal, ends: Int[Array, "P G J"]) -> Float[Array, "P G S"]:
    mask = signal.trajectories.mask
    time = jnp.arange(mask.shape[-1], dtype=ends.dtype)
    reaches = ends[:, :, None, :] >= time[None, None, :, None]  # [P, G, S, J]
    first = jnp.argmax(reaches, axis=-1)
    advantages = jnp.take_along_axis(signal.advantages, first, axis=2)
    return jnp.where(mask & jnp.any(reaches, axis=-1), advantages, 0.0)


def _spec(name: str, reads: tuple[str, ...]) -> Spec:
    return Spec(name, "credit", reads=reads, writes=("advantages",))
