"""The noise bench: its noises are what they say, its rows are compared fairly, users' rows work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import noise_bench as bench_config
from experiments import noise_bench, noise_bench_report, noise_bench_training
from jaxreward.training.config import build
from jaxreward.training.exits import ConfigError
from jaxreward.transforms import base, calibration
from jaxreward.types import make_signal


def own_transform():
    """A user's: halves the reward."""
    return base.stateless(
        lambda key, signal: signal.replace(rewards=signal.rewards / 2),
        base.Spec("halved", "calibration", ("rewards",), ("rewards",), reward_map="affine"),
    )


def tiny():
    config = bench_config.get_config("quick")
    keep = ("nothing", "clean", "backward")
    for name in [name for name in config.remedies if name not in keep]:
        del config.remedies[name]
    config.controls = type(config)()
    for name in [name for name in config.noises if name not in ("none", "symmetric")]:
        del config.noises[name]
    config.seeds, config.tuning_seeds, config.steps = 2, 1, 4
    config.learning_rates, config.kl_coefficients = (0.3, 1.0), (0.1,)
    config.extra = ("test_noise_bench:own_transform",)
    return config


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    config, root = tiny(), tmp_path_factory.mktemp("bench")
    noise_bench.validate(config)
    arms = noise_bench_training.build_arms(config)
    outcome = noise_bench_training.train(config, arms, str(root))
    noise_bench_report.write(config, str(root), list(arms), outcome)
    # one seed at one setting, where arms differ in nothing but the remedy
    same = noise_bench_training.candidates(config, len(arms))
    success = noise_bench_training.make_runs(config, arms, root)("same", same, range(2, 3))
    by_noise = {arm: dict(zip(config.noises, own)) for arm, own in zip(arms, success)}
    return list(arms), outcome, by_noise, root


def test_every_cell_is_there_and_a_users_transform_has_its_row(ran):
    arms, (success, chosen), _, root = ran
    assert set(arms) == {"nothing", "clean", "backward", "own_transform"}
    assert success.shape == (4, 2, 2) and np.all((success > 0) & (success < 1))
    assert set(np.unique(chosen.learning_rate)) <= {0.3, 1.0}
    for name in ("summary.json", "noise_bench.csv", "noise_bench.png"):
        assert (root / name).stat().st_size > 0
    assert len((root / "noise_bench.csv").read_text().splitlines()) == 1 + 3 * 2


def test_without_noise_nothing_the_oracle_and_the_correction_are_the_same(ran):
    found = ran[2]
    np.testing.assert_array_equal(found["nothing"]["none"], found["clean"]["none"])
    np.testing.assert_allclose(found["nothing"]["none"], found["backward"]["none"], atol=1e-6)


def test_the_oracle_does_not_see_the_noise(ran):
    found = ran[2]
    np.testing.assert_allclose(found["clean"]["none"], found["clean"]["symmetric"], atol=1e-6)
    assert np.any(found["nothing"]["none"] != found["nothing"]["symmetric"])


def test_the_best_settings_are_those_of_the_highest_mean():
    config = tiny()
    config.learning_rates, config.kl_coefficients = (1.0, 2.0), (0.0, 0.1)
    grid = noise_bench_training.candidates(config, 1)
    assert grid.learning_rate[0, 0].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert grid.kl_coefficient[0, 0].tolist() == [0.0, 0.1, 0.0, 0.1]
    success = np.zeros((1, 2, 4, 2))
    success[0, 0, 2], success[0, 1, 1] = (0.1, 0.5), (0.4, 0.4)
    success[0, 0, 0] = (0.55, 0.0)  # the highest seed, not the highest mean
    found = noise_bench_training.best(grid, success)
    np.testing.assert_array_equal(found.learning_rate[0, :, 0], [2.0, 1.0])
    np.testing.assert_array_equal(found.kl_coefficient[0, :, 0], [0.0, 0.1])


def test_share_of_settings_at_the_ends_of_the_grid():
    config = tiny()
    config.learning_rates, config.kl_coefficients = (1.0, 2.0, 4.0), (0.0, 0.1)
    chosen = {
        "learning_rate": np.array([[1.0, 2.0, 4.0, 4.0]]),
        "kl_coefficient": np.array([[0.0, 0.0, 0.1, 0.0]]),
    }
    assert noise_bench_report.at_the_edge(config, chosen) == {
        "lowest learning rate": 0.25,
        "highest learning rate": 0.5,
        "lowest KL coefficient": 0.0,
        "highest KL coefficient": 0.25,
    }


def test_the_same_command_runs_what_is_left(ran):
    outcome, root = ran[1], ran[3]
    tuned, kept = (root / "tune.npy").stat().st_mtime_ns, np.load(root / "compare.npy")
    broken = kept.copy()
    broken[:, :, 0, 1] = np.nan  # as if killed before the second block
    np.save(root / "compare.npy", broken)
    arms = noise_bench_training.build_arms(tiny())
    again = noise_bench_training.train(tiny(), arms, str(root))
    np.testing.assert_array_equal(again.success, outcome.success)
    assert (root / "tune.npy").stat().st_mtime_ns == tuned


def test_tuning_and_reported_seeds_share_nothing(monkeypatch):
    seen = []

    def success(title, settings, seeds):
        seen.append(set(seeds))
        return np.zeros(settings.learning_rate.shape + (len(seeds),))

    monkeypatch.setattr(noise_bench_training, "make_runs", lambda *args: success)
    outcome = noise_bench_training.train(tiny(), {"a": None, "b": None}, "")
    assert seen == [{2}, {0, 1}] and outcome.success.shape == (2, 2, 2)


def signal(prompts=400, group=8):
    keys = jax.random.split(jax.random.key(1), 3)
    answers = jax.random.randint(keys[0], (prompts,), 0, 10)
    right = jax.random.bernoulli(keys[1], 0.5, (prompts, group))
    other = jax.random.randint(keys[2], (prompts, group), 0, 10)
    actions = jnp.where(right, answers[:, None], other)
    ids = jnp.arange(prompts, dtype=jnp.int32)
    aux = noise_bench_training.describe(jax.random.key(2), ids, answers, actions)
    aux |= noise_bench_training.describe_references(jax.random.key(3), ids, answers, actions)
    return make_signal(aux["true_rewards"], **aux)


@pytest.fixture(scope="module")
def observed():
    config = bench_config.get_config()
    noises = {}
    for name in config.noises:
        noise = noise_bench_training.observe(build(config.noises[name].transform))
        noises[name] = noise
    see = jax.jit(lambda given: {n: own(jax.random.key(0), given) for n, own in noises.items()})
    return config, see(jax.jit(signal)())


@pytest.mark.parametrize("name", ["none", "symmetric", "missed", "fooled", "by_prompt", "groups"])
def test_noises_have_the_rates_that_the_remedies_are_told(observed, name):
    config, found = observed
    after = found[name]
    true = np.asarray(after.aux["true_rewards"])
    rewards, (wrong, missed) = np.asarray(after.rewards), config.noises[name].rates
    for rate, hits in ((wrong, rewards[true == 0] > 0), (missed, rewards[true > 0] == 0)):
        groups = 400 if name in ("groups", "by_prompt") else hits.size
        error = np.sqrt(max(rate * (1 - rate), 1e-12) / groups)
        assert abs(hits.mean() - rate) <= 4 * error + 1e-9


def test_the_other_noises(observed):
    _, found = observed
    hack = found["hackable"]
    assert np.all(np.asarray(hack.rewards)[np.asarray(hack.aux["hit"])] == 1)
    references = np.asarray(hack.aux["reference_rewards"])
    np.testing.assert_array_equal(references, np.asarray(hack.rewards))  # the same answers here
    flipped = np.asarray(found["symmetric"].aux["reference_rewards"])
    assert np.mean(flipped != np.asarray(hack.aux["true_rewards"])) == pytest.approx(0.3, abs=0.04)
    missing = found["missing"]
    assert 0.4 < np.mean(missing.mask) < 0.6
    unseen = np.isnan(np.asarray(missing.aux["verdicts"])[..., 0])
    np.testing.assert_array_equal(unseen, ~np.asarray(missing.mask))
    verdicts = np.asarray(found["symmetric"].aux["verdicts"])
    assert np.mean(verdicts[..., 0] != verdicts[..., 1]) == pytest.approx(0.42, abs=0.04)


def not_a_transform():
    return 3


@pytest.mark.parametrize(
    "path, message",
    [
        ("no_such_module:f", "no_such_module"),
        ("test_noise_bench:nothing_here", "nothing_here"),
        ("test_noise_bench:not_a_transform", "int, not RewardTransform"),
        ("jaxreward.transforms.calibration:blend", "blend"),
    ],
)
def test_paths_that_give_no_transform_are_refused(path, message):
    config = tiny()
    config.extra = (path,)
    noise_bench.validate(config)
    with pytest.raises(ConfigError, match=message):
        noise_bench_training.build_arms(config)
    assert calibration.blend  # it is there; it needs arguments


def test_command_line():
    assert noise_bench.arguments(["--quick", "--transform=a:b,c:d"]) == [
        "--config=configs/noise_bench.py:quick",
        "--workdir=runs/noise_bench_quick",
        "--config.extra=('a:b', 'c:d')",
    ]
    assert noise_bench.arguments(["--workdir=x"])[0] == "--workdir=x"
    with pytest.raises(ConfigError, match="--quick with --config"):
        noise_bench.arguments(["--quick", "--config=configs/noise_bench.py"])
    config = tiny()
    config.extra = ("nocolon",)
    with pytest.raises(ConfigError, match="PATH:FACTORY"):
        noise_bench.validate(config)
