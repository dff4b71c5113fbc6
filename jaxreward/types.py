"""The pytrees that flow through the library.

Letters: `P` prompts, `G` samples per prompt (the group, always axis 1), `S` decision
steps of a trajectory (always axis 2).
"""

import dataclasses
from typing import Any, Callable, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Shaped

from jaxreward.channel import Channel
from jaxreward.pytree import pytree_dataclass

_T = TypeVar("_T")


@pytree_dataclass
class Trajectories:
    """What a policy did: `G` trajectories of at most `S` decisions for each of `P` prompts.

    Attributes:
      prompts: pytree with leading axis `[P]`.
      actions: pytree with leading axes `[P, G]` (for a language policy token ids `[P, G, S]`).
      outputs: pytree with leading axes `[P, G]`, what is shown to a reward.
      log_probs: natural log-probability of each decision under the behaviour policy.
      mask: True where a decision was taken; False is padding.
    """

    prompts: Any
    actions: Any
    outputs: Any
    log_probs: Float[Array, "P G S"]
    mask: Bool[Array, "P G S"]

    @property
    def lengths(self) -> Int[Array, "P G"]:
        """Number of decisions taken in each trajectory."""
        return jnp.sum(self.mask, axis=-1, dtype=jnp.int32)


@pytree_dataclass
class Signal:
    """What flows through a chain of reward transforms.

    Attributes:
      rewards: float32, outcome `[P, G]` or dense `[P, G, S]`.
      mask: same shape; False where the reward is missing. A missing reward has advantage
        exactly 0 and changes no sibling; its stored value is never used.
      advantages: float32 `[P, G]` or `[P, G, S]`, None until a transform sets them.
      weights: per sample `[P, G]`, None means 1.
      rates: current estimate of the noise channel, leading axes `[]`, `[P]` or `[P, G]`.
      trajectories: what the policy did, for transforms that look at it.
      aux: named side information, leading axis `[P]` or `[P, G]`. `prompt_id` int32 `[P]`
        is always present.
      metrics: scalars recorded on the way, named `room/what`.
    """

    rewards: Float[Array, "P G *S"]
    mask: Bool[Array, "P G *S"]
    advantages: Float[Array, "P G *A"] | None = None
    weights: Float[Array, "P G"] | None = None
    rates: Channel | None = None
    trajectories: Trajectories | None = None
    aux: dict[str, Any] = dataclasses.field(default_factory=dict)
    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)

    def replace(self: _T, **changes: Any) -> _T:
        """A copy with the given fields changed."""
        return dataclasses.replace(self, **changes)

    def with_aux(self, **entries: Any) -> "Signal":
        """A copy whose `aux` also holds `entries`."""
        return self.replace(aux={**self.aux, **entries})

    def with_metrics(self, **entries: Any) -> "Signal":
        """A copy whose `metrics` also holds `entries` (write `a__b` for the name `a/b`)."""
        named = {name.replace("__", "/"): value for name, value in entries.items()}
        return self.replace(metrics={**self.metrics, **named})


def make_signal(
    rewards: Shaped[Array | np.ndarray, "P G *S"],
    mask: Bool[Array | np.ndarray, "P G *S"] | None = None,
    *,
    prompt_id: Integer[Array | np.ndarray, "P"] | None = None,
    trajectories: Trajectories | None = None,
    **aux: Any,
) -> Signal:
    """Builds the signal that enters a chain.

    Args:
      rewards: `[P, G]` or `[P, G, S]`, any real or boolean dtype; cast to float32. A NaN or
        infinite reward is missing.
      mask: True where the reward exists; default everywhere finite.
      prompt_id: which prompt each row is, any integers of 32 bits; default `0..P-1`. Cast to
        int32: unsigned ones from 2^31 become negative.
      trajectories: the trajectories that earned the rewards.
      **aux: further side information, pytrees with leading axis `[P]` or `[P, G]`.

    Raises:
      ValueError: a shape or dtype other than these, an id of more than 32 bits.
    """
    rewards = _real(rewards)
    if rewards.ndim not in (2, 3):
        raise ValueError(f"rewards have shape {rewards.shape}; allowed is [P, G] or [P, G, S]")
    rewards = rewards.astype(jnp.float32)
    finite = jnp.isfinite(rewards)
    mask = finite if mask is None else jnp.asarray(mask)
    if mask.shape != rewards.shape or mask.dtype != bool:
        raise ValueError(
            f"mask is {mask.dtype} of shape {mask.shape}; allowed is bool {rewards.shape}"
        )
    mask = mask & finite
    prompts = rewards.shape[:1]
    for name, value in aux.items():
        for shape in map(np.shape, jax.tree.leaves(value)):
            if shape[:1] != prompts:
                raise ValueError(f"{name} has shape {shape}; allowed is leading axis {prompts}")
    return Signal(
        rewards=jnp.where(mask, rewards, 0.0),
        mask=mask,
        trajectories=trajectories,
        aux={"prompt_id": _ids(prompt_id, prompts), **aux},
    )


def _real(rewards: Any) -> jax.Array:
    try:
        rewards = jnp.asarray(rewards)
    except TypeError as error:  # text, objects
        raise ValueError("rewards are no numbers; allowed is real, NaN where missing") from error
    if jnp.issubdtype(rewards.dtype, jnp.complexfloating):
        raise ValueError(f"rewards are {rewards.dtype}; allowed are real numbers and booleans")
    return rewards


def _ids(prompt_id: Any, prompts: tuple[int, ...]) -> Int[Array, "P"]:
    if prompt_id is None:
        return jnp.arange(*prompts, dtype=jnp.int32)
    if not isinstance(prompt_id, jax.Array):
        prompt_id = np.asarray(prompt_id)  # jax would cut off what is beyond 32 bits
    dtype, shape = prompt_id.dtype, prompt_id.shape
    if shape != prompts or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"prompt_id is {dtype} of shape {shape}; allowed is int {prompts}")
    if isinstance(prompt_id, np.ndarray) and prompt_id.size:
        low, high = int(prompt_id.min()), int(prompt_id.max())
        if low < -(2**31) or high >= 2**32:
            raise ValueError(f"prompt_id is in [{low}, {high}]; allowed are integers of 32 bits")
        prompt_id = prompt_id.astype(np.int32)  # no error where it wraps
    return jnp.asarray(prompt_id).astype(jnp.int32)


@pytree_dataclass
class Feedback:
    """Pointwise feedback: one bit on an item, where somebody gave it.

    Attributes:
      items: pytree with leading axis `[B]`.
      labels: float32, 1 for liked and 0 for not; meaningful only where observed.
      observed: whether there is feedback.
      propensity: float32 probability in (0, 1] that there would be, NaN where unknown.
      annotator: int32 of who gave it, in `[0, K)`.
    """

    items: Any
    labels: Float[Array, "B"]
    observed: Bool[Array, "B"]
    propensity: Float[Array, "B"]
    annotator: Int[Array, "B"]


@pytree_dataclass
class Preferences:
    """Pairs of items and which one is preferred.

    Attributes:
      first: items, pytree with leading axis `[B]`.
      second: likewise.
      target: float32, 1 where the first is preferred, 0 where the second is, 1/2 for a tie.
      weights: float32 >= 0; 0 leaves the pair out.
      annotator: int32 of who judged, in `[0, K)`.
    """

    first: Any
    second: Any
    target: Float[Array, "B"]
    weights: Float[Array, "B"]
    annotator: Int[Array, "B"]


@pytree_dataclass
class Steps:
    """Labels of the steps of a process, such as a chain of reasoning.

    Attributes:
      items: pytree with leading axis `[B]`.
      labels: float32 in [0, 1] of each step, meaningful under the mask.
      mask: True where there is a labelled step.
      outcome: float32 in [0, 1], whether the end is right.
    """

    items: Any
    labels: Float[Array, "B S"]
    mask: Bool[Array, "B S"]
    outcome: Float[Array, "B"]


class StepScores(NamedTuple):
    """A policy's score of given trajectories.

    Attributes:
      log_probs: float32 natural log-probability of each decision; 0 where masked.
      entropies: float32 entropy of each decision's distribution in nats; 0 where masked.
    """

    log_probs: Float[Array, "P G S"]
    entropies: Float[Array, "P G S"]


class LinearScores(NamedTuple):
    """What the last layer of a policy multiplies: logits are `hidden @ head`.

    Attributes:
      hidden: the state in which each decision was taken.
      head: the layer's weight.
      taken: int32 index of the decision, -1 where masked.
    """

    hidden: Float[Array, "P G S D"]
    head: Float[Array, "D V"]
    taken: Int[Array, "P G S"]


class Policy(NamedTuple):
    """A policy is three pure functions over a parameter pytree, and two that some offer.

    Attributes:
      init: `(key) -> params`.
      sample: `(params, key, prompts, group_size) -> Trajectories`; `group_size` is static.
      log_prob: `(params, trajectories) -> StepScores`, differentiable in `params`.
      linear: `(params, trajectories) -> LinearScores` at temperature 1, for losses that look at
        whole distributions block by block; None where decisions are not such.
      lagged: `(params) -> params` of an older policy that the parameters hold beside the one that
        learns (see `policies.lagged`); None where there is no such.
    """

    init: Callable[[jax.Array], Any]
    sample: Callable[[Any, jax.Array, Any, int], Trajectories]
    log_prob: Callable[[Any, Trajectories], StepScores]
    linear: Callable[[Any, Trajectories], LinearScores] | None = None
    lagged: Callable[[Any], Any] | None = None
