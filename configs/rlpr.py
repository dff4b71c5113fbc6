"""Rewards from the policy's own probability of the reference answer (RLPR, arXiv 2506.18254).

Claims: where a verifier cannot read how an answer is spelt, the mean probability of the reference
behind the sampled reasoning teaches more than an exact match does, and more than the product
(sequence likelihood) does; subtracting the score without reasoning and leaving out prompts whose
rewards hardly differ both help.

Task: two steps of + and - over 0 to 5, on questions that the start has not seen, answers and
references in independent spellings (12, 12.0, is 12), so that an exact match misses about half of
the right answers. True accuracy takes all spellings. Every arm is tuned over five learning rates.

Measured (5 seeds, final true accuracy; the start has 0.39): RLPR learns (0.46; +0.07 [0.05, 0.09])
and the filter helps (+0.02 [0.00, 0.04]). RLPR does not beat the exact match (0.59;
-0.13 [-0.16, -0.10]) nor the product (0.47; -0.01 [-0.04, 0.03]), and debiasing changes nothing
(0.00 [-0.02, 0.02]). The reasons, on 768 samples of the start:
- Likelihoods do judge the reasoning better: AUC for right reasoning 0.79 (mean), 0.82 (product),
  0.87 (geometric mean), 0.62 (exact match). But here the answer is a computation of its own: behind
  right reasoning 0.58 of the answers are right. The reward is the same whatever answer was written,
  so this part, which the exact match trains, is never taught.
- An exact match that misses 0.46 of the right answers at random only shrinks the gradient.
- Answers have two to five tokens, too few for the product to vanish.
- A base score is the same for a whole group, whose mean is taken off anyway; only the clip at 0
  could matter.
The four likelihood arms chose the lowest learning rate of the grid.
The paper's penalty for ten words that come ten times cannot arise in 17 characters; as pieces it is
`reasoning_patterns.repeats_itself` and `calibration.subtract` behind the blend.

Hardware and time: one CPU core, 5 minutes (299 s of CPU time); `smoke`: seconds.
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
    config.settings = ("tuned",)
    config.seeds = 5
    config.steps = 60
    config.hyper.learning_rate = 2e-4
    config.hyper.kl_coefficient = 0.1
    config.tune.learning_rate = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)
    config.tune.kl_coefficient = (0.1,)
    config.tune.seeds = 1
    config.tune.steps = 30
    _add_arms(config)
    for worse in BASELINES + ("start",):
        config.claims[worse] = common.claim("rlpr", worse, "tuned")
    config.claims.exact_match_learns = common.claim("exact_match", "start", "tuned")
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
