"""The smallest variants of the studies of image generators through their runners."""

import importlib
import re
import zlib

import numpy as np
import pytest
import smokes

from experiments import generator_figures as figures

STUDIES = ("carinox", "find", "golden_noise", "reno", "rg_lcd", "rlcm", "ttsnap")
SLOW = ("carinox", "golden_noise", "rg_lcd")  # to compile; their parts have tests of their own
WITHOUT_CURVES = {
    "find": {"base"}, "rg_lcd": {"teacher_2", "teacher_50"},
    "carinox": {"sound_rewards", "wrong_reward"},
}  # fmt: skip
"""Arms that neither learn nor search, so spend nothing, and what are no arms."""
OWN = {"rlcm": "test_generator_smokes:score"}
"""Rewards of a user's own, in the place of the study's."""


def score(image, label):
    """Ink in the upper half, for three images of four."""
    if zlib.crc32(image.tobytes()) % 4 == 0:
        raise TimeoutError("busy")
    return image[:4].mean()


@pytest.fixture(autouse=True)
def own_rewards(monkeypatch):
    variant = smokes.variant

    def with_reward(name, arg="smoke"):
        config = variant(name, arg)
        if name in OWN:
            config.study.reward = OWN[name]
        return config

    monkeypatch.setattr(smokes, "variant", with_reward)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in STUDIES]
)
def test_smoke(name, tmp_path, capsys):
    # of two prompts Kendall's rank correlation may be of ties alone
    config, results = smokes.run(name, tmp_path, undefined=("kendall",))
    assert re.search(rf"{name} (\d+)/\1 ", capsys.readouterr().err)  # the bar ends at its end
    assert len(list((tmp_path / "pretrained").iterdir())) == config.seeds
    module = importlib.import_module(config.study.fn.partition(":")[0])
    arms = module.arms(config.study) if hasattr(module, "arms") else config.study.arms
    assert set(arms) == set(results)
    full = smokes.variant(name, "")
    assert full.claims and full.seeds >= 3
    if "arms" in config.study:
        assert set(config.study.arms) < set(full.study.arms)
    for picture in ("curves.png", "samples.png"):
        assert (tmp_path / picture).stat().st_size > 1000
    if name in OWN:
        asked = config.study.iterations * config.study.prompts_per_step * config.study.group_size
        for own in results.values():
            assert all(0 < count < asked for count in own["reward/missing"]["per_seed"])
    with np.load(tmp_path / "curves.npz") as curves:
        for arm in set(results) - WITHOUT_CURVES.get(name, set()):
            budget, reward, trusted = (
                curves[f"{arm}::{curve}"]
                for curve in (figures.BUDGET, figures.REWARD, figures.TRUSTED)
            )
            assert budget.shape == reward.shape == trusted.shape, arm
            assert np.all(np.diff(budget, axis=1) > 0), arm
            assert np.all(np.isfinite(reward + trusted)), arm
            if name not in ("golden_noise", "ttsnap"):  # there the curves search on top of the arms
                total = results[arm]["spent/cost"]["mean"]
                np.testing.assert_allclose(budget[:, -1], total, rtol=1e-6, err_msg=arm)


@pytest.mark.parametrize("name", STUDIES)
def test_unknown_variants(name):
    with pytest.raises(ValueError, match="variant 'large'"):
        smokes.variant(name, "large")
