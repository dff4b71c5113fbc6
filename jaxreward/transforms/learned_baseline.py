"""Advantages against a small network that learns to predict the reward (arXiv 2407.19453)."""

from typing import Any, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxreward import masked
from jaxreward.checks import Number, check_number
from jaxreward.transforms.base import RewardTransform, Spec
from jaxreward.types import Signal

FEATURES = "baseline_features"
"""Entry of `aux`, float32 `[P, F]`."""


def learned_baseline(
    num_features: int,
    *,
    widths: Sequence[int] = (256, 256, 256),
    learning_rate: Number = 1e-4,
    scale: Number = 1.0,
    seed: int = 0,
    axis_name: str | None = None,
) -> RewardTransform:
    """Advantage `(reward - prediction) / scale`.

    The prediction is that of a ReLU network of `aux["baseline_features"]` (for FIND the mean,
    the deviation and the prompt's embedding), after one AdamW step on its squared error for the
    rewards at hand. The network is in the state of the transform.

    Args:
      num_features: `F`.
      widths: of its hidden layers.
      learning_rate: > 0.
      scale: > 0.
      seed: of its start.
      axis_name: mapped axis that splits the prompts.

    Raises:
      ValueError: a number out of its range; when traced, dense rewards or other features.
    """
    check_number("num_features", num_features, lambda x: x >= 1, ">= 1")
    check_number("learning_rate", learning_rate, lambda x: x > 0, "> 0")
    check_number("scale", scale, lambda x: x > 0, "> 0")
    optimizer = optax.adamw(learning_rate)

    def init():
        params = _init(jax.random.key(seed), (num_features, *widths, 1))
        return params, optimizer.init(params)

    def update(key: jax.Array, signal: Signal, state: Any) -> tuple[Signal, Any]:
        del key
        features = signal.aux[FEATURES]
        expected = (signal.rewards.shape[0], num_features)
        if signal.rewards.ndim != 2 or features.shape != expected:
            raise ValueError(
                f"rewards of shape {signal.rewards.shape} with features {features.shape}; allowed "
                f"are [P, G] and {expected}"
            )
        features = jax.lax.stop_gradient(features)
        rewards = jnp.where(signal.mask, signal.rewards, 0.0)

        count = masked.count(signal.mask, axis_name=axis_name)

        def error(params):  # of the prompts at hand; the parts of all devices add up to the mean
            off = rewards - _predict(params, features)[:, None]
            return masked.sum(jnp.square(off), signal.mask) / jnp.maximum(count, 1.0)

        params, opt_state = state
        value, grads = jax.value_and_grad(error)(_varying(params, axis_name))
        if axis_name is not None:
            value, grads = jax.lax.psum((value, grads), axis_name)
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
            updates, new_opt_state = optimizer.update(grads, opt_state, params)
        some = count > 0  # without rewards there is nothing to learn
        new = (optax.apply_updates(params, updates), new_opt_state)
        params, opt_state = jax.tree.map(lambda a, b: jnp.where(some, a, b), new, state)
        off = rewards - _predict(params, features)[:, None]
        signal = signal.replace(advantages=jnp.where(signal.mask, off / scale, 0.0))
        return signal.with_metrics(advantage__baseline_error=value), (params, opt_state)

    reads, writes = (f"aux/{FEATURES}",), ("advantages", "metrics")
    return RewardTransform(init, update, Spec("learned_baseline", "advantage", reads, writes))


def _varying(params: Any, axis_name: str | None) -> Any:
    """Marked as different on each device, so that a gradient is not summed over them unasked."""
    if axis_name is None:
        return params
    return jax.tree.map(lambda leaf: jax.lax.pcast(leaf, axis_name, to="varying"), params)


def _init(key: jax.Array, sizes: tuple[int, ...]) -> list[dict[str, Array]]:
    layers = []
    for i, (inputs, outputs) in enumerate(zip(sizes[:-1], sizes[1:])):
        kernel = jax.nn.initializers.he_normal()(jax.random.fold_in(key, i), (inputs, outputs))
        layers.append({"kernel": kernel, "bias": jnp.zeros((outputs,), jnp.float32)})
    return layers


def _predict(params: list[dict[str, Array]], x: Float[Array, "P F"]) -> Float[Array, "P"]:
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None, :])
    return (x @ params[-1]["kernel"])[:, 0] + params[-1]["bias"]
