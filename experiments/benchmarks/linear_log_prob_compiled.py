"""What the loss path costs on shapes that this machine cannot run, from compiled programs.

The blocked XLA schemes for the shapes of an H100 bar, compiled ahead of time for one TPU chip
(libtpu needs none), whose compiler keeps bfloat16 products as they are. FLOP are those of matrix
products, loops counted as often as they turn; memory is the program's temporary memory.
"""

from typing import Any

from experiments.benchmarks import linear_log_prob as bench

TOPOLOGY = "v5e:2x2"
H100_FLOPS = 989e12
"""Dense bfloat16 products a second (data sheet): what no program for it can beat."""
HEADER = ["scheme", "TFLOP", "of 6 N D V", "temporary GB", "least ms at an H100's peak"]


def table() -> tuple[list[list[str]], list[dict[str, Any]], list[str]]:
    """Rows to print, the same as data, and a note where nothing can be compiled."""
    rows, found = [HEADER], []
    for shape in bench.SHAPES["gpu"]:
        rows.append([f"N={shape['rows']} D={shape['width']} V={shape['vocabulary']}"] + [""] * 4)
        try:
            measured = analyse(shape)
        except (RuntimeError, ValueError) as error:
            return [], [], [f"not compiled: {str(error).splitlines()[0]}; libtpu must be installed"]
        for name, own in measured.items():
            flop, least = own["flop"] / 1e12, 1e3 * own["flop"] / H100_FLOPS
            share, memory = own["flop"] / own["floor"], own["temporary_bytes"] / 1e9
            rows.append([name, f"{flop:.1f}", f"{share:.2f}", f"{memory:.2f}", f"{least:.0f}"])
        found.append({"shape": shape, "entries": measured})
    return rows, found, []


def analyse(shape: dict[str, Any]) -> dict[str, dict[str, float]]:
    """FLOP, their floor and temporary bytes of each scheme, forward and backward together."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from experiments import hlo_cost
    from jaxreward.kernels.linear_log_prob import api

    chips = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGY).devices
    where = SingleDeviceSharding(chips[0])
    arguments = jax.eval_shape(lambda: bench.make_arguments(shape))
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), arguments
    )
    block = api.default_block_rows(shape["vocabulary"], "tpu")
    rounds, found = -(-shape["rows"] // block), {}
    for name, entry in bench.make_entries(shape, block_rows=block).items():
        if name not in bench.OURS:
            continue
        both = jax.jit(jax.value_and_grad(entry.loss, (0, 1))).lower(*arguments).compile()
        found[name] = {
            "flop": hlo_cost.count(both.as_text(), rounds=rounds).flops,
            "floor": 6.0 * shape["rows"] * shape["width"] * shape["vocabulary"],
            "temporary_bytes": both.memory_analysis().temp_size_in_bytes,
        }
    return found
