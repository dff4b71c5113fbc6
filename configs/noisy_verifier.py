"""Learning from a real imperfect verifier (arXiv 2510.00915): a brittle string match.

Claim: on fractions, where `12/36` is `1/3`, an exact string match rejects right answers.
Corrections with rates estimated online from appeals (a random tenth of the verdicts re-checked
by math-verify) recover true accuracy that training on the brittle verdicts loses.

Found: the claim does not hold here. The match rejects a quarter of the right answers, and it
does so at the same rate for every operator, so a channel by operator only rescales the reward
(cosine of the advantages 1.00 with the uncorrected ones), which a tuned KL coefficient does
too. What the noise depends on is how the answer is written, and that the policy can learn.

Task: `a/b op c/d`, a character transformer of two layers, warm-started on answers in mixed
forms. math-verify judges every sample for measurement; only the appeals reach a chain.

Hardware and time: two CPU cores, 4 minutes; `smoke`: a minute.
Command: python -m experiments.rlvr --config=configs/noisy_verifier.py --workdir=DIR
"""

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" or "smoke"."""
    config = common.rlvr()
    config.method = "noisy_verifier"
    config.task.dataset = "exact_fraction/small"
    config.sampler.max_new_tokens = 7
    config.warm_start.steps = 55
    config.steps = 50
    config.tune.steps = 30
    config.verifier.fn = "experiments.verification:on_host"
    config.verifier.observed = "jaxreward.rewards.verifiers:exact_match"
    config.verifier.trusted = "jaxreward.rewards.verifiers:math_verify"
    config.verifier.workers = 2
    config.verifier.timeout_s = 20.0
    common.add_transforms(config, None)
    oracle = ml_collections.ConfigDict(dict(fn="jaxreward.transforms.noise:use_true_rewards"))
    config.transforms.oracle = oracle
    config.arms.clean_leave_one_out = ("oracle", "leave_one_out")
    config.arms.clean_group_std = ("oracle", "group_std")
    common.add_arms(config, ())
    if arg not in ("", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke' or none")
    if arg:
        common.smoke(config)
    return config
