"""Tokenizers and chat templates of language models, from what lies beside their weights.

Either a directory as Hugging Face writes it (`tokenizer.json`, `tokenizer_config.json`, ...) or
the metadata of a GGUF file. The `tokenizers` library does the work.
"""

import functools
import json
import pathlib
from typing import Any, NamedTuple, Sequence

import numpy as np

from jaxreward.tasks import chat_template
from jaxreward.tasks.tokenizer import INVALID, Tokenizer

TURN_ENDS = ("<|im_end|>", "<end_of_turn>", "<|eot_id|>")
"""Special tokens that end a turn of a conversation, whether or not the files name them."""

SPECIALS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
"""Roles of special tokens that chat templates read."""

_LARGEST = 128 << 20  # bytes of a JSON file


class Pretrained(NamedTuple):
    """The tokenizer of a model and how it is spoken to.

    Attributes:
      tokenizer: texts to ids and back.
      template: its chat template, empty if it has none.
      specials: texts of its special tokens by role, see `SPECIALS`.
    """

    tokenizer: Tokenizer
    template: str
    specials: dict[str, str]


def open_pretrained(path: str | pathlib.Path) -> Pretrained:
    """The tokenizer of a directory or of a `.gguf` file.

    Raises:
      ValueError: a file is absent or is not what it should be, or the tokenizer is of a kind
        that is not known; the message names the file.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        return _of_directory(path)
    if path.suffix.lower() != ".gguf" or not path.is_file():
        raise ValueError(f"{path} holds no tokenizer; allowed are a directory and a .gguf file")
    return _of_gguf(path)


def chat_prompts(pretrained: Pretrained, texts: Sequence[str], *, system: str = "") -> list[str]:
    """What the model reads where `texts` are said to it, up to where its answer begins.

    Encode it without `bos`: the template writes that itself.

    Args:
      pretrained: from `open_pretrained`.
      texts: what the user says, each in a conversation of its own.
      system: a system message before it; empty for none.

    Raises:
      ValueError: the model has no chat template, or see `chat_template.render`.
    """
    first = [{"role": "system", "content": system}] if system else []
    conversations = [[*first, {"role": "user", "content": text}] for text in texts]
    return render_chats(pretrained, conversations, add_generation_prompt=True)


def render_chats(
    pretrained: Pretrained,
    conversations: Sequence[chat_template.Conversation],
    *,
    add_generation_prompt: bool = False,
    variables: dict[str, Any] | None = None,
) -> list[str]:
    """Conversations as the model's own template writes them.

    Raises:
      ValueError: the model has no chat template, or see `chat_template.render`.
    """
    if not pretrained.template:
        raise ValueError("the model has no chat template; allowed are plain prompts")
    return chat_template.render(
        pretrained.template,
        conversations,
        add_generation_prompt=add_generation_prompt,
        variables={**pretrained.specials, **(variables or {})},
    )


def _of_directory(path: pathlib.Path) -> Pretrained:
    settings = {
        **_read_json(path / "special_tokens_map.json"),
        **_read_json(path / "tokenizer_config.json"),
    }
    file = path / "tokenizer.json"
    text = _read_text(file)
    if not text:
        raise ValueError(f"{file} is not there; it is the one form of a tokenizer that is read")
    try:
        fast = _library().Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{file} holds no tokenizer: {error}") from error
    specials = {role: _content(settings[role]) for role in SPECIALS if settings.get(role)}
    ends = [specials.get("eos_token")]
    for name in ("generation_config.json", "config.json"):
        found = _read_json(path / name).get("eos_token_id")
        ends += found if isinstance(found, list) else [found]
    return Pretrained(_wrapped(fast, specials, ends, file), _template(path, settings), specials)


def _of_gguf(path: pathlib.Path) -> Pretrained:
    from jaxreward.networks.gguf_reader import read_gguf
    from jaxreward.tasks import gguf_tokenizer

    metadata = read_gguf(path).metadata
    fast, specials, ends = gguf_tokenizer.build(metadata, str(path))
    template = metadata.get("tokenizer.chat_template", "")
    return Pretrained(_wrapped(fast, specials, ends, path), template, specials)


def _wrapped(fast: Any, specials: dict[str, str], ends: list, file: pathlib.Path) -> Tokenizer:
    """The library's tokenizer as ours.

    Args:
      fast: a `tokenizers.Tokenizer`.
      specials: texts of special tokens by role.
      ends: ids or texts that end a response; None where a file says nothing.
      file: for messages.
    """
    fast.no_truncation()
    fast.no_padding()
    ids = set(fast.get_vocab(with_added_tokens=True).values())
    known = np.zeros(max(ids, default=0) + 1, bool)
    known[list(ids)] = True
    ends = [fast.token_to_id(end) if isinstance(end, str) else end for end in ends]
    named = {token.content for token in fast.get_added_tokens_decoder().values() if token.special}
    ends += [fast.token_to_id(name) for name in TURN_ENDS if name in named]
    stops = tuple(dict.fromkeys(end for end in ends if end is not None))
    if not stops or not all(isinstance(end, int) and end in ids for end in stops):
        raise ValueError(f"{file}: ids that end a text are {stops}; allowed is at least one of "
                         f"0 to {len(known) - 1}")  # fmt: skip
    pad, bos = (fast.token_to_id(specials.get(f"{role}_token", "")) for role in ("pad", "bos"))
    return Tokenizer(
        vocab_size=len(known),
        pad=stops[0] if pad is None else pad,
        bos=bos,
        eos=stops[0],
        stops=stops,
        to_ids=functools.partial(_to_ids, fast),
        to_texts=functools.partial(_to_texts, fast, known),
    )


def _to_ids(fast: Any, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """See `Tokenizer.to_ids`; special tokens that a text spells out are those tokens."""
    bad = next((text for text in texts if not text.isascii() and _surrogates(text)), None)
    if bad is not None:
        raise ValueError(f"text {bad[:60]!r} holds a surrogate; allowed is what UTF-8 can write")
    rows = [row.ids for row in fast.encode_batch(texts, add_special_tokens=False)]
    counts = np.array([len(row) for row in rows], np.int32)
    return np.array([token for row in rows for token in row], np.int32), counts


def _surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _to_texts(fast: Any, known: np.ndarray, rows: np.ndarray, ends: np.ndarray) -> list[str]:
    """See `Tokenizer.to_texts`; special tokens are written as they are named."""
    possible = (rows >= 0) & (rows < len(known))
    possible &= known[np.where(possible, rows, 0)]
    pieces, counts = [], []
    for row, good, end in zip(rows, possible, ends):
        cuts = np.flatnonzero(~good[:end])
        starts, stops = np.append(0, cuts + 1), np.append(cuts, end)
        pieces += [row[start:stop].tolist() for start, stop in zip(starts, stops)]
        counts.append(len(starts))
    parts = iter(fast.decode_batch(pieces, skip_special_tokens=False))
    return [INVALID.join(next(parts) for _ in range(count)) for count in counts]


def _read_text(file: pathlib.Path) -> str:
    """Empty if there is no such file."""
    if not file.is_file():
        return ""
    if file.stat().st_size > _LARGEST:
        raise ValueError(f"{file} has {file.stat().st_size} bytes; allowed are {_LARGEST}")
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8: {error}") from error


def _read_json(file: pathlib.Path) -> dict[str, Any]:
    text = _read_text(file)
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} holds a {type(value).__name__}; allowed is an object")
    return value


def _content(token: Any) -> str:
    """The text of a special token, which files give as such or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    if not isinstance(text, str):
        raise ValueError(f"special token {token!r}; allowed is a text")
    return text


def _template(path: pathlib.Path, settings: dict[str, Any]) -> str:
    """Of the file of its own, else of the settings; of several, the one named "default"."""
    own = _read_text(path / "chat_template.jinja")
    found = own or settings.get("chat_template") or ""
    if isinstance(found, list):
        found = {item["name"]: item["template"] for item in found}.get("default", "")
    if not isinstance(found, str):
        raise ValueError(f"{path}: chat_template is a {type(found).__name__}; allowed is a text")
    return found


def _library():
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("pretrained tokenizers need jaxreward[lm]") from error
    return tokenizers
