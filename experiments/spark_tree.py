"""A tree with one rare branch that is better once its follow-up is learned (arXiv 2510.03222).

First choice: a default that pays half the time, a rare spark that pays when its follow-up, one of
three, is right, and a hundred choices of noise that pay a quarter of the time. Whether the spark is
still there when its follow-up has been learned depends on what protects it until then.
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

Params = dict[str, Array]


class Rollout(NamedTuple):
    """What was chosen, `[P, G, 2]` (the follow-up counts after the spark only), and its reward."""

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
    start = {
        "first": jnp.log(
            jnp.concatenate(
                [
                    jnp.array([1.0 - settings.spark - settings.noise, settings.spark]),
                    jnp.full((NOISE,), settings.noise / NOISE),
                ]
            )
        ),
        "second": jnp.zeros((FOLLOW_UPS,)),
    }
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
    pays = jnp.concatenate(
        [jnp.array([DEFAULT_PAYS]), second[:1], jnp.full((NOISE,), NOISE_PAYS, jnp.float32)]
    )
    return {
        "spark": first[1],
        "spark_early": sparks[min(40, settings.rollouts - 1)],
        "spark_wins": (first[1] > 0.5).astype(jnp.float32),
        "reward": jnp.sum(first * pays),
        "entropy": entropy(jax.nn.log_softmax(params["first"])),
        "spark_curve": sparks,
    }


def _sample(params: Params, key: jax.Array, settings) -> Rollout:
    shape, keys = (settings.groups, settings.group_size), jax.random.split(key, 3)
    a = jax.random.categorical(keys[0], params["first"], shape=shape)
    b = jax.random.categorical(keys[1], params["second"], shape=shape)
    luck = jax.random.uniform(keys[2], shape, jnp.float32)
    by_luck = jnp.where(a == 0, luck < DEFAULT_PAYS, luck < NOISE_PAYS)
    pays = jnp.where(a == 1, b == 0, by_luck).astype(jnp.float32)
    chain = advantage.grpo()
    advantages = chain.update(key, make_signal(pays), chain.init())[0].advantages
    mask = jnp.stack([jnp.ones(shape, bool), a == 1], axis=-1)
    taken = jnp.stack([a, b], axis=-1)
    return Rollout(taken, mask, _log_probs(params, taken), advantages)


def _log_probs(params: Params, taken: Int[Array, "P G 2"]) -> Float[Array, "P G 2"]:
    logs = [jax.nn.log_softmax(params[name]) for name in ("first", "second")]
    return jnp.stack([log[taken[..., i]] for i, log in enumerate(logs)], axis=-1)


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
    for i, name in enumerate(("first", "second")):
        shape = taken.shape[:2]
        spread = lambda leaf: jnp.broadcast_to(leaf, shape + leaf.shape)
        filtered = lp.filtered_proxy(jax.nn.log_softmax(proxy[name]))
        filtered = lp.Proxy(*(spread(leaf) for leaf in filtered))
        own = spread(jax.nn.log_softmax(params[name]))
        found.append(lp.proxy_scores(own, filtered, taken[..., i]))
    return lp.ProxyScores(*(jnp.stack(leaves, axis=-1) for leaves in zip(*found)))
