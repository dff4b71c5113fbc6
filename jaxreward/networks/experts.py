"""Low-rank experts of one reward network, their aggregation and their router (DMoERM).

arXiv 2403.01197: a router picks the model of a task by the query alone. Inside it, `K` adapters
of one base network, each with a head copied from the base's, learn one capability each; a small
network then maps their states (or their scores) to the overall reward.

    network = heads.on_transformer(config, heads.Scalar())              # phase 1: train all of it
    experts = init_experts(key, params, lora_config, count)             # phase 2: train these
    scores = apply_experts(network, params, experts, lora_config, ...)  # [K, B]
    states = apply_experts(on_transformer(config, heads.State()), ...)  # phase 3: [K, B, D]
    reward = Aggregator(width).apply(..., jax.lax.stop_gradient(states))

The router is any network with one logit per task, trained by cross-entropy of the logits (the
released one takes a softmax twice, which bounds its loss away from 0).
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxreward.networks import heads, lora


class Experts(NamedTuple):
    """Adapters of a trunk and heads; every leaf has a leading axis of experts."""

    adapters: Any
    heads: Any


def init_experts(
    key: jax.Array, params: Any, config: lora.LoraConfig, count: int
) -> Experts:
    """`count` experts that score exactly as the base does.

    Args:
      key: of the adapters.
      params: of `heads.on_transformer`, trained in phase 1.
      config: of the adapters.
      count: `K` >= 1.

    Raises:
      ValueError: `count` < 1, or no layer to adapt.
    """
    if count < 1:
        raise ValueError(f"count = {count}; allowed is >= 1")
    adapt = lambda own: lora.init(own, params["trunk"], config)
    repeat = lambda leaf: jnp.broadcast_to(leaf, (count,) + leaf.shape)
    adapters = jax.vmap(adapt)(jax.random.split(key, count))
    return Experts(adapters, jax.tree.map(repeat, params["head"]))


def apply_experts(
    network: heads.Network,
    params: Any,
    experts: Experts,
    config: lora.LoraConfig,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
) -> Float[Array, "K B *D"]:
    """What the network returns under every expert.

    The experts are one batch to the compiler; no gradient reaches `params`.
    """
    trunk = jax.lax.stop_gradient(params["trunk"])

    def one(expert: Experts):
        joined = {"trunk": lora.join(trunk, expert.adapters, config), "head": expert.heads}
        return network.apply(joined, tokens, lengths)

    return jax.vmap(one)(experts)


class Aggregator(nn.Module):
    """The overall reward from the experts' states: linear, PReLU, linear.

    Attributes:
      width: of the inner layer; the paper's is that of a state.
    """

    width: int

    @nn.compact
    def __call__(self, states: Float[Array, "K B D"]) -> Float[Array, "B"]:
        """Maps the states of all experts, side by side, to one score; NaN where one is."""
        beside = jnp.moveaxis(states, 0, 1).reshape(states.shape[1], -1)
        # A NaN that a layer reads is in its gradient, whatever the weight of the example.
        known = ~jnp.any(jnp.isnan(beside), axis=1)
        beside = jnp.where(known[:, None], beside, jnp.zeros((), beside.dtype))
        inner = nn.PReLU(negative_slope_init=0.25, name="prelu")(
            nn.Dense(self.width, name="mix")(beside.astype(jnp.float32))
        )
        return jnp.where(known, nn.Dense(1, name="out")(inner)[:, 0], jnp.nan)


def route(
    scores: Float[Array, "C B"], logits: Float[Array, "B C"]
) -> Float[Array, "B"]:
    """The score of the most likely task's model; scores of different tasks do not compare."""
    chosen = jnp.argmax(logits, axis=-1)
    return jnp.take_along_axis(scores, chosen[None, :], axis=0)[0]
