"""The one update step: credit the rewards, differentiate the loss, guard, update.

    credit: (state, signal) -> (state, signal)      the chain, no gradient
    learn:  (state, signal) -> (state, metrics)     one optimizer step
    update: (state, signal) -> (state, metrics)     learn after credit

All are pure and shape-static; the caller jits, vmaps (over seeds or arms) or shards them.
"""

import dataclasses
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxreward.pytree import pytree_dataclass
from jaxreward.training.precision import apply_updates
from jaxreward.transforms.base import RewardTransform
from jaxreward.types import Signal

LossFn = Callable[[Any, Signal], tuple[jax.Array, dict[str, jax.Array]]]
"""`(params, signal) -> (float32 scalar, metrics)`; see `losses.policy.policy_objective`.

The metric `LOSS_WEIGHT`, if there, is the denominator of the loss's average."""

LOSS_WEIGHT = "loss/weight"


@pytree_dataclass
class TrainState:
    """Everything a run needs to continue bit for bit, beside the data position.

    Attributes:
      step: int32, updates attempted so far (skipped ones count).
      params: parameter pytree.
      opt_state: optax state.
      chain_state: state of the reward transform.
      key: typed key of the run; the key of a step is `fold_in(key, step)`.
      skipped: int32, steps skipped so far because something was not finite.
      skipped_in_a_row: int32, of those, the current run of consecutive ones.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    chain_state: Any
    key: jax.Array
    skipped: jax.Array
    skipped_in_a_row: jax.Array


class UpdateStep(NamedTuple):
    """The pure functions of one training step. See the module docstring.

    Attributes:
      init: `(key, params) -> state`.
      credit: `(state, signal) -> (state, signal)`, the chain.
      learn: `(state, signal) -> (state, metrics)`, from a credited signal.
      update: `(state, signal) -> (state, metrics)`, both.
    """

    init: Callable[[jax.Array, Any], TrainState]
    credit: Callable[[TrainState, Signal], tuple[TrainState, Signal]]
    learn: Callable[[TrainState, Signal], tuple[TrainState, dict[str, jax.Array]]]
    update: Callable[[TrainState, Signal], tuple[TrainState, dict[str, jax.Array]]]


def make_update_step(
    loss: LossFn,
    transform: RewardTransform,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    spike_factor: float = 0.0,
) -> UpdateStep:
    """Builds the update step of a policy whose `loss` reads `signal.advantages`.

    Args:
      loss: the objective, closed over the policy.
      transform: the reward chain; it must set `advantages`.
      optimizer: optax transformation.
      accumulate: number of micro-batches the prompts are split into. Losses and gradients are
        averaged by the `LOSS_WEIGHT` of each micro-batch (equally without one), so they are
        those of the whole batch under every normalisation of `losses.policy`. Metrics of the
        loss are averaged by the same weights, whatever they are means of, so they may differ
        from the whole batch's where micro-batches differ; one ending in `_max` is the largest.
      spike_factor: skip a step whose gradient norm exceeds this many times the running mean
        norm of the steps taken, once ten with a gradient were (0 turns it off).

    Raises:
      ValueError: the transform never sets advantages, `accumulate` < 1, `spike_factor` < 0.
    """
    if "advantages" not in transform.spec.writes:
        raise ValueError(
            f"the reward chain {transform.spec.name} never sets advantages; end it with one of "
            "transforms.advantage"
        )
    if accumulate < 1:
        raise ValueError(f"accumulate = {accumulate}; allowed is >= 1")
    if not spike_factor >= 0:
        raise ValueError(f"spike_factor = {spike_factor}; allowed is >= 0")

    def init(key: jax.Array, params: Any) -> TrainState:
        zeros = [jnp.zeros((), jnp.int32) for _ in range(4)]  # own buffers: all can be donated
        opt_state = (optimizer.init(params), (jnp.zeros((), jnp.float32), zeros.pop()))
        return TrainState(zeros.pop(), params, opt_state, transform.init(), key, *zeros)

    def credit(state: TrainState, signal: Signal) -> tuple[TrainState, Signal]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), _CHAIN)
        signal, chain_state = transform.update(key, signal, state.chain_state)
        stop = jax.lax.stop_gradient
        signal = signal.replace(advantages=stop(signal.advantages), weights=stop(signal.weights))
        return dataclasses.replace(state, chain_state=chain_state), signal

    def learn(state: TrainState, signal: Signal) -> tuple[TrainState, dict[str, jax.Array]]:
        value, metrics, grads = _accumulated_gradient(loss, state.params, signal, accumulate)
        norm = _norm(grads)
        state = _apply(optimizer, spike_factor, state, value, norm, grads)
        metrics = {
            **signal.metrics,
            **metrics,
            "train/loss": value,
            "train/gradient_norm": norm,
            "train/skipped": state.skipped,
        }
        return state, metrics

    return UpdateStep(init, credit, learn, lambda state, signal: learn(*credit(state, signal)))


_CHAIN, _SAMPLE = 1, 2  # positions under a step's key: the chain's draws, the policy's
_SPIKE_WARMUP, _SPIKE_WINDOW = 10, 100


def sample_key(state: TrainState) -> jax.Array:
    """The key with which the policy samples at the state's step."""
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), _SAMPLE)


def _apply(
    optimizer: optax.GradientTransformation,
    spike_factor: float,
    state: TrainState,
    value: jax.Array,
    norm: jax.Array,
    grads: Any,
) -> TrainState:
    """The state after a step: parameters and optimizer move only if the step is good."""
    opt_state, (mean_norm, taken) = state.opt_state
    updates, new_opt_state = optimizer.update(grads, opt_state, state.params)
    good = jnp.isfinite(value) & jnp.isfinite(norm) & jnp.isfinite(_norm(updates))
    if spike_factor > 0:
        good &= (taken < _SPIKE_WARMUP) | (norm <= spike_factor * mean_norm)
    new_params = apply_updates(state.params, updates)
    params, opt_state = _where(good, (new_params, new_opt_state), (state.params, opt_state))
    # A step without any gradient says nothing about how large gradients are.
    counts = good & (norm > 0)
    rate = 1.0 / jnp.minimum(taken + 1, _SPIKE_WINDOW).astype(jnp.float32)
    mean_norm = jnp.where(counts, mean_norm + rate * (norm - mean_norm), mean_norm)
    bad = 1 - good.astype(jnp.int32)
    return dataclasses.replace(
        state,
        step=state.step + 1,
        params=params,
        opt_state=(opt_state, (mean_norm, taken + counts.astype(jnp.int32))),
        skipped=state.skipped + bad,
        skipped_in_a_row=bad * (state.skipped_in_a_row + 1),
    )


def _accumulated_gradient(loss: LossFn, params: Any, signal: Signal, parts: int):
    """Loss, metrics and gradient of the whole batch from those of `parts` micro-batches."""
    grad_fn = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        (value, metrics), grads = grad_fn(params, signal)
        return value, {k: v for k, v in metrics.items() if k != LOSS_WEIGHT}, grads

    def weighed(part):
        (value, metrics), grads = grad_fn(params, part)
        weight = metrics.get(LOSS_WEIGHT, jnp.ones((), jnp.float32))
        largest = {k: v for k, v in metrics.items() if k.endswith("_max")}
        means = {k: v for k, v in metrics.items() if k not in largest and k != LOSS_WEIGHT}
        sums = jax.tree.map(lambda x: x.astype(jnp.float32) * weight, (value, means, grads))
        # A micro-batch in which nothing counts must not enter, whatever its values are.
        sums = jax.tree.map(lambda x: jnp.where(weight > 0, x, 0.0), sums)
        return (weight, sums), largest

    def body(total, part):
        (before, largest), (own, new) = total, weighed(part)
        larger = jax.tree.map(jnp.maximum, largest, new)
        return (jax.tree.map(jnp.add, before, own), larger), None

    micro = split_prompts(signal, parts)
    shapes = jax.eval_shape(weighed, jax.tree.map(lambda x: x[0], micro))
    start = tuple(
        jax.tree.map(lambda s, fill=fill: jnp.full(s.shape, fill, s.dtype), tree)
        for tree, fill in zip(shapes, (0.0, -jnp.inf))
    )
    ((weight, sums), largest), _ = jax.lax.scan(body, start, micro)
    weight = jnp.where(weight > 0, weight, 1.0)
    value, means, grads = jax.tree.map(lambda x: x / weight, sums)
    grads = jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params)
    return value, {**means, **largest}, grads


def split_prompts(signal: Signal, parts: int) -> Signal:
    """The signal with prompts split into a new leading axis of `parts`; metrics dropped.

    Part `i` holds prompts `i, i + parts, ...`: prompts sharded over devices stay where they are.

    Raises:
      ValueError: the number of prompts is not divisible by `parts`.
    """
    return _split(signal.replace(metrics={}, rates=None), parts)


def map_in_parts(function: Callable[[Any], Any], tree: Any, parts: int) -> Any:
    """`function(tree)` computed for `parts` micro-batches one after the other.

    Args:
      function: of a tree with leading axis `[P]` to one with the same leading axis, each prompt
        for itself, such as the reference's log-probabilities of trajectories.
      tree: its argument.
      parts: number of micro-batches, as for `split_prompts`.

    Raises:
      ValueError: the number of prompts is not divisible by `parts`.
    """
    if parts == 1:
        return function(tree)
    made = jax.lax.map(function, _split(tree, parts))
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape((-1,) + x.shape[2:]), made)


def _split(tree: Any, parts: int) -> Any:
    prompts = jax.tree.leaves(tree)[0].shape[0]
    if prompts % parts:
        raise ValueError(
            f"{prompts} prompts cannot be split into {parts} micro-batches; allowed are divisors"
        )
    split = lambda x: x.reshape((prompts // parts, parts) + x.shape[1:])
    return jax.tree.map(lambda x: jnp.swapaxes(split(x), 0, 1), tree)


def _norm(tree: Any) -> jax.Array:
    return optax.global_norm(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree))


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
