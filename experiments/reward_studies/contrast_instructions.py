"""Does a reward follow its instruction, and does it matter? (arXiv 2309.16155)

An instruction has a wording and two slots; the right answer is the sum of the slots modulo their
size. A response is an answer and some filler words, each in one of two spellings; the gold reward
is for a right answer and for good words. Most training pairs differ only in their words, so that a
reward model can do well without reading the instruction. Contrast sets show whether it does;
augmentation of the data (ConvexDA) and averaging at inference (RewardFusion) may mend it.
"""

from typing import Any, NamedTuple, Sequence

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.reward_studies import toy_mlp
from experiments.studies import Study
from jaxreward import masked
from jaxreward.curation.convex_augmentation import spanning_subset
from jaxreward.evaluation import best_of_n, reward_benchmarks
from jaxreward.rewards.fusion import fuse_rewards
from jaxreward.tasks import preference_draws
from jaxreward.training import check, fit

SPELLINGS = 2
ARMS = ("base", "random_da", "convex_da", "all_da")
FUSED = ("base", "convex_da")


class Texts(NamedTuple):
    """Instructions with responses; leading axes are free.

    Attributes:
      wording: of the instruction.
      slots: its two values.
      answer: of the response.
      fillers: `SPELLINGS * word + spelling`.
    """

    wording: Int[Array, "*B"]
    slots: Int[Array, "*B 2"]
    answer: Int[Array, "*B"]
    fillers: Int[Array, "*B F"]


class World(NamedTuple):
    """What is fixed for a seed: the worth of words, and frozen embeddings of tokens."""

    worth: Float[Array, "W"]
    words: Float[Array, "V D"]
    values: Float[Array, "K D"]
    wordings: Float[Array, "T D"]


def make(config: ml_collections.ConfigDict) -> Study:
    """The study.

    `config.study`: wordings, slot_values, fillers, words, worth_of_answer, pairs, style_share, noise,
    perturbations, other_word, width, steps, batch, learning_rate, weight_decay, embedding,
    spelling_distance, top_k, threshold, tested, prompts, samples, best_of, policy_right.
    """
    study = config.study
    _check(config)

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        keys = jax.random.split(key, 6)
        world = make_world(keys[0], study)
        data, kept = _data(keys[1], world, study)
        train = jax.vmap(lambda mask: _train(keys[2], data, mask, study))
        params = train(jnp.stack([kept[arm] for arm in ARMS]))
        index = _index(data, world, study)

        def plain(own):
            return measure(keys[3], lambda texts: score(own, texts, study), world, study)

        def fused(own):
            reward = lambda texts: score(own, texts, study)
            smooth = lambda texts: _fused(reward, texts, index, world, study)
            return measure(keys[3], smooth, world, study)

        results = _by_arm(ARMS, jax.vmap(plain)(params))
        some = jax.tree.map(lambda leaf: leaf[jnp.array([ARMS.index(a) for a in FUSED])], params)
        results.update(_by_arm([f"{arm}_fusion" for arm in FUSED], jax.vmap(fused)(some)))
        for arm in ARMS:
            results[arm]["augmentations"] = jnp.mean(masked.count(kept[arm], axis=1) - 1.0)
        return results

    return Study(run, draw=_draw)


def _check(config: ml_collections.ConfigDict) -> None:
    names = ("wordings", "fillers", "words", "pairs", "perturbations", "width", "steps", "batch",
             "learning_rate", "embedding", "top_k", "tested", "prompts", "samples",
             "best_of")  # fmt: skip
    check.positive(config, *(f"study.{name}" for name in names))
    check.at_least(config, "study.slot_values", 2, "a wrong answer")
    for name in ("worth_of_answer", "weight_decay", "spelling_distance"):
        check.at_least(config, f"study.{name}", 0)
    for name in ("style_share", "other_word", "policy_right"):
        check.in_range(config, f"study.{name}", 0, 1)
    check.in_range(config, "study.noise", 0, 0.5)
    check.in_range(config, "study.threshold", 0, 1, "(]")
    check.in_range(config, "study.top_k", 1, 2 * config.study.pairs)


def _by_arm(arms: Sequence[str], found: dict[str, Array]) -> dict[str, dict[str, Array]]:
    return {arm: {name: x[i] for name, x in found.items()} for i, arm in enumerate(arms)}


def make_world(key: jax.Array, study) -> World:
    keys = jax.random.split(key, 5)
    normal = lambda k, count: jax.random.normal(k, (count, study.embedding))
    words = jnp.repeat(normal(keys[1], study.words), SPELLINGS, axis=0)
    words = words + study.spelling_distance * normal(keys[2], SPELLINGS * study.words)
    worth = jax.random.normal(keys[0], (study.words,))
    return World(worth, words, normal(keys[3], study.slot_values), normal(keys[4], study.wordings))


def gold(texts: Texts, world: World, study) -> Float[Array, "*B"]:
    """For the right answer, and for words worth something."""
    right = texts.answer == jnp.sum(texts.slots, axis=-1) % study.slot_values
    words = jnp.sum(world.worth[texts.fillers // SPELLINGS], axis=-1) / study.fillers**0.5
    return study.worth_of_answer * right.astype(jnp.float32) + words


# Data


def _instructions(key: jax.Array, shape: tuple[int, ...], study) -> tuple[Array, Array]:
    keys = jax.random.split(key)
    wording = jax.random.randint(keys[0], shape, 0, study.wordings)
    return wording, jax.random.randint(keys[1], (*shape, 2), 0, study.slot_values)


def _fillers(key: jax.Array, shape: tuple[int, ...], study) -> Array:
    """Random words, one in ten in the rare spelling."""
    keys = jax.random.split(key)
    words = jax.random.randint(keys[0], (*shape, study.fillers), 0, study.words)
    rare = jax.random.bernoulli(keys[1], 0.1, words.shape)
    return SPELLINGS * words + rare.astype(jnp.int32)


class Pairs(NamedTuple):
    """Labelled pairs of responses to one instruction."""

    winner: Texts
    loser: Texts


def _pairs(key: jax.Array, count: int, world: World, study, noise: float) -> Pairs:
    """`style_share` of the pairs have the same answer, the others a right and a wrong one."""
    keys = jax.random.split(key, 7)
    wording, slots = _instructions(keys[0], (count,), study)
    right = jnp.sum(slots, axis=-1) % study.slot_values
    wrong = (right + jax.random.randint(keys[1], (count,), 1, study.slot_values)) % study.slot_values
    style = jax.random.bernoulli(keys[2], study.style_share, (count,))
    some = jnp.where(jax.random.bernoulli(keys[3], 0.5, (count,)), right, wrong)
    first = Texts(wording, slots, jnp.where(style, some, right), _fillers(keys[4], (count,), study))
    second = Texts(
        wording, slots, jnp.where(style, some, wrong), _fillers(keys[5], (count,), study))
    better = gold(first, world, study) >= gold(second, world, study)
    won = preference_draws.turn_round(keys[6], better, noise)
    return Pairs(*preference_draws.preferred_first(won, first, second))


def _data(key: jax.Array, world: World, study) -> tuple[Pairs, dict[str, Bool[Array, "N A"]]]:
    """Pairs `[N, 1 + perturbations]`, the original first, and which of them each arm uses."""
    keys = jax.random.split(key, 4)
    pairs = _pairs(keys[0], study.pairs, world, study, study.noise)
    many = jax.tree.map(
        lambda x: jnp.repeat(x[:, None], 1 + study.perturbations, axis=1), pairs)
    side = jax.random.bernoulli(keys[1], 0.5, (study.pairs,))[:, None, None]
    originals = jnp.where(side, many.winner.fillers, many.loser.fillers)
    changed = jnp.concatenate(
        [originals[:, :1], _perturbed(keys[2], originals[:, 1:], study)], axis=1)
    put = lambda texts, here: texts._replace(fillers=jnp.where(here, changed, texts.fillers))
    many = Pairs(put(many.winner, side), put(many.loser, ~side))
    embedded = jnp.mean(world.words[changed[:, 1:]], axis=2)
    vertices = jax.vmap(spanning_subset)(embedded)
    order = jnp.argsort(jax.random.uniform(keys[3], vertices.shape), axis=1)
    as_many = order < jnp.sum(vertices, axis=1, keepdims=True)
    always = jnp.ones((study.pairs, 1), bool)
    chosen = dict(base=jnp.zeros_like(vertices), random_da=as_many, convex_da=vertices,
                  all_da=jnp.ones_like(vertices))
    kept = {arm: jnp.concatenate([always, own], axis=1) for arm, own in chosen.items()}
    return many, kept


def _perturbed(key: jax.Array, fillers: Array, study) -> Array:
    """One word in another spelling, or another word, at a random place."""
    keys = jax.random.split(key, 3)
    shape = fillers.shape[:-1]
    place = jax.random.randint(keys[0], shape, 0, study.fillers)
    here = jnp.broadcast_to(jnp.arange(study.fillers), fillers.shape) == place[..., None]
    other = jax.random.randint(keys[1], shape, 0, SPELLINGS * study.words)[..., None]
    word = jax.random.bernoulli(keys[2], study.other_word, shape)[..., None]
    spelled = fillers + 1 - 2 * (fillers % SPELLINGS)
    return jnp.where(here, jnp.where(word, other, spelled), fillers)


# Reward models


def score(params: toy_mlp.Params, texts: Texts, study) -> Float[Array, "*B"]:
    """A network on the tokens at their places."""
    tokens = jax.nn.one_hot(texts.fillers, SPELLINGS * study.words)
    seen = [
        jax.nn.one_hot(texts.wording, study.wordings),
        *(jax.nn.one_hot(texts.slots[..., i], study.slot_values) for i in range(2)),
        jax.nn.one_hot(texts.answer, study.slot_values),
        tokens.reshape(*tokens.shape[:-2], -1),
    ]
    return toy_mlp.apply(params, jnp.concatenate(seen, axis=-1))[..., 0]


def _train(key: jax.Array, data: Pairs, kept: Array, study) -> toy_mlp.Params:
    """As many steps for every arm, on the pairs that it keeps."""
    init, draw = jax.random.split(key)
    width = study.wordings + 3 * study.slot_values + SPELLINGS * study.words * study.fillers
    params = toy_mlp.init(init, (width, study.width, study.width, 1))
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), data)
    order, count = jnp.argsort(~kept.ravel()), jnp.sum(kept)

    def sample(key):
        index = order[jax.random.randint(key, (study.batch,), 0, count)]
        return jax.tree.map(lambda leaf: leaf[index], flat)

    def loss(params, batch):
        margin = score(params, batch.winner, study) - score(params, batch.loser, study)
        return jnp.mean(jax.nn.softplus(-margin))

    optimizer = optax.adamw(study.learning_rate, weight_decay=study.weight_decay)
    return fit.fit(draw, params, loss, sample, optimizer, steps=study.steps)[0]


class Index(NamedTuple):
    """Training texts for RewardFusion, once each."""

    texts: Texts
    embeddings: Float[Array, "N D"]
    first: Bool[Array, "N"]


def embed(texts: Texts, world: World) -> Float[Array, "*B D"]:
    """Mean of frozen embeddings of all tokens, at length 1."""
    tokens = [
        world.wordings[texts.wording][..., None, :], world.values[texts.slots],
        world.values[texts.answer][..., None, :], world.words[texts.fillers],
    ]
    mean = jnp.mean(jnp.concatenate(tokens, axis=-2), axis=-2)
    return mean / jnp.linalg.norm(mean, axis=-1, keepdims=True)


def _index(data: Pairs, world: World, study) -> Index:
    texts = jax.tree.map(lambda a, b: jnp.concatenate([a[:, 0], b[:, 0]]), data.winner, data.loser)
    embeddings = embed(texts, world)
    same = embeddings @ embeddings.T > 1.0 - 1e-5
    return Index(texts, embeddings, jnp.argmax(same, axis=1) == jnp.arange(same.shape[0]))


def _fused(plain, texts: Texts, index: Index, world: World, study) -> Float[Array, "*B"]:
    shape = texts.answer.shape
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(shape):]), texts)
    similarity = embed(flat, world) @ index.embeddings.T
    allowed = index.first[None, :] & (similarity < 1.0 - 1e-5)  # not the text itself
    own = dict(top_k=study.top_k, threshold=study.threshold)
    fused = fuse_rewards(plain(flat), similarity, plain(index.texts), allowed, **own)
    return fused.reshape(shape)


# What is measured


def measure(key: jax.Array, reward, world: World, study) -> dict[str, Array]:
    keys = jax.random.split(key, 3)
    pairs = _pairs(keys[0], study.tested, world, study, 0.0)
    rewards, valid = contrast_rewards(keys[1], reward, world, study)
    mean = lambda values: masked.mean(values, valid)
    return {
        "pair_accuracy": jnp.mean((reward(pairs.winner) > reward(pairs.loser)).astype(jnp.float32)),
        "response_consistency": mean(reward_benchmarks.response_consistency(rewards)),
        "instruction_consistency": mean(reward_benchmarks.instruction_consistency(rewards)),
        "consistency_both_directions": 0.5 * mean(
            reward_benchmarks.response_consistency(rewards, both_directions=True)
            + reward_benchmarks.instruction_consistency(rewards, both_directions=True)),
        "gold_best_of_n": _policy_gold(keys[2], reward, world, study),
    }


def contrast_rewards(key: jax.Array, reward, world: World, study) -> tuple[Array, Array]:
    """Instructions that differ in one slot with right answers to each; rewards `[B, 2, 2]`.

    Only where the gold reward is higher in all four comparisons.
    """
    keys = jax.random.split(key, 4)
    count = study.tested
    wording, slots = _instructions(keys[0], (count,), study)
    place = jnp.arange(2)[None, :] == jax.random.randint(keys[1], (count, 1), 0, 2)
    shift = jax.random.randint(keys[2], (count, 1), 1, study.slot_values)
    other = jnp.where(place, (slots + shift) % study.slot_values, slots)
    slots = jnp.stack([slots, other], axis=1)
    answers = jnp.sum(slots, axis=-1) % study.slot_values
    fillers = _fillers(keys[3], (count, 2), study)
    across = lambda x: jnp.repeat(x[:, None], 2, axis=1)  # [B, instruction, response]
    texts = Texts(
        jnp.broadcast_to(wording[:, None, None], (count, 2, 2)), jnp.repeat(slots[:, :, None], 2, 2),
        across(answers), across(fillers),
    )
    g = gold(texts, world, study)
    valid = (g[:, 0, 0] > g[:, 0, 1]) & (g[:, 1, 1] > g[:, 1, 0])
    valid = valid & (g[:, 0, 0] > g[:, 1, 0]) & (g[:, 1, 1] > g[:, 0, 1])
    return reward(texts), valid


def _policy_gold(key: jax.Array, reward, world: World, study) -> Array:
    """Gold reward of best-of-n by the reward."""
    keys = jax.random.split(key, 4)
    shape = (study.prompts, study.samples)
    wording, slots = _instructions(keys[0], (study.prompts, 1), study)
    right = jnp.broadcast_to(jnp.sum(slots, axis=-1) % study.slot_values, shape)
    guess = jax.random.randint(keys[1], shape, 0, study.slot_values)
    knows = jax.random.bernoulli(keys[2], study.policy_right, shape)
    texts = Texts(
        jnp.broadcast_to(wording, shape), jnp.broadcast_to(slots, (*shape, 2)),
        jnp.where(knows, right, guess), _fillers(keys[3], shape, study),
    )
    at = jax.vmap(best_of_n.best_of_n, (0, 0, None))
    return jnp.mean(at(reward(texts), gold(texts, world, study), study.best_of))


def _draw(config, found, results, axes) -> None:
    """Gold reward of the policy against consistency, by arm."""
    for arm, own in found.items():
        points = own["consistency_both_directions"], own["gold_best_of_n"]
        axes.plot(*points, "o", label=arm)
    axes.set_xlabel("consistency, both kinds, both directions")
    axes.set_ylabel(f"gold reward of best of {config.study.best_of}")
    axes.legend(fontsize="small", frameon=False)
