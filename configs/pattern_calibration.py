"""Patterns of reasoning that calibrate a learned, noisy reward model (arXiv 2505.22653, section 4).

Claims: adding a tenth of the pattern reward to low scores (below 1/2) raises the true quality of
what a policy learns, more so for a weak reward model than for a strong one; patterns that say
nothing about quality do not help.

Measured (10 seeds, gold quality): no gain. Patterns change it by -0.001 [-0.002, -0.001] under the
strong model (0.891) and the medium one (0.875), and by 0.003 [-0.0003, 0.006] under the weak
one (0.709); unrelated ones by -0.001, -0.001 and -0.004. The order is the paper's (the weak model
gains most, unrelated patterns never), the size is not. A likely reason: the policy settles on the
candidate with a prompt's highest score, which among 16 is hardly ever below 1/2, where alone
patterns count (0.49 to 0.86 of all candidates are below).

Task: 64 prompts with 16 candidates each; a reward model regressed on 3000 pairs, after 10, 40 and
600 updates (as in the paper, the levels of noise are checkpoints); a table of logits learns by RLOO
under a KL penalty.

Hardware and time: one CPU core, 20 seconds; `smoke`: seconds.
Command: python -m experiments.reward_model --config=configs/pattern_calibration.py --workdir=DIR
"""

import ml_collections

from configs import study


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" or "smoke" (seconds)."""
    if arg not in ("", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke' or none")
    config = study.study(
        "pattern_calibration", "experiments.pattern_calibration:make_study", seeds=10
    )
    own = config.study
    own.prompts = 64
    own.candidates = 16
    own.features = 12
    own.width = 32
    own.sharpness = 3.0  # of the gold's sigmoid
    own.correlation = 0.4  # weight of the gold's rank in the patterns, the rest is uniform noise
    own.models = ml_collections.ConfigDict(dict(weak=10, medium=40, strong=600))  # updates
    own.batch_size = 64
    own.pairs = 3000
    own.model_learning_rate = 3e-3
    own.group_size = 8
    own.steps = 300
    own.learning_rate = 2.0
    own.kl_coefficient = 0.05
    for name in own.models:
        config.claims[f"{name}_gains"] = study.claim(
            f"patterns raise the quality under the {name} model",
            f"{name}_patterns", name, "gold",
        )  # fmt: skip
        config.claims[f"{name}_unrelated"] = study.claim(
            f"unrelated patterns change it by less than 0.02 under the {name} model",
            f"{name}_unrelated", name, "gold", kind="equal", margin=0.02,
        )  # fmt: skip
    config.show = ("gold", "pair_accuracy", "score_sd", "below_half")
    if arg == "smoke":
        config.seeds, config.seeds_at_a_time = 2, 2
        own.steps, own.models.strong = 5, 50
    return config
