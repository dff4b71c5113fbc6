"""Noise-corrected GRPO on simulated class-conditional noise (arXiv 2510.18924, 2510.00915).

Claim: with false-positive and false-negative rates that differ between types of prompt,
uncorrected training re-weights the prompts and lets the KL penalty win; corrections that know
or estimate the rates bring the true accuracy back to that of clean rewards.

Task: one `+`, `-` or `*` of two digits, a character transformer of two layers. The verifier
is exact; noise flips its verdicts at rates by operator. Every corrected arm is compared with
the noisy arm of the same baseline and scale.

Hardware and time: two CPU cores, about 4 minutes; `smoke`: seconds.
Command: python -m experiments.rlvr --config=configs/noise_corrected_grpo.py --workdir=DIR
"""

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "", "smoke" (seconds) or "fault" (two arms, to be killed often)."""
    config = common.rlvr()
    config.method = "noise_corrected_grpo"
    config.task.dataset = "random_calculation/digits"
    config.verifier.fn = "experiments.verification:in_jit"
    source = ml_collections.ConfigDict()
    source.fn = "jaxreward.transforms.sources:by_index"
    source.name = "prompt_type"  # +, -, *
    source.false_positive = (0.05, 0.30, 0.10)
    source.false_negative = (0.05, 0.30, 0.50)
    common.add_transforms(config, source)
    noise = ml_collections.ConfigDict(dict(fn="jaxreward.transforms.noise:class_conditional"))
    noise.source = source
    config.transforms.noise = noise
    config.arms.clean_leave_one_out = ("leave_one_out",)
    config.arms.clean_group_std = ("group_std",)
    common.add_arms(config, ("noise",))
    if arg not in ("", "smoke", "fault"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke', 'fault' or none")
    if arg:
        common.smoke(config)
    if arg == "fault":
        common.keep_arms(config, ("noisy_leave_one_out", "appeals_backward"))
    return config
