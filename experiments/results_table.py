"""Prints the results of runs; rewrites the results table of the README from them.

    python -m experiments.results_table RUNS_DIR [--readme=README.md] [--table=FILE] [--store=DIR]

Reads every `summary.json` below RUNS_DIR (and stored `<method>.json`). Figures, claims and
whether they hold come from there and nowhere else.

--readme=FILE  rewrites what stands between `<!-- results:begin -->` and `<!-- results:end -->`:
               a row for each method, with the number of its claims that hold.
--table=FILE   writes every claim with its difference and interval.
               A row is written only for a summary whose config hash is that of
               `configs/<method>.py` (or of its variant `full`, or for `<method>_<variant>` of
               that variant) as it is now, so that the command of the row repeats it. What it adds and the command are the first line
               and the `python -m` line of that file's docstring.
--store=DIR    keeps those summaries as DIR/<method>.json, and takes from there the methods
               that RUNS_DIR lacks.
--configs=DIR  where the configs are; default configs.
"""

import ast
import pathlib
import sys
from typing import Any, NamedTuple, Sequence

from experiments import cli
from jaxreward.training import config as config_lib
from jaxreward.training import report
from jaxreward.training.exits import ConfigError
from jaxreward.training.files import atomic_write

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
_TITLE = "# Every claim, its measured difference, and whether it holds"
VARIANTS = ("", "full")
"""Variants of the config `<method>.py` whose results are published, the first that fits. Another
variant calls its method `<method>_<variant>`."""

_FLAGS = (
    cli.Flag("readme", help="file whose short table is rewritten"),
    cli.Flag("table", help="file of the whole table"),
    cli.Flag("store", help="folder of the kept summaries"),
    cli.Flag("configs", default="configs", help="folder of the configs"),
)


class Entry(NamedTuple):
    """A published summary.

    Attributes:
      summary: its content.
      path: the file it comes from.
      adds: what the method adds, one line.
      command: repeats it.
    """

    summary: dict[str, Any]
    path: pathlib.Path
    adds: str
    command: str


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--help" in argv:
        print(__doc__.strip())
        return
    with cli.exit_codes():
        folders = [argument for argument in argv if not argument.startswith("--")]
        values = cli.parse([a for a in argv if a.startswith("--")], _FLAGS).values
        if len(folders) != 1:
            raise ConfigError(f"RUNS_DIR = {' '.join(folders)!r}; allowed is one folder")
        _main(folders[0], **values)


def _main(
    runs: str, readme: str | None, table: str | None, store: str | None, configs: str
) -> None:
    found = collect(runs)
    for path, summary in found:
        print(describe(path, summary), end="\n\n")
    if not (readme or table or store):
        return
    kept = collect(store) if store and pathlib.Path(store).is_dir() else []
    entries = published([*kept, *found], configs)
    if not entries:
        raise ConfigError(f"{runs} holds no summary of a config in {configs} as it is now")
    if readme:
        rewrite(readme, report.markdown_table(short_rows(entries)))
    if table:
        whole = f"{_TITLE}\n\n{report.markdown_table(rows(entries))}\n"
        atomic_write(pathlib.Path(table), whole)
    if store:
        pathlib.Path(store).mkdir(parents=True, exist_ok=True)
        for entry in entries:
            copy = pathlib.Path(store) / f"{entry.summary['method']}.json"
            atomic_write(copy, entry.path.read_bytes())


def collect(folder: str) -> list[tuple[pathlib.Path, dict[str, Any]]]:
    """Path and content of the summaries in a folder, oldest first; a torn one is reported.

    Raises:
      ConfigError: there is no such folder.
    """
    root = pathlib.Path(folder)
    if not root.is_dir():
        raise ConfigError(f"{folder!r} is not a folder; allowed is one with runs")
    found = []
    paths = {*root.rglob(report.SUMMARY), *root.glob("*.json")}
    for path in sorted(paths, key=lambda p: (p.stat().st_mtime, str(p))):
        try:
            found.append((path, report.read_summary(path)))
        except ConfigError as error:
            cli.say(f"{error}; left out", "warning")
    return found


def describe(path: pathlib.Path, summary: dict[str, Any]) -> str:
    """All of a summary, for a terminal."""
    header = (
        f"{summary['method']}  ({len(summary['seeds'])} seeds, {summary['device']}, "
        f"jax {summary['versions'].get('jax', '?')}, config {summary['config_sha'][:8]})  {path}"
    )
    parts = [header, report.text_table(report.results_rows(summary["results"]))]
    if summary["claims"]:
        parts.append(report.text_table(report.claim_rows(summary["claims"])))
    return "\n\n".join(parts)


def published(
    found: Sequence[tuple[pathlib.Path, dict[str, Any]]], configs: str
) -> list[Entry]:
    """One entry by method, of the newest summary that its config still repeats."""
    entries = {}
    for path, summary in found:
        repeated = _repeated_by(pathlib.Path(configs), summary["method"], summary["config_sha"])
        if repeated is None:
            cli.say(f"{path} is of no config in {configs} as it is now; left out", "warning")
            continue
        adds, command = _docstring(*repeated)
        entries[summary["method"]] = Entry(summary, path, adds, command)
    return [entries[method] for method in sorted(entries)]


def _repeated_by(configs: pathlib.Path, method: str, sha: str) -> tuple[pathlib.Path, str] | None:
    """File and variant of the config with this hash."""
    named = [(configs / f"{method}.py", variant) for variant in VARIANTS]
    cuts = [i for i, letter in enumerate(method) if letter == "_"]
    named += [(configs / f"{method[:i]}.py", method[i + 1 :]) for i in cuts]
    for file, variant in named:
        try:
            spec = f"{file}:{variant}" if variant else str(file)
            config = config_lib.override(config_lib.load_config(spec), {})
        except ConfigError:
            continue
        if config_lib.sha(config) == sha:
            return file, variant
    return None


def _docstring(file: pathlib.Path, variant: str) -> tuple[str, str]:
    """First line and command of a config's docstring."""
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    lines = text.replace("\\\n", " ").splitlines() or [""]
    commands = [line for line in lines if "python -m experiments." in line]
    command = " ".join(commands[0].strip(" `").split()) if commands else ""
    command = command.removeprefix("Command: ")
    if variant:
        command = command.replace(file.name, f"{file.name}:{variant}")
    return lines[0].strip(), command


def rows(entries: Sequence[Entry]) -> list[list[str]]:
    """A row for each claim."""
    table = [["method", "what it adds", "claim", "difference [95%]", "holds", "command"]]
    for entry in entries:
        command = f"`{entry.command}`" if entry.command else ""
        left, right = [f"`{entry.summary['method']}`", entry.adds], command
        for c in entry.summary["claims"]:
            difference = f"{c['metric']}: {report.figure(c['difference'], c['ci95'])}"
            table.append([*left, c["claim"], difference, "yes" if c["holds"] else "no", right])
            left, right = ["", ""], ""
    return table


def short_rows(entries: Sequence[Entry]) -> list[list[str]]:
    """A row for each method."""
    table = [["method", "what it adds", "claims that hold", "command"]]
    for entry in entries:
        claims = entry.summary["claims"]
        holding = f"{sum(bool(c['holds']) for c in claims)} of {len(claims)}" if claims else "none"
        command = f"`{entry.command}`" if entry.command else ""
        table.append([f"`{entry.summary['method']}`", entry.adds, holding, command])
    return table


def rewrite(readme: str, table: str) -> None:
    """Replaces what is between the markers.

    Raises:
      ConfigError: the file or the markers are not there.
    """
    path = pathlib.Path(readme)
    text = path.read_text() if path.is_file() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"--readme = {readme!r}; allowed is a file with {BEGIN} and {END}")
    atomic_write(path, f"{before}{BEGIN}\n{table}\n{END}{after}")


if __name__ == "__main__":
    main()
