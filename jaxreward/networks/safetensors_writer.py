"""Weights into one safetensors file, or a sharded set with its index."""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

from jaxreward.networks.safetensors_reader import INDEX, SINGLE


def write_directory(
    directory: pathlib.Path, tensors: dict[str, np.ndarray], shard_bytes: int
) -> None:
    """Writes `model.safetensors`, or shards of at most `shard_bytes` (or one tensor) each.

    Each file is written beside its place and moved there. Weights of an earlier save are
    removed first, so that a directory never mixes two.

    Raises:
      ValueError: `shard_bytes` < 1.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes = {shard_bytes}; allowed is >= 1")
    for old in (directory / INDEX, directory / SINGLE, *directory.glob("model-*.safetensors")):
        old.unlink(missing_ok=True)
    shards = _split(tensors, shard_bytes)
    if len(shards) == 1:
        _write(directory / SINGLE, shards[0])
        return
    places = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write(directory / name, shard)
        places |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    temporary = directory / f"{INDEX}.tmp"
    temporary.write_text(json.dumps(index, indent=2) + "\n")
    temporary.rename(directory / INDEX)


def _split(tensors: dict[str, np.ndarray], shard_bytes: int) -> list[dict[str, np.ndarray]]:
    shards: list[dict[str, np.ndarray]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _write(path: pathlib.Path, tensors: dict[str, np.ndarray]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    save_file(tensors, temporary, metadata={"format": "pt"})
    temporary.rename(path)
