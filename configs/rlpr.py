"""Rewards from the policy's own probability of the reference answer (RLPR, arXiv 2506.18254).

Claims: where a verifier cannot read how an answer is spelt, the mean probability of the reference
behind the sampled reasoning teaches more than an exact match does, and more than the product
(sequence likelihood) does; subtracting the score without reasoning and leaving out prompts whose
rewards hardly differ both help.

Task: two steps of + and - over 0 to 5, on questions that the start has not seen, answers and references in independent spellings (12, 12.0, is 12), so
that an exact match misses about half of the right answers. True accuracy takes all spellings.

Hardware and time: two CPU cores, about 6 minutes; `smoke`: seconds.
Command: python -m experiments.rlvr --config=configs/rlpr.py --workdir=DIR
"""

import ml_collections

from configs import common

BASELINES = ("exact_match", "product", "without_debias", "without_filter")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" or "smoke" (seconds)."""
    if arg not in ("", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke' or none")
    config = common.rlvr()
    config.method = "rlpr"
    config.task.dataset = "worked_calculation/small_forms"
    config.task.alphabet = "jaxreward.tasks.tokenizer:WORKED_ALPHABET"
    config.task.prompts = 256
    config.warm_start.split = "pretrain"
    config.warm_start.steps = 200
    config.sampler.max_new_tokens = 17
    config.verifier.fn = "experiments.verification:final_in_jit"
    config.verifier.tolerant = False
    config.likelihood = ml_collections.ConfigDict()
    config.likelihood.separator = "="  # one token, ends the reasoning
    config.likelihood.once = False  # a trace has several
    config.evaluation.prompts = 96
    config.evaluation.start_samples = 16
    config.seeds = 3
    config.steps = 80
    config.hyper.learning_rate = 2e-4
    config.hyper.kl_coefficient = 0.1
    config.tune.learning_rate = (1e-4, 2e-4, 5e-4)
    config.tune.kl_coefficient = (0.1,)
    config.tune.seeds = 1
    config.tune.steps = 40
    _add_arms(config)
    for setting in ("equal", "tuned"):
        for worse in BASELINES + ("start",):
            config.claims[f"{setting}_{worse}"] = common.claim("rlpr", worse, setting)
    if arg == "smoke":
        common.smoke(config)
        config.evaluation.start_samples = 2
        common.keep_arms(config, ("rlpr", "exact_match"))
    return config


def _add_arms(config: ml_collections.ConfigDict) -> None:
    room = "jaxreward.transforms"
    score = f"{room}.likelihood:reference_likelihood"
    pieces = {
        "mean_prob": dict(fn=score, kind="mean_prob", debias=True),
        "raw_mean_prob": dict(fn=score, kind="mean_prob"),
        "prob": dict(fn=score, kind="prob", debias=True),
        "format": dict(fn=f"{room}.calibration:blend", second="answer_valid", weight=0.1),
        "filter": dict(fn=f"{room}.selection:spread_filter", scale=0.5),
        "grpo": dict(fn=f"{room}.advantage:grpo", ddof=1, epsilon=1e-6),
    }
    for name, piece in pieces.items():
        config.transforms[name] = ml_collections.ConfigDict(piece)
    config.arms.rlpr = ("mean_prob", "format", "filter", "grpo")
    config.arms.without_debias = ("raw_mean_prob", "format", "filter", "grpo")
    config.arms.without_filter = ("mean_prob", "format", "grpo")
    config.arms.product = ("prob", "format", "filter", "grpo")
    config.arms.exact_match = ("grpo",)
