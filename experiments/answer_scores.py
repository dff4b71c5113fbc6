"""What the policy thinks of the reference answers: `config.likelihood`.

Inside the jitted step each response's reasoning is followed by the reference answer
(`rewards.likelihoods.splice`) and scored in one teacher-forced pass by the policy that wrote it,
and by the KL reference; the chain finds the log-probabilities in `aux`. Once before training the
start scores the answers straight after the prompts, without reasoning. Evaluations say how probable
the policy finds the answers of the evaluation prompts behind its own reasoning.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import rlvr_model
from experiments.rlvr_config import ANSWERS
from experiments.rlvr_problem import Problem
from jaxreward import masked
from jaxreward.policies.language import Prompts
from jaxreward.rewards import likelihoods
from jaxreward.tasks import pipeline
from jaxreward.tasks import tokenizer as tokenizers
from jaxreward.training.exits import ConfigError
from jaxreward.types import Policy, Trajectories

PROVIDED = (
    "spliced",
    "answer_log_probs",
    "answer_reference_log_probs",
    "answer_mask",
    "answer_valid",
    "answer_weights",
    "base_log_probs",
    "base_mask",
)
"""Entries of `aux`; `answer_weights` are 0 until a transform writes them."""

BASE = ("base_log_probs", "base_mask")
"""Columns of the training rows."""

METRIC = ANSWERS
"""Mean natural log-probability of a token of the reference answer behind the policy's own
reasoning; its exponential with the sign turned is a perplexity."""


def separator_id(config: ml_collections.ConfigDict, tokenizer: tokenizers.Tokenizer) -> int:
    """The id of `config.likelihood.separator`, which must be one token."""
    text = config.likelihood.separator
    try:
        encoded = tokenizers.encode(tokenizer, [text])
    except ValueError as error:
        raise ConfigError(f"config.likelihood.separator = {text!r}: {error}") from error
    if int(encoded.lengths[0]) != 1:
        raise ConfigError(
            f"config.likelihood.separator = {text!r} has {int(encoded.lengths[0])} tokens; allowed "
            "is one"
        )
    return int(encoded.tokens[0, 0])


def with_base_scores(config: ml_collections.ConfigDict, problem: Problem, start: Any) -> Problem:
    """The problem whose training rows also hold the start's scores without reasoning.

    `base_log_probs` float32 and `base_mask` bool, `[N, A + 1]`: of the reference answer behind the
    prompt and the separator, of which the mask covers the answer. Unchanged without
    `config.likelihood`.
    """
    if not config.get("likelihood"):
        return problem
    rows = problem.train
    count, separator = len(rows["prompt_id"]), separator_id(config, problem.model.tokenizer)
    tokens = np.full((count, 1, 1), separator, np.int32)
    empty = Trajectories(
        Prompts(jnp.asarray(rows["tokens"]), jnp.asarray(rows["lengths"])),
        jnp.asarray(tokens), jnp.asarray(tokens), jnp.zeros(tokens.shape), jnp.ones(tokens.shape, bool),
    )  # fmt: skip
    lengths = jnp.asarray(rows["answer_lengths"])
    direct = likelihoods.splice(empty, jnp.asarray(rows["answer_tokens"]), lengths, separator)
    scores = jax.jit(problem.policy.log_prob)(start, direct.trajectories).log_probs
    base = {"base_log_probs": scores[:, 0], "base_mask": direct.answer_mask[:, 0]}
    return problem._replace(train={**rows, **{k: np.asarray(v) for k, v in base.items()}})


def mean_log_prob(
    config: ml_collections.ConfigDict,
    problem: Problem,
    policy: Policy,
    params: Any,
    trajectories: Trajectories,
) -> jax.Array:
    """`METRIC` of responses `[P, G]` to the evaluation prompts; those without separator are out.

    Args:
      config: with `likelihood`.
      problem: with the answers of the evaluation prompts.
      policy: scores.
      params: its parameters.
      trajectories: the responses.
    """
    separator = separator_id(config, problem.model.tokenizer)
    answers = (jnp.asarray(problem.evaluated[n]) for n in ("answer_tokens", "answer_lengths"))
    spliced = likelihoods.splice(trajectories, *answers, separator, once=config.likelihood.once)
    log_probs = policy.log_prob(params, spliced.trajectories).log_probs
    return masked.mean(log_probs, spliced.answer_mask)


def make_scorer(config: ml_collections.ConfigDict, problem: Problem):
    """`(population, state, start, trajectories, rows) -> aux` of every run, or None.

    `rows` are those of every run, `[A * M, P, ...]`.
    """
    if not config.get("likelihood"):
        return None
    separator = separator_id(config, problem.model.tokenizer)
    once = config.likelihood.once

    def scorer(population, state, start, trajectories, rows: pipeline.Batch):
        learner = rlvr_model.learner(config, problem.policy, start)

        def one(params, own, answers, lengths):
            spliced = likelihoods.splice(own, answers, lengths, separator, once=once)
            inside, placed = spliced.answer_mask, spliced.trajectories
            mine = learner.log_prob(params, placed).log_probs
            reference = problem.policy.log_prob(start, placed).log_probs
            return {
                "spliced": placed,
                "answer_log_probs": jnp.where(inside, mine, 0.0),
                "answer_reference_log_probs": jnp.where(inside, reference, 0.0),
                "answer_mask": inside,
                "answer_valid": spliced.valid.astype(jnp.float32),
                "answer_weights": jnp.zeros(inside.shape, jnp.float32),
            }

        own = (rows["answer_tokens"], rows["answer_lengths"])
        return population.each_run(one, state.runs.params, trajectories, *own)

    return scorer
