"""Judges rewards of a finite MDP against a gold one, for `experiments.evaluate_reward --mdp`."""

from typing import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxreward.evaluation import finite_mdp, reward_distances

METRICS = ("VAL-2-2", "Minimal-2-2", "EPIC-2-2", "DARD-2-2")


def judge_mdp(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Distances and regrets of every reward from `gold` in a finite MDP.

    Args:
      arrays: `transitions` [S, A, S], `discount`, `gold` [S, A, S], optionally `start` [S]; all
        others are rewards [S, A, S].

    Raises:
      ValueError: an array is missing, has another shape, or a reward that is not finite.
    """
    for name in ("transitions", "discount", "gold"):
        if name not in arrays:
            raise ValueError(f"--mdp has no array {name!r}; there are {', '.join(arrays)}")
    discount = np.asarray(arrays["discount"])
    if discount.shape != ():
        raise ValueError(f"discount has shape {discount.shape}; allowed is a number")
    rest = [n for n in arrays if n not in ("transitions", "discount", "start", "gold")]
    if not rest:
        raise ValueError("--mdp holds no reward beside gold")
    order = (*METRICS, "regret", "worst_case_regret")  # which a program returns sorted
    with jax.enable_x64(True):  # values are as large as 1 / (1 - discount)
        mdp = finite_mdp.make_mdp(arrays["transitions"], float(discount), arrays.get("start"))
        rewards = {name: _reward(name, arrays[name], mdp) for name in ("gold", *rest)}
        gold = rewards.pop("gold")
        found = {name: _distances(mdp, gold, reward) for name, reward in rewards.items()}
        return {name: {key: float(own[key]) for key in order} for name, own in found.items()}


def _reward(name: str, values: np.ndarray, mdp: finite_mdp.FiniteMDP) -> jax.Array:
    """A reward `[S, A, S]`, checked."""
    if np.shape(values) != mdp.transitions.shape:
        allowed = mdp.transitions.shape
        raise ValueError(f"{name} has shape {np.shape(values)}; allowed is {allowed}")
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{name} has a value that is not finite; allowed are numbers")
    return jnp.asarray(values, mdp.transitions.dtype)


@jax.jit
def _distances(mdp, gold, reward) -> dict[str, jax.Array]:
    found = {
        name: reward_distances.reward_distance(
            mdp, gold, reward, reward_distances.reward_metric(name))
        for name in METRICS
    }
    found["regret"] = finite_mdp.optimal_policy_regret(mdp, gold, reward)
    found["worst_case_regret"] = finite_mdp.worst_case_regret(mdp, gold, reward)
    return found
