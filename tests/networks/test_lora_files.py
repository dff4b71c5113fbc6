"""Adapters on disk, alone and as peft reads and writes them."""

import functools
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.networks import lora, lora_files, weights
from jaxreward.networks.transformer import Transformer, init, stack_blocks
from jaxreward.networks.transformer_config import TransformerConfig

CONFIG = TransformerConfig(vocab_size=31, width=16, layers=2, heads=4, kv_heads=2, intermediate=24)
SETTINGS = lora.lora_config(3, alpha=5, targets=("down_proj", "q_proj", "v_proj"))
IDS = np.random.default_rng(0).integers(3, 31, (2, 7))


@functools.cache
def start():
    """A base, and an adapter away from its start."""
    base = jax.jit(lambda key: init(CONFIG, key))(jax.random.key(0))
    adapter = jax.jit(lambda base: lora.init(jax.random.key(1), base, SETTINGS))(base)
    rng = np.random.default_rng(2)
    moved = lambda leaf: np.asarray(leaf) + 0.3 * rng.standard_normal(leaf.shape, np.float32)
    return base, jax.tree.map(lambda leaf: jnp.asarray(moved(leaf)), adapter)


def same(a, b):
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        jax.tree.leaves(jax.tree.map(np.array_equal, a, b))
    )


def logits(params):
    network, lengths = Transformer(CONFIG), jnp.full((2,), 7, jnp.int32)
    variables = {"params": params}
    tokens = jnp.asarray(IDS, jnp.int32)
    hidden, _ = network.apply(variables, tokens, lengths, method=Transformer.encode)
    return hidden @ network.apply(variables, method=Transformer.head_weight)


@pytest.fixture
def saved(tmp_path):
    base, adapter = start()
    lora_files.save_adapter(tmp_path, CONFIG, adapter, SETTINGS)
    return tmp_path, base, adapter


def test_what_is_saved_is_loaded(saved):
    directory, _, adapter = saved
    found, config = lora_files.load_adapter(directory, CONFIG)
    assert same(found, adapter) and config == SETTINGS


def test_stacked_layers_share_the_format(saved):
    directory, base, adapter = saved
    scanned = TransformerConfig(**{**vars(CONFIG), "scan": True})
    found, _ = lora_files.load_adapter(directory, scanned)
    assert same(found, jax.jit(stack_blocks)(adapter))
    lora_files.save_adapter(directory / "again", scanned, found, SETTINGS)
    assert same(lora_files.load_adapter(directory / "again", CONFIG)[0], adapter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(peft_type="IA3"), "peft_type = 'IA3'"),
        (dict(use_dora=True), "use_dora = True"),
        (dict(bias="all"), "bias = 'all'"),
        (dict(r=2), "has shape .*rank r = 2"),
        (dict(r="3"), "r = '3'"),
        (dict(lora_alpha=-1), "alpha = -1"),
        (dict(target_modules=["q_proj"]), "belongs to no adapted layer"),
        (dict(target_modules=["q_proj", "k_proj"]), "k_proj.lora_A.weight is missing"),
        (dict(target_modules="all-linear"), "target_modules = 'all-linear'"),
    ],
)
def test_configs_that_cannot_be(saved, changes, message):
    path = saved[0] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        lora_files.load_adapter(saved[0], CONFIG)


def test_another_network_and_damaged_files(saved):
    wider = TransformerConfig(**{**vars(CONFIG), "width": 32})
    with pytest.raises(ValueError, match="the network needs"):
        lora_files.load_adapter(saved[0], wider)
    path = saved[0] / "adapter_model.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])
    with pytest.raises(ValueError, match="header of 9223372036854775808 bytes"):
        lora_files.load_adapter(saved[0], CONFIG)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors is not there"):
        lora_files.load_adapter(saved[0], CONFIG)


def test_parity_with_peft_both_ways(saved):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    directory, base, adapter = saved
    weights.save_checkpoint(directory / "base", CONFIG, base)
    plain = transformers.AutoModelForCausalLM.from_pretrained(directory / "base")
    model = peft.PeftModel.from_pretrained(plain, directory).eval()
    with torch.no_grad():
        theirs = model(torch.tensor(IDS)).logits.numpy()
    ours = logits(lora.join(base, adapter, SETTINGS))
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    np.testing.assert_allclose(logits(lora.merge(base, adapter, SETTINGS)), theirs, atol=2e-4)
    model.save_pretrained(directory / "theirs")
    found, config = lora_files.load_adapter(directory / "theirs", CONFIG)
    assert config == SETTINGS and same(found, adapter)
