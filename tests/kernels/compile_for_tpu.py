"""Compiles the loss and its gradient for TPUs that are not here; prints what each needs.

`python compile_for_tpu.py N D V TOPOLOGY ...`, one JSON line for each.
"""

import json
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from jaxreward.kernels.linear_log_prob import api
from jaxreward.kernels.linear_log_prob.blocks import tpu_blocks


def main(topology, rows, width, vocabulary):
    device = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    blocks = tpu_blocks(width, 2, 4, device.device_kind)

    def loss(hidden, weight, bias, targets, temperature):
        log_prob, entropy, normalizer = api.linear_log_prob(
            hidden, weight, targets, bias, implementation="pallas_tpu", blocks=blocks,
            temperature=temperature, logit_softcap=30.0, vocabulary=vocabulary - 7,
        )  # fmt: skip
        return jnp.sum(0.3 * log_prob + entropy + jnp.square(normalizer))

    place = jax.sharding.SingleDeviceSharding(device)
    shapes = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=place)
        for shape, dtype in (
            ((rows, width), jnp.bfloat16),
            ((width, vocabulary), jnp.float32),
            ((vocabulary,), jnp.float32),
            ((rows,), jnp.int32),
            ((), jnp.float32),
        )
    ]
    both = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
    lowered = both.lower(*shapes)
    text, memory = lowered.as_text(), lowered.compile().memory_analysis()
    kernels = ("forward_kernel", "hidden_kernel", "weight_kernel")
    found = [name for name in kernels if f"linear_log_prob_{name}" in text]
    print(json.dumps({"temp": memory.temp_size_in_bytes, "kernels": found}))


if __name__ == "__main__":
    for name in sys.argv[4:]:
        main(name, *map(int, sys.argv[1:4]))
