"""Which likelihood of the reference answer should be the reward (arXiv 2602.03979).

Claims: on short answers that can be verified ("") every likelihood reward comes near the binary
one. On long answers of many valid wordings ("long") nothing can verify, so there is no claim on
accuracy; what each reward does to the answers' log-probability is the metric
`likelihood/mean_log_prob` of `compare/metrics.jsonl`: the probability is too small to teach
anything there, its logarithm is not. Both parts of the gradient are used: through the sampled
reasoning and through the reward itself.

Hardware and time: two CPU cores, about 6 minutes each; `smoke`: seconds.
Command: python -m experiments.rlvr --config=configs/likelihood_rewards.py --workdir=DIR
"""

import ml_collections

from configs import common

ARMS = ("prob", "mean_prob", "log_prob", "mean_log_prob")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" (short answers), "long" or "smoke" (seconds)."""
    if arg not in ("", "long", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'long', 'smoke' or none")
    config = common.rlvr()
    config.method = "likelihood_rewards" + ("_long" if arg == "long" else "")
    config.task.dataset = "worked_calculation/small" + ("_long" if arg == "long" else "")
    config.task.alphabet = "jaxreward.tasks.tokenizer:WORKED_ALPHABET"
    config.task.prompts = 256
    config.warm_start.split = "pretrain"
    config.warm_start.steps = 200
    config.sampler.max_new_tokens = 72 if arg == "long" else 14
    config.verifier.fn = "experiments.verification:final_in_jit"
    config.verifier.tolerant = True
    config.likelihood = ml_collections.ConfigDict()
    config.likelihood.separator = "="
    config.likelihood.once = False
    config.loss.fn = "jaxreward.losses.answer_likelihood:policy_and_answer_objective"
    config.loss.objective = "reinforce"
    config.loss.normalize = "constant"  # sums over tokens, the proportion of both parts
    config.loss.max_length = 1
    config.evaluation.prompts = 96
    config.evaluation.start_samples = 16
    config.seeds = 3
    config.steps = 40 if arg == "long" else 80
    config.hyper.learning_rate = 2e-4
    config.hyper.kl_coefficient = 0.1
    config.tune.learning_rate = (1e-4, 2e-4, 5e-4)
    config.tune.kl_coefficient = (0.1,)
    config.tune.seeds = 1
    config.tune.steps = 20 if arg == "long" else 40
    _add_arms(config)
    for setting in ("equal", "tuned"):
        for name in ARMS if arg != "long" else ():
            claim = common.claim(name, "binary", setting, 0.05)
            config.claims[f"{setting}_{name}_near_binary"] = claim
    if arg == "smoke":
        common.smoke(config)
        config.evaluation.start_samples = 2
        common.keep_arms(config, ("binary", "log_prob"))
    return config


def _add_arms(config: ml_collections.ConfigDict) -> None:
    room = "jaxreward.transforms"
    score = f"{room}.likelihood:reference_likelihood"
    pieces = {kind: dict(fn=score, kind=kind, own_gradient=True) for kind in ARMS}
    for kind in ("log_prob", "mean_log_prob"):
        pieces[kind]["invalid"] = "missing"
    pieces |= {
        "nover": dict(fn=f"{room}.likelihood:nover_reward"),
        "jepo": dict(fn=f"{room}.likelihood:jepo_advantage"),
        "rloo": dict(fn=f"{room}.advantage:rloo"),
        "dr_grpo": dict(fn=f"{room}.advantage:dr_grpo"),
    }
    for name, piece in pieces.items():
        config.transforms[name] = ml_collections.ConfigDict(piece)
    config.arms.binary = ("rloo",)
    for kind in ARMS:
        config.arms[kind] = (kind, "rloo")
    config.arms.jepo = ("jepo",)
    config.arms.nover = ("nover", "dr_grpo")
