"""A double mixture of experts for rewards, against one model and ensembles, on feature vectors.

The gold reward of a category is a weighted sum of capabilities. Overall labels are noisy; labels
of single capabilities come from a judge asked in both orders, and are cleaner. Every network is a
perceptron on the response's features and the query's; experts are copies of the phase-1 network.
All networks are chosen by the loss on held-out labels of their own kind.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float

from experiments import studies
from jaxreward.losses import preference
from jaxreward.networks import experts, heads
from jaxreward.tasks import preference_draws
from jaxreward.training import check
from jaxreward.training.fit import fit_best, rows

FEATURES, QUERY = 16, 4
TRUNK = heads.Perceptron((32,), 32)
HEAD = heads.Perceptron()


class World(NamedTuple):
    """The truth of `C` categories with `P` capabilities each."""

    directions: Float[Array, "C P D"]
    weights: Float[Array, "C P"]
    centres: Float[Array, "C Q"]


class Pairs(NamedTuple):
    """Pairs of responses to `N` queries of one category; `labels` of one kind, or of `P`."""

    items: Float[Array, "N 2 E"]
    labels: Float[Array, "N *P"]
    weights: Float[Array, "N *P"]


def make(config: ml_collections.ConfigDict) -> studies.Study:
    """The study of `configs/dmoerm.py`."""
    own = config.study
    sizes = ("categories", "capabilities", "members", "tested", "best_of", "prompts", "batch")
    more = ("steps", "every", "learning_rate")
    check.positive(config, *(f"study.{name}" for name in (*sizes, *more)))
    check.in_range(config, "study.every", 1, own.steps)
    check.at_least(config, "study.judged", 2, "a part to select by")
    check.at_least(config, "study.overall", 4, "two phases with a part to select by each")
    check.rate(config, "study.flips", "study.judge_error", "study.bad_judge_error")
    part = 2 / own.overall  # of which one pair is trained on and one selects
    check.in_range(config, "study.phase_one", part, 1 - part)
    check.in_range(config, "study.held_out", 0, 1, "()")

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        keys = jax.random.split(key, 12)
        world = _world(keys[0], own)
        overall = _overall(keys[1], own, world)
        judged = _judged(keys[2], own, world, own.judge_error)
        rewards = {}
        rewards["single"] = _single(keys[4], own, _pooled(overall))
        rewards["ensemble"] = _ensemble(keys[5], own, _pooled(overall))
        both = _with_judged(keys[11], overall, judged)
        rewards["single_with_judged"] = _single(keys[6], own, both)
        router, right = _router(keys[3], own, world)
        bad = _judged(keys[8], own, world, own.bad_judge_error)
        for name, reward in _by_category(keys[7], own, overall, (judged, bad)).items():
            rewards[name] = _routed(router, reward)
        rewards["inner_only"] = _inner_only(keys[9], own, overall, judged)
        measured = {n: _measure(keys[10], own, world, reward) for n, reward in rewards.items()}
        measured["dmoerm"]["router_accuracy"] = right
        return measured

    return studies.Study(run)


# Data


def _world(key: jax.Array, own) -> World:
    keys = jax.random.split(key, 2)
    directions = jax.random.normal(keys[0], (own.categories, own.capabilities, FEATURES))
    weights = jax.nn.softmax(jax.random.normal(keys[1], (own.categories, own.capabilities)))
    return World(directions / FEATURES**0.5, weights, jnp.eye(own.categories, QUERY))


def _draw(key: jax.Array, world: World, category: Array, count: int):
    """Items `[N, 2, E]` and the scores of their capabilities `[N, 2, P]`."""
    of_query, of_items = jax.random.split(key)
    query = world.centres[category][None] + 0.35 * jax.random.normal(of_query, (count, QUERY))
    x = jax.random.normal(of_items, (count, 2, FEATURES))
    items = jnp.concatenate([x, jnp.broadcast_to(query[:, None], (count, 2, QUERY))], axis=-1)
    return items, _capabilities(world, category, x)


def _capabilities(world: World, category: Array, x: Array) -> Array:
    return jnp.tanh(1.5 * jnp.einsum("...d,pd->...p", x, world.directions[category]))


def _overall(key: jax.Array, own, world: World) -> Pairs:
    """`[C, N]` pairs with one noisy label each."""

    def one(key: jax.Array, category: Array) -> Pairs:
        keys = jax.random.split(key)
        items, scores = _draw(keys[0], world, category, own.overall)
        better = jnp.diff(scores @ world.weights[category], axis=1)[:, 0] < 0
        labels = preference_draws.turn_round(keys[1], better, own.flips).astype(jnp.float32)
        return Pairs(items, labels, jnp.ones(labels.shape))

    return jax.vmap(one)(jax.random.split(key, own.categories), jnp.arange(own.categories))


def _judged(key: jax.Array, own, world: World, error: float) -> Pairs:
    """`[C, N]` pairs with a label of every capability, where the judge agrees with itself."""

    def one(key: jax.Array, category: Array) -> Pairs:
        keys = jax.random.split(key, 3)
        items, scores = _draw(keys[0], world, category, own.judged)
        better = scores[:, 0] > scores[:, 1]
        first, second = (preference_draws.turn_round(k, better, error) for k in keys[1:])
        kept = first == second
        return Pairs(items, first.astype(jnp.float32), kept.astype(jnp.float32))

    return jax.vmap(one)(jax.random.split(key, own.categories), jnp.arange(own.categories))


def _pooled(pairs: Pairs) -> Pairs:
    """`[C, N]` as one list, categories in turn (so that any part of it has all of them)."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape((-1,) + x.shape[2:]), pairs)


def _with_judged(key: jax.Array, overall: Pairs, judged: Pairs) -> Pairs:
    """The overall pairs and every judgement as if it were an overall label, in random order."""
    flat = _pooled(judged)
    count = flat.labels.shape[1]
    more = Pairs(
        jnp.repeat(flat.items, count, axis=0), flat.labels.reshape(-1), flat.weights.reshape(-1)
    )
    joined = jax.tree.map(lambda *x: jnp.concatenate(x), _pooled(overall), more)
    order = jax.random.permutation(key, joined.labels.shape[0])
    return jax.tree.map(lambda x: x[order], joined)


def _split(pairs: Pairs, count: int) -> tuple[Pairs, Pairs]:
    """The first pairs and the others."""
    return tuple(jax.tree.map(lambda x: x[p], pairs) for p in (slice(count), slice(count, None)))


# Networks


def _init(key: jax.Array) -> dict[str, Any]:
    of_trunk, of_head = jax.random.split(key)
    trunk = TRUNK.init(of_trunk, jnp.zeros((1, FEATURES + QUERY)))["params"]
    return {"trunk": trunk, "head": HEAD.init(of_head, jnp.zeros((1, 32)))["params"]}


def _state(params: Any, items: Array) -> Array:
    return jax.nn.leaky_relu(TRUNK.apply({"params": params["trunk"]}, items))


def _score(params: Any, items: Array) -> Array:
    return HEAD.apply({"params": params["head"]}, _state(params, items))[..., 0]


def _train(key: jax.Array, own, params: Any, score, pairs: Pairs) -> Any:
    """The parameters with the least loss on the first pairs, trained on the others."""
    held = max(1, int(own.held_out * pairs.labels.shape[0]))
    test, data = _split(pairs, held)

    def loss(params: Any, batch: Pairs) -> Array:
        scores = score(params, batch.items)
        return preference.pair_loss(scores[:, 0] - scores[:, 1], batch.labels, batch.weights)

    sample = lambda key: rows(data, key, own.batch)
    trained, _ = fit_best(
        key, params, loss, sample, optax.adam(own.learning_rate),
        validate=lambda params: loss(params, test), steps=own.steps, every=own.every,
    )  # fmt: skip
    return trained


def _single(key: jax.Array, own, pairs: Pairs):
    of_init, of_fit = jax.random.split(key)
    params = _train(of_fit, own, _init(of_init), _score, pairs)
    return lambda items: _score(params, items)


def _ensemble(key: jax.Array, own, pairs: Pairs):
    """The mean of members that differ by their start and the order of the data."""

    def one(key: jax.Array) -> Any:
        of_init, of_fit = jax.random.split(key)
        return _train(of_fit, own, _init(of_init), _score, pairs)

    members = jax.vmap(one)(jax.random.split(key, own.members))
    return lambda items: jnp.mean(jax.vmap(lambda params: _score(params, items))(members), axis=0)


def _router(key: jax.Array, own, world: World):
    """Logits of the categories from the query, and their accuracy on fresh queries."""
    network = heads.Perceptron((16,), own.categories)
    keys = jax.random.split(key, 4)

    def queries(key: jax.Array, count: int):
        draws = jax.random.split(key)
        label = jax.random.randint(draws[0], (count,), 0, own.categories)
        return world.centres[label] + 0.35 * jax.random.normal(draws[1], (count, QUERY)), label

    def loss(params: Any, batch) -> Array:
        logits = network.apply(params, batch[0])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]))

    data, test = queries(keys[0], own.overall), queries(keys[1], own.tested)
    held = queries(keys[3], 200)
    params, _ = fit_best(
        keys[2], network.init(keys[2], data[0]), loss, lambda k: rows(data, k, own.batch),
        optax.adam(own.learning_rate), validate=lambda p: loss(p, held),
        steps=own.steps, every=own.every,
    )  # fmt: skip
    logits = lambda items: network.apply(params, items[..., FEATURES:])
    right = jnp.argmax(network.apply(params, test[0]), axis=-1) == test[1]
    return logits, jnp.mean(right, dtype=jnp.float32)


def _routed(logits, reward):
    """One reward from those of all categories, `[C, *]`, by the router."""

    def routed(items: Array) -> Array:
        flat = items.reshape(-1, items.shape[-1])
        return experts.route(reward(flat), logits(flat)).reshape(items.shape[:-1])

    return routed


# The phases


def _by_category(key: jax.Array, own, overall: Pairs, judges: tuple[Pairs, Pairs]):
    """Rewards `[C, *]` of the arms whose networks belong to a category."""
    keys = jax.random.split(key, (own.categories, 2))
    plain = jax.vmap(lambda k, pairs: _train(k[1], own, _init(k[0]), _score, pairs))(keys, overall)
    phases = jax.vmap(lambda k, o, j: _phases(k[0], own, o, j))
    judged = jax.tree.map(lambda *x: jnp.stack(x), *judges)
    good, bad = _unstack(jax.vmap(lambda j: phases(keys, overall, j))(judged))

    def each(read, params):
        return lambda items: jax.vmap(lambda own: read(own, items))(params)

    from_scores = lambda p, items: _from_scores(p["linear"], p, items)
    return {
        "outer_only": each(_score, plain),
        "without_phase_2": each(lambda p, items: _score(p["base"], items), good),
        "without_phase_3": each(lambda p, items: jnp.mean(_scores(p, items), axis=-1), good),
        "dmoerm": each(from_scores, good),
        "dmoerm_states": each(lambda p, items: _from_states(p["aggregator"], p, items), good),
        "bad_judge": each(from_scores, bad),
    }


def _unstack(tree: Any) -> list[Any]:
    return [jax.tree.map(lambda x: x[index], tree) for index in range(2)]


def _inner_only(key: jax.Array, own, overall: Pairs, judged: Pairs):
    """One set of experts for all categories."""
    params = _phases(key, own, _pooled(overall), _pooled(judged))
    return lambda items: _from_scores(params["linear"], params, items)


def _phases(key: jax.Array, own, overall: Pairs, judged: Pairs) -> dict[str, Any]:
    """Phase 1, the base; phase 2, an expert for each capability; phase 3, their aggregation."""
    keys = jax.random.split(key, 6)
    first = int(own.phase_one * overall.labels.shape[0])
    early, late = _split(overall, first)
    base = _train(keys[0], own, _init(keys[1]), _score, early)

    def expert(key: jax.Array, labels: Array, weights: Array) -> Any:
        return _train(key, own, base, _score, Pairs(judged.items, labels, weights))

    of_experts = jax.random.split(keys[2], judged.labels.shape[1])
    tuned = jax.vmap(expert, in_axes=(0, 1, 1))(of_experts, judged.labels, judged.weights)
    found = {"base": base, "experts": tuned}
    found["middle"] = jnp.mean(_raw_scores(tuned, early.items), axis=(0, 1))
    found["scale"] = jnp.std(_raw_scores(tuned, early.items), axis=(0, 1))
    start = mean_map(HEAD.init(keys[3], _scores(found, late.items))["params"])
    from_scores = lambda params, items: _from_scores(params, found, items)
    from_states = lambda params, items: _from_states(params, found, items)
    found["linear"] = _train(keys[4], own, start, from_scores, late)
    aggregator = experts.Aggregator(32).init(keys[3], _states(found, late.items[:, 0]))["params"]
    found["aggregator"] = _train(keys[5], own, aggregator, from_states, late)
    return found


def mean_map(params: Any) -> Any:
    """Parameters of a linear map such that it is the mean of its inputs.

    From there, and not from 0, phase 3 starts: what validation on a few wrong labels does not
    believe in still orders pairs.
    """
    return jax.tree.map(lambda x: jnp.full_like(x, 1 / x.shape[0] if x.ndim == 2 else 0.0), params)


def _raw_scores(tuned: Any, items: Array) -> Array:
    return jnp.moveaxis(jax.vmap(lambda params: _score(params, items))(tuned), 0, -1)


def _scores(found: dict[str, Any], items: Array) -> Array:
    """Standardised scores of the experts, `[*, P]`."""
    shape = (1,) * (items.ndim - 1) + (-1,)
    centred = _raw_scores(found["experts"], items) - found["middle"].reshape(shape)
    return jax.lax.stop_gradient(centred / found["scale"].reshape(shape))


def _from_scores(params: Any, found: dict[str, Any], items: Array) -> Array:
    return HEAD.apply({"params": params}, _scores(found, items))[..., 0]


def _states(found: dict[str, Any], items: Float[Array, "B E"]) -> Array:
    states = jax.vmap(lambda params: _state(params, items))(found["experts"])
    return jax.lax.stop_gradient(states)


def _from_states(params: Any, found: dict[str, Any], items: Array) -> Array:
    flat = items.reshape(-1, items.shape[-1])
    scores = experts.Aggregator(32).apply({"params": params}, _states(found, flat))
    return scores.reshape(items.shape[:-1])


# Measures


def _measure(key: jax.Array, own, world: World, reward) -> dict[str, Array]:
    """Accuracy on clean pairs, and gold of the best of `n`, mean over the categories."""

    def one(key: jax.Array, category: Array):
        keys = jax.random.split(key, 2)
        items, scores = _draw(keys[0], world, category, own.tested)
        gold = scores @ world.weights[category]
        right = jnp.sign(jnp.diff(gold, axis=1)) == jnp.sign(jnp.diff(reward(items), axis=1))
        return jnp.mean(right, dtype=jnp.float32), _best_of_n(keys[1], own, world, category, reward)

    keys = jax.random.split(key, own.categories)
    accuracy, gold = jax.vmap(one)(keys, jnp.arange(own.categories))
    return {"accuracy": jnp.mean(accuracy), "best_of_n_gold": jnp.mean(gold)}


def _best_of_n(key: jax.Array, own, world: World, category: Array, reward) -> Array:
    """Mean gold of the best of `n` by reward; a tenth of the candidates is far out."""
    keys = jax.random.split(key, 3)
    shape = (own.prompts, own.best_of)
    query = world.centres[category][None] + 0.35 * jax.random.normal(keys[0], (own.prompts, QUERY))
    tails = jax.random.bernoulli(keys[1], 0.1, shape)
    x = jax.random.normal(keys[2], shape + (FEATURES,)) * jnp.where(tails, 2.0, 1.0)[..., None]
    items = jnp.concatenate([x, jnp.broadcast_to(query[:, None], shape + (QUERY,))], axis=-1)
    best = jnp.argmax(reward(items), axis=1)
    gold = _capabilities(world, category, x) @ world.weights[category]
    return jnp.mean(jnp.take_along_axis(gold, best[:, None], axis=1))
