"""Language models from and to files: Hugging Face directories and GGUF.

    checkpoint = open_checkpoint(path)            # headers only; everything is checked here
    params = load_params(checkpoint)              # or with shardings: each process its own parts
    save_checkpoint(directory, config, params)    # transformers loads it

Families: Llama (SmolLM2 is one), Qwen2 and 2.5, Qwen3, Gemma 3 (text). A pickle is never read.
"""

import functools
import json
import math
import pathlib
import re
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  numpy learns of bfloat16
import numpy as np

from jaxreward.networks import gguf_config, gguf_reader, hf_config, safetensors_reader
from jaxreward.networks import safetensors_writer, weight_names
from jaxreward.networks.transformer import init
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.networks.weight_files import Index, StoredTensor, refuse_pickle_name
from jaxreward.networks.weight_names import Source

COMPANIONS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json", "vocab.json", "merges.txt", "tokenizer.model", "added_tokens.json",
)  # fmt: skip
"""Files beside the weights that `save_checkpoint` copies from the directory it is told."""

_DERIVED = re.compile(r"rotary_emb\.inv_freq$")  # in old checkpoints; computed here


class _Leaf(NamedTuple):
    """A parameter: its path and shape, the tensors it comes from, whether they are stacked."""

    path: tuple[Any, ...]
    shape: tuple[int, ...]
    sources: list[Source]
    stacked: bool


class Checkpoint(NamedTuple):
    """A model on disk whose names and shapes fit its network.

    Attributes:
      config: of the network.
      family: one of `hf_config.FAMILIES`.
      path: the directory, or the GGUF file.
      tensors: what is stored, by its own name.
    """

    config: TransformerConfig
    family: str
    path: pathlib.Path
    tensors: dict[str, StoredTensor]


def open_checkpoint(path: str | pathlib.Path, **changes: Any) -> Checkpoint:
    """Reads the headers of a model and checks every name and shape.

    Args:
      path: a directory with `config.json` and safetensors, or a `.gguf` file.
      **changes: fields of the `TransformerConfig` to change, such as `dtype`, `remat`, `scan`.

    Raises:
      ValueError: the path is neither, an unsupported architecture, a file that is not what it
        should be, or a tensor that is missing, surplus or misshapen.
      FileNotFoundError: nothing is there.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there")
    if path.is_dir():
        raw = safetensors_reader.read_json(_config_file(path))
        config, family = hf_config.from_hf(raw, str(path / "config.json"))
        tensors = safetensors_reader.open_directory(path)
        if config.tie_embeddings:
            tensors.pop("lm_head.weight", None)  # a copy of the embeddings
    else:
        refuse_pickle_name(path)
        if path.suffix != ".gguf":
            raise ValueError(f"{path}: allowed are directories and .gguf files")
        found = gguf_reader.read_gguf(path)
        shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
        config, family = gguf_config.from_gguf(found.metadata, shapes, str(path))
        tensors = found.tensors
    config = TransformerConfig(**{**vars(config), **changes})
    tensors = {name: own for name, own in tensors.items() if not _DERIVED.search(name)}
    checkpoint = Checkpoint(config, family, path, tensors)
    _check_sizes(checkpoint)
    _check(checkpoint)
    return checkpoint


def _config_file(directory: pathlib.Path) -> pathlib.Path:
    path = directory / "config.json"
    if not path.exists():
        raise ValueError(f"{directory} holds no config.json")
    return path


def _check_sizes(checkpoint: Checkpoint) -> None:
    """Raises ValueError if the network is larger than what is stored, before it is traced."""
    config, tensors = checkpoint.config, checkpoint.tensors
    sizes = {size for own in tensors.values() if math.prod(own.shape) for size in own.shape}
    largest = max(sizes, default=0)
    asked = {
        name: getattr(config, name)
        for name in ("vocab_size", "width", "intermediate", "heads", "size_per_head")
    }
    for name, size in asked.items():
        if size > largest:
            raise ValueError(
                f"{checkpoint.path}: {name} = {size}; the largest tensor there has {largest}"
            )
    if config.layers > len(tensors):
        raise ValueError(
            f"{checkpoint.path}: {config.layers} layers, but {len(tensors)} tensors are there"
        )


def _check(checkpoint: Checkpoint) -> None:
    """Raises ValueError unless the tensors are those of the network."""
    used = set()
    for leaf in _leaves(checkpoint):
        own = leaf.shape[1:] if leaf.stacked else leaf.shape
        for source in leaf.sources:
            if source.name not in checkpoint.tensors:
                raise ValueError(f"{checkpoint.path}: tensor {source.name} is missing")
            stored = checkpoint.tensors[source.name]
            wanted = own[::-1] if source.transposed else own
            if stored.shape != wanted:
                raise ValueError(
                    f"{stored.file}: tensor {source.name} has shape {stored.shape}; the network "
                    f"needs {wanted}"
                )
            used.add(source.name)
    for name in sorted(set(checkpoint.tensors) - used):
        raise ValueError(
            f"{checkpoint.tensors[name].file}: tensor {name} belongs to no parameter of "
            f"{checkpoint.family}"
        )


def _leaves(checkpoint: Checkpoint) -> list[_Leaf]:
    """Every parameter; with `scan` those of the blocks have one source per layer."""
    config, found = checkpoint.config, []
    shapes = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        *modules, name = (entry.key for entry in path)
        block = modules.pop(0) if modules and modules[0].startswith("blocks") else None
        stacked, layers = block == "blocks", [None]
        if block is not None:
            layers = range(config.layers) if stacked else [int(block.removeprefix("blocks_"))]
        sources = [_source(checkpoint, "/".join(modules), name, layer) for layer in layers]
        found.append(_Leaf(path, leaf.shape, sources, stacked))
    return found


def _source(checkpoint: Checkpoint, module: str, leaf: str, layer: int | None) -> Source:
    if checkpoint.path.suffix == ".gguf":
        return weight_names.gguf_source(
            checkpoint.config, checkpoint.family, module, leaf, layer
        )
    return weight_names.hf_source(checkpoint.config, module, leaf, layer)


def load_params(
    checkpoint: Checkpoint, *, param_dtype: str | None = None, shardings: Any = None
) -> Any:
    """The parameters of `networks.transformer`.

    Args:
      checkpoint: from `open_checkpoint`.
      param_dtype: default that of the checkpoint's config.
      shardings: a tree of shardings like the parameters, `training.sharding.state_shardings` of
        them; a process then reads no more than its devices hold. None puts all on one device.

    Raises:
      ValueError: a tensor cannot be read.
    """
    dtype = jnp.dtype(param_dtype or checkpoint.config.param_dtype)
    places = dict(jax.tree_util.tree_leaves_with_path(shardings))
    params: dict[str, Any] = {}
    for leaf in _leaves(checkpoint):
        read = functools.partial(_read, checkpoint, leaf, dtype)
        if shardings is None:
            value = jnp.asarray(read((slice(None),) * len(leaf.shape)))
        else:
            value = jax.make_array_from_callback(leaf.shape, places[leaf.path], read)
        _put(params, [entry.key for entry in leaf.path], value)
    return params


def _read(checkpoint: Checkpoint, leaf: _Leaf, dtype: np.dtype, index: Index) -> np.ndarray:
    """The part of a parameter at an index."""
    chosen, own = leaf.sources, index
    if leaf.stacked:
        chosen, own = leaf.sources[index[0]], index[1:]
    parts = [
        weight_names.read(source, checkpoint.tensors[source.name], own).astype(dtype)
        for source in chosen
    ]
    return np.stack(parts) if leaf.stacked else parts[0]


def _put(tree: dict[str, Any], path: list[str], leaf: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf


def save_checkpoint(
    directory: str | pathlib.Path,
    config: TransformerConfig,
    params: Any,
    *,
    companions: str | pathlib.Path | None = None,
    shard_bytes: int = 5 << 30,
    **entries: Any,
) -> None:
    """Writes a directory that `open_checkpoint` and transformers load.

    Every array must be wholly on this process. Written beside the target and moved into place,
    `config.json` last.

    Args:
      directory: created if needed; files of the same names are replaced.
      config: of the network.
      params: its parameters, stacked or not; saved in their dtype.
      companions: a model's directory whose `COMPANIONS` (tokenizer, templates) are copied.
      shard_bytes: largest size of a file of weights.
      **entries: further entries of `config.json`, such as `eos_token_id`.

    Raises:
      ValueError: no family has this network, or the parameters are not those of the config.
    """
    directory = pathlib.Path(directory)
    dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(params)}
    raw = hf_config.to_hf(config, min(dtypes)) | entries
    tensors = _to_store(config, params, directory)
    directory.mkdir(parents=True, exist_ok=True)
    if companions is not None:
        for name in COMPANIONS:
            if (pathlib.Path(companions) / name).exists():
                shutil.copyfile(pathlib.Path(companions) / name, directory / name)
    safetensors_writer.write_directory(directory, tensors, shard_bytes)
    text = json.dumps(raw, indent=2, sort_keys=True) + "\n"
    temporary = directory / "config.json.tmp"
    temporary.write_text(text)
    temporary.rename(directory / "config.json")


def _to_store(
    config: TransformerConfig, params: Any, directory: pathlib.Path
) -> dict[str, np.ndarray]:
    """Stored tensors by their Hugging Face names."""
    leaves = _leaves(Checkpoint(config, "", directory, {}))
    found = dict(jax.tree_util.tree_leaves_with_path(params))
    if {path: leaf.shape for path, leaf in found.items()} != {x.path: x.shape for x in leaves}:
        raise ValueError("params are not those of config; allowed are equal names and shapes")
    tensors = {}
    for leaf in leaves:
        value = np.asarray(found[leaf.path])
        for source, own in zip(leaf.sources, value if leaf.stacked else [value]):
            tensors[source.name] = np.ascontiguousarray(own.T if source.transposed else own)
    return tensors
