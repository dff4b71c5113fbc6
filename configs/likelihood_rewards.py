"""Which likelihood of the reference answer should be the reward (arXiv 2602.03979).

Claims: on short answers that can be verified ("") every likelihood reward comes within 0.05 of the
binary one. On long answers of many valid wordings ("long") nothing can verify; there the claims are
on the mean log-probability of a token of the reference behind the policy's own reasoning, for which
every arm is tuned as well: the logarithms and the mean probability raise it over the start, the
probability, by the paper too small to teach, leaves it. Both parts of the gradient are used: through
the sampled reasoning and through the reward itself.

Measured on "" (5 seeds, final true accuracy at T = 1, each arm tuned over five learning rates; the
start has 0.425): binary 0.562 (+0.14 [0.13, 0.15] over the start), prob 0.585, mean_prob 0.589,
log_prob 0.524, mean_log_prob 0.514, jepo 0.523, nover 0.495. prob and mean_prob are within 0.05 of
binary (+0.02 [0.01, 0.04], +0.03 [0.00, 0.05]), even above it; for log_prob (-0.04 [-0.06, -0.02])
and mean_log_prob (-0.05 [-0.09, -0.01]) that is not shown. This is the
paper's pattern at T = 1, where logarithms win in likelihood and lose in success: over the last 10
updates the mean log-probability of a token of the right answer is -1.01 for both, -1.20 for prob
and -1.15 for mean_prob, and the entropy 0.24 nats against 0.21 and 0.19. A logarithm draws as hard
behind wrong reasoning, where it asks for an answer that does not follow; a probability hardly does.
Four arms (binary, prob, jepo, nover) chose the lowest learning rate of the grid.

Measured on "long" (3 seeds, nats a token, over the start's -0.372): mean_log_prob +0.075 [0.046,
0.105], mean_prob +0.063 [0.054, 0.072], nover +0.055, log_prob +0.043 [-0.003, 0.089], jepo +0.043
[0.022, 0.064], prob +0.018 [-0.003, 0.039], binary +0.00.
- mean_log_prob, mean_prob and jepo rise over the start; for log_prob it is not shown, nor that it
  beats prob (+0.025 [-0.030, 0.080]); over binary it gains 0.041 [0.012, 0.070].
- That prob stays within 0.02 of the start is not shown either. A likely reason: a whole answer of
  some 45 tokens has a probability near 1e-7, but Adam divides that factor out, and what is left is a
  direction, set by the few most probable answers (KL 0.009 from the start, the logarithms 0.21 and
  0.23).
- Right sentences are as rare as before everywhere (0.001 to 0.006), responses as long (55 of 56
  characters): 30 updates under a KL term do not drop the reasoning, as the paper's long runs do.

Hardware and time: one CPU core, 6 minutes (338 s of CPU time), "long" 13; `smoke`: seconds.
Command: python -m experiments.rlvr --config=configs/likelihood_rewards.py --workdir=DIR
"""

import ml_collections

from configs import common

ARMS = ("prob", "mean_prob", "log_prob", "mean_log_prob")
ANSWERS = "eval/answer_log_prob"


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
    config.warm_start.steps = 150
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
    config.settings = ("tuned",)
    config.prompts_per_step = 8
    config.seeds = 3 if arg == "long" else 5
    config.steps = 30 if arg == "long" else 60
    config.hyper.learning_rate = 2e-4
    config.hyper.kl_coefficient = 0.1
    config.tune.learning_rate = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)
    if arg == "long":
        config.tune.learning_rate = (1e-4, 5e-4, 2e-3)
        config.tune.metric = ANSWERS  # nothing verifies these answers
    config.tune.kl_coefficient = (0.1,)
    config.tune.seeds = 1
    config.tune.steps = 15 if arg == "long" else 30
    _add_arms(config)
    if arg == "long":
        _add_long_claims(config)
    else:
        config.claims.binary_learns = common.claim("binary", "start", "tuned")
        for name in ARMS:
            config.claims[f"{name}_near_binary"] = common.claim(name, "binary", "tuned", 0.05)
    if arg == "smoke":
        common.smoke(config)
        config.evaluation.start_samples = 2
        common.keep_arms(config, ("binary", "log_prob"))
    return config


def _add_long_claims(config: ml_collections.ConfigDict) -> None:
    """On the log-probability of the reference answers behind the policy's own reasoning."""
    pairs = [(arm, "start") for arm in ("log_prob", "mean_log_prob", "mean_prob", "jepo")]
    pairs += [("log_prob", "prob"), ("log_prob", "binary")]
    for better, worse in pairs:
        own = common.claim(better, worse, "tuned")
        own.claim = f"{better} makes long answers more probable than {worse}"
        own.metric = ANSWERS
        config.claims[f"{better}_above_{worse}"] = own
    same = common.claim("prob", "start", "tuned", 0.02)
    same.claim = "prob leaves long answers as probable as the start does, to 0.02 nats a token"
    same.metric, same.equivalent = ANSWERS, True
    config.claims.prob_is_flat = same


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
