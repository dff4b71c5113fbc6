"""The programs of `experiments.rlvr`: one step and one evaluation of a population.

Hyper-parameters are arguments, so populations of one size share one compilation.
"""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import answer_scores, rlvr_model
from experiments.features import build_features
from experiments.rlvr_problem import Problem
from experiments.verification import Verification
from jaxreward import masked
from jaxreward.policies.language import Prompts
from jaxreward.training import population as populations
from jaxreward.training.config import build
from jaxreward.training.population import Population
from jaxreward.transforms import noise


class Context(NamedTuple):
    """What every stage needs.

    Attributes:
      config: of the run.
      problem: task and policy.
      arms: reward chain by arm.
      verification: how samples are judged.
      start: parameters of the policy that every run starts from, the KL reference.
      workdir: folder of the run.
    """

    config: ml_collections.ConfigDict
    problem: Problem
    arms: dict[str, Any]
    verification: Verification
    start: Any
    workdir: str


class Programs(NamedTuple):
    """What a stage runs.

    Attributes:
      step: `(hyper, state, rows) -> (state, metrics)`: rollout, verdicts, update of every
        run; `hyper` are arrays `[A, M]` by name, `rows` a batch `[M, P, ...]`.
      evaluate: `(state) -> {arm: {name: [M]}}`.
    """

    step: Callable[..., Any]
    evaluate: Callable[..., Any]


def make_programs(context: Context) -> Programs:
    """Programs for populations of `context.arms` with any number of members."""
    return Programs(make_step(context), make_evaluate(context))


def make_population(
    context: Context,
    hyper: dict[str, Any],
    seed_index: np.ndarray,
    first_seed: int = 0,
    start: Any = None,
) -> Population:
    """A population with the config's loss and optimizer.

    Args:
      context: of the run.
      hyper: `[A, M]` by name, may be traced.
      seed_index: int32 `[M]`.
      first_seed: the seed of index 0.
      start: `context.start` as an argument of the jitted function that this is called in, where
        it would be too large a constant; default the concrete one.
    """
    config, start = context.config, context.start if start is None else start
    policy = rlvr_model.learner(config, context.problem.policy, start)

    def make_loss(own):
        knobs = {**_knobs(own, "loss"), "kl_coefficient": own["kl_coefficient"]}
        return _build(config.loss, knobs, policy=policy)

    def make_optimizer(own):
        knobs = {**_knobs(own, "optimizer"), "learning_rate": own["learning_rate"]}
        return _build(config.optimizer, knobs)

    return populations.make_population(
        policy,
        context.arms,
        make_loss,
        make_optimizer,
        {name: jnp.asarray(value) for name, value in hyper.items()},
        seed_index,
        group_size=config.group_size,
        first_seed=first_seed,
        spike_factor=config.safety.spike_factor,
        runs_at_a_time=config.runs_at_a_time,
        updates=config.updates_per_rollout,
        mesh=populations.run_mesh(len(context.arms) * seed_index.size),
    )


def arm_knobs(config: ml_collections.ConfigDict, hyper: dict[str, Any]) -> dict[str, Any]:
    """`hyper` and the numbers in which arms differ beside their chains, `[A, M]`.

    `config.own.<arm>.<section>.<key>` replaces `config.<section>.<key>` for one arm, the section
    being "loss" or "optimizer"; it is called `section/key` among the hyper-parameters.
    """
    arms, own = list(config.arms), config.get("own", {})
    shape, found = np.shape(hyper["learning_rate"]), dict(hyper)
    names = sorted(
        (section, key) for arm in own for section in own[arm] for key in own[arm][section]
    )
    for section, key in dict.fromkeys(names):
        default = config[section][key]
        column = [own.get(arm, {}).get(section, {}).get(key, default) for arm in arms]
        found[f"{section}/{key}"] = np.broadcast_to(np.float32(column)[:, None], shape)
    return found


def _knobs(own: dict[str, Any], section: str) -> dict[str, Any]:
    prefix = f"{section}/"
    return {k.removeprefix(prefix): v for k, v in own.items() if k.startswith(prefix)}


def _build(section: ml_collections.ConfigDict, knobs: dict[str, Any], **extra: Any) -> Any:
    """`build`, with the knobs in place of the section's own."""
    kept = {key: section[key] for key in section if key not in knobs}
    return build(ml_collections.ConfigDict(kept), **knobs, **extra)


def make_step(context: Context) -> Callable[..., Any]:
    """See `Programs.step`. The state's buffers are donated.

    One jitted program where the verifier can be traced, else two with the host between.
    """
    policy = context.problem.policy
    features = build_features(context.config, context.problem.model.tokenizer)
    scorer = answer_scores.make_scorer(context.config, context.problem)

    def rollout(hyper, state, rows, reference):
        population = _population(context, hyper, reference)
        trajectories = population.rollout(state, Prompts(rows["tokens"], rows["lengths"]))
        score = lambda own: policy.log_prob(reference, own).log_probs
        return trajectories, population.each_run(score, trajectories)

    def update(hyper, state, rows, trajectories, reference_log_probs, verdict, reference):
        population = _population(context, hyper, reference)
        own = population.per_seed(rows)
        scores = scorer(population, state, reference, trajectories, own) if scorer else {}
        aux = {
            **{name: own[name] for name in _OF_PROMPTS if name in own},
            **scores,
            "true_rewards": verdict.true_rewards,
            "output_form": verdict.form,
            "answer_id": verdict.answer_id,
            "reference_id": verdict.reference_id,
            "output_id": jax.vmap(noise.output_id)(trajectories.actions, trajectories.mask),
            "reference_log_probs": reference_log_probs,
            **{name: jax.vmap(feature)(trajectories) for name, feature in features.items()},
        }
        return population.update(state, verdict.rewards, verdict.mask, trajectories, aux)

    return _with_verdicts(context, rollout, update)


def _population(context: Context, hyper: dict[str, jax.Array], start: Any) -> Population:
    """A population whose members have prompts of their own, `[M, P, ...]`."""
    members = hyper["learning_rate"].shape[1]
    return make_population(context, hyper, np.arange(members, dtype=np.int32), start=start)


def _with_verdicts(context: Context, rollout, update):
    verification, arms = context.verification, len(context.arms)
    of_runs = lambda tile, rows: {name: tile(rows[name], arms) for name in rows}

    def whole(hyper, state, rows, reference):
        trajectories, scores = rollout(hyper, state, rows, reference)
        verdict = _verify(verification, trajectories, of_runs(_tile, rows))
        return update(hyper, state, rows, trajectories, scores, verdict, reference)

    if verification.jittable:
        jitted = jax.jit(whole, donate_argnums=1)
        return lambda hyper, state, rows: jitted(hyper, state, _numeric(rows), context.start)
    first, second = jax.jit(rollout), jax.jit(update, donate_argnums=1)

    def split(hyper, state, rows):
        trajectories, scores = first(hyper, state, _numeric(rows), context.start)
        verdict = _verify(verification, trajectories, of_runs(_tile, {"answer": rows["answer"]}))
        own = (hyper, state, _numeric(rows), trajectories, scores, verdict)
        return second(*own, context.start)

    return split


def _tile(leaf, arms: int):
    """`[M, ...]` for every arm, `[A * M, ...]`; numpy stays numpy."""
    return leaf[np.tile(np.arange(leaf.shape[0]), arms)]


def _verify(verification: Verification, trajectories, rows):
    lengths = jnp.sum(trajectories.mask, axis=-1, dtype=jnp.int32)
    return verification.verify(trajectories.outputs, lengths, rows)


def make_evaluate(context: Context) -> Callable[..., Any]:
    """`(state) -> {arm: {name: [M]}}`: accuracy on the evaluation prompts.

    At the training temperature, on the prompts and with the samples of `config.evaluation`.
    `eval/true_accuracy` and `eval/observed_accuracy` are means over all prompts and samples
    whose verdict is there; with `config.likelihood` there is `answer_scores.METRIC` as well.
    """
    config, problem, verification = context.config, context.problem, context.verification
    count, arms = config.evaluation.samples, list(context.arms)
    rows = jax.tree.map(lambda leaf: leaf[None], problem.evaluated)
    prompts = Prompts(jnp.asarray(rows["tokens"][0]), jnp.asarray(rows["lengths"][0]))
    key = jax.random.key(config.seed + _EVALUATION)

    @jax.jit
    def sample(state, start):
        policy = rlvr_model.learner(config, problem.policy, start)

        def draw(params):
            drawn = policy.sample(params, key, prompts, count)
            if not config.get("likelihood"):
                return drawn, {}
            scored = answer_scores.mean_log_prob(config, problem, policy, params, drawn)
            return drawn, {answer_scores.METRIC: scored}

        runs = state.runs.step.shape[0]
        mesh = populations.run_mesh(runs)
        return populations.map_runs(draw, (state.runs.params,), config.runs_at_a_time, mesh)

    def accuracies(verdict):
        true, seen = jnp.asarray(verdict.true_rewards), jnp.asarray(verdict.rewards)
        axes = (1, 2)
        return {
            "eval/true_accuracy": masked.mean(true, jnp.isfinite(true), axes),
            "eval/observed_accuracy": masked.mean(seen, jnp.asarray(verdict.mask), axes),
        }

    def evaluate(state):
        (trajectories, scores), runs = sample(state, context.start), state.runs.step.shape[0]
        every = {
            name: np.broadcast_to(column, (runs,) + column.shape[1:])
            for name, column in rows.items()
        }
        if verification.jittable:
            every = _numeric(every)
        flat = accuracies(_verify(verification, trajectories, every)) | scores
        split = {n: v.reshape(len(arms), -1) for n, v in flat.items()}
        return {arm: {n: v[i] for n, v in split.items()} for i, arm in enumerate(arms)}

    return evaluate


_EVALUATION = 1 << 21


_OF_PROMPTS = ("prompt_id", "prompt_type", "initial_majority_id", *answer_scores.BASE)
_TOKENS = ("tokens", "lengths", "answer_tokens", "answer_lengths")


def _numeric(rows: dict[str, Any]) -> dict[str, Any]:
    return {name: rows[name] for name in _OF_PROMPTS + _TOKENS if name in rows}
