"""Where the samples of a study of generators lie: on one device, or split over several."""

from typing import Any, Callable

import jax
from jax.sharding import Mesh

from jaxreward.training import sharding
from jaxreward.training.exits import ConfigError


def mesh_over(devices: int) -> Mesh | None:
    """A mesh over the first so many devices, as language models train on; None for one.

    Raises:
      ConfigError: jax sees fewer.
    """
    if not 1 <= devices <= jax.device_count():
        raise ConfigError(
            f"config.study.devices = {devices}; allowed are 1 to {jax.device_count()}, the devices "
            "that jax sees"
        )
    return sharding.make_mesh(devices=jax.devices()[:devices]) if devices > 1 else None


def place_rows(mesh: Mesh | None, tree: Any) -> Any:
    """Leaves `[B, ...]` split along their first axis."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, sharding.batch_sharding(mesh))


def vmap_over(mesh: Mesh | None, function: Callable) -> Callable:
    """`vmap` whose mapped axis is split where `function` calls `place_each`."""
    return jax.vmap(function, spmd_axis_name=None if mesh is None else sharding.BATCH)


def place_each(mesh: Mesh | None, tree: Any) -> Any:
    """Under `vmap_over`: what is mapped lies split, each part whole."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, sharding.replicated(mesh))
