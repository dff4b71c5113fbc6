"""How much reward noise GRPO bears, and a reward for patterns of reasoning (arXiv 2505.22653).

Claims: with whole groups flipped at random accuracy falls slowly up to 40% and collapses at 50%,
where the expected advantage is 0; flips that stay with their prompt cost more than fresh ones; a
reward for distinct marker words, which never looks at the answer, raises accuracy where such
words come with right reasoning, and does not where they say nothing ("uncorrelated").

Task: two steps of + and - over 0 to 5. The start has seen a mix: 30% of its answers worked out
with marker words and right, the rest direct and mostly wrong. `curve.png` is accuracy against
the flip rate.

The paper's third claim, that patterns calibrate a learned and noisy reward model, needs no language
policy and is `configs/pattern_calibration.py`: models of three strengths, no gain found.

Hardware and time: two CPU cores, about 6 minutes; `smoke`: seconds.
Command: python -m experiments.rlvr --config=configs/noisy_rewards_rpr.py --workdir=DIR
"""

import ml_collections

from configs import common

RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "", "uncorrelated" (markers say nothing) or "smoke" (seconds)."""
    if arg not in ("", "uncorrelated", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'uncorrelated', 'smoke' or none")
    config = common.rlvr()
    config.method = "noisy_rewards_rpr" + ("_uncorrelated" if arg == "uncorrelated" else "")
    data = "mixed_uncorrelated" if arg == "uncorrelated" else "mixed"
    common.mixed_calculation(config, data)
    config.seeds = 3
    config.steps = 60
    config.hyper.kl_coefficient = 0.02
    config.tune.kl_coefficient = (0.005, 0.02, 0.08)
    config.tune.seeds = 1
    _add_arms(config, arg)
    if arg == "smoke":
        common.smoke(config)
        config.evaluation.start_samples = 4
        keep = ("flip_0", "flip_50", "patterns")
        common.keep_arms(config, keep)
        config.curve = ml_collections.ConfigDict()
    return config


def _add_arms(config: ml_collections.ConfigDict, arg: str) -> None:
    room = "jaxreward.transforms"
    common.pattern_reward(config)
    pieces = {
        "grpo": dict(fn=f"{room}.advantage:grpo"),
        "use_patterns": dict(
            fn=f"{room}.calibration:replace_reward", second="pattern_reward", answered="answer_id"
        ),
    }
    for rate in RATES if arg != "uncorrelated" else ():
        for name, persistent in (("flip", False), ("stay", True)):
            own = f"{name}_{round(100 * rate)}"
            if persistent and rate in (0.0, 0.1):
                continue
            pieces[own] = dict(
                fn=f"{room}.noise:group_flip", rate=rate, persistent=persistent,
                answered="answer_id",
            )  # fmt: skip
            config.arms[own] = (own, "grpo")
    for name, piece in pieces.items():
        config.transforms[name] = ml_collections.ConfigDict(piece)
    config.arms.patterns = ("use_patterns", "grpo")
    for setting in ("equal", "tuned"):
        _add_claims(config, setting, arg)
    if arg != "uncorrelated":
        config.curve = ml_collections.ConfigDict()
        config.curve.label = "share of the groups flipped"
        config.curve.x = RATES
        lines = ml_collections.ConfigDict()
        lines.fresh = tuple(f"flip_{round(100 * rate)}" for rate in RATES)
        stay = (0.2, 0.3, 0.4, 0.5)
        lines.persistent = ("flip_0", "flip_10") + tuple(f"stay_{round(100 * r)}" for r in stay)
        config.curve.lines = lines


def _add_claims(config: ml_collections.ConfigDict, setting: str, arg: str) -> None:
    claims = config.claims
    if arg == "uncorrelated":
        claims[f"{setting}_patterns"] = common.claim("patterns", "start", setting, 0.05)
        claims[f"{setting}_patterns"].claim = (
            f"patterns differs from start by less than 0.05 ({setting} hyper-parameters)"
        )
        claims[f"{setting}_patterns"].equivalent = True
        return
    claims[f"{setting}_graceful"] = common.claim("flip_40", "flip_0", setting, 0.15)
    claims[f"{setting}_cliff"] = common.claim("flip_40", "flip_50", setting)
    claims[f"{setting}_persistent"] = common.claim("flip_40", "stay_40", setting)
    claims[f"{setting}_patterns"] = common.claim("patterns", "start", setting)
