"""Networks of rewards: a perceptron on features, and heads on the states of a transformer.

Every head is called as `head(states, last, mask, ...)` with

    states  tuple of [B, T, D], of the layers that were asked for
    last    [B, T, D], of the last layer, normed
    mask    [B, T], True for tokens; an example without any has a NaN reward, that is none

and computes in float32. `on_transformer` puts one on the network of `networks.transformer`, so
that any backbone the library loads carries any head.
"""

from typing import Any, Callable, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxreward import masked
from jaxreward.checks import check_choice
from jaxreward.networks import dense, transformer
from jaxreward.networks.transformer_config import TransformerConfig

ACTIVATIONS = {"leaky_relu": nn.leaky_relu, "relu": nn.relu, "silu": nn.silu, "tanh": nn.tanh}
POOLS = ("last", "mean", "max")

States = tuple[Float[Array, "B T D"], ...]


class Perceptron(nn.Module):
    """Dense layers with an activation between them, `[*, D]` to `[*, outputs]`.

    Attributes:
      hidden: widths of the inner layers `layer_0`, `layer_1`, ...; the last is `out`.
      outputs: width of the output.
      activation: one of `ACTIVATIONS`.
      bias: whether `out` has one.
    """

    hidden: tuple[int, ...] = ()
    outputs: int = 1
    activation: str = "leaky_relu"
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch F"]:
        x = x.astype(jnp.float32)
        for index, width in enumerate(self.hidden):
            layer = dense.Dense(width, "float32", "float32", True, name=f"layer_{index}")
            x = ACTIVATIONS[self.activation](layer(x))
        return dense.Dense(self.outputs, "float32", "float32", self.bias, name="out")(x)


def pool(
    states: Float[Array, "B T D"], mask: Bool[Array, "B T"], kind: str = "last"
) -> Float[Array, "B D"]:
    """One state for each example: of its last token, the mean or the maximum over tokens.

    NaN where the mask is empty.

    Raises:
      ValueError: unknown `kind`.
    """
    return _where_tokens(mask, _pool_some(states, mask, kind))


def _pool_some(states: Array, mask: Array, kind: str) -> Array:
    """`pool`, finite where the mask is empty: a NaN that a layer reads is in its gradient."""
    check_choice("pool", kind, POOLS)
    states, wide = states.astype(jnp.float32), mask[..., None]
    wide = jnp.broadcast_to(wide, states.shape)
    if kind == "mean":
        return masked.mean(states, wide, axis=1)
    if kind == "max":
        return masked.maximum(states, wide, axis=1)
    steps = jnp.arange(mask.shape[1], dtype=jnp.int32)[None, :]
    index = jnp.max(jnp.where(mask, steps, 0), axis=1)
    return jnp.take_along_axis(states, index[:, None, None], axis=1)[:, 0]


def _where_tokens(mask: Array, values: Array) -> Array:
    some = jnp.any(mask, axis=1).reshape((-1,) + (1,) * (values.ndim - 1))
    return jnp.where(some, values, jnp.nan)


class Scalar(nn.Module):
    """One score, from the pooled last layer.

    Attributes:
      pool: one of `POOLS`.
      hidden: widths of a perceptron; none is a linear head.
    """

    pool: str = "last"
    hidden: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, states: States, last: Array, mask: Array) -> Float[Array, "B"]:
        del states
        scores = Perceptron(self.hidden, activation="silu")(_pool_some(last, mask, self.pool))
        return _where_tokens(mask, scores[:, 0])


class State(nn.Module):
    """The pooled state itself, for networks that read several.

    Attributes:
      pool: one of `POOLS`.
    """

    pool: str = "last"

    def __call__(self, states: States, last: Array, mask: Array) -> Float[Array, "B D"]:
        del states
        return pool(last, mask, self.pool)


class GaussianScore(NamedTuple):
    """A score and its uncertainty; both `[B]`."""

    mean: Float[Array, "B"]
    log_std: Float[Array, "B"]


class Gaussian(nn.Module):
    """Mean and log standard deviation of the score; see `losses.pointwise.gaussian`.

    Attributes:
      pool: one of `POOLS`.
      hidden: widths of a perceptron.
      bound: the log standard deviation stays in `[-bound, bound]`.
    """

    pool: str = "last"
    hidden: tuple[int, ...] = ()
    bound: float = 5.0

    @nn.compact
    def __call__(self, states: States, last: Array, mask: Array) -> GaussianScore:
        del states
        out = Perceptron(self.hidden, 2, activation="silu")(_pool_some(last, mask, self.pool))
        out = _where_tokens(mask, out)
        return GaussianScore(out[:, 0], self.bound * jnp.tanh(out[:, 1] / self.bound))


class Quantiles(nn.Module):
    """`Q` quantiles of the score, never decreasing; see `losses.pointwise.quantile`.

    Attributes:
      count: `Q`.
      pool: one of `POOLS`.
      hidden: widths of a perceptron.
    """

    count: int
    pool: str = "last"
    hidden: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, states: States, last: Array, mask: Array) -> Float[Array, "B Q"]:
        del states
        network = Perceptron(self.hidden, self.count, activation="silu")
        out = _where_tokens(mask, network(_pool_some(last, mask, self.pool)))
        steps = jnp.concatenate([out[:, :1], jax.nn.softplus(out[:, 1:])], axis=1)
        return jnp.cumsum(steps, axis=1)


class StepScores(nn.Module):
    """One score for each step of a process, read where the step ends.

    Attributes:
      hidden: widths of a perceptron.
    """

    hidden: tuple[int, ...] = ()

    @nn.compact
    def __call__(
        self, states: States, last: Array, mask: Array, ends: Int[Array, "B S"]
    ) -> Float[Array, "B S"]:
        """`ends`: index of the last token of each step, -1 where there is none (score 0)."""
        del states, mask
        there = ends >= 0
        index = jnp.where(there, ends, 0)[..., None]
        chosen = jnp.take_along_axis(last.astype(jnp.float32), index, axis=1)
        return jnp.where(there, Perceptron(self.hidden, activation="silu")(chosen)[..., 0], 0.0)


class QueryAttention(nn.Module):
    """Multi-head attention of one query per example to its tokens.

    Attributes:
      heads: divides the width.
    """

    heads: int

    @nn.compact
    def __call__(
        self, query: Float[Array, "B D"], states: Float[Array, "B T D"], mask: Bool[Array, "B T"]
    ) -> Float[Array, "B D"]:
        width = query.shape[-1]
        split = lambda x: x.reshape(x.shape[:-1] + (self.heads, width // self.heads))
        states = states.astype(jnp.float32)
        q = split(nn.Dense(width, name="q_proj")(query))
        k = split(nn.Dense(width, name="k_proj")(states))
        v = split(nn.Dense(width, name="v_proj")(states))
        logits = jnp.einsum("bhd,bthd->bht", q, k) * (width // self.heads) ** -0.5
        probs = jax.nn.softmax(jnp.where(mask[:, None], logits, -1e30), axis=-1)
        attended = jnp.einsum("bht,bthd->bhd", probs, v).reshape(query.shape)
        return nn.Dense(width, name="o_proj")(attended)


class HierarchicalQuery(nn.Module):
    """Hierarchical progressive query attention (SoliReward, arXiv 2512.22170).

    A learned query attends to the first chosen layer; what it finds is the query of the next, and
    so on; a second learned query attends to the last layer; a perceptron reads their sum. The
    layers have their own weights, no residual connections and no norms. Without chosen layers it
    is attention pooling of the last one.

    Attributes:
      heads: of each attention.
      progressive: False has the learned query attend to every chosen layer, and takes the mean.
    """

    heads: int = 8
    progressive: bool = True

    @nn.compact
    def __call__(self, states: States, last: Array, mask: Array) -> Float[Array, "B"]:
        width = last.shape[-1]

        def learned(name: str) -> Array:
            query = self.param(name, nn.initializers.normal(0.02), (1, width), jnp.float32)
            return jnp.broadcast_to(query, (last.shape[0], width))

        total = QueryAttention(self.heads, name="residual")(learned("residual_query"), last, mask)
        if states:
            query, found = learned("query"), []
            for index, state in enumerate(states):
                layer = QueryAttention(self.heads, name=f"attention_{index}")
                found.append(layer(query, state, mask))
                query = found[-1] if self.progressive else query
            total = total + (found[-1] if self.progressive else sum(found) / len(found))
        inner = nn.silu(nn.Dense(width, name="layer_0")(total))
        score = nn.Dense(1, use_bias=False, name="out")(inner)[:, 0]
        return _where_tokens(mask, score)


def verdict_log_prob(
    hidden: Float[Array, "B D"], weight: Float[Array, "D V"], tokens: tuple[int, ...]
) -> Float[Array, "B"]:
    """Log-probability that the next token is one of `tokens`, in nats; a generative verdict.

    Args:
      hidden: last state of each example, normed.
      weight: of the output layer, `Transformer.head_weight`.
      tokens: ways to write the verdict, such as "yes" and "Yes".

    Raises:
      ValueError: no tokens.
    """
    if not tokens:
        raise ValueError(f"tokens = {tokens}; allowed is one token or more")
    logits = jnp.matmul(hidden.astype(jnp.float32), weight.astype(jnp.float32))
    chosen = jnp.stack([logits[:, token] for token in tokens], axis=-1)
    normal = jax.scipy.special.logsumexp(logits, axis=-1)
    return jax.scipy.special.logsumexp(chosen, axis=-1) - normal


class VerdictScore(NamedTuple):
    """Log-probabilities, in nats, that the next token says yes or no; both `[B]`.

    The reward is their difference; see `losses.pointwise.verdict`.
    """

    log_yes: Float[Array, "B"]
    log_no: Float[Array, "B"]


class Verdict(nn.Module):
    """A generative judge: what the network's own output layer says after the last token.

    Attributes:
      yes: tokens that say yes, one or more.
      no: tokens that say no, likewise.
    """

    yes: tuple[int, ...]
    no: tuple[int, ...]

    def __call__(
        self, states: States, last: Array, mask: Array, weight: Float[Array, "D V"]
    ) -> VerdictScore:
        """`weight`: of the output layer, which `on_transformer` passes."""
        del states
        hidden = _pool_some(last, mask, "last")
        found = [verdict_log_prob(hidden, weight, tokens) for tokens in (self.yes, self.no)]
        return VerdictScore(*(_where_tokens(mask, values) for values in found))


class Network(NamedTuple):
    """A head on a transformer, as functions of `{"trunk", "head"}`.

    Attributes:
      init: `(key) -> params`.
      apply: `(params, tokens [B, T], lengths [B], *extra) ->` what the head returns.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[..., Any]


def on_transformer(
    config: TransformerConfig, head: nn.Module, layers: tuple[int, ...] = (), extra: tuple = ()
) -> Network:
    """Puts a head on a transformer of random weights; `params["trunk"]` may then be loaded ones.

    Args:
      config: of the trunk.
      head: called as the module docstring says.
      layers: whose states the head is given, see `Transformer.hidden_states`.
      extra: examples of the head's further arguments, for its initialisation.

    Raises:
      ValueError: a verdict without tokens, or with one that the vocabulary does not have.
    """
    trunk = transformer.Transformer(config)
    judges = isinstance(head, Verdict)
    if judges:
        _check_verdict(head, config.vocab_size)

    def inputs(params: Any, tokens: Array, lengths: Array) -> tuple[Any, ...]:
        chosen = tuple(layers) + (config.layers,)
        *states, last = trunk.apply(
            {"params": params}, tokens, lengths, chosen, method="hidden_states"
        )
        steps = jnp.arange(tokens.shape[1], dtype=lengths.dtype)
        found = tuple(states), last, steps[None, :] < lengths[:, None]
        weight = lambda: trunk.apply({"params": params}, method="head_weight")
        return (*found, weight()) if judges else found

    def init(key: jax.Array) -> Any:
        of_trunk, of_head = jax.random.split(key)
        params = transformer.init(config, of_trunk)
        example = jnp.zeros((1, 2), jnp.int32), jnp.full((1,), 2, jnp.int32)
        found = head.init(of_head, *inputs(params, *example), *extra)
        return {"trunk": params, "head": found.get("params", {})}

    def apply(params: Any, tokens: Int[Array, "B T"], lengths: Int[Array, "B"], *extra: Any):
        seen = inputs(params["trunk"], tokens, lengths)
        return head.apply({"params": params.get("head", {})}, *seen, *extra)

    return Network(init, apply)


def _check_verdict(head: Verdict, vocabulary: int) -> None:
    for name in ("yes", "no"):
        tokens = getattr(head, name)
        if not tokens or not all(0 <= token < vocabulary for token in tokens):
            allowed = f"one token or more in [0, {vocabulary})"
            raise ValueError(f"{name} = {tokens}; allowed is {allowed}")
