"""Reads what `experiments.evaluate_reward` judges a reward by. Nothing here needs jax.

One record is one problem: a prompt, a preferred answer and one or more others; see the runner
for the columns. A record that cannot be used is refused and counted by reason, with the lines
where it happened first; nothing is dropped in silence.
"""

import json
import math
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from jaxreward.tasks.preference_rows import RESPONDERS, dialogue

SHOWN = 5
"""Lines named for each reason."""

COLUMNS = (
    "prompt", "chosen", "rejected", "category", "contrast_prompt", "contrast_chosen", "forms",
    "prompt_forms", "samples", "gold", "answers", "chosen_score", "rejected_score",
    "contrast_score", "form_scores", "prompt_form_scores", "sample_scores",
)
TEXTS, SCORES = ("prompt", "chosen", "rejected"), ("chosen_score", "rejected_score")


class Item(NamedTuple):
    """A problem; `None` or empty for what the record does not have.

    Attributes:
      where: its line or row.
      prompt: text, a `preference_rows.Dialogue` where the file has messages.
      chosen: the preferred answer.
      rejected: the others.
      category: for averages by kind.
      contrast: a similar prompt and its own preferred answer.
      forms: the preferred answer written in other ways.
      prompt_forms: the prompt in other words.
      samples: answers of a policy.
      gold: their true rewards.
      answers: their final answers, for ties.
      scores: of the same fields, where the file holds them; NaN is missing.
    """

    where: int
    prompt: str
    chosen: str
    rejected: tuple[str, ...]
    category: str | None
    contrast: tuple[str, str] | None
    forms: tuple[str, ...]
    prompt_forms: tuple[str, ...]
    samples: tuple[str, ...]
    gold: tuple[float, ...]
    answers: tuple[str, ...]
    scores: dict[str, tuple[float, ...]]


class Items(NamedTuple):
    """All usable problems.

    Attributes:
      items: in the order of the file.
      refused: lines by reason.
    """

    items: list[Item]
    refused: dict[str, list[int]]


class Refused(ValueError):
    """A record that cannot be used; the message is the reason."""


def check_file(path: Path) -> None:
    """Raises ValueError unless `path` is a non-empty `.jsonl` or `.parquet` file."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file; allowed is a .jsonl or .parquet file")
    if path.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path}: suffix {path.suffix!r} is unknown; allowed are .jsonl, .parquet")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")


def read_items(path: Path, names: dict[str, str], *, scored: bool) -> Items:
    """Reads a `.jsonl` or `.parquet` file.

    Args:
      path: the file.
      names: the file's own names of columns, by ours.
      scored: the file holds the scores; texts may then be absent.

    Raises:
      ValueError: the file cannot be read, a needed column is nowhere, or no record is usable.
    """
    check_file(path)
    refused: dict[str, list[int]] = {}
    kept: list[Item] = []
    present: set[str] = set()
    for number, record in records(path):
        try:
            record = {own: record.get(names.get(own, own)) for own in COLUMNS} if isinstance(
                record, dict) else _refuse("no_object")
            present.update(name for name, value in record.items() if value is not None)
            kept.append(_item(number, record, scored))
        except Refused as reason:
            refused.setdefault(str(reason), []).append(number)
    _check_present(path, names, present, SCORES if scored else TEXTS)
    kept = _without_repeats(kept, refused, scored)
    if not kept:
        counts = ", ".join(f"{reason} {len(lines)}" for reason, lines in refused.items())
        raise ValueError(f"{path} has no usable record ({counts or 'no records'})")
    return Items(kept, refused)


def _check_present(path: Path, names: dict, present: set, needed: tuple[str, ...]) -> None:
    for name in needed:
        if name not in present and not (name == "prompt" and "chosen" in present):
            raise ValueError(
                f"{path} has no column {names.get(name, name)!r}; name yours with "
                f"--columns {name}=..."
            )


def records(path: Path) -> Iterator[tuple[int, Any]]:
    """Line (or row) and content of each record, read as they are asked for.

    What is no JSON is None; blank lines are none.

    Raises:
      ValueError: a parquet file that is not whole.
    """
    if path.suffix == ".parquet":
        yield from _parquet(path)
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except (ValueError, RecursionError):
                    yield number, None


def one_response(record: Any, prompt: str, response: str) -> tuple[str, str]:
    """The prompt and one response of a record, by the names of its columns.

    Raises:
      Refused: it has no response, or what is there is no text.
    """
    if not isinstance(record, dict):
        _refuse("no_object")
    earlier, answer = _answer(record.get(response), False)
    if not answer.strip():
        _refuse("empty_answer")
    return _prompt(record.get(prompt), earlier), answer


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for number, record in enumerate(batch.to_pylist(), start=number + 1):
                    yield number, record
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a whole parquet file ({error})") from error


def _refuse(reason: str) -> Any:
    raise Refused(reason)


def _item(number: int, record: dict[str, Any], scored: bool) -> Item:
    own = record["chosen"]
    if isinstance(own, list) and len(own) == 1 and isinstance(own[0], str):
        own = own[0]  # as in RewardBench 2
    earlier, chosen = _answer(own, scored)
    prompt = _prompt(record["prompt"], earlier)
    several = [_answer(one, scored) for one in _listed(record["rejected"], _is_answer)]
    if any(before and before != (earlier or prompt) for before, _ in several):
        _refuse("different_prompts")
    rejected = tuple(answer for _, answer in several)
    scores = {name: _numbers(record[name]) for name in COLUMNS if name.endswith(("score", "scores"))}
    if not scored:
        if not chosen.strip() or not rejected or any(not r.strip() for r in rejected):
            _refuse("empty_answer")
        rejected = tuple(dict.fromkeys(r for r in rejected if r != chosen)) or _refuse("identical")
    else:
        _check_scores(scores, len(rejected))
    samples = tuple(_answer(s, scored)[1] for s in _listed(record["samples"], _is_answer))
    gold = _numbers(record["gold"])
    if gold and len(gold) != len(scores["sample_scores"] if scored else samples):
        _refuse("samples_and_gold_differ_in_number")
    answers = tuple(str(answer) for answer in _listed(record["answers"], lambda x: False))
    if answers and len(answers) != len(gold):
        _refuse("answers_and_gold_differ_in_number")
    return Item(
        number, prompt, chosen, rejected, _category(record["category"]), _contrast(record, scored),
        tuple(_answer(f, scored)[1] for f in _listed(record["forms"], _is_answer)),
        tuple(map(_dialogue, _listed(record["prompt_forms"], _is_answer))), samples, gold, answers,
        scores,
    )


def _check_scores(scores: dict[str, tuple[float, ...]], rejected: int) -> None:
    """Refuses scores that are absent or not as many as they should be."""
    if not scores["chosen_score"] or not scores["rejected_score"]:
        _refuse("no_score")
    if len(scores["chosen_score"]) != 1:
        _refuse("several_scores_of_chosen")
    if rejected not in (0, len(scores["rejected_score"])):
        _refuse("rejected_and_scores_differ_in_number")
    if len(scores["prompt_form_scores"]) % (1 + len(scores["rejected_score"])):
        _refuse("prompt_form_scores_are_not_rows_of_all_answers")
    if len(scores["contrast_score"]) not in (0, 4):
        _refuse("contrast_score_is_not_four_numbers")


def _category(value: Any) -> str | None:
    return None if value is None else _text(str(value))


def _contrast(record: dict[str, Any], scored: bool) -> tuple[str, str] | None:
    if record["contrast_prompt"] is None or record["contrast_chosen"] is None:
        return None
    return _dialogue(record["contrast_prompt"]), _answer(record["contrast_chosen"], scored)[1]


def _is_answer(value: Any) -> bool:
    """A text, or a list of messages; a list of these is several answers."""
    messages = isinstance(value, list) and value and all(isinstance(m, dict) for m in value)
    return isinstance(value, str) or bool(messages)


def _listed(value: Any, single) -> list[Any]:
    if value is None:
        return []
    if single(value):
        return [value]
    return value if isinstance(value, list) else _refuse("wrong_kind")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        _refuse("wrong_kind")
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        _refuse("not_unicode")
    return value


def _answer(value: Any, optional: bool) -> tuple[str, str]:
    """What was said before, and the answer: the last of a list of messages."""
    if isinstance(value, str):
        return "", _text(value)
    if value is None:
        return ("", "") if optional else _refuse("empty_answer")
    if not _is_answer(value):
        _refuse("wrong_kind")
    role = value[-1].get("role")
    if isinstance(role, str) and role.lower() not in RESPONDERS:
        _refuse("last_message_is_no_answer")
    return _dialogue(value[:-1]), _text(value[-1].get("content"))


def _prompt(given: Any, earlier: str) -> str:
    """The conversation before the answer; a prompt given apart must be part of it."""
    apart = "" if given is None else _dialogue(given)
    if not earlier:
        return apart
    said = [one["content"].strip() for one in getattr(earlier, "messages", ())]
    if apart.strip() and apart != earlier and apart.strip() not in said:
        _refuse("different_prompts")
    return earlier


def _dialogue(value: Any) -> str:
    """A text as it is; one message as its content; more as `role: content` paragraphs."""
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        _refuse("wrong_kind")
    return dialogue([(_text(m.get("role")), _text(m.get("content"))) for m in value])


def _numbers(value: Any) -> tuple[float, ...]:
    """Numbers, or lists of numbers in one row; null, NaN and infinity are NaN."""
    if value is None:
        return ()
    found = []
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, list):
            found.extend(_numbers(one))
        elif one is None:
            found.append(math.nan)
        elif isinstance(one, (bool, int, float)):
            found.append(_finite(one))
        else:
            _refuse("wrong_kind")
    return tuple(found)


def _finite(value: int | float) -> float:
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # an integer beyond any float
        return math.nan


def _without_repeats(items: list[Item], refused: dict, scored: bool) -> list[Item]:
    """Drops repeated records, and both sides of a contradiction: a over b here, b over a there."""
    if scored and not any(item.rejected for item in items):
        return items
    pairs = {(i.prompt, i.chosen, r) for i in items for r in i.rejected}
    seen: set = set()
    kept = []
    for item in items:
        identity = (item.prompt, item.chosen, item.rejected)
        reason = None
        if any((item.prompt, r, item.chosen) in pairs for r in item.rejected):
            reason = "contradictory"
        elif item.chosen and identity in seen:
            reason = "repeated"
        seen.add(identity)
        if reason is None:
            kept.append(item)
        else:
            refused.setdefault(reason, []).append(item.where)
    return kept
