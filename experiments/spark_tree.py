"""A tree with one rare branch that is better once its follow-up is learned (arXiv 2510.03222).

First choice: a default that pays half the time, a rare spark that pays when its follow-up, one of
three, is right, and a hundred choices of noise that pay a quarter of the time. Whether the spark is
still there when its follow-up has been learned depends on what protects it until then.

With `study.every_follow_up` each first choice is followed by one of three, and pays only if that is
right: the default's is already learned, those of the noise are not, so that noise pays a twelfth at
the start.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int

from experiments.studies import Study
from jaxreward.losses import low_probability as lp
from jaxreward.losses.policy import policy_loss
from jaxreward.losses.regularization import entropy
from jaxreward.transforms import advantage
from jaxreward.types import make_signal

NOISE, FOLLOW_UPS = 100, 3
DEFAULT_PAYS, NOISE_PAYS = 0.5, 0.25
LEARNED = 4.0  # logit of the default's right follow-up, where it has one

Params = dict[str, Array]


class Rollout(NamedTuple):
    """What was chosen, `[P, G, 2]`, which of it counts, and its reward."""

    taken: Int[Array, "P G 2"]
    mask: Array
    log_probs: Float[Array, "P G 2"]
    advantages: Float[Array, "P G"]


def make_study(config: ml_collections.ConfigDict) -> Study:
    """The study of `config.study`: arms are changes of its settings."""
    settings = config.study

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        return {arm: _train(key, settings, settings.arms[arm]) for arm in settings.arms}

    def draw(config, found, results, axes):
        del config, results
        for number, (arm, own) in enumerate(found.items()):
            axes.plot(own["spark_curve"].mean(axis=0), label=arm, color=f"C{number % 10}")
        axes.set(xlabel="rollout", ylabel="probability of the spark, mean over seeds")
        axes.legend(fontsize="small", frameon=False)

    return Study(run, draw=draw)


def _train(key: jax.Array, settings, own) -> dict[str, Any]:
    start = _start(settings)
    knobs = {**settings.defaults.to_dict(), **own.to_dict()}

    def one(carry, step):
        params, proxy = carry
        rollout = _sample(params, jax.random.fold_in(key, step), settings)
        renew = step % knobs["proxy_every"] == 0
        proxy = jax.tree.map(lambda new, old: jnp.where(renew, new, old), params, proxy)
        parts = jax.tree.map(lambda x: x.reshape((settings.minibatches, -1) + x.shape[1:]), rollout)

        def update(params, part):
            grads = jax.grad(_loss)(params, proxy, part, knobs)
            rate = settings.learning_rate
            return jax.tree.map(lambda p, g: p - rate * g, params, grads), None

        params, _ = jax.lax.scan(update, params, parts)
        return (params, proxy), jax.nn.softmax(params["first"])[1]

    (params, _), sparks = jax.lax.scan(one, (start, start), jnp.arange(settings.rollouts))
    first, second = (jax.nn.softmax(params[name]) for name in ("first", "second"))
    if settings.every_follow_up:
        pays = _luck() * second[:, 0]
    else:
        pays = _luck().at[1].set(second[0, 0])
    return {
        "spark": first[1],
        "spark_early": sparks[min(40, settings.rollouts - 1)],
        "spark_wins": (first[1] > 0.5).astype(jnp.float32),
        "reward": jnp.sum(first * pays),
        "entropy": entropy(jax.nn.log_softmax(params["first"])),
        "spark_curve": sparks,
    }


def _start(settings) -> Params:
    """Logits of the first choice `[102]`, and of the follow-ups, one row or one for each `[., 3]`."""
    rest = jnp.full((NOISE,), settings.noise / NOISE)
    known = jnp.array([1.0 - settings.spark - settings.noise, settings.spark])
    rows = NOISE + 2 if settings.every_follow_up else 1
    second = jnp.zeros((rows, FOLLOW_UPS))
    if settings.every_follow_up:
        second = second.at[0, 0].set(LEARNED)
    return {"first": jnp.log(jnp.concatenate([known, rest])), "second": second}


def _luck() -> Float[Array, "102"]:
    """How often each first choice pays at best."""
    noise = jnp.full((NOISE,), NOISE_PAYS, jnp.float32)
    return jnp.concatenate([jnp.array([DEFAULT_PAYS, 1.0]), noise])


def _row(params: Params, first: Int[Array, "P G"]) -> Int[Array, "P G"]:
    """The row of the follow-ups after each first choice."""
    return first if params["second"].shape[0] > 1 else jnp.zeros_like(first)


def _sample(params: Params, key: jax.Array, settings) -> Rollout:
    shape, keys = (settings.groups, settings.group_size), jax.random.split(key, 3)
    a = jax.random.categorical(keys[0], params["first"], shape=shape)
    b = jax.random.categorical(keys[1], params["second"][_row(params, a)])
    lucky = jax.random.uniform(keys[2], shape, jnp.float32) < _luck()[a]
    counts = jnp.ones(shape, bool) if settings.every_follow_up else a == 1
    pays = (lucky & ((b == 0) | ~counts)).astype(jnp.float32)
    chain = advantage.grpo()
    advantages = chain.update(key, make_signal(pays), chain.init())[0].advantages
    mask = jnp.stack([jnp.ones(shape, bool), counts], axis=-1)
    taken = jnp.stack([a, b], axis=-1)
    return Rollout(taken, mask, _log_probs(params, taken), advantages)


def _log_probs(params: Params, taken: Int[Array, "P G 2"]) -> Float[Array, "P G 2"]:
    a, b = taken[..., 0], taken[..., 1]
    first, second = (jax.nn.log_softmax(params[name]) for name in ("first", "second"))
    return jnp.stack([first[a], second[_row(params, a), b]], axis=-1)


def _loss(params: Params, proxy: Params, own: Rollout, knobs: dict[str, Any]) -> Array:
    log_probs = _log_probs(params, own.taken)
    loss, _ = policy_loss(
        log_probs, own.log_probs, own.advantages, own.mask,
        clip_low=knobs["clip_low"], clip_high=knobs["clip_high"], normalize="token",
    )  # fmt: skip
    by_decision = jnp.broadcast_to(own.advantages[..., None], own.mask.shape)
    if knobs["coefficient"]:
        scores = _proxy_scores(params, proxy, own.taken)
        stop = jax.lax.stop_gradient
        chosen = lp.rare_decisions(
            stop(log_probs), scores.log_prob, by_decision, own.mask, share=knobs["share"]
        )
        pull = lp.protective_pull(log_probs, scores, chosen, knobs["form"])
        count = jnp.maximum(jnp.sum(own.mask, dtype=jnp.float32), 1.0)
        loss += knobs["coefficient"] * jnp.sum(pull) / count
    bonus = entropy(jax.nn.log_softmax(params["first"]))
    return loss - knobs["entropy_coefficient"] * bonus


def _proxy_scores(params: Params, proxy: Params, taken: Int[Array, "P G 2"]) -> lp.ProxyScores:
    found = []
    rows = (jnp.zeros_like(taken[..., 0]), _row(params, taken[..., 0]))
    for i, name in enumerate(("first", "second")):
        pick = lambda leaf: jnp.atleast_2d(leaf)[rows[i]]
        filtered = lp.filtered_proxy(pick(jax.nn.log_softmax(proxy[name])))
        own = pick(jax.nn.log_softmax(params[name]))
        found.append(lp.proxy_scores(own, filtered, taken[..., i]))
    return lp.ProxyScores(*(jnp.stack(leaves, axis=-1) for leaves in zip(*found)))
