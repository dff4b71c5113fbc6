"""The main runner, end to end on seconds-sized configs, and its parts."""

import json

import jax.numpy as jnp
import numpy as np
import processes
import pytest

from configs import common, random_calculation
from experiments import cli, rlvr, rlvr_config, rlvr_report, rlvr_stages, verification
from jaxreward.tasks import tokenizer as tokenizers
from jaxreward.training import config as config_lib
from jaxreward.training.exits import ConfigError

ROOT = processes.ROOT
CONFIGS = ("configs/noise_corrected_grpo.py", "configs/noisy_verifier.py")


def run(*flags):
    """The command line."""
    return processes.python("-m", "experiments.rlvr", *flags)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run of the smallest variant."""
    workdir = tmp_path_factory.mktemp("rlvr") / "run"
    done = run("--config=configs/noise_corrected_grpo.py:fault", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr[-2000:]
    return workdir, done


def test_run_leaves_what_the_contract_says(finished):
    workdir, done = finished
    for name in ("config.json", "summary.json", "report.png", "compare/metrics.jsonl"):
        assert (workdir / name).stat().st_size > 0, name
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["method"] == "noise_corrected_grpo"
    arms = {f"{s}/{a}" for s in ("equal", "tuned") for a in ("noisy_leave_one_out", "appeals_backward")}
    assert set(summary["results"]) == arms
    for result in summary["results"].values():
        assert len(result["eval/true_accuracy"]["per_seed"]) == 2
    assert {c["better"] for c in summary["claims"]} == {"equal/appeals_backward", "tuned/appeals_backward"}
    assert "appeals_backward" in done.stdout


def test_every_key_of_the_config_is_read(finished):
    assert "were not read" not in finished[1].stderr


def test_metrics_hold_the_audit_and_the_rates(finished):
    lines = (finished[0] / "compare/metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    for name in ("audit/cosine", "rates/false_positive_0", "policy/kl", "reward/true"):
        assert f"equal/appeals_backward/{name}" in row
    _, rate = rlvr_report.running_rate([row], "equal/appeals_backward/channel/false_negative_0")
    assert 0 <= rate[0] < 1


def test_the_real_rate_is_that_of_all_seeds_together():
    """Two seeds: 1 error in 1 chance, none in 0; then 1 in 2, none in 1. Before, no errors."""
    lines = [{"step": 0, "r": 0.2, "r_count": 3.0}, {"step": 1, "r_errors": 0.0, "r_count": 0.0}]
    lines += [{"step": 2, "r_errors": 0.5, "r_count": 0.5}]
    lines += [{"step": 3, "r_errors": 0.5, "r_count": 1.5}]
    steps, rate = rlvr_report.running_rate(lines, "r")
    np.testing.assert_array_equal(steps, [1, 2, 3])
    np.testing.assert_allclose(rate, [np.nan, 1.0, 0.5])
    assert len(rlvr_report.running_rate(lines[:1], "r")[0]) == 0  # a run of an older version


@pytest.mark.parametrize("path", CONFIGS)
@pytest.mark.parametrize("variant", ["", ":smoke"])
def test_configs_are_valid(path, variant):
    rlvr_config.validate(config_lib.load_config(str(ROOT / path) + variant))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"group_size": "1"}, "group_size = 1; allowed is >= 2"),
        ({"group_size": "1000000000"}, "tokens at once; allowed are fewer"),
        ({"transforms.noise.source.false_negative": "(0.1,1.2,0.1)"}, "false_negative"),
        ({"transforms.noise.source.false_positive": "(0.6,0.1,0.1)",
          "transforms.noise.source.false_negative": "(0.4,0.1,0.1)"}, "cannot be corrected"),
        ({"arms.backward": "('noize',)"}, "noise"),
        ({"model.heads": "3"}, "model.heads = 3"),
        ({"sampler.temperature": "1e-20"}, "temperature = 1e-20; allowed is >= 1e-06"),
        ({"optimizer.b2": "1.0"}, "optimizer.b2 = 1.0"),
        ({"seed": "-1"}, "config.seed = -1; allowed is"),
        ({"tune.kl_coefficient": "()"}, "tune.kl_coefficient is not set"),
    ],
)
def test_impossible_values_are_refused(change, message):
    config = config_lib.load_config(str(ROOT / CONFIGS[0]))
    with pytest.raises(ConfigError, match=message):
        rlvr_config.validate(config_lib.override(config, change))


def test_noise_beyond_correction_is_refused_also_with_estimated_rates():
    config = config_lib.load_config(str(ROOT / CONFIGS[0]) + ":fault")
    assert not any("known_rates" in config.arms[arm] for arm in config.arms)
    change = {"transforms.noise.source.false_positive": "(0.5,0.1,0.1)",
              "transforms.noise.source.false_negative": "(0.5,0.1,0.1)"}  # fmt: skip
    with pytest.raises(ConfigError, match="cannot be corrected"):
        rlvr_config.validate(config_lib.override(config, change))


def test_tables_of_rates_hold_every_value_of_their_index():
    config = config_lib.load_config(str(ROOT / CONFIGS[0]))
    sizes = {"prompt_type": 3, "output_form": 7}
    rlvr_config.check_indices(config, sizes)
    for change, message in (
        ({"transforms.appeals_rates.num": "2"}, r"appeals_rates.num has .* 2 .*'prompt_type'.* 3 that"),
        ({"transforms.appeals_rates.by": "output_form"}, "has rates for 3 values of 'output_form'"),
        ({"transforms.noise.source.false_positive": "(0.1, 0.1)"}, "noise.source.false_positive has"),
    ):
        with pytest.raises(ConfigError, match=message):
            rlvr_config.check_indices(config_lib.override(config, change), sizes)


def test_a_verifier_that_cannot_be_is_refused_before_anything_is_trained(tmp_path, capsys):
    flags = (f"--config={CONFIGS[1]}:smoke", f"--workdir={tmp_path / 'run'}")
    for change, message in {
        "observed=jaxreward.rewards.verifiers:no_such": "no_such",
        "workers=0": "config.verifier.workers = 0; allowed is > 0",
    }.items():
        with pytest.raises(SystemExit) as stopped:
            arguments = (*flags, f"--config.verifier.{change}")
            cli.main(rlvr.run, arguments, validate=rlvr_config.validate)
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and message in said and said.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_tuning_gives_every_arm_its_own_best():
    config = config_lib.load_config(str(ROOT / CONFIGS[0]))
    stage = rlvr_stages.tuning_stage(config, 2)
    points = len(config.tune.learning_rate) * len(config.tune.kl_coefficient)
    accuracy = np.zeros((2, points * config.tune.seeds))
    accuracy[0, :] = np.repeat(np.arange(points), config.tune.seeds)
    accuracy[1, : config.tune.seeds] = 1.0
    best = rlvr_stages.best_by_arm(stage, accuracy)
    assert best["learning_rate"][0] == np.float32(config.tune.learning_rate[-1])
    assert best["kl_coefficient"][0] == np.float32(config.tune.kl_coefficient[-1])
    assert best["learning_rate"][1] == np.float32(config.tune.learning_rate[0])
    compare = rlvr_stages.comparison_stage(config, 2, best)
    equal, tuned = np.split(compare.hyper["kl_coefficient"], 2, axis=1)
    assert np.all(equal == np.float32(config.hyper.kl_coefficient))
    np.testing.assert_array_equal(tuned, best["kl_coefficient"][:, None].repeat(config.seeds, 1))
    assert compare.first_seed + config.seeds <= stage.first_seed, "reported seeds were tuned on"


def test_verifiers_on_the_host_judge_samples():
    chars = tokenizers.make_tokenizer(tokenizers.ARITHMETIC_ALPHABET)
    texts = ["1/3", "12/36", "0.5", ""]
    encoded = tokenizers.encode(chars, texts, 6, eos=True)
    tokens = np.asarray(encoded.tokens).reshape(1, 1, 4, 6)
    lengths = np.asarray(encoded.lengths).reshape(1, 1, 4)
    rows = {"answer": np.array([["1/3"]], object)}
    with verification.on_host(
        tokenizer=chars,
        observed="jaxreward.rewards.verifiers:exact_match",
        trusted="jaxreward.rewards.verifiers:math_verify",
        workers=1,
        timeout_s=30.0,
    ) as judge:
        verdict = judge.verify(tokens, lengths, rows)
    np.testing.assert_array_equal(verdict.rewards, [[[1, 0, 0, 0]]])
    np.testing.assert_array_equal(verdict.true_rewards, [[[1, 1, 0, 0]]])
    assert np.all(verdict.mask)
    assert len(set(verdict.form.ravel().tolist())) == 4


def judged(texts, reference, **dials):
    """The verdict of `final_in_jit` on one prompt; `$` ends a text."""
    chars = tokenizers.make_tokenizer(tokenizers.WORKED_ALPHABET)
    encoded = [tokenizers.encode(chars, [t.rstrip("$")], 20, eos=t.endswith("$")) for t in texts]
    tokens = np.concatenate([e.tokens for e in encoded])[None, None]
    lengths = np.concatenate([e.lengths for e in encoded])[None, None]
    wanted = tokenizers.encode(chars, [reference], 8, eos=True)
    rows = {"answer_tokens": wanted.tokens[None], "answer_lengths": wanted.lengths[None]}
    rows = {name: jnp.asarray(column) for name, column in rows.items()}
    with verification.final_in_jit(tokenizer=chars, **dials) as judge:
        verdict = judge.verify(jnp.asarray(tokens), jnp.asarray(lengths), rows)
    return verification.Verdict(*(np.asarray(column)[0, 0] for column in verdict))


def test_final_answers_and_their_ids():
    texts = ["3+4=7$", "=7$", "=7.0$", "=is 7$", "=8$", "=7", "7$", "=$"]
    verdict = judged(texts, "7.0")
    np.testing.assert_array_equal(verdict.rewards, [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(verdict.true_rewards, verdict.rewards)
    same = verdict.answer_id == verdict.reference_id
    np.testing.assert_array_equal(same, verdict.true_rewards > 0)
    assert verdict.answer_id[4] not in (0, verdict.reference_id)
    np.testing.assert_array_equal(verdict.answer_id[5:], 0)
    strict = judged(texts, "7.0", tolerant=False)
    np.testing.assert_array_equal(strict.rewards, [0, 0, 1, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(strict.true_rewards, verdict.true_rewards)


def test_graded_rewards_are_the_closeness_of_integers():
    verdict = judged(["=10$", "=12$", "=-10$", "=10.0$", "=what$", "10$"], "10", graded=True)
    np.testing.assert_allclose(verdict.rewards, [1, 0.4, 0, 1, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(verdict.true_rewards, [1, 0, 0, 1, 0, 0])


def test_ids_of_whole_answers_inside_jit_and_on_the_host_say_the_same():
    chars = tokenizers.make_tokenizer(tokenizers.ARITHMETIC_ALPHABET)
    texts = ["1/3", "1/3", "2/6", "5", ""]
    encoded = tokenizers.encode(chars, texts, 6, eos=True)
    tokens = np.asarray(encoded.tokens).reshape(1, 1, 5, 6)
    lengths = np.asarray(encoded.lengths).reshape(1, 1, 5)
    wanted = tokenizers.encode(chars, ["1/3"], 6, eos=True)
    rows = {"answer_tokens": jnp.asarray(wanted.tokens)[None]}
    rows["answer_lengths"] = jnp.asarray(wanted.lengths)[None]
    with verification.in_jit(tokenizer=chars) as judge:
        own = judge.verify(jnp.asarray(tokens), jnp.asarray(lengths), rows)
    same = np.asarray(own.answer_id)[0, 0] == np.asarray(own.reference_id)[0, 0]
    np.testing.assert_array_equal(same, [True, True, False, False, False])
    paths = dict.fromkeys(("observed", "trusted"), "jaxreward.rewards.verifiers:exact_rational")
    with verification.on_host(tokenizer=chars, workers=1, timeout_s=30.0, **paths) as judge:
        host = judge.verify(tokens, lengths, {"answer": np.array([["1/3"]], object)})
    np.testing.assert_array_equal(host.answer_id[0, 0] == host.reference_id[0, 0], [1, 1, 1, 0, 0])


@pytest.mark.parametrize("variant", ["", ":chance", ":contaminated", ":contaminated_single", ":smoke"])
def test_variants_of_random_calculation_are_valid(variant):
    rlvr_config.validate(config_lib.load_config(str(ROOT / "configs/random_calculation.py") + variant))


def twin(arg=""):
    """The contaminated config, two arms, as small as can be."""
    config = random_calculation.get_config("contaminated")
    common.smoke(config)
    common.keep_arms(config, ("correct", "random"))
    config.steps, config.seeds, config.prompts_per_step, config.group_size = 2, 1, 2, 2
    config.warm_start.steps, config.evaluation.every, config.evaluation.prompts = 2, 2, 4
    config.evaluation.start_samples, config.task.votes, config.task.prompts = 2, 2, 4
    return config


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """The contaminated twin in seconds: votes, yardsticks, probe and several updates."""
    root = tmp_path_factory.mktemp("twin")
    (root / "twin.py").write_text("from tests.experiments.test_rlvr import twin as get_config\n")
    done = run(f"--config={root / 'twin.py'}", f"--workdir={root / 'run'}")
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((root / "run/summary.json").read_text()), done


def test_what_the_start_can_do_is_in_the_summary(probed):
    summary, done = probed
    results = summary["results"]
    assert set(results["start_completes"]) == {
        f"probe/{what}_{share}_{of}"
        for what in ("exact_match", "rouge_l")
        for share in (0.4, 0.6, 0.8)
        for of in ("train", "evaluated")
    }
    mean, best = (results[name]["eval/observed_accuracy"]["mean"] for name in ("start", "start_best"))
    assert 0 <= mean <= best <= 1
    assert "start" in {c["worse"] for c in summary["claims"]}
    assert "were not read" not in done.stderr


def test_claims_on_the_start_need_its_samples():
    config = config_lib.load_config(str(ROOT / "configs/random_calculation.py"))
    with pytest.raises(ConfigError, match="start"):
        rlvr_config.validate(config_lib.override(config, {"evaluation.start_samples": "0"}))
