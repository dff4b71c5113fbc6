"""Rare but sensible tokens that sustain exploration (Lp-Reg, arXiv 2510.03222).

Claims: pulling rare tokens that are about to be punished towards a filtered copy of an older
policy keeps them alive and ends higher than GRPO, an entropy bonus or clip-higher.

Measured (3 seeds, final true accuracy, every arm tuned over the same three learning rates; the
start has 0.21, its best of 16 samples 0.92): Lp-Reg with the sampled k3 term 0.444 is above the
start (+0.24 [0.22, 0.26]) and above the same objective without the pull (0.377; +0.07
[0.005, 0.13]), but not above GRPO (0.448; 0.00 [-0.06, 0.05]), an entropy bonus (0.428; +0.02
[-0.06, 0.09]), clip-higher (0.441; 0.00 [-0.04, 0.05]) or its full KL (0.410; +0.04
[-0.001, 0.07]). So the pull makes good what opening the ratio's bounds costs, and no more. Entropy
falls least (0.44 nats at first; over the last 10 updates 0.25, GRPO 0.23, no pull 0.22, entropy
bonus and clip-higher 0.21), but rare, sensible tokens live on no longer: their share of the
decisions falls from 0.05 to between 0.011 and 0.014 in every arm (0.011 with the pull). A likely
reason: nothing rare is worth keeping here. What pays, writing the steps, is in 0.3 of the texts
that the start learned from, and every arm comes to it (responses of 8 tokens at first, 18 to 21 at
the end). With learning rates of 2e-4 to 1e-3 every arm chose 2e-4 and ended lower (GRPO 0.39,
Lp-Reg 0.34, no pull 0.22).

Where a rare branch does pay, in `configs/spark_tree.py`, the pull wins; the proxy that is always
fresh is measured there too. `open_grpo` is Lp-Reg without its pull, so that the bounds of the ratio
are told from the pull.

Task: two steps of + and -, from a start that sometimes works them out with marker words, which is
right more often. The tree with one rare right branch is `configs/spark_tree.py`.

Hardware and time: one CPU core, 7 minutes (418 s of CPU time); `smoke`: seconds.
Command: python -m experiments.rlvr --config=configs/lp_reg.py --workdir=DIR
"""

import ml_collections

from configs import common

OPEN = dict(clip_low=1.0, clip_high=9.0)  # the ratio's bounds in Lp-Reg: [0, 10]
OWN = {
    "grpo": dict(loss=dict(clip_low=0.2)),
    "open_grpo": dict(loss=OPEN),
    "entropy_bonus": dict(loss=dict(entropy_coefficient=0.01)),
    "clip_higher": dict(loss=dict(clip_high=0.28)),
    "lagged_k3": dict(loss=dict(k3_coefficient=1.0, **OPEN), optimizer=dict(every=40)),
    "lagged_full_kl": dict(loss=dict(full_kl_coefficient=1.0, **OPEN), optimizer=dict(every=40)),
}
"""What an arm changes beside its chain, which is the same for all."""


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" or "smoke" (seconds)."""
    if arg not in ("", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke' or none")
    config = common.rlvr()
    config.method = "lp_reg"
    common.mixed_calculation(config)
    config.lagged = True  # the parameters hold an older copy, for the proxy
    config.prompts_per_step = 8
    config.updates_per_rollout = 4
    config.loss.fn = (
        "jaxreward.losses.low_probability_objective:low_probability_objective"
    )
    config.loss.normalize = "token"
    config.loss.full_kl_coefficient = 0.0
    config.loss.k3_coefficient = 0.0
    config.loss.entropy_coefficient = 0.0
    config.loss.min_p = 0.02
    config.loss.share = 0.1  # of about 600 decisions a rollout; the paper has millions and 0.01
    config.optimizer.fn = "jaxreward.policies.lagged:adam"
    config.optimizer.every = 1  # optimizer steps between two copies
    config.settings = ("tuned",)
    config.seeds = 3
    config.steps = 40
    config.hyper.learning_rate = 1e-4
    config.hyper.kl_coefficient = 0.0
    config.tune.learning_rate = (5e-5, 1e-4, 2e-4)
    config.tune.kl_coefficient = (0.0,)
    config.tune.seeds = 1
    config.tune.steps = 20
    config.transforms.advantage = ml_collections.ConfigDict(
        dict(fn="jaxreward.transforms.advantage:grpo", ddof=1, epsilon=1e-6)
    )
    config.own = ml_collections.ConfigDict()
    for arm, changes in OWN.items():
        config.arms[arm] = ("advantage",)
        config.own[arm] = ml_collections.ConfigDict(changes)
    baselines = ("grpo", "open_grpo", "entropy_bonus", "clip_higher", "lagged_full_kl", "start")
    for worse in baselines:
        config.claims[worse] = common.claim("lagged_k3", worse, "tuned")
    if arg == "smoke":
        common.smoke(config)
        config.evaluation.start_samples = 2
        config.updates_per_rollout = 2
    return config
