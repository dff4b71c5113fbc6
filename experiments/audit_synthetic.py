"""Logs with known noise for `experiments.audit --synthetic`, and the truth about them."""

import json
from pathlib import Path
from typing import Any, Iterator, NamedTuple

import numpy as np

SCENARIOS = ("prompt", "constant", "hackable", "broken")
"""Rates vary by the prompt's source; are the same everywhere; a phrase is always accepted; the
verifier is close to chance."""

SOURCES = ("algebra", "geometry", "word_problem")
RECHECKED = 0.12


class Synthetic(NamedTuple):
    """A generated log with what a real one hides, all `[prompts, group_size]`."""

    source: np.ndarray  # index into SOURCES
    phrase: np.ndarray  # True where the output holds the phrase "clearly"
    true: np.ndarray
    observed: np.ndarray
    rechecked: np.ndarray
    false_positive: np.ndarray  # probability
    false_negative: np.ndarray


def generate(
    scenario: str, *, seed: int = 0, prompts: int = 1500, group_size: int = 8
) -> Synthetic:
    """Draws a log: true success rates differ between prompts, flips are independent.

    Args:
      scenario: one of `SCENARIOS`.
      seed: of everything.
      prompts: number of prompts, one group each.
      group_size: rollouts per prompt.
    """
    rng = np.random.default_rng(seed)
    shape = (prompts, group_size)
    source = np.broadcast_to(rng.integers(0, len(SOURCES), (prompts, 1)), shape)
    phrase = rng.random(shape) < 0.2
    true = rng.random(shape) < rng.beta(0.7, 0.7, (prompts, 1))
    false_positive, false_negative = _rates(scenario, source, phrase)
    flip = rng.random(shape) < np.where(true, false_negative, false_positive)
    return Synthetic(
        source, phrase, true, true ^ flip, rng.random(shape) < RECHECKED,
        false_positive, false_negative,
    )


def _rates(scenario: str, source: np.ndarray, phrase: np.ndarray):
    same = np.ones(source.shape)
    if scenario == "prompt":
        return np.array([0.02, 0.10, 0.35])[source], np.array([0.10, 0.30, 0.05])[source]
    if scenario == "hackable":
        return np.where(phrase, 0.85, 0.04), np.where(phrase, 0.02, 0.15)
    if scenario == "broken":
        return 0.55 * same, 0.40 * same
    return 0.10 * same, 0.20 * same


def records(log: Synthetic) -> Iterator[dict[str, Any]]:
    """The log as a trainer would write it, one record for each rollout."""
    for index, (row, column) in enumerate(np.ndindex(log.true.shape)):
        holds = bool(log.phrase[row, column])
        yield {
            "step": row // 100,
            "prompt": f"problem {row}: what is {17 + row} times {3 + row % 7}?",
            "completion": f"{'Clearly, ' if holds else ''}the answer is {index}",
            "accuracy_reward": float(log.observed[row, column]),
            "recheck": int(log.true[row, column]) if log.rechecked[row, column] else None,
            "source": SOURCES[log.source[row, column]],
            "says_clearly": holds,
        }


COLUMNS = "prompt_id=prompt,reward=accuracy_reward,recheck=recheck,group=step"
FEATURES = "source,says_clearly"


def write(log: Synthetic, path: Path) -> None:
    """Writes the log as JSON lines."""
    with path.open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records(log))


def truth(log: Synthetic) -> dict[str, float]:
    """What the audit estimates, from the hidden true rewards and flip probabilities.

    The rates are averages of the flip probabilities over the rollouts that can flip, so
    they are free of the luck of the flips; the rest is of this very log.
    """
    a, b = log.false_positive[~log.true].mean(), log.false_negative[log.true].mean()
    seen = log.observed - log.observed.mean(axis=1, keepdims=True)
    clean = log.true - log.true.mean(axis=1, keepdims=True)
    explained = np.sum(seen * clean) ** 2 / (np.sum(seen**2) * np.sum(clean**2))
    dead = log.true.all(axis=1) | ~log.true.any(axis=1)
    alive = log.observed.any(axis=1) & ~log.observed.all(axis=1)
    return {
        "false_positive": float(a),
        "false_negative": float(b),
        "determinant": float(1 - a - b),
        "success_rate": float(log.true.mean()),
        "noise_share": float(1 - explained),
        "dead_groups": float(dead.mean()),
        "falsely_alive": float(dead[alive].mean()),
    }
