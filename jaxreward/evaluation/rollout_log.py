"""A log of scored rollouts as arrays, and its plain descriptions.

Letters: `N` rollouts, `F` values of a feature.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int


class Feature(NamedTuple):
    """A categorical property of each rollout: `labels[code]`."""

    code: Int[np.ndarray, "N"]
    labels: tuple[str, ...]


class Rollouts(NamedTuple):
    """A log, one entry for each scored rollout.

    Attributes:
      prompt: index of the prompt, `0 .. prompts - 1`, all present.
      group: index of the group of rollouts that were compared with each other, all present.
      observed: True where the verifier accepted.
      recheck: 1 right, 0 wrong by the trusted verifier, -1 not re-checked.
      features: by name.
      weight: rollouts that the row stands for; None for a complete log.
      inclusion: probability with which the row was drawn for the re-check; None if the
        same for all rows of a verdict. Used only where re-checked.
    """

    prompt: Int[np.ndarray, "N"]
    group: Int[np.ndarray, "N"]
    observed: Bool[np.ndarray, "N"]
    recheck: Int[np.ndarray, "N"]
    features: dict[str, Feature] = {}
    weight: Float[np.ndarray, "N"] | None = None
    inclusion: Float[np.ndarray, "N"] | None = None

    @property
    def prompts(self) -> int:
        """Number of distinct prompts."""
        return int(self.prompt.max()) + 1

    @property
    def checked(self) -> Bool[np.ndarray, "N"]:
        """True where re-checked."""
        return self.recheck >= 0


def check(rollouts: Rollouts) -> None:
    """Raises ValueError if the log holds no group-relative signal to audit."""
    if len(rollouts.prompt) == 0:
        raise ValueError("the log has no scored rollout")
    if rollouts.observed.all() or not rollouts.observed.any():
        raise ValueError(
            f"all {len(rollouts.prompt)} observed rewards are {int(rollouts.observed[0])}: no "
            "group has a signal, and rates cannot be told from a single verdict"
        )
    size = np.bincount(rollouts.group)
    if size.max() < 2 and rollouts.weight is None:
        raise ValueError(
            f"all {len(size)} groups have a single rollout; a group-relative signal needs "
            "groups of at least 2"
        )
    inclusion = rollouts.inclusion
    if inclusion is not None:
        wrong = rollouts.checked & ~((inclusion > 0) & (inclusion <= 1))
        if wrong.any():
            raise ValueError(
                f"inclusion probability {inclusion[wrong][0]} of a re-checked rollout; "
                "allowed is (0, 1]"
            )


def describe(rollouts: Rollouts) -> dict[str, Any]:
    """Counts."""
    size, checked = np.bincount(rollouts.group), rollouts.checked
    return {
        "rollouts": len(rollouts.prompt),
        "prompts": rollouts.prompts,
        "groups": len(size),
        "single_rollout_groups": int(np.sum(size == 1)),
        "group_size": {
            "min": int(size.min()), "median": float(np.median(size)), "max": int(size.max())
        },
        "accepted": int(rollouts.observed.sum()),
        "rejected": int((~rollouts.observed).sum()),
        "rechecked": int(checked.sum()),
        "rechecked_accepted": int((checked & rollouts.observed).sum()),
        "rechecked_rejected": int((checked & ~rollouts.observed).sum()),
        "rechecked_prompts": len(np.unique(rollouts.prompt[checked])),
        "complete": rollouts.weight is None,
        "dead_groups": _dead_share(rollouts),
    }


def _dead_share(rollouts: Rollouts) -> float:
    """Share of groups of two or more whose observed rewards are all equal."""
    size, ones = (counts[:, 0] for counts in group_counts(rollouts, constant(rollouts)))
    ones, size = ones[size > 1], size[size > 1]
    return float(np.mean((ones == 0) | (ones == size))) if len(size) else 1.0


def constant(rollouts: Rollouts) -> Feature:
    """The feature with a single value."""
    return Feature(np.zeros(len(rollouts.prompt), np.int64), ("all",))


def group_counts(
    rollouts: Rollouts, feature: Feature
) -> tuple[Float[np.ndarray, "groups F"], Float[np.ndarray, "groups F"]]:
    """Rollouts, and accepted rollouts, of each group by feature value."""
    values, groups = len(feature.labels), int(rollouts.group.max()) + 1
    cell = rollouts.group * values + feature.code
    size = np.bincount(cell, minlength=groups * values).reshape(groups, values)
    ones = np.bincount(cell[rollouts.observed], minlength=groups * values)
    return size.astype(np.float64), ones.reshape(groups, values).astype(np.float64)


def level(rollouts: Rollouts, feature: Feature) -> str:
    """"prompt" if the feature is the same for all rollouts of every group, else "output"."""
    first = np.zeros(int(rollouts.group.max()) + 1, np.int64)
    first[rollouts.group] = feature.code
    return "prompt" if (first[rollouts.group] == feature.code).all() else "output"


def sibling_mean(rollouts: Rollouts) -> Float[np.ndarray, "N"]:
    """Mean observed reward of the other rollouts of the group; NaN without any."""
    others = np.bincount(rollouts.group)[rollouts.group] - 1
    ones = np.bincount(rollouts.group, rollouts.observed)[rollouts.group]
    rest = ones - rollouts.observed
    return np.where(others > 0, rest / np.maximum(others, 1), np.nan)


def recheck_weight(rollouts: Rollouts) -> Float[np.ndarray, "N"]:
    """Inverse inclusion probabilities, scaled to the effective number of each verdict."""
    weight = np.ones(len(rollouts.prompt))
    if rollouts.inclusion is None:
        return weight
    for verdict in (False, True):
        where = rollouts.checked & (rollouts.observed == verdict)
        raw = 1.0 / rollouts.inclusion[where]
        weight[where] = raw * (raw.sum() / np.square(raw).sum()) if len(raw) else raw
    return weight
