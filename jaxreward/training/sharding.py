"""Where arrays lie on many devices: the one place that knows how many there are.

A mesh has three axes, any of which may be 1:

* `data`: copies of the model, each with its share of the prompts;
* `fsdp`: the same, but parameters and optimizer state are split and gathered when used;
* `tensor`: heads, the inside of the feed-forward and the vocabulary are split.

Prompts are split over `data` and `fsdp`; everything else of a step follows, because the same
program is compiled for all devices (`jit` with `NamedSharding`). What is sampled does not
depend on the mesh; sums of floats do, in their last bits.

A parameter is placed by the first rule whose pattern is found in its path; further leading
dimensions, as of stacked layers, are whole. An axis that does not divide its dimension is left
out (the dimension is whole on each device), and what no rule names is replicated; `left_whole`
lists both.
"""

import re
from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxreward.kernels.linear_log_prob import api as linear
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies.language import Layout

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
BATCH = (DATA, FSDP)
"""The axes that split the prompts."""

AnyMesh = Mesh | AbstractMesh


class Rule(NamedTuple):
    """Parameters whose path contains `pattern` are split as `spec`, one entry a dimension."""

    pattern: str
    spec: PartitionSpec


def make_mesh(
    data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh over all devices of all processes, or over those given.

    Args:
      data: size of the axis; -1 for what is left.
      fsdp: likewise.
      tensor: likewise.
      devices: default `jax.devices()`.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {DATA: data, FSDP: fsdp, TENSOR: tensor}
    free = [name for name, size in sizes.items() if size == -1]
    known = int(np.prod([size for size in sizes.values() if size != -1]))
    if len(free) == 1 and known > 0 and len(devices) % known == 0:
        sizes[free[0]] = len(devices) // known
    if min(sizes.values()) < 1 or np.prod(list(sizes.values())) != len(devices):
        given = ", ".join(f"{name} = {size}" for name, size in sizes.items())
        raise ValueError(
            f"{given}; allowed are sizes >= 1, or -1 once, with product {len(devices)}, the "
            "number of devices"
        )
    kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=kinds, devices=devices)


def shards_of_batch(mesh: AnyMesh) -> int:
    """Parts that the prompts are split into."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def check_batch(mesh: AnyMesh, prompts: int, accumulate: int = 1) -> None:
    """Raises ValueError unless each micro-batch of a step can be split over the mesh."""
    parts = shards_of_batch(mesh) * accumulate
    if prompts < 1 or prompts % parts:
        raise ValueError(
            f"prompts_per_step = {prompts}; allowed are multiples of data * fsdp * accumulate = "
            f"{parts}"
        )


def are_copies(mesh: AnyMesh) -> bool:
    """Whether every device of the mesh holds the model whole."""
    return mesh.shape[FSDP] == mesh.shape[TENSOR] == 1


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Of arrays with leading axis `[P]`: rewards, prompts, trajectories."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    """Of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def transformer_rules(config: TransformerConfig, mesh: AnyMesh) -> tuple[Rule, ...]:
    """Where the parameters of a `networks.transformer` lie.

    Kernels are split over `fsdp` along the residual stream and over `tensor` along the other
    dimension, so that a block needs one sum over `tensor` after each of its halves. Heads are
    split whole: unless `tensor` divides `kv_heads`, attention is not split over it.
    """
    heads = TENSOR if config.kv_heads % mesh.shape[TENSOR] == 0 else None
    spec = PartitionSpec
    return (
        Rule(r"embed/embedding$", spec(TENSOR, FSDP)),
        Rule(r"(^|/)head$", spec(FSDP, TENSOR)),
        Rule(r"attention/[qkv]_proj/kernel$", spec(FSDP, heads)),
        Rule(r"attention/[qkv]_proj/bias$", spec(heads)),
        Rule(r"attention/o_proj/kernel$", spec(heads, FSDP)),
        Rule(r"(gate|up)_proj/kernel$", spec(FSDP, TENSOR)),
        Rule(r"down_proj/kernel$", spec(TENSOR, FSDP)),
        Rule(r"attention/[qkv]_proj/lora_a$", spec(FSDP, None)),
        Rule(r"attention/[qkv]_proj/lora_b$", spec(None, heads)),
        Rule(r"attention/o_proj/lora_a$", spec(heads, None)),
        Rule(r"(gate|up)_proj/lora_a$", spec(FSDP, None)),
        Rule(r"(gate|up)_proj/lora_b$", spec(None, TENSOR)),
        Rule(r"down_proj/lora_a$", spec(TENSOR, None)),
        Rule(r"(o|down)_proj/lora_b$", spec(None, FSDP)),
        Rule(r"norm/scale$", spec()),
    )


def state_shardings(state: Any, mesh: AnyMesh, rules: Sequence[Rule]) -> Any:
    """The sharding of every leaf of a train state, or of any part of one.

    Optimizer state that mirrors the parameters has their paths at the end of its own, and so
    is split as they are. Counters, the state of the reward chain and keys are replicated.

    Args:
      state: a pytree of arrays or `ShapeDtypeStruct`s.
      mesh: from `make_mesh`.
      rules: such as `transformer_rules`.

    Returns:
      The same tree with `NamedSharding` leaves.
    """

    def of(path, leaf) -> NamedSharding:
        return NamedSharding(mesh, _fitted(_wanted(path, leaf, rules)[1], leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(of, state)


def left_whole(state: Any, mesh: AnyMesh, rules: Sequence[Rule]) -> list[str]:
    """In words, each array of two dimensions or more that is less split than it might be."""
    lines = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name, spec = _wanted(path, leaf, rules)
        if leaf.ndim < 2 or _is_key(leaf):
            continue
        if spec is None:
            lines.append(f"{name} {leaf.shape}: no rule names it, it is replicated")
        elif _fitted(spec, leaf.shape, mesh) != _trimmed(spec, mesh):
            fitted = _fitted(spec, leaf.shape, mesh)
            lines.append(f"{name} {leaf.shape}: {spec} does not divide it, it is {fitted}")
    return lines


def _wanted(path, leaf: Any, rules: Sequence[Rule]) -> tuple[str, PartitionSpec | None]:
    """A leaf's name and what the first rule for it says, None if there is none."""
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    for rule in rules:
        if re.search(rule.pattern, name) and len(rule.spec) <= leaf.ndim:
            return name, PartitionSpec(*(None,) * (leaf.ndim - len(rule.spec)), *rule.spec)
    return name, None


def _trimmed(spec: PartitionSpec, mesh: AnyMesh) -> PartitionSpec:
    """Without axes of size 1 and without trailing Nones, so that equal placements are equal."""
    entries = [None if name is None or mesh.shape[name] == 1 else name for name in spec]
    while entries and entries[-1] is None:
        entries.pop()
    return PartitionSpec(*entries)


def _fitted(spec: PartitionSpec | None, shape: tuple[int, ...], mesh: AnyMesh) -> PartitionSpec:
    """The spec without the axes that do not divide their dimension."""
    fits = [
        name if name is None or size % mesh.shape[name] == 0 else None
        for name, size in zip(spec or (), shape)
    ]
    return _trimmed(PartitionSpec(*fits), mesh)


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def sharded_init(init: Callable[..., Any], mesh: Mesh, rules: Sequence[Rule], *args: Any) -> Any:
    """`init(*args)` made in place: no device, and no host, ever holds the whole state."""
    shardings = state_shardings(jax.eval_shape(init, *args), mesh, rules)
    return jax.jit(init, out_shardings=shardings)(*args)


def jit_step(step: Callable[..., Any], shardings: Any, **options: Any) -> Callable[..., Any]:
    """`jax.jit` of `(state, *batch) -> (state, metrics)` that leaves the state where it is.

    Args:
      step: for example `UpdateStep.update`.
      shardings: of the state, from `state_shardings`; the metrics are replicated.
      **options: further options of `jax.jit`, such as `donate_argnums=0`.
    """
    mesh = jax.tree.leaves(shardings)[0].mesh
    return jax.jit(step, out_shardings=(shardings, replicated(mesh)), **options)


def language_layout(config: TransformerConfig, mesh: Mesh) -> Layout:
    """The layout of a language policy on a mesh.

    Hidden states are split by prompt. The head's log-probabilities are computed by every
    device for its own part of the tokens, `tensor` splitting the steps. Weights are cast to
    the type they are used in before they are gathered: over `fsdp` (not `tensor`) all of them
    once before sampling; in scoring the embedding's rows, the others block by block.
    """
    rules = transformer_rules(config, mesh)

    def stream(x: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, batch_sharding(mesh))

    def placed(rules: Sequence[Rule]) -> Callable[[Any], Any]:
        def place(params: Any) -> Any:
            cast = jax.tree_util.tree_map_with_path(_as_used(config), params)
            places = state_shardings(cast, mesh, rules)
            return jax.lax.with_sharding_constraint(cast, places)

        return place

    whole = [rule._replace(spec=_without_fsdp(rule.spec)) for rule in rules]
    rows = [new if "embed" in new.pattern else old for old, new in zip(rules, whole)]
    return Layout(stream, placed(whole), placed(rows), _linear_log_prob(mesh))


def copy_layout(mesh: Mesh) -> Layout:
    """The layout inside one device's share of a step over copies (`make_update_step(mesh=...)`)."""

    def linear_log_prob(hidden, head, targets, temperature):
        return _own_log_prob(mesh, hidden, head.astype(hidden.dtype), targets, temperature)

    return Layout(linear_log_prob=linear_log_prob)


def _own_log_prob(mesh: Mesh, hidden, head, targets, temperature):
    """The kernel on what one device holds, rows `[P, G, S]`."""
    rows, options = hidden.reshape(-1, hidden.shape[-1]), head_options(mesh, head.shape[1])
    found = linear.linear_log_prob(
        rows, head, targets.reshape(-1), temperature=temperature, **options
    )
    return tuple(part.reshape(targets.shape) for part in found[:2])


def _as_used(config: TransformerConfig) -> Callable[[Any, jax.Array], jax.Array]:
    """Parameters in the type of the activations, but for the norms', which stay as they are."""

    def cast(path, leaf):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return leaf if name.endswith("norm/scale") else leaf.astype(config.dtype)

    return cast


def _without_fsdp(spec: PartitionSpec) -> PartitionSpec:
    return PartitionSpec(*(None if name == FSDP else name for name in spec))


def head_options(mesh: Mesh, vocabulary: int) -> dict[str, Any]:
    """Options of `kernels.linear_log_prob`: none, unless the mesh's devices are not here.

    Then the choice cannot be left to the kernel, which would make it for the devices that are.
    """
    if mesh.devices.flat[0].platform == jax.default_backend():
        return {}
    rows = min(4096, max(8, _BLOCK_BYTES // (4 * vocabulary) // 8 * 8))
    return {"implementation": "xla", "block_rows": rows}


_BLOCK_BYTES = 640 << 20  # of float32 logits


def _linear_log_prob(mesh: Mesh) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """`Layout.linear_log_prob` with the tokens split over every axis of the mesh."""
    tokens = PartitionSpec(BATCH, None, TENSOR)

    def split(hidden, head, targets, temperature):
        parts = _fitted(PartitionSpec(FSDP, TENSOR), head.shape, mesh)

        def own(hidden, head, targets, temperature):
            for axis, name in enumerate(parts):
                if name is not None:
                    head = jax.lax.all_gather(head, name, axis=axis, tiled=True)
            return _own_log_prob(mesh, hidden, head, targets, temperature)

        # The outputs are split over every axis, so nothing replicated needs to be checked.
        specs = dict(in_specs=(tokens, parts, tokens, PartitionSpec()), out_specs=(tokens, tokens))
        return jax.shard_map(own, mesh=mesh, check_vma=False, **specs)(
            hidden, head, targets, temperature
        )

    def linear_log_prob(hidden, head, targets, temperature):
        steps = targets.shape[2]
        short = -steps % mesh.shape[TENSOR]
        hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, short), (0, 0)))
        targets = jnp.pad(targets, ((0, 0), (0, 0), (0, short)), constant_values=-1)
        temperature = jnp.asarray(temperature, jnp.float32)
        found = split(hidden, head.astype(hidden.dtype), targets, temperature)
        return tuple(part[:, :, :steps] for part in found)

    return linear_log_prob


def own_rows(array: jax.Array) -> np.ndarray:
    """This process's share of an array `[P, ...]` that is split by prompt.

    Raises:
      ValueError: the devices of this process do not hold consecutive whole rows.
    """
    parts = {}
    for shard in array.addressable_shards:
        rows, *others = shard.index
        if any(part != slice(None) for part in others):
            raise ValueError(f"{array.sharding}; allowed is a split of axis 0 alone")
        parts.setdefault(rows.start or 0, shard.data)
    starts = sorted(parts)
    ends = [start + parts[start].shape[0] for start in starts]
    if ends[:-1] != starts[1:]:
        raise ValueError(f"rows from {starts} of {array.sharding}; allowed are consecutive ones")
    return np.concatenate([np.asarray(parts[start]) for start in starts])


def from_own_rows(rows: np.ndarray, mesh: Mesh) -> jax.Array:
    """The array `[P, ...]` split by prompt whose share of this process is `rows`."""
    return jax.make_array_from_process_local_data(batch_sharding(mesh), np.asarray(rows))
