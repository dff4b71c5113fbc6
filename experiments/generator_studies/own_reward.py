"""A reward that a user brings: `config.study.reward` names a function of one image.

    --config.study.reward=my_rewards:score         of the host: any Python
    --config.study.reward=jit:my_rewards:score     of jax: part of the compiled program

Either is `(image, label) -> number`, more is better:

  image: float32 `[8, 8, 1]` in [-1, 1], -1 paper and 1 ink, what is beyond clipped; of the host an
    array of numpy that is the function's own, else of jax.
  label: the class that was asked for, an int32 scalar from 0 to 9.

The module is found as Python finds modules: in the working directory, or on `PYTHONPATH`. The
function shall be pure: a run that was killed asks again for what it had not kept, and a config
knows the function's name, not its text.

Of the host, an image whose number is missing (`rewards.opaque`: raised, no number, not finite)
costs that sample alone; it is logged, and the metric `reward/missing` counts those that an arm
should have learned from or searched by. Where `my_rewards:score` is an
`opaque.on_host(function, axes=(3, 0), timeout_s=...)`, one that takes too long is missing too. Of
jax, NaN and infinity are missing, and a sample whose gradient is not finite has none.
"""

import inspect
from typing import Any, Callable, Iterable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float

from experiments.generator_studies import digits
from jaxreward.rewards import opaque
from jaxreward.training import config as config_lib
from jaxreward.training.exits import ConfigError

FORMS = ("module:function", "jit:module:function")
IMAGE = (digits.SIDE, digits.SIDE, 1)
_SAMPLE = (jax.ShapeDtypeStruct(IMAGE, jnp.float32), jax.ShapeDtypeStruct((), jnp.int32))

Reward = Callable[[Array, Array], Array]
"""`(images [..., H, W, C], labels [...]) -> float32 [...]`, NaN where missing; labels broadcast."""


def is_own(value: str) -> bool:
    """Whether it names a function and not one of a study's own rewards."""
    return ":" in value


def check(config: ml_collections.ConfigDict, differentiating: Iterable[str] = ()) -> None:
    """Resolves `config.study.reward` and tries it: on real digits, or traced where it is of jax.

    One that gives a number for any digit may fail for others.

    Args:
      config: of a study.
      differentiating: the arms that need a gradient of the reward.

    Raises:
      ConfigError: naming the key, the value and what is allowed.
    """
    value, arms = config.study.reward, ", ".join(differentiating)
    if not value or not is_own(value):
        raise ConfigError(f"config.study.reward = {value!r}; allowed is {' or '.join(FORMS)}")
    if arms and not _of_jax(value):
        raise ConfigError(
            f"config.study.reward = {value!r} is of the host and has no gradient, but these arms "
            f"differentiate it: {arms}; allowed is {FORMS[1]}, a function of jax"
        )
    function = _resolve(value)
    if _of_jax(value):
        _trace(value, function, bool(arms))
    else:
        _try(value, function, config.seed)


def make(value: str) -> Reward:
    """The reward of batches that `value` names, after `check`."""
    function = _resolve(value)
    if _of_jax(value):
        score = _in_jit(function)
    else:
        ready = isinstance(function, opaque.HostReward)
        score = (function if ready else opaque.on_host(function, axes=(3, 0))).score

    def reward(images: Array, labels: Array) -> Array:
        labels = jnp.broadcast_to(labels, images.shape[:-3]).astype(jnp.int32)
        return score(jnp.clip(images, -1, 1), labels)

    return reward


def missing(rewards: Float[Array, "..."]) -> Float[Array, ""]:
    """How many there are that do not exist."""
    return jnp.sum(~jnp.isfinite(rewards), dtype=jnp.float32)


def carried(curve: Float[Array, "steps"]) -> Float[Array, "steps"]:
    """A curve whose steps without a reward repeat the one before; NaN until the first."""
    place = jnp.arange(len(curve), dtype=jnp.int32)
    return curve[jax.lax.cummax(jnp.where(jnp.isfinite(curve), place, 0))]


def _of_jax(value: str) -> bool:
    return value.startswith("jit:") and value.count(":") > 1


def _resolve(value: str) -> Any:
    """The function, or the `opaque.HostReward`; what its module does wrong is a ConfigError."""
    path = value.removeprefix("jit:") if _of_jax(value) else value
    try:
        found = config_lib.resolve(path)
    except (Exception, SystemExit) as error:
        kind = "" if isinstance(error, ConfigError) else f"{type(error).__name__}: "
        said = str(error).removeprefix(f"{path!r}: ")
        raise ConfigError(
            f"config.study.reward = {value!r} cannot be imported ({kind}{said}); allowed is "
            f"{' or '.join(FORMS)}"
        ) from error
    ready = isinstance(found, opaque.HostReward) and not _of_jax(value)
    own = found.function if ready else found
    if not callable(own):
        raise ConfigError(
            f"config.study.reward = {value!r} is of type {type(found).__name__}; allowed is a "
            "function (image, label) -> number"
        )
    try:
        inspect.signature(own).bind(None, None)
    except TypeError as error:
        raise ConfigError(
            f"config.study.reward = {value!r} does not take an image and a label ({error}); allowed "
            "is a function (image, label) -> number"
        ) from error
    except ValueError:
        pass  # one written in C may have no signature
    return found


def _try(value: str, function: Any, seed: int) -> None:
    """Raises ConfigError unless it gives a number for some real digit."""
    own = function
    if isinstance(function, opaque.HostReward):
        own = function.function
        try:
            jax.eval_shape(function.score, *_SAMPLE)
        except ValueError as error:
            raise ConfigError(
                f"config.study.reward = {value!r}: {error}; allowed is on_host(..., axes=(3, 0))"
            ) from error
    data = digits.load(seed).generator
    images, labels = np.asarray(data.images), np.asarray(data.labels)
    first = None
    for row in (int(np.argmax(labels == label)) for label in range(digits.CLASSES)):
        found = opaque.score_one(own, images[row].copy(), labels[row])
        if not found.cause:
            return
        first = first or found
    raise ConfigError(
        f"config.study.reward = {value!r} gives no number for any of ten real digits "
        f"({first.cause}: {first.detail}); allowed is a function (image, label) -> number"
    )


def _trace(value: str, function: Callable, gradient: bool) -> None:
    """Raises ConfigError unless jax can trace it, and differentiate it where it must."""
    own = lambda image, label: jnp.asarray(function(image, label))
    needed = "; allowed is a function of jax, (image, label) -> number"
    try:
        found = jax.eval_shape(own, *_SAMPLE)
        if found.shape == () and gradient:
            jax.eval_shape(jax.grad(lambda *sample: own(*sample).astype(jnp.float32)), *_SAMPLE)
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise ConfigError(
            f"config.study.reward = {value!r} cannot be traced ({said}){needed}"
        ) from error
    if found.shape != () or jnp.issubdtype(found.dtype, jnp.complexfloating):
        raise ConfigError(
            f"config.study.reward = {value!r} gives {found.dtype} of shape {found.shape}{needed}"
        )


def _in_jit(function: Callable) -> Reward:
    """A function of jax as a reward of batches, without gradient where it has none that is finite."""

    def plain(image: Array, label: Array) -> Array:
        value = jnp.asarray(function(image, label)).astype(jnp.float32)
        return jnp.where(jnp.isfinite(value), value, jnp.nan)

    def forward(image: Array, label: Array) -> tuple[Array, Array]:
        value, slope = jax.value_and_grad(plain)(image, label)
        whole = jnp.isfinite(value) & jnp.all(jnp.isfinite(slope))
        return value, jnp.where(whole, slope, 0.0)

    one = jax.custom_vjp(plain)
    one.defvjp(forward, lambda slope, pull: (pull * slope, None))

    def score(images: Array, labels: Array) -> Array:
        flat = images.reshape((-1, *IMAGE))
        return jax.vmap(one)(flat, labels.reshape(-1)).reshape(labels.shape)

    return score
