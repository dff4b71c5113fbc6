"""The one update step: credit the rewards, differentiate the loss, guard, update.

    credit: (state, signal) -> (state, signal)      the chain, no gradient
    learn:  (state, signal) -> (state, metrics)     one optimizer step
    update_step = learn after credit

Both are pure and shape-static; the caller jits, vmaps (over seeds or arms) or shards them.
"""

import dataclasses
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxreward.pytree import pytree_dataclass
from jaxreward.transforms.base import RewardTransform
from jaxreward.types import Signal

LossFn = Callable[[Any, Signal], tuple[jax.Array, dict[str, jax.Array]]]
"""`(params, signal) -> (float32 scalar, metrics)`; see `losses.policy.policy_objective`."""


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
    """The pure functions of one training step. See the module docstring."""

    init: Callable[[jax.Array, Any], TrainState]
    credit: Callable[[TrainState, Signal], tuple[TrainState, Signal]]
    learn: Callable[[TrainState, Signal], tuple[TrainState, dict[str, jax.Array]]]

    def __call__(
        self, state: TrainState, signal: Signal
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        """Credits `signal` and learns from it."""
        state, signal = self.credit(state, signal)
        return self.learn(state, signal)


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
      accumulate: number of micro-batches the prompts are split into; gradients are averaged
        with the weight each micro-batch's loss has in the whole (equal parts, so a
        per-token normalisation is per micro-batch, as in other trainers).
      spike_factor: skip a step whose gradient norm exceeds this many times the running mean
        norm of the steps taken (0 turns it off).

    Raises:
      ValueError: the transform never sets advantages, or `accumulate` < 1.
    """
    if "advantages" not in transform.spec.writes:
        raise ValueError(
            f"the reward chain {transform.spec.name} never sets advantages; end it with one of "
            "transforms.advantage"
        )
    if accumulate < 1:
        raise ValueError(f"accumulate = {accumulate}; allowed is >= 1")

    def init(key: jax.Array, params: Any) -> TrainState:
        zero = jnp.zeros((), jnp.int32)
        norms = (jnp.zeros((), jnp.float32), zero)
        return TrainState(
            zero, params, (optimizer.init(params), norms), transform.init(), key, zero, zero
        )

    def credit(state: TrainState, signal: Signal) -> tuple[TrainState, Signal]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), _CHAIN)
        signal, chain_state = transform.update(key, signal, state.chain_state)
        stop = jax.lax.stop_gradient
        signal = signal.replace(advantages=stop(signal.advantages), weights=stop(signal.weights))
        return dataclasses.replace(state, chain_state=chain_state), signal

    def learn(state: TrainState, signal: Signal) -> tuple[TrainState, dict[str, jax.Array]]:
        value, metrics, grads = _accumulated_gradient(loss, state.params, signal, accumulate)
        norm = optax.global_norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
        opt_state, (mean_norm, taken) = state.opt_state
        good = jnp.isfinite(value) & jnp.isfinite(norm)
        if spike_factor > 0:
            good &= (taken < _SPIKE_WARMUP) | (norm <= spike_factor * mean_norm)
        updates, new_opt_state = optimizer.update(grads, opt_state, state.params)
        new_params = optax.apply_updates(state.params, updates)
        params, opt_state = _where(good, (new_params, new_opt_state), (state.params, opt_state))
        safe_norm = jnp.where(good, norm, mean_norm)
        rate = 1.0 / jnp.minimum(taken + 1, _SPIKE_WINDOW).astype(jnp.float32)
        mean_norm = mean_norm + rate * (safe_norm - mean_norm)
        bad = 1 - good.astype(jnp.int32)
        state = dataclasses.replace(
            state,
            step=state.step + 1,
            params=params,
            opt_state=(opt_state, (mean_norm, taken + 1 - bad)),
            skipped=state.skipped + bad,
            skipped_in_a_row=bad * (state.skipped_in_a_row + 1),
        )
        metrics = {
            **signal.metrics,
            **metrics,
            "train/loss": value,
            "train/gradient_norm": norm,
            "train/skipped": state.skipped,
        }
        return state, metrics

    return UpdateStep(init, credit, learn)


_CHAIN, _SAMPLE = 1, 2  # positions under a step's key: the chain's draws, the policy's
_SPIKE_WARMUP, _SPIKE_WINDOW = 10, 100


def sample_key(state: TrainState) -> jax.Array:
    """The key with which the policy samples at the state's step."""
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), _SAMPLE)


def _accumulated_gradient(loss: LossFn, params: Any, signal: Signal, parts: int):
    grad_fn = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        (value, metrics), grads = grad_fn(params, signal)
        return value, metrics, grads
    micro = split_prompts(signal, parts)

    def body(total, part):
        out = grad_fn(params, part)
        return jax.tree.map(lambda a, b: a + b / parts, total, out), None

    shapes = jax.eval_shape(grad_fn, params, jax.tree.map(lambda x: x[0], micro))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    ((value, metrics), grads), _ = jax.lax.scan(body, zeros, micro)
    return value, metrics, grads


def split_prompts(signal: Signal, parts: int) -> Signal:
    """The signal with prompts split into a new leading axis of `parts`; metrics dropped.

    Raises:
      ValueError: the number of prompts is not divisible by `parts`.
    """
    prompts = signal.rewards.shape[0]
    if prompts % parts:
        raise ValueError(
            f"{prompts} prompts cannot be split into {parts} micro-batches; allowed are divisors"
        )
    signal = signal.replace(metrics={}, rates=None)
    return jax.tree.map(lambda x: x.reshape((parts, prompts // parts) + x.shape[1:]), signal)


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
