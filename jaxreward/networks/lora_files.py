"""Adapters to and from peft's format: `adapter_config.json` and `adapter_model.safetensors`."""

import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from jaxreward.networks import lora, safetensors_reader, weight_names
from jaxreward.networks.dense import LORA_A, LORA_B
from jaxreward.networks.lora import Adapter, LoraConfig
from jaxreward.networks.transformer import init
from jaxreward.networks.transformer_config import TransformerConfig

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

_PREFIX = "base_model.model."
_ONLY = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "modules_to_save": None,
    "layers_to_transform": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "exclude_modules": None,
    "trainable_token_indices": None,
    "target_parameters": None,
}
"""Fields that may have one value only; absent or empty means that value."""


def save_adapter(
    directory: str | pathlib.Path,
    network: TransformerConfig,
    adapter: Adapter,
    config: LoraConfig,
    *,
    base: str = "",
) -> None:
    """Writes an adapter that peft loads onto the saved base model.

    Args:
      directory: created if needed.
      network: the network whose parameters are adapted.
      adapter: from `lora.init`, trained.
      config: of the adapter.
      base: name or path of the base model, recorded for peft.
    """
    directory = pathlib.Path(directory)
    tensors = {}
    for name, path, layer, stacked in _entries(network, config):
        value = np.asarray(lora.at(adapter, path))
        value = value[layer] if stacked else value
        tensors[name] = np.ascontiguousarray(value.T)
    directory.mkdir(parents=True, exist_ok=True)
    raw = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": 0.0,
        "use_rslora": config.rank_stabilized,
        "target_modules": list(config.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    for name, write in (
        (WEIGHTS, lambda path: save_file(tensors, path, metadata={"format": "pt"})),
        (CONFIG, lambda path: path.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n")),
    ):
        temporary = directory / f"{name}.tmp"
        write(temporary)
        temporary.rename(directory / name)


def load_adapter(
    directory: str | pathlib.Path, network: TransformerConfig, dtype: str = "float32"
) -> tuple[Adapter, LoraConfig]:
    """Reads an adapter that peft or `save_adapter` wrote.

    Raises:
      ValueError: a file that is not what it should be, a kind of adapter that is not supported,
        or tensors that are missing, surplus or misshapen.
      FileNotFoundError: a file is not there.
    """
    directory = pathlib.Path(directory)
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).exists():
            raise FileNotFoundError(f"{directory / name} is not there")
    config = _read_config(directory / CONFIG)
    tensors = safetensors_reader.open_file(directory / WEIGHTS)
    parts: dict[tuple[str, ...], list[np.ndarray]] = {}
    entries = _entries(network, config)
    for name, path, _, _ in entries:
        if name not in tensors:
            raise ValueError(f"{directory / WEIGHTS}: tensor {name} is missing")
        shape = tensors[name].shape
        rank = shape[0 if path[-1] == LORA_A else -1] if len(shape) == 2 else None
        if rank != config.rank:
            raise ValueError(
                f"{directory / WEIGHTS}: tensor {name} has shape {shape}; allowed is a matrix of "
                f"rank r = {config.rank}"
            )
        parts.setdefault(path, []).append(tensors[name].read((slice(None), slice(None))).T)
    for name in sorted(set(tensors) - {name for name, *_ in entries}):
        raise ValueError(f"{directory / WEIGHTS}: tensor {name} belongs to no adapted layer")
    adapter: Adapter = {}
    for path, values in parts.items():
        value = np.stack(values) if network.scan else values[0]
        lora.put(adapter, path, jnp.asarray(value.astype(jnp.dtype(dtype))))
    _check_shapes(directory, network, adapter, config)
    return adapter, config


def _check_shapes(
    directory: pathlib.Path, network: TransformerConfig, adapter: Adapter, config: LoraConfig
) -> None:
    wanted = jax.eval_shape(lambda key: lora.init(key, _base(network), config), jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        found = lora.at(adapter, tuple(entry.key for entry in path)).shape
        if found != leaf.shape:
            raise ValueError(
                f"{directory / WEIGHTS}: {jax.tree_util.keystr(path)} has shape {found}; the "
                f"network needs {leaf.shape}"
            )


def _base(network: TransformerConfig) -> Any:
    return jax.eval_shape(lambda key: init(network, key), jax.random.key(0))


def _entries(network: TransformerConfig, config: LoraConfig):
    """`(peft's name, path in the adapter, layer, whether stacked)` of every tensor."""
    shapes = jax.eval_shape(lambda key: lora.init(key, _base(network), config), jax.random.key(0))
    found = []
    for path, _ in jax.tree_util.tree_leaves_with_path(shapes):
        names = tuple(entry.key for entry in path)
        block, *module, leaf = names
        layers = range(network.layers) if block == "blocks" else [int(block.split("_")[1])]
        for layer in layers:
            source = weight_names.hf_source(network, "/".join(module), "kernel", layer)
            kind = {LORA_A: "lora_A", LORA_B: "lora_B"}[leaf]
            name = f"{_PREFIX}{source.name.removesuffix('weight')}{kind}.weight"
            found.append((name, names, layer, block == "blocks"))
    return found


def _read_config(path: pathlib.Path) -> LoraConfig:
    raw = safetensors_reader.read_json(path)
    for name, allowed in _ONLY.items():
        value = raw.get(name, allowed)
        if value != allowed and value not in (None, [], {}):
            raise ValueError(f"{path}: {name} = {value!r}; allowed is {allowed!r}")
    targets, rank, alpha = raw.get("target_modules"), raw.get("r"), raw.get("lora_alpha")
    if not isinstance(targets, list) or not isinstance(rank, int) or isinstance(rank, bool):
        raise ValueError(
            f"{path}: target_modules = {targets!r}, r = {rank!r}; allowed are a list of "
            f"{lora.TARGETS} and a whole number"
        )
    if not isinstance(alpha, (int, float)):
        raise ValueError(f"{path}: lora_alpha = {alpha!r}; allowed is a number > 0")
    ordered = tuple(sorted(targets, key=str))
    try:
        return lora.lora_config(
            rank, alpha=alpha, targets=ordered, rank_stabilized=bool(raw.get("use_rslora"))
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
