"""Which stored tensor each parameter is, in Hugging Face checkpoints and in GGUF files."""

from typing import NamedTuple

import numpy as np

from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.networks.weight_files import Index, StoredTensor


class Source(NamedTuple):
    """How a parameter is read.

    Attributes:
      name: of the stored tensor.
      transposed: the parameter is its transpose; matrices are stored `[out, in]`.
      offset: added to what is stored.
      rotary_heads: number of heads whose rows are stored interleaved, pairs side by side, as
        llama.cpp rotates them; 0 if they are not.
    """

    name: str
    transposed: bool = False
    offset: float = 0.0
    rotary_heads: int = 0


_HF_LAYER = {
    "attention/q_proj": "self_attn.q_proj",
    "attention/k_proj": "self_attn.k_proj",
    "attention/v_proj": "self_attn.v_proj",
    "attention/o_proj": "self_attn.o_proj",
    "attention/q_norm": "self_attn.q_norm",
    "attention/k_norm": "self_attn.k_norm",
    "gate_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "down_proj": "mlp.down_proj",
    "input_norm": "input_layernorm",
    "post_norm": "post_attention_layernorm",
}
_HF_GEMMA = {
    "post_norm": "pre_feedforward_layernorm",
    "attention_norm": "post_attention_layernorm",
    "feedforward_norm": "post_feedforward_layernorm",
}
_GGUF_LAYER = {
    "attention/q_proj": "attn_q",
    "attention/k_proj": "attn_k",
    "attention/v_proj": "attn_v",
    "attention/o_proj": "attn_output",
    "attention/q_norm": "attn_q_norm",
    "attention/k_norm": "attn_k_norm",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "input_norm": "attn_norm",
    "post_norm": "ffn_norm",
    "attention_norm": "post_attention_norm",
    "feedforward_norm": "post_ffw_norm",
}


def hf_source(config: TransformerConfig, module: str, leaf: str, layer: int | None) -> Source:
    """The tensor of a Hugging Face checkpoint behind a parameter.

    Args:
      config: of the network.
      module: path of the module inside its block, such as `attention/q_proj`; outside of the
        blocks `embed`, `final_norm` or "".
      leaf: name of the parameter in the module.
      layer: of the block, None outside.
    """
    if layer is None:
        names = {"embed": "model.embed_tokens.weight", "final_norm": "model.norm.weight"}
        return Source(names.get(module, "lm_head.weight"), transposed=leaf == "head")
    names = _HF_LAYER | (_HF_GEMMA if config.output_norms else {})
    suffix = "bias" if leaf == "bias" else "weight"
    return Source(f"model.layers.{layer}.{names[module]}.{suffix}", leaf == "kernel")


def gguf_source(
    config: TransformerConfig, family: str, module: str, leaf: str, layer: int | None
) -> Source:
    """The same for a GGUF file, whose family decides how some tensors are stored."""
    offset = -1.0 if leaf == "scale" and config.norm_offset else 0.0
    if layer is None:
        names = {"embed": "token_embd.weight", "final_norm": "output_norm.weight"}
        return Source(names.get(module, "output.weight"), leaf == "head", offset)
    heads = {"attention/q_proj": config.heads, "attention/k_proj": config.kv_heads}
    interleaved = heads.get(module, 0) if family == "llama" else 0
    suffix = "bias" if leaf == "bias" else "weight"
    name = f"blk.{layer}.{_GGUF_LAYER[module]}.{suffix}"
    return Source(name, leaf == "kernel", offset, interleaved)


def read(source: Source, stored: StoredTensor, index: Index) -> np.ndarray:
    """The part of a parameter at `index`, one slice per axis of the parameter."""
    index = tuple(reversed(index)) if source.transposed else tuple(index)
    if source.rotary_heads:
        rows = np.arange(stored.shape[0])[index[0]]
        index = (_interleaved(rows, stored.shape[0] // source.rotary_heads), *index[1:])
    part = stored.read(index)
    part = part.T if source.transposed else part
    return part + np.asarray(source.offset, part.dtype) if source.offset else part


def _interleaved(rows: np.ndarray, head_dim: int) -> np.ndarray:
    """Where rows that hold a head's halves one after the other are stored side by side."""
    head, place = np.divmod(rows, head_dim)
    half, pair = np.divmod(place, head_dim // 2)
    return head * head_dim + 2 * pair + half
