"""Exact match of response and answer ids: the true reward of a task with one right spelling."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_match(
    tokens: Int[Array, "P G S"],
    answer_tokens: Int[Array, "P A"],
    answer_lengths: Int[Array, "P"],
) -> Float[Array, "P G"]:
    """1 where a response begins with its prompt's answer, else 0, float32.

    The answers end with the end-of-text id, so a response is right if and only if it equals
    the answer up to and including its own first end of text; what follows is ignored. An
    answer that does not fit into `S` ids cannot be matched. Pure, for use inside `jit`.

    Args:
      tokens: ids of the responses.
      answer_tokens: ids of the answers, anything after their length.
      answer_lengths: ids of each answer, its end of text included, >= 1.
    """
    width = min(tokens.shape[-1], answer_tokens.shape[-1])
    wanted = answer_tokens[:, None, :width].astype(tokens.dtype)
    beyond = jnp.arange(width)[None, None, :] >= answer_lengths[:, None, None]
    same = jnp.all((tokens[..., :width] == wanted) | beyond, axis=-1)
    fits = (answer_lengths >= 1) & (answer_lengths <= width)
    return (same & fits[:, None]).astype(jnp.float32)
