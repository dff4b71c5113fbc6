"""Denoising networks for small images: a diffusion transformer, a U-Net and a perceptron.

All take a noisy image, a time in [0, 1] and a condition, and return an array shaped as the image;
what it stands for is up to the parameterization (`jaxreward.schedules`). The condition may be a
class, a prompt (tokens through a text encoder) and a guidance weight, any of them or none. Samples
that share time and condition, as those of a group do, have them encoded once.
"""

from typing import Any, Callable, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxreward.checks import check_choice, check_number
from jaxreward.networks import dense
from jaxreward.networks.perceptron import Perceptron, time_features
from jaxreward.schedules import for_rows

KINDS = ("transformer", "unet", "perceptron")
EMPTY = -1
"""The class that stands for none, and the token that pads a prompt."""


class Condition(NamedTuple):
    """What an image is asked to be; None where a network does not look.

    Attributes:
      labels: int32 class, `EMPTY` for none. Neither these nor tokens are checked in a program: a
        number that the network does not have may give NaN.
      tokens: int32, padded with `EMPTY`; a prompt of padding only is the null prompt.
      guidance: float32 weight for networks distilled with guidance (arXiv 2210.03142).
    """

    labels: Int[Array, "B"] | None = None
    tokens: Int[Array, "B L"] | None = None
    guidance: Float[Array, "B"] | None = None


class DiffusionConfig(NamedTuple):
    """Shape of a network.

    Attributes:
      height, width, channels: of the image.
      features: width of the network, divisible by `heads` and even.
      layers: transformer blocks; residual blocks at each resolution of the U-Net; hidden layers
        of the perceptron.
      heads: of the attention.
      patch: side of the transformer's patches; divides height and width.
      classes: number of classes, 0 for none.
      vocabulary: number of tokens, 0 for no prompt.
      prompt_length: `L`.
      guidance: whether a guidance weight is an input.
    """

    height: int = 8
    width: int = 8
    channels: int = 1
    features: int = 64
    layers: int = 2
    heads: int = 4
    patch: int = 2
    classes: int = 0
    vocabulary: int = 0
    prompt_length: int = 0
    guidance: bool = False


class Network(NamedTuple):
    """A network as pure functions.

    Attributes:
      init: `(key) -> params`.
      apply: `(params, x [B, H, W, C], time [R] in [0, 1], condition [R]) -> [B, H, W, C]`,
        float32; image `b` has the time and condition of row `b % R`.
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[[Any, Array, Array, Condition], Array]


def make_network(config: DiffusionConfig, kind: str = "transformer") -> Network:
    """A network, whose output is 0 everywhere at the start.

    Args:
      config: its shape.
      kind: "transformer" (DiT with adaptive norms, arXiv 2212.09748), "unet" (two resolutions,
        convolutions with the condition as scale and shift; even height and width) or "perceptron"
        (pixels, time and condition in one row: the fastest on a CPU).

    Raises:
      ValueError: an unknown kind or a size that does not fit.
    """
    check_choice("kind", kind, KINDS)
    _check(config, kind)
    module = dict(zip(KINDS, (DiffusionTransformer, UNet, DiffusionPerceptron)))[kind](config)

    def init(key: jax.Array) -> Any:
        x = jnp.zeros((1, config.height, config.width, config.channels), jnp.float32)
        return module.init(key, x, jnp.zeros((1,), jnp.float32), _any_condition(config))["params"]

    def apply(params: Any, x: Array, time: Array, condition: Condition) -> Array:
        _check_input(config, x, time, condition)
        return module.apply({"params": params}, x, time, condition)

    return Network(init, apply)


def null(condition: Condition) -> Condition:
    """The same without class and prompt; guidance stays."""
    empty = lambda leaf: None if leaf is None else jnp.full_like(leaf, EMPTY)
    return condition._replace(labels=empty(condition.labels), tokens=empty(condition.tokens))


def drop(key: jax.Array, condition: Condition, probability: Any) -> Condition:
    """The null condition for a random share of the batch, to learn both (arXiv 2207.12598)."""
    if not jax.tree.leaves(condition):
        return condition
    batch = jax.tree.leaves(condition)[0].shape[0]
    gone = jax.random.bernoulli(key, jnp.asarray(probability, jnp.float32), (batch,))

    def choose(leaf, empty):
        return jnp.where(gone.reshape((-1,) + (1,) * (leaf.ndim - 1)), empty, leaf)

    return jax.tree.map(choose, condition, null(condition))


def moving_average(average: Any, params: Any, decay: Any) -> Any:
    """`decay * average + (1 - decay) * params`, leaf by leaf.

    Raises:
      ValueError: a decay outside [0, 1].
    """
    check_number("decay", decay, lambda x: (x >= 0) & (x <= 1), "[0, 1]")
    return optax.incremental_update(params, average, 1.0 - decay)


class DiffusionTransformer(nn.Module):
    """Patches and prompt tokens in one sequence, adaptive norms from everything pooled."""

    config: DiffusionConfig

    @nn.compact
    def __call__(self, x: Array, time: Array, condition: Condition) -> Array:
        """Applies the network; shapes as in `Network`."""
        c = self.config
        text, visible, pooled = _Conditioning(c, name="conditioning")(time, condition)
        h, w, p = c.height // c.patch, c.width // c.patch, c.patch
        patches = x.reshape(-1, h, p, w, p, c.channels).transpose(0, 1, 3, 2, 4, 5)
        tokens = _dense(c.features, name="patches")(patches.reshape(x.shape[0], h * w, -1))
        position = self.param("position", _SMALL, (1, h * w, c.features))
        tokens = tokens + position
        if text is not None:
            tokens = jnp.concatenate([for_rows(text, x), tokens], axis=1)
            seen = jnp.ones((x.shape[0], h * w), bool)
            visible = jnp.concatenate([for_rows(visible, x), seen], axis=1)
        for i in range(c.layers):
            tokens = _Block(c.features, c.heads, name=f"block_{i}")(tokens, visible, pooled)
        shift, scale = _modulation(pooled, x, c.features, 2, "modulation")
        tokens = _norm(tokens[:, -h * w :]) * (1.0 + scale) + shift
        out = _dense(p * p * c.channels, kernel_init=nn.initializers.zeros, name="out")(tokens)
        out = out.reshape(-1, h, w, p, p, c.channels).transpose(0, 1, 3, 2, 4, 5)
        return out.reshape(x.shape)


class UNet(nn.Module):
    """Two resolutions with a skip connection, attention to the prompt at the lower one."""

    config: DiffusionConfig

    @nn.compact
    def __call__(self, x: Array, time: Array, condition: Condition) -> Array:
        """Applies the network; shapes as in `Network`."""
        c = self.config
        text, visible, pooled = _Conditioning(c, name="conditioning")(time, condition)
        high = _conv(c.features, "in")(x)
        for i in range(c.layers):
            high = _ResidualBlock(c.features, name=f"down_{i}")(high, pooled)
        low = _conv(2 * c.features, "halve", stride=2)(high)
        for i in range(c.layers):
            low = _ResidualBlock(2 * c.features, name=f"low_{i}")(low, pooled)
        if text is not None:
            places = low.reshape(low.shape[0], -1, low.shape[-1])
            places = places + _Attention(c.heads, name="prompt")(places, text, visible)
            low = places.reshape(low.shape)
        raised = jnp.repeat(jnp.repeat(low, 2, axis=1), 2, axis=2)
        high = jnp.concatenate([high, _conv(c.features, "double")(raised)], axis=-1)
        high = _conv(c.features, "merge")(high)
        for i in range(c.layers):
            high = _ResidualBlock(c.features, name=f"up_{i}")(high, pooled)
        zeros = nn.initializers.zeros
        return _conv(c.channels, "out", kernel_init=zeros)(nn.silu(_norm(high)))


class DiffusionPerceptron(nn.Module):
    """Hidden layers over pixels, waves of time and guidance, indicators of class and tokens."""

    config: DiffusionConfig

    @nn.compact
    def __call__(self, x: Array, time: Array, condition: Condition) -> Array:
        """Applies the network; shapes as in `Network`."""
        c = self.config
        parts = [_rows(x), time_features(time)]
        if c.classes:
            parts.append(jax.nn.one_hot(condition.labels, c.classes))  # zeros where EMPTY
        if c.vocabulary:
            parts.append(_rows(jax.nn.one_hot(condition.tokens, c.vocabulary)))
        if c.guidance:
            parts.append(_waves(1000.0 * condition.guidance, c.features))
        network = Perceptron((c.features,) * c.layers, x[0].size, zero_start=True, name="perceptron")
        parts = [for_rows(part, x) for part in parts]
        return network(jnp.concatenate(parts, axis=-1)).reshape(x.shape)


class TextEncoder(nn.Module):
    """Embeds the tokens and lets them see each other; padding is seen by nobody."""

    config: DiffusionConfig

    @nn.compact
    def __call__(self, tokens: Int[Array, "B L"]) -> tuple[Array, Array, Array]:
        """Features `[B, L, D]`, which are tokens `[B, L]`, and their mean `[B, D]`."""
        c = self.config
        visible = tokens >= 0
        x = nn.Embed(c.vocabulary, c.features, name="tokens")(jnp.maximum(tokens, 0))
        x = x + self.param("position", _SMALL, (1, c.prompt_length, c.features))
        x = x + _Attention(c.heads, name="attention")(_norm(x), _norm(x), visible)
        x = x + _dense(c.features)(nn.gelu(_dense(2 * c.features)(_norm(x))))
        weight = visible.astype(jnp.float32)[:, :, None]
        pooled = jnp.sum(x * weight, axis=1) / jnp.maximum(jnp.sum(weight, axis=1), 1.0)
        empty = self.param("empty", _SMALL, (1, c.features))
        some = jnp.any(visible, axis=1, keepdims=True)
        return x, visible, jnp.where(some, pooled, empty)


_SMALL = nn.initializers.normal(0.02)


class _Conditioning(nn.Module):
    """Prompt tokens (or None), which of them are there, and everything pooled into `[B, D]`."""

    config: DiffusionConfig

    @nn.compact
    def __call__(self, time: Array, condition: Condition):
        c = self.config
        embed = lambda name: _dense(c.features, name=name)
        pooled = embed("time")(_waves(1000.0 * time, c.features))
        text = visible = None
        if c.classes:
            rows = jnp.where(condition.labels < 0, c.classes, condition.labels)
            pooled = pooled + nn.Embed(c.classes + 1, c.features, name="classes")(rows)
        if c.vocabulary:
            text, visible, mean = TextEncoder(c, name="text")(condition.tokens)
            pooled = pooled + mean
        if c.guidance:
            # 1000 w, as LCM (arXiv 2310.04378) embeds it
            pooled = pooled + embed("guidance")(_waves(1000.0 * condition.guidance, c.features))
        return text, visible, _dense(c.features, name="mix")(nn.silu(pooled))


class _Block(nn.Module):
    """Self-attention and a feed-forward layer, gated by the condition (starts as identity)."""

    features: int
    heads: int

    @nn.compact
    def __call__(self, x: Array, visible: Array | None, pooled: Array) -> Array:
        adapted = _modulation(pooled, x, self.features, 6, "adapt")
        shift, scale, gate, shift2, scale2, gate2 = adapted
        y = _norm(x) * (1.0 + scale) + shift
        x = x + gate * _Attention(self.heads, name="attention")(y, y, visible)
        y = _norm(x) * (1.0 + scale2) + shift2
        y = _dense(self.features, name="down")(nn.gelu(_dense(4 * self.features, name="up")(y)))
        return x + gate2 * y


class _Attention(nn.Module):
    """Attention of `x [B, T, D]` to `source [R, L, E]`; 0 to a source without visible entry."""

    heads: int

    @nn.compact
    def __call__(self, x: Array, source: Array, visible: Array | None) -> Array:
        width = x.shape[-1]
        split = lambda y: y.reshape(y.shape[:2] + (self.heads, -1))
        q, k, v = (
            split(_dense(width, name=name)(y))
            for name, y in (("query", x), ("key", source), ("value", source))
        )
        out = _dense(width, name="out")
        k, v = for_rows(k, x), for_rows(v, x)
        if visible is None and v.shape == q.shape and v.shape[1] == 1:
            return out(v.reshape(x.shape))  # the softmax over one place is 1
        visible = None if visible is None else for_rows(visible, x)
        scores = jnp.einsum("bthd,blhd->bhtl", q, k) * (width // self.heads) ** -0.5
        if visible is not None:
            scores = jnp.where(visible[:, None, None, :], scores, -1e9)
        weights = dense.squeezed(jax.nn.softmax, scores)
        if visible is not None:  # nothing visible: softmax is uniform over padding
            weights = jnp.where(visible[:, None, None, :], weights, 0.0)
        mixed = jnp.einsum("bhtl,blhd->bthd", weights, v)
        return out(mixed.reshape(x.shape))


class _ResidualBlock(nn.Module):
    """Two convolutions; the condition scales and shifts between them."""

    features: int

    @nn.compact
    def __call__(self, x: Array, pooled: Array) -> Array:
        shift, scale = _modulation(pooled, x, self.features, 2, "adapt")
        y = _conv(self.features, "first")(nn.silu(_norm(x)))
        y = _norm(y) * (1.0 + scale[:, None]) + shift[:, None]
        return x + _conv(self.features, "second")(nn.silu(y))


def _norm(x: Array) -> Array:
    """Mean 0 and variance 1 along the last axis; adaptive scales and shifts come after it."""

    def rows(x: Array) -> Array:
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
        return centred * jax.lax.rsqrt(variance + 1e-6)

    return dense.squeezed(rows, x)


def _dense(features: int, **options: Any) -> dense.Dense:
    return dense.Dense(features, use_bias=True, **options)


def _conv(features: int, name: str, **options: Any) -> dense.Conv:
    return dense.Conv(features, name=name, **options)


def _modulation(pooled: Array, x: Array, features: int, count: int, name: str) -> list[Array]:
    """`count` arrays `[B, 1, features]` for the rows of `x`, 0 at the start."""
    layer = _dense(count * features, kernel_init=nn.initializers.zeros, name=name)
    parts = jnp.split(layer(nn.silu(pooled)), count, axis=-1)
    return [for_rows(part, x)[:, None] for part in parts]


def _rows(x: Array) -> Array:
    return x.reshape(x.shape[0], -1)


def _waves(values: Float[Array, "B"], features: int) -> Float[Array, "B D"]:
    """Sines and cosines of frequencies from 1 to 1e-4."""
    half = features // 2
    frequencies = jnp.exp(-jnp.log(1e4) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = values[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _any_condition(config: DiffusionConfig) -> Condition:
    zeros = lambda shape: jnp.zeros(shape, jnp.int32)
    return Condition(
        labels=zeros((1,)) if config.classes else None,
        tokens=zeros((1, config.prompt_length)) if config.vocabulary else None,
        guidance=jnp.zeros((1,), jnp.float32) if config.guidance else None,
    )


def _check(config: DiffusionConfig, kind: str) -> None:
    least = dict(classes=0, vocabulary=0, prompt_length=int(config.vocabulary > 0))
    for name in ("height", "width", "channels", "features", "layers", "heads", "patch", *least):
        bound = least.get(name, 1)
        check_number(name, getattr(config, name), lambda x, b=bound: x >= b, f">= {bound}")
    if config.features % 2 or config.features % config.heads:
        raise ValueError(
            f"features = {config.features} with {config.heads} heads; allowed are even multiples"
        )
    side = {"transformer": config.patch, "unet": 2, "perceptron": 1}[kind]
    if config.height % side or config.width % side:
        size = f"{config.height} x {config.width}"
        raise ValueError(f"image of {size}; allowed for {kind} are multiples of {side}")


def _check_input(config: DiffusionConfig, x: Array, time: Array, condition: Condition) -> None:
    image = (config.height, config.width, config.channels)
    if x.ndim != 4 or x.shape[1:] != image:
        raise ValueError(f"x is {_words(x.shape)}; allowed is B x {_words(image)}")
    if time.ndim != 1 or x.shape[0] % max(time.shape[0], 1):
        raise ValueError(
            f"time has shape {_words(time.shape)}; allowed is one axis that divides "
            f"{x.shape[0]}, the images"
        )
    wanted = dict(
        labels=(config.classes, ()),
        tokens=(config.vocabulary, (config.prompt_length,)),
        guidance=(config.guidance, ()),
    )
    for name, (needed, row) in wanted.items():
        leaf = getattr(condition, name)
        if needed and leaf is None:
            raise ValueError(f"condition.{name} is None; the network was built to read it")
        if needed and leaf.shape != time.shape + row:
            allowed = f"{_words(time.shape + row)}, a row for each time"
            raise ValueError(f"condition.{name} is {_words(leaf.shape)}; allowed is {allowed}")


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"
