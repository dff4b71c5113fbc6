"""Right, spurious and self-made rewards on problems that no model has seen (arXiv 2507.10532).

Claim: on leakage-free problems only a correct reward teaches; random and format rewards leave
the policy where it was, an inverted one destroys it, wrong pseudo-labels do not help. Gains are
held against what the start can already do: its mean, its greedy answer, its best of 16.

Task: two steps of + and - over 0 to 5, written out by a character transformer of two layers.
The start is trained on other questions than those of the reward; accuracy is that on the
questions of the reward, whose answers nothing but the reward has shown. The reward is the
paper's continuous one; accuracy is exact match. `majority` is the reward of arXiv 2504.16084
(the group's own majority as label), `majority_guarded` leaves out prompts without a clear one,
`majority_incorrect` freezes the start's majority where it is wrong.

Variants: "chance" starts from a policy that is hardly ever right; "contaminated" and
"contaminated_single" reward questions whose answers leaked into the start's training behind
another punctuation mark, with 4 optimizer steps per rollout or one, and probe the start: it
completes the leaked questions from their beginnings. The variants compare all arms at the
hyper-parameters that the correct reward is tuned to in the main run.

Measured on "chance" (3 seeds; the start is right in 0.12 of its samples, greedily in 0.17): the
correct reward gains +0.04 [0.02, 0.06] and beats random (+0.05 [0.03, 0.06]) and the frozen wrong
majority (+0.06 [0.03, 0.10]), but in 80 updates not the greedy start (-0.01 [-0.03, 0.02]). Random
(0.00 [-0.02, 0.01]) and format rewards (-0.01 [-0.02, 0.01]) stay within 0.05 of the start, an
inverted one destroys it (0.04 is left). The majority vote, which gains 0.06 in the main run, no
longer does (-0.01 [-0.01, 0.00]): it needs a start whose majority is right.

Measured on "contaminated" (3 seeds): the start knows the leak. Of the leaked questions it completes
0.82 word for word from their first 60% (of 96 fresh ones 0.02), and behind the leak's mark it
answers all of them rightly when greedy (fresh ones: 0.10); behind the reward's mark it is right in
0.11 of its samples, greedily in 0.22. The correct reward brings that back, to 0.86, above the
best of 16 samples (0.75; +0.11 [0.07, 0.16]), by dropping the written steps (6.2 tokens, then 3.6):
it recalls, it does not reason. Random (-0.02 [-0.03, -0.01]) and format rewards (-0.02
[-0.03, -0.01]) bring nothing back, so that spurious rewards recover what was memorised does not
hold. Clipping favours tokens whose probability is above 1 / 1.2; behind the other mark the
memorised answers are far below. With one step per rollout ("contaminated_single") it is the same:
correct 0.93, random 0.09 (-0.02 [-0.03, -0.01]), format 0.10 (-0.01 [-0.03, 0.01]).

Hardware and time: two CPU cores, 12 minutes; "chance" and "contaminated": one core, 3 minutes each
(172 and 167 s of CPU time), "contaminated_single" 2; `smoke`: seconds.
Command: python -m experiments.rlvr --config=configs/random_calculation.py --workdir=DIR
"""

import ml_collections

from configs import common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "", "chance", "contaminated", "contaminated_single" or "smoke" (seconds)."""
    variants = ("", "chance", "contaminated", "contaminated_single", "smoke")
    if arg not in variants:
        raise ValueError(f"variant {arg!r}; allowed are {', '.join(filter(None, variants))}")
    config = common.rlvr()
    config.method = "random_calculation" + (f"_{arg}" if arg not in ("", "smoke") else "")
    _add_task(config)
    _add_transforms(config)
    _add_claims(config)
    if arg == "chance" or arg.startswith("contaminated"):
        _equal_only(config)
    if arg == "chance":
        config.warm_start.steps = 60
    if arg.startswith("contaminated"):
        _contaminate(config)
        config.updates_per_rollout = 4 if arg == "contaminated" else 1
    if arg == "smoke":
        common.smoke(config)
        config.task.votes = 4
        config.evaluation.start_samples = 4
    return config


def _equal_only(config: ml_collections.ConfigDict) -> None:
    """Compares at the hyper-parameters that the correct reward is tuned to in the main run."""
    config.settings = ("equal",)
    del config.tune
    config.steps = 80
    config.evaluation.every = 40
    for name in [name for name in config.claims if config.claims[name].setting == "tuned"]:
        del config.claims[name]


def _add_task(config: ml_collections.ConfigDict) -> None:
    config.task.dataset = "worked_calculation/small"
    config.task.alphabet = "jaxreward.tasks.tokenizer:WORKED_ALPHABET"
    config.task.prompts = 256
    config.task.votes = 16
    config.warm_start.split = "pretrain"
    config.warm_start.steps = 200
    config.sampler.max_new_tokens = 14
    config.verifier.fn = "experiments.verification:final_in_jit"
    config.verifier.tolerant = True
    config.verifier.graded = True
    config.evaluation.prompts = 128
    config.evaluation.start_samples = 16
    config.steps = 120
    config.seeds = 3
    config.hyper.learning_rate = 2e-4  # ten times this, and every spurious reward destroys
    config.hyper.kl_coefficient = 0.2
    config.tune.learning_rate = (1e-4, 2e-4, 5e-4)
    config.tune.kl_coefficient = (0.2,)
    config.tune.steps = 60


def _contaminate(config: ml_collections.ConfigDict) -> None:
    """The twin whose start has seen the questions and, behind a dot, their answers."""
    config.task.dataset = "worked_calculation/contaminated"
    config.task.prompts = 96
    config.evaluation.prompts = 96
    config.evaluation.prefixes = (0.4, 0.6, 0.8)
    config.warm_start.prompts_too = True
    config.warm_start.steps = 400
    common.keep_arms(config, ("correct", "random", "format"))
    config.claims.random_gains = common.claim("random", "start", "equal")


def _add_transforms(config: ml_collections.ConfigDict) -> None:
    room = "jaxreward.transforms"
    pieces = {
        "group_std": dict(
            fn=f"{room}.advantage:group_relative", baseline="mean", scale="group_std"
        ),
        "random": dict(fn=f"{room}.noise:random_reward", rate=0.5),
        "inverted": dict(fn=f"{room}.noise:inverted"),
        "format": dict(fn=f"{room}.majority:answered_reward"),
        "majority": dict(fn=f"{room}.majority:majority_reward"),
        "guarded": dict(fn=f"{room}.majority:majority_reward", min_share=0.5, max_share=0.95),
        "incorrect": dict(
            fn=f"{room}.majority:label_reward",
            label="initial_majority_id",
            leave_out="reference_id",
        ),
    }
    for name, piece in pieces.items():
        config.transforms[name] = ml_collections.ConfigDict(piece)
    config.arms.correct = ("group_std",)
    config.arms.random = ("random", "group_std")
    config.arms.inverted = ("inverted", "group_std")
    config.arms.format = ("format", "group_std")
    config.arms.majority = ("majority", "group_std")
    config.arms.majority_guarded = ("guarded", "group_std")
    config.arms.majority_incorrect = ("incorrect", "group_std")


def _add_claims(config: ml_collections.ConfigDict) -> None:
    claims = config.claims
    for setting in ("equal", "tuned"):
        for worse in ("start", "random", "majority_incorrect", "start_greedy", "start_best"):
            claims[f"{setting}_{worse}"] = common.claim("correct", worse, setting)
        claims[f"{setting}_majority"] = common.claim("majority", "start", setting)
    claims.inverted = common.claim("start", "inverted", "equal")
    claims.incorrect = common.claim("start", "majority_incorrect", "equal", 0.03)
    for name in ("random", "format"):
        claims[name] = common.claim(name, "start", "equal", 0.05)
        claims[name].claim = f"{name} differs from start by less than 0.05 (equal hyper-parameters)"
        claims[name].equivalent = True
