"""Parameters in bfloat16 that learn as float32 ones do."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class MasterState(NamedTuple):
    """State of `float32_master`.

    Attributes:
      master: the parameters in float32.
      inner: the wrapped optimizer's state, of the master.
    """

    master: Any
    inner: Any


def float32_master(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keeps a float32 copy of the parameters and all moments in the optimizer's state.

    bfloat16 has 8 bits of precision: an update below 1/256 of a parameter is lost in it. Here
    every update is applied to the copy, and the parameters are the copy rounded to their own
    dtype. Gradients are cast to float32 first. The update that it returns is float32, the step
    from the parameter to the rounded copy, so `apply_updates` gives the rounded copy.

    Args:
      optimizer: any optax transformation.
    """

    def init(params: Any) -> MasterState:
        # astype would share the buffers of float32 leaves, which a donating step cannot
        master = jax.tree.map(lambda leaf: jnp.array(leaf, jnp.float32, copy=True), params)
        return MasterState(master, optimizer.init(master))

    def update(grads: Any, state: MasterState, params: Any = None) -> tuple[Any, MasterState]:
        if params is None:
            raise ValueError("params = None; allowed are the parameters that are updated")
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), grads)
        updates, inner = optimizer.update(wide, state.inner, state.master)
        master = optax.apply_updates(state.master, updates)
        change = jax.tree.map(_change, master, params)
        return change, MasterState(master, inner)

    return optax.GradientTransformation(init, update)


def _change(master: jax.Array, param: jax.Array) -> jax.Array:
    """What added to `param` in float32 and rounded to its dtype gives `master` rounded."""
    return master.astype(param.dtype).astype(jnp.float32) - param.astype(jnp.float32)


def apply_updates(params: Any, updates: Any) -> Any:
    """`optax.apply_updates`, the sum in the wider of the two dtypes, which is not implied."""

    def apply(param: jax.Array, update: jax.Array) -> jax.Array:
        wide = max(param.dtype, update.dtype, key=lambda dtype: dtype.itemsize)
        return (param.astype(wide) + update.astype(wide)).astype(param.dtype)

    return jax.tree.map(apply, params, updates)
