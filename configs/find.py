"""The distribution of initial noise as the policy (FIND, arXiv 2407.19453).

Claim: a policy gradient on mean and deviation of the initial noise, with a learned baseline and a
clipped ratio, makes a frozen sampler follow an unusual prompt better than fine-tuning its network
by RL does at equal cost.

Task: an unconditional 20-step generator of scikit-learn's 8x8 digits and four rare wishes (a given
digit, drawn thick: a twentieth of the samples). The reward is a classifier's probability, rounded
to twentieths, plus Gaussian noise; every arm has 600 sampler calls a wish. One policy for each.

Hardware and time: see the README's table of results; one CPU core, minutes; `smoke`: seconds.
Command: python -m experiments.generate_rl --config=configs/find.py --workdir=DIR
"""

import ml_collections

from configs.study import claim, study

VARIANTS = ("", "smoke", "ode")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "", "ode" (the sampler adds no noise of its own) or "smoke" (seconds)."""
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r}; allowed are 'ode', 'smoke' or none")
    config = study("find" + ("_ode" if arg == "ode" else ""), _FN, seeds=3)
    own = config.study
    own.prompts = (0, 3, 4, 7)  # wanted digits
    own.levels = 20  # of the reward
    own.reward_noise = 0.2  # standard deviation
    own.calls = 600  # of the sampler, by each arm for each wish
    own.fresh = 400  # samples that are judged
    own.sampler_steps = 20
    own.eta = 0.0 if arg == "ode" else 1.0
    own.generator = ml_collections.ConfigDict(dict(
        kind="transformer", features=96, layers=2, heads=2, patch=8, guidance=False,
        steps=1500, batch=64, learning_rate=2e-3, drop=0.5,
    ))  # fmt: skip
    own.arms = _arms()
    if arg == "ode":  # a deterministic sampler has no decisions to score
        del own.arms["ddpo"]
    _claims(config.claims, own.arms)
    config.show = ("reward", "judge", "diversity/kept", "diversity/of_successes", "prior/mean_abs")
    if arg == "smoke":
        config.seeds = config.seeds_at_a_time = 1
        own.generator.update(dict(features=16, layers=1, steps=4, batch=8))
        own.prompts, own.calls, own.fresh, own.sampler_steps = (0, 7), 16, 8, 3
        for name in ("find_no_baseline", "find_no_clip", "find_no_regularizer"):  # as compilable
            del own.arms[name]
        for name in ("baseline", "clip", "regularizer"):
            del config.claims[name]
    return config


_FN = "experiments.generator_studies.find:study"


def _arms() -> ml_collections.ConfigDict:
    arms = ml_collections.ConfigDict()
    arms.base = ml_collections.ConfigDict(dict(kind="base"))
    arms.best_of_n = ml_collections.ConfigDict(dict(kind="best_of_n"))
    arms.reinforce = _noise(objective="reinforce", baseline_rate=0.0)
    arms.find = _noise()
    arms.find_no_baseline = _noise(baseline_rate=0.0)
    arms.find_no_clip = _noise(objective="reinforce")
    arms.find_no_regularizer = _noise(drift=0.0)
    arms.ddpo = ml_collections.ConfigDict(
        dict(kind="network", batch=8, clip=1e-2, learning_rate=1e-3)
    )
    return arms


def _noise(**changes) -> ml_collections.ConfigDict:
    """An arm on noise; `baseline_rate` 0 is no baseline.

    `recomputed` scores are those of the start, as in the released code.
    """
    own = dict(kind="noise", batch=1, objective="clip_always", old="recomputed", clip=0.2)
    own.update(learning_rate=1e-2, reward_weight=10.0, drift=0.01, baseline_rate=1e-4)
    return ml_collections.ConfigDict({**own, **changes})


def _claims(claims: ml_collections.ConfigDict, arms: ml_collections.ConfigDict) -> None:
    claims.base = claim("FIND's noise gets more reward than the base noise", "find", "base", "reward")
    claims.baseline = claim(
        "the learned baseline earns reward", "find", "find_no_baseline", "reward"
    )
    claims.reinforce = claim("FIND beats plain REINFORCE", "find", "reinforce", "reward")
    if "ddpo" in arms:
        claims.network = claim(
            "FIND beats DDPO on the network at equal sampler calls", "find", "ddpo", "reward"
        )
    claims.single = claim(
        "FIND's samples are better than those of the best of 600 noises",
        "find", "best_of_n", "reward",
    )  # fmt: skip
    claims.clip = claim("the clip earns reward", "find", "find_no_clip", "reward")
    claims.regularizer = claim(
        "the regulariser keeps diversity", "find", "find_no_regularizer", "diversity"
    )
