"""Over-optimisation of learned rewards by a language policy, and ensembles against it.

The end-to-end form of `rm_ensemble` (arXiv 2310.02743): a transformer is trained on a corpus, pairs
of texts of the corpus are labelled by a gold reward that is known, transformers with a reward head
are trained on the labels, and the first transformer is optimised for their scores, by best-of-n on
its samples and by GRPO.

A text is a word as the prompt and `length` words as the response. Every word has features; those of
a text are their sum over its root, so that texts of independent words are spread as `N(0, 1)`. The
gold reward is `rm_ensemble.gold_reward` of these: a network, less a cost where the features are
far out. Texts that say the same few words again and again are; in the corpus a small share does
(`stuttering` texts), among the labelled pairs none.
"""

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Bool, Float, Int

from experiments.reward_studies import rm_ensemble, toy_mlp
from experiments.studies import Study
from jaxreward.evaluation import best_of_n
from jaxreward.losses import preference
from jaxreward.losses.policy import policy_objective
from jaxreward.networks import heads
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies.language import Prompts, language_policy
from jaxreward.policies.supervised import supervised_loss
from jaxreward.rewards import learned
from jaxreward.tasks import preference_draws
from jaxreward.training import check, fit
from jaxreward.training.step import make_update_step, sample_key
from jaxreward.transforms import advantage, aggregation, kl_penalty
from jaxreward.transforms.base import chain
from jaxreward.types import Policy, make_signal

Words = Int[Array, "*B T"]
"""Prompt and response in one."""


class World(NamedTuple):
    """What the gold reward knows."""

    features: Float[Array, "V D"]
    network: toy_mlp.Params


class Sequences(NamedTuple):
    """A batch of the corpus, as `policies.supervised` reads it."""

    tokens: Int[Array, "B T"]
    loss_mask: Bool[Array, "B T"]
    lengths: Int[Array, "B"]


class Pairs(NamedTuple):
    """Training pairs, the first preferred as labelled."""

    first: Int[Array, "J T"]
    second: Int[Array, "J T"]


class Members(NamedTuple):
    """Trained reward models and the scale of their scores."""

    params: Any
    scale: aggregation.MemberScale


class Run(NamedTuple):
    """One training of the policy: against which arm, which member if it is a single one."""

    arm: str
    member: int


def make(config: ml_collections.ConfigDict) -> Study:
    """The study.

    `config.study`: words, length, features, gold_width, cost, safe_radius, stuttering, repeat,
    `language` and `scorer` (sizes of the transformers), `pretraining` and `reward` (steps, batch,
    learning_rate; of rewards also pairs, l2, hidden, members, reference), `settings` (each with
    flips), `arms` (each with aggregate, members and, of several, weight, ddof, policy_weight,
    policy_ddof), best_of, tilts, candidates, prompts, and `policy` (kl_coefficients, kl_budget,
    steps, prompts, group, learning_rate, window, runs: how many single members are optimised).
    """
    study, names = config.study, list(config.study.settings)
    validate(config)
    check.positive(config, "study.reward.members")
    rm_ensemble.check_optimization(config, study.reward.members)
    check.in_range(config, "study.policy.runs", 1, study.reward.members)
    flips = jnp.array([study.settings[name].flips for name in names], jnp.float32)

    def run(key: jax.Array) -> dict[str, dict[str, Any]]:
        keys = jax.random.split(key, 3)
        world = make_world(keys[0], study)
        start = pretrain(keys[1], study)
        found = jax.lax.map(lambda share: _setting(keys[2], world, start, share, study), flips)
        found.update(rm_ensemble.compared(found))
        return {
            f"{name}/{arm}": {metric: values[i] for metric, values in own.items()}
            for i, name in enumerate(names)
            for arm, own in found.items()
        }

    return Study(run, draw=_draw)


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks texts, transformers and their training, which other studies share.

    Raises:
      ConfigError: naming the key, the value and what is allowed.
    """
    study = config.study
    sizes = [f"{part}.{name}" for part in ("language", "scorer") for name in study[part]]
    trained = [f"{part}.{name}" for part in ("pretraining", "reward") for name in ("steps", "batch")]
    more = ("pretraining.learning_rate", "reward.learning_rate", "reward.pairs", "reward.tested",
            "reward.hidden", "policy.steps", "policy.prompts", "policy.learning_rate",
            "policy.window", "length", "features", "gold_width", "safe_radius")  # fmt: skip
    check.positive(config, *(f"study.{name}" for name in (*sizes, *trained, *more)))
    check.at_least(config, "study.words", 2)
    check.at_least(config, "study.cost", 0)
    check.rate(config, "study.stuttering", "study.repeat")
    check.at_least(config, "study.reward.l2", 0)
    check.at_least(config, "study.reward.reference", 2, "a spread")
    check.at_least(config, "study.policy.group", 2, "a group baseline")
    check.divisible(config, "study.policy.steps", study.policy.window, "study.policy.window")
    check.rate(config, *(f"study.settings.{name}.flips" for name in study.settings))
    for part in ("language", "scorer"):
        for name, by in (("heads", "kv_heads"), ("width", "heads")):
            check.divisible(config, f"study.{part}.{name}", study[part][by], f"study.{part}.{by}")


def _setting(key: jax.Array, world: World, start: Any, flips: Array, study):
    keys = jax.random.split(key, 5)
    policy = make_policy(study)
    sample = lambda k, prompts, count: texts_of(
        policy.sample(start, k, draw_prompts(k, prompts, study), count)
    )
    near = sample(keys[0], 1, study.reward.reference)[0]
    candidates = sample(keys[1], study.prompts, study.candidates)
    raw = functools.partial(gold_reward, world, study=study)
    centre, unit = jnp.mean(raw(candidates)), jnp.std(raw(candidates))
    gold = lambda texts: (raw(texts) - centre) / unit
    members = train_members(keys[2], raw, near, flips, study)
    scores, values = score(members, candidates, study), gold(candidates)
    results = {
        name: rm_ensemble.optimized(scores, values, study.arms[name], study) for name in study.arms
    }
    accuracy = _accuracy(keys[3], raw, members, study)
    for name, found in _policies(keys[4], start, members, gold, study).items():
        results[name] |= found | {"accuracy": accuracy}
    return results


# Texts, their gold reward, the corpus


def make_world(key: jax.Array, study) -> World:
    """Features of words and the network that rates them."""
    keys = jax.random.split(key)
    features = jax.random.normal(keys[0], (study.words, study.features))
    features = features - jnp.mean(features, axis=0, keepdims=True)
    return World(features, toy_mlp.init(keys[1], (study.features, study.gold_width, 1)))


def gold_reward(world: World, texts: Words, *, study) -> Float[Array, "*B"]:
    """Of whole texts; see the module docstring."""
    x = jnp.sum(world.features[texts], axis=-2) / texts.shape[-1] ** 0.5
    return rm_ensemble.gold_reward(world.network, x, study.cost, study.safe_radius)


def draw_texts(
    key: jax.Array, count: int, stuttering: float, study, *, prompt: int = 1
) -> Int[Array, "B T"]:
    """Texts of independent words; in a share of them a word repeats the one before, mostly.

    The first `prompt` words of a text are its prompt.
    """
    keys = jax.random.split(key, 3)
    shape = (count, prompt + study.length)
    fresh = jax.random.randint(keys[0], shape, 0, study.words, jnp.int32)
    stutters = jax.random.bernoulli(keys[1], stuttering, (count, 1))
    again = jax.random.bernoulli(keys[2], study.repeat, shape) & stutters

    def step(word: Array, new: tuple[Array, Array]):
        word = jnp.where(new[1], word, new[0])
        return word, word

    _, words = jax.lax.scan(step, fresh[:, 0], (fresh.T, again.T))
    return words.T


def draw_prompts(key: jax.Array, count: int, study) -> Prompts:
    """Single words."""
    words = jax.random.randint(jax.random.fold_in(key, 1), (count, 1), 0, study.words, jnp.int32)
    return Prompts(words, jnp.ones(count, jnp.int32))


def texts_of(trajectories) -> Int[Array, "P G T"]:
    """Prompts and responses in one."""
    first, responses = trajectories.prompts.tokens[:, None], trajectories.outputs
    first = jnp.broadcast_to(first, responses.shape[:2] + first.shape[2:])
    return jnp.concatenate([first, responses], axis=2)


# The policy before it is optimised


def make_policy(study) -> Policy:
    """Responses of exactly `study.length` words."""
    return language_policy(
        TransformerConfig(vocab_size=study.words, **study.language.to_dict()),
        max_new_tokens=study.length, stop_tokens=(), pad_token=0,
    )  # fmt: skip


def pretrain(key: jax.Array, study, *, prompt: int = 1) -> Any:
    """Parameters of a language model of the corpus, whose texts begin with `prompt` words more."""
    own, keys = study.pretraining, jax.random.split(key)
    config = TransformerConfig(vocab_size=study.words, **study.language.to_dict())
    loss = supervised_loss(config)

    def sample(k: jax.Array) -> Sequences:
        texts = draw_texts(k, own.batch, study.stuttering, study, prompt=prompt)
        shape = texts.shape
        return Sequences(texts, jnp.ones(shape, bool), jnp.full(shape[0], shape[1], jnp.int32))

    start, optimizer = make_policy(study).init(keys[0]), optax.adam(own.learning_rate)
    each = lambda params, batch: loss(params, batch)[0]
    return fit.fit(keys[1], start, each, sample, optimizer, steps=own.steps)[0]


# Reward models


def make_scorer(study) -> learned.RewardModel:
    """A transformer with a head on the mean of its states."""
    config = TransformerConfig(vocab_size=study.words, **study.scorer.to_dict())
    return learned.text_reward_model(
        config, heads.Scalar(pool="mean", hidden=tuple(study.reward.hidden))
    )


def member_score(params: Any, texts: Words, study) -> Float[Array, "*B"]:
    """Of one member, as it is."""
    rows = texts.reshape(-1, texts.shape[-1])
    lengths = jnp.full(rows.shape[0], rows.shape[1], jnp.int32)
    return make_scorer(study).score(params, learned.Texts(rows, lengths)).reshape(texts.shape[:-1])


def score(members: Members, texts: Words, study) -> Float[Array, "*B K"]:
    """Of all members, in units of their spread over samples of the start."""
    found = jax.lax.map(lambda params: member_score(params, texts, study), members.params)
    return aggregation.normalize_members(jnp.moveaxis(found, 0, -1), members.scale)


def train_members(
    key: jax.Array, raw: Callable, near: Int[Array, "N T"], flips: Array, study
) -> Members:
    """Members that differ in their start and the order of the data."""
    keys = jax.random.split(key)
    draw = lambda k: draw_texts(k, study.reward.pairs, 0.0, study)
    pairs, each = label(keys[0], raw, draw, flips), jax.random.split(keys[1], study.reward.members)
    init, own = make_scorer(study).init, lambda params, texts: member_score(params, texts, study)
    params = jax.vmap(lambda k: train_scorer(k, init, own, pairs, study))(each)
    near_scores = jax.lax.map(lambda own: member_score(own, near, study), params)
    return Members(params, aggregation.member_scale(near_scores.T))


def label(
    key: jax.Array, raw: Callable, draw: Callable, flips: Array | float, *, prompt: int = 1
) -> Pairs:
    """Pairs of texts with one prompt, the better first but for a share of `flips`.

    Args:
      key: of the draw.
      raw: the gold reward of texts.
      draw: `(key) -> texts`, those of one side.
      flips: in [0, 1].
      prompt: words of a text that are its prompt.
    """
    keys = jax.random.split(key, 3)
    one, other = draw(keys[0]), draw(keys[1])
    other = other.at[:, :prompt].set(one[:, :prompt])
    won = preference_draws.turn_round(keys[2], raw(one) >= raw(other), flips)
    return Pairs(*preference_draws.preferred_first(won, one, other))


def train_scorer(key: jax.Array, init: Callable, score: Callable, pairs: Pairs, study) -> Any:
    """Parameters of a model, from `init(key)`, whose `score(params, texts)` orders the pairs."""
    own, keys = study.reward, jax.random.split(key)

    def loss(params: Any, batch: Pairs) -> Array:
        scores = score(params, jnp.stack(batch))
        penalty = own.l2 * jnp.mean(preference.score_penalty(scores[0], scores[1]))
        return preference.pair_loss(scores[0] - scores[1], jnp.ones(own.batch)) + penalty

    sample = lambda k: fit.rows(pairs, k, own.batch)
    start, optimizer = init(keys[0]), optax.adam(own.learning_rate)
    return fit.fit(keys[1], start, loss, sample, optimizer, steps=own.steps)[0]


def _accuracy(key: jax.Array, raw: Callable, members: Members, study) -> Float[Array, ""]:
    """Share of fresh pairs that a member orders as the gold reward does, mean over members."""
    pairs = label(key, raw, lambda k: draw_texts(k, study.reward.tested, 0.0, study), 0.0)
    first, second = score(members, jnp.stack(pairs), study)
    return jnp.mean(first > second, dtype=jnp.float32)


# Policy optimisation


def _policies(key: jax.Array, start: Any, members: Members, gold: Callable, study):
    """What `best_of_n.up_to_kl` says and curves of every arm, averaged over runs of single members."""
    own, runs = study.policy, runs_of(study)
    rewards = [functools.partial(_reward, members, run, study=study) for run in runs]
    coefficients = jnp.array(own.kl_coefficients, jnp.float32)
    grid = jnp.meshgrid(jnp.arange(len(runs)), jnp.arange(len(coefficients)), indexing="ij")

    def train(place: tuple[Array, Array]):
        reward = lambda texts: jax.lax.switch(place[0], rewards, texts)
        draw = lambda k: draw_prompts(k, own.prompts, study)
        return train_policy(key, start, draw, reward, gold, coefficients[place[1]], study)[1]

    curves = jax.lax.map(train, tuple(axis.ravel() for axis in grid))
    curves = jax.tree.map(lambda x: x.reshape(grid[0].shape + x.shape[1:]), curves)
    upto = functools.partial(best_of_n.up_to_kl, budget=own.kl_budget)
    ends = jax.vmap(jax.vmap(upto))(curves["kl"], curves["gold"])._asdict()
    found: dict[str, dict[str, Array]] = {name: {} for name in study.arms}
    for name, metrics in found.items():
        rows = jnp.array([i for i, run in enumerate(runs) if run.arm == name])
        for i, coefficient in enumerate(own.kl_coefficients):
            way, mean = f"policy_{coefficient:g}", lambda x: jnp.mean(x[rows, i], axis=0)
            metrics.update({f"{way}/{metric}": mean(x) for metric, x in ends.items()})
            metrics.update({f"{way}/{metric}_curve": mean(x) for metric, x in curves.items()})
    return found


def runs_of(study) -> list[Run]:
    """Every arm once; one of a single member for each of the first `study.policy.runs`."""
    count = lambda arm: study.policy.runs if arm.members == 1 else 1
    return [Run(name, k) for name in study.arms for k in range(count(study.arms[name]))]


def _reward(members: Members, run: Run, texts: Words, *, study) -> Float[Array, "*B"]:
    """The aggregate that a run optimises; only the members it needs are computed."""
    arm = study.arms[run.arm]
    chosen = slice(run.member, run.member + 1) if arm.members == 1 else slice(arm.members)
    scores = score(jax.tree.map(lambda leaf: leaf[chosen], members), texts, study)
    return aggregation.aggregate_scores(
        scores, arm.aggregate, weight=arm.policy_weight, ddof=arm.policy_ddof
    )


def train_policy(
    key: jax.Array, start: Any, draw: Callable, reward: Callable, gold: Callable,
    coefficient: Array | float, study,
) -> tuple[Any, dict[str, Array]]:  # fmt: skip
    """GRPO with the KL in the reward.

    Args:
      key: of everything random.
      start: parameters of the policy, which is also the reference.
      draw: `(key) -> Prompts`, those of an update.
      reward: of texts, what is optimised; NaN is missing.
      gold: of texts, watched.
      coefficient: of the KL.
      study: its `policy` has steps, group, learning_rate and window.

    Returns:
      The last parameters, and `{"gold", "proxy", "kl"}` by window.
    """
    own, policy = study.policy, make_policy(study)
    rewards = chain(kl_penalty.kl_penalty(coefficient), advantage.grpo())
    step = make_update_step(policy_objective(policy), rewards, optax.adam(own.learning_rate))

    def update(state, _):
        prompts = draw(sample_key(state))
        drawn = policy.sample(state.params, sample_key(state), prompts, own.group)
        texts, reference = texts_of(drawn), policy.log_prob(start, drawn).log_probs
        proxy = reward(texts)
        signal = make_signal(proxy, trajectories=drawn, reference_log_probs=reference)
        kl = jnp.mean(jnp.sum(drawn.log_probs - reference, axis=2))
        seen = {"gold": jnp.mean(gold(texts)), "proxy": jnp.mean(proxy), "kl": kl}
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
            state, _ = step.update(state, signal)
        return state, seen

    last, seen = jax.lax.scan(update, step.init(key, start), None, length=own.steps)
    by_window = lambda x: jnp.mean(x.reshape(-1, own.window), axis=1)
    return last.params, jax.tree.map(by_window, seen)


def _draw(config, found, results, axes) -> None:
    """Gold (lines) and proxy (dotted) against the KL of GRPO without penalty, with wrong labels."""
    del results
    study = config.study
    name, way = list(study.settings)[-1], f"policy_{study.policy.kl_coefficients[0]:g}"
    for number, arm in enumerate(study.arms):
        curve = lambda metric: found[f"{name}/{arm}"][f"{way}/{metric}_curve"].mean(0)
        axes.plot(curve("kl"), curve("gold"), color=f"C{number}", label=arm)
        axes.plot(curve("kl"), curve("proxy"), ":", color=f"C{number}")
    axes.axvline(study.policy.kl_budget, color="grey", linewidth=0.8)
    axes.set(xlabel=f"KL of GRPO from its start, nats ({name})", ylabel="gold and proxy reward")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", frameon=False)
