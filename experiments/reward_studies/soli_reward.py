"""Win-tie reward models on items that were judged singly, and what optimisation makes of them.

Items are feature vectors. A gold reward, a random perceptron less a penalty far from the data,
says which pass (above its median); some labels are flipped. Reward models are trained on pairs
of passes against fails, with ties between passes, between fails, or without. Then each is
optimised: by best-of-n over candidates with heavy tails, and by a Gaussian policy with
group-relative advantages.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Bool, Float

from experiments import studies
from jaxreward import masked
from jaxreward.curation.item_pairs import draw_pairs
from jaxreward.evaluation import best_of_n
from jaxreward.losses import preference, reduction
from jaxreward.rewards.learned import mlp_reward_model
from jaxreward.tasks import preference_draws
from jaxreward.training import check
from jaxreward.training.fit import fit
from jaxreward.transforms import advantage
from jaxreward.types import make_signal

WIDTH = 12
FRESH, GROUP = 2000, 16


def make(config: ml_collections.ConfigDict) -> studies.Study:
    """The study of `configs/soli_reward.py`."""
    own = config.study
    sizes = ("examples", "hidden", "steps", "pairs", "best_of", "prompts", "policy_steps",
             "policy_window", "policy_groups")  # fmt: skip
    more = ("learning_rate", "policy_learning_rate", "policy_kl")
    check.positive(config, *(f"study.{name}" for name in (*sizes, *more)))
    check.divisible(config, "study.policy_steps", own.policy_window, "study.policy_window")
    for name in own.arms:
        for field in ("margin", "win_tie", "lose_tie", "tie_weight"):
            check.at_least(config, f"study.arms.{name}.{field}", 0)
    check.rate(config, "study.flips")
    names = list(own.arms)
    fields = ("margin", "win_tie", "lose_tie", "tie_weight")
    settings = {f: jnp.asarray([own.arms[n][f] for n in names], jnp.float32) for f in fields}

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        keys = jax.random.split(key, 5)
        gold = draw_gold(keys[0])
        items = jax.random.normal(keys[1], (own.examples, WIDTH))
        passes = preference_draws.turn_round(keys[2], gold(items) > 0, own.flips)
        train = lambda arm: _train(keys[3], own, items, passes, arm)
        found = jax.vmap(train)(settings)
        measured = jax.vmap(lambda params: _measure(keys[4], own, gold, params))(found)
        return {n: {k: v[i] for k, v in measured.items()} for i, n in enumerate(names)}

    return studies.Study(run, draw=draw)


def draw_gold(key: jax.Array):
    """A gold reward with median 0 and standard deviation 1 on standard normal items."""
    weights = jax.random.split(key, 4)
    first = jax.random.normal(weights[0], (WIDTH, 16)) / WIDTH**0.5
    second = jax.random.normal(weights[1], (16,)) / 4.0
    bias = jax.random.normal(weights[2], (1, 16))

    def raw(x: Float[Array, "B D"]) -> Float[Array, "B"]:
        far = jax.nn.relu(jnp.sqrt(jnp.mean(x**2, axis=-1)) - 1.2)
        return 1.5 * jnp.tanh(2.0 * x @ first + bias) @ second - 4.5 * far**2

    sample = raw(jax.random.normal(weights[3], (4000, WIDTH)))
    middle, scale = jnp.median(sample), jnp.std(sample)
    return lambda x: (raw(x) - middle) / scale


def _model(own):
    return mlp_reward_model(WIDTH, tuple(own.hidden), "relu")


def _train(key: jax.Array, own, items: Array, passes: Bool[Array, "N"], arm) -> Any:
    """The parameters of one arm: weights of the three kinds of pairs, margin, tie weight."""
    model = _model(own)
    of_init, of_fit = jax.random.split(key)

    def sample(key: jax.Array):
        keys = jax.random.split(key, 3)
        sides = ((passes, ~passes), (passes, passes), (~passes, ~passes))
        drawn = [draw_pairs(k, *side, own.pairs) for k, side in zip(keys, sides)]
        return jax.tree.map(lambda *x: jnp.concatenate(x), *drawn)

    kinds = jnp.stack([jnp.ones(()), arm["win_tie"], arm["lose_tie"]])
    of_kind = jnp.repeat(kinds, own.pairs)

    def loss(params: Any, pairs) -> Array:
        margins = model.score(params, items[pairs.first]) - model.score(params, items[pairs.second])
        labels = passes[pairs.first], passes[pairs.second]
        target, _ = preference.pass_fail_targets(*labels)
        losses = preference.win_tie(
            margins, target, margin=arm["margin"], tie_weight=arm["tie_weight"]
        )
        return reduction.mean(losses, pairs.weights * of_kind)

    optimizer = optax.adam(own.learning_rate)
    params, _ = fit(of_fit, model.init(of_init), loss, sample, optimizer, steps=own.steps)
    return params


def _measure(key: jax.Array, own, gold, params: Any) -> dict[str, Any]:
    keys = jax.random.split(key, 3)
    score = lambda x: _model(own).score(params, x)
    items = jax.random.normal(keys[0], (FRESH, WIDTH))
    scores, good = score(items), gold(items) > 0
    above = scores[:, None] > scores[None, :]
    decided = good[:, None] & ~good[None, :]
    centre, spread = masked.mean(scores, good), masked.std(scores, good)
    return {
        "accuracy": masked.mean(above.astype(jnp.float32), decided),
        "spread": spread,
        "log2_spread": jnp.log2(spread),
        "margin": centre - masked.mean(scores, ~good),
        "top_advantage": jnp.mean(jnp.max(advantages(scores.reshape(-1, GROUP)), axis=1)),
        "best_of_n_gold": _best_of_n(keys[1], own, gold, score),
        **_policy(keys[2], own, gold, score),
    }


def advantages(scores: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """Group-relative advantages, 0 in a group of equal scores."""
    transform = advantage.grpo()
    signal, _ = transform.update(jax.random.key(0), make_signal(scores), transform.init())
    return signal.advantages


def _best_of_n(key: jax.Array, own, gold, score) -> Array:
    """Mean gold of the best of `n` by score, where a tenth of the candidates is far out."""
    of_items, of_tails = jax.random.split(key)
    shape = (own.prompts, own.best_of)
    tails = jax.random.bernoulli(of_tails, 0.1, shape)
    candidates = jax.random.normal(of_items, shape + (WIDTH,))
    candidates = candidates * jnp.where(tails, 2.5, 1.0)[..., None]
    best = jnp.argmax(jax.vmap(score)(candidates), axis=1)
    chosen = jnp.take_along_axis(candidates, best[:, None, None], axis=1)[:, 0]
    return jnp.mean(gold(chosen))


def _policy(key: jax.Array, own, gold, score) -> dict[str, Array]:
    """A Gaussian policy, started on the data, under GRPO up to `policy_kl` nats from its start.

    Farther out its gold reward falls without end, whatever the reward model.
    """
    optimizer = optax.adam(own.policy_learning_rate)
    start = {"mean": jnp.zeros((1, WIDTH)), "log_std": jnp.zeros((1, WIDTH))}

    def step(state, i: Array):
        params, opt_state = state
        shape = (own.policy_groups * GROUP, WIDTH)
        noise = jax.random.normal(jax.random.fold_in(key, i), shape)
        actions = params["mean"] + jnp.exp(params["log_std"]) * noise
        weight = advantages(score(actions).reshape(-1, GROUP)).reshape(-1)

        def loss(params: Any) -> Array:
            z = (actions - params["mean"]) * jnp.exp(-params["log_std"])
            log_prob = jnp.sum(-0.5 * z**2 - params["log_std"], axis=-1)
            return -jnp.mean(weight * log_prob)

        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
            updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        apart = jnp.exp(2 * params["log_std"]) + params["mean"] ** 2 - 1 - 2 * params["log_std"]
        seen = (0.5 * jnp.sum(apart), jnp.mean(gold(actions)))
        return (optax.apply_updates(params, updates), opt_state), seen

    state = (start, optimizer.init(start))
    _, seen = jax.lax.scan(step, state, jnp.arange(own.policy_steps))
    kl, curve = (jnp.mean(x.reshape(-1, own.policy_window), axis=1) for x in seen)
    found = best_of_n.up_to_kl(kl, curve, own.policy_kl)
    return {
        "policy_gold": found.gold, "policy_drop": found.collapse, "policy_kl": found.kl,
        "kl_curve": kl, "policy_curve": curve,
    }  # fmt: skip


def draw(config, found: studies.Found, results, axes) -> None:
    """Gold reward of the policy against its KL, means over the seeds."""
    del results
    for arm, own in found.items():
        axes.plot(own["kl_curve"].mean(0), own["policy_curve"].mean(0), label=arm)
    axes.axvline(config.study.policy_kl, color="grey", linewidth=0.8)
    axes.set(xlabel="KL from the start, nats", ylabel="gold reward", title="GRPO on the reward model")
    axes.legend()
