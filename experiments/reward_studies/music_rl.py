"""A melody model under rewards of adherence, quality and listeners, by REINFORCE with exact KL.

A small transformer learns the corpus of `music`. Listeners mark one of two of its clips for each
of 6000 captions, and a model of theirs starts from its checkpoint. Then it is trained under sums
of the three rewards; one arm starts from the checkpoint of another, which is its reference too.
All rewards are measured along the way, also those that are not trained on.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float

from experiments import studies
from experiments.reward_studies import music, music_judges, music_one_token
from experiments.reward_studies.music_judges import Pairs, Sample, Scale
from jaxreward.evaluation.paired_ratings import decided_win_rate
from jaxreward.losses import kl_reinforce
from jaxreward.losses.regularization import exact_kl
from jaxreward.networks.transformer import Transformer
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies import language
from jaxreward.training import check
from jaxreward.training.fit import fit
from jaxreward.types import Policy, Trajectories

REWARDS = ("adherence", "quality", "user")
AGAINST = ("r", "u", "joint")
"""Whom listeners compare RU with."""


class World(NamedTuple):
    """Melody model, judges, and what clips of the former are like.

    Attributes:
      base: parameters of the melody model.
      towers, opinion, user: of the judges.
      scale: of what listeners hear in whole clips.
      user_scale: of the listeners' model.
    """

    base: Any
    towers: Any
    opinion: Any
    user: Any
    scale: Scale
    user_scale: Scale


class Models(NamedTuple):
    """Networks of one size.

    Attributes:
      policy: of 36 tokens after the caption.
      network: the same transformer, for states.
      listeners: a scalar head on it.
      temperature: of the policy.
    """

    policy: Policy
    network: Transformer
    listeners: Any
    temperature: float


def make(config: ml_collections.ConfigDict) -> studies.Study:
    """The study of `configs/music_rl.py`."""
    own = config.study
    for name in ("width", "layers", "base_steps", "judge_steps", "user_steps", "steps", "looks",
                 "tested", "batch", "base_batch", "user_batch", "pairs", "held_out", "temperature",
                 "sampling_temperature"):  # fmt: skip
        check.positive(config, f"study.{name}")
    for name in ("", "base_", "judge_", "user_", "value_"):
        check.positive(config, f"study.{name}learning_rate")
    check.divisible(config, "study.width", 4, "two heads of even size")
    check.rate(config, "study.flips")
    check.in_range(config, "study.alpha", 0, 1, "[)")
    check.divisible(config, "study.looks", 5, "so that a fifth of the steps is looked at")
    check.divisible(config, "study.steps", own.looks, "study.looks")
    check.at_least(config, "study.taste", 0)
    return studies.Study(lambda key: _run(key, own), draw=draw)


def _run(key: jax.Array, own) -> dict[str, dict[str, Any]]:
    keys = jax.random.split(key, 6)
    models = make_models(own)
    world, listening = _world(keys[0], own, models)
    names, checkpoints, curves = _train(keys[1], own, models, world)
    captions = music.draw_captions(keys[2], own.tested)

    def judge(params: Any):
        sample = _clips(keys[3], models, params, captions)
        rated = music_judges.ratings(keys[4], own, world.scale, sample)
        return _measure(models, world, params, sample), rated

    measured, rated = jax.lax.map(judge, checkpoints)
    found = {name: jax.tree.map(lambda x: x[i], measured) for i, name in enumerate(names)}
    for i, name in enumerate(names):
        found[name]["over_base"] = decided_win_rate(rated[i], rated[0])
    for other in AGAINST:
        rates = decided_win_rate(rated[names.index("ru")], rated[names.index(other)])
        found["ru"][f"over_{other}"] = rates
    for name, curve in curves.items():
        found[name] |= {f"{metric}_curve": values for metric, values in curve.items()}
    half = dict.fromkeys(("accuracy", "over_base", *(f"over_{name}" for name in AGAINST)), 0.5)
    found["even"] = {metric: jnp.float32(value) for metric, value in half.items()}
    return found | listening | music_one_token.compare(keys[5])


# Models


def make_models(own) -> Models:
    """Of `own.width` and `own.layers`."""
    size = TransformerConfig(
        vocab_size=music.VOCABULARY, width=own.width, layers=own.layers, heads=2, kv_heads=2,
        intermediate=2 * own.width,
    )  # fmt: skip
    policy = language.language_policy(
        size, max_new_tokens=music.TOKENS, stop_tokens=(), pad_token=0,
        temperature=own.sampling_temperature,
    )  # fmt: skip
    listeners = music_judges.listener_model(size)
    return Models(policy, Transformer(size), listeners, own.sampling_temperature)


def prompts_of(caption: music.Caption) -> language.Prompts:
    """Captions as tokens."""
    tokens = music.caption_tokens(caption)
    return language.Prompts(tokens, jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32))


def _given(caption: music.Caption, tokens: Array) -> Trajectories:
    """Known clips as trajectories, a group of one."""
    tokens, mask = tokens[:, None], jnp.ones(tokens[:, None].shape, bool)
    return Trajectories(prompts_of(caption), tokens, tokens, jnp.zeros(mask.shape), mask)


def _log_probs(models: Models, params: Any, sample: Sample) -> Float[Array, "B S V"]:
    """Of every token at every state of the clips, as sampled."""
    states = models.policy.linear(params, _given(*sample))
    logits = jnp.einsum("bgsd,dv->bsv", states.hidden, states.head)
    return jax.nn.log_softmax(logits / models.temperature)


def _chosen(log_probs: Float[Array, "B S V"], tokens: Array) -> Float[Array, "B S"]:
    return jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]


def _clips(key: jax.Array, models: Models, params: Any, caption: music.Caption) -> Sample:
    drawn = models.policy.sample(params, key, prompts_of(caption), 1)
    return Sample(caption, drawn.actions[:, 0])


# Before reinforcement


def _world(key: jax.Array, own, models: Models) -> tuple[World, dict[str, Any]]:
    """Everything that is fixed, and how well judges agree with the listeners."""
    keys = jax.random.split(key, 8)
    base = _learn_corpus(keys[0], own, models)
    captions = music.draw_captions(keys[1], own.pairs + own.held_out)
    first, second = (_clips(k, models, base, captions) for k in keys[2:4])
    hears = lambda x, w: music_judges.heard(x.caption, music.part(music.melody_of(x.tokens), w))
    towers = music_judges.fit_towers(keys[4], own)
    opinion = music_judges.fit_opinion(keys[5], own, first)
    in_part = music_judges.scale_of(hears(first, music.LISTENED[0]))
    pairs = music_judges.ask(keys[6], own, in_part, first, second)
    user, found = _listeners(keys[7], own, models, base, pairs)
    for name, judge in (("adherence", music_judges.adherence), ("quality", music_judges.quality)):
        params = {"adherence": towers, "quality": opinion}[name]
        lead = judge(params, first) - judge(params, second)
        found[f"listen_{name}"] = _agreement(lead, pairs)
    whole = music_judges.scale_of(hears(first, (0, music.BEATS)))
    score = music_judges.listener_score(models.listeners, user, first)
    world = World(base, towers, opinion, user, whole, music_judges.scale_of(score))
    return world, found


def _learn_corpus(key: jax.Array, own, models: Models) -> Any:
    of_init, of_fit = jax.random.split(key)

    def sample(key: jax.Array) -> Sample:
        of = jax.random.split(key)
        caption = music.draw_captions(of[0], own.base_batch)
        return Sample(caption, music.melody_tokens(music.compose(of[1], caption)))

    def loss(params: Any, batch: Sample) -> Array:
        scores = models.policy.log_prob(params, _given(*batch))
        return -jnp.mean(scores.log_probs)

    schedule = optax.cosine_decay_schedule(own.base_learning_rate, own.base_steps)
    params = models.policy.init(of_init)
    return fit(of_fit, params, loss, sample, optax.adam(schedule), steps=own.base_steps)[0]


def _listeners(key: jax.Array, own, models: Models, base: Any, pairs: Pairs):
    """The model that is used, and ablations: no checkpoint, no caption, 10 seconds of a clip."""
    of_init, of_fit = jax.random.split(key)
    scratch = models.listeners.init(of_init)
    ours = {**scratch, "trunk": base}
    nameless = music.caption_of(jnp.zeros(pairs.label.shape, jnp.int32))
    blind = pairs._replace(caption=nameless)
    # The rest of a clip is its first phrase again, which tells nothing new.
    again = lambda x: jnp.concatenate([x[:, : 2 * music.PHRASE]] * 2, axis=1)
    short = pairs._replace(first=again(pairs.first), second=again(pairs.second))
    arms = {
        "listen": (ours, pairs), "listen_scratch": (scratch, pairs),
        "listen_no_caption": (ours, blind), "listen_10_seconds": (ours, short),
    }  # fmt: skip
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *arms.values())

    def one(arm):
        start, data = arm
        seen = jax.tree.map(lambda x: x[: own.pairs], data)
        model = models.listeners
        params = music_judges.fit_listeners(of_fit, own, model, start, seen)
        held = jax.tree.map(lambda x: x[own.pairs :], data)
        return params, music_judges.lead(model, params, held)

    params, leads = jax.lax.map(one, stacked)
    held = jax.tree.map(lambda x: x[own.pairs :], pairs)
    found = {name: _agreement(leads[i], held) for i, name in enumerate(arms)}
    found["listen_ideal"] = _agreement(pairs.better - 0.5, pairs)
    return jax.tree.map(lambda x: x[0], params), found


def _agreement(lead: Float[Array, "N"], pairs: Pairs) -> dict[str, Array]:
    share = lambda label: jnp.mean((lead > 0) == (label > 0.5), dtype=jnp.float32)
    return {"accuracy": share(pairs.label), "accuracy_true": share(pairs.better)}


# Reinforcement


def _rewards(models: Models, world: World, sample: Sample) -> Float[Array, "B 3"]:
    """Adherence, quality, and what listeners think, 0 on average of the base and a fifth apart."""
    adherence = music_judges.adherence(world.towers, sample)
    quality = music_judges.quality(world.opinion, sample)
    user = music_judges.listener_score(models.listeners, world.user, sample)
    user = (user - world.user_scale.mean) / world.user_scale.std
    return jnp.stack([adherence, quality, 0.2 * user], axis=-1)


def _train(key: jax.Array, own, models: Models, world: World):
    """All arms, one after the other: names, their checkpoints `[arms]`, curves by name.

    RU is U from R's checkpoint after four fifths of the steps, for a fifth: as many as R's.
    """
    names = [*own.arms, "ru"]
    table = [[own.arms["u" if name == "ru" else name][r] for r in REWARDS] for name in names]
    is_r, is_ru = (jnp.asarray([n == name for n in names]) for name in ("r", "ru"))
    fifth = own.looks // 5

    def arm(r_checkpoint: Any, x):
        weights, from_r, gives = x
        start = _where(from_r, r_checkpoint, world.base)
        saved, curve = _reinforce(key, own, models, world, start, weights)
        at = lambda look: jax.tree.map(lambda a: a[look], saved)
        r_checkpoint = _where(gives, at(4 * fifth), r_checkpoint)
        return r_checkpoint, ((at(fifth), at(-1)), curve)

    _, (ends, curves) = jax.lax.scan(arm, world.base, (jnp.asarray(table), is_ru, is_r))
    checkpoints = jax.tree.map(lambda *x: jnp.concatenate((x[0][None],) + x[1:]), world.base, *ends)
    long = [f"{name}_long" if name in ("u", "ru") else name for name in names]
    short = [name if name in ("u", "ru") else f"{name}_short" for name in names]
    curves = {name: jax.tree.map(lambda x: x[i], curves) for i, name in enumerate(long)}
    return ["base", *short, *long], checkpoints, curves


def _where(condition: Array, first: Any, second: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)


def _reinforce(key: jax.Array, own, models: Models, world: World, start: Any, weights: Array):
    """Checkpoints `[looks + 1]` and metrics `[looks + 1]` of one arm, near `start`."""
    keys = jax.random.split(key, 3)
    optimizer, of_value = optax.adam(own.learning_rate), optax.adam(own.value_learning_rate)
    reward = lambda sample: jnp.sum(_rewards(models, world, sample) * weights[None], axis=-1)
    first = reward(_clips(keys[0], models, start, music.draw_captions(keys[0], own.tested)))
    value = {"trunk": start, "weight": jnp.zeros(own.width), "bias": jnp.mean(first)}

    def step(state, i: Array):
        params, value, opt_state, value_state = state
        of = jax.random.split(jax.random.fold_in(keys[1], i))
        sample = _clips(of[0], models, params, music.draw_captions(of[1], own.batch))
        mask = jnp.ones(sample.tokens.shape, bool)
        at_end = jnp.zeros(mask.shape, jnp.float32).at[:, -1].set(reward(sample))
        returns = kl_reinforce.reward_to_go(at_end, mask)
        baseline = _value(models, value, sample)
        reference = _log_probs(models, start, sample)

        def loss(params: Any) -> Array:
            log_probs = _log_probs(models, params, sample)
            parts = _chosen(log_probs, sample.tokens), returns, baseline
            kl = exact_kl(log_probs, reference)
            return -kl_reinforce.mixed_objective(*parts, kl, mask, alpha=own.alpha)

        value_loss = lambda v: kl_reinforce.baseline_loss(_value(models, v, sample), returns, mask)
        params, opt_state = _update(optimizer, params, opt_state, jax.grad(loss)(params))
        value, value_state = _update(of_value, value, value_state, jax.grad(value_loss)(value))
        return (params, value, opt_state, value_state), None

    def look(params: Any) -> dict[str, Array]:
        captions = music.draw_captions(keys[2], own.tested)
        return _measure(models, world, params, _clips(keys[2], models, params, captions))

    def stretch(state, numbers: Array):
        seen = state[0], look(state[0])
        return jax.lax.scan(step, state, numbers)[0], seen

    state = (start, value, optimizer.init(start), of_value.init(value))
    numbers = jnp.arange(own.steps).reshape(own.looks, -1)
    state, (saved, curve) = jax.lax.scan(stretch, state, numbers)
    last = state[0], look(state[0])
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), (saved, curve), last)


def _update(optimizer, params: Any, opt_state: Any, grads: Any):
    with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
        updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _value(models: Models, value: Any, sample: Sample) -> Float[Array, "B S"]:
    """`V` at every state, from a transformer of its own."""
    given = _given(*sample)
    states = language.response_hidden(models.network, value["trunk"], given.prompts, given.actions)
    return states[:, 0] @ value["weight"] + value["bias"]


def _measure(models: Models, world: World, params: Any, sample: Sample) -> dict[str, Array]:
    """Gold and learned rewards of a policy's clips, and its divergence from the base in nats."""
    rewards = jnp.mean(_rewards(models, world, sample), axis=0)
    melody = music.melody_of(sample.tokens)
    gold = jnp.mean(music.musicality(sample.caption, melody.notes))
    kl = exact_kl(_log_probs(models, params, sample), _log_probs(models, world.base, sample))
    return {
        "gold": gold,
        **{name: rewards[i] for i, name in enumerate(REWARDS)},
        "sum": gold + rewards[0] + rewards[1],
        "kl": jnp.mean(jnp.sum(kl, axis=1)),
    }


def draw(config, found: studies.Found, results, axes) -> None:
    """Gold musicality against the divergence from the base, mean over the seeds."""
    del config, results
    for arm, own in found.items():
        if "gold_curve" in own:
            kl, gold = own["kl_curve"].mean(0), own["gold_curve"].mean(0)
            axes.plot(kl, gold, marker=".", label=arm)
    axes.set(xlabel="KL from the base, nats", ylabel="musicality", title="Over-optimisation")
    axes.legend(fontsize=7)
