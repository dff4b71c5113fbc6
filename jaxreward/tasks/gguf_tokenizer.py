"""A tokenizer of the `tokenizers` library from the metadata of a GGUF file.

Kinds: `gpt2`, byte-level BPE with the way of splitting words that `tokenizer.ggml.pre` names;
`llama`, SentencePiece's BPE, whose merges follow from the scores.
"""

from typing import Any, NamedTuple, Sequence

import numpy as np

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

SPLITS = {
    "llama-bpe": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}",
    "qwen2": rf"{_CONTRACTIONS}|{_WORDS}|\p{{N}}|{_REST}",
    "gpt-2": "",
    "smollm": r"\p{N}",
}
"""By `tokenizer.ggml.pre`: Llama 3, Qwen 2 to 3, GPT-2, SmolLM. The last two split as GPT-2 does,
SmolLM also between digits."""

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
_IDS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")


class _Entries(NamedTuple):
    """The vocabulary: texts, and kinds as numbers of `tokenizer.ggml.token_type`."""

    tokens: list[str]
    kinds: np.ndarray

    def of_kind(self, kind: int) -> list[str]:
        """The texts of a kind, in the order of their ids."""
        return [self.tokens[index] for index in np.flatnonzero(self.kinds == kind)]


def build(metadata: dict[str, Any], file: str) -> tuple[Any, dict[str, str], list[int]]:
    """The library's tokenizer, texts of special tokens by role, and ids that end a text.

    Raises:
      ValueError: the metadata hold no tokenizer, one of another kind, or one that cannot be.
    """
    builders = {"gpt2": _byte_level, "llama": _sentence_piece}
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in builders:
        raise ValueError(f"{file}: tokenizer.ggml.model = {kind!r}; allowed are {list(builders)}")
    entries = _entries(metadata, file)
    try:
        fast = builders[kind](metadata, entries, file)
    except (ValueError, ImportError):
        raise
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{file} holds no tokenizer: {error}") from error
    _add_specials(fast, entries)
    ids = {key: _id(metadata, key, entries, file) for key in {*_IDS.values(), *_ENDS}}
    specials = {
        role: entries.tokens[ids[key]] for role, key in _IDS.items() if ids[key] is not None
    }
    return fast, specials, [ids[key] for key in _ENDS if ids[key] is not None]


def _entries(metadata: dict[str, Any], file: str) -> _Entries:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not _is_texts(tokens) or not tokens:
        raise ValueError(f"{file}: tokenizer.ggml.tokens is absent; needed is a list of texts")
    if len(set(tokens)) < len(tokens):
        raise ValueError(f"{file}: tokenizer.ggml.tokens repeats a text; allowed is each once")
    kinds = np.asarray(metadata.get("tokenizer.ggml.token_type", np.ones(len(tokens), int)))
    if kinds.shape != (len(tokens),):
        raise ValueError(
            f"{file}: tokenizer.ggml.token_type has shape {kinds.shape}; allowed is "
            f"{(len(tokens),)}"
        )
    return _Entries(tokens, kinds)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _id(metadata: dict[str, Any], key: str, entries: _Entries, file: str) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value < len(entries.tokens):
        raise ValueError(
            f"{file}: tokenizer.ggml.{key} = {value!r}; allowed is 0 to {len(entries.tokens) - 1}"
        )
    return value


def _byte_level(metadata: dict[str, Any], entries: _Entries, file: str):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    pre = metadata.get("tokenizer.ggml.pre", "default")
    pre = {"default": "gpt-2", "llama3": "llama-bpe", "llama-v3": "llama-bpe"}.get(pre, pre)
    if pre not in SPLITS:
        raise ValueError(f"{file}: tokenizer.ggml.pre = {pre!r}; allowed are {list(SPLITS)}")
    merges = metadata.get("tokenizer.ggml.merges")
    if not _is_texts(merges) or not all(len(merge.split(" ")) == 2 for merge in merges):
        raise ValueError(f"{file}: tokenizer.ggml.merges is not a list of pairs")
    vocabulary = {token: index for index, token in enumerate(entries.tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    fast = Tokenizer(models.BPE(vocabulary, pairs, ignore_merges=pre == "llama-bpe"))
    as_gpt2 = pre in ("gpt-2", "smollm")
    steps = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=as_gpt2)]
    if SPLITS[pre]:
        steps.insert(0, pre_tokenizers.Split(Regex(SPLITS[pre]), "isolated"))
    fast.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if pre == "qwen2":
        fast.normalizer = normalizers.NFC()
    fast.decoder = decoders.ByteLevel()
    return fast


def _sentence_piece(metadata: dict[str, Any], entries: _Entries, file: str):
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = np.asarray(metadata.get("tokenizer.ggml.scores", ()), np.float32)
    if scores.shape != (len(entries.tokens),):
        raise ValueError(
            f"{file}: tokenizer.ggml.scores has shape {scores.shape}; allowed is "
            f"{(len(entries.tokens),)}"
        )
    unknown = (entries.of_kind(_UNKNOWN) or ["<unk>"])[0]
    model = models.BPE(
        {token: index for index, token in enumerate(entries.tokens)},
        merges_of_scores(entries.tokens, scores, entries.kinds == 1),
        unk_token=unknown,
        byte_fallback=bool(entries.of_kind(_BYTE)),
        fuse_unk=True,
    )
    fast = Tokenizer(model)
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    space = normalizers.Replace(" ", _SPACE)
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE), space] if prefix else [space]
    )
    undo = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    fast.decoder = decoders.Sequence(undo + [decoders.Strip(" ", 1, 0)] if prefix else undo)
    return fast


_SPACE = "\u2581"


def merges_of_scores(
    tokens: Sequence[str], scores: np.ndarray, normal: np.ndarray
) -> list[tuple[str, str]]:
    """The merges of a SentencePiece BPE: every way to make a token of two, best score first.

    Args:
      tokens: texts by id.
      scores: float `[V]`; the pair that makes the token of highest score is merged first.
      normal: bool `[V]`, False for control, byte and unknown tokens, which no merge makes.
    """
    ids = {token: index for index, token in enumerate(tokens) if normal[index]}
    found = []
    for token, index in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                found.append((-scores[index], ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _add_specials(fast: Any, entries: _Entries) -> None:
    from tokenizers import AddedToken

    for kind, special in ((_CONTROL, True), (_UNKNOWN, True), (_USER_DEFINED, False)):
        added = [
            AddedToken(text, special=special, normalized=False) for text in entries.of_kind(kind)
        ]
        (fast.add_special_tokens if special else fast.add_tokens)(added)
