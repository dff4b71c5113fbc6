"""Pairs in arrays that cannot be trained on: left out, and counted by cause.

What `tasks.preference_files` does with the rows of a file, for pairs that come as arrays. A pair
that is left out keeps its place with weight 0, and its items become zeros, since a NaN that a layer
reads is in its gradient whatever the weight. What is done with each defect:

- not_finite: an item holds NaN or infinity: left out;
- empty_item: left out;
- identical_pair: left out, its margin is 0 whatever the model is;
- no_target: the target is NaN or outside [0, 1]: left out;
- bad_weight: NaN, infinite or negative: left out;
- unknown_annotator: outside [0, K), where a look-up would silently give the nearest known one's
  value: left out;
- duplicate: the same judgement of the same annotator once more, in either order: left out;
- contradictory: the same pair, judged otherwise by the same annotator: the first becomes a tie
  (`tied`), the later ones are left out.

Pairs of weight 0 are left out already, for example because there was no feedback on them; they are
not counted. Annotators that disagree with each other are data.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from jaxreward.checks import check_number
from jaxreward.types import Preferences

CAUSES = (
    "not_finite", "empty_item", "identical_pair", "no_target", "bad_weight", "unknown_annotator",
    "duplicate", "contradictory",
)  # fmt: skip
"""The first that holds counts."""


class Screened(NamedTuple):
    """Pairs that can be trained on.

    Attributes:
      preferences: the same pairs in the same places.
      refused: by cause, where a pair was left out.
      tied: where a contradiction made a tie.
    """

    preferences: Preferences
    refused: dict[str, Bool[np.ndarray, "B"]]
    tied: Bool[np.ndarray, "B"]


def screen(
    preferences: Preferences,
    *,
    annotators: int,
    is_empty: Callable[[Any], Any] | None = None,
) -> Screened:
    """Leaves out what the module lists; on the host, in time that is linear in the pairs.

    Args:
      preferences: any values.
      annotators: K >= 1.
      is_empty: of the items `[B]`, such as `lambda texts: texts.lengths == 0`; None is never.

    Raises:
      ValueError: `annotators` < 1, or no pair is left.
    """
    check_number("annotators", annotators, lambda x: x >= 1, ">= 1")
    given = jax.tree.map(np.asarray, preferences)
    there = ~(given.weights == 0)
    refused = dict.fromkeys(CAUSES, np.zeros(there.shape, bool))
    for cause, holds in _alone(given, annotators, is_empty).items():
        refused[cause] = there & holds
        there = there & ~holds
    refused["duplicate"], refused["contradictory"], tied = _together(given, there)
    there = there & ~refused["duplicate"] & ~refused["contradictory"]
    if not np.any(there):
        raise ValueError(f"no pair is left: {_listed(refused) or 'all have weight 0'}")
    at = lambda leaf: there.reshape((-1,) + (1,) * (leaf.ndim - 1))
    clear = lambda leaf: jnp.asarray(np.where(at(leaf), leaf, leaf.dtype.type(0)))
    screened = Preferences(
        first=jax.tree.map(clear, given.first),
        second=jax.tree.map(clear, given.second),
        target=jnp.asarray(np.where(there & ~tied, given.target, np.float32(0.5))),
        weights=jnp.asarray(np.where(there, given.weights, np.float32(0.0))),
        annotator=jnp.asarray(np.clip(given.annotator, 0, annotators - 1)),
    )
    return Screened(screened, refused, tied)


def describe(screened: Screened) -> str:
    """One line: pairs kept, left out by cause, and made ties."""
    kept = int(np.sum(screened.preferences.weights > 0))
    total = sum(int(np.sum(mask)) for mask in screened.refused.values())
    listed = _listed(screened.refused)
    parts = [f"{kept} pairs kept", f"{total} left out" + (f" ({listed})" if listed else "")]
    return ", ".join(parts + [f"{int(np.sum(screened.tied))} made ties"])


def _listed(refused: dict[str, np.ndarray]) -> str:
    counts = {cause: int(np.sum(mask)) for cause, mask in refused.items()}
    return "; ".join(f"{cause} {count}" for cause, count in counts.items() if count)


def _alone(given: Preferences, annotators: int, is_empty) -> dict[str, np.ndarray]:
    """What a pair shows by itself."""
    shape = given.weights.shape
    empty = [np.zeros(shape, bool)]
    if is_empty is not None:
        empty = [np.asarray(is_empty(items)) for items in (given.first, given.second)]
    same = zip(jax.tree.leaves(given.first), jax.tree.leaves(given.second))
    flat = lambda leaf: leaf.reshape(shape[0], -1)
    return {
        "not_finite": ~(_finite(given.first, shape) & _finite(given.second, shape)),
        "empty_item": np.any(empty, axis=0),
        "identical_pair": np.all([np.all(flat(a) == flat(b), axis=1) for a, b in same], axis=0),
        "no_target": ~((given.target >= 0) & (given.target <= 1)),
        "bad_weight": ~(np.isfinite(given.weights) & (given.weights > 0)),
        "unknown_annotator": (given.annotator < 0) | (given.annotator >= annotators),
    }


def _finite(items: Any, shape: tuple[int, ...]) -> np.ndarray:
    found = np.ones(shape, bool)
    for leaf in jax.tree.leaves(items):
        if np.issubdtype(leaf.dtype, np.floating):
            found &= np.all(np.isfinite(leaf.reshape(shape[0], -1)), axis=1)
    return found


def _together(given: Preferences, there: np.ndarray) -> tuple[np.ndarray, ...]:
    """Duplicates, later contradictions, and first ones, by annotator."""
    firsts, seconds = _bytes(given.first), _bytes(given.second)
    duplicate, contradictory, tied = (np.zeros(there.shape, bool) for _ in range(3))
    opinions: dict[Any, dict[float, int]] = {}
    for row in np.flatnonzero(there):
        turned = seconds[row] < firsts[row]
        target = float(1 - given.target[row] if turned else given.target[row])
        pair = tuple(sorted((firsts[row], seconds[row])))
        said = opinions.setdefault((*pair, int(given.annotator[row])), {})
        duplicate[row] = target in said
        if said and target not in said:
            contradictory[row] = True
            tied[next(iter(said.values()))] = True
        said.setdefault(target, int(row))
    return duplicate, contradictory, tied


def _bytes(items: Any) -> list[bytes]:
    """Of every item; adding 0 gives 0 and -0 the same."""
    leaves = [np.ascontiguousarray(leaf + leaf.dtype.type(0)) for leaf in jax.tree.leaves(items)]
    return [b"".join(leaf[row].tobytes() for leaf in leaves) for row in range(len(leaves[0]))]
