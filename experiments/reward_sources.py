"""Where the scores come from that `experiments.evaluate_reward` judges.

Each source is a function `(prompts, responses) -> [B]` of lists of texts. All but the scores of
a file are called on blocks, so that memory is bounded by the size of a block.
"""

import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import Any, Callable, Sequence

import numpy as np

Scorer = Callable[[Sequence[str], Sequence[str]], np.ndarray]


def from_callable(path: str) -> Scorer:
    """A function by import path, `module:function`; the working directory is searched too.

    It gets a list of prompts and one of responses, and returns a number for each; None, NaN and
    infinity are missing.

    Raises:
      ValueError: there is no such function.
    """
    module, colon, name = path.partition(":")
    if not colon or not module or not name:
        raise ValueError(f"--callable = {path!r}; allowed is MODULE:FUNCTION")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--callable = {path!r} cannot be imported: {error}") from error
    if not callable(function):
        raise ValueError(f"--callable = {path!r} is a {type(function).__name__}, not a function")
    _check_signature(path, function)
    return lambda prompts, responses: _numbers(path, function(prompts, responses), len(prompts))


def _check_signature(path: str, function: Callable) -> None:
    try:
        inspect.signature(function).bind([], [])
    except TypeError as error:
        raise ValueError(f"--callable = {path!r} must take prompts and responses: {error}") from error
    except ValueError:
        pass  # one written in C may have no signature


def _numbers(path: str, values: Any, count: int) -> np.ndarray:
    try:
        listed = [np.nan if v is None else float(v) for v in values]
    except (TypeError, ValueError) as error:
        raise ValueError(f"--callable = {path!r} returned what is no list of numbers") from error
    if len(listed) != count:
        raise ValueError(f"--callable = {path!r} returned {len(listed)} scores for {count} texts")
    return np.array(listed)


def from_hugging_face(name: str) -> Scorer:
    """A sequence-classification reward model of the transformers package: its single logit.

    Prompt and response become a chat if the tokenizer has a template, else a pair of segments.

    Raises:
      ValueError: transformers or torch are not installed, or the model has no single logit.
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
    model = transformers.AutoModelForSequenceClassification.from_pretrained(name).eval()
    if model.config.num_labels != 1:
        raise ValueError(f"--hf = {name!r} has {model.config.num_labels} outputs; allowed is 1")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id

    def score(prompts, responses):
        batch = tokenizer(
            *_segments(tokenizer, prompts, responses), padding=True, truncation=True,
            return_tensors="pt", add_special_tokens=tokenizer.chat_template is None,
        )
        with torch.no_grad():
            return model(**batch).logits[:, 0].float().numpy().astype(np.float64)

    return score


def _segments(tokenizer: Any, prompts: Sequence[str], responses: Sequence[str]) -> tuple:
    if tokenizer.chat_template is None:
        return list(prompts), list(responses)
    chats = [
        [{"role": "user", "content": p}, {"role": "assistant", "content": r}]
        for p, r in zip(prompts, responses)
    ]
    return ([tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats],)


def in_blocks(
    scorer: Scorer, prompts: Sequence[str], responses: Sequence[str], size: int
) -> np.ndarray:
    """Scores every distinct text once, `size` at a time, with a progress bar on a terminal."""
    from tqdm import tqdm

    distinct = list(dict.fromkeys(zip(prompts, responses)))
    scores: dict[tuple[str, str], float] = {}
    bar = tqdm(total=len(distinct), desc="scoring", unit="text", disable=not sys.stderr.isatty())
    with bar:
        for start in range(0, len(distinct), size):
            block = distinct[start : start + size]
            found = scorer([p for p, _ in block], [r for _, r in block])
            scores.update(zip(block, np.asarray(found, np.float64)))
            bar.update(len(block))
    found = np.array([scores[pair] for pair in zip(prompts, responses)])
    return np.where(np.isfinite(found), found, np.nan)


def module_exists(name: str) -> bool:
    """Whether a module of this name can be imported, without importing it."""
    return importlib.util.find_spec(name) is not None


def check_folder(flag: str, path: Path) -> None:
    """Raises ValueError unless `path` is a folder."""
    if not path.is_dir():
        raise ValueError(f"--{flag} = {path} is not a folder")
