"""Checkpoints in and out; tests/networks/data is written by `experiments.parity`."""

import functools
import json
import pathlib
import shutil
import struct
import tracemalloc

import jax
import ml_dtypes
import numpy as np
import pytest

from experiments.parity import our_answers
from jaxreward.networks import weights
from jaxreward.networks.transformer import init, stack_blocks
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.training import sharding

DATA = pathlib.Path(__file__).parent / "data"
FAMILIES = sorted(path.name for path in DATA.iterdir())
CONFIG = TransformerConfig(
    vocab_size=37, width=16, layers=2, heads=4, kv_heads=2, intermediate=24, head_dim=4
)


def equal(found, expected):
    return jax.tree.structure(found) == jax.tree.structure(expected) and all(
        jax.tree.leaves(jax.tree.map(np.array_equal, found, expected))
    )


@functools.cache
def start(config=CONFIG):
    """Parameters."""
    return jax.jit(lambda key: init(config, key))(jax.random.key(0))


@pytest.fixture(scope="module", name="template")
def checkpoint_to_copy(tmp_path_factory):
    directory = tmp_path_factory.mktemp("template") / "model"
    weights.save_checkpoint(directory, CONFIG, start())
    return directory


@pytest.fixture
def saved(template, tmp_path):
    return shutil.copytree(template, tmp_path / "model"), start()


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_tokens_are_those_of_transformers(family):
    checkpoint = weights.open_checkpoint(DATA / family)
    expected = np.load(DATA / family / "expected.npz")
    found = our_answers(checkpoint.config, weights.load_params(checkpoint), expected["ids"])
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=2e-4)
    np.testing.assert_array_equal(found["greedy"], expected["greedy"])


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_gives_the_stored_tensors_back(family, tmp_path):
    checkpoint = weights.open_checkpoint(DATA / family)
    weights.save_checkpoint(tmp_path, checkpoint.config, weights.load_params(checkpoint))
    again = weights.open_checkpoint(tmp_path)
    assert again.config == checkpoint.config and again.family == checkpoint.family
    assert set(again.tensors) == set(checkpoint.tensors)
    for name, tensor in checkpoint.tensors.items():
        whole = (slice(None),) * len(tensor.shape)
        np.testing.assert_array_equal(again.tensors[name].read(whole), tensor.read(whole))


def test_shards_of_a_few_kilobytes(tmp_path):
    params = start()
    weights.save_checkpoint(tmp_path, CONFIG, params, shard_bytes=4000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert equal(weights.load_params(weights.open_checkpoint(tmp_path)), params)
    weights.save_checkpoint(tmp_path, CONFIG, params)  # one file now, and none of the old ones
    assert not list(tmp_path.glob("model-*"))
    assert equal(weights.load_params(weights.open_checkpoint(tmp_path)), params)


def test_stacked_layers_and_bfloat16(saved, tmp_path):
    directory, params = saved
    scanned = weights.load_params(weights.open_checkpoint(directory, scan=True))
    stacked = jax.jit(stack_blocks)(params)
    assert equal(scanned, stacked)
    short = jax.tree.map(lambda leaf: np.asarray(leaf).astype(ml_dtypes.bfloat16), stacked)
    config = weights.open_checkpoint(directory, scan=True).config
    weights.save_checkpoint(tmp_path / "short", config, short)
    stored = weights.open_checkpoint(tmp_path / "short").tensors["model.norm.weight"]
    assert stored.read((slice(None),)).dtype == ml_dtypes.bfloat16
    found = weights.load_params(
        weights.open_checkpoint(tmp_path / "short", scan=True), param_dtype="bfloat16"
    )
    assert equal(found, short)


def test_a_load_with_shardings_reads_everything_once(saved):
    directory, params = saved
    checkpoint, read = weights.open_checkpoint(directory), []

    def watched(tensor):
        def note(index):
            part = tensor.read(index)
            read.append((tensor.name, part.size))
            return part

        return tensor._replace(read=note)

    spied = {name: watched(tensor) for name, tensor in checkpoint.tensors.items()}
    checkpoint = checkpoint._replace(tensors=spied)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    rules = sharding.transformer_rules(CONFIG, mesh)
    shardings = sharding.state_shardings(jax.eval_shape(lambda: params), mesh, rules)
    assert equal(weights.load_params(checkpoint, shardings=shardings), params)
    stored = {name: int(np.prod(tensor.shape)) for name, tensor in checkpoint.tensors.items()}
    assert sorted(read) == sorted(stored.items())


def edit_json(path, **changes):
    raw = json.loads(path.read_text())
    for name, value in changes.items():
        raw.pop(name, None) if value is None else raw.__setitem__(name, value)
    path.write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model_type="mamba"), "model_type = 'mamba'; allowed are llama, qwen2"),
        (dict(model_type=None), "model_type = None"),
        (dict(hidden_act="relu"), "'relu'"),
        (dict(attention_bias=True), "attention_bias = True"),
        (dict(hidden_size="16"), "hidden_size = '16'; allowed is a int"),
        (dict(hidden_size=None), "hidden_size = None"),
        (dict(rope_scaling={"rope_type": "yarn", "factor": 2.0}), "'yarn'"),
        (dict(rope_scaling={"rope_type": "llama3"}), "rope_scaling: factor = None"),
        (dict(num_key_value_heads=3), "kv_heads = 3"),
        (dict(tie_word_embeddings="yes"), "tie_word_embeddings = 'yes'"),
        (dict(num_hidden_layers=3), "model.layers.2.* is missing"),
        (dict(num_hidden_layers=1), "model.layers.1.* belongs to no parameter"),
        (dict(num_hidden_layers=10**9), "num_hidden_layers = 1000000000; allowed are at most"),
        (dict(num_hidden_layers=9000), "9000 layers, but 21 tensors"),
        (dict(head_dim=2 * 10**9), "size_per_head = 2000000000; the largest tensor there has 37"),
        (dict(vocab_size=10**30), "vocab_size = 1000.*; allowed is a int"),
        (dict(rms_norm_eps=float("nan")), "rms_norm_eps = nan"),
        (dict(rope_theta=float("inf")), "rope_theta = inf"),
        (dict(rope_scaling="linear"), "rope_scaling = 'linear'; allowed is an object"),
        (dict(model_type=["llama"]), r"model_type = \['llama'\]"),
        (dict(rope_scaling={"type": "linear", "factor": 0}), "factor = 0"),
        (dict(model_type="gemma3_text", hidden_act=None, sliding_window_pattern=0),
         "sliding_window_pattern = 0; allowed is >= 1"),
        (dict(model_type="gemma3_text", hidden_act=None, layer_types=5), "layer_types = 5"),
        (dict(intermediate_size=25), "down_proj.weight has shape .16, 24.*needs .16, 25"),
    ],
)
def test_configs_that_cannot_be(saved, changes, message):
    edit_json(saved[0] / "config.json", **changes)
    with pytest.raises(ValueError, match=message) as error:
        weights.open_checkpoint(saved[0])
    assert str(saved[0]) in str(error.value)


def header_of(path):
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write(path, header, data, length=None):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def tamper(path, kind):
    header, data = header_of(path)
    norm, embed = header["model.norm.weight"], header["model.embed_tokens.weight"]
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "no header":
        path.write_bytes(b"\x10\x00")
    elif kind == "huge header":
        write(path, header, data, length=2**63)
    elif kind == "overlap":
        norm["data_offsets"] = [embed["data_offsets"][0], embed["data_offsets"][0] + 64]
        write(path, header, data)
    elif kind == "past the end":
        norm["data_offsets"] = [len(data) + 64, len(data) + 128]
        write(path, header, data)
    elif kind == "shape":
        norm["shape"] = [2**40]
        write(path, header, data)
    elif kind == "dtype":
        norm["dtype"] = "Q9"
        write(path, header, data)
    elif kind == "notes":
        write(path, header | {"__metadata__": {"format": {"deep": 1}}}, data)
    elif kind == "twice":
        text = json.dumps(header)
        own = json.dumps({"model.norm.weight": norm})[1:-1]
        write(path, (text[:-1] + ", " + own + "}").encode(), data)
    elif kind == "pickle":
        path.write_bytes(b"\x80\x04\x95" + bytes(100))
    elif kind == "zip":
        path.write_bytes(b"PK\x03\x04" + bytes(100))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "truncated"),
        ("no header", "truncated"),
        ("huge header", "header of 9223372036854775808 bytes"),
        ("overlap", "inside model.embed_tokens.weight|inside model.norm.weight"),
        ("past the end", "model.norm.weight ends at byte"),
        ("shape", "model.norm.weight of type F32 and shape .1099511627776. takes"),
        ("dtype", "model.norm.weight has type 'Q9'"),
        ("notes", "__metadata__ is .'format'.*; allowed are texts by name"),
        ("twice", "'model.norm.weight' stands there twice"),
        ("pickle", "pickle by its first bytes"),
        ("zip", "pickle by its first bytes"),
    ],
)
def test_files_that_are_damaged_or_hostile(saved, kind, message):
    path = saved[0] / "model.safetensors"
    tamper(path, kind)
    tracemalloc.start()
    with pytest.raises(ValueError, match=message) as error:
        weights.open_checkpoint(saved[0])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(path) in str(error.value)
    assert peak < 100e6


def test_a_file_that_is_torn_after_it_was_opened_names_the_tensor(saved):
    checkpoint = weights.open_checkpoint(saved[0])
    path = saved[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors: .* cannot be read"):
        weights.load_params(checkpoint)


def test_pickles_are_refused_by_name(saved):
    directory = saved[0]
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pytorch_model.bin: .bin files are pickles"):
        weights.open_checkpoint(directory)
    with pytest.raises(ValueError, match="are pickles"):
        weights.open_checkpoint(directory / "pytorch_model.bin")


def test_index_errors_name_the_file(tmp_path):
    params = start()
    weights.save_checkpoint(tmp_path, CONFIG, params, shard_bytes=4000)
    index = tmp_path / "model.safetensors.index.json"
    raw = json.loads(index.read_text())
    first = sorted(set(raw["weight_map"].values()))[0]
    shutil.move(tmp_path / first, tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=f"lists {first}, which is not there"):
        weights.open_checkpoint(tmp_path)
    shutil.move(tmp_path / "elsewhere", tmp_path / first)
    raw["weight_map"]["model.norm.weight"] = "../model.safetensors"
    index.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="allowed are names without a directory"):
        weights.open_checkpoint(tmp_path)


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not there"):
        weights.open_checkpoint(tmp_path / "no")
    with pytest.raises(ValueError, match="holds no config.json"):
        weights.open_checkpoint(tmp_path)


def test_parameters_of_another_network(tmp_path):
    headless = {name: leaf for name, leaf in start().items() if name != "head"}
    with pytest.raises(ValueError, match="params are not those of config"):
        weights.save_checkpoint(tmp_path / "x", CONFIG, headless)
    mixed = TransformerConfig(**{**vars(CONFIG), "qkv_bias": True, "qk_norm": True})
    with pytest.raises(ValueError, match="mixes switches of families"):
        weights.save_checkpoint(tmp_path / "x", mixed, start(mixed))
    assert not (tmp_path / "x").exists()
