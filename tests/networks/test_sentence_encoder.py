"""Sentence encoders: a tiny random checkpoint against numpy and transformers, and the real one."""

import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxreward.networks import sentence_encoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "good", "bad", "reward", "##s", "model", "."]
RAW = {
    "model_type": "bert", "hidden_act": "gelu", "vocab_size": 12, "hidden_size": 8,
    "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 24, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
}  # fmt: skip
MODULES = [{"type": f"sentence_transformers.models.{n}"} for n in sentence_encoder.MODULES]
TEXTS = ["A good reward model.", "bad", "", "rewards " * 40, "unknown words"]


def random_tensors():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(0, 0.5, shape).astype(np.float32)
    found = {"embeddings.position_ids": np.arange(24)[None]}
    for name, rows in (("word", 12), ("position", 24), ("token_type", 2)):
        found[f"embeddings.{name}_embeddings.weight"] = draw(rows, 8)
    linear = {"attention.self.query": (8, 8), "attention.self.key": (8, 8)}
    linear |= {"attention.self.value": (8, 8), "attention.output.dense": (8, 8)}
    linear |= {"intermediate.dense": (16, 8), "output.dense": (8, 16)}
    norms = ["embeddings.LayerNorm"]
    for layer in range(2):
        prefix = f"encoder.layer.{layer}."
        norms += [prefix + "attention.output.LayerNorm", prefix + "output.LayerNorm"]
        for name, shape in linear.items():
            found[f"{prefix}{name}.weight"] = draw(*shape)
            found[f"{prefix}{name}.bias"] = draw(shape[0])
    for name in norms:
        found[f"{name}.weight"], found[f"{name}.bias"] = 1 + draw(8), draw(8)
    found["pooler.dense.weight"], found["pooler.dense.bias"] = draw(8, 8), draw(8)
    return found


def write(directory, raw=RAW, tensors=None, modules=MODULES, pooling=None, cut=16):
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, processors

    tensors = random_tensors() if tensors is None else tensors
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(raw))
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": cut}))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    pooling = pooling or {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    vocab = {word: index for index, word in enumerate(WORDS)}
    fast = tokenizers.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer()
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    fast.enable_padding(length=20)  # to be overruled, as is a cut
    fast.enable_truncation(4)
    fast.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def encoder(directory):
    return sentence_encoder.load(directory)


def plain(tensors, ids):
    """BERT of one text without padding, in float64, and the mean normed."""
    get = lambda name: tensors[name].astype(np.float64)
    linear = lambda x, name: x @ get(f"{name}.weight").T + get(f"{name}.bias")

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-12)
        return scaled * get(f"{name}.weight") + get(f"{name}.bias")

    x = get("embeddings.word_embeddings.weight")[ids]
    x = x + get("embeddings.position_embeddings.weight")[: len(ids)]
    x = norm(x + get("embeddings.token_type_embeddings.weight")[0], "embeddings.LayerNorm")
    for layer in range(2):
        own = f"encoder.layer.{layer}."
        q, k, v = (linear(x, f"{own}attention.self.{n}") for n in ("query", "key", "value"))
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            weights = np.exp(q[:, part] @ k[:, part].T / 2.0)
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, part])
        y = linear(np.concatenate(heads, -1), own + "attention.output.dense")
        x = norm(x + y, own + "attention.output.LayerNorm")
        y = linear(x, own + "intermediate.dense")
        y = 0.5 * y * (1 + np.vectorize(math.erf)(y / 2**0.5))
        x = norm(x + linear(y, own + "output.dense"), own + "output.LayerNorm")
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_tokens(encoder):
    found = encoder.tokenize(TEXTS)
    assert found[0] == [2, 4, 5, 7, 9, 10, 3] and found[2] == [2, 3]
    assert found[3] == [2, *[7, 8] * 7, 3]  # cut at 16, not at the file's 4, and not padded
    assert found[4] == [2, 1, 1, 3]


def test_parity_with_a_plain_reference(encoder):
    found = sentence_encoder.encode(encoder, TEXTS, batch=2, multiple=4)
    expected = [plain(random_tensors(), ids) for ids in encoder.tokenize(TEXTS)]
    np.testing.assert_allclose(found, np.stack(expected), atol=2e-6)


def test_parity_with_transformers(encoder, directory):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(str(directory)).eval()
    for text, ids in zip(TEXTS, encoder.tokenize(TEXTS)):
        with torch.no_grad():
            mean = model(torch.tensor([ids])).last_hidden_state.mean(1).numpy()[0]
        own = sentence_encoder.encode(encoder, [text], batch=1)[0]
        np.testing.assert_allclose(own, mean / np.linalg.norm(mean), atol=5e-6)


def test_neither_order_nor_batches_matter(encoder):
    found = sentence_encoder.encode(encoder, TEXTS, batch=4, multiple=8)
    turned = sentence_encoder.encode(encoder, TEXTS[::-1], batch=3, multiple=1)[::-1]
    np.testing.assert_allclose(found, turned, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)
    assert sentence_encoder.encode(encoder, []).shape == (0, 8)


def test_padding_reaches_neither_values_nor_gradients(encoder):
    mask = np.arange(6)[None] < np.array([[4], [6], [0]])
    tokens = np.array([[2, 4, 5, 3, 0, 0], [2, 4, 5, 6, 7, 3], [0] * 6], np.int32)

    def total(params, tokens):
        found = encoder.embed(params, tokens, jnp.asarray(mask))
        return jnp.sum(jnp.sin(3.0 * found)), found

    run = jax.jit(jax.grad(total, has_aux=True))
    _, first = run(encoder.params, tokens)
    grads, second = jax.device_get(run(encoder.params, np.where(mask, tokens, np.int32(9))))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(second[2], np.zeros(8))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(grads))
    np.testing.assert_array_equal(grads["words"]["embedding"][9], np.zeros(8))


def test_too_many_tokens(encoder):
    tokens = jnp.zeros((1, 25), jnp.int32)
    with pytest.raises(ValueError, match="25 tokens; allowed are at most 24"):
        encoder.embed(encoder.params, tokens, tokens == 0)


@pytest.mark.parametrize("name, value", [("batch", 0), ("multiple", -1)])
def test_bad_numbers(encoder, name, value):
    with pytest.raises(ValueError, match=f"{name} = {value}; allowed is >= 1"):
        sentence_encoder.encode(encoder, ["a"], **{name: value})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "roberta"}, "model_type = 'roberta'; allowed is 'bert'"),
        ({"hidden_act": "gelu_new"}, "hidden_act = 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"num_attention_heads": 3}, "num_attention_heads = 3; allowed are divisors"),
        ({"hidden_size": "8"}, "hidden_size = '8'; allowed are whole numbers"),
        ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
        ({"layer_norm_eps": 0}, "layer_norm_eps = 0; allowed is"),
        ({"hidden_size": 10}, "has shape .*; the network needs"),
        ({"num_hidden_layers": 1}, "tensor encoder.layer.1.* belongs to no parameter"),
        ({"num_hidden_layers": 3}, "tensor encoder.layer.2.* is missing"),
        ({"vocab_size": 10}, "shape"),
    ],
)
def test_bad_configs(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        sentence_encoder.load(write(tmp_path, raw=RAW | change))


def test_other_sentence_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="steps"):
        sentence_encoder.read_config(write(tmp_path, modules=MODULES[:2]))
    with pytest.raises(ValueError, match="no list of steps"):
        sentence_encoder.read_config(write(tmp_path, modules={"type": 1}))
    with pytest.raises(ValueError, match="pooling_mode_cls_token = True; allowed is False"):
        pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
        sentence_encoder.read_config(write(tmp_path, pooling=pooling))
    with pytest.raises(ValueError, match=r"max_seq_length = 25; allowed is \[3, 24\]"):
        sentence_encoder.read_config(write(tmp_path, cut=25))


def test_bad_files_are_refused(tmp_path):
    config = sentence_encoder.read_config(write(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json: no tokenizer"):
        sentence_encoder.load_tokenizer(tmp_path, config)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="tokenizer.json is not there"):
        sentence_encoder.load_tokenizer(tmp_path, config)
    with pytest.raises(ValueError, match="11 tokens; allowed are at most 9"):
        sentence_encoder.load_tokenizer(write(tmp_path), config._replace(vocab=9))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ValueError, match="model.safetensors"):
        sentence_encoder.load_params(tmp_path, config)
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle"):
        sentence_encoder.load_params(tmp_path, config)


needs_package = pytest.mark.skipif(
    importlib.util.find_spec(sentence_encoder.PACKAGE) is None, reason="needs jaxreward[text]"
)

REAL = (
    "A man is eating a piece of bread.",
    "Someone eats some food.",
    "The stock market fell sharply on Monday.",
)

EXPECTED = (
    (0.052518, 0.055241, -0.011188, -0.005745, -0.127208),
    (0.014141, 0.008247, -0.001404, 0.033372, -0.117498),
    (0.045246, -0.01358, 0.06936, 0.037988, -0.017809),
)  # the first five of 384
SIMILAR = (0.633751, 0.050947)


@needs_package
def test_the_real_weights():
    """Against what transformers 5 and torch 2.13 gave for the same files."""
    encoder = sentence_encoder.load(sentence_encoder.minilm_directory())
    found = sentence_encoder.encode(encoder, REAL, batch=3)
    np.testing.assert_allclose(found[:, :5], EXPECTED, atol=2e-6)
    np.testing.assert_allclose(found[0] @ found[1:].T, SIMILAR, atol=2e-6)


def test_the_package_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setattr(sentence_encoder, "PACKAGE", "no_such_package")
    with pytest.raises(ImportError, match=r"no-such-package, jaxreward\[text\]"):
        sentence_encoder.minilm_directory()
