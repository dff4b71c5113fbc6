"""Learned rewards: a model is two functions over a parameter pytree; ensembles; many items.

    model = mlp_reward_model(width=12)                 # or text_reward_model(config)
    many = ensemble(model, 5)                          # parameters with a leading axis of 5
                                                       # or personalized(model, users)
    params = many.init(key)                            # then train, see losses.preference
    scores = score_many(many.score, params, items)     # [5, N], streamed

Members that are trained independently are `jax.vmap` of the training over keys of `init`.
`learned_files` saves and loads them.
"""

import itertools
from typing import Any, Callable, Iterable, Iterator, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxreward.checks import check_choice
from jaxreward.networks import heads
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.rewards.step_scores import AGGREGATIONS, aggregate_steps, step_ends

Params = Any


class RewardModel(NamedTuple):
    """A learned reward.

    Attributes:
      init: `(key) -> params`, nested dicts.
      score: `(params, items) -> float32 [B]`, `[K, B]` for an ensemble; `items` is a pytree with
        leading axis `[B]`. NaN where an item has no score.
    """

    init: Callable[[jax.Array], Params]
    score: Callable[[Params, Any], Float[Array, "*K B"]]


class Texts(NamedTuple):
    """Token sequences, prompt and response in one.

    Attributes:
      tokens: right-padded.
      lengths: number of tokens; an empty text has a NaN score.
      responses: first token of the response, and the one after its last; None is the whole text.
        Only `step_reward_model` reads it.
    """

    tokens: Int[Array, "B T"]
    lengths: Int[Array, "B"]
    responses: Int[Array, "B 2"] | None = None


def mlp_reward_model(
    width: int, hidden: tuple[int, ...] = (64, 64), activation: str = "leaky_relu"
) -> RewardModel:
    """A perceptron on feature vectors `[B, width]`; parameters `layer_0`, ..., `out`.

    Raises:
      ValueError: a width < 1, or an unknown activation.
    """
    hidden = tuple(hidden)
    if width < 1 or any(size < 1 for size in hidden):
        raise ValueError(f"width = {width}, hidden = {hidden}; allowed are sizes >= 1")
    check_choice("activation", activation, tuple(heads.ACTIVATIONS))
    network = heads.Perceptron(hidden, activation=activation)

    def init(key: jax.Array) -> Params:
        return network.init(key, jnp.zeros((1, width), jnp.float32))["params"]

    def score(params: Params, items: Float[Array, "B D"]) -> Float[Array, "B"]:
        return network.apply({"params": params}, items)[:, 0]

    return RewardModel(init, score)


def text_reward_model(
    config: TransformerConfig, head: nn.Module = heads.Scalar(), layers: tuple[int, ...] = ()
) -> RewardModel:
    """A head of `networks.heads` on a transformer: scores of `Texts`.

    Args:
      config: of the transformer.
      head: with one score per example. Of a Gaussian head the mean is the score, of quantiles
        their mean, of a verdict its log-odds.
      layers: whose states the head is given, see `Transformer.hidden_states`.
    """
    network = heads.on_transformer(config, head, layers)

    def score(params: Params, items: Texts) -> Float[Array, "B"]:
        return _one_score(network.apply(params, items.tokens, items.lengths))

    return RewardModel(network.init, score)


def step_reward_model(
    config: TransformerConfig,
    separators: tuple[int, ...],
    aggregation: str = "min",
    hidden: tuple[int, ...] = (),
) -> RewardModel:
    """A process reward model: one score of `Texts` from those of the steps of the response.

    The scores of steps are probabilities, the sigmoid of what `heads.StepScores` says where
    `step_scores.step_ends` finds the end of a step. A response without steps has a NaN score.
    Train the head with `heads.on_transformer(config, heads.StepScores(hidden), extra=...)` and
    `losses.pointwise.cross_entropy`: the parameters are these.

    Args:
      config: of the transformer.
      separators: ids of the tokens that end a step.
      aggregation: one of `step_scores.AGGREGATIONS`.
      hidden: widths of the head's perceptron.

    Raises:
      ValueError: no separators, one that the vocabulary does not have, or another aggregation.
    """
    if not separators or not all(0 <= token < config.vocab_size for token in separators):
        allowed = f"one token or more in [0, {config.vocab_size})"
        raise ValueError(f"separators = {list(separators)}; allowed is {allowed}")
    check_choice("aggregation", aggregation, AGGREGATIONS)
    head, example = heads.StepScores(tuple(hidden)), jnp.zeros((1, 1), jnp.int32)
    network = heads.on_transformer(config, head, extra=(example,))

    def score(params: Params, items: Texts) -> Float[Array, "B"]:
        whole = jnp.stack([jnp.zeros_like(items.lengths), items.lengths], axis=1)
        spans = whole if items.responses is None else items.responses
        ends = step_ends(items.tokens, spans, tuple(separators))
        found = jax.nn.sigmoid(network.apply(params, items.tokens, items.lengths, ends))
        return aggregate_steps(found, ends >= 0, aggregation, empty=jnp.nan)

    return RewardModel(network.init, score)


def _one_score(found: Any) -> Float[Array, "B"]:
    if isinstance(found, heads.GaussianScore):
        return found.mean
    if isinstance(found, heads.VerdictScore):
        return found.log_yes - found.log_no
    return jnp.mean(found, axis=1) if found.ndim == 2 else found


# Ensembles


def ensemble(model: RewardModel, members: int, *, shared: tuple[str, ...] = ()) -> RewardModel:
    """`K` models as one, whose parameters have a leading axis of members; scores are `[K, B]`.

    Args:
      model: of a member.
      members: `K` >= 1.
      shared: top-level names of parameters that all members share, such as "trunk"; these have
        no axis of members, and what they compute is computed once.

    Raises:
      ValueError: `members` < 1, or the model has no parameters of a shared name.
    """
    if members < 1:
        raise ValueError(f"members = {members}; allowed is >= 1")

    def axes(params: Params) -> Params:
        if unknown := set(shared) - set(params):
            raise ValueError(f"shared = {sorted(unknown)}; allowed are {sorted(params)}")
        return {name: None if name in shared else 0 for name in params} if shared else 0

    def init(key: jax.Array) -> Params:
        common, own = model.init(key), jax.vmap(model.init)(jax.random.split(key, members))
        axes(common)
        return {**own, **{name: common[name] for name in shared}} if shared else own

    def score(params: Params, items: Any) -> Float[Array, "K B"]:
        return jax.vmap(model.score, in_axes=(axes(params), None))(params, items)

    return RewardModel(init, score)


class OfUsers(NamedTuple):
    """Items, each with the user who is to like it.

    Attributes:
      items: what the model scores.
      users: in [0, U); who is none of these is unknown, and has no reward.
    """

    items: Any
    users: Int[Array, "B"]


def personalized(model: RewardModel, users: int, *, shared: tuple[str, ...] = ()) -> RewardModel:
    """A model with parameters of its own for each of `U` users; scores `OfUsers`, `[B]`.

    The parameters are those of an `ensemble` with a member for each user, and saved as such. The
    score of an unknown user is NaN, which `make_signal` takes as missing.

    Args:
      model: of one user.
      users: `U` >= 1.
      shared: names of parameters that all users share, such as "trunk".

    Raises:
      ValueError: as of `ensemble`.
    """
    everybody = ensemble(model, users, shared=shared)

    def score(params: Params, given: OfUsers) -> Float[Array, "B"]:
        scores = everybody.score(params, given.items)
        known = (given.users >= 0) & (given.users < users)
        own = jnp.take_along_axis(scores, jnp.where(known, given.users, 0)[None, :], axis=0)[0]
        return jnp.where(known, own, jnp.nan)

    return RewardModel(everybody.init, score)


# Many items


def score_many(
    score: Callable[[Params, Any], Array],
    params: Params,
    items: Any,
    *,
    block_size: int = 256,
    progress: bool = True,
) -> np.ndarray:
    """Scores of any number of items on the host, in blocks of one size: one compilation.

    Two blocks are on the device at a time, so memory does not grow with the number of items.

    Args:
      score: `(params, block) -> [..., block_size]`, such as `RewardModel.score`.
      params: of the model.
      items: a pytree of arrays with leading axis `[N]`, or an iterator of single items.
      block_size: >= 1; the last block is filled up with copies of its last item.
      progress: whether a bar is shown on standard error.

    Returns:
      float32 `[..., N]`; a score that is NaN stays NaN, which `make_signal` takes as missing.

    Raises:
      ValueError: `block_size` < 1, no items, or leaves with different leading axes.
    """
    if block_size < 1:
        raise ValueError(f"block_size = {block_size}; allowed is >= 1")
    run, total, found, waiting = jax.jit(score), _count(items), [], None
    with _bar(total, progress) as bar:
        for block, size in _blocks(items, total, block_size):
            dispatched = run(params, block), size
            if waiting is not None:
                found.append(_fetch(*waiting))
                bar.update(waiting[1])
            waiting = dispatched
        if waiting is None:
            raise ValueError("items = none; allowed is one or more")
        found.append(_fetch(*waiting))
        bar.update(waiting[1])
    return np.concatenate(found, axis=-1)


def _bar(total: int | None, progress: bool):
    from tqdm import tqdm

    return tqdm(total=total, desc="score", unit="item", disable=not progress)


def _fetch(scores: Array, size: int) -> np.ndarray:
    return np.asarray(scores, np.float32)[..., :size]


def _count(items: Any) -> int | None:
    """How many there are, None of an iterator."""
    if isinstance(items, Iterator):
        return None
    counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(items)}
    if len(counts) != 1 or counts == {()}:
        raise ValueError(f"items have leading axes {sorted(counts)}; allowed is one [N] for all")
    return counts.pop()[0]


def _blocks(items: Any, total: int | None, size: int) -> Iterable[tuple[Any, int]]:
    """Blocks of exactly `size` items, and how many of them are not filling."""
    if total is None:
        while some := list(itertools.islice(items, size)):
            filled = some + [some[-1]] * (size - len(some))
            yield jax.tree.map(lambda *leaves: np.stack(leaves), *filled), len(some)
        return
    for first in range(0, total, size):
        index = np.minimum(np.arange(first, first + size), total - 1)
        yield jax.tree.map(lambda leaf: leaf[index], items), min(size, total - first)
