"""Sizes and variants of `networks.transformer`."""

import dataclasses

from jaxreward.networks import rotary


ACTIVATIONS = ("silu", "gelu_tanh")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and variants.

    Attributes:
      vocab_size: `V`.
      width: `D`.
      layers: number of blocks.
      heads: query heads `H`.
      kv_heads: key and value heads; divides `heads`.
      intermediate: width inside the SwiGLU.
      head_dim: of one head; 0 means `width // heads`.
      rope_theta: base of the rotary frequencies.
      rope_scaling: None, or how `rotary` slows the frequencies.
      norm_epsilon: added to the mean square in RMSNorm.
      qkv_bias: biases on query, key and value (Qwen2).
      qk_norm: RMSNorm of each query and key head (Qwen3).
      tie_embeddings: the head is the transposed embedding.
      activation: of the gate, "silu" or "gelu_tanh" (Gemma).
      query_scalar: queries are divided by its square root; 0 means `head_dim`.
      scale_embeddings: embeddings are multiplied by `sqrt(width)` (Gemma).
      norm_offset: norms multiply by `1 + scale`, not `scale` (Gemma).
      output_norms: RMSNorm also of what attention and the gated layers add (Gemma 3).
      sliding_layers: blocks whose tokens see the last `sliding_window` tokens only, themselves
        included; from 0. Not with `scan`.
      sliding_window: see there.
      sliding_rope_theta: base of the unscaled rotary frequencies of `sliding_layers`; 0 gives
        them those of the others.
      dtype: of activations; parameters are cast to it where they are used.
      param_dtype: of parameters at initialisation.
      remat: keep only the input of each block for the backward pass of `encode` and `extend`,
        and compute the block again there.
      scan: one loop over the blocks instead of one after the other, which compiles in a time
        that does not depend on their number. Parameters are those of `stack_blocks`.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    head_dim: int = 0
    rope_theta: float = 10_000.0
    rope_scaling: rotary.Scaling | None = None
    norm_epsilon: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    activation: str = "silu"
    query_scalar: float = 0.0
    scale_embeddings: bool = False
    norm_offset: bool = False
    output_norms: bool = False
    sliding_layers: tuple[int, ...] = ()
    sliding_window: int = 0
    sliding_rope_theta: float = 0.0
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: bool = False
    scan: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "intermediate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}; allowed is >= 1")
        if self.head_dim < 0:
            raise ValueError(f"head_dim = {self.head_dim}; allowed is >= 1, or 0")
        if not self.rope_theta > 0:
            raise ValueError(f"rope_theta = {self.rope_theta}; allowed is > 0")
        if not self.norm_epsilon >= 0:
            raise ValueError(f"norm_epsilon = {self.norm_epsilon}; allowed is >= 0")
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads = {self.kv_heads}; allowed are divisors of {self.heads}")
        if not self.head_dim and self.width % self.heads:
            raise ValueError(f"heads = {self.heads}; allowed are divisors of width = {self.width}")
        if self.size_per_head % 2:
            raise ValueError(f"head_dim = {self.size_per_head}; allowed is an even number")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"activation = {self.activation!r}; allowed are {ACTIVATIONS}")
        for name in ("query_scalar", "sliding_rope_theta"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)}; allowed is > 0, or 0")
        self._check_sliding()

    def _check_sliding(self):
        layers = self.sliding_layers
        if not all(0 <= layer < self.layers for layer in layers):
            raise ValueError(f"sliding_layers = {layers}; allowed are 0 to {self.layers - 1}")
        if self.sliding_window < (1 if layers else 0):
            raise ValueError(
                f"sliding_window = {self.sliding_window}; allowed is >= 1, or 0 without "
                "sliding_layers"
            )
        if layers and self.scan:
            raise ValueError(f"sliding_layers = {layers}; allowed are none with scan = True")

    @property
    def size_per_head(self) -> int:
        """`head_dim`, resolved."""
        return self.head_dim or self.width // self.heads

    @property
    def query_scale(self) -> float:
        """What queries are multiplied by."""
        return (self.query_scalar or self.size_per_head) ** -0.5
