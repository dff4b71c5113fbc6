"""The loss path of a language policy: hidden states and a head to a loss and its gradients.

Token log-probabilities and entropies, a clipped loss with an entropy bonus, forward and
backward, by every implementation there is here in one process, and cross-entropies of others
(log-probability only, no entropy, hence less work). Memory is the compiled module's temporary
memory; the floor is 6 N D V FLOP at the matmul rate measured in the same run. The speed of a
machine drifts, so every round times every implementation once, and ratios are taken within a
round.
"""

import importlib.util
import json
import pathlib
import re
import subprocess
import sys
from typing import Any, Callable, NamedTuple

from experiments.benchmarks import linear_log_prob_compiled

QUICK = dict(rows=256, width=64, vocabulary=2048, dtype="float32")
SHAPES = {
    "cpu": (dict(rows=4096, width=576, vocabulary=49152, dtype="float32"),),
    "gpu": (
        dict(rows=16384, width=4096, vocabulary=151936, dtype="bfloat16"),
        dict(rows=16384, width=1024, vocabulary=151936, dtype="bfloat16"),
    ),
}
SHAPES["tpu"] = SHAPES["gpu"]
CPU_TIME, CPU_MEMORY = 1.1, 0.1
"""Bars on a CPU: of the time and of the temporary memory with materialised logits."""
GPU_BARS = {4096: (95e-3, 7e9), 1024: (40e-3, None)}
"""Bars on an H100 by width: seconds and temporary bytes."""
OURS = ("blocks, recomputed", "blocks, gradient in forward", "Pallas")
HEADER = ["implementation", "ms (min to max)", "temporary MB", "of matmul peak", "of floor"]


class Entry(NamedTuple):
    """One implementation.

    Attributes:
      loss: `(hidden, weight, targets, advantages, old) -> scalar`.
      products: how many times 2 N D V FLOP it does, forward and backward.
      full: whether it has the entropy too; its loss is then compared with the naive one.
    """

    loss: Callable[..., Any]
    products: int
    full: bool


def run(workdir: str, quick: bool) -> dict[str, Any]:
    """Measures every implementation on the device's shapes; keeps one file per device."""
    import jax

    from jaxreward.training import report

    shapes = (QUICK,) if quick else SHAPES.get(jax.default_backend(), SHAPES["gpu"])
    rows, measured, notes = [HEADER], [], []
    for shape in shapes:
        found = measure(shape, repeats=3 if quick else 5)
        measured.append(found)
        rows.append([f"N={shape['rows']} D={shape['width']} V={shape['vocabulary']}"] + [""] * 4)
        rows += [_row(name, entry) for name, entry in found["entries"].items()]
        notes += found["notes"] + ([] if quick else bars(found, report.device()))
    compiled = _compiled_only(quick, rows, notes)
    slug = re.sub(r"[^a-z0-9]+", "_", report.device().lower()).strip("_")
    kept = {"device": report.device(), "versions": report.versions(), "measured": measured}
    kept["compiled_only"] = compiled
    path = pathlib.Path(workdir) / f"linear_log_prob_{slug}.json"
    path.write_text(json.dumps(kept, indent=1) + "\n")
    return {"rows": rows, "notes": notes, "measured": measured}


def _compiled_only(quick: bool, rows: list, notes: list) -> list[dict[str, Any]]:
    """Adds what the shapes of the GPU bars would cost, where there is no GPU to measure on."""
    import jax

    if quick or jax.default_backend() != "cpu":
        return []
    rows.append(linear_log_prob_compiled.HEADER)
    kept = []
    for shape in SHAPES["gpu"]:
        try:
            found = analyse(shape)
        except RuntimeError as error:
            notes.append(f"not compiled: {str(error).splitlines()[0]}; libtpu must be installed")
            continue
        rows += linear_log_prob_compiled.rows(shape, found)
        kept.append({"shape": shape, "entries": found})
    return kept


def analyse(shape: dict[str, Any]) -> dict[str, dict[str, float]]:
    """What the blocked schemes cost on a shape, from compiled programs; nothing is run."""
    import jax

    from jaxreward.kernels.linear_log_prob import api

    block = api.default_block_rows(shape["vocabulary"], "tpu")
    entries = make_entries(shape, block_rows=block)
    losses = {name: entries[name].loss for name in OURS if name in entries}
    arguments = jax.eval_shape(lambda: make_arguments(shape))
    blocks = -(-shape["rows"] // block)
    return linear_log_prob_compiled.analyse(shape, arguments, losses, blocks)


def measure(shape: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Seconds, temporary bytes and loss of every implementation on one shape."""
    import jax
    import numpy as np

    arguments, compiled, entries, notes = make_arguments(shape), {}, {}, []
    for name, entry in make_entries(shape).items():
        try:
            compiled[name], entries[name] = _compile(entry, arguments)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            notes.append(f"{name} did not run: {str(error).strip().splitlines()[0][:120]}")
    _check_losses(entries)
    peaks = _rounds(compiled, entries, arguments, shape["dtype"], repeats)
    peak = float(np.median(peaks))
    unit = 2 * shape["rows"] * shape["width"] * shape["vocabulary"] / peak
    for entry in entries.values():
        entry["median"] = float(np.median(entry["seconds"]))
        entry["peak_share"] = entry["products"] * unit / entry["median"]
        entry["floor_share"] = 3 * unit / entry["median"]
    if jax.default_backend() == "gpu":
        theirs = _torch(shape, repeats)
        notes += theirs["notes"]
        entries.update(theirs["entries"])
    found = {"shape": shape, "matmul_flops": peak, "matmul_flops_by_round": peaks}
    return {**found, "entries": entries, "notes": notes}


def _rounds(compiled, entries, arguments, dtype: str, repeats: int) -> list[float]:
    """Adds the seconds of each round to the entries; returns the matmul rates."""
    import time

    import jax

    peaks = []
    for _ in range(repeats):
        peaks.append(matmul_peak(dtype))
        for name, function in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            entries[name]["seconds"].append(time.perf_counter() - start)
    return peaks


def make_arguments(shape: dict[str, Any]) -> tuple:
    """`(hidden, weight, targets, advantages, old log-probs)`, seeded."""
    import jax
    import jax.numpy as jnp

    keys = jax.random.split(jax.random.key(0), 5)
    rows, width, vocabulary = (shape[name] for name in ("rows", "width", "vocabulary"))
    dtype = jnp.dtype(shape["dtype"])
    weight = jax.random.normal(keys[1], (width, vocabulary), dtype) / width**0.5
    return (
        jax.random.normal(keys[0], (rows, width), dtype),
        weight.astype(dtype),
        jax.random.randint(keys[2], (rows,), 0, vocabulary, jnp.int32),
        jax.random.normal(keys[3], (rows,)),
        -jnp.log(1.0 * vocabulary) - 0.5 + 0.1 * jax.random.normal(keys[4], (rows,)),
    )


def make_entries(shape: dict[str, Any], block_rows: int | None = None) -> dict[str, Entry]:
    """Everything that can be tried on this device; `block_rows` of the blocked schemes."""
    import jax

    from jaxreward.kernels.linear_log_prob import api

    def kernel(implementation):
        def loss(hidden, weight, targets, advantages, old):
            scores = api.linear_log_prob(
                hidden, weight, targets, implementation=implementation,
                block_rows=block_rows if implementation == "xla" else None,
            )  # fmt: skip
            return clipped(scores[0], scores[1], (advantages, old)).mean()

        return loss

    def in_forward(hidden, weight, targets, advantages, old):
        extras, options = (advantages, old), dict(block_rows=block_rows)
        total, _ = api.linear_token_loss(hidden, weight, targets, clipped, extras, **options)
        return total / hidden.shape[0]

    entries = {
        "naive logits": Entry(naive, 3, True),
        OURS[0]: Entry(kernel("xla"), 4, True),
        OURS[1]: Entry(in_forward, 3, True),
    }
    backend = jax.default_backend()
    if backend in ("tpu", "gpu"):
        products = 5 if backend == "tpu" else 4
        entries[OURS[2]] = Entry(kernel(f"pallas_{backend}"), products, True)
    return {**entries, **others(shape)}


def clipped(log_prob, entropy, extras):
    """The clipped token loss with an entropy bonus."""
    import jax.numpy as jnp

    advantages, old = extras
    ratio = jnp.exp(log_prob - old)
    gain = jnp.minimum(ratio * advantages, jnp.clip(ratio, 0.8, 1.2) * advantages)
    return -gain - 0.01 * entropy


def naive(hidden, weight, targets, advantages, old):
    """What one writes first: all logits, float32 log-softmax."""
    import jax
    import jax.numpy as jnp

    logits = jnp.dot(hidden, weight, preferred_element_type=jnp.float32)
    log_probs = jax.nn.log_softmax(logits)
    log_prob = jnp.take_along_axis(log_probs, targets[:, None], axis=-1)[:, 0]
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
    return clipped(log_prob, entropy, (advantages, old)).mean()


def others(shape: dict[str, Any]) -> dict[str, Entry]:
    """Cross-entropies of other libraries."""
    import jax.numpy as jnp
    import optax

    def from_optax(hidden, weight, targets, advantages, old):
        logits = jnp.dot(hidden, weight, preferred_element_type=jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    entries = {"optax cross-entropy, no entropy": Entry(from_optax, 3, False)}
    if importlib.util.find_spec("tokamax") is None:
        return entries
    import tokamax

    def from_tokamax(implementation):
        def loss(hidden, weight, targets, advantages, old):
            return tokamax.linear_softmax_cross_entropy_loss(
                hidden, targets, weight, reduction="mean", implementation=implementation
            )

        return loss

    for name in (None, "chunked_xla"):
        title = f"tokamax {name or 'default'} cross-entropy, no entropy"
        entries[title] = Entry(from_tokamax(name), 4, False)
    return entries


def matmul_peak(dtype: str) -> float:
    """FLOP per second of the best of a few large square products."""
    import jax
    import jax.numpy as jnp

    from experiments.benchmarks import timing

    size = 2048 if jax.default_backend() == "cpu" else 8192
    square = jax.random.normal(jax.random.key(0), (size, size)).astype(jnp.dtype(dtype))
    product = jax.jit(lambda a: jnp.dot(a, a, preferred_element_type=jnp.float32))
    return 2 * size**3 / min(timing.seconds(product, square, repeats=3))


def _compile(entry: Entry, arguments: tuple) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The compiled value and gradient, called once, and what is known of it before timing."""
    import jax

    both = jax.jit(jax.value_and_grad(entry.loss, (0, 1))).lower(*arguments).compile()
    return both, {
        "seconds": [],
        "temporary_bytes": both.memory_analysis().temp_size_in_bytes,
        "loss": float(both(*arguments)[0]),
        "full": entry.full,
        "products": entry.products,
    }


def _check_losses(entries: dict[str, Any]) -> None:
    """Every loss with entropy must be the naive one: a fast wrong answer is none."""
    if "naive logits" not in entries:
        return
    wanted = entries["naive logits"]["loss"]
    for name, entry in entries.items():
        if entry["full"] and abs(entry["loss"] - wanted) > 1e-4 * max(1.0, abs(wanted)):
            raise ValueError(f"{name} has loss {entry['loss']}; the naive loss is {wanted}")


def _torch(shape: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Liger-Kernel and Cut Cross-Entropy in a process of their own, where they import."""
    settings = json.dumps({**shape, "repeats": repeats})
    command = [sys.executable, "-m", "experiments.benchmarks.torch_linear_loss", settings]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (subprocess.SubprocessError, OSError, ValueError, IndexError) as error:
        last = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1]
        return {"entries": {}, "notes": [f"torch did not run: {last}"]}


def bars(found: dict[str, Any], device: str) -> list[str]:
    """What was promised for this shape and device, and whether it holds."""
    entries, width = found["entries"], found["shape"]["width"]
    ours = {name: entries[name] for name in OURS if name in entries}
    if device.startswith("cpu"):
        if "naive logits" not in entries:
            return []
        base = entries["naive logits"]
        return [_cpu_bar(name, entry, base) for name, entry in ours.items()]
    if "H100" not in device or width not in GPU_BARS:
        return []
    seconds, memory = GPU_BARS[width]
    return [_gpu_bar(name, entry, seconds, memory) for name, entry in ours.items()]


def _cpu_bar(name: str, entry: dict[str, Any], base: dict[str, Any]) -> str:
    import numpy as np

    ratios = np.asarray(entry["seconds"]) / np.asarray(base["seconds"])
    time, low, high = float(np.median(ratios)), ratios.min(), ratios.max()
    memory = entry["temporary_bytes"] / base["temporary_bytes"]
    holds = time <= CPU_TIME and memory <= CPU_MEMORY
    return (
        f"{name}: {time:.2f} ({low:.2f} to {high:.2f}) of the naive time (bar {CPU_TIME:g}), "
        f"{memory:.3f} of its temporary memory (bar {CPU_MEMORY:g}): {_verdict(holds)}"
    )


def _gpu_bar(name: str, entry: dict[str, Any], seconds: float, memory: float | None) -> str:
    holds = entry["median"] <= seconds
    text = f"{name}: {1e3 * entry['median']:.1f} ms (bar {1e3 * seconds:g})"
    if memory is not None:
        holds = holds and entry["temporary_bytes"] <= memory
        text += f", {entry['temporary_bytes'] / 1e9:.2f} GB (bar {memory / 1e9:g})"
    return f"{text}: {_verdict(holds)}"


def _verdict(holds: bool) -> str:
    return "holds" if holds else "does not hold"


def _row(name: str, entry: dict[str, Any]) -> list[str]:
    from experiments.benchmarks import timing

    memory, peak, floor = (entry[k] for k in ("temporary_bytes", "peak_share", "floor_share"))
    return [
        name,
        timing.middle(entry["seconds"]),
        f"{memory / 1e6:.0f}",
        "" if peak is None else f"{peak:.0%}",
        "" if floor is None else f"{floor:.0%}",
    ]
