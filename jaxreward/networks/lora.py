"""Low-rank adapters of dense layers: `y = x W + scale (x A) B` (LoRA, arXiv 2106.09685).

An adapter is a tree of its own that mirrors the parameters where they are adapted:

    adapter = lora.init(key, base, config)
    policy = adapted.adapt(language_policy(...), base, config)  # its parameters: the adapter

so its gradient, optimizer state and checkpoints are those of the adapter alone. `base` may be
traced: build the adapted policy inside the jitted step and pass `base` as an argument, or its
arrays become constants of the program.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxreward.networks.dense import LORA_A, LORA_B

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Layers of a `networks.transformer` block that can be adapted."""

Adapter = dict[str, Any]
"""Nested as the parameters are; at each adapted layer `lora_a` and `lora_b`."""


class LoraConfig(NamedTuple):
    """Which layers are adapted and how. Build with `lora_config`.

    Attributes:
      rank: columns of A, rows of B.
      alpha: see `scale`.
      targets: among `TARGETS`.
      rank_stabilized: see `scale`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    rank_stabilized: bool

    @property
    def scale(self) -> float:
        """`alpha / rank`, or `alpha / sqrt(rank)` rank-stabilized (arXiv 2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilized else self.rank)


def lora_config(
    rank: int,
    *,
    alpha: float | int | None = None,
    targets: tuple[str, ...] = TARGETS,
    rank_stabilized: bool = False,
) -> LoraConfig:
    """A checked `LoraConfig`; `alpha` is twice the rank unless given.

    Raises:
      ValueError: rank < 1, alpha not positive and finite, or targets not among `TARGETS`.
    """
    if rank < 1:
        raise ValueError(f"rank = {rank}; allowed is >= 1")
    alpha = 2.0 * rank if alpha is None else float(alpha)
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha = {alpha}; allowed is > 0 and finite")
    targets = tuple(targets)
    if not targets or not set(targets) <= set(TARGETS) or len(set(targets)) < len(targets):
        raise ValueError(f"targets = {targets}; allowed are one or more of {TARGETS}, each once")
    return LoraConfig(rank, alpha, targets, rank_stabilized)


def init(key: jax.Array, base: Any, config: LoraConfig, dtype: str = "float32") -> Adapter:
    """An adapter that changes nothing yet.

    A is uniform in `±1/sqrt(D)` (Kaiming with slope sqrt(5), as peft draws it), B is 0.

    Args:
      key: of A.
      base: parameters, or their shapes; with `scan` those of `stack_blocks`.
      config: what is adapted.
      dtype: of the adapter.

    Raises:
      ValueError: no layer of `base` is a target.
    """
    adapter: Adapter = {}
    for index, (path, kernel) in enumerate(_kernels(base, config)):
        *layers, inputs, outputs = kernel.shape
        own, bound = jax.random.fold_in(key, index), inputs**-0.5
        a = jax.random.uniform(own, (*layers, inputs, config.rank), dtype, -bound, bound)
        b = jnp.zeros((*layers, config.rank, outputs), dtype)
        put(adapter, path, {LORA_A: a, LORA_B: b})
    if not adapter:
        raise ValueError(f"targets = {config.targets}; the parameters have none of these layers")
    return adapter


def join(base: Any, adapter: Adapter, config: LoraConfig) -> Any:
    """Parameters for a network: the base with the adapter beside its kernels, B times scale."""
    scaled = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * config.scale if path[-1].key == LORA_B else leaf, adapter
    )
    return _union(base, scaled)


def merge(base: Any, adapter: Adapter, config: LoraConfig) -> Any:
    """The base with `kernel + scale A B` in place of its adapted kernels, in their dtype."""
    merged = _union(base, {})
    for path, kernel in _kernels(base, config):
        own = at(adapter, path)
        wide = (own[name].astype(jnp.float32) for name in (LORA_A, LORA_B))
        change = config.scale * jnp.matmul(*wide, precision=jax.lax.Precision.HIGHEST)
        kernel = (kernel.astype(jnp.float32) + change).astype(kernel.dtype)
        put(merged, path, {**at(base, path), "kernel": kernel})
    return merged


def _kernels(base: Any, config: LoraConfig) -> list[tuple[tuple[str, ...], Any]]:
    """Path of each adapted layer and its kernel, in the order of the tree."""
    found = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(base):
        names = tuple(entry.key for entry in path)
        if names[-1] == "kernel" and names[-2] in config.targets:
            found.append((names[:-1], leaf))
    return found


def at(tree: Any, path: tuple[str, ...]) -> Any:
    """The part of nested dicts at a path."""
    for name in path:
        tree = tree[name]
    return tree


def put(tree: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Sets it, making dicts on the way."""
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = value


def _union(base: Any, more: Any) -> Any:
    """Two nested dicts as one, in new dicts."""
    if not isinstance(base, dict):
        return base
    joined = {name: _union(value, more.get(name, {})) for name, value in base.items()}
    return {**joined, **{name: value for name, value in more.items() if name not in base}}
