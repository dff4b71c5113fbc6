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
from jaxreward.training import sharding
from jaxreward.training.gradient import LossFn, average_gradient
from jaxreward.training.precision import apply_updates
from jaxreward.transforms.base import RewardTransform
from jaxreward.types import Signal


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
    mesh: sharding.AnyMesh | None = None,
    spike_factor: float = 0.0,
) -> UpdateStep:
    """Builds the update step of a policy whose `loss` reads `signal.advantages`.

    Args:
      loss: the objective, closed over the policy.
      transform: the reward chain; it must set `advantages`.
      optimizer: optax transformation.
      accumulate: number of micro-batches the prompts are split into. Losses, gradients and metrics
        are averaged by the weights that the loss tells with them (see `gradient.LossFn`), so they
        are those of the whole batch under every normalisation of `losses.policy`.
      mesh: for copies of one model on several devices, from `sharding.make_mesh`: each device
        differentiates the loss of its own prompts, and gradients are summed over devices once in
        a step. The loss must then not place arrays itself (`sharding.copy_layout`). Without it `jit`
        splits the work as the arguments lie, and sums once for each micro-batch.
      spike_factor: skip a step whose gradient norm exceeds this many times the running mean
        norm of the steps taken, once ten with a gradient were (0 turns it off).

    Raises:
      ValueError: the transform never sets advantages, `accumulate` < 1, `spike_factor` < 0, a mesh
        that splits more than prompts.
    """
    if "advantages" not in transform.spec.writes:
        raise ValueError(
            f"the reward chain {transform.spec.name} never sets advantages; end it with one of "
            "transforms.advantage"
        )
    if accumulate < 1:
        raise ValueError(f"accumulate = {accumulate}; allowed is >= 1")
    if mesh is not None and not sharding.are_copies(mesh):
        raise ValueError(f"mesh of {dict(mesh.shape)}; allowed are copies, split over data alone")
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
        value, metrics, grads = average_gradient(loss, state.params, signal, accumulate, mesh)
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


def _norm(tree: Any) -> jax.Array:
    return optax.global_norm(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree))


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
