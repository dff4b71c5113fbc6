"""Judges any reward function: how often it is right, and what else than quality moves it.

    python -m experiments.evaluate_reward --items=FILE.jsonl --callable=my_rewards:score
    python -m experiments.evaluate_reward --items=FILE.jsonl --hf=FOLDER
    python -m experiments.evaluate_reward --items=FILE.jsonl --checkpoint=FOLDER [--tokenizer=WHERE]
    python -m experiments.evaluate_reward --items=FILE.jsonl --scores
    python -m experiments.evaluate_reward --mdp=FILE.npz

The reward is one of: a Python function by import path, `score(prompts, responses)` of two lists
of texts; a sequence-classification reward model for the transformers package (which, with torch,
must be installed); a checkpoint of this library (`jaxreward.rewards.learned_files`), its tokenizer
a folder with `tokenizer.json`, a `.gguf` file or `MODULE:ALPHABET`; scores that the file holds.
A checkpoint may be a process reward model: its description (`reward_model.json`) then has
`"head": {"kind": "steps", "separators": [IDS], "aggregation": "min"}`, the tokens that end a step
of the response and how the steps' probabilities become one score: `min`, `max`, `prod`,
`geometric_mean`, `mean`, `mean_logit`, `mean_odd` or `last`.
Of an ensemble the mean score counts, or what --members says.
Every distinct text is scored once, in blocks of --batch-size.

The file. One JSON object per line, or a parquet file with the same columns:

    {"prompt": "2 + 2 = ?", "chosen": "4", "rejected": ["5", "22"], "category": "sums",
     "contrast_prompt": "2 + 3 = ?", "contrast_chosen": "5",
     "forms": ["**4**", "The answer is 4."], "prompt_forms": ["What is 2 + 2?"],
     "samples": ["4", "5", "four"], "gold": [1, 0, 1], "answers": ["4", "5", "4"]}

`chosen` is the better answer and `rejected` one worse answer or several. Texts may be lists of
chat messages; the prompt may then be part of them. Where the reward has a chat template it gets the
messages as they are; else, as a function does, one message as its text, and several as paragraphs
`role: content`. The rest is optional: `category` (accuracy by
kind), `contrast_prompt` and `contrast_chosen` (a similar prompt and its own better answer),
`forms` (the better answer written otherwise), `prompt_forms` (the prompt in other words), `samples`
with their true rewards `gold` (best-of-n and over-optimisation, for n up to the fewest samples of
any problem with two or more) and `answers` (majority among samples with the same score). With --scores the file has `chosen_score`, `rejected_score` and
optionally `contrast_score` (own prompt with own and contrast answer, then contrast prompt
likewise), `form_scores`, `prompt_form_scores` (for each wording the chosen's, then the rejected
ones'), `sample_scores`; texts are then only needed for their lengths. Name your columns with --columns chosen=winner,prompt=question.

Refused and counted, with the first lines: records that are not objects or hold the wrong kind of
value, answers to different prompts or that no assistant gave, empty answers, answers identical to the chosen one (the others of the record stay),
repeated records, and both sides of a contradiction. A score that is null, NaN or infinite is
missing: what it is compared with takes no part, and it is counted. A tie is not a win.

`--mdp` holds arrays `transitions` [S, A, S], `discount`, `gold` [S, A, S], optionally `start` [S],
and rewards [S, A, S] under any other name: their STARC, EPIC and DARD distances from `gold`, and
the regret of optimising them.

It writes `report.md` (also printed), `report.png` and `summary.json` to --out. Bad input ends in
one line on stderr and exit code 2, with nothing written.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from experiments import command_line
from jaxreward.training.files import atomic_path

SOURCES = (*command_line.SOURCES, "scores")


def main(arguments: list[str] | None = None) -> int:
    """Runs the evaluation; returns the exit code."""

    def run() -> int:
        options = _parse(arguments)
        _check(options)
        return _run(options)

    return command_line.exit_code("evaluate_reward", run)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = command_line.new_parser("evaluate_reward", __doc__)
    add = parser.add_argument
    add("--items", type=Path, metavar="FILE", help=".jsonl or .parquet")
    command_line.add_source(parser)
    add("--scores", action="store_true", help="the file holds the scores")
    add("--mdp", type=Path, metavar="FILE", help=".npz with transitions, discount, gold, rewards")
    add("--bins", type=int, default=10, help="of the reliability diagram (default 10)")
    add("--name", default="", help="of the reward, for the report")
    add("--out", type=Path, default=Path("reward_report"), metavar="DIR")
    return parser.parse_args(arguments)


def _check(options: argparse.Namespace) -> None:
    """Raises ValueError for options that cannot work, before anything slow is imported."""
    from experiments import reward_items

    named = command_line.given(options, SOURCES)
    if options.items is None and options.mdp is None:
        raise ValueError("give --items=FILE, --mdp=FILE or both")
    if options.items is None and named:
        raise ValueError(f"--{named[0]} needs --items=FILE")
    command_line.check_positive(options, "bins")
    if options.out.exists() and not options.out.is_dir():
        raise ValueError(f"--out = {options.out} exists and is not a directory")
    if options.items is not None:
        command_line.check_source(options, SOURCES, reward_items.COLUMNS)
        reward_items.check_file(options.items)
    if options.mdp is not None and (options.mdp.suffix != ".npz" or not options.mdp.is_file()):
        raise ValueError(f"--mdp = {options.mdp}; allowed is an existing .npz file")


def _run(options: argparse.Namespace) -> int:
    result = {"reward": _title(options), "settings": _settings(options)}
    if options.items is not None:
        result.update(_judge_items(options))
    if options.mdp is not None:
        result["mdp"] = _judge_mdp(options.mdp)
    from experiments import reward_report  # imports matplotlib

    text = reward_report.markdown(result)
    print(text)
    with tempfile.TemporaryDirectory() as scratch:
        figure = Path(scratch) / "report.png"
        reward_report.save_figure(figure, result)
        contents = {
            "report.md": text.encode(),
            "report.png": figure.read_bytes(),
            "summary.json": (json.dumps(result, indent=1, allow_nan=False) + "\n").encode(),
        }
    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        with atomic_path(options.out / name) as temporary:
            Path(temporary).write_bytes(content)
        print(f"wrote {options.out / name}")
    return 0


def _title(options: argparse.Namespace) -> str:
    source = next((str(getattr(options, n)) for n in SOURCES[:3] if getattr(options, n)), None)
    return options.name or source or str(options.items or options.mdp)


def _settings(options: argparse.Namespace) -> dict[str, str | int | bool]:
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(options).items() if v}


def _judge_items(options: argparse.Namespace) -> dict:
    from experiments import reward_items

    names = command_line.column_names(options.columns, reward_items.COLUMNS)
    read = reward_items.read_items(options.items, names, scored=options.scores)
    from experiments import reward_judgement, reward_sources

    scorer = reward_sources.from_options(options)
    if scorer is None:
        scored = reward_judgement.from_file(read.items)
    else:
        texts = reward_judgement.texts(read.items)
        scores = reward_sources.in_blocks(scorer, *texts, options.batch_size)
        scored = reward_judgement.scored(read.items, scores)
    result = reward_judgement.judge(read.items, scored, bins=options.bins)
    if result["scores"]["distinct"] == 0:
        raise ValueError(f"{options.items}: every score is missing")
    refused = {
        reason: {"count": len(lines), "lines": lines[: reward_items.SHOWN]}
        for reason, lines in read.refused.items()
    }
    return {"items": {"used": len(read.items), "refused": refused}, **result}


def _judge_mdp(path: Path) -> dict:
    import zipfile

    import numpy as np

    from experiments import mdp_judgement

    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"--mdp = {path} is not a whole .npz file ({error})") from error
    return mdp_judgement.judge_mdp(arrays)


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    sys.exit(main())
