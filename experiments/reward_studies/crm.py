"""Two reward models that filter each other's training pairs (CRM, arXiv 2505.10597).

Every arm is the same pair of networks on the same batches, with its own rule of what each is
trained on, so that gradient evaluations are equal; `double` is one network of about twice the
parameters. What is reported is the first network, and the mean score of the two.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.reward_studies import toy_mlp
from experiments.studies import Study
from jaxreward import channel as channels
from jaxreward import masked
from jaxreward.curation import peer_selection
from jaxreward.losses import preference
from jaxreward.tasks import preference_draws
from jaxreward.training import check

FILTERS = ("none", "self", "peer", "oracle")


class Pairs(NamedTuple):
    """Pairs of items, the first preferred as labelled.

    Attributes:
      first: features.
      second: features.
      flipped: whether the label is wrong.
      gap: of the gold rewards, absolute.
    """

    first: Float[Array, "J D"]
    second: Float[Array, "J D"]
    flipped: Bool[Array, "J"]
    gap: Float[Array, "J"]


class Arm(NamedTuple):
    """What an arm does.

    Attributes:
      filter: of `FILTERS`.
      order: of `peer_selection.ORDERS`, from the second epoch on.
      target: of a pair, given the noise rate.
      threshold: "batch" keeps a share of each batch, "epoch" what is below that quantile of the
        losses of the epoch before.
      assumed: what is added to the noise rate that the keep ratio assumes.
      width: factor of the hidden layers.
    """

    filter: str = "none"
    order: str = "random"
    target: Callable[[Array], Array] = lambda rate: jnp.ones_like(rate)
    threshold: str = "batch"
    assumed: float = 0.0
    width: float = 1.0


ARMS = {
    "all": Arm(),
    "double": Arm(width=1.5),
    "smoothed": Arm(target=lambda rate: preference.smoothed_target(jnp.ones_like(rate), rate)),
    "corrected": Arm(
        target=lambda rate: channels.correct(jnp.ones_like(rate), channels.symmetric(rate))
    ),
    "curriculum": Arm(order="pool"),
    "self": Arm("self"),
    "peer": Arm("peer"),
    "peer_sorted": Arm("peer", "sorted"),
    "peer_sorted_epoch": Arm("peer", "sorted", threshold="epoch"),
    "peer_pool": Arm("peer", "pool"),
    "peer_stratified": Arm("peer", "stratified"),
    "peer_less": Arm("peer", assumed=-0.1),
    "peer_more": Arm("peer", assumed=0.1),
    "oracle": Arm("oracle"),
}


def make(config: ml_collections.ConfigDict) -> Study:
    """The study.

    `config.study`: features, gold_width, hidden, pairs, test_pairs, batch, epochs, warm_up,
    pool_start, learning_rate, arms, and `settings`, each with rate and by_margin.
    """
    study = config.study
    _check(config)
    names = list(study.settings)

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        dials = [
            jnp.array([study.settings[name][field] for name in names], jnp.float32)
            for field in ("rate", "by_margin")
        ]
        results = {}
        for arm in study.arms:
            own = lambda rate, by_margin, arm=arm: _arm(key, ARMS[arm], rate, by_margin, study)
            found = jax.vmap(own)(*dials)
            for i, name in enumerate(names):
                results[f"{name}/{arm}"] = {metric: v[i] for metric, v in found.items()}
        return results

    return Study(run, draw=_draw)


def _check(config: ml_collections.ConfigDict) -> None:
    names = ("features", "gold_width", "hidden", "test_pairs", "batch", "epochs", "warm_up",
             "learning_rate")  # fmt: skip
    check.positive(config, *(f"study.{name}" for name in names))
    check.at_least(config, "study.pairs", config.study.batch, "one batch, study.batch")
    check.in_range(config, "study.pool_start", 0, 1, "(]")
    check.required(config, "study.arms")
    check.choice(config, "study.arms", ARMS)
    for name in config.study.settings:
        check.in_range(config, f"study.settings.{name}.rate", 0, 0.5, "[)")
        check.in_range(config, f"study.settings.{name}.by_margin", 0, 1)


def _data(key: jax.Array, rate: Array, by_margin: Array, study) -> tuple[Pairs, Pairs]:
    """Training pairs with wrong labels, and clean ones to test on; the same for all arms."""
    keys = jax.random.split(jax.random.fold_in(key, 0), 3)
    gold = toy_mlp.init(keys[0], (study.features, study.gold_width, study.gold_width, 1))
    train = make_pairs(keys[1], gold, study.pairs, rate, by_margin)
    return train, make_pairs(keys[2], gold, study.test_pairs, 0.0, 0.0)


def make_pairs(
    key: jax.Array,
    gold: toy_mlp.Params,
    count: int,
    rate: Array | float,
    by_margin: Array | float,
) -> Pairs:
    """Pairs of standard normal items, the gold preference flipped in some.

    With probability `rate`; with `by_margin` 1 instead of 0, with `min(2 rate (1 - F(gap)), 1)`,
    where F is the share of pairs with a smaller gap: close pairs most.
    """
    keys = jax.random.split(key)
    features = gold[0][0].shape[0]
    one, other = jax.random.normal(keys[0], (2, count, features))
    gap = toy_mlp.apply(gold, one)[:, 0] - toy_mlp.apply(gold, other)[:, 0]
    rank = jnp.argsort(jnp.argsort(jnp.abs(gap))).astype(jnp.float32) / count
    chance = rate * (1.0 - by_margin + by_margin * 2.0 * (1.0 - rank))
    better = gap >= 0
    labels = preference_draws.turn_round(keys[1], better, jnp.minimum(chance, 1.0))
    first, second = preference_draws.preferred_first(labels, one, other)
    return Pairs(first, second, labels ^ better, jnp.abs(gap))


# Training


def margins(params: toy_mlp.Params, pairs: Pairs) -> Float[Array, "J"]:
    """Of one network, in the direction of the labels."""
    score = lambda x: toy_mlp.apply(params, x)[:, 0]
    return score(pairs.first) - score(pairs.second)


both = jax.vmap(margins, (0, None))  # of the two networks


class Progress(NamedTuple):
    """Sums over the batches of an epoch."""

    kept: Float[Array, ""]
    kept_wrong: Float[Array, ""]


def selected(
    losses: Float[Array, "2 B"],
    flipped: Bool[Array, "B"],
    arm: Arm,
    keep: Array,
    bound: Float[Array, "2"],
) -> Bool[Array, "2 B"]:
    """Which pairs each network is trained on.

    Args:
      losses: of both networks, before the update.
      flipped: for the oracle.
      arm: what to do.
      keep: share.
      bound: largest loss of each network, for the threshold "epoch".
    """
    if arm.filter == "none":
        return jnp.ones(losses.shape, bool)
    if arm.filter == "oracle":
        return jnp.broadcast_to(~flipped[None], losses.shape)
    if arm.threshold == "epoch":
        small = losses <= bound[:, None]
        return small[::-1] if arm.filter == "peer" else small
    first, second = peer_selection.peer_exchange(losses[0], losses[1], keep)
    exchanged = jnp.stack([first, second])
    return exchanged if arm.filter == "peer" else exchanged[::-1]


def _arm(key, arm: Arm, rate: Array, by_margin: Array, study) -> dict[str, Any]:
    """Trains the two networks and measures them."""
    train, test = _data(key, rate, by_margin, study)
    hidden = tuple(int(round(arm.width * width)) for width in study.hidden)
    keys = jax.random.split(jax.random.fold_in(key, 1))
    init = lambda k: toy_mlp.init(k, (study.features, *hidden, 1))
    params = jax.vmap(init)(jax.random.split(keys[0]))
    optimizer = optax.adam(study.learning_rate)
    assumed = jnp.clip(rate + arm.assumed, 0.0, 0.95)
    steps = study.pairs // study.batch

    def epoch(carry, number: Array):
        state, before = carry  # margins of all pairs at the end of the epoch before
        time = number.astype(jnp.float32)
        order = _order(jax.random.fold_in(keys[1], number), arm, before, number, study)
        keep = lambda time: peer_selection.keep_ratio(time, assumed, study.warm_up)
        bound = jnp.quantile(jax.nn.softplus(-before), keep(time), axis=1)
        take = lambda state, inputs: _step(
            state, inputs, train, arm, arm.target(rate), bound, optimizer
        )
        batches = order[: steps * study.batch].reshape(steps, study.batch)
        ratios = jax.vmap(keep)(time + jnp.arange(steps, dtype=jnp.float32) / steps)
        state, progress = jax.lax.scan(take, state, (batches, ratios))
        after = both(state[0], train)
        return (state, after), (jax.nn.softplus(-after[0]), progress)

    start = ((params, jax.vmap(optimizer.init)(params)), both(params, train))
    (state, _), history = jax.lax.scan(epoch, start, jnp.arange(study.epochs))
    return _measure(state[0], test, *history, train)


def _order(key, arm: Arm, before: Float[Array, "2 J"], epoch: Array, study) -> Int[Array, "J"]:
    """Random in the first epoch; then the arm's, a pool growing to everything."""
    growth = epoch.astype(jnp.float32) / max(study.epochs - 1, 1)
    easiness = jnp.mean(before, axis=0)
    own = peer_selection.epoch_order(
        key,
        easiness,
        order=arm.order,
        batch=study.batch,
        fraction=study.pool_start + (1.0 - study.pool_start) * growth,
    )
    first = peer_selection.epoch_order(key, easiness, order="random", batch=study.batch)
    return jnp.where(epoch > 0, own, first)


def _step(state, inputs, train: Pairs, arm: Arm, target, bound, optimizer):
    """One update of both networks, on what they selected before it."""
    params, opt_state = state
    index, keep = inputs
    batch = jax.tree.map(lambda leaf: leaf[index], train)
    losses = jax.nn.softplus(-both(params, batch))
    kept = selected(losses, batch.flipped, arm, keep, bound)
    weights = kept.astype(jnp.float32)

    def loss(params: toy_mlp.Params, weights: Array) -> Array:
        targets = jnp.broadcast_to(target, weights.shape)
        return preference.pair_loss(margins(params, batch), targets, weights)

    grads = jax.vmap(jax.grad(loss))(params, weights)
    with jax.numpy_dtype_promotion("standard"):
        updates, new_state = jax.vmap(optimizer.update)(grads, opt_state, params)
    trained = optax.apply_updates(params, updates)
    some = jnp.any(kept, axis=1)
    skip = lambda new, old: jnp.where(some.reshape((2,) + (1,) * (new.ndim - 1)), new, old)
    state = jax.tree.map(skip, (trained, new_state), (params, opt_state))
    return state, Progress(jnp.sum(weights), jnp.sum(kept & batch.flipped[None], dtype=jnp.float32))


# What is measured


def _measure(
    params, test: Pairs, losses: Float[Array, "E J"], progress: Progress, train: Pairs
) -> dict[str, Array]:
    found = both(params, test)
    close = test.gap < jnp.quantile(test.gap, 1 / 3)
    right = lambda d, mask=True: masked.mean(d > 0, jnp.broadcast_to(mask, d.shape))
    difficulty = peer_selection.pair_difficulty(losses)
    hardest = peer_selection.thirds(difficulty.hardness) == 2
    kept = jax.tree.map(lambda sums: jnp.sum(sums[-1]), progress)
    return {
        "accuracy": right(found[0]),
        "accuracy_mean_of_two": right(jnp.mean(found, axis=0)),
        "accuracy_close_pairs": right(found[0], close),
        "kept_wrong": kept.kept_wrong / kept.kept,
        "hardest_wrong": masked.mean(train.flipped, hardest),
    }


def _draw(config, found, results, axes) -> None:
    """Accuracy against the share of wrong labels among the kept."""
    del found
    for name in config.study.settings:
        own = [results[f"{name}/{arm}"] for arm in config.study.arms]
        axes.plot(
            [arm["kept_wrong"]["mean"] for arm in own],
            [arm["accuracy"]["mean"] for arm in own],
            "o",
            label=name,
        )
    axes.set_xlabel("wrong labels among the pairs trained on, last epoch")
    axes.set_ylabel("accuracy on clean pairs")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)
