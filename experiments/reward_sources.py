"""Where the scores come from that `experiments.evaluate_reward` judges.

Each source is a function `(prompts, responses) -> [B]` of lists of texts. All but the scores of
a file are called on blocks, so that memory is bounded by the size of a block.
"""

import functools
import importlib
import inspect
import itertools
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxreward.training import config as config_lib
from jaxreward.training.progress import open_progress
from jaxreward.transforms import aggregation

Scorer = Callable[[Sequence[str], Sequence[str]], np.ndarray]


def from_callable(path: str) -> Scorer:
    """A function by import path, `module:function`; the working directory is searched too.

    It gets a list of prompts and one of responses, and returns a number for each; None, NaN and
    infinity are missing.

    Raises:
      ValueError: there is no such function; the function raises, when it is called.
    """
    module, colon, name = path.partition(":")
    if not colon or not module or not name:
        raise ValueError(f"--callable = {path!r}; allowed is MODULE:FUNCTION")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module does when it is imported
        raise ValueError(f"--callable = {path!r} cannot be imported: {_told(error)}") from error
    if not callable(function):
        raise ValueError(f"--callable = {path!r} is a {type(function).__name__}, not a function")
    _check_signature(path, function)

    def score(prompts, responses):
        try:
            values = function(prompts, responses)
        except Exception as error:
            raise ValueError(f"--callable = {path!r} raised {_told(error)}") from error
        return _numbers(path, values, len(prompts))

    return score


def _told(error: Exception) -> str:
    """An error of somebody's code: what and where."""
    trace = traceback.extract_tb(error.__traceback__)
    where = f" ({trace[-1].filename}:{trace[-1].lineno})" if trace else ""
    return f"{type(error).__name__}: {error}{where}"


def _check_signature(path: str, function: Callable) -> None:
    try:
        inspect.signature(function).bind([], [])
    except TypeError as error:
        raise ValueError(f"--callable = {path!r} must take prompts and responses: {error}") from error
    except ValueError:
        pass  # one written in C may have no signature


def _numbers(path: str, values: Any, count: int) -> np.ndarray:
    try:
        if isinstance(values, (str, bytes, dict, set)):
            raise TypeError(type(values).__name__)
        detached = values.detach() if hasattr(values, "detach") else values  # of torch
        listed = [_number(value) for value in detached]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"--callable = {path!r} returned what is no list of numbers") from error
    if len(listed) != count:
        raise ValueError(f"--callable = {path!r} returned {len(listed)} scores for {count} texts")
    return np.array(listed)


def _number(value: Any) -> float:
    """NaN for None; numbers of Python, numpy, torch and jax, also in an axis of length 1."""
    if isinstance(value, str):
        raise TypeError("str")
    if value is not None and getattr(value, "shape", ()) == (1,):
        value = value[0]
    return np.nan if value is None else float(value)


def from_hugging_face(name: str) -> Scorer:
    """A sequence-classification reward model of the transformers package: its single logit.

    Prompt and response become a chat if the tokenizer has a template, messages as they were, else
    a pair of segments. Nothing is cut off: what is longer than the model takes has no score.

    Raises:
      ValueError: transformers or torch are not installed, or the model has no single logit, or
        no weights for it.
    """
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ValueError(
            f"--hf needs the packages transformers and torch ({error}); install them, or score "
            "the file elsewhere and pass --scores"
        ) from error
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    model, loading = transformers.AutoModelForSequenceClassification.from_pretrained(
        name, output_loading_info=True)
    if absent := sorted(loading["missing_keys"]):  # they would be random
        raise ValueError(
            f"--hf = {name!r} has no weights {', '.join(absent[:3])}; allowed is a model that was "
            "saved for sequence classification"
        )
    if model.config.num_labels != 1:
        raise ValueError(f"--hf = {name!r} has {model.config.num_labels} outputs; allowed is 1")
    model.eval()
    longest = min(
        tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 1e30)
    padded = _set_padding(tokenizer, model.config)

    def score(prompts, responses):
        encoded = tokenizer(
            *_segments(tokenizer, prompts, responses), verbose=False,
            add_special_tokens=tokenizer.chat_template is None,
        )  # fmt: skip
        short = [i for i, ids in enumerate(encoded["input_ids"]) if len(ids) <= longest]
        found, size = np.full(len(prompts), np.nan), len(short) if padded else 1
        for first in range(0, len(short), size or 1):
            part = short[first : first + size]
            rows = {key: [values[i] for i in part] for key, values in encoded.items()}
            if padded:
                rows = tokenizer.pad(rows)
            batch = {key: torch.tensor(values) for key, values in rows.items()}
            with torch.no_grad():
                found[part] = model(**batch).logits[:, 0].float().numpy()
        return found

    return score


def _set_padding(tokenizer: Any, config: Any) -> bool:
    """Sets the token that fills up a batch; False where there is none, so that texts go alone.

    It is the model's own, since the score is read at the last token that is another: the token
    that ends a text would move it.
    """
    own = getattr(config, "pad_token_id", None)
    if own is not None and 0 <= own < len(tokenizer):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(own)
    elif tokenizer.pad_token is not None:
        config.pad_token_id = tokenizer.pad_token_id
    else:
        config.pad_token_id = None
    return config.pad_token_id is not None


def _segments(tokenizer: Any, prompts: Sequence[str], responses: Sequence[str]) -> tuple:
    if tokenizer.chat_template is None:
        return list(prompts), list(responses)
    chats = _chats(prompts, responses)
    return ([tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats],)


def from_checkpoint(
    folder: Path, tokenizer: str = "", block_size: int = 64, members: str = "mean"
) -> Scorer:
    """A reward model that `jaxreward.rewards.learned_files` saved.

    Of a model of texts the response follows the prompt, as its chat template says if it has one
    (messages as they were), else directly, with the end-of-text token after it. A head of steps looks for the ends of
    steps between the two, in the response only. Of a model of feature vectors responses are JSON
    lists of numbers, and prompts do not matter.

    Args:
      folder: the checkpoint.
      tokenizer: a folder with `tokenizer.json`, a `.gguf` file or `MODULE:ALPHABET`; by default
        the checkpoint's own folder.
      block_size: >= 1.
      members: how the scores of an ensemble become one, see `transforms.aggregation` (the
        uncertainty-weighted mean as in best-of-n), or the number of one member: of a model with a
        head for each user, that user's. A score that a member lacks is missing.

    Raises:
      ValueError: the files are not those of a reward model or of a tokenizer, or there is no such
        member.
    """
    from jaxreward.rewards import learned, learned_files

    loaded = learned_files.load(folder)
    if loaded.spec["network"] == "mlp":
        encode: Callable = lambda prompts, responses: _vectors(responses, loaded.spec["width"])
    else:
        encode = _text_encoder(folder, tokenizer, spans=learned_files.has_steps(loaded.spec))

    if members.isdecimal() and int(members) >= loaded.spec.get("members", 1):
        allowed = f"0 to {loaded.spec.get('members', 1) - 1}"
        raise ValueError(f"--members = {members}; allowed with {folder} is {allowed}")

    def score(prompts, responses):
        found = learned.score_many(
            loaded.model.score, loaded.params, encode(prompts, responses),
            block_size=block_size, progress=False,
        )
        return _of_members(found.reshape(-1, len(prompts)), members)

    return score


def _of_members(scores: Float[np.ndarray, "K B"], members: str) -> Float[np.ndarray, "B"]:
    if members.isdecimal():
        return scores[int(members)].astype(np.float64)
    return np.asarray(aggregation.aggregate_scores(jnp.asarray(scores.T), members), np.float64)


def _vectors(responses: Sequence[str], width: int) -> np.ndarray:
    rows = []
    for text in responses:
        try:
            row = np.array(json.loads(text), np.float32)
        except (ValueError, TypeError):
            row = np.zeros(())
        if row.shape != (width,):
            raise ValueError(
                f"response {text[:40]!r} is no list of {width} numbers, which the checkpoint needs"
            )
        rows.append(row)
    return np.stack(rows)


def _text_encoder(folder: Path, name: str, *, spans: bool) -> Callable:
    """`(prompts, responses) -> Texts`; `spans` says whether these tell where responses stand."""
    from jaxreward.rewards import learned
    from jaxreward.tasks import pretrained_tokenizer
    from jaxreward.tasks import tokenizer as tokenizers

    if ":" in name:
        own = tokenizers.make_tokenizer(config_lib.resolve(name))
        pretrained = pretrained_tokenizer.Pretrained(own, "", {})
    else:
        pretrained = pretrained_tokenizer.open_pretrained(name or folder)
    render = functools.partial(pretrained_tokenizer.render_chats, pretrained)

    def encode(prompts, responses):
        plain = not pretrained.template
        texts = [p + r for p, r in zip(prompts, responses)] if plain else (
            render(_chats(prompts, responses)))
        found = tokenizers.encode(pretrained.tokenizer, texts, eos=plain)
        width = 1 << (found.tokens.shape[1] - 1).bit_length()  # few widths, few compilations
        missing = width - found.tokens.shape[1]
        pad = pretrained.tokenizer.pad
        tokens = np.pad(found.tokens, ((0, 0), (0, missing)), constant_values=pad)
        if not spans:
            return learned.Texts(tokens, found.lengths)
        before = prompts if plain else render(
            [chat[:-1] for chat in _chats(prompts, responses)], add_generation_prompt=True)
        after = [_after(text, response) for text, response in zip(texts, responses)]
        sides = (tokenizers.encode(pretrained.tokenizer, before),
                 tokenizers.encode(pretrained.tokenizer, after, eos=plain))
        return learned.Texts(tokens, found.lengths, _spans(found, *sides))

    return encode


def _after(text: str, response: str) -> str:
    """What a template writes after the response, whose blanks at the ends it may drop."""
    for own in (response, response.strip()):
        if (place := text.rfind(own)) >= 0:
            return text[place + len(own) :]
    return ""


def _spans(whole: Any, before: Any, after: Any) -> np.ndarray:
    """First token of each response and the one after its last, int32 `[B, 2]`.

    A token that a tokenizer makes of the end of the prompt and the beginning of the response is
    the response's.

    Args:
      whole: `tokenizer.Encoded` of prompts and responses.
      before: of what stands before the responses.
      after: of what stands after them.
    """
    rows = ([tokens[:n] for tokens, n in zip(*encoded)] for encoded in (whole, before, after))
    found = []
    for text, first, last in zip(*rows):
        start = _alike(text, first)
        found.append((start, max(start, len(text) - _alike(text[::-1], last[::-1]))))
    return np.array(found, np.int32)


def _alike(one: np.ndarray, other: np.ndarray) -> int:
    """How many tokens two rows share at their beginnings."""
    length = min(len(one), len(other))
    differ = np.flatnonzero(one[:length] != other[:length])
    return int(differ[0]) if len(differ) else length


def _chats(prompts: Sequence[str], responses: Sequence[str]) -> list[list[dict[str, str]]]:
    """A prompt of several messages is these, any other is what the user says."""
    alone = lambda prompt: ({"role": "user", "content": str(prompt)},)
    return [
        [*(getattr(p, "messages", ()) or alone(p)), {"role": "assistant", "content": r}]
        for p, r in zip(prompts, responses)
    ]


def from_options(options: Any) -> Scorer | None:
    """The one of `callable`, `hf` and `checkpoint` that a command line gives, None without any.

    Args:
      options: with these three, `tokenizer`, `members` and `batch_size`.

    Raises:
      ValueError: as of the source.
    """
    if options.callable:
        return from_callable(options.callable)
    if options.hf:
        return from_hugging_face(options.hf)
    if options.checkpoint:
        own = (options.tokenizer, options.batch_size, options.members or "mean")
        return from_checkpoint(options.checkpoint, *own)
    return None


def stream(
    scorer: Scorer, texts: Iterable[tuple[str, str]], size: int
) -> Iterator[Float[np.ndarray, "B"]]:
    """Scores of prompts and responses, `size` at a time; no more of them are held.

    Yields float64 arrays of `size` scores, the last one shorter; NaN where there is no score.
    """
    texts = iter(texts)
    while block := list(itertools.islice(texts, size)):
        prompts, responses = zip(*block)
        found = np.asarray(scorer(list(prompts), list(responses)), np.float64)
        yield np.where(np.isfinite(found), found, np.nan)


def in_blocks(
    scorer: Scorer, prompts: Sequence[str], responses: Sequence[str], size: int
) -> np.ndarray:
    """Scores every distinct text once, `size` at a time, and shows how far it is."""
    distinct = list(dict.fromkeys(zip(prompts, responses)))
    scores = np.empty(len(distinct))
    done = 0
    with open_progress(len(distinct), name="score") as progress:
        for found in stream(scorer, distinct, size):
            scores[done : done + len(found)] = found
            done += len(found)
            progress.update(done, {})
    by_text = dict(zip(distinct, scores))
    return np.array([by_text[pair] for pair in zip(prompts, responses)])
