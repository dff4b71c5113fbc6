"""Log-probability, entropy and normaliser of a linear head: one entry, several kernels."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxreward.kernels.linear_log_prob import core, pallas_gpu, pallas_tpu, reference, xla
from jaxreward.kernels.linear_log_prob import token_loss as token_losses
from jaxreward.kernels.linear_log_prob.blocks import GpuBlocks, Tile, TpuBlocks, tpu_blocks
from jaxreward.kernels.linear_log_prob.token_loss import TokenLoss

IMPLEMENTATIONS = ("reference", "xla", "pallas_tpu", "pallas_gpu")


def linear_log_prob(
    hidden: Float[Array, "N D"],
    weight: Float[Array, "D V"],
    targets: Int[Array, "N"],
    bias: Float[Array, "V"] | None = None,
    *,
    temperature=1.0,
    logit_softcap: float | None = None,
    vocabulary: int | Int[Array, ""] | None = None,
    implementation: str | None = None,
    block_rows: int | None = None,
    block_columns: int | None = None,
    blocks: TpuBlocks | GpuBlocks | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "N"], Float[Array, "N"], Float[Array, "N"]]:
    """What a language policy needs of its head, without an `[N, V]` array.

    The logits are `softcap(hidden @ weight + bias) / temperature`, accumulated in float32.
    Differentiable in `hidden`, `weight` and `bias` for arbitrary cotangents of all three
    outputs; rows whose cotangents are zero cost nothing in the backward pass.

    With `implementation=None` the choice follows the default device and the shape:

    * CPU: "xla".
    * GPU: "xla". The Pallas kernel has not been timed on a GPU.
    * TPU: "pallas_tpu" for at least 128 rows and D a multiple of 128, where the program has
      one device or every mesh axis is manual (under `shard_map`), else "xla". The kernel is
      compiled for v5e, v5p and v6e and exact in the interpreter; it has not been timed.

    Compiling for a device that is absent: name the implementation and the blocks. Several
    devices under plain `jit`: use `sharded.linear_log_prob`, since neither a kernel nor a
    loop over blocks of rows is partitioned well by the compiler.

    Args:
      hidden: float32 or bfloat16 `[N, D]`.
      weight: `[D, V]`, cast to the type of `hidden` for the product.
      targets: token ids in `[0, V)`, or -1 to ignore a row: outputs 0, no gradient.
      bias: optional `[V]`; -inf bans a token.
      temperature: > 0, may be traced; not differentiated.
      logit_softcap: optional cap `c` > 0: `c tanh(x / c)` before the temperature.
      vocabulary: real columns of a padded weight, in [1, V]; those after it take no
        probability and get no gradient. None: all V.
      implementation: "reference" (materialises the logits), "xla" (tiles), "pallas_tpu"
        (tiles), "pallas_gpu" (tiles forward, blocks of rows backward), or None.
      block_rows: rows whose logits exist at a time in "xla" and in the backward of
        "pallas_gpu", >= 1; None takes them from a budget for the device.
      block_columns: columns of them in "xla", >= 1; None takes them from a budget on a CPU
        and is all elsewhere.
      blocks: tiles of a Pallas kernel; None takes them from `blocks.py`.
      interpret: run a Pallas kernel in the interpreter, on any device.

    Returns:
      float32 `(log_prob, entropy, log_normalizer)`, each `[N]`, natural logarithms.

    Raises:
      ValueError: unknown implementation, mismatched shapes, a value out of range, options
        of another implementation.
    """
    check(hidden, weight, targets, bias, temperature, logit_softcap, vocabulary, block_rows)
    if implementation is None:
        implementation = choose(*hidden.shape, weight.shape[1])
    tiling = (block_rows, block_columns, blocks, interpret)
    check_implementation(implementation, *tiling)
    options = dict(
        temperature=temperature, logit_softcap=logit_softcap, vocabulary=vocabulary
    )
    operands = (hidden, weight, targets, bias)
    if hidden.shape[0] == 0 or implementation == "reference":
        return reference.linear_log_prob(*operands, **options)
    kernel = make_kernel(implementation, hidden, weight, *tiling)
    return core.linear_log_prob(kernel, *operands, **options)


def linear_token_loss(
    hidden: Float[Array, "N D"],
    weight: Float[Array, "D V"],
    targets: Int[Array, "N"],
    token_loss: TokenLoss,
    extras,
    bias: Float[Array, "V"] | None = None,
    *,
    temperature=1.0,
    logit_softcap: float | None = None,
    vocabulary: int | Int[Array, ""] | None = None,
    block_rows: int | None = None,
) -> tuple[Float[Array, ""], tuple[Float[Array, "N"], Float[Array, "N"]]]:
    """Sum of a per-token loss, its gradient formed in the forward pass: 6 N D V FLOP, not 8.

    For every loss whose coefficient of a token depends on that token alone: supervised,
    REINFORCE, token-level clipped ratios. Advantages, old log-probs and the normaliser
    (one over the number of tokens, say) enter through `extras`, which are not
    differentiated. Always the blocked XLA scheme.

    Args:
      hidden, weight, targets, bias, temperature, logit_softcap, vocabulary: as in
        `linear_log_prob`.
      token_loss: `(log_prob [n], entropy [n], extras [n, ...]) -> loss [n]`, row by row.
      extras: pytree with leading axis `[N]`.
      block_rows: tokens whose logits exist at a time; None takes them from a budget.

    Returns:
      The sum over tokens that are not ignored, float32, and the tokens' (log-prob, entropy)
      without gradient.

    Raises:
      ValueError: mismatched shapes, a value out of range.
    """
    check(hidden, weight, targets, bias, temperature, logit_softcap, vocabulary, block_rows)
    return token_losses.linear_token_loss(
        hidden, weight, targets, token_loss, extras, bias, temperature=temperature,
        logit_softcap=logit_softcap, vocabulary=vocabulary,
        block_rows=block_rows or default_block_rows(weight.shape[1]),
    )  # fmt: skip


def make_kernel(
    implementation: str,
    hidden,
    weight,
    block_rows=None,
    block_columns=None,
    blocks=None,
    interpret=False,
) -> core.Kernel:
    """The named kernel with its tiles for the shapes."""
    if implementation == "pallas_tpu":
        sizes = hidden.dtype.itemsize, weight.dtype.itemsize
        return pallas_tpu.kernel(blocks or tpu_blocks(hidden.shape[1], *sizes), interpret)
    if implementation == "pallas_gpu":
        block_rows = block_rows or default_block_rows(weight.shape[1])
        return pallas_gpu.kernel(blocks or GpuBlocks(), block_rows, interpret)
    default = default_tile(hidden.shape[0], weight.shape[1], block_rows)
    return xla.kernel(default._replace(columns=block_columns or default.columns))


def choose(rows: int, width: int, vocabulary: int) -> str:
    """The implementation for the default device and a shape; see `linear_log_prob`."""
    fits = rows >= 128 and width % 128 == 0 and vocabulary >= 128
    return "pallas_tpu" if jax.default_backend() == "tpu" and fits and _unsharded() else "xla"


def _unsharded() -> bool:
    """Whether the compiler has nothing to partition here."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = not mesh.empty and set(mesh.manual_axes) == set(mesh.axis_names)
    return manual or jax.device_count() == 1


def default_block_rows(vocabulary: int, platform: str | None = None) -> int:
    """Rows whose float32 logits fit 64 MiB on a CPU and 640 MiB elsewhere, in [8, 4096].

    Large blocks make large products and update the weight's gradient seldom; on a CPU small
    ones stay in the cache.
    """
    cpu = (platform or jax.default_backend()) == "cpu"
    budget = (64 if cpu else 640) << 20
    return min(4096, max(8, budget // (4 * vocabulary) // 8 * 8))


def default_tile(
    rows: int, vocabulary: int, block_rows: int | None = None, platform: str | None = None
) -> Tile:
    """Tile of "xla" for so many rows and columns.

    On a CPU 8 MiB of float32 logits, which stay in the cache: 1,024 rows, so that the
    gradients of the weight's columns are seldom read and written, or as many as a short
    vocabulary allows. Elsewhere `default_block_rows` with all columns.
    """
    if (platform or jax.default_backend()) != "cpu":
        return Tile(block_rows or default_block_rows(vocabulary, platform), vocabulary)
    logits = 2 << 20
    block_rows = block_rows or min(4096, max(1024, logits // vocabulary // 8 * 8))
    block_rows = min(block_rows, max(rows, 1))
    return Tile(block_rows, min(vocabulary, max(128, logits // block_rows // 128 * 128)))


_BLOCKS = {"pallas_tpu": TpuBlocks, "pallas_gpu": GpuBlocks}


def check_implementation(implementation, block_rows, block_columns, blocks, interpret) -> None:
    """Refuses an unknown implementation and options of another one."""
    if implementation not in IMPLEMENTATIONS:
        allowed = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"implementation = {implementation!r}; allowed are None, {allowed}")
    chosen = f"with implementation = {implementation!r}; allowed is"
    if block_rows is not None and implementation == "pallas_tpu":
        raise ValueError(f"block_rows = {block_rows} {chosen} None: this kernel takes blocks")
    if block_columns is not None:
        if implementation != "xla":
            raise ValueError(f"block_columns = {block_columns} {chosen} None: only xla takes it")
        if block_columns < 1:
            raise ValueError(f"block_columns = {block_columns}; allowed is >= 1")
    if interpret and implementation not in _BLOCKS:
        raise ValueError(f"interpret = {interpret} {chosen} False: only Pallas is interpreted")
    kind = _BLOCKS.get(implementation)
    if blocks is not None and (kind is None or not isinstance(blocks, kind)):
        allowed = "None" if kind is None else f"None or {kind.__name__}"
        raise ValueError(f"blocks = {blocks} {chosen} {allowed}")


def check(
    hidden, weight, targets, bias, temperature, logit_softcap, vocabulary, block_rows
) -> None:
    """Refuses what `linear_log_prob` cannot compute."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[0]:
        raise ValueError(
            f"hidden {hidden.shape} and weight {weight.shape} do not fit; allowed are [N, D] "
            "and [D, V]"
        )
    if weight.shape[1] == 0:
        raise ValueError(f"weight {weight.shape} has no column; allowed is V >= 1")
    for name, value in (("hidden", hidden), ("weight", weight)):
        if not jnp.issubdtype(value.dtype, jnp.floating):  # the product would be cut to integers
            raise ValueError(f"{name} is {value.dtype}; allowed are floating types")
    if targets.shape != hidden.shape[:1] or not jnp.issubdtype(targets.dtype, jnp.integer):
        raise ValueError(
            f"targets {targets.dtype} {targets.shape}; allowed are integers {hidden.shape[:1]}"
        )
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"bias {bias.shape}; allowed is {weight.shape[1:]}")
    if block_rows is not None and block_rows < 1:
        raise ValueError(f"block_rows = {block_rows}; allowed is >= 1")
    _check_range("temperature", temperature, lambda x: x > 0, "> 0")
    if logit_softcap is not None:
        _check_range("logit_softcap", logit_softcap, lambda x: x > 0, "None or > 0")
    if vocabulary is not None:
        columns = weight.shape[1]
        _check_range("vocabulary", vocabulary, lambda x: 1 <= x <= columns, f"in [1, {columns}]")


def _check_range(name: str, value, holds, allowed: str) -> None:
    if isinstance(value, jax.core.Tracer) or np.ndim(value) != 0:
        return
    if not holds(float(value)):
        raise ValueError(f"{name} = {value}; allowed is {allowed}")
