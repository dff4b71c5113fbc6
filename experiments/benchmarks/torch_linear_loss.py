"""Liger-Kernel's and Cut Cross-Entropy's linear cross-entropy on a GPU, one JSON line.

`python -m experiments.benchmarks.torch_linear_loss '{"rows": ..., "repeats": ...}'`. Cross-
entropy only: neither gives entropies.
"""

import json
import sys
import time


def main(argv: list[str]) -> None:
    """Measures what imports."""
    import torch

    shape, found = json.loads(argv[1]), {"entries": {}, "notes": []}
    for name, make in (("Liger-Kernel", _liger), ("Cut Cross-Entropy", _cut)):
        title = f"{name} cross-entropy, no entropy"
        try:
            found["entries"][title] = _measure(torch, make(), shape)
        except Exception as error:  # an optional library may fail in any way
            found["notes"].append(f"{name} did not run: {type(error).__name__}: {error}"[:160])
    print(json.dumps(found))


def _liger():
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda hidden, weight, targets: loss(weight, hidden, targets)


def _cut():
    from cut_cross_entropy import linear_cross_entropy

    return lambda hidden, weight, targets: linear_cross_entropy(hidden, weight, targets)


def _measure(torch, loss, shape):
    rows, width, vocabulary = (shape[name] for name in ("rows", "width", "vocabulary"))
    options = dict(device="cuda", dtype=getattr(torch, shape["dtype"]))
    hidden = torch.randn(rows, width, **options, requires_grad=True)
    weight = (torch.randn(vocabulary, width, **options) / width**0.5).requires_grad_()
    targets = torch.randint(vocabulary, (rows,), device="cuda")
    seconds = []
    for _ in range(shape["repeats"] + 1):
        hidden.grad = weight.grad = None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        loss(hidden, weight, targets).backward()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        memory = torch.cuda.max_memory_allocated() - before
    gradients = sum(x.grad.numel() * x.grad.element_size() for x in (hidden, weight))
    return {
        "seconds": seconds[1:],
        "median": sorted(seconds[1:])[shape["repeats"] // 2],
        "temporary_bytes": memory - gradients,
        "loss": None,
        "full": False,
        "peak_share": None,
        "floor_share": None,
    }


if __name__ == "__main__":
    main(sys.argv)
