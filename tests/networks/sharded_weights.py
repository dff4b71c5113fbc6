"""Run by test_weights_multi_device.py on 8 forced host devices: what a sharded load reads."""

import json
import sys

import jax
import numpy as np

from jaxreward.networks import weights
from jaxreward.networks.transformer import init
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.training import sharding

CONFIG = TransformerConfig(
    vocab_size=64, width=32, layers=4, heads=4, kv_heads=2, intermediate=48
)


def load(directory, scan: bool):
    """Whether a sharded load equals a plain one, and the largest part of each tensor read."""
    checkpoint, largest = weights.open_checkpoint(directory, scan=scan), {}

    def watched(tensor):
        def note(index):
            part = tensor.read(index)
            largest[tensor.name] = max(largest.get(tensor.name, 0), part.size)
            return part

        return tensor._replace(read=note)

    spied = {name: watched(tensor) for name, tensor in checkpoint.tensors.items()}
    mesh = sharding.make_mesh(1, 4, 2)
    rules = sharding.transformer_rules(checkpoint.config, mesh)
    shapes = jax.eval_shape(lambda key: init(checkpoint.config, key), jax.random.key(0))
    shardings = sharding.state_shardings(shapes, mesh, rules)
    found = weights.load_params(checkpoint._replace(tensors=spied), shardings=shardings)
    plain = weights.load_params(checkpoint)
    same = jax.tree.map(
        lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), found, plain
    )
    shares = {
        name: size / np.prod(checkpoint.tensors[name].shape) for name, size in largest.items()
    }
    return {"equal": all(jax.tree.leaves(same)), "shares": shares}


def main(directory: str) -> None:
    """Prints one JSON object."""
    weights.save_checkpoint(directory, CONFIG, init(CONFIG, jax.random.key(0)))
    print(json.dumps({str(scan): load(directory, scan) for scan in (False, True)}))


if __name__ == "__main__":
    main(sys.argv[1])
