"""Online label refinement under wrong reference answers (OLR, arXiv 2604.03993).

Claim: up to half of the labels wrong, replacing a label by the policy's own rising and steady
majority brings true accuracy above plain GRPO on the same labels, for labels that the policy
never gives (inactive) and for labels that it does (active). Beyond a tipping point (active, 0.7)
the majorities are wrong themselves and refinement hurts; that arm is there to show it.

Task: one `+`, `-` or `*` of two digits, 64 prompts visited 30 times, evaluated on themselves:
what a wrong label costs is the prompt that has it. GRPO with the sample's standard deviation.

Hardware and time: two CPU cores, about 6 minutes; `smoke`: seconds.
Command: python -m experiments.rlvr --config=configs/olr.py --workdir=DIR
"""

import ml_collections

from configs import common

NOISE = (("inactive", 0.3), ("inactive", 0.5), ("active", 0.3), ("active", 0.5), ("active", 0.7))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" or "smoke" (seconds)."""
    if arg not in ("", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke' or none")
    config = common.rlvr()
    config.method = "olr"
    config.task.dataset = "random_calculation/digits"
    config.verifier.fn = "experiments.verification:in_jit"
    config.steps = 120
    config.warm_start.steps = 40
    config.tune.kl_coefficient = (0.02, 0.1, 0.3)
    config.tune.seeds = 2
    config.tune.steps = 80
    config.hyper.kl_coefficient = 0.1
    room = "jaxreward.transforms"
    config.transforms.grpo = ml_collections.ConfigDict(
        dict(fn=f"{room}.advantage:grpo", ddof=1, epsilon=1e-6)
    )
    config.transforms.refine = ml_collections.ConfigDict(
        dict(
            fn=f"{room}.refinement:label_refinement",
            num_prompts=config.task.prompts,
            start_visit=4,
            min_slope=0.05,
        )
    )
    config.arms.clean = ("grpo",)
    for kind, rate in NOISE:
        name = f"{kind}_{round(100 * rate)}"
        config.transforms[name] = ml_collections.ConfigDict(
            dict(fn=f"{room}.refinement:label_noise", kind=kind, rate=rate)
        )
        config.arms[f"grpo_{name}"] = (name, "grpo")
        config.arms[f"olr_{name}"] = (name, "refine", "grpo")
        for setting in ("equal", "tuned"):
            claim = common.claim(f"olr_{name}", f"grpo_{name}", setting)
            config.claims[f"{setting}_{name}"] = claim
    if arg == "smoke":
        common.smoke(config)
        common.keep_arms(config, ("clean", "grpo_active_50", "olr_active_50"))
    return config
