"""Features of what a policy wrote, computed inside the jitted step: `config.features`.

Each entry names a factory here or elsewhere; it gets the tokenizer and the entry's other keys,
and returns `(trajectories) -> [P, G]`, which the chain finds as `aux/<entry>`.
"""

from typing import Callable

import jax
import ml_collections

from jaxreward.rewards.reasoning_patterns import token_pattern_reward
from jaxreward.tasks import tokenizer as tokenizers
from jaxreward.training.config import build
from jaxreward.types import Trajectories

Feature = Callable[[Trajectories], jax.Array]


def build_features(
    config: ml_collections.ConfigDict, tokenizer: tokenizers.Tokenizer
) -> dict[str, Feature]:
    """The features of `config.features` by name."""
    wanted = config.get("features", {})
    return {name: build(wanted[name], tokenizer=tokenizer) for name in wanted}


def patterns(
    *,
    tokenizer: tokenizers.Tokenizer,
    phrases: tuple[str, ...],
    saturation: int,
    ngram: int,
) -> Feature:
    """`reasoning_patterns.token_pattern_reward` of the responses.

    Args:
      tokenizer: of characters, or one in which a phrase has the same ids everywhere.
      phrases: what is looked for.
      saturation: distinct phrases worth 1.
      ngram: tokens of a repeated passage.

    Raises:
      ValueError: no phrases, one that the tokenizer does not know, or a number below 1.
    """
    if not phrases:
        raise ValueError("phrases = (); allowed is at least one")
    for name, value in (("saturation", saturation), ("ngram", ngram)):
        if value < 1:
            raise ValueError(f"{name} = {value}; allowed is >= 1")
    encoded = tokenizers.encode(tokenizer, list(phrases))
    rows = [row[:n].tolist() for row, n in zip(encoded.tokens, encoded.lengths)]

    def feature(trajectories: Trajectories) -> jax.Array:
        tokens, mask = trajectories.actions, trajectories.mask
        return token_pattern_reward(tokens, mask, rows, saturation=saturation, ngram=ngram)

    return feature
