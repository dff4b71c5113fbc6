"""A language policy that writes to each user's taste, on reward models of users.

The world of `rm_ensemble_language`, in which everybody has a taste: a prompt is a user's name, which
is a word like any other, and a word; the gold reward of the response is that user's, a network of
which all share the hidden layer and nobody the last one. Everybody labels some pairs. Transformers
with a reward head learn from the labels of all, by user or as one, and a transformer learns from
their scores, one reward for each prompt and user.
"""

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float, Int

from experiments.reward_studies import rm_ensemble, toy_mlp
from experiments.reward_studies import rm_ensemble_language as language
from experiments.studies import Study
from jaxreward.policies.language import Prompts
from jaxreward.rewards import learned
from jaxreward.training import check

PROMPT = 2
"""Words of a prompt: the name, and one more."""

Texts = Int[Array, "*B T"]
"""Name, word, response."""

Score = Callable[[Texts], Float[Array, "*B"]]


class World(NamedTuple):
    """What the gold reward knows.

    Attributes:
      features: of words.
      hidden: kernel and bias that all tastes share.
      tastes: weights of the hidden units, a column for each user.
    """

    features: Float[Array, "V D"]
    hidden: tuple[Float[Array, "D F"], Float[Array, "F"]]
    tastes: Float[Array, "F U"]


def make(config: ml_collections.ConfigDict) -> Study:
    """The study of `configs/personalized_language.py`.

    `config.study`: what `rm_ensemble_language` has of words, pretraining, `language`, `scorer`,
    `reward` and `policy`; users, `settings` (each with taste and flips), `models` (each with
    by_user, shared, names of parameters, and reads_name), `arms` (each with a model and shift: how
    many users on is whose opinion is asked), and tested (prompts of a user).
    """
    study = config.study
    language.validate(config)
    check.in_range(config, "study.users", 2, study.words)
    check.positive(config, "study.tested")
    check.at_least(config, "study.policy.kl_coefficient", 0)
    for name in study.settings:
        check.at_least(config, f"study.settings.{name}.taste", 0)
    for name in study.arms:
        check.choice(config, f"study.arms.{name}.model", study.models)
        check.in_range(config, f"study.arms.{name}.shift", 0, study.users - 1)
    names = list(study.settings)
    dials = jnp.array([[study.settings[n].taste, study.settings[n].flips] for n in names])

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        keys = jax.random.split(key)
        start = language.pretrain(keys[0], study, prompt=PROMPT)
        found = jax.lax.map(lambda own: _setting(keys[1], start, *own, study), dials)
        return {
            f"{name}/{arm}": {metric: values[i] for metric, values in own.items()}
            for i, name in enumerate(names)
            for arm, own in found.items()
        }

    return Study(run, draw=_draw)


def _setting(key: jax.Array, start: Any, taste: Array, flips: Array, study):
    keys = jax.random.split(key, 6)
    world = make_world(keys[0], taste, study)
    raw = lambda texts: gold_reward(world, texts, study)
    near = write(keys[1], start, study, group=-(-study.reward.reference // study.tested))
    gold = standardized(raw, near, study.users)
    draw = lambda k: draw_texts(k, study.users * study.reward.pairs, study)
    pairs = language.label(keys[2], raw, draw, flips, prompt=PROMPT)
    models = {name: trained_model(keys[3], pairs, study.models[name], study) for name in study.models}
    scores = {
        name: functools.partial(models[arm.model], shift=arm.shift)
        for name, arm in study.arms.items()
    }
    draw = lambda k: draw_texts(k, study.users * study.reward.tested, study)
    fresh = language.label(keys[4], raw, draw, 0.0, prompt=PROMPT)
    rewards = {name: standardized(score, near, study.users) for name, score in scores.items()}
    rewards["gold"] = gold
    found = _policies(keys[5], start, list(rewards.values()), gold, study)
    results = {name: jax.tree.map(lambda x: x[i], found) for i, name in enumerate(rewards)}
    for name, reward in rewards.items():
        right = reward(fresh.first) > reward(fresh.second)
        results[name]["accuracy"] = jnp.mean(right, dtype=jnp.float32)
    results["start"] = measure(keys[5], start, gold, study)
    return results


# Users, their texts and tastes


def make_world(key: jax.Array, taste: Array | float, study) -> World:
    """Two users' tastes have a correlation of `1 / (1 + taste^2)`, and each the same length."""
    keys = jax.random.split(key)
    world = language.make_world(keys[0], study)
    hidden, (common, _) = world.network
    scale = (2.0 / study.gold_width) ** 0.5  # of `common`
    own = scale * jax.random.normal(keys[1], (study.gold_width, study.users))
    return World(world.features, hidden, (common + taste * own) / (1.0 + taste**2) ** 0.5)


def users_of(texts: Texts) -> Int[Array, "*B"]:
    """Who is named; `users` or more is nobody known."""
    return texts[..., 0]


def gold_reward(world: World, texts: Texts, study) -> Float[Array, "*B"]:
    """Of each text by the taste of the user it names."""

    def of_user(taste: Array) -> Array:
        network: toy_mlp.Params = [world.hidden, (taste[:, None], jnp.zeros(1))]
        own = language.World(world.features, network)
        return language.gold_reward(own, texts[..., 1:], study=study)

    found = jax.vmap(of_user, in_axes=1, out_axes=-1)(world.tastes)
    return jnp.take_along_axis(found, users_of(texts)[..., None], axis=-1)[..., 0]


def draw_texts(key: jax.Array, count: int, study) -> Texts:
    """Ordinary texts; the users in turn."""
    texts = language.draw_texts(key, count, 0.0, study, prompt=PROMPT)
    return texts.at[:, 0].set(jnp.arange(count, dtype=jnp.int32) % study.users)


def draw_prompts(key: jax.Array, each: int, study) -> Prompts:
    """`each` for every user, the users in turn."""
    count = each * study.users
    words = jax.random.randint(key, (count,), 0, study.words, jnp.int32)
    users = jnp.arange(count, dtype=jnp.int32) % study.users
    return Prompts(jnp.stack([users, words], axis=1), jnp.full(count, PROMPT, jnp.int32))


def write(key: jax.Array, params: Any, study, *, group: int) -> Int[Array, "P G T"]:
    """Texts of a policy for `study.tested` prompts of each user."""
    keys = jax.random.split(key)
    prompts = draw_prompts(keys[0], study.tested, study)
    policy = language.make_policy(study)
    return language.texts_of(policy.sample(params, keys[1], prompts, group))


def by_user(values: Float[Array, "P G"], users: int) -> Float[Array, "U M"]:
    """From prompts whose users come in turn."""
    return jnp.moveaxis(values.reshape(-1, users, values.shape[1]), 1, 0).reshape(users, -1)


def standardized(score: Score, near: Int[Array, "P G T"], users: int) -> Score:
    """In units of its spread over the texts `near`, each user's by those for this user."""
    found = by_user(score(near), users)
    centre, unit = jnp.mean(found, axis=1), jnp.std(found, axis=1)

    def scaled(texts: Texts) -> Array:
        own = users_of(texts)
        return (score(texts) - centre[own]) / unit[own]

    return scaled


# Reward models


def trained_model(key: jax.Array, pairs: language.Pairs, spec, study) -> Callable[..., Array]:
    """Trains a model on the pairs of all users.

    A personalised model whose users are all the first one is the model of all.

    Returns:
      `(texts, shift=0) -> scores`; with a shift, by the user so many further on. NaN of an unknown
      user.
    """
    count = study.users if spec.by_user else 1
    model = learned.personalized(language.make_scorer(study), count, shared=tuple(spec.shared))

    def score(params: Any, texts: Texts, shift: int = 0) -> Array:
        users = users_of(texts)
        asked = (users + shift) % study.users if spec.by_user else jnp.zeros_like(users)
        asked = jnp.where(users < study.users, asked, -1)
        words = texts if spec.reads_name else texts[..., 1:]
        rows = words.reshape(-1, words.shape[-1])
        lengths = jnp.full(rows.shape[0], rows.shape[1], jnp.int32)
        given = learned.OfUsers(learned.Texts(rows, lengths), asked.ravel())
        return model.score(params, given).reshape(users.shape)

    params = language.train_scorer(key, model.init, score, pairs, study)
    return functools.partial(score, params)


# The policy


def _policies(key: jax.Array, start: Any, rewards: list[Score], gold: Score, study):
    """GRPO on each reward in turn: what was measured, with a leading axis of rewards."""
    own, keys = study.policy, jax.random.split(key)
    draw = lambda k: draw_prompts(k, own.prompts, study)

    def train(number: Array) -> dict[str, Array]:
        reward = lambda texts: jax.lax.switch(number, rewards, texts)
        params, curves = language.train_policy(
            keys[0], start, draw, reward, gold, own.kl_coefficient, study
        )
        found = measure(keys[1], params, gold, study)
        found |= {f"{metric}_curve": values for metric, values in curves.items()}
        return found | {"kl": curves["kl"][-1]}

    return jax.lax.map(train, jnp.arange(len(rewards)))


def measure(key: jax.Array, params: Any, gold: Score, study) -> dict[str, Array]:
    """Gold reward of each user for fresh prompts of this user: mean over users, and the least."""
    found = by_user(gold(write(key, params, study, group=study.policy.group)), study.users)
    users = jnp.mean(found, axis=1)
    return {"gold": jnp.mean(users), "gold_least": jnp.min(users), "gold_by_user": users}


def _draw(config, found, results, axes) -> None:
    """Gold (lines) and optimised reward (dotted) of the last setting along the training."""
    del results
    name, window = list(config.study.settings)[-1], config.study.policy.window
    for number, arm in enumerate((*config.study.arms, "gold")):
        own = found[f"{name}/{arm}"]
        updates = window * (jnp.arange(own["gold_curve"].shape[1]) + 0.5)
        axes.plot(updates, own["gold_curve"].mean(0), color=f"C{number}", label=arm)
        axes.plot(updates, own["proxy_curve"].mean(0), ":", color=f"C{number}")
    axes.set(xlabel=f"updates ({name})", ylabel="gold and optimised reward")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)
