"""The digits bandit: the runs are what they say, and the runner keeps its contract."""

import pathlib

import jax
import numpy as np
import pytest

from configs import digits_bandit as digits_config
from experiments import arms as arms_lib
from experiments import cli, digits_bandit, digits_report, digits_training
from experiments.digits_training import Cell, Grid
from jaxreward.training import config as config_lib
from jaxreward.training import logging, report

CONFIG = pathlib.Path(digits_config.__file__)
KEPT = (
    "noisy_leave_one_out",
    "rescaled_leave_one_out",
    "backward",
    "noisy_group_std",
    "backward_group_std",
)
UPDATES = 6


def tiny(arg=""):
    """Five arms, one pair of rates, two KL coefficients, two seeds, six updates."""
    config = digits_config.get_config("smoke")
    config.steps, config.evaluation.every, config.checkpoint.every = UPDATES, 3, 1
    for arm in [arm for arm in config.arms if arm not in KEPT]:
        del config.arms[arm]
    for arm in [arm for arm in config.controls if arm not in KEPT]:
        del config.controls[arm]
    for name in list(config.claims):
        if not {config.claims[name].better, config.claims[name].worse} <= set(KEPT):
            del config.claims[name]
    return config


CONFIG_FILE = """
from tests.experiments import test_digits_bandit

get_config = test_digits_bandit.tiny
"""


@pytest.fixture(scope="module", name="ran")
def run_once(tmp_path_factory):
    """A whole run of the command line, twice the same command."""
    root = tmp_path_factory.mktemp("digits")
    file, workdir = root / "tiny.py", root / "run"
    file.write_text(CONFIG_FILE)
    arguments = [f"--config={file}", f"--workdir={workdir}"]
    cli.main(digits_bandit.run, arguments, validate=digits_bandit.validate)
    first = (workdir / "summary.json").read_bytes()
    cli.main(digits_bandit.run, arguments, validate=digits_bandit.validate)
    return workdir, first


def values(ran, arm, name, kl):
    summary = report.read_summary(ran[0] / "summary.json")
    return np.array(summary["results"][arm][f"{name}/fp=0.2,fn=0.4,kl={kl}"]["per_seed"])


def test_a_run_leaves_what_the_contract_says(ran):
    workdir, _ = ran
    for name in ("config.json", "metrics.jsonl", "report.png", "summary.json", "checkpoints"):
        assert (workdir / name).exists(), name
    summary = report.read_summary(workdir / "summary.json")
    assert summary["method"] == CONFIG.stem and summary["seeds"] == [0, 1]
    assert list(summary["results"]) == [*KEPT, digits_bandit.START]
    assert [claim["worse"] for claim in summary["claims"]] == [
        "noisy_leave_one_out",
        "backward",
        "noisy_group_std",
    ]
    lines = logging.read_metrics(workdir)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert len(lines[0]["backward/eval/success"]) == 2  # one a cell


def test_the_same_command_again_changes_nothing(ran):
    workdir, first = ran
    assert (workdir / "summary.json").read_bytes() == first


def test_every_key_of_the_config_is_read(tmp_path, capsys):
    """Reading is noticed by the command line, which warns of what was not."""
    file = tmp_path / "tiny.py"
    file.write_text(CONFIG_FILE)

    def run(config, workdir):
        arms = arms_lib.build_arms(config, digits_training.PROVIDED)
        problem, grid = digits_training.load_problem(config), digits_training.make_grid(config)
        hyper = digits_training.make_hyper(config, arms, grid)
        population = digits_training.make_population(config, problem, arms, hyper)
        state = jax.eval_shape(
            lambda: digits_training.start_state(config, problem, population)
        )
        step = digits_training.make_step(config, problem, population, hyper)
        jax.eval_shape(step, state)
        # What is left is read by the loop and the report.
        read = (config.checkpoint, config.safety, config.claims_at, config.claims, config)
        for section in read:
            section.to_dict()

    cli.main(run, [f"--config={file}", f"--workdir={tmp_path / 'run'}"])
    assert "not read" not in capsys.readouterr().err


def test_rescaling_the_step_and_the_kl_is_the_backward_correction(ran):
    """With one pair of rates the correction is noise at another learning rate and KL."""
    for kl in ("0", "0.2"):
        corrected, rescaled, noisy = (
            values(ran, arm, "eval/success", kl)
            for arm in ("backward", "rescaled_leave_one_out", "noisy_leave_one_out")
        )
        np.testing.assert_allclose(corrected, rescaled, atol=2e-6)
        assert np.all(np.abs(corrected - noisy) > 2e-5)


def test_backward_then_standard_deviation_is_inert(ran):
    for kl in ("0", "0.2"):
        inert, noisy = (
            values(ran, arm, "eval/success", kl)
            for arm in ("backward_group_std", "noisy_group_std")
        )
        np.testing.assert_allclose(inert, noisy, atol=2e-6)


def test_the_audit_says_so(ran):
    lines = logging.read_metrics(ran[0])
    last = lines[-2]  # the last with updates
    np.testing.assert_allclose(last["backward/audit/cosine"], 1.0, atol=1e-5)
    np.testing.assert_allclose(last["backward_group_std/audit/max_abs_difference"], 0.0, atol=1e-5)
    # Backward is the control divided by J = .4: differences of A / .4 - A = 1.5 A.
    assert np.all(np.array(last["backward/audit/mean_abs_difference"]) > 0.1)


def test_learning_moves_away_from_the_start_and_kl_measures_it(ran):
    start = values(ran, digits_bandit.START, "eval/success", "0.2")
    assert np.all(values(ran, "backward", "eval/success", "0.2") != start)
    np.testing.assert_array_equal(values(ran, digits_bandit.START, "eval/kl", "0.2"), 0.0)
    free, held = (values(ran, "backward", "eval/kl", kl) for kl in ("0", "0.2"))
    assert np.all(free > held) and np.all(held > 0)


def test_problem_and_evaluation_by_hand():
    config = tiny()
    problem = digits_training.load_problem(config)
    for seed in range(config.seeds):
        together = np.concatenate([problem.train[seed], problem.test[seed]])
        assert sorted(together) == list(range(1797))
    assert np.any(problem.train[0] != problem.train[1])
    weights, bias = (np.asarray(problem.starts[name], np.float64) for name in ("weights", "bias"))
    rows, answers = np.asarray(problem.features, np.float64), np.asarray(problem.answers)
    test = np.asarray(problem.test[1])
    scores = rows[test] @ weights[1] + bias[1]
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    by_hand = p[np.arange(len(test)), answers[test]].mean()
    labelled = np.asarray(problem.train[1, : config.task.labels])
    fitted = (rows[labelled] @ weights[1] + bias[1]).argmax(-1) == answers[labelled]
    assert 0.3 < by_hand < 0.6 and fitted.mean() > 0.8

    arms = {"noisy_direct": arms_lib.build_arms(config, digits_training.PROVIDED)["backward"]}
    hyper = digits_training.make_hyper(config, arms, digits_training.make_grid(config))
    population = digits_training.make_population(config, problem, arms, hyper)
    state = digits_training.start_state(config, problem, population)
    found = digits_training.make_evaluate(problem, population)(state)["noisy_direct"]
    np.testing.assert_allclose(found["eval/success"].reshape(2, 2)[:, 1], by_hand, rtol=1e-5)


def test_the_knobs_of_every_run():
    config = digits_config.get_config()
    config.seeds = 3
    grid = digits_training.make_grid(config)
    assert len(grid.cells) == 12 and grid.cells[4] == Cell(0.2, 0.4, 0.0)
    hyper = digits_training.make_hyper(config, dict.fromkeys(config.arms), grid)
    assert {value.shape for value in hyper.values()} == {(12, 36)}
    arms, run = list(config.arms), 7 * 3 + 2  # cell 7, seed 2
    plain, rescaled = arms.index("backward"), arms.index("rescaled_leave_one_out")
    at = {name: np.asarray(value[:, run]) for name, value in hyper.items()}
    assert at["seed"][plain] == 2
    np.testing.assert_allclose([at["false_positive"][plain], at["false_negative"][plain]], [0.2, 0.4])
    np.testing.assert_allclose([at["learning_rate"][plain], at["kl_coefficient"][plain]], [1, 0.2])
    found = [at["learning_rate"][rescaled], at["kl_coefficient"][rescaled]]
    np.testing.assert_allclose(found, [1 / 0.4, 0.2 * 0.4], rtol=1e-6)


def final_at_reference(config, grid, shift):
    rng = np.random.default_rng(0)
    final = {arm: {digits_report.SUCCESS: np.full((len(grid.cells), 3), 0.5)} for arm in config.arms}
    for i, cell in enumerate(grid.cells):
        for arm, reference in digits_report.REFERENCE.get(tuple(cell), {}).items():
            seeds = rng.normal(size=3)
            seeds = (seeds - seeds.mean()) / seeds.std(ddof=1)
            final[arm][digits_report.SUCCESS][i] = reference + 0.01 * (seeds + shift)
    return final


@pytest.mark.parametrize(("shift", "inside"), [(1.9, True), (-2.1, False)])
def test_the_comparison_with_the_reference(shift, inside):
    config = digits_config.get_config()
    grid = Grid(digits_training.make_grid(config).cells, 3)
    rows = digits_report.compare(config, grid, final_at_reference(config, grid, shift))
    assert len(rows) == 23
    assert {row["within_2_sd"] for row in rows} == {inside}
    np.testing.assert_allclose([row["difference"] for row in rows], 0.01 * shift, rtol=1e-6)
    config.steps = 100
    assert digits_report.compare(config, grid, final_at_reference(config, grid, shift)) == []


BAD = [
    ("grid.false_positive=0.7,", "cannot be corrected; allowed is a sum <= 0.95"),
    ("grid.false_positive=(1.2,)", "config.grid.false_positive = (1.2,); allowed is [0, 1)"),
    ("grid.false_negative=(0.1, 0.2)", "differ in length; allowed are equal lengths"),
    ("grid.kl_coefficient=(-0.1,)", "config.grid.kl_coefficient = (-0.1,); allowed is >= 0"),
    ("group_size=1", "config.group_size = 1; allowed is >= 2 for a group baseline"),
    ("steps=41", "config.steps = 41; allowed is a multiple of 10, evaluation.every"),
    ("seeds=0", "config.seeds = 0; allowed is > 0"),
    ("seed=-1", "config.seed = -1; allowed is >= 0"),
    ("task.labels=2000", "config.task.labels = 2000; allowed is [1, 1200]"),
    ("arms.backward=noise,backwards", "did you mean 'backward'?"),
    ("claims_at.kl_coefficient=0.3", "config.claims_at.kl_coefficient = 0.3; allowed is 0.0, 0.2"),
    ("claims_at.false_positive=0.3", "are not a pair of the grid; allowed are [(0.2, 0.4)]"),
    ("rescaled=nobody,", "config.rescaled = ('nobody',)"),
    ("learnin_rate=1", "did you mean 'learning_rate'?"),
    # A chain that cannot work: known only once it is built.
    ("arms.backward=noise,known_rates,backward,group_std", "cancels it"),
    ("arms.backward=noise,backward,leave_one_out", "reads 'rates'"),
]


@pytest.mark.parametrize(("override", "message"), BAD)
def test_bad_input_is_one_line_and_leaves_nothing(override, message, tmp_path, capsys):
    arguments = [f"--config={CONFIG}:smoke", f"--workdir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as caught:
        cli.main(
            digits_bandit.run, [*arguments, f"--config.{override}"], validate=digits_bandit.validate
        )
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1
    assert error.startswith("error: ") and message in error, error
    assert not (tmp_path / "run").exists()


def test_an_unknown_variant(tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(digits_bandit.run, [f"--config={CONFIG}:huge", f"--workdir={tmp_path / 'run'}"])
    assert caught.value.code == 2 and "'huge'; allowed are 'smoke'" in capsys.readouterr().err


def test_the_config_passes_its_own_checks():
    for arg in ("", "smoke"):
        config = config_lib.load_config(f"{CONFIG}:{arg}" if arg else str(CONFIG))
        digits_bandit.validate(config)
        arms = arms_lib.build_arms(config, digits_training.PROVIDED)
        assert list(arms) == list(config.arms) and next(iter(arms)) == "clean_leave_one_out"
