"""Judges that argue, then decide, under rewards of the verdict, of the argument, and a MetaRM.

An item has a sound argument, one of six, and a right verdict. The judge emits an argument, then a
verdict given the argument, and learns by GRPO.

- Table: one softmax for each item. Human critiques are wrong for some items. With `tied` the
  verdict follows from the argument, so that a human's wrong argument can bring a wrong verdict.
- Generalising: six aspects in which answer A leads B, and a query that says which aspect counts:
  its sign is the right verdict. The judge is a perceptron that starts as a judge who names the
  most salient aspect; some training items have a human critique; training verdicts are noisy.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float, Int

from experiments import studies
from jaxreward.evaluation.reward_sensitivity import correlation
from jaxreward.losses import pointwise
from jaxreward.losses.policy import average, policy_loss
from jaxreward.losses.regularization import kl_estimate
from jaxreward.networks import heads
from jaxreward.rewards import critiques
from jaxreward.rewards.learned import mlp_reward_model
from jaxreward.tasks import preference_draws
from jaxreward.training import check
from jaxreward.training.fit import fit, rows
from jaxreward.transforms import advantage
from jaxreward.types import make_signal

ARGUMENTS, QUERY = 6, 8
FEATURES = ARGUMENTS + QUERY
POLICY = heads.Perceptron((64,), ARGUMENTS)
VERDICT = heads.Perceptron((64,), 2)


class Items(NamedTuple):
    """Questions for the judge; `features` are those of the generalising judge only.

    Attributes:
      features: `[N, D]`.
      sound: the argument that is.
      named: the human's, wrong where the human is.
      right: the verdict.
      label: the verdict that training sees.
    """

    features: Float[Array, "N D"]
    sound: Int[Array, "N"]
    named: Int[Array, "N"]
    right: Int[Array, "N"]
    label: Int[Array, "N"]


class Rollouts(NamedTuple):
    """Arguments and verdicts, `[P, G]`."""

    argument: Array
    verdict: Array


def make(config: ml_collections.ConfigDict) -> studies.Study:
    """The study of `configs/rm_nlhf.py`."""
    own = config.study
    sizes = ("table_items", "table_steps", "steps", "batch", "tested", "start_steps", "looks",
             "cold_steps")  # fmt: skip
    rates = [f"{name}learning_rate" for name in ("", "table_", "meta_", "start_")]
    check.positive(config, *(f"study.{name}" for name in (*sizes, *rates)))
    check.at_least(config, "study.train_items", 2, "items with critiques and others")
    check.at_least(config, "study.group", 2, "a group baseline")
    check.in_range(config, "study.threshold", 0, 1)
    for name in ("kl", "meta_decay", "salience", *(f"arms.{arm}.weight" for arm in own.arms)):
        check.at_least(config, f"study.{name}", 0)
    for arm in (name for name in own.arms if own.arms[name].table):
        check.at_least(config, f"study.arms.{arm}.outcome", 0)
    check.divisible(config, "study.steps", own.looks, "study.looks")
    check.rate(config, "study.wrong_critiques", "study.wrong_labels", "study.start_errors")
    check.in_range(config, "study.with_critique", 0, 1, "()")
    check.divisible(config, "study.batch", 2, "half of it with critiques")

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        keys = jax.random.split(key, 3)
        found = {name: _table(keys[0], own, arm) for name, arm in own.arms.items() if arm.table}
        world = _world(keys[1], own)
        general = [name for name, arm in own.arms.items() if not arm.table]
        fields = ("weight", "all_human", "meta", "online")
        arms = {f: jnp.asarray([own.arms[n][f] for n in general], jnp.float32) for f in fields}
        measured = jax.vmap(lambda arm: _general(keys[2], own, world, arm))(arms)
        for i, name in enumerate(general):
            found[name] = {metric: values[i] for metric, values in measured.items()}
        return found

    return studies.Study(run, draw=draw)


# Group-relative learning of two decisions


def advantages(rewards: Float[Array, "P G"]) -> Float[Array, "P G"]:
    """GRPO's, by the deviation of the sample."""
    transform = advantage.grpo(ddof=1, epsilon=1e-6)
    signal, _ = transform.update(jax.random.key(0), make_signal(rewards), transform.init())
    return signal.advantages


def _loss(log_probs: Array, start: Array, weights: Array, kl: float) -> Array:
    """Of decisions `[P, G, 2]`, one update per rollout."""
    mask = jnp.ones(log_probs.shape, bool)
    old = jax.lax.stop_gradient(log_probs)
    loss, _ = policy_loss(log_probs, old, weights, mask, normalize="sequence")
    penalty, _ = average(kl_estimate(log_probs, start, mask), mask, normalize="sequence")
    return loss + kl * penalty


def _process(own, argument: Array, named: Array) -> Array:
    """Agreement of sets with one argument each."""
    one_hot = lambda x: jax.nn.one_hot(x, ARGUMENTS, dtype=bool)
    named = jnp.broadcast_to(named[:, None], argument.shape)
    agreement = critiques.argument_agreement(one_hot(argument), one_hot(named))
    return critiques.process_reward(agreement.f1, own.threshold)


def _update(optimizer, params: Any, opt_state: Any, grads: Any):
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
        updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


# Table


def _table(key: jax.Array, own, arm) -> dict[str, Array]:
    keys = jax.random.split(key, 3)
    items, implied = _table_items(keys[0], own)
    count = own.table_items
    shapes = {"argument": (count, ARGUMENTS), "verdict": (count, ARGUMENTS, 2)}
    params = {name: jnp.zeros(shape) for name, shape in shapes.items()}
    optimizer = optax.adam(own.table_learning_rate)

    def loss(params: Any, rollouts: Rollouts, weights: Array) -> Array:
        first = _picked(jax.nn.log_softmax(params["argument"]), rollouts.argument)
        rest = jax.nn.log_softmax(params["verdict"])[jnp.arange(count)[:, None], rollouts.argument]
        second = jnp.take_along_axis(rest, rollouts.verdict[..., None], axis=-1)[..., 0]
        second = jnp.zeros_like(second) if arm.tied else second
        log_probs = jnp.stack([first, second], axis=-1)
        uniform = -jnp.log(jnp.array([ARGUMENTS, 1.0 if arm.tied else 2.0]))
        return _loss(log_probs, jnp.broadcast_to(uniform, log_probs.shape), weights, own.kl)

    def step(state, i: Array):
        params, opt_state = state
        of = jax.random.split(jax.random.fold_in(keys[1], i))
        shape = (count, own.group)
        argument = jax.random.categorical(of[0], params["argument"][:, None], shape=shape)
        logits = params["verdict"][jnp.arange(count)[:, None], argument]
        verdict = jax.random.categorical(of[1], logits)
        if arm.tied:
            verdict = jnp.take_along_axis(implied, argument, axis=1)
        outcome = (verdict == items.label[:, None]).astype(jnp.float32)
        process = _process(own, argument, items.named)
        rewards = critiques.critique_reward(
            arm.outcome * outcome, process, weight=arm.weight, gate=arm.gate
        )
        grads = jax.grad(loss)(params, Rollouts(argument, verdict), advantages(rewards))
        return _update(optimizer, params, opt_state, grads), None

    state = (params, optimizer.init(params))
    (params, _), _ = jax.lax.scan(step, state, jnp.arange(own.table_steps))
    argument, verdict = jax.nn.softmax(params["argument"]), jax.nn.softmax(params["verdict"])
    if arm.tied:
        verdict = jax.nn.one_hot(implied, 2)
    return _exact(argument, verdict, items)


def _table_items(key: jax.Array, own) -> tuple[Items, Array]:
    """Items, and the verdict that each argument implies, `[N, A]`: the right one if sound."""
    keys = jax.random.split(key, 5)
    count = own.table_items
    sound = jax.random.randint(keys[0], (count,), 0, ARGUMENTS)
    right = jax.random.randint(keys[1], (count,), 0, 2)
    named = preference_draws.another(keys[2], sound, ARGUMENTS, own.wrong_critiques)
    implied = jax.random.randint(keys[3], (count, ARGUMENTS), 0, 2)
    implied = jnp.where(jnp.arange(ARGUMENTS)[None] == sound[:, None], right[:, None], implied)
    return Items(jnp.zeros((count, 0)), sound, named, right, right), implied


def _picked(log_probs: Float[Array, "P A"], choice: Int[Array, "P G"]) -> Float[Array, "P G"]:
    return jnp.take_along_axis(log_probs, choice, axis=1)


def _exact(argument: Array, verdict: Array, items: Items) -> dict[str, Array]:
    """Metrics from the distributions `[N, A]` and `[N, A, 2]`, against the truth."""
    right = jnp.take_along_axis(verdict, items.right[:, None, None], axis=2)[..., 0]
    sound = jax.nn.one_hot(items.sound, ARGUMENTS)
    joint = argument * right
    accuracy = jnp.mean(jnp.sum(joint, axis=1))
    unsound = jnp.mean(jnp.sum(joint * (1.0 - sound), axis=1))
    return {
        "accuracy": accuracy,
        "sound": jnp.mean(jnp.sum(argument * sound, axis=1)),
        "inconsistency": unsound / jnp.maximum(accuracy, 1e-6),
    }


# Generalising


class World(NamedTuple):
    """Training items, fresh ones, and the judge before reinforcement."""

    train: Items
    fresh: Items
    start: Any


def _world(key: jax.Array, own) -> World:
    keys = jax.random.split(key, 4)
    relevance = jax.random.normal(keys[0], (QUERY, ARGUMENTS))
    draw = lambda key, count: general_items(key, own, relevance, count)
    train = draw(keys[1], own.train_items)
    fresh = draw(keys[2], own.tested)
    return World(train, fresh, _start(keys[3], own, train))


def general_items(key: jax.Array, own, relevance: Array, count: int) -> Items:
    """Of six aspects and a query, whose relevance to them names the sound argument."""
    keys = jax.random.split(key, 3)
    leads = jax.random.normal(keys[0], (count, ARGUMENTS))
    query = jax.random.normal(keys[1], (count, QUERY))
    sound = jnp.argmax(query @ relevance, axis=1)
    right = (_picked(leads, sound[:, None])[:, 0] > 0).astype(jnp.int32)
    label = preference_draws.another(keys[2], right, 2, own.wrong_labels)
    return Items(jnp.concatenate([leads, query], axis=1), sound, sound, right, label)


def _start(key: jax.Array, own, items: Items) -> Any:
    """A judge imitating one who names the most salient aspect and decides by it, mostly."""
    keys = jax.random.split(key, 3)
    inputs = jnp.zeros((1, FEATURES)), jnp.zeros((1, FEATURES + 2 * ARGUMENTS))
    params = {"argument": POLICY.init(keys[0], inputs[0]), "verdict": VERDICT.init(keys[1], inputs[1])}
    leads = items.features[:, :ARGUMENTS]

    def sample(key: jax.Array):
        of = jax.random.split(key, 3)
        index = jax.random.randint(of[0], (own.batch,), 0, own.train_items)
        argument = jax.random.categorical(of[1], own.salience * jnp.abs(leads[index]))[:, None]
        verdict = (_picked(leads[index], argument) > 0).astype(jnp.int32)
        verdict = preference_draws.another(of[2], verdict, 2, own.start_errors)
        return items.features[index], Rollouts(argument, verdict)

    loss = lambda params, batch: -jnp.mean(_log_probs(params, *batch))
    optimizer = optax.adam(own.start_learning_rate)
    params, _ = fit(keys[2], params, loss, sample, optimizer, steps=own.start_steps)
    return params


def _verdict_logits(params: Any, x: Float[Array, "P D"], argument: Int[Array, "P G"]) -> Array:
    chosen = jax.nn.one_hot(argument, ARGUMENTS)
    x = jnp.broadcast_to(x[:, None], argument.shape + x.shape[-1:])
    inputs = jnp.concatenate([x, chosen, chosen * x[..., :ARGUMENTS]], axis=-1)
    return VERDICT.apply(params["verdict"], inputs)


def _log_probs(params: Any, x: Float[Array, "P D"], rollouts: Rollouts) -> Float[Array, "P G 2"]:
    first = jax.nn.log_softmax(POLICY.apply(params["argument"], x))
    second = jax.nn.log_softmax(_verdict_logits(params, x, rollouts.argument))
    second = jnp.take_along_axis(second, rollouts.verdict[..., None], axis=-1)[..., 0]
    return jnp.stack([_picked(first, rollouts.argument), second], axis=-1)


def _roll_out(key: jax.Array, own, params: Any, x: Float[Array, "P D"]) -> Rollouts:
    of = jax.random.split(key)
    logits = POLICY.apply(params["argument"], x)
    argument = jax.random.categorical(of[0], logits[:, None], shape=(x.shape[0], own.group))
    verdict = jax.random.categorical(of[1], _verdict_logits(params, x, argument))
    return Rollouts(argument, verdict)


def _distributions(params: Any, x: Float[Array, "P D"]) -> tuple[Array, Array]:
    every = jnp.broadcast_to(jnp.arange(ARGUMENTS)[None], (x.shape[0], ARGUMENTS))
    verdict = jax.nn.softmax(_verdict_logits(params, x, every))
    return jax.nn.softmax(POLICY.apply(params["argument"], x)), verdict


META = mlp_reward_model(ARGUMENTS * (QUERY + 1) + 2, (64,))


def meta_inputs(x: Float[Array, "P D"], rollouts: Rollouts) -> Float[Array, "N D"]:
    """The question, the critique and the verdict; never the human's critique or the label.

    Query and argument enter as their product, which attention would compute: a small perceptron
    does not find it in some hundred items.
    """
    leads, query = x[:, None, :ARGUMENTS], x[:, None, None, ARGUMENTS:]
    chosen = jax.nn.one_hot(rollouts.argument, ARGUMENTS)
    side = 2.0 * rollouts.verdict[..., None].astype(jnp.float32) - 1.0
    lead = jnp.sum(chosen * leads, axis=-1, keepdims=True)
    asked = (chosen[..., None] * query).reshape(chosen.shape[:2] + (-1,))
    inputs = jnp.concatenate([chosen, asked, lead * side, jnp.abs(lead)], axis=-1)
    return inputs.reshape(-1, inputs.shape[-1])


def _meta_loss(params: Any, batch) -> Array:
    inputs, target = batch
    return jnp.mean(pointwise.regression(META.score(params, inputs), target))


def _target(own, items: Items, rollouts: Rollouts) -> Array:
    outcome = (rollouts.verdict == items.label[:, None]).astype(jnp.float32)
    return critiques.meta_target(outcome, _process(own, rollouts.argument, items.named)).reshape(-1)


def _general(key: jax.Array, own, world: World, arm) -> dict[str, Array]:
    """One arm: half of every batch has human critiques, the other half has the MetaRM's or none."""
    keys = jax.random.split(key, 3)
    first = max(1, int(own.with_critique * own.train_items))
    split = lambda part: jax.tree.map(lambda x: x[part], world.train)
    human, other = split(slice(first)), split(slice(first, None))
    optimizer = optax.adam(own.learning_rate)
    of_meta = optax.adamw(own.meta_learning_rate, weight_decay=own.meta_decay)
    meta = _cold_start(keys[0], own, world.start, human)

    def step(state, i: Array):
        params, opt_state, meta, meta_state = state
        of = jax.random.split(jax.random.fold_in(keys[1], i), 3)
        halves = rows(human, of[0], own.batch // 2), rows(other, of[1], own.batch // 2)
        items = jax.tree.map(lambda *x: jnp.concatenate(x), *halves)
        rollouts = _roll_out(of[2], own, params, items.features)
        inputs, target = meta_inputs(items.features, rollouts), _target(own, items, rollouts)
        judged = own.batch // 2 * own.group
        grads = jax.grad(_meta_loss)(meta, (inputs[:judged], target[:judged]))
        new = _update(of_meta, meta, meta_state, grads)
        keep = lambda a, b: jnp.where(arm["online"] > 0, a, b)
        meta, meta_state = jax.tree.map(keep, new, (meta, meta_state))
        rewards = _rewards(own, arm, items, rollouts, META.score(meta, inputs))
        start = _log_probs(world.start, items.features, rollouts)
        loss = lambda p: _loss(
            _log_probs(p, items.features, rollouts), start, advantages(rewards), own.kl
        )
        params, opt_state = _update(optimizer, params, opt_state, jax.grad(loss)(params))
        return (params, opt_state, meta, meta_state), None

    def stretch(state, numbers: Array):
        state, _ = jax.lax.scan(step, state, numbers)
        return state, _meta_correlation(keys[2], own, state[0], state[2], world.fresh)

    state = (world.start, optimizer.init(world.start), meta, of_meta.init(meta))
    numbers = jnp.arange(own.steps).reshape(own.looks, -1)
    before = _meta_correlation(keys[2], own, world.start, meta, world.fresh)
    state, curve = jax.lax.scan(stretch, state, numbers)
    found = _exact(*_distributions(state[0], world.fresh.features), world.fresh)
    curve = jnp.concatenate([before[None], curve])
    return {**found, "meta_correlation": curve[-1], "meta_curve": curve}


def _cold_start(key: jax.Array, own, start: Any, human: Items) -> Any:
    """A MetaRM of the first judge's critiques."""
    of_init, of_fit = jax.random.split(key)

    def sample(key: jax.Array):
        of = jax.random.split(key)
        items = rows(human, of[0], own.batch // 2)
        rollouts = _roll_out(of[1], own, start, items.features)
        return meta_inputs(items.features, rollouts), _target(own, items, rollouts)

    optimizer = optax.adamw(own.meta_learning_rate, weight_decay=own.meta_decay)
    meta, _ = fit(of_fit, META.init(of_init), _meta_loss, sample, optimizer, steps=own.cold_steps)
    return meta


def _rewards(own, arm, items: Items, rollouts: Rollouts, prediction: Array) -> Array:
    """Of the batch; the first half of it has human critiques."""
    outcome = (rollouts.verdict == items.label[:, None]).astype(jnp.float32)
    process = _process(own, rollouts.argument, items.named)
    human = critiques.critique_reward(outcome, process, weight=arm["weight"])
    prediction = prediction.reshape(outcome.shape)
    by_meta = critiques.meta_reward(outcome, prediction, weight=arm["weight"] * arm["meta"])
    has_critique = (jnp.arange(own.batch) < own.batch // 2) | (arm["all_human"] > 0)
    return jnp.where(has_critique[:, None], human, by_meta)


def _meta_correlation(key: jax.Array, own, params: Any, meta: Any, items: Items) -> Array:
    """Of the MetaRM's prediction with the true total, on the judge's present critiques."""
    rollouts = _roll_out(key, own, params, items.features)
    truth = _target(own, items._replace(label=items.right, named=items.sound), rollouts)
    return correlation(META.score(meta, meta_inputs(items.features, rollouts)), truth)


def draw(config, found: studies.Found, results, axes) -> None:
    """Correlation of the MetaRM with the truth, mean over the seeds."""
    del results
    for arm, own in found.items():
        if "meta_curve" in own and config.study.arms[arm].meta:
            curve = own["meta_curve"].mean(0)
            axes.plot(range(0, config.study.steps + 1, config.study.steps // config.study.looks),
                      curve, label=arm)  # fmt: skip
    axes.set(xlabel="step", ylabel="correlation with the truth", title="MetaRM")
    axes.legend()
