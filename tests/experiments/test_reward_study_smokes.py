"""The smallest variants of the studies of rewards and reward models through their runner."""

import ml_collections
import pytest
import smokes

SLOW = (  # to compile; their parts have tests of their own
    "dmoerm", "music_rl", "personalized_language", "rm_nlhf", "starc", "tacred_noise",
)  # fmt: skip
STUDIES = (
    "contrast_instructions", "dmoerm", "music_rl", "p_genrm", "personalized_language",
    "reward_math", "rm_nlhf", "soli_reward", "starc", "tacred_noise",
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


CHECKED = (*STUDIES, "causal_rm", "causal_rm:risk", "crm", "pattern_calibration", "rm_ensemble",
           "rm_ensemble_language", "sentence_preferences")  # fmt: skip
"""All configs of the runner."""

ANY_SIGN = ("absent_logit", "adherence", "quality", "user")


def numbers(config, prefix="study."):
    """Keys of numbers and of tuples of numbers, and what is one below all that they allow."""
    for name, value in config.items():
        path = f"{prefix}{name}"
        if isinstance(value, ml_collections.ConfigDict):
            yield from numbers(value, f"{path}.")
        elif isinstance(value, tuple) and value and not isinstance(value[0], str):
            yield path, tuple(type(one)(-1) for one in value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield path, type(value)(-1)


@pytest.mark.parametrize("name", CHECKED)
def test_numbers_out_of_range_are_refused_before_anything_runs(name):
    name, _, arg = name.partition(":")
    refused = 0
    for path, bad in numbers(smokes.variant(name, arg or "smoke").study):
        if path.split(".")[-1] not in ANY_SIGN:
            smokes.refuses(name, path, bad, arg=arg or "smoke")
            refused += 1
    assert refused


@pytest.mark.parametrize("name, key, value", [
    ("causal_rm", "study.settings.selection.false_positive", 0.9),
    ("causal_rm:risk", "study.sizes", (64, 64)), ("causal_rm", "study.quantile", 1.0),
    ("crm", "study.pairs", 8), ("crm", "study.arms", ("peers",)),
    ("crm", "study.settings.flips_20.rate", 0.5),
    ("dmoerm", "study.phase_one", 0.99), ("dmoerm", "study.every", 5),
    ("contrast_instructions", "study.slot_values", 1),
    ("reward_math", "study.best_of", 6), ("reward_math", "study.models", 2),
    ("reward_math", "study.pairs_most", 16),
    ("rm_ensemble", "study.arms.mean_3.members", 9),
    ("rm_ensemble", "study.arms.mean_3.aggregate", "median"),
    ("rm_ensemble_language", "study.policy.group", 1), ("rm_ensemble_language", "study.words", 1),
    ("rm_ensemble_language", "study.language.width", 9),
    ("personalized_language", "study.users", 7), ("personalized_language", "study.users", 1),
    ("personalized_language", "study.arms.heads.model", "each"),
    ("personalized_language", "study.arms.other.shift", 2),
    ("starc", "study.metrics", ("EPIC-2-2",)), ("starc", "study.metrics", ("VAL-2-2", "X-2-2")),
    ("starc", "study.drawn", ("EPIC-1-2",)), ("starc", "study.discount", 1.0),
])  # fmt: skip
def test_values_that_cannot_work_are_refused(name, key, value):
    name, _, arg = name.partition(":")
    smokes.refuses(name, key, value, arg=arg or "smoke")


@pytest.mark.parametrize("name, key, value, blamed", [
    ("causal_rm", "study.every", 3, "study.steps"),
    ("soli_reward", "study.policy_window", 5, "study.policy_steps"),
    ("rm_ensemble", "study.policy.window", 3, "study.policy.steps"),
])  # fmt: skip
def test_what_does_not_divide_is_refused(name, key, value, blamed):
    smokes.refuses(name, key, value, blamed=blamed)
