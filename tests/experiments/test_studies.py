"""The study runner: seeds as one program or one by one, resumed, with claims and files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import study as study_config
from experiments import studies
from jaxreward.training.exits import ConfigError, Interrupted, StorageError

CALLS = []


def make(config):
    """Arm "high" has 1 more than arm "low"; both have the noise of the seed."""

    def one(key):
        CALLS.append(1)
        noise = 0.1 * jax.random.normal(key, (), jnp.float32)
        return {
            "low": {"score": noise, "curve": noise + jnp.arange(3.0)},
            "high": {"score": noise + config.study.gain, "curve": noise - jnp.arange(3.0)},
        }

    def draw(config, found, results, axes):
        axes.plot(found["low"]["curve"].mean(0))

    return studies.Study(one, on_host=config.study.on_host, draw=draw)


def config(**changes):
    own = study_config.study("toy", "test_studies:make")
    own.seeds_at_a_time, own.study.gain, own.study.on_host = 2, 1.0, False
    own.claims.more = study_config.claim("high has more", "high", "low", "score", margin=0.5)
    own.claims.less = study_config.claim("low has less", "low", "high", "score", kind="lower")
    own.claims.same = study_config.claim("same", "high", "low", "score", kind="equal", margin=0.1)
    own.show = ("score",)
    own.update(changes)
    return own


def read(root):
    return json.loads((root / "summary.json").read_text())


def test_summary_claims_and_files(tmp_path, capsys):
    studies.validate(config())
    studies.run(config(), str(tmp_path))
    summary = read(tmp_path)
    assert [claim["holds"] for claim in summary["claims"]] == [True, True, False]
    assert len(summary["results"]["low"]["score"]["per_seed"]) == 5
    assert summary["claims"][0]["difference"] == pytest.approx(1.0)
    with np.load(tmp_path / "curves.npz") as curves:
        assert curves["high::curve"].shape == (5, 3)
    assert (tmp_path / "report.png").stat().st_size > 0
    assert "high has more" in capsys.readouterr().out


def test_finished_seeds_are_not_run_again_and_the_batch_size_does_not_matter(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    studies.run(config(), str(first))
    killed = first / "seeds" / ".tmp-7.npz"  # of a process that was killed while it wrote
    (first / "seeds" / "2-3.npz").rename(killed)
    CALLS.clear()
    studies.run(config(), str(first))
    assert len(CALLS) == 1  # one trace, of the missing batch
    assert not killed.exists()
    studies.run(config(seeds_at_a_time=5), str(second))
    low = [read(root)["results"]["low"]["score"]["per_seed"] for root in (first, second)]
    np.testing.assert_allclose(low[0], low[1], rtol=1e-6)


def test_on_the_host_seeds_are_the_same(tmp_path):
    studies.run(config(), str(tmp_path / "a"))
    other = config()
    other.study.on_host = True
    CALLS.clear()
    studies.run(other, str(tmp_path / "b"))
    assert len(CALLS) == 5
    low = [read(tmp_path / n)["results"]["low"]["score"]["per_seed"] for n in "ab"]
    np.testing.assert_allclose(low[0], low[1], rtol=1e-6)


@pytest.mark.parametrize("key, value", [
    ("claims.more.better", "hihg"), ("claims.less.worse", ""), ("claims.same.metric", "scores"),
    ("claims.same.metric", "curve"), ("show", ("score", "curve")), ("show", ("scroe",)),
])  # fmt: skip
@pytest.mark.parametrize("at_a_time", [1, 2])
def test_names_that_are_not_measured_are_refused_before_anything_runs(tmp_path, at_a_time, key, value):
    own = config(seeds_at_a_time=at_a_time)
    own.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=f"config.{key} = .*allowed is"):
        studies.run(own, str(tmp_path))
    assert not list(tmp_path.rglob("*.npz"))


def make_prepared(config):
    """Begins with "pretrained" numbers."""

    def prepare(key):
        return {"a": jax.random.normal(key, (2, 3)), "b": [jnp.arange(3.0)]}

    def one(key, given):
        noise = jax.random.normal(key, (2, 3))
        return {"low": {"score": jnp.sum(given["a"] * noise) + jnp.sum(given["b"][0])}}

    panels = [lambda config, found, results, axes, i=i: axes.plot([0, i]) for i in range(2)]
    return studies.Study(one, draw=tuple(panels), prepare=prepare)


@pytest.mark.parametrize("at_a_time", [1, 2])
def test_what_is_pretrained_is_kept(tmp_path, at_a_time):
    own = config(seeds=3, seeds_at_a_time=at_a_time)
    own.study.fn, own.claims = "test_studies:make_prepared", {}
    studies.run(own, str(tmp_path))
    first = read(tmp_path)["results"]["low"]["score"]["per_seed"]
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(3)]
    expected = [float(jnp.sum(jnp.square(jax.random.normal(key, (2, 3)))) + 3) for key in keys]
    np.testing.assert_allclose(first, expected, rtol=1e-5)
    assert sorted(p.name for p in (tmp_path / "pretrained").iterdir()) == ["0.npz", "1.npz", "2.npz"]
    # without the seeds, from what was pretrained: changed there, it changes the results
    for path in (tmp_path / "seeds").iterdir():
        path.unlink()
    with np.load(tmp_path / "pretrained" / "1.npz") as file:
        leaves = [file[name] for name in file.files]
    np.savez(tmp_path / "pretrained" / "1.npz", 2 * leaves[0], leaves[1])
    studies.run(own, str(tmp_path))
    again = read(tmp_path)["results"]["low"]["score"]["per_seed"]
    np.testing.assert_allclose(again, [first[0], 2 * first[1] - 3, first[2]], rtol=1e-5)


@pytest.mark.parametrize("damage", ["empty", "torn", "other"])
@pytest.mark.parametrize("folder", ["seeds", "pretrained"])
def test_a_damaged_file_is_named(tmp_path, folder, damage):
    """One line and an exit code of its own, not a traceback; without the file all goes on."""
    own = config(seeds=2, seeds_at_a_time=1)
    own.study.fn, own.claims = "test_studies:make_prepared", {}
    studies.run(own, str(tmp_path))
    before = read(tmp_path)["results"]
    path = sorted((tmp_path / folder).iterdir())[0]
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "torn": whole[: len(whole) // 2], "other": b"text"}[damage])
    if folder == "pretrained":
        sorted((tmp_path / "seeds").iterdir())[0].unlink()
    with pytest.raises(StorageError, match=rf"{path.name} cannot be read.*makes it again"):
        studies.run(own, str(tmp_path))
    path.unlink()
    studies.run(own, str(tmp_path))
    assert read(tmp_path)["results"] == before


def long_program(key):
    """A tenth of a second, of products, since a loop over a number runs before its call returns."""
    step = lambda x, _: (jnp.sin(x @ x), None)
    return jax.lax.scan(step, jax.random.normal(key, (60, 60)), length=2000)[0][0, 0]


def make_long_run(config):
    return studies.Study(lambda key: {"low": {"score": long_program(key)}})


def make_long_preparation(config):
    return studies.Study(lambda key, given: {"low": {"score": given}}, prepare=long_program)


@pytest.mark.parametrize("make", ["make_long_run", "make_long_preparation"])
def test_a_signal_is_heard_while_a_program_runs(tmp_path, monkeypatch, make):
    """The process waits in Python, where a signal's exception can be raised, not inside of jax."""

    def interrupt(seconds):
        raise Interrupted("came while the program ran")

    own = config(seeds=1, seeds_at_a_time=1)
    own.study.fn, own.claims = f"test_studies:{make}", {}
    with monkeypatch.context() as patch:
        patch.setattr(studies.time, "sleep", interrupt)
        with pytest.raises(Interrupted):
            studies.run(own, str(tmp_path))
    assert not list(tmp_path.rglob("*.npz"))
    studies.run(own, str(tmp_path))
    assert read(tmp_path)["results"]["low"]["score"]["mean"] is not None


def make_ticking(config):
    """Four ticks of pretraining for each seed, three for each batch of them."""

    def loop(tick, count, start):
        def step(total, _):
            tick()
            return total + 1.0, None

        return jax.lax.scan(step, start, length=count)[0]

    return studies.Study(
        lambda key, given, tick: {"low": {"score": loop(tick, 3, given)}},
        prepare=lambda key, tick: loop(tick, 4, jax.random.normal(key)),
        preparing=4,
        iterations=3,
    )


def test_a_bar_over_pretraining_and_runs(tmp_path, capsys):
    own = config(seeds=3, seeds_at_a_time=2)
    own.study.fn, own.claims = "test_studies:make_ticking", {}
    studies.run(own, str(tmp_path))
    said = capsys.readouterr().err
    assert "toy 1/18 " in said and "toy 18/18 " in said
    (tmp_path / "seeds" / "2-2.npz").unlink()
    studies.run(own, str(tmp_path))
    assert "toy 3/3 " in capsys.readouterr().err  # what is pretrained is not done again


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("seeds", 0, "config.seeds = 0"),
        ("seeds_at_a_time", 0, "config.seeds_at_a_time = 0"),
        ("claims.more.kind", "worse", "config.claims.more.kind = 'worse'"),
        ("claims.same.margin", 0.0, "config.claims.same.margin = 0.0"),
    ],
)
def test_bad_configs(key, value, message):
    own = config()
    own.update_from_flattened_dict({key: value})
    with pytest.raises(ConfigError, match=message):
        studies.validate(own)


def test_a_metric_that_was_not_measured(tmp_path):
    own = config(show=("nothing",))
    with pytest.raises(ConfigError, match="nothing"):
        studies.run(own, str(tmp_path))
