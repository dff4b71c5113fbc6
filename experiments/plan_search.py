"""Which splits of a job over devices are worth compiling, cheapest estimate first."""

from typing import Any, NamedTuple

from experiments.hardware import Chip
from jaxreward.networks.transformer_config import TransformerConfig


class Split(NamedTuple):
    """Sizes of the mesh, and micro-batches of an update."""

    data: int
    fsdp: int
    tensor: int
    accumulate: int


def parameters(network: TransformerConfig) -> int:
    """Weights of a network, biases and norms left out."""
    c = network
    attention = c.width * c.size_per_head * (2 * c.heads + 2 * c.kv_heads)
    per_layer = attention + 3 * c.width * c.intermediate
    return c.layers * per_layer + c.vocab_size * c.width * (1 if c.tie_embeddings else 2)


def candidates(job: Any, devices: int, chip: Chip, most: int = 4) -> list[Split]:
    """At most `most` splits whose estimated memory fits, fastest first.

    Args:
      job: a `plan_programs.Job`.
      devices: number of them.
      chip: what they are.
      most: how many.

    Returns:
      At least one: if none is estimated to fit, the one that needs least.
    """
    splits = []
    tensor = 1
    while tensor <= min(devices, 64):
        rows = devices // tensor
        if devices % tensor == 0 and job.network.kv_heads % tensor == 0:
            splits += [
                Split(1, rows, tensor, parts)
                for parts in (1, 2, 4, 8, 16, 32)
                if job.prompts % (rows * parts) == 0
            ]
        tensor *= 2
    fitting = [s for s in splits if estimated_memory(job, s) <= chip.memory]
    if not fitting:
        return sorted(splits, key=lambda s: estimated_memory(job, s))[:1] or [
            Split(1, devices, 1, 1)
        ]
    return sorted(fitting, key=lambda s: estimated_seconds(job, s, chip))[:most]


def estimated_memory(job: Any, split: Split) -> float:
    """Bytes per chip of the largest of update and sampler; a rough upper bound."""
    c, weights = job.network, parameters(job.network)
    shards = split.fsdp * split.tensor
    resident = 14.0 * weights / shards  # parameters and two moments in float32, reference in 2
    samples = job.prompts * job.group_size / (split.data * split.fsdp)
    held = samples / split.accumulate * job.response_length
    length = job.prompt_length + job.response_length
    stream = 2.0 * held * c.width * c.layers
    scores = 4 * 4.0 * held * length * c.heads / split.tensor
    inside = 2 * 4.0 * held * c.intermediate / split.tensor
    head = 10.0 * c.width * c.vocab_size + 3 * (640 << 20)
    update = stream + scores + inside + head + 4.0 * weights / shards
    cache = 4.0 * samples * job.response_length * c.layers * c.kv_heads * c.size_per_head
    sampler = 2.5 * weights / split.tensor + 2 * cache / split.tensor  # some are transposed
    sampler += 3 * 4.0 * samples * c.vocab_size / split.tensor
    return resident + max(update, sampler)


def estimated_seconds(job: Any, split: Split, chip: Chip) -> float:
    """Seconds of update and sampler: operations, memory and links one after the other."""
    c, weights = job.network, parameters(job.network)
    devices = split.data * split.fsdp * split.tensor
    tokens = job.prompts * (job.prompt_length + job.group_size * job.response_length)
    operations = 10.0 * weights * tokens / devices / chip.flops
    reads = job.response_length * 2.0 * weights / split.tensor / chip.bandwidth
    gathers = 3 * split.accumulate * 2.0 * weights / split.tensor if split.fsdp > 1 else 0.0
    sums = 0.0
    if split.tensor > 1:
        sums = 16.0 * c.layers * tokens / (split.data * split.fsdp) * 2.0 * c.width
    return operations + reads + (gathers + sums) / chip.link
