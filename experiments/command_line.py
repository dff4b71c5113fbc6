"""What the runners share whose command lines name files, not configs.

A command line that cannot work ends in one line on standard error and exit code 2. The options of
a source of scores are those that `experiments.reward_sources` opens.
"""

import argparse
import sys
from pathlib import Path
from typing import Callable, Sequence

SOURCES = ("callable", "hf", "checkpoint")
"""Options of which one says what gives the scores."""


MEMBERS = ("mean", "worst_case", "uncertainty_weighted")
"""How the scores of an ensemble become one; those of `transforms.aggregation`."""


class Parser(argparse.ArgumentParser):
    """Reports a bad command line like any other bad input."""

    def error(self, message: str):
        """Raises ValueError instead of leaving the process."""
        raise ValueError(message)


def new_parser(name: str, doc: str | None) -> Parser:
    """The parser of `python -m experiments.NAME`; `doc` is its help."""
    return Parser(
        prog=f"python -m experiments.{name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def exit_code(name: str, run: Callable[[], int]) -> int:
    """What `run()` returns; 2, with the reason on one line, if its input is bad."""
    try:
        return run()
    except (ValueError, OSError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def add_source(parser: argparse.ArgumentParser) -> None:
    """The options of `SOURCES`, `--tokenizer`, `--members`, `--columns` and `--batch-size`."""
    add = parser.add_argument
    add("--callable", metavar="MODULE:FUNCTION", help="(prompts, responses) -> scores")
    add("--hf", metavar="FOLDER", help="sequence-classification model, or its name")
    add("--checkpoint", type=Path, metavar="FOLDER", help="of this library")
    add("--tokenizer", default="", metavar="WHERE", help="of the checkpoint, if not in its folder")
    add("--members", default="", metavar="HOW", help=f"{', '.join(MEMBERS)} (default mean), or one's "
        "number from 0; of a checkpoint that is an ensemble")
    add("--columns", default="", metavar="NAME=COLUMN,...", help="your names of the columns")
    add("--batch-size", type=int, default=64, help="texts per block (default 64)")


def given(options: argparse.Namespace, sources: Sequence[str]) -> list[str]:
    """Those of the sources that the command line names."""
    return [name for name in sources if getattr(options, name)]


def check_source(
    options: argparse.Namespace, sources: Sequence[str], columns: Sequence[str]
) -> None:
    """Raises ValueError unless there is one source, and it and the shared options can work."""
    if (count := len(given(options, sources))) != 1:
        allowed = ", ".join(f"--{name}" for name in sources)
        raise ValueError(f"sources of scores: allowed is one of {allowed}; given are {count}")
    check_positive(options, "batch_size")
    if options.checkpoint is not None and not options.checkpoint.is_dir():
        raise ValueError(f"--checkpoint = {options.checkpoint} is not a folder")
    if options.members and options.checkpoint is None:
        raise ValueError(f"--members = {options.members} needs --checkpoint=FOLDER")
    if options.members not in ("", *MEMBERS) and not options.members.isdecimal():
        allowed = f"{', '.join(MEMBERS)} and numbers from 0"
        raise ValueError(f"--members = {options.members!r}; allowed are {allowed}")
    column_names(options.columns, columns)


def check_positive(options: argparse.Namespace, *names: str) -> None:
    """Raises ValueError naming the first option below 1."""
    for name in names:
        if getattr(options, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} = {getattr(options, name)}; allowed is >= 1")


def column_names(text: str, allowed: Sequence[str]) -> dict[str, str]:
    """The file's own names of columns by ours, from `NAME=COLUMN,...`.

    Raises:
      ValueError: a name that is not allowed or stands twice, or no column.
    """
    named = {}
    for part in filter(None, text.split(",")):
        name, _, column = part.partition("=")
        if name not in allowed or not column:
            raise ValueError(
                f"--columns has {part!r}; allowed is NAME=COLUMN with NAME one of "
                f"{', '.join(allowed)}"
            )
        if name in named:
            raise ValueError(f"--columns names {name!r} twice; allowed is once")
        named[name] = column
    return named
