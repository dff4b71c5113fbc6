"""Scores any number of responses with any reward function, in the order of the file.

    python -m experiments.score_responses --responses=FILE.jsonl --callable=my_rewards:score
    python -m experiments.score_responses --responses=FILE.jsonl --hf=FOLDER
    python -m experiments.score_responses --responses=FILE.jsonl --checkpoint=FOLDER

The sources are those of `experiments.evaluate_reward`. The file is JSON lines or parquet with a
prompt and a response in each record (texts or lists of chat messages), named with --columns
prompt=question,response=answer. It is read, scored and written --batch-size records at a time:
memory does not grow with the file.

It writes --out, one JSON object for each record: `{"line": 3, "score": 0.7}`; the score is null
where the reward has none, and where a record was refused, which `"refused"` gives the reason of.
Bad input ends in one line on stderr and exit code 2, with nothing written.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from typing import Any, Iterator, NamedTuple

from experiments import command_line, reward_items
from jaxreward.training.files import atomic_path
from jaxreward.training.progress import open_progress

NAMES = ("prompt", "response")


class Row(NamedTuple):
    """A record: its line, prompt and response, or why it was refused."""

    line: int
    texts: tuple[str, str]
    refused: str


def main(arguments: list[str] | None = None) -> int:
    """Runs the scoring; returns the exit code."""

    def run() -> int:
        options = _parse(arguments)
        _check(options)
        return _run(options)

    return command_line.exit_code("score_responses", run)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = command_line.new_parser("score_responses", __doc__)
    add = parser.add_argument
    add("--responses", type=Path, required=True, metavar="FILE", help=".jsonl or .parquet")
    command_line.add_source(parser)
    add("--out", type=Path, default=Path("scores.jsonl"), metavar="FILE")
    return parser.parse_args(arguments)


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError for options that cannot work, before anything slow is imported."""
    command_line.check_source(options, command_line.SOURCES, NAMES)
    if options.out.is_dir() or options.out == options.responses:
        raise ValueError(f"--out = {options.out}; allowed is a file that is not --responses")
    reward_items.check_file(options.responses)


def rows(path: Path, names: dict[str, str]) -> Iterator[Row]:
    """The records of a file, one by one; `names` has the columns of prompt and response."""
    for line, record in reward_items.records(path):
        try:
            texts = reward_items.one_response(record, names["prompt"], names["response"])
            yield Row(line, texts, "")
        except reward_items.Refused as reason:
            yield Row(line, ("", ""), str(reason))


def scored(scorer: Any, records: Iterator[Row], size: int) -> Iterator[list[dict[str, Any]]]:
    """What is written of each block of at most `size` records that have texts."""
    from experiments import reward_sources

    waiting: list[Row] = []

    def usable() -> Iterator[tuple[str, str]]:
        for row in records:
            waiting.append(row)
            if not row.refused:
                yield row.texts

    for found in reward_sources.stream(scorer, usable(), size):
        values = iter(found.tolist())
        yield [_written(row, values) for row in waiting]
        waiting.clear()
    if waiting:  # refused ones at the end
        yield [_written(row, iter(())) for row in waiting]


def _written(row: Row, values: Iterator[float]) -> dict[str, Any]:
    if row.refused:
        return {"line": row.line, "score": None, "refused": row.refused}
    value = next(values)
    return {"line": row.line, "score": value if math.isfinite(value) else None}


def _run(options: argparse.Namespace) -> int:
    from experiments import reward_sources

    scorer = reward_sources.from_options(options)
    names = dict(zip(NAMES, NAMES)) | command_line.column_names(options.columns, NAMES)
    total = sum(1 for _ in reward_items.records(options.responses))  # one at a time
    counts = {"records": 0, "refused": 0, "without a score": 0}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(options.out) as temporary, open(temporary, "w") as file:
        with open_progress(total, name="score") as progress:
            for block in scored(scorer, rows(options.responses, names), options.batch_size):
                file.writelines(json.dumps(one) + "\n" for one in block)
                missing = sum(one["score"] is None for one in block)
                refused = sum("refused" in one for one in block)
                for name, count in zip(counts, (len(block), refused, missing - refused)):
                    counts[name] += count
                progress.update(counts["records"], {})
        if counts["refused"] == counts["records"]:
            raise ValueError(f"{options.responses} has no usable record; columns are {names}")
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
