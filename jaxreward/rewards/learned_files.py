"""Reward models in files: weights as safetensors, and a JSON that says how to build the model."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreward.checks import check_choice
from jaxreward.networks import heads, hf_config
from jaxreward.rewards.learned import (
    RewardModel, ensemble, mlp_reward_model, step_reward_model, text_reward_model,
)  # fmt: skip

NETWORKS = ("mlp", "text")
HEADS = {
    "scalar": heads.Scalar,
    "gaussian": heads.Gaussian,
    "quantiles": heads.Quantiles,
    "hierarchical": heads.HierarchicalQuery,
    "verdict": heads.Verdict,
}
STEPS = "steps"
"""The kind of head that `step_reward_model` has."""
DESCRIPTION = "reward_model.json"


def build(spec: dict[str, Any]) -> RewardModel:
    """The model that a description stands for.

    Args:
      spec: JSON. `network` is "mlp", with the arguments of `mlp_reward_model`, or "text", with
        `trunk` (a Hugging Face config, `hf_config.to_hf`), `head` (its `kind`, one of `HEADS` or
        "steps", and its settings) and `layers`. The settings of a head of steps are those of
        `step_reward_model`: `separators`, the ids of the tokens that end a step, `aggregation`
        and `hidden`. An ensemble has `members` and `shared`.

    Raises:
      ValueError: an unknown network or head, or settings that it does not have or cannot have.
    """
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
    network = settings.pop("network", None)
    check_choice("network", network, NETWORKS)
    _check_settings(settings)
    members, shared = settings.pop("members", None), settings.pop("shared", ())
    try:
        model = mlp_reward_model(**settings) if network == "mlp" else _text(**settings)
    except TypeError as error:  # settings by other names
        raise ValueError(f"{network}: {error}") from None
    return model if members is None else ensemble(model, members, shared=shared)


def has_steps(spec: dict[str, Any]) -> bool:
    """Whether a description that `build` takes is of a model that scores steps."""
    return spec["network"] == "text" and spec["head"]["kind"] == STEPS


def _text(trunk: dict[str, Any], head: dict[str, Any], layers: tuple[int, ...] = ()):
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in head.items()}
    kind = settings.pop("kind", None)
    check_choice("head.kind", kind, (*HEADS, STEPS))
    _check_settings(settings, "head.")
    config, _ = hf_config.from_hf(trunk, "trunk")
    if config.width % settings.get("heads", 1):
        allowed = f"a divisor of the width {config.width}"
        raise ValueError(f"head.heads = {settings['heads']}; allowed is {allowed}")
    if kind == STEPS:
        if layers:
            raise ValueError(f"layers = {list(layers)}; allowed with head.kind 'steps' is none")
        return step_reward_model(config, **settings)
    return text_reward_model(config, HEADS[kind](**settings), layers)


def _check_settings(settings: dict[str, Any], where: str = "") -> None:
    """Raises ValueError for a value of another type than its setting has; ranges come later."""
    whole = lambda x, least: isinstance(x, int) and not isinstance(x, bool) and x >= least
    for name, value in settings.items():
        if name in ("width", "members", "count", "heads"):
            good, allowed = whole(value, 1), "an integer >= 1"
        elif name in ("hidden", "layers", "separators", "yes", "no"):
            least = 1 if name == "hidden" else 0
            good = isinstance(value, tuple) and all(whole(x, least) for x in value)
            allowed = f"a list of integers >= {least}"
        elif name == "shared":
            good = isinstance(value, tuple) and all(isinstance(x, str) for x in value)
            allowed = "a list of texts"
        elif name in ("trunk", "head"):
            good, allowed = isinstance(value, dict), "an object"
        elif name == "bound":
            good = isinstance(value, (int, float)) and value > 0
            allowed = "a number > 0"
        else:
            continue
        if not good:
            shown = list(value) if isinstance(value, tuple) else value
            raise ValueError(f"{where}{name} = {shown!r}; allowed is {allowed}")


def save(folder: str | pathlib.Path, params: Any, spec: dict[str, Any]) -> None:
    """Writes `reward_model.json` and `model.safetensors`; needs the package safetensors.

    Args:
      folder: made if needed.
      params: nested dicts of float arrays.
      spec: what `build` takes.

    Raises:
      ValueError: `build` does not accept the spec, or parameters are not those of its model.
    """
    from jaxreward.networks import safetensors_writer  # an optional dependency

    folder = pathlib.Path(folder)
    tensors = _named(params)
    _check(tensors, build(spec), "params")
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in tensors.items()}
    safetensors_writer.write_directory(folder, arrays, 5 << 30)
    temporary = folder / f"{DESCRIPTION}.tmp"
    temporary.write_text(json.dumps(spec, indent=2, sort_keys=True) + "\n")
    temporary.rename(folder / DESCRIPTION)


class Loaded(NamedTuple):
    """A reward model from files."""

    model: RewardModel
    params: Any
    spec: dict[str, Any]


def load(folder: str | pathlib.Path) -> Loaded:
    """Reads what `save` wrote.

    Raises:
      ValueError: no description there, or tensors that are not those of its model.
    """
    from jaxreward.networks import safetensors_reader  # an optional dependency

    folder = pathlib.Path(folder)
    if not (folder / DESCRIPTION).exists():
        raise ValueError(f"{folder} holds no {DESCRIPTION}")
    spec = safetensors_reader.read_json(folder / DESCRIPTION)
    stored = safetensors_reader.open_directory(folder)
    model = build(spec)
    _check(stored, model, str(folder))
    params: dict[str, Any] = {}
    for name, tensor in stored.items():
        *path, last = name.split("/")
        tree = params
        for part in path:
            tree = tree.setdefault(part, {})
        whole = (slice(None),) * len(tensor.shape)
        tree[last] = jnp.asarray(tensor.read(whole))
    return Loaded(model, params, spec)


def _named(tree: Any) -> dict[str, Any]:
    return {
        "/".join(entry.key for entry in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check(tensors: dict[str, Any], model: RewardModel, where: str) -> None:
    """Raises ValueError unless names and shapes are those of the model."""
    wanted = {n: x.shape for n, x in _named(jax.eval_shape(model.init, jax.random.key(0))).items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(wanted | found):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"{where}: {name} has shape {found.get(name)}; allowed is {wanted.get(name)}"
            )
