"""Prototypes of users and who is similar to whom (P-GenRM, arXiv 2602.12116).

A row is one user at one query, with the embedding of the persona that was generated for it; one
user may sit in several prototypes. Prototypes start as centres of K-means and are refined by a
preference loss: the history of a row is attended to under its query and its prototype (paper, eq.
4 to 7). The released code has other weights in the attention and leaves the regularisers out.

`d` is the size of an embedding, `H` the records of a history.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreward import masked
from jaxreward.checks import Number, check_number


def normalize(x: Float[Array, "*B d"]) -> Float[Array, "*B d"]:
    """Vectors of length 1; zeros stay zeros."""
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1.0)


def kmeans(
    key: jax.Array,
    rows: Float[Array, "N d"],
    clusters: int,
    *,
    starts: int = 10,
    iterations: int = 50,
) -> Float[Array, "K d"]:
    """Centres of K-means, the best of several k-means++ starts. An empty cluster stays put.

    A row that is not finite throughout is missing, and takes no part. Where fewer than `clusters`
    rows are left some centres are equal; where none is left all are NaN.

    Args:
      key: of the starts.
      rows: points.
      clusters: K, in [1, N].
      starts: >= 1.
      iterations: of Lloyd's algorithm, >= 1.

    Raises:
      ValueError: a number out of range.
    """
    count = rows.shape[0]
    check_number("clusters", clusters, lambda n: (n >= 1) & (n <= count), f"[1, {count}]")
    check_number("starts", starts, lambda n: n >= 1, ">= 1")
    check_number("iterations", iterations, lambda n: n >= 1, ">= 1")

    known = jnp.all(jnp.isfinite(rows), axis=1)
    rows = jnp.where(known[:, None], rows, 0.0)

    def one(key: jax.Array) -> tuple[Array, Array]:
        centres, step = _plus_plus(key, rows, known, clusters), lambda c: _lloyd(rows, known, c)
        centres, _ = jax.lax.scan(lambda c, _: (step(c), None), centres, length=iterations)
        return centres, masked.sum(jnp.min(_squares(rows, centres), axis=1), known)

    found, inertia = jax.vmap(one)(jax.random.split(key, starts))
    return jnp.where(jnp.any(known), found[jnp.argmin(inertia)], jnp.nan)


def _squares(rows: Array, centres: Array) -> Array:
    return jnp.sum((rows[:, None] - centres[None]) ** 2, axis=-1)


def _plus_plus(key: jax.Array, rows: Array, known: Array, clusters: int) -> Array:
    """Starts far from each other: each is drawn by its squared distance to those before."""
    reached = jnp.cumsum(known.astype(jnp.int32))  # the r-th known row is where r is first reached
    last = jnp.maximum(reached[-1], 1)
    rank = jax.random.randint(jax.random.fold_in(key, clusters), (), 0, last) + 1
    first = rows[jnp.searchsorted(reached, rank)]
    centres = jnp.broadcast_to(first[None], (clusters, rows.shape[1]))

    def add(i: Array, centres: Array) -> Array:
        least = jnp.min(_squares(rows, centres), axis=1)
        logits = jnp.log(jnp.maximum(least, 1e-30))  # all equal if every row is a centre
        logits = jnp.where(known, logits, -jnp.inf)
        chosen = jax.random.categorical(jax.random.fold_in(key, i), logits)
        return centres.at[i].set(rows[chosen])

    return jax.lax.fori_loop(1, clusters, add, centres)


def _lloyd(rows: Array, known: Array, centres: Array) -> Array:
    own = jnp.where(known, jnp.argmin(_squares(rows, centres), axis=1), -1)
    members = jax.nn.one_hot(own, centres.shape[0])  # of -1 zeros
    sizes = jnp.sum(members, axis=0)[:, None]
    return jnp.where(sizes > 0, (members.T @ rows) / jnp.maximum(sizes, 1.0), centres)


def assign(embeddings: Float[Array, "*B d"], prototypes: Float[Array, "K d"]) -> Int[Array, "*B"]:
    """The prototype of the largest dot product; -1 where none is finite, so no member of any."""
    products = embeddings @ prototypes.T
    there = jnp.isfinite(products)
    best = jnp.argmax(jnp.where(there, products, -jnp.inf), axis=-1)
    return jnp.where(jnp.any(there, axis=-1), best, -1).astype(jnp.int32)


class Neighbours(NamedTuple):
    """Rows to generate from; fewer than asked for where the prototype is small."""

    index: Int[Array, "B N"]
    valid: Bool[Array, "B N"]


def neighbours(
    embeddings: Float[Array, "B d"],
    rows: Float[Array, "R d"],
    members: Int[Array, "R"],
    prototypes: Float[Array, "K d"],
    allowed: Bool[Array, "B R"] | None = None,
    *,
    count: int = 8,
) -> Neighbours:
    """The most similar rows (cosine) of the prototype that an embedding is nearest to.

    A row or an embedding that is not finite throughout has no neighbours and is none.

    Args:
      embeddings: of the current users and queries.
      rows: of the training split.
      members: prototype of every row.
      prototypes: centres.
      allowed: False for rows of the user itself; needed in the training split; default all.
      count: n, >= 1; no more than R are returned.

    Raises:
      ValueError: `count` < 1.
    """
    check_number("count", count, lambda n: n >= 1, ">= 1")
    similarity = normalize(embeddings) @ normalize(rows).T
    near = assign(embeddings, prototypes)[:, None] == members[None, :]
    near = (near if allowed is None else near & allowed) & jnp.isfinite(similarity)
    ranked = jnp.where(near, similarity, -jnp.inf)
    values, index = jax.lax.top_k(ranked, min(count, rows.shape[0]))
    return Neighbours(index.astype(jnp.int32), values > -jnp.inf)


class Refiner(NamedTuple):
    """What refinement learns.

    Attributes:
      prototypes: A, of length 1.
      record: W of the records, from query and difference of the pair.
      bias: of the records.
      query: W_q.
      history: W_s.
    """

    prototypes: Float[Array, "K d"]
    record: Float[Array, "2d d"]
    bias: Float[Array, "d"]
    query: Float[Array, "d d"]
    history: Float[Array, "d d"]


class Row(NamedTuple):
    """One user at one query, with `H` records of the past (embeddings).

    Attributes:
      query: q.
      chosen: y+ of the current pair.
      rejected: y- of the current pair.
      past_queries: q_t.
      past_differences: y+_t - y-_t.
      mask: the records that exist; without any, v is 0.
    """

    query: Float[Array, "d"]
    chosen: Float[Array, "d"]
    rejected: Float[Array, "d"]
    past_queries: Float[Array, "H d"]
    past_differences: Float[Array, "H d"]
    mask: Bool[Array, "H"]


def init_refiner(key: jax.Array, prototypes: Float[Array, "K d"]) -> Refiner:
    """Prototypes of length 1, a random W, W_q and W_s the identity."""
    size = prototypes.shape[1]
    record = jax.random.normal(key, (2 * size, size)) / (2 * size) ** 0.5
    eye = jnp.eye(size)
    return Refiner(normalize(prototypes), record, jnp.zeros(size), eye, eye)


def history_attention(
    records: Float[Array, "H d"],
    query: Float[Array, "d"],
    prototype: Float[Array, "d"],
    mask: Bool[Array, "H"] | None = None,
    *,
    rho: Number = 0.5,
    as_released: bool = False,
) -> Float[Array, "H"]:
    """Weights of the records: softmax of `(o_t . q + rho o_t . a) / sqrt(d)` (paper, eq. 5).

    Args:
      records: o_t.
      query: q.
      prototype: a.
      mask: the records that exist; the weights of none are 0; default all.
      rho: weight of the prototype.
      as_released: `rho` multiplies the query instead.
    """
    own, theirs = records @ query, records @ prototype
    logits = rho * own + theirs if as_released else own + rho * theirs
    logits = logits / query.shape[0] ** 0.5
    there = jnp.ones(logits.shape, bool) if mask is None else mask
    weights = jax.nn.softmax(jnp.where(there, logits, jnp.finfo(jnp.float32).min))
    return jnp.where(there, weights, 0.0)


def refined_margin(
    refiner: Refiner,
    prototype: Float[Array, "d"],
    row: Row,
    *,
    rho: Number = 0.5,
    query_weight: Number = 1.0,
    history_weight: Number = 1.0,
    as_released: bool = False,
) -> Float[Array, ""]:
    """`Delta = z . (y+ - y-)`, `z = a + lambda_q W_q q + lambda_s W_s v` (paper, eq. 4 to 6).

    Args:
      refiner: matrices.
      prototype: a, of the row's cluster.
      row: see `Row`.
      rho: see `history_attention`.
      query_weight: lambda_q.
      history_weight: lambda_s.
      as_released: see `history_attention`.
    """
    past = jnp.concatenate([row.past_queries, row.past_differences], axis=-1)
    records = jnp.tanh(past @ refiner.record + refiner.bias[None])
    weights = history_attention(
        records, row.query, prototype, row.mask, rho=rho, as_released=as_released
    )
    summary = weights @ records
    z = prototype + query_weight * (refiner.query @ row.query)
    z = z + history_weight * (refiner.history @ summary)
    return z @ (row.chosen - row.rejected)


def refinement_loss(
    refiner: Refiner,
    cluster: Int[Array, ""],
    rows: Row,
    mask: Bool[Array, "B"],
    centre: Float[Array, "d"],
    previous: Float[Array, "d"],
    *,
    centre_weight: Number = 1e-3,
    trust_weight: Number = 1e-3,
    as_released: bool = False,
) -> Float[Array, ""]:
    """Mean `softplus(-Delta)` of one prototype's members, with two regularisers (paper, eq. 7).

    Args:
      refiner: parameters.
      cluster: which prototype.
      rows: B of its members, every leaf with a leading axis.
      mask: the members that exist.
      centre: mean of the cluster's embeddings.
      previous: the prototype before.
      centre_weight: lambda_cent of `|a - centre|^2`.
      trust_weight: lambda_tr of `|a - previous|^2`.
      as_released: the attention of the code, and no regulariser.
    """
    own = refiner.prototypes[cluster]
    margins = jax.vmap(lambda row: refined_margin(refiner, own, row, as_released=as_released))(rows)
    loss = masked.mean(jax.nn.softplus(-margins), mask)
    if as_released:
        return loss
    apart = lambda other: jnp.sum((own - other) ** 2)
    return loss + centre_weight * apart(centre) + trust_weight * apart(previous)


def settle(
    prototypes: Float[Array, "K d"], previous: Float[Array, "K d"], *, decay: Number = 0.98
) -> Float[Array, "K d"]:
    """After an epoch: an exponential average with the state before, of length 1 (code)."""
    return normalize(decay * previous + (1.0 - decay) * prototypes)
