"""One row of preference data: a pair of responses, or a response with a verdict.

See `preference_files` for the formats and for what is done with each defect.
"""

import math
from typing import Any, NamedTuple, Sequence

RESPONDERS = ("assistant", "model", "chatbot", "gpt", "bot", "ai")
"""Roles of the message that is a response."""


class Dialogue(str):
    """The text of a conversation, which remembers its messages.

    One message is its content, several are `role: content` paragraphs.

    Attributes:
      messages: dicts with `role` and `content`, as chat templates take them.
    """

    messages: tuple[dict[str, str], ...] = ()


def dialogue(messages: Sequence[tuple[str, str]]) -> Dialogue:
    """The conversation of roles and contents."""
    paragraphs = [f"{role}: {content}" for role, content in messages]
    found = Dialogue(messages[0][1] if len(messages) == 1 else "\n\n".join(paragraphs))
    found.messages = tuple({"role": role, "content": content} for role, content in messages)
    return found


class Pair(NamedTuple):
    """Two responses to one prompt.

    Attributes:
      where: line or row of the file, from 1.
      prompt: text, a `Dialogue` where the file has messages.
      first: the response in `chosen`.
      second: the response in `rejected`.
      target: 1, or 1/2 for a tie.
      weight: finite, >= 0; 1 where the file has none.
      margin: finite, >= 0; None where the file has none.
      annotator: "" where the file has none.
    """

    where: int
    prompt: str
    first: str
    second: str
    target: float
    weight: float
    margin: float | None
    annotator: str


class Label(NamedTuple):
    """One response and whether it was liked; fields as of `Pair`."""

    where: int
    prompt: str
    response: str
    liked: bool
    weight: float
    annotator: str


class Refused(ValueError):
    """A row that cannot be used; the message is the cause."""


def chosen_of_sides(fields: dict[str, Any]) -> dict[str, Any]:
    """The chosen and the rejected of two responses with a signed preference between them.

    That is negative where the first is better, 0 for a tie, and its size is the margin (HelpSteer
    2 and 3). Fields without one are returned as they are; raises `Refused`.
    """
    if fields["chosen"] is not None or fields["preference"] is None:
        return fields
    strength = _number(fields["preference"], "preference")
    sides = (fields["first"], fields["second"])
    chosen, rejected = sides if strength <= 0.0 else sides[::-1]
    return {**fields, "chosen": chosen, "rejected": rejected, "margin": abs(strength)}


def parse_pair(where: int, fields: dict[str, Any], annotator: str) -> Pair:
    """A pair of the values of its columns, None where absent; raises `Refused`."""
    before, first = _response(fields["chosen"])
    other, second = _response(fields["rejected"])
    if before != other:
        raise Refused("different_prompts")
    prompt = _prompt(fields["prompt"], before)
    if first == second:
        raise Refused("identical_pair")
    margin = _margin(fields)
    target = 0.5 if margin == 0.0 else 1.0
    return Pair(where, prompt, first, second, target, _weight(fields), margin, annotator)


def parse_label(where: int, fields: dict[str, Any], annotator: str) -> Label:
    """A label, likewise."""
    before, response = _response(fields["response"])
    label = fields["label"]
    if not isinstance(label, (bool, int, float)) or label not in (0, 1):  # tables hold 1.0 too
        raise Refused("label_not_boolean")
    prompt = _prompt(fields["prompt"], before)
    return Label(where, prompt, response, bool(label), _weight(fields), annotator)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Refused("not_text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Refused("not_text") from None  # half of a surrogate pair
    return value


def _messages(value: Any) -> list[tuple[str, str]]:
    """`(role, content)` of every message."""
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise Refused("not_text")
    return [(_text(one.get("role")), _text(one.get("content"))) for one in value]


def _response(value: Any) -> tuple[list[tuple[str, str]], str]:
    """The messages before the response, and the response."""
    messages = [("assistant", value)] if isinstance(value, str) else _messages(value)
    if not messages or not _text(messages[-1][1]).strip():
        raise Refused("empty_response")
    if messages[-1][0].lower() not in RESPONDERS:
        raise Refused("last_message_is_no_response")
    return messages[:-1], messages[-1][1]


def _prompt(given: Any, before: list[tuple[str, str]]) -> str:
    """The conversation before the response; a prompt given apart must be part of it."""
    apart = None if given is None else given if isinstance(given, str) else _messages(given)
    if isinstance(apart, str):
        said = ["", *(content.strip() for _, content in before)]  # a blank one says nothing
        if before and _text(apart).strip() not in said:
            raise Refused("different_prompts")
        return dialogue(before) if before else _text(apart)
    if before and apart and before != apart:
        raise Refused("different_prompts")
    return dialogue(before or apart or [])


def _number(value: Any, name: str) -> float:
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            if math.isfinite(value):
                return float(value)
    except OverflowError:  # an integer beyond any float
        pass
    raise Refused(f"{name}_not_finite")


def _weight(fields: dict[str, Any]) -> float:
    weight = 1.0 if fields["weight"] is None else _number(fields["weight"], "weight")
    if weight < 0.0:
        raise Refused("negative_weight")
    return weight


def _margin(fields: dict[str, Any]) -> float | None:
    scores = [fields["chosen_score"], fields["rejected_score"]]
    better, worse = (None if s is None else _number(s, "score") for s in scores)
    margin = None if fields["margin"] is None else _number(fields["margin"], "margin")
    if margin is None and better is not None and worse is not None:
        margin = _number(better - worse, "margin")
    if margin is not None and margin < 0.0:
        raise Refused("negative_margin")
    return margin


def parse_annotator(value: Any, known: Sequence[str] | None) -> str:
    """The name as text, "" for none; raises `Refused` unless it is among the known."""
    if value is None or value == "":
        if known is not None:
            raise Refused("no_annotator")
        return ""
    if not isinstance(value, (str, int)) or isinstance(value, bool):
        raise Refused("annotator_not_text")
    name = _text(str(value))
    if known is not None and name not in known:
        raise Refused("unknown_annotator")
    return name
