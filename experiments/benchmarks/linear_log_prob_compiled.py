"""What the loss path costs on shapes that this machine cannot run, from compiled programs.

The blocked XLA schemes for the shapes of an H100 bar, compiled ahead of time for one TPU chip
(libtpu needs none), whose compiler keeps bfloat16 products as they are. FLOP are those of matrix
products, loops counted as often as they turn; memory is the program's temporary memory.
"""

from typing import Any, Callable

TOPOLOGY = "v5e:2x2"
H100_FLOPS = 989e12
"""Dense bfloat16 products a second (data sheet): what no program for it can beat."""
HEADER = ["scheme", "TFLOP", "of 6 N D V", "temporary GB", "least ms at an H100's peak"]


def rows(shape: dict[str, Any], found: dict[str, dict[str, float]]) -> list[list[str]]:
    """What `analyse` found of one shape, as rows under `HEADER`."""
    made = [[f"N={shape['rows']} D={shape['width']} V={shape['vocabulary']}"] + [""] * 4]
    for name, own in found.items():
        flop, least = own["flop"] / 1e12, 1e3 * own["flop"] / H100_FLOPS
        share, memory = own["flop"] / own["floor"], own["temporary_bytes"] / 1e9
        made.append([name, f"{flop:.1f}", f"{share:.2f}", f"{memory:.2f}", f"{least:.0f}"])
    return made


def analyse(
    shape: dict[str, Any], arguments: Any, losses: dict[str, Callable], blocks: int
) -> dict[str, dict[str, float]]:
    """FLOP, their floor and temporary bytes of each loss, forward and backward together.

    Args:
      shape: rows, width and vocabulary.
      arguments: shapes and dtypes of what the losses take; they are differentiated in the first
        two.
      losses: by name.
      blocks: how often their loops turn.

    Raises:
      RuntimeError: libtpu is not installed.
    """
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from experiments import hlo_cost

    chips = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    where = SingleDeviceSharding(chips[0])
    placed = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    arguments, found = jax.tree.map(placed, arguments), {}
    for name, loss in losses.items():
        both = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arguments).compile()
        found[name] = {
            "flop": hlo_cost.count(both.as_text(), rounds=blocks).flops,
            "floor": 6.0 * shape["rows"] * shape["width"] * shape["vocabulary"],
            "temporary_bytes": both.memory_analysis().temp_size_in_bytes,
        }
    return found
