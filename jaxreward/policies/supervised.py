"""Supervised cross-entropy on chosen tokens of a sequence."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp

from jaxreward import masked
from jaxreward.kernels.linear_log_prob import api as linear
from jaxreward.networks.transformer import Transformer
from jaxreward.networks.transformer_config import TransformerConfig


def supervised_loss(
    config: TransformerConfig,
) -> Callable[[Any, NamedTuple], tuple[jax.Array, dict[str, jax.Array]]]:
    """Mean negative log-likelihood of the tokens under the loss mask.

    Returns:
      `(params, sequences) -> (loss, metrics)`. `sequences` has `tokens` int32 `[B, T]`,
      `loss_mask` bool `[B, T]` (True on tokens to predict; the first column is never
      predicted) and `lengths` int32 `[B]`. The loss is a float32 scalar in nats per token, 0
      where nothing is to be predicted; metrics are `supervised/loss` and
      `supervised/accuracy`, the share of tokens whose probability exceeds 1/2.
    """
    network = Transformer(config)

    def loss(params, sequences):
        variables = {"params": params}
        encode, head = Transformer.encode, Transformer.head_weight
        hidden, _ = network.apply(variables, sequences.tokens, sequences.lengths, method=encode)
        weight = network.apply(variables, method=head)
        wanted = sequences.loss_mask[:, 1:]
        targets = jnp.where(wanted, sequences.tokens[:, 1:], -1)
        log_prob, _, _ = linear.linear_log_prob(
            hidden[:, :-1].reshape(-1, hidden.shape[-1]),
            weight,
            targets.reshape(-1),
        )
        mask = wanted.reshape(-1)
        value = -masked.mean(log_prob, mask)
        sure = masked.mean((log_prob > jnp.log(0.5)).astype(jnp.float32), mask)
        return value, {"supervised/loss": value, "supervised/accuracy": sure}

    return loss
