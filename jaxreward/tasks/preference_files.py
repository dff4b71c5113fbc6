"""Preference data from files: pairs, and single responses with a verdict.

Formats, as JSON lines or Parquet:

- pairs: `chosen` and `rejected`, texts or lists of messages (`role`, `content`; the last one is the
  response), with an optional `prompt`, a text or messages (UltraFeedback, RewardBench, TRL);
- the same side by side: `response1`, `response2` and a signed `overall_preference`, below 0 where
  the first is better, whose size is the margin (HelpSteer3; HelpSteer2 has `response_1`,
  `response_2` and `preference_strength`);
- labels: `prompt`, `response` (or `completion`), `label` true or false (KTO).

Optional columns: `weight`, `margin` (or a score of each response) and `annotator` (or `user`).

Every row is checked. What is done with each defect:

- refused, and counted with the line of the first: not JSON, not an object, a needed column missing,
  not text (also text that is not Unicode, and messages of another shape), an empty response, a
  conversation that ends with another role than the assistant's, responses to different prompts, two
  identical responses, a weight, margin, score or preference that is no finite number, a negative
  weight, a negative margin, a label that is not boolean, no annotator or an unknown one where the known ones
  are given, a duplicate: the same judgement of the same annotator once more;
- a margin of 0 is kept as a tie, and counted;
- a contradiction, the same pair in opposite orders by the same annotator: the first row is kept as
  a tie and the later ones are refused, or with `contradiction="refuse"` all are refused. A response
  that is labelled true and false by the same annotator is refused;
- annotators that disagree with each other are data: kept, and counted.

Letters: `B` rows, `K` annotators.
"""

import json
import math
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxreward.checks import check_choice
from jaxreward.tasks.preference_rows import (
    Label, Pair, Refused, chosen_of_sides, parse_annotator, parse_label, parse_pair,
)  # fmt: skip
from jaxreward.types import Feedback, Preferences

ALIASES = {
    "prompt": ("prompt", "context"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "response": ("response", "completion"),
    "label": ("label",),
    "weight": ("weight",),
    "margin": ("margin",),
    "chosen_score": ("chosen_score", "score_chosen"),
    "rejected_score": ("rejected_score", "score_rejected"),
    "annotator": ("annotator", "annotator_id", "user", "user_id"),
    "first": ("response1", "response_1"),
    "second": ("response2", "response_2"),
    "preference": ("overall_preference", "preference_strength"),
}
"""Names that a column may have in a file; the first that a row has counts."""

SIDES = ("first", "second", "preference")
"""Columns in place of `chosen` and `rejected`."""

SUFFIXES = (".jsonl", ".parquet")


class Tally(NamedTuple):
    """How often, and the line where first."""

    count: int
    first: int


class Loaded(NamedTuple):
    """A file that was read.

    Attributes:
      rows: the accepted rows in the order of the file, all `Pair` or all `Label`.
      refused: rows left out, by cause.
      noted: rows kept with a change or a remark, by cause.
    """

    rows: tuple[Pair, ...] | tuple[Label, ...]
    refused: dict[str, Tally]
    noted: dict[str, Tally]


def read_pairs(
    path: str | Path,
    *,
    columns: dict[str, str] | None = None,
    annotators: Sequence[str] | None = None,
    contradiction: str = "tie",
) -> Loaded:
    """Reads pairs; the module says what becomes of each defect.

    Args:
      path: a `.jsonl` or `.parquet` file.
      columns: the file's own names by ours, the keys of `ALIASES`.
      annotators: the known ones; None accepts any, and none.
      contradiction: "tie" or "refuse".

    Raises:
      ValueError: the file cannot be read or is cut off, has no such column, or no row is good.
    """
    check_choice("contradiction", contradiction, ("tie", "refuse"))
    rows, refused = _read(Path(path), columns, annotators, ("chosen", "rejected"), parse_pair)
    noted: dict[str, Tally] = {}
    for row in rows:
        if row.target == 0.5:
            _count(noted, "zero_margin_is_tie", row.where)
    kept = _settle(
        rows, refused, noted, contradiction,
        subject=lambda row: (row.prompt, frozenset((row.first, row.second))),
        verdict=lambda row: None if row.target == 0.5 else row.first,
    )  # fmt: skip
    return _loaded(Path(path), kept, refused, noted)


def read_labels(
    path: str | Path,
    *,
    columns: dict[str, str] | None = None,
    annotators: Sequence[str] | None = None,
) -> Loaded:
    """Reads single responses with a verdict; arguments and errors as of `read_pairs`."""
    needed = ("prompt", "response", "label")
    rows, refused = _read(Path(path), columns, annotators, needed, parse_label)
    noted: dict[str, Tally] = {}
    kept = _settle(
        rows, refused, noted, "refuse",
        subject=lambda row: (row.prompt, row.response), verdict=lambda row: row.liked,
    )  # fmt: skip
    return _loaded(Path(path), kept, refused, noted)


def describe(loaded: Loaded) -> str:
    """One line: rows kept, refused by cause with the line of the first, and remarks."""
    kind = "pairs" if isinstance(loaded.rows[0], Pair) else "labels"
    refused = sum(tally.count for tally in loaded.refused.values())
    parts = [f"{len(loaded.rows)} {kind} kept", f"{refused} refused{_listed(loaded.refused)}"]
    if loaded.noted:
        parts.append(f"noted{_listed(loaded.noted)}")
    return ", ".join(parts)


def to_preferences(
    loaded: Loaded, encode: Callable[[str, str], np.ndarray]
) -> tuple[Preferences, tuple[str, ...]]:
    """The pairs as arrays, and the names behind `annotator`, sorted.

    Args:
      loaded: of `read_pairs`.
      encode: `(prompt, response) -> array` of one shape, such as tokens; a prompt of messages
        has them as `prompt.messages`, for a chat template.
    """
    rows, names, codes = _coded(loaded, Pair)
    return Preferences(
        first=_stacked([encode(row.prompt, row.first) for row in rows]),
        second=_stacked([encode(row.prompt, row.second) for row in rows]),
        target=_stacked([row.target for row in rows], np.float32),
        weights=_stacked([row.weight for row in rows], np.float32),
        annotator=codes,
    ), names


def margins(loaded: Loaded) -> Float[Array, "B"]:
    """Margins of the pairs, for `losses.preference.bradley_terry`; 0 where the file has none."""
    return _stacked([row.margin or 0.0 for row in _coded(loaded, Pair)[0]], np.float32)


def to_feedback(
    loaded: Loaded, encode: Callable[[str, str], np.ndarray]
) -> tuple[Feedback, tuple[str, ...]]:
    """The labels as arrays, all observed, of unknown propensity; `Feedback` has no weights.

    Raises:
      ValueError: also for a weight other than 1.
    """
    rows, names, codes = _coded(loaded, Label)
    for row in rows:
        if row.weight != 1.0:
            raise ValueError(f"line {row.where}: weight = {row.weight}; allowed in Feedback is 1")
    return Feedback(
        items=_stacked([encode(row.prompt, row.response) for row in rows]),
        labels=_stacked([row.liked for row in rows], np.float32),
        observed=_stacked([True] * len(rows), np.bool_),
        propensity=_stacked([math.nan] * len(rows), np.float32),
        annotator=codes,
    ), names


def _stacked(values: list, dtype: Any = None):
    return jnp.asarray(np.stack([np.asarray(value, dtype) for value in values]))


def _coded(loaded: Loaded, kind: type):
    if not isinstance(loaded.rows[0], kind):
        raise ValueError(
            f"rows are {type(loaded.rows[0]).__name__}; allowed are {kind.__name__}"
        )
    names = tuple(sorted({row.annotator for row in loaded.rows}))
    codes = {name: code for code, name in enumerate(names)}
    return loaded.rows, names, _stacked([codes[row.annotator] for row in loaded.rows], np.int32)


def _listed(tallies: dict[str, Tally]) -> str:
    if not tallies:
        return ""
    causes = (f"{name} {t.count} from line {t.first}" for name, t in sorted(tallies.items()))
    return f" ({'; '.join(causes)})"


def _count(tallies: dict[str, Tally], cause: str, where: int) -> None:
    before = tallies.get(cause, Tally(0, where))
    tallies[cause] = Tally(before.count + 1, min(before.first, where))


def _loaded(path: Path, rows: list, refused: dict, noted: dict) -> Loaded:
    if not rows:
        raise ValueError(f"{path} has no good row{_listed(refused) or ' (it has no rows)'}")
    return Loaded(tuple(rows), refused, noted)


def _read(path: Path, columns, annotators, needed, parse) -> tuple[list, dict[str, Tally]]:
    """Rows that are good by themselves."""
    names = dict(ALIASES)
    for own, theirs in (columns or {}).items():
        check_choice("columns", own, tuple(ALIASES))
        names[own] = (theirs,)
    rows, refused, seen = [], {}, set()
    for where, record in _records(path):
        try:
            if isinstance(record, Refused):
                raise record
            if not isinstance(record, dict):
                raise Refused("not_an_object")
            seen.update(record)
            fields = {own: _first(record, theirs) for own, theirs in names.items()}
            fields = chosen_of_sides(fields) if "chosen" in needed else fields
            if any(fields[name] is None for name in needed):
                raise Refused("missing_column")
            rows.append(parse(where, fields, parse_annotator(fields["annotator"], annotators)))
        except Refused as cause:
            _count(refused, str(cause), where)
    sided = "chosen" in needed and all(seen.intersection(names[name]) for name in SIDES)
    for name in needed:
        if seen and not sided and not seen.intersection(names[name]):
            raise ValueError(
                f"{path} has no column {' or '.join(map(repr, names[name]))}; it has "
                f"{sorted(map(str, seen))}"
            )
    return rows, refused


def _first(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((record[name] for name in names if record.get(name) is not None), None)


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered records; one that is not JSON is a `Refused`."""
    if not path.is_file():
        raise ValueError(f"{path} is not a file; allowed is a {' or '.join(SUFFIXES)} file")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: suffix {path.suffix!r}; allowed are {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty")
    try:
        yield from _parquet(path) if path.suffix == ".parquet" else _json_lines(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as lines:
        for where, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                if not line.endswith(b"\n"):
                    raise ValueError(f"{path} is cut off within line {where}") from error
                record = Refused("not_json")
            yield where, record


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            where = 0
            for batch in file.iter_batches():
                for where, record in enumerate(batch.to_pylist(), start=where + 1):
                    yield where, record
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a whole Parquet file ({error})") from error


def _settle(rows: list, refused, noted, contradiction: str, *, subject, verdict) -> list:
    """Rows without duplicates and contradictions; what an annotator says twice is one opinion."""
    opinions: dict[Any, dict[str, set]] = {}
    for row in rows:
        by = opinions.setdefault(subject(row), {})
        by.setdefault(row.annotator, set()).add(verdict(row))
    kept, said, settled = [], set(), set()
    for row in rows:
        by, identity = opinions[subject(row)], (subject(row), row.annotator)
        if (identity, verdict(row)) in said:
            _count(refused, "duplicate", row.where)
            continue
        said.add((identity, verdict(row)))
        if len(by[row.annotator]) > 1 and (contradiction == "refuse" or identity in settled):
            _count(refused, "contradictory", row.where)
            continue
        if len(by[row.annotator]) > 1:
            row = row._replace(target=0.5)
            _count(noted, "contradiction_is_tie", row.where)
        elif len(set().union(*by.values())) > 1:
            _count(noted, "annotators_disagree", row.where)
        settled.add(identity)
        kept.append(row)
    return kept
