"""A policy that learns an adapter of frozen parameters."""

from typing import Any

import jax

from jaxreward.networks import lora
from jaxreward.types import LinearScores, Policy, StepScores, Trajectories


def adapt(
    policy: Policy, base: Any, config: lora.LoraConfig, *, dtype: str = "float32"
) -> Policy:
    """The policy with a LoRA adapter; its parameters are those of the adapter.

    Args:
      policy: such as a `language_policy`.
      base: its parameters, which get no gradient. May be traced, and should be where they are
        large: build the adapted policy inside the jitted step.
      config: what is adapted.
      dtype: of the adapter's parameters.
    """

    def joined(adapter: lora.Adapter) -> Any:
        return lora.join(jax.lax.stop_gradient(base), adapter, config)

    def init(key: jax.Array) -> lora.Adapter:
        return lora.init(key, base, config, dtype)

    def sample(
        adapter: lora.Adapter, key: jax.Array, prompts: Any, group_size: int
    ) -> Trajectories:
        return policy.sample(joined(adapter), key, prompts, group_size)

    def log_prob(adapter: lora.Adapter, trajectories: Trajectories) -> StepScores:
        return policy.log_prob(joined(adapter), trajectories)

    def linear(adapter: lora.Adapter, trajectories: Trajectories) -> LinearScores:
        return policy.linear(joined(adapter), trajectories)

    return Policy(init, sample, log_prob, linear if policy.linear else None)
