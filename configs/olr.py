"""Online label refinement under wrong reference answers (OLR, arXiv 2604.03993).

Claim: up to half of the labels wrong, replacing a label by the policy's own rising and steady
majority brings true accuracy above plain GRPO on the same labels, for labels that the policy
never gives (inactive) and for labels that it does (active). Beyond a tipping point the
majorities are wrong themselves and refinement hurts; the arms at 0.7 and 0.9 are there to show
it. All ratios are trained in one program; `curve.png` is accuracy against them.

Task: one `+`, `-` or `*` of two digits, 64 prompts visited 12 times, evaluated on themselves:
what a wrong label costs is the prompt that has it. GRPO with the sample's standard deviation.
Refinement works while the majority's share rises, so the start is weak and the visits are few:
with 30 visits from a start at 0.7 hardly a label was replaced, and those reverted.

Hardware and time: two CPU cores, about 6 minutes; `smoke`: seconds.
Command: python -m experiments.rlvr --config=configs/olr.py --workdir=DIR
"""

import ml_collections

from configs import common

KINDS = ("inactive", "active")
RATES = (0.1, 0.3, 0.5, 0.7, 0.9)
CLAIMED = 0.5  # up to this share of wrong labels refinement is to help


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" or "smoke" (seconds)."""
    if arg not in ("", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke' or none")
    config = common.rlvr()
    config.method = "olr"
    config.task.dataset = "random_calculation/digits"
    config.verifier.fn = "experiments.verification:in_jit"
    config.steps = 48
    config.warm_start.steps = 25
    config.tune.kl_coefficient = (0.02, 0.1, 0.3)
    config.tune.seeds = 2
    config.tune.steps = 48
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
    config.transforms.vote = ml_collections.ConfigDict(dict(fn=f"{room}.majority:majority_reward"))
    config.arms.clean = ("grpo",)
    config.arms.majority_vote = ("vote", "grpo")  # of every prompt, from the first visit
    config.curve = ml_collections.ConfigDict(dict(label="share of wrong labels", x=RATES))
    config.curve.lines = ml_collections.ConfigDict()
    for kind in KINDS:
        _add_noise(config, kind)
    if arg == "smoke":
        common.smoke(config)
        common.keep_arms(config, ("clean", "grpo_active_50", "olr_active_50"))
        config.curve = ml_collections.ConfigDict()
    return config


def _add_noise(config: ml_collections.ConfigDict, kind: str) -> None:
    """Every ratio of one kind of wrong labels, with and without refinement."""
    names = [f"{kind}_{round(100 * rate)}" for rate in RATES]
    for method in ("grpo", "olr"):
        config.curve.lines[f"{method}, {kind}"] = tuple(f"{method}_{name}" for name in names)
    for name, rate in zip(names, RATES):
        config.transforms[name] = ml_collections.ConfigDict(
            dict(fn="jaxreward.transforms.refinement:label_noise", kind=kind, rate=rate)
        )
        config.arms[f"grpo_{name}"] = (name, "grpo")
        config.arms[f"olr_{name}"] = (name, "refine", "grpo")
        for setting in ("equal", "tuned") if rate <= CLAIMED else ():
            claim = common.claim(f"olr_{name}", f"grpo_{name}", setting)
            config.claims[f"{setting}_{name}"] = claim
