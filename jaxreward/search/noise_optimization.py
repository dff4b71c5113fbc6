"""Optimising the initial noise of a frozen generator against rewards.

ReNO (arXiv 2406.04312) climbs the weighted sum of several rewards and a prior on the norm of the
noise, with the gradient of all clipped jointly, and keeps the best iterate. CARINOX (arXiv
2509.17458) clips the gradient of each reward on its own, weighs rewards by the prompt's category,
and repeats the climb from several noises.

All functions are for one prompt; `vmap` them over prompts. `generate` maps a noise to an image and
`losses` an image to `[M]` losses, one per reward and each the smaller the better; both are pure, so
what is random within them must come from a fixed key.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jaxreward.checks import Number, check_choice, check_number
from jaxreward.search.accounting import Spent, times

Generate = Callable[[Array], Array]
Losses = Callable[[Array], Array]

SELECT = ("weighted", "unweighted")


def nothing(image: Array) -> Float[Array, "0"]:
    """Watches nothing."""
    del image
    return jnp.zeros((0,), jnp.float32)


class Found(NamedTuple):
    """The best candidate of a search, and its course.

    Attributes:
      noise: of the best candidate.
      image: that the generator made of it.
      loss: by which it was the best; infinite where no candidate had a finite one, and then the
        candidate is the first.
      losses: of every candidate and reward, in the order in which they were made.
      norms: Euclidean norm of each candidate's noise.
      spent: counts of the search, Python ints.
      watched: what `watch` says of every candidate; no entries without it.
    """

    noise: Float[Array, "..."]
    image: Float[Array, "..."]
    loss: Float[Array, ""]
    losses: Float[Array, "*K N M"]
    norms: Float[Array, "*K N"]
    spent: Spent
    watched: Float[Array, "*K N W"]


def norm_prior(noise: Float[Array, "..."]) -> Float[Array, ""]:
    """`n^2/2 - (d - 1) log n`, the negative log-density of the norm `n` of `d` standard normals.

    Up to a constant, float32; smallest at `n = sqrt(d - 1)`. The whole array is one sample.
    """
    square = jnp.maximum(jnp.sum(jnp.square(noise.astype(jnp.float32))), 1e-24)
    return 0.5 * square - 0.5 * (noise.size - 1) * jnp.log(square)


def clip_norm(gradient: Float[Array, "..."], limit: Number) -> Float[Array, "..."]:
    """The gradient, shortened to norm `limit` where it is longer."""
    square = jnp.sum(jnp.square(gradient))
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
    return gradient * jnp.minimum(1.0, limit / (norm + 1e-6))


class Climb(NamedTuple):
    """Settings of a climb; the numbers may be traced.

    Attributes:
      steps: candidates made, >= 1; the first is the start itself.
      clip: largest norm of a step's gradient, > 0.
      prior: weight of `norm_prior`, >= 0.
      clip_each: clip the gradient of each reward, which then carries the prior, before their sum.
      select: "weighted" or "unweighted" sum of losses decides which candidate is the best; the
        prior takes no part.
    """

    steps: int = 50
    clip: Number = 0.1
    prior: Number = 0.01
    clip_each: bool = False
    select: str = "weighted"


def nesterov(
    learning_rate: Number = 5.0, momentum: Number = 0.9
) -> optax.GradientTransformation:
    """The optimiser of both papers: gradient descent with Nesterov's momentum."""
    return optax.sgd(learning_rate, momentum, nesterov=True)


def reno(
    noise: Float[Array, "..."],
    generate: Generate,
    losses: Losses,
    weights: Float[Array, "M"],
    settings: Climb = Climb(),
    optimizer: optax.GradientTransformation | None = None,
    *,
    watch: Losses = nothing,
) -> Found:
    """Reward-based noise optimisation from one noise.

    A gradient that is not finite, such as that of a missing reward, moves nothing: momentum and
    prior lead on, and with `clip_each` the other rewards.

    Args:
      noise: start, float32 of any shape; it counts as one sample.
      generate: noise to image.
      losses: image to `[M]` losses.
      weights: of the rewards.
      settings: of the climb.
      optimizer: default `nesterov()`.
      watch: image to `[W]` figures that are recorded and nothing else.

    Raises:
      ValueError: a setting out of range.
    """
    _check(settings)
    optimizer = nesterov() if optimizer is None else optimizer

    def candidate(noise: Array):
        image = generate(noise)
        return losses(image), image

    def step(carry: tuple, first: Array):
        noise, state, best = carry
        own, pull, image = jax.vjp(candidate, noise, has_aux=True)
        gradient = _gradient(noise, pull, weights, settings)
        best = _better(best, (_score(own, weights, settings.select), noise, image), first)
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(gradient, state, noise)
        seen = (own, _norm(noise), watch(image))
        return (optax.apply_updates(noise, change), state, best), seen

    shape = jax.eval_shape(generate, noise)
    best = (jnp.float32(jnp.inf), noise, jnp.zeros(shape.shape, shape.dtype))
    start = (noise, optimizer.init(noise), best)
    first = jnp.arange(settings.steps) == 0
    (_, _, best), (course, norms, seen) = jax.lax.scan(step, start, first)
    spent = _spent(settings, course.shape[-1])
    return Found(best[1], best[2], best[0], course, norms, spent, seen)


def carinox(
    noises: Float[Array, "K ..."],
    generate: Generate,
    losses: Losses,
    weights: Float[Array, "M"],
    settings: Climb = Climb(clip_each=True),
    optimizer: optax.GradientTransformation | None = None,
    *,
    as_released: bool = False,
    watch: Losses = nothing,
) -> Found:
    """The best candidate of climbs from several noises.

    Args:
      noises: the starts.
      generate: as in `reno`.
      losses: as in `reno`.
      weights: of the rewards for the prompt's category, see `search.reward_selection`.
      settings: of each climb.
      optimizer: default `nesterov()`.
      as_released: choose by the unweighted losses, as the authors' code does.
      watch: as in `reno`.
    """
    _check_count(noises)
    if as_released:
        settings = settings._replace(select="unweighted")

    def climb(noise: Array):
        own = reno(noise, generate, losses, weights, settings, optimizer, watch=watch)
        return own._replace(spent=Spent())

    found = jax.vmap(climb)(noises)
    best = jnp.argmin(found.loss)
    first = jax.tree.map(lambda leaf: leaf[best], (found.noise, found.image, found.loss))
    spent = times(_spent(settings, found.losses.shape[-1]), noises.shape[0])
    return Found(*first, found.losses, found.norms, spent, found.watched)


def best_of_n(
    noises: Float[Array, "N ..."],
    generate: Generate,
    losses: Losses,
    weights: Float[Array, "M"],
    *,
    select: str = "weighted",
    watch: Losses = nothing,
) -> Found:
    """The best of independent noises by the same losses: the baseline at equal budget."""
    check_choice("select", select, SELECT)
    _check_count(noises)

    def one(best: tuple, item: tuple[Array, Array]):
        noise, first = item
        image = generate(noise)
        own = losses(image)
        seen = (own, _norm(noise), watch(image))
        return _better(best, (_score(own, weights, select), noise, image), first), seen

    shape = jax.eval_shape(generate, noises[0])
    best = (jnp.float32(jnp.inf), noises[0], jnp.zeros(shape.shape, shape.dtype))
    first = jnp.arange(noises.shape[0]) == 0
    best, (course, norms, seen) = jax.lax.scan(one, best, (noises, first))
    spent = times(Spent(1, 1, course.shape[1]), noises.shape[0])
    return Found(best[1], best[2], best[0], course, norms, spent, seen)


def best_within(
    losses: Float[Array, "*K N M"], weights: Float[Array, "M"], budget: int
) -> tuple[Float[Array, ""], Int[Array, ""]]:
    """Smallest weighted loss among the first `budget` candidates of every climb.

    Returns:
      The loss, and its position in the flattened `[K, budget]` candidates, the first on ties. A NaN
      is never the smallest.

    Raises:
      ValueError: `budget` is not in `1 .. N`.
    """
    if not 1 <= budget <= losses.shape[-2]:
        raise ValueError(f"budget = {budget}; allowed is 1 to {losses.shape[-2]}")
    total = (losses @ weights)[..., :budget].reshape(-1)
    total = jnp.where(jnp.isnan(total), jnp.inf, total)
    best = jnp.argmin(total)
    return total[best], best.astype(jnp.int32)


def best_so_far(totals: Float[Array, "N"]) -> Int[Array, "N"]:
    """By number of candidates: position of the best among the first so many, the first on ties.

    A NaN is never the best.
    """
    totals = jnp.where(jnp.isnan(totals), jnp.inf, totals)
    least = jax.lax.cummin(totals)
    before = jnp.concatenate([jnp.full((1,), jnp.inf), least[:-1]])
    better = jnp.where(totals < before, jnp.arange(len(totals), dtype=jnp.int32), 0)
    return jax.lax.cummax(better)


def _spent(settings: Climb, rewards: int) -> Spent:
    """Of one climb; gradients that are clipped apart take a backward pass for each reward."""
    made = settings.steps
    return Spent(made, made, made * rewards, made * (rewards if settings.clip_each else 1))


def _gradient(noise: Array, pull: Callable, weights: Array, settings: Climb) -> Array:
    """Of the weighted losses and the prior, clipped."""
    prior = settings.prior * jax.grad(norm_prior)(noise)
    if not settings.clip_each:
        return clip_norm(_finite(pull(weights)[0]) + prior, settings.clip)
    each = jax.vmap(lambda cotangent: pull(cotangent)[0])(jnp.diag(weights))
    clipped = jax.vmap(lambda g: clip_norm(_finite(g) + prior, settings.clip))(each)
    return clip_norm(jnp.sum(clipped, axis=0), settings.clip)


def _finite(gradient: Array) -> Array:
    """0 in place of a gradient that is not finite, which would end the climb."""
    return jnp.where(jnp.all(jnp.isfinite(gradient)), gradient, 0.0)


def _score(losses: Array, weights: Array, select: str) -> Array:
    return jnp.dot(losses, weights) if select == "weighted" else jnp.sum(losses)


def _better(best: Any, new: Any, first: Array) -> Any:
    """The one with the smaller first entry; the older on ties, the new one if it is the first.

    NaN counts as infinite, so that it never wins.
    """
    score = jnp.where(jnp.isnan(new[0]), jnp.inf, new[0]).astype(jnp.float32)
    wins = first | (score < best[0])
    return jax.tree.map(lambda a, b: jnp.where(wins, b, a), best, (score, *new[1:]))


def _norm(noise: Array) -> Array:
    return jnp.sqrt(jnp.sum(jnp.square(noise)))


def _check_count(noises: Array) -> None:
    check_number("noises", noises.shape[0], lambda v: v >= 1, ">= 1 to choose from")


def _check(settings: Climb) -> None:
    if settings.steps < 1:
        raise ValueError(f"steps = {settings.steps}; allowed is >= 1")
    check_number("clip", settings.clip, lambda v: v > 0, "> 0")
    check_number("prior", settings.prior, lambda v: v >= 0, ">= 0")
    check_choice("select", settings.select, SELECT)
