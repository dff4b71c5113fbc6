"""Training of a small model to the end inside one program: for studies of many models at once."""

from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Loss = Callable[[Any, Any], Float[Array, ""]]
"""`(params, batch) -> float32 scalar`."""


def fit(
    key: jax.Array,
    params: Any,
    loss: Loss,
    sample: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
) -> tuple[Any, Float[Array, "steps"]]:
    """Minimises `loss` for a fixed number of steps; `vmap` it over seeds, members or settings.

    Args:
      key: of the batches; step `i` samples with `fold_in(key, i)`.
      params: where to start.
      loss: of the parameters and a batch.
      sample: a batch from a key.
      optimizer: optax transformation.
      steps: >= 1.

    Returns:
      The last parameters and the loss at every step.

    Raises:
      ValueError: `steps` < 1.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps}; allowed is >= 1")

    def step(state: tuple[Any, Any], i: Array):
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, sample(jax.random.fold_in(key, i)))
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
            updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value.astype(jnp.float32)

    start = (params, optimizer.init(params))
    (params, _), losses = jax.lax.scan(step, start, jnp.arange(steps))
    return params, losses


def rows(tree: Any, key: jax.Array, batch: int) -> Any:
    """`batch` rows of every leaf, drawn uniformly with replacement; the same rows of each."""
    count = jax.tree.leaves(tree)[0].shape[0]
    index = jax.random.randint(key, (batch,), 0, count)
    return jax.tree.map(lambda leaf: leaf[index], tree)
