"""`config.likelihood`: what the runner gives to the chain, and a run that learns from it."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import answer_scores, arms, rlvr_config, rlvr_problem
from jaxreward.training import config as config_lib
from jaxreward.training.exits import ConfigError

ROOT = pathlib.Path(__file__).parents[2]
CONFIGS = ("configs/rlpr.py", "configs/likelihood_rewards.py")
VARIANTS = [(CONFIGS[0], ""), (CONFIGS[0], ":smoke")] + [
    (CONFIGS[1], v) for v in ("", ":long", ":smoke")
]


def load(path, variant=":smoke", **changes):
    return config_lib.override(config_lib.load_config(str(ROOT / path) + variant), changes)


@pytest.mark.parametrize("path, variant", VARIANTS)
def test_configs_are_valid_and_their_chains_can_be_built(path, variant):
    config = load(path, variant)
    rlvr_config.validate(config)
    arms.build_arms(config, arms.provided(config))


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    config = load(CONFIGS[0])
    return config, rlvr_problem.load_problem(config, str(tmp_path_factory.mktemp("data")))


def test_base_scores_are_those_of_the_answer_without_reasoning(problem):
    config, own = problem
    params = jax.jit(own.policy.init)(jax.random.key(0))
    scored = answer_scores.with_base_scores(config, own, params)
    mask, scores = scored.train["base_mask"], scored.train["base_log_probs"]
    np.testing.assert_array_equal(mask.sum(1), own.train["answer_lengths"])
    assert np.all(scores[mask] < 0)
    # by hand: the first prompt, the separator, and the answer as one text
    row = {name: column[:1] for name, column in own.train.items()}
    shown, length = row["tokens"][0, : row["lengths"][0]], int(row["answer_lengths"][0])
    separator = answer_scores.separator_id(config, own.model.tokenizer)
    text = np.concatenate([shown, [separator], row["answer_tokens"][0, :length]])
    from jaxreward.policies.language import Prompts
    from jaxreward.types import Trajectories

    tail = jnp.asarray(text[len(shown):], jnp.int32)[None, None]
    prompts = Prompts(jnp.asarray(shown, jnp.int32)[None], jnp.asarray([len(shown)], jnp.int32))
    whole = Trajectories(prompts, tail, tail, jnp.zeros(tail.shape), jnp.ones(tail.shape, bool))
    expected = jax.jit(own.policy.log_prob)(params, whole).log_probs[0, 0, 1:]
    np.testing.assert_allclose(scores[0][mask[0]], expected, atol=1e-5)


def test_the_evaluation_scores_the_answers_behind_the_own_reasoning(problem):
    """By hand: one response cut after its last separator, the answer, one pass."""
    config, own = problem
    params = jax.jit(own.policy.init)(jax.random.key(0))
    rows, length = own.evaluated, int(own.evaluated["answer_lengths"][0])
    separator = answer_scores.separator_id(config, own.model.tokenizer)
    number = len(rows["prompt_id"])
    from jaxreward.policies.language import Prompts
    from jaxreward.types import Trajectories

    tail = jnp.broadcast_to(jnp.asarray([5, separator, 6], jnp.int32), (number, 2, 3))
    tail = tail.at[1:, :, 1].set(5).at[0, 1, 1].set(5)  # only the first response has one
    prompts = Prompts(jnp.asarray(rows["tokens"]), jnp.asarray(rows["lengths"]))
    whole = Trajectories(prompts, tail, tail, jnp.zeros(tail.shape), jnp.ones(tail.shape, bool))
    score = functools.partial(answer_scores.mean_log_prob, config, own, own.policy)
    found = jax.jit(score)(params, whole)
    answer = np.asarray(rows["answer_tokens"][0, :length], np.int32)
    text = jnp.asarray(np.concatenate([[5, separator], answer]), jnp.int32)[None, None]
    first = Prompts(prompts.tokens[:1], prompts.lengths[:1])
    one = Trajectories(first, text, text, jnp.zeros(text.shape), jnp.ones(text.shape, bool))
    expected = jax.jit(own.policy.log_prob)(params, one).log_probs[0, 0, 2:]
    np.testing.assert_allclose(found, expected.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    "path", ["claims.log_prob_above_start.metric", "claims.prob_is_flat.metric", "tune.metric"]
)
def test_a_metric_that_nobody_measures_is_refused(path):
    config = load(CONFIGS[1], ":long", **{path: "eval/answer_prob"})
    with pytest.raises(ConfigError, match="answer_prob.*answer_log_prob"):
        rlvr_config.validate(config)
    config = load(CONFIGS[1], ":long")
    with config.unlocked():
        del config.likelihood
    with pytest.raises(ConfigError, match="answer_log_prob"):
        rlvr_config.validate(config)


def test_without_the_key_nothing_is_added(problem):
    config, own = problem
    config = config.copy_and_resolve_references()
    with config.unlocked():
        del config.likelihood
    assert answer_scores.with_base_scores(config, own, None) is own
    assert answer_scores.make_scorer(config, own) is None
    assert "aux/answer_mask" not in arms.provided(config)


@pytest.mark.parametrize("text", ["==", "§"])
def test_a_separator_that_is_no_token_is_refused(problem, text):
    config, own = problem
    config = config_lib.override(config, {"likelihood.separator": text})
    with pytest.raises(ConfigError, match="likelihood.separator"):
        answer_scores.make_scorer(config, own)


def test_a_run_learns_from_the_answers(tmp_path):
    from test_rlvr import run

    fewer = "--config.tune.seeds=1"  # as many runs as are compared: one compilation
    done = run(f"--config={CONFIGS[1]}:smoke", f"--workdir={tmp_path / 'run'}", fewer)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "were not read" not in done.stderr
    lines = (tmp_path / "run/compare/metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    updates = [row for row in rows if "tuned/log_prob/train/skipped" in row]
    assert updates and all(row["tuned/log_prob/train/skipped"] == 0 for row in updates)
    assert updates[0]["tuned/log_prob/likelihood/mean_log_prob"] < 0
    results = json.loads((tmp_path / "run/summary.json").read_text())["results"]
    for arm in ("start", "tuned/binary", "tuned/log_prob"):
        assert -10 < results[arm][answer_scores.METRIC]["mean"] < 0
