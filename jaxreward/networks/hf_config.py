"""Between Hugging Face's `config.json` and `TransformerConfig`, for the families we know.

Whatever would change the network's output and is not supported is refused, not ignored.
"""

from typing import Any

from jaxreward.networks import rotary
from jaxreward.networks.transformer_config import TransformerConfig

FAMILIES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
"""Architecture class by `model_type`."""

_SIZES = {
    "vocab_size": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate": "intermediate_size",
}

_LARGEST = 2.0**53
"""Numbers of a config are less than this in absolute value, so none is NaN or infinite."""

_ONLY = {
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "pretraining_tp": 1,
}
"""Fields that may only have one value; absent means that value."""

MAX_LAYERS = 10_000
"""Most blocks of a network that a file may ask for; nothing is built before this is checked."""

_GEMMA_PATTERN = 6
"""Gemma 3: every sixth layer sees everything, unless the file says otherwise."""


def from_hf(raw: dict[str, Any], where: str) -> tuple[TransformerConfig, str]:
    """The network of a `config.json`, and its family.

    Args:
      raw: the parsed file.
      where: its path, for messages.

    Raises:
      ValueError: an unknown architecture, or a field that is absent, mistyped or has a value
        that the networks do not support.
    """
    family = raw.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES:
        raise ValueError(f"{where}: model_type = {family!r}; allowed are {', '.join(FAMILIES)}")
    gemma = family == "gemma3_text"
    for name, allowed in _ONLY.items():
        if raw.get(name, allowed) not in (allowed, None):
            raise ValueError(f"{where}: {name} = {raw[name]!r}; allowed is {allowed!r}")
    fields = {ours: _number(raw, theirs, where, int) for ours, theirs in _SIZES.items()}
    if fields["layers"] > MAX_LAYERS:
        raise ValueError(
            f"{where}: num_hidden_layers = {fields['layers']}; allowed are at most {MAX_LAYERS}"
        )
    activation = raw.get("hidden_activation", raw.get("hidden_act")) if gemma else None
    activation = activation or raw.get("hidden_act", "gelu_pytorch_tanh" if gemma else "silu")
    wanted = "gelu_pytorch_tanh" if gemma else "silu"
    if activation != wanted:
        raise ValueError(f"{where}: activation {activation!r}; allowed for {family} is {wanted!r}")
    width, heads = fields["width"], fields["heads"]
    own_head = 0 if heads < 1 or width % heads else width // heads
    default_head = {"qwen3": 128, "gemma3_text": 256}.get(family, own_head)
    fields |= dict(
        kv_heads=_number(raw, "num_key_value_heads", where, int, fields["heads"]),
        head_dim=_number(raw, "head_dim", where, int, default_head),
        norm_epsilon=_number(raw, "rms_norm_eps", where, float, 1e-6),
        qkv_bias=family == "qwen2",
        qk_norm=family in ("qwen3", "gemma3_text"),
        tie_embeddings=_flag(raw, "tie_word_embeddings", where, gemma),
    )
    fields |= _gemma(raw, where, fields["layers"]) if gemma else _rope(raw, where, 10_000.0)
    try:
        return TransformerConfig(**fields), family
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _gemma(raw: dict[str, Any], where: str, layers: int) -> dict[str, Any]:
    kinds = raw.get("layer_types")
    if kinds is None:
        pattern = _number(raw, "sliding_window_pattern", where, int, _GEMMA_PATTERN)
        if pattern < 1:
            raise ValueError(f"{where}: sliding_window_pattern = {pattern}; allowed is >= 1")
        sliding = tuple(i for i in range(layers) if (i + 1) % pattern)
    else:
        known = {"sliding_attention": True, "full_attention": False}
        named = isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)
        if not named or len(kinds) != layers or not set(kinds) <= set(known):
            raise ValueError(f"{where}: layer_types = {kinds!r}; allowed are {layers} of {set(known)}")
        sliding = tuple(i for i, kind in enumerate(kinds) if known[kind])
    rope = _object(raw, "rope_parameters", where)
    local = _object(rope, "sliding_attention", where) or {
        "rope_theta": raw.get("rope_local_base_freq", 1e4)
    }
    if local.get("rope_type", "default") != "default":
        raise ValueError(f"{where}: rope_parameters.sliding_attention = {local}; allowed: default")
    own = raw | ({"rope_parameters": rope["full_attention"]} if "full_attention" in rope else {})
    return dict(
        activation="gelu_tanh",
        query_scalar=_number(raw, "query_pre_attn_scalar", where, float, 256.0),
        scale_embeddings=True,
        norm_offset=True,
        output_norms=True,
        sliding_layers=sliding,
        sliding_window=_number(raw, "sliding_window", where, int, 4096) if sliding else 0,
        sliding_rope_theta=_number(local, "rope_theta", where, float, 1e4),
        **_rope(own, where, 1_000_000.0),
    )


def _rope(raw: dict[str, Any], where: str, default: float) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, from either generation of config files."""
    scaling = _object(raw, "rope_parameters", where) or _object(raw, "rope_scaling", where)
    theta = _number(scaling | raw, "rope_theta", where, float, default)
    if "rope_theta" in scaling:
        theta = _number(scaling, "rope_theta", where, float)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return dict(rope_theta=theta, rope_scaling=None)

    def read(name: str, type_: type = float) -> Any:
        value = _number(scaling, name, f"{where}: rope_scaling", type_)
        if not value > 0:
            raise ValueError(f"{where}: rope_scaling: {name} = {value}; allowed is > 0")
        return value

    if kind == "linear":
        return dict(rope_theta=theta, rope_scaling=rotary.LinearScaling(read("factor")))
    if kind == "llama3":
        scale = rotary.Llama3Scaling(
            factor=read("factor"),
            low_frequency_factor=read("low_freq_factor"),
            high_frequency_factor=read("high_freq_factor"),
            original_length=read("original_max_position_embeddings", int),
        )
        if not scale.low_frequency_factor < scale.high_frequency_factor:
            raise ValueError(f"{where}: rope_scaling = {scaling}; allowed: low < high_freq_factor")
        return dict(rope_theta=theta, rope_scaling=scale)
    raise ValueError(f"{where}: rope type {kind!r}; allowed are default, linear and llama3")


def _number(raw: dict[str, Any], name: str, where: str, kind: type, default: Any = None) -> Any:
    value = raw.get(name)
    value = default if value is None else value
    right = isinstance(value, int) if kind is int else isinstance(value, (int, float))
    if not right or isinstance(value, bool) or not -_LARGEST < value < _LARGEST:
        raise ValueError(f"{where}: {name} = {value!r}; allowed is a {kind.__name__}")
    return kind(value)


def _object(raw: dict[str, Any], name: str, where: str) -> dict[str, Any]:
    value = raw.get(name) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{where}: {name} = {value!r}; allowed is an object")
    return value


def _flag(raw: dict[str, Any], name: str, where: str, default: bool) -> bool:
    value = raw.get(name, default)
    if not isinstance(value, bool):
        raise ValueError(f"{where}: {name} = {value!r}; allowed are true and false")
    return value


def family_of(config: TransformerConfig) -> str:
    """The family whose `config.json` can say what this network is.

    Raises:
      ValueError: none can.
    """
    gemma = dict(
        activation="gelu_tanh", scale_embeddings=True, norm_offset=True, output_norms=True
    )
    of_gemma = {name: getattr(config, name) == value for name, value in gemma.items()}
    if all(of_gemma.values()) and config.qk_norm and not config.qkv_bias:
        return "gemma3_text"
    plain = not any(of_gemma.values()) and not config.sliding_layers and not config.query_scalar
    if plain and not (config.qkv_bias and config.qk_norm):
        return "qwen2" if config.qkv_bias else "qwen3" if config.qk_norm else "llama"
    raise ValueError(f"{config} mixes switches of families; none of {', '.join(FAMILIES)} has it")


def to_hf(config: TransformerConfig, dtype: str) -> dict[str, Any]:
    """The `config.json` of a network.

    Raises:
      ValueError: see `family_of`.
    """
    family, gemma = family_of(config), config.output_norms
    raw = {
        "model_type": family,
        "architectures": [FAMILIES[family]],
        "torch_dtype": dtype,
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.size_per_head,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(config.rope_scaling),
        "attention_bias": False,
        "max_position_embeddings": 131_072,
    }
    if not gemma:
        return raw | {"hidden_act": "silu"}
    scalar = config.query_scalar or config.size_per_head
    kinds = ["full_attention"] * config.layers
    for layer in config.sliding_layers:
        kinds[layer] = "sliding_attention"
    return raw | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": int(scalar) if scalar == int(scalar) else scalar,
        "layer_types": kinds,
        "sliding_window": config.sliding_window or None,
        "rope_local_base_freq": config.sliding_rope_theta or config.rope_theta,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


def _rope_scaling(scaling: rotary.Scaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if isinstance(scaling, rotary.LinearScaling):
        return {"rope_type": "linear", "factor": scaling.factor}
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_frequency_factor,
        "high_freq_factor": scaling.high_frequency_factor,
        "original_max_position_embeddings": scaling.original_length,
    }
