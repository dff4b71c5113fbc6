"""The whole audit on logs with known noise: figures, decisions, and logs that say little."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import audit_report, audit_synthetic
from jaxreward.evaluation import group_audit, noise_audit, recheck_statistics, rollout_log
from jaxreward.evaluation.correction_advice import advise
from jaxreward.evaluation.noise_audit import Settings, audit
from jaxreward.evaluation.rollout_log import Feature, Rollouts
from jaxreward.rate_estimates import Rates

QUICK = Settings(draws=300)


def as_rollouts(log: audit_synthetic.Synthetic) -> Rollouts:
    prompts, group = log.true.shape
    prompt = np.repeat(np.arange(prompts), group)
    return Rollouts(
        prompt, prompt, log.observed.ravel(),
        np.where(log.rechecked, log.true, -1).ravel(),
        {
            "source": Feature(log.source.ravel(), audit_synthetic.SOURCES),
            "phrase": Feature(log.phrase.ravel().astype(np.int64), ("no", "yes")),
        },
    )


def simple(seed=0, prompts=300, group=8, a=0.1, b=0.2, checked=0.3, **fields) -> Rollouts:
    rng = np.random.default_rng(seed)
    true = rng.random((prompts, group)) < rng.beta(0.7, 0.7, (prompts, 1))
    draw = rng.random(true.shape)
    seen = np.where(true, draw >= b, draw < a)
    prompt = np.repeat(np.arange(prompts), group)
    recheck = np.where(rng.random(true.shape) < checked, true, -1).ravel()
    return Rollouts(prompt, prompt, seen.ravel(), recheck, **fields)


@pytest.fixture(scope="module")
def by_scenario():
    logs = {name: audit_synthetic.generate(name) for name in audit_synthetic.SCENARIOS}
    return {name: (log, audit(as_rollouts(log), QUICK)) for name, log in logs.items()}


@pytest.mark.parametrize("scenario", audit_synthetic.SCENARIOS)
def test_figures_are_near_the_truth(by_scenario, scenario):
    log, result = by_scenario[scenario]
    truth = audit_synthetic.truth(log)
    for name in ("false_positive", "false_negative", "determinant", "success_rate"):
        entry = result["rates"][name]
        half = (entry["high"] - entry["low"]) / 2
        assert abs(entry["estimate"] - truth[name]) < 2 * half, name
        assert 0.01 < half < 0.06
    feature = {"prompt": "source", "hackable": "phrase"}.get(scenario)
    noise = result["groups"]["noise"]
    share = noise["by_feature"][feature] if feature else noise["centred"]
    assert abs(share["share"]["estimate"] - truth["noise_share"]) < 0.06
    if scenario != "hackable":  # there groups are described with the average rates
        dead = result["groups"]["dead_groups"]
        assert abs(dead["true"] - truth["dead_groups"]) < 0.08
        assert abs(dead["falsely_alive"] - truth["falsely_alive"]) < 0.08


@pytest.mark.parametrize(
    "scenario, code, words",
    [
        ("prompt", "correct_by_prompt", "rates by source"),
        ("constant", "rescale", "rescale (KL coefficient times 0.7"),
        ("hackable", "condition_on_output", "fix the verifier for phrase = yes"),
        ("broken", "fix_verifier", "Do not correct"),
    ],
)
def test_decisions(by_scenario, scenario, code, words):
    advice = advise(by_scenario[scenario][1])
    assert advice.code == code
    assert words in advice.title


def test_result_is_plain_json(by_scenario):
    for _, result in by_scenario.values():
        json.dumps(result, allow_nan=False)


def test_same_seed_same_result():
    rollouts = simple()
    assert audit(rollouts, QUICK) == audit(rollouts, QUICK)


def test_buckets_and_strata(by_scenario):
    groups = by_scenario["prompt"][1]["groups"]
    assert groups["strata_feature"] == "source"
    np.testing.assert_allclose(sum(row["share"] for row in groups["buckets"]), 1)
    truth = {"algebra": 0.88, "geometry": 0.60, "word_problem": 0.60}
    for row in groups["strata"]:
        assert row["dr_grpo"] == row["rloo"]
        assert row["dr_grpo"]["low"] - 0.02 < truth[row["value"]] < row["dr_grpo"]["high"] + 0.02
    constant = by_scenario["constant"][1]["groups"]
    for row in constant["buckets"]:
        np.testing.assert_allclose(
            row["dr_grpo"]["estimate"], constant["curve"][0]["dr_grpo"], rtol=1e-9)
    middle = constant["buckets"][2]
    assert middle["grpo"]["estimate"] > constant["buckets"][0]["grpo"]["estimate"]
    spread = constant["factor"]
    assert spread["low"] <= spread["median"] <= spread["high"]


def test_standardized_noise_share_against_simulation():
    rng = np.random.default_rng(1)
    groups, n, a, b = 40000, 16, 0.1, 0.2
    rates = np.array([0.1, 0.5, 0.9])
    kind = rng.integers(0, 3, groups)
    true = rng.random((groups, n)) < rates[kind][:, None]
    draw = rng.random(true.shape)
    seen = np.where(true, draw >= b, draw < a)
    spread = seen.std(axis=1, keepdims=True)
    advantage = np.where(spread > 0, (seen - seen.mean(axis=1, keepdims=True)), 0.0)
    advantage = advantage / np.where(spread > 0, spread, 1.0)
    unexplained = 0.0
    for k in range(3):  # regress on the truth within prompts of one success rate
        x, y = true[kind == k] - true[kind == k].mean(axis=1, keepdims=True), advantage[kind == k]
        unexplained += np.sum(y**2) - np.sum(x * y) ** 2 / np.sum(x**2)
    size = np.full((groups, 1), float(n))
    one = Rates(*(np.array([x]) for x in (a, b, 0.5)))
    conditional = group_audit.Conditional(
        size, seen.sum(axis=1)[:, None] * 1.0, ("all",), one,
        Rates(*(np.repeat(x[None], 3, axis=0) for x in one)))
    found = group_audit.report(conditional, 0.95)["noise"]["standardized"]["estimate"]
    np.testing.assert_allclose(found, unexplained / np.sum(advantage**2), atol=0.03)


def test_noise_share_interval_covers():
    rng = np.random.default_rng(2)
    prompts, group, a, b, runs = 250, 8, 0.1, 0.2, 250
    weights = recheck_statistics.bootstrap_weights(rng, 400, prompts, prompts, 0.95)
    p = rng.beta(0.7, 0.7, 400000)
    q = a + (1 - a - b) * p
    truth = 1 - (1 - a - b) ** 2 * np.mean(p * (1 - p)) / np.mean(q * (1 - q))
    hits = 0
    for run in range(runs):
        log = simple(100 + run, prompts, group, a, b)
        table = recheck_statistics.cluster_counts(
            log.prompt, np.zeros_like(log.prompt), log.observed, log.recheck,
            np.ones(len(log.prompt)), np.ones(len(log.prompt)))
        conditional = group_audit.Conditional(
            *rollout_log.group_counts(log, rollout_log.constant(log)), ("all",),
            recheck_statistics.point_rates(table.sum(axis=0)),
            recheck_statistics.rate_draws(rng, weights, table))
        entry = group_audit.share_entry(
            conditional, np.arange(prompts), weights, 0.95, "prompt")
        assert entry["share"]["estimate"] == pytest.approx(entry["flips"]["estimate"])
        hits += entry["share"]["low"] <= truth <= entry["share"]["high"]
    margin = 3.3 * np.sqrt(0.95 * 0.05 / runs)
    assert 0.945 - margin <= hits / runs <= min(0.965 + margin, 0.999)


def test_without_rechecks_only_bounds_and_a_plan():
    result = audit(simple(checked=0.0), QUICK)
    assert result["state"] == "none" and result["groups"] is None and result["tests"] == []
    assert result["rates"]["false_positive"] == {"estimate": None, "low": 0.0, "high": 1.0}
    assert 0.1 <= result["bounds"]["false_positive"] < 0.6
    row = next(row for row in result["plan"] if row["half_width"] == 0.05)
    assert row["more_accepted"] == row["more_rejected"] > 50
    advice = advise(result)
    assert advice.code == "measure"
    assert any(f"{row['more_accepted']:,} more accepted" in reason for reason in advice.reasons)


@pytest.mark.parametrize(
    "rates, words",
    [((0.0, 0.0), "No errors were found"), ((0.9, 0.8), "contradict the re-checks")],
)
def test_verdicts_that_agree_or_contradict(rates, words):
    result = audit(simple(prompts=60, a=rates[0], b=rates[1]), QUICK)
    assert words in advise(result).title
    noise = result["groups"]["noise"]
    for entry in (noise["centred"]["share"], noise["standardized"]):
        assert entry["low"] <= entry["estimate"] <= entry["high"]


def test_one_verdict_rechecked_gives_bounds_that_hold():
    log = simple()
    appeals = log._replace(recheck=np.where(log.observed, -1, log.recheck))
    result = audit(appeals, QUICK)
    assert result["state"] == "rejected"
    for name, truth in (("false_positive", 0.1), ("false_negative", 0.2), ("determinant", 0.7)):
        entry = result["rates"][name]
        assert entry["estimate"] is None and entry["low"] < truth < entry["high"]
    assert result["rates"]["false_negative"]["low"] > 0.1
    assert "If every accepted rollout is right" in " ".join(advise(result).reasons)


def test_groups_of_one_and_unequal_groups():
    log = simple(prompts=400, group=5)
    rng = np.random.default_rng(3)
    keep = rng.random(len(log.prompt)) < np.where(log.prompt < 150, 0.2, 0.9)
    prompt = np.unique(log.prompt[keep], return_inverse=True)[1]
    cut = Rollouts(prompt, prompt, log.observed[keep], log.recheck[keep])
    result = audit(cut, QUICK)
    size = np.bincount(prompt)
    assert result["log"]["single_rollout_groups"] == np.sum(size == 1) > 10
    assert result["log"]["group_size"]["max"] == size.max()
    kept = size[prompt] > 1
    prompt = np.unique(prompt[kept], return_inverse=True)[1]
    rest = Rollouts(prompt, prompt, cut.observed[kept], cut.recheck[kept])
    sums = [r["groups"]["noise"]["centred"]["share"]["estimate"] for r in
            (result, audit(rest, QUICK))]
    np.testing.assert_allclose(*sums, atol=0.03)  # only the rates see single rollouts


def test_inclusion_probabilities_remove_the_bias_of_a_selective_recheck():
    prompts, group, truth = 600, 8, 0.175
    naive, weighted, hits = [], [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        hard = np.repeat(rng.random(prompts) < 0.5, group)
        true = rng.random(prompts * group) < 0.5
        draw = rng.random(true.shape)
        seen = np.where(true, draw >= 0.2, draw < np.where(hard, 0.3, 0.05))
        chance = np.where(hard, 0.4, 0.1)
        recheck = np.where(rng.random(true.shape) < chance, true, -1)
        prompt = np.repeat(np.arange(prompts), group)
        log = Rollouts(prompt, prompt, seen, recheck)
        naive.append(audit(log, Settings(draws=50))["rates"]["false_positive"]["estimate"])
        entry = audit(log._replace(inclusion=chance), QUICK)["rates"]["false_positive"]
        weighted.append(entry["estimate"])
        hits.append(entry["low"] <= truth <= entry["high"])
    error = np.std(weighted) / np.sqrt(30)
    assert abs(np.mean(weighted) - truth) < 3.3 * error
    assert np.mean(naive) - truth > 5 * error  # the trap that the column is for
    assert np.mean(hits) >= 0.95 - 3.3 * np.sqrt(0.95 * 0.05 / 30)


def test_a_selective_recheck_is_noticed():
    rng = np.random.default_rng(5)
    log = simple(checked=1.0)
    chosen = rng.random(len(log.prompt)) < rollout_log.sibling_mean(log) * 0.5
    result = audit(log._replace(recheck=np.where(chosen, log.recheck, -1)), QUICK)
    assert any("not a random sample" in warning for warning in result["warnings"])
    assert audit(simple(), QUICK)["warnings"] == []


def test_variation_between_prompts_without_a_feature_is_found():
    rng = np.random.default_rng(6)
    prompts, group = 800, 8
    rate = np.where(rng.random((prompts, 1)) < 0.3, 0.5, 0.02)
    true = rng.random((prompts, group)) < rng.beta(0.7, 0.7, (prompts, 1))
    seen = np.where(true, rng.random(true.shape) >= 0.1, rng.random(true.shape) < rate)
    recheck = np.where(rng.random(true.shape) < 0.4, true, -1)
    prompt = np.repeat(np.arange(prompts), group)
    result = audit(Rollouts(prompt, prompt, seen.ravel(), recheck.ravel()), QUICK)
    assert advise(result).code == "find_feature"


def test_many_prompts_are_united_for_the_bootstrap(monkeypatch):
    log = simple(prompts=400)
    whole = audit(log, QUICK)["rates"]["false_positive"]
    monkeypatch.setattr(noise_audit, "MAX_CLUSTERS", 100)
    united = audit(log, QUICK)["rates"]["false_positive"]
    assert united["estimate"] == whole["estimate"]
    width = [entry["high"] - entry["low"] for entry in (whole, united)]
    assert 0.75 < width[1] / width[0] < 1.33


def test_an_always_accepted_value_is_tested():
    rng = np.random.default_rng(7)
    log = simple(seed=7)
    spam = rng.random(len(log.prompt)) < 0.15
    features = {"spam": Feature(spam.astype(np.int64), ("no", "yes"))}
    result = audit(log._replace(observed=log.observed | spam, features=features), QUICK)
    entry = result["features"]["spam"]["values"]["yes"]
    assert entry["counts"]["rejected"] == 0 and entry["false_positive"]["estimate"] == 1.0
    advice = advise(result)
    assert advice.code == "condition_on_output" and "spam = yes" in advice.title


@pytest.mark.parametrize(
    "change, message",
    [
        ({"observed": np.ones(16, bool)}, "all 16 observed rewards are 1"),
        ({"group": np.arange(16)}, "single rollout"),
        ({"inclusion": np.full(16, 1.5)}, r"1.5 .* \(0, 1\]"),
    ],
)
def test_logs_without_a_signal_are_refused(change, message):
    prompt = np.repeat(np.arange(4), 4)
    log = Rollouts(prompt, prompt, np.arange(16) % 3 == 0, np.zeros(16, np.int64))
    with pytest.raises(ValueError, match=message):
        audit(log._replace(**change), QUICK)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_any_small_log_gets_an_answer(seed):
    rng = np.random.default_rng(seed)
    count, prompts = int(rng.integers(4, 40)), int(rng.integers(1, 8))
    prompt = np.unique(rng.integers(0, prompts, count), return_inverse=True)[1]
    seen = rng.random(count) < rng.random()
    recheck = np.where(rng.random(count) < rng.random(), rng.random(count) < rng.random(), -1)
    code = np.unique(rng.integers(0, 4, count), return_inverse=True)[1]
    features = {"f": Feature(code, tuple("abcd"[: code.max() + 1]))}
    log = Rollouts(prompt, prompt, seen, recheck, features)
    try:
        result = audit(log, Settings(draws=50))
    except ValueError as error:
        assert "observed rewards are" in str(error) or "single rollout" in str(error)
        return
    json.dumps(result, allow_nan=False)
    text = audit_report.markdown("x", result, advise(result), {})
    assert "nan" not in text
    for entry in (result["rates"], *result["features"]["f"]["values"].values()):
        for name in ("false_positive", "false_negative"):
            own = entry[name]
            assert 0 <= own["low"] <= own["high"] <= 1
            assert own["estimate"] is None or 0 <= own["estimate"] <= 1
