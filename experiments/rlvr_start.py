"""What the start of an rlvr run can do before any reward: yardsticks and pseudo-labels."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import answer_scores, rlvr_model
from experiments.rlvr_config import YARDSTICKS
from experiments.rlvr_problem import Problem
from experiments.verification import Verdict, Verification
from jaxreward.evaluation import memorization
from jaxreward.policies.language import Prompts
from jaxreward.tasks import pipeline
from jaxreward.tasks import tokenizer as tokenizers
from jaxreward.transforms import majority

START, GREEDY, BEST = YARDSTICKS
"""Arms of the results that nothing trains: the start's mean over samples at the training
temperature, its greedy answer, and the best of its samples (pass@k; of a graded reward max@k).
A reward has taught something only where it beats these."""

Scores = dict[str, dict[str, float]]
"""`{yardstick: {metric: value}}`."""


def judge(
    problem: Problem,
    verification: Verification,
    start: Any,
    rows: pipeline.Batch,
    samples: int,
    seed: int,
) -> Verdict:
    """The verdicts `[P, samples]` of samples that the start gives to `rows`."""
    prompts = Prompts(jnp.asarray(rows["tokens"]), jnp.asarray(rows["lengths"]))
    key = jax.random.fold_in(jax.random.key(seed), _START)
    draw = jax.jit(problem.policy.sample, static_argnums=3)
    trajectories = jax.tree.map(lambda leaf: leaf[None], draw(start, key, prompts, samples))
    own = {name: column[None] for name, column in rows.items()}
    if verification.jittable:
        own = {name: jnp.asarray(own[name]) for name in own if name not in pipeline.TEXTS}
    verdict = verification.verify(trajectories.outputs, trajectories.lengths, own)
    return Verdict(*(np.asarray(column)[0] for column in verdict))


def with_votes(
    config: ml_collections.ConfigDict, problem: Problem, verification: Verification, start: Any
) -> Problem:
    """The problem whose training rows also hold the start's majority answer.

    `initial_majority_id` uint32 `[N]`, among `config.task.votes` samples of each prompt; 0
    where none gives an answer. Unchanged where `votes` is 0.
    """
    if not config.task.votes:
        return problem
    verdict = judge(problem, verification, start, problem.train, config.task.votes, config.seed)
    vote = majority.majority_vote(jnp.asarray(verdict.answer_id))
    label = np.asarray(vote.answer_id)
    return problem._replace(train={**problem.train, "initial_majority_id": label})


def yardsticks(
    config: ml_collections.ConfigDict, problem: Problem, verification: Verification, start: Any
) -> Scores:
    """Scores of the start on the evaluation prompts, from `config.evaluation.start_samples`."""
    count = config.evaluation.start_samples
    if not count:
        return {}
    many = judge(problem, verification, start, problem.evaluated, count, config.seed + 1)
    greedy = problem._replace(policy=rlvr_model.make_policy(config, problem.model, top_k=1))
    one = judge(greedy, verification, start, problem.evaluated, 1, config.seed)
    likely = {}
    if config.get("likelihood"):
        score = jax.jit(lambda start: _likely(config, problem, start))
        likely = {answer_scores.METRIC: float(score(start))}
    return {
        START: _scores(many, lambda values: np.nanmean(values)) | likely,
        GREEDY: _scores(one, lambda values: np.nanmean(values)),
        BEST: _scores(many, lambda values: np.nanmean(np.nanmax(values, axis=1))),
    }


def _likely(config: ml_collections.ConfigDict, problem: Problem, start: Any) -> jax.Array:
    """`answer_scores.METRIC` of the start."""
    rows, policy = problem.evaluated, problem.policy
    prompts = Prompts(jnp.asarray(rows["tokens"]), jnp.asarray(rows["lengths"]))
    key = jax.random.fold_in(jax.random.key(config.seed + 1), _START)
    drawn = policy.sample(start, key, prompts, config.evaluation.start_samples)
    return answer_scores.mean_log_prob(config, problem, policy, start, drawn)


def probe(config: ml_collections.ConfigDict, problem: Problem, start: Any) -> dict[str, float]:
    """How much of the training and of the evaluation prompts the start knows by heart.

    `probe/exact_match_<share>_<of>` and `probe/rouge_l_<share>_<of>` for the shares of
    `config.evaluation.prefixes` and `of` "train" and "evaluated"; empty without prefixes.
    """
    found: dict[str, float] = {}
    draw = jax.jit(rlvr_model.make_policy(config, problem.model, top_k=1).sample, static_argnums=3)
    key = jax.random.key(config.seed)
    write = lambda rows: draw(start, key, rows, 1)
    for share in config.evaluation.prefixes:
        for of, rows in (("train", problem.train), ("evaluated", problem.evaluated)):
            done = _complete(write, problem, list(rows["prompt"]), share)
            found[f"probe/exact_match_{share}_{of}"] = done.exact_match
            found[f"probe/rouge_l_{share}_{of}"] = done.rouge_l
    return found


def _complete(write, problem: Problem, prompts: list[str], share: float):
    # what ends a prompt is format, and a leaked question may have had another one
    parts = [memorization.split_at(prompt.rstrip(":=. "), share) for prompt in prompts]
    width = problem.train["tokens"].shape[1]
    tokenizer = problem.model.tokenizer
    shown = tokenizers.encode(tokenizer, [before for before, _ in parts], width)
    written = write(Prompts(jnp.asarray(shown.tokens), jnp.asarray(shown.lengths)))
    texts = tokenizers.decode(tokenizer, np.asarray(written.outputs), np.asarray(written.lengths))
    return memorization.completion(texts, [after for _, after in parts])


def _scores(verdict: Verdict, reduce) -> dict[str, float]:
    seen = np.where(verdict.mask, verdict.rewards, np.nan)
    pairs = {"eval/true_accuracy": verdict.true_rewards, "eval/observed_accuracy": seen}
    return {name: float(reduce(np.asarray(values))) for name, values in pairs.items()}


_START = 1 << 22  # far from the steps that other keys are folded with
