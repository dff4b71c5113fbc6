"""A language model as a policy: sampling in groups, scoring what was sampled.

Each prompt is encoded once and shared by its group, in sampling and in scoring: `P L + P G S`
tokens go through the network, not `P G (L + S)`.
"""

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxreward.kernels.linear_log_prob import api as linear
from jaxreward.networks.transformer import Transformer, empty_cache, init
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies import sampling
from jaxreward.pytree import pytree_dataclass
from jaxreward.types import LinearScores, Policy, StepScores, Trajectories


@pytree_dataclass
class Prompts:
    """Right-padded prompts.

    Attributes:
      tokens: int32.
      lengths: int32, at least 1.
    """

    tokens: Int[Array, "P L"]
    lengths: Int[Array, "P"]


class Decoding(NamedTuple):
    """How tokens are drawn. See `language_policy`."""

    max_new_tokens: int
    stop_tokens: tuple[int, ...]
    pad_token: int
    temperature: Any = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is always taken."""
        return sampling.is_greedy(self.temperature)


def _same(tree: Any) -> Any:
    return tree


def _linear_log_prob(hidden: Array, head: Array, targets: Array, temperature):
    """`kernels.linear_log_prob` of rows `[P, G, S]`."""
    rows = hidden.reshape(-1, hidden.shape[-1])
    found = linear.linear_log_prob(rows, head, targets.reshape(-1), temperature=temperature)
    return tuple(part.reshape(targets.shape) for part in found[:2])


class Layout(NamedTuple):
    """How a language policy lies on its devices; the default says nothing about them.

    Attributes:
      stream: `(x [P, ...]) -> x`, for hidden states after the embedding and every block.
      to_sample: `(params) -> params`, once before sampling, which reads them at every token.
      to_score: `(params) -> params`, before they are used in `log_prob`.
      linear_log_prob: `(hidden [P, G, S, D], head [D, V], targets [P, G, S], temperature) ->
        (log_prob, entropy)`, float32 `[P, G, S]`; 0 where the target is -1.
    """

    stream: Callable[[Array], Array] = _same
    to_sample: Callable[[Any], Any] = _same
    to_score: Callable[[Any], Any] = _same
    linear_log_prob: Callable[..., tuple[Array, Array]] = _linear_log_prob


def language_policy(
    config: TransformerConfig,
    *,
    max_new_tokens: int,
    stop_tokens: tuple[int, ...],
    pad_token: int,
    temperature=1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    layout: Layout = Layout(),
) -> Policy:
    """The policy of a transformer.

    Trajectories hold `Prompts`, and as actions and outputs the response tokens int32
    `[P, G, S]`, `pad_token` after the stop token; the mask covers the stop token. Their
    log-probabilities, and those of `log_prob`, are of the distribution that is sampled from:
    after temperature and filters. Greedy decoding records the untempered model's.

    What is recorded and what `log_prob` gives are the same up to the order of float32 sums,
    which depends on the shapes: about 3e-6 nats at width 128. Where the ratio must start at 1
    more closely, score the rollout once before the first update (old "recomputed" of
    `losses.policy`). With filters, a token on the border may be kept by one and not the other;
    a token outside the filters has log-probability -inf.

    Args:
      config: the network.
      max_new_tokens: `S`.
      stop_tokens: ids that end a response; may be empty.
      pad_token: id written after the end.
      temperature: 0 for greedy; may be traced if not 0.
      top_k: see `sampling.processed_log_probs`.
      top_p: likewise.
      layout: on several devices, `training.sharding.language_layout`.

    Raises:
      ValueError: a setting is out of range, or an id is not in the vocabulary; from the policy's
        functions, no prompts, prompts of no tokens, a group of none.
    """
    decoding = Decoding(max_new_tokens, tuple(stop_tokens), pad_token, temperature, top_k, top_p)
    _check(config, decoding)
    network = Transformer(config, layout.stream)

    def sample(params: Any, key: jax.Array, prompts: Prompts, group_size: int) -> Trajectories:
        if group_size < 1:
            raise ValueError(f"group_size = {group_size}; allowed is >= 1")
        _check_prompts(prompts)
        return _sample(network, decoding, layout.to_sample(params), key, prompts, group_size)

    def linear_scores(params: Any, trajectories: Trajectories) -> LinearScores:
        _check_prompts(trajectories.prompts)
        params = layout.to_score(params)
        hidden = response_hidden(network, params, trajectories.prompts, trajectories.actions)
        targets = jnp.where(trajectories.mask, trajectories.actions, -1)
        return LinearScores(hidden, _head(network, params), targets)

    def log_prob(params: Any, trajectories: Trajectories) -> StepScores:
        return score(*linear_scores(params, trajectories), decoding, layout)

    return Policy(functools.partial(init, config), sample, log_prob, linear_scores)


def response_hidden(
    network: Transformer, params: Any, prompts: Prompts, responses: Int[Array, "P G S"]
) -> Float[Array, "P G S D"]:
    """The hidden state from which each response token is predicted."""
    variables = {"params": params}
    encode, extend = Transformer.encode, Transformer.extend
    encoded, cache = network.apply(variables, prompts.tokens, prompts.lengths, method=encode)
    first = _last(encoded, prompts.lengths)[:, None, None, :]
    groups = responses.shape[1]
    first = jnp.broadcast_to(first, (first.shape[0], groups, 1, first.shape[-1]))
    if responses.shape[2] == 1:
        return first
    shown = responses[:, :, :-1]
    rest = network.apply(variables, shown, prompts.lengths, cache, method=extend)
    return jnp.concatenate([first, rest], axis=2)


def score(
    hidden: Float[Array, "P G S D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "P G S"],
    decoding: Decoding,
    layout: Layout = Layout(),
) -> StepScores:
    """Log-probabilities and entropies from hidden states: the one place where logits count.

    Without filters the logits are never written as a whole (`kernels.linear_log_prob`). A
    target of -1 scores 0.
    """
    temperature = 1.0 if decoding.greedy else decoding.temperature
    if not decoding.top_k and decoding.top_p == 1.0:
        return StepScores(*layout.linear_log_prob(hidden, head, targets, temperature))
    log_probs = sampling.processed_log_probs(
        _logits(hidden, head),
        temperature=temperature,
        top_k=decoding.top_k,
        top_p=decoding.top_p,
    )
    return StepScores(*_filtered_scores(log_probs, targets))


def _filtered_scores(log_probs: Float[Array, "*rows V"], targets: Int[Array, "*rows"]):
    valid = targets >= 0
    safe = jnp.where(valid, targets, 0)[..., None]
    picked = jnp.take_along_axis(log_probs, safe, axis=-1)[..., 0]
    finite = jnp.where(jnp.isfinite(log_probs), log_probs, 0.0)
    entropy = -jnp.sum(jnp.exp(log_probs) * finite, axis=-1)
    return jnp.where(valid, picked, 0.0), jnp.where(valid, entropy, 0.0)


def _sample(network, decoding, params, key, prompts, group_size) -> Trajectories:
    variables = {"params": params}
    count, steps = prompts.tokens.shape[0], decoding.max_new_tokens
    encoded, prefix = network.apply(
        variables, prompts.tokens, prompts.lengths, method=Transformer.encode
    )
    head, draw = _head(network, params), _drawer(decoding, key)
    first = _last(encoded, prompts.lengths)[:, None, :]
    log_probs = _processed(_logits(first, head), decoding)
    log_probs = jnp.broadcast_to(log_probs, (count, group_size, log_probs.shape[-1]))
    token, picked = draw(jnp.zeros((), jnp.int32), log_probs)
    shape = (count, group_size, steps)
    written = _Written(
        jnp.full(shape, decoding.pad_token, jnp.int32).at[:, :, 0].set(token),
        jnp.zeros(shape, jnp.float32).at[:, :, 0].set(picked),
        jnp.zeros(shape, bool).at[:, :, 0].set(True),
    )
    cache = empty_cache(network.config, count, group_size, max(steps - 1, 1))
    done = _stops(token, decoding)

    def running(carry):
        step, _, done, _, _ = carry
        return (step < steps) & ~jnp.all(done)

    def body(carry):
        step, token, done, cache, written = carry
        hidden, cache = network.apply(
            variables, token, step - 1, prompts.lengths, prefix, cache, method=Transformer.decode
        )
        token, picked = draw(step, _processed(_logits(hidden, head), decoding))
        token = jnp.where(done, decoding.pad_token, token)
        written = _write(written, step, token, jnp.where(done, 0.0, picked), ~done)
        return step + 1, token, done | _stops(token, decoding), cache, written

    start = (jnp.ones((), jnp.int32), token, done, cache, written)
    written = jax.lax.while_loop(running, body, start)[-1]
    return Trajectories(prompts, written.tokens, written.tokens, written.log_probs, written.mask)


class _Written(NamedTuple):
    """What has been sampled so far, `[P, G, S]` each."""

    tokens: Array
    log_probs: Array
    mask: Array


def _write(written: _Written, step: Array, *columns: Array) -> _Written:
    update = jax.lax.dynamic_update_slice_in_dim
    return _Written(*(update(a, b[:, :, None], step, axis=2) for a, b in zip(written, columns)))


def _drawer(decoding: Decoding, key: jax.Array) -> Callable[..., tuple[Array, Array]]:
    """`(step, log_probs) -> (token, log_prob)`, the same for a step whatever came before."""
    if decoding.greedy:
        return lambda step, log_probs: sampling.most_probable(log_probs)
    return lambda step, log_probs: sampling.sample(jax.random.fold_in(key, step), log_probs)


def _processed(logits: Array, decoding: Decoding) -> Array:
    if decoding.greedy:
        return jax.nn.log_softmax(logits, axis=-1)
    return sampling.processed_log_probs(
        logits, temperature=decoding.temperature, top_k=decoding.top_k, top_p=decoding.top_p
    )


def _head(network: Transformer, params: Any) -> Float[Array, "D V"]:
    return network.apply({"params": params}, method=Transformer.head_weight)


def _logits(hidden: Array, head: Array) -> Array:
    """float32 logits, multiplied as precisely as `kernels.linear_log_prob` does."""
    precision = jax.lax.Precision.HIGHEST if hidden.dtype == jnp.float32 else None
    return jnp.dot(
        hidden,
        head.astype(hidden.dtype),
        precision=precision,
        preferred_element_type=jnp.float32,
    )


def _last(encoded: Float[Array, "P L D"], lengths: Int[Array, "P"]) -> Float[Array, "P D"]:
    return jnp.take_along_axis(encoded, (lengths - 1)[:, None, None], axis=1)[:, 0]


def _stops(token: Array, decoding: Decoding) -> Array:
    stops = jnp.zeros(token.shape, bool)
    for stop in decoding.stop_tokens:
        stops = stops | (token == stop)
    return stops


def _check_prompts(prompts: Prompts) -> None:
    if 0 in prompts.tokens.shape:
        raise ValueError(f"prompts.tokens has shape {prompts.tokens.shape}; allowed are axes >= 1")


def _check(config: TransformerConfig, decoding: Decoding) -> None:
    if decoding.max_new_tokens < 1:
        raise ValueError(f"max_new_tokens = {decoding.max_new_tokens}; allowed is >= 1")
    for name, token in [("pad_token", decoding.pad_token)] + [
        ("stop_tokens", stop) for stop in decoding.stop_tokens
    ]:
        if not 0 <= token < config.vocab_size:
            raise ValueError(f"{name} = {token}; allowed is 0 to {config.vocab_size - 1}")
    sampling.check(decoding.temperature, decoding.top_k, decoding.top_p)
