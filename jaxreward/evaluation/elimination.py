"""Small linear systems by plain elimination, without calls into LAPACK.

On CPUs many batched LAPACK calls in one program can wait for each other forever (jaxlib 0.10), and
they compile slowly; systems of a few dozen unknowns need neither pivots nor libraries.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def solve(matrix: Float[Array, "S S"], target: Float[Array, "S"]) -> Float[Array, "S"]:
    """Gauss-Jordan elimination without pivoting.

    Stable for strictly diagonally dominant matrices, such as `1 - discount * transitions`, and
    for triangular ones.
    """
    size = target.shape[0]
    table = jnp.concatenate([matrix, target[:, None]], axis=1)

    def step(i, table):
        row = table[i] / table[i, i]
        others = table - table[:, i][:, None] * row[None, :]
        return jnp.where((jnp.arange(size) == i)[:, None], row[None, :], others)

    return jax.lax.fori_loop(0, size, step, table)[:, -1]


def least_squares(matrix: Float[Array, "N S"], target: Float[Array, "N"]) -> Float[Array, "S"]:
    """Argmin of `|matrix x - target|`, of full column rank, by modified Gram-Schmidt.

    Orthogonalising the target along with the columns makes it backward stable.
    """
    size = matrix.shape[1]
    table = jnp.concatenate([matrix, target[:, None]], axis=1)

    def step(i, state):
        table, triangle = state
        column = table[:, i]
        unit = column / jnp.sqrt(jnp.sum(jnp.square(column)))
        along = jnp.where(jnp.arange(size + 1) >= i, unit @ table, 0.0)
        return table - unit[:, None] * along[None, :], triangle.at[i].set(along)

    start = (table, jnp.zeros((size, size + 1), matrix.dtype))
    triangle = jax.lax.fori_loop(0, size, step, start)[1]
    return solve(triangle[:, :-1], triangle[:, -1])
