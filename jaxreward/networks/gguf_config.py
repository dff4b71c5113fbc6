"""Between GGUF metadata and `TransformerConfig`."""

from typing import Any

from jaxreward.networks.hf_config import MAX_LAYERS
from jaxreward.networks.transformer_config import TransformerConfig

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
"""Our family by `general.architecture`."""

_GEMMA_PATTERN, _GEMMA_LOCAL_THETA = 6, 10_000.0  # not in the metadata; llama.cpp has them too


def from_gguf(
    metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]], where: str
) -> tuple[TransformerConfig, str]:
    """The network of a GGUF file, and its family.

    Args:
      metadata: of the file.
      shapes: of its tensors by name.
      where: its path, for messages.

    Raises:
      ValueError: an unknown architecture, or a key that is absent, mistyped or unsupported.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ValueError(
            f"{where}: general.architecture = {architecture!r}; allowed are "
            f"{', '.join(ARCHITECTURES)}"
        )
    family = ARCHITECTURES[architecture]
    if "rope_freqs.weight" in shapes or metadata.get(f"{architecture}.rope.scaling.type") not in (
        None, "none",
    ):  # fmt: skip
        raise ValueError(f"{where}: scaled rotary frequencies; allowed are GGUF files without")
    embedding = shapes.get("token_embd.weight")
    if embedding is None or len(embedding) != 2:
        raise ValueError(f"{where}: token_embd.weight is {embedding}; allowed is a matrix")

    def read(key: str, kind: type = int, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        good = isinstance(value, int) if kind is int else isinstance(value, (int, float))
        if not good or isinstance(value, bool):
            raise ValueError(
                f"{where}: {architecture}.{key} = {value!r}; allowed is a {kind.__name__}"
            )
        return kind(value)

    heads, layers = read("attention.head_count"), read("block_count")
    if layers > MAX_LAYERS:
        raise ValueError(
            f"{where}: {architecture}.block_count = {layers}; allowed are at most {MAX_LAYERS}"
        )
    fields = dict(
        vocab_size=embedding[0],
        width=read("embedding_length"),
        layers=layers,
        heads=heads,
        kv_heads=read("attention.head_count_kv", int, heads),
        intermediate=read("feed_forward_length"),
        head_dim=read("attention.key_length", int, 0) or read("embedding_length") // max(heads, 1),
        norm_epsilon=read("attention.layer_norm_rms_epsilon", float),
        rope_theta=read("rope.freq_base", float, 10_000.0),
        qkv_bias=family == "qwen2",
        qk_norm=family in ("qwen3", "gemma3_text"),
        tie_embeddings="output.weight" not in shapes,
    )
    if family == "gemma3_text":
        fields |= dict(
            activation="gelu_tanh",
            scale_embeddings=True,
            norm_offset=True,
            output_norms=True,
            sliding_layers=tuple(i for i in range(layers) if (i + 1) % _GEMMA_PATTERN),
            sliding_window=read("attention.sliding_window"),
            sliding_rope_theta=_GEMMA_LOCAL_THETA,
        )
    try:
        return TransformerConfig(**fields), family
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
