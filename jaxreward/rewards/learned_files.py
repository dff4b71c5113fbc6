"""Reward models in files: weights as safetensors, and a JSON that says how to build the model."""

import json
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreward.checks import check_choice
from jaxreward.networks import heads, hf_config
from jaxreward.rewards.learned import RewardModel, ensemble, mlp_reward_model, text_reward_model

NETWORKS = ("mlp", "text")
HEADS = {
    "scalar": heads.Scalar,
    "gaussian": heads.Gaussian,
    "quantiles": heads.Quantiles,
    "hierarchical": heads.HierarchicalQuery,
    "verdict": heads.Verdict,
}
DESCRIPTION = "reward_model.json"


def build(spec: dict[str, Any]) -> RewardModel:
    """The model that a description stands for.

    Args:
      spec: JSON. `network` is "mlp", with the arguments of `mlp_reward_model`, or "text", with
        `trunk` (a Hugging Face config, `hf_config.to_hf`), `head` (its `kind`, one of `HEADS`, and
        its settings) and `layers`. An ensemble has `members` and `shared`.

    Raises:
      ValueError: an unknown network or head, or settings that it does not have.
    """
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
    network = settings.pop("network", None)
    check_choice("network", network, NETWORKS)
    members, shared = settings.pop("members", None), settings.pop("shared", ())
    try:
        model = mlp_reward_model(**settings) if network == "mlp" else _text(**settings)
    except TypeError as error:  # settings by other names
        raise ValueError(f"{network}: {error}") from None
    return model if members is None else ensemble(model, members, shared=shared)


def _text(trunk: dict[str, Any], head: dict[str, Any], layers: tuple[int, ...] = ()):
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in head.items()}
    kind = settings.pop("kind", None)
    check_choice("head.kind", kind, tuple(HEADS))
    config, _ = hf_config.from_hf(trunk, "trunk")
    return text_reward_model(config, HEADS[kind](**settings), layers)


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
