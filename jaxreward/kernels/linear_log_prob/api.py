"""Log-probability, entropy and normaliser of a linear head: one entry, several kernels."""

from jaxtyping import Array, Float, Int

from jaxreward.kernels.linear_log_prob import reference, xla

IMPLEMENTATIONS = ("reference", "xla")


def linear_log_prob(
    hidden: Float[Array, "N D"],
    weight: Float[Array, "D V"],
    targets: Int[Array, "N"],
    bias: Float[Array, "V"] | None = None,
    *,
    temperature=1.0,
    logit_softcap: float | None = None,
    implementation: str | None = None,
    block_rows: int = 256,
) -> tuple[Float[Array, "N"], Float[Array, "N"], Float[Array, "N"]]:
    """What a language policy needs of its head, without an `[N, V]` array.

    The logits are `softcap(hidden @ weight + bias) / temperature`, accumulated in float32.
    Differentiable in `hidden`, `weight` and `bias` for arbitrary cotangents of all three
    outputs.

    Args:
      hidden: float32 or bfloat16 `[N, D]`.
      weight: `[D, V]`, cast to the type of `hidden` for the product.
      targets: token ids in `[0, V)`, or -1 to ignore a row: outputs 0, no gradient.
      bias: optional `[V]`.
      temperature: > 0, may be traced; not differentiated.
      logit_softcap: optional cap `c`: `c tanh(x / c)` before the temperature.
      implementation: "reference" (materialises the logits), "xla" (blocks of rows), or None
        to choose for the device.
      block_rows: rows whose logits exist at a time in the blocked kernels, >= 1.

    Returns:
      float32 `(log_prob, entropy, log_normalizer)`, each `[N]`, natural logarithms.

    Raises:
      ValueError: unknown implementation, mismatched shapes, `block_rows` < 1.
    """
    _check(hidden, weight, targets, bias, implementation, block_rows)
    options = dict(temperature=temperature, logit_softcap=logit_softcap)
    if implementation == "reference":
        return reference.linear_log_prob(hidden, weight, targets, bias, **options)
    return xla.linear_log_prob(hidden, weight, targets, bias, block_rows=block_rows, **options)


def _check(hidden, weight, targets, bias, implementation, block_rows) -> None:
    if implementation is not None and implementation not in IMPLEMENTATIONS:
        allowed = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"implementation = {implementation!r}; allowed are None, {allowed}")
    if block_rows < 1:
        raise ValueError(f"block_rows = {block_rows}; allowed is >= 1")
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[0]:
        raise ValueError(
            f"hidden {hidden.shape} and weight {weight.shape} do not fit; allowed are [N, D] "
            "and [D, V]"
        )
    if targets.shape != hidden.shape[:1]:
        raise ValueError(f"targets {targets.shape}; allowed is {hidden.shape[:1]}")
    if bias is not None and bias.shape != weight.shape[1:]:
        raise ValueError(f"bias {bias.shape}; allowed is {weight.shape[1:]}")


def block_rows_for(vocabulary: int, budget_bytes: int = 64 << 20) -> int:
    """Rows whose float32 logits fit the budget, a multiple of 8, at least 8."""
    return max(8, budget_bytes // (4 * vocabulary) // 8 * 8)
