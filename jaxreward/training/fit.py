"""Training of a small model to the end inside one program: for studies of many models at once."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

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
    _check("steps", steps)
    step = _step(key, loss, sample, optimizer)
    start = (params, optimizer.init(params))
    (params, _), losses = jax.lax.scan(step, start, jnp.arange(steps))
    return params, losses


class Selected(NamedTuple):
    """The best of several moments of one training.

    Attributes:
      params: at that moment.
      step: number of updates before it.
      value: what was minimised over the moments.
      last: parameters at the end.
    """

    params: Any
    step: Int[Array, ""]
    value: Float[Array, ""]
    last: Any


def fit_selected(
    key: jax.Array,
    params: Any,
    loss: Loss,
    sample: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    validate: Callable[[Any], Float[Array, ""]],
    *,
    steps: int,
    every: int,
) -> Selected:
    """`fit` that returns the parameters of the least `validate`: early stopping with all patience.

    Args:
      key, params, loss, sample, optimizer: as of `fit`.
      validate: of the parameters; what is not a number never wins.
      steps: >= 1, a multiple of `every`.
      every: >= 1, updates between two looks.

    Raises:
      ValueError: a number out of range.
    """
    _check("steps", steps)
    _check("every", every)
    if steps % every:
        raise ValueError(f"steps = {steps}; allowed is a multiple of every = {every}")
    step = _step(key, loss, sample, optimizer)

    def stretch(carry, first: Array):
        state, best = carry
        state, _ = jax.lax.scan(step, state, first + jnp.arange(every))
        value = validate(state[0]).astype(jnp.float32)
        better = value < best.value
        found = (state[0], (first + every).astype(jnp.int32), value)
        kept = (best.params, best.step, best.value)
        chosen = jax.tree.map(lambda new, old: jnp.where(better, new, old), found, kept)
        return (state, Selected(*chosen, last=())), None

    first = Selected(params, jnp.int32(0), jnp.float32(jnp.inf), last=())
    carry = ((params, optimizer.init(params)), first)
    (state, best), _ = jax.lax.scan(stretch, carry, jnp.arange(0, steps, every))
    return best._replace(last=state[0])


def _check(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} = {value}; allowed is >= 1")


def fit_best(
    key: jax.Array,
    params: Any,
    loss: Loss,
    sample: Callable[[jax.Array], Any],
    optimizer: optax.GradientTransformation,
    *,
    validate: Callable[[Any], Float[Array, ""]],
    steps: int,
    every: int,
) -> tuple[Any, Float[Array, "checks"]]:
    """`fit` that looks at a validation loss now and then, and returns the best parameters seen.

    Args:
      key: of the batches.
      params: where to start; they are looked at too.
      loss: of the parameters and a batch.
      sample: a batch from a key.
      optimizer: optax transformation.
      validate: the smaller the better; NaN is worse than everything.
      steps: rounded down to a multiple of `every`.
      every: steps between two looks, in [1, steps].

    Returns:
      The best parameters and the validation loss at the start and at every look.

    Raises:
      ValueError: `every` outside [1, steps].
    """
    if not 1 <= every <= steps:
        raise ValueError(f"every = {every}; allowed is [1, steps = {steps}]")
    step = _step(key, loss, sample, optimizer)

    def look(state: tuple[Any, Any, Any, Array], first: Array):
        params, opt_state, best, least = state
        numbers = first + jnp.arange(every)
        (params, opt_state), _ = jax.lax.scan(step, (params, opt_state), numbers)
        value = validate(params).astype(jnp.float32)
        better = value < least
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), params, best)
        return (params, opt_state, best, jnp.where(better, value, least)), value

    start = validate(params).astype(jnp.float32)
    state = (params, optimizer.init(params), params, jnp.where(jnp.isnan(start), jnp.inf, start))
    (_, _, best, _), values = jax.lax.scan(look, state, every * jnp.arange(steps // every))
    return best, jnp.concatenate([start[None], values])


def _step(key: jax.Array, loss: Loss, sample: Callable[[jax.Array], Any], optimizer: Any):
    """`((params, opt_state), number of the step) -> (the next ones, loss)`."""

    def step(state: tuple[Any, Any], i: Array):
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, sample(jax.random.fold_in(key, i)))
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
            updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value.astype(jnp.float32)

    return step


def rows(tree: Any, key: jax.Array, batch: int) -> Any:
    """`batch` rows of every leaf, drawn uniformly with replacement; the same rows of each."""
    count = jax.tree.leaves(tree)[0].shape[0]
    index = jax.random.randint(key, (batch,), 0, count)
    return jax.tree.map(lambda leaf: leaf[index], tree)
