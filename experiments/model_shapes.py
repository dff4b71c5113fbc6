"""Sizes of public language models, to plan runs of them without their weights."""

import dataclasses

from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.training.exits import ConfigError

_QWEN = dict(rope_theta=1e6, qkv_bias=True)

SHAPES = {
    "tiny": TransformerConfig(512, 256, 2, 4, 2, 512, tie_embeddings=True),
    "qwen2.5-0.5b": TransformerConfig(151936, 896, 24, 14, 2, 4864, tie_embeddings=True, **_QWEN),
    "qwen2.5-1.5b": TransformerConfig(151936, 1536, 28, 12, 2, 8960, tie_embeddings=True, **_QWEN),
    "qwen2.5-3b": TransformerConfig(151936, 2048, 36, 16, 2, 11008, tie_embeddings=True, **_QWEN),
    "qwen2.5-7b": TransformerConfig(152064, 3584, 28, 28, 4, 18944, **_QWEN),
    "qwen2.5-14b": TransformerConfig(152064, 5120, 48, 40, 8, 13824, **_QWEN),
    "qwen2.5-32b": TransformerConfig(152064, 5120, 64, 40, 8, 27648, **_QWEN),
    "qwen2.5-72b": TransformerConfig(152064, 8192, 80, 64, 8, 29568, **_QWEN),
    "llama-3-8b": TransformerConfig(
        128256, 4096, 32, 32, 8, 14336, rope_theta=5e5, norm_epsilon=1e-5
    ),
}
"""By name: Qwen2.5 (arXiv 2412.15115), Llama 3 (arXiv 2407.21783), and a toy."""


def model_shape(name: str, dtype: str = "bfloat16") -> TransformerConfig:
    """The network of a model, parameters in float32, activations in `dtype`.

    Raises:
      ConfigError: no such model.
    """
    if name not in SHAPES:
        raise ConfigError(f"--model = {name!r}; allowed are {', '.join(SHAPES)}")
    return dataclasses.replace(SHAPES[name], dtype=dtype, remat=True, scan=True)
