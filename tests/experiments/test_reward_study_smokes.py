"""The smallest variants of the studies of rewards and reward models through their runner."""

import pytest
import smokes

SLOW = ("dmoerm", "starc")  # to compile
STUDIES = (
    "contrast_instructions", "dmoerm", "music_rl", "p_genrm", "reward_math", "rm_nlhf",
    "soli_reward", "starc", "tacred_noise",
)  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in STUDIES]
)
def test_smoke(name, tmp_path):
    config, results = smokes.run(name, tmp_path)
    assert config.seeds == 2
    if name in ("dmoerm", "soli_reward"):  # the arms are different models
        accuracies = [own["accuracy"]["mean"] for own in results.values()]
        assert len(set(accuracies)) > len(accuracies) // 2


@pytest.mark.parametrize("name", STUDIES)
def test_unknown_variants(name):
    with pytest.raises(ValueError, match="variant 'large'"):
        smokes.variant(name, "large")
