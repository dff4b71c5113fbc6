"""The distribution of initial noise as the policy (FIND, arXiv 2407.19453).

Claim: a policy gradient on mean and deviation of the initial noise, with a learned baseline and a
clipped ratio, makes a frozen sampler follow an unusual prompt better than fine-tuning its network
by RL does at equal cost.

Task: an unconditional 20-step generator of scikit-learn's 8x8 digits and four rare wishes (a given
digit, drawn thick: a twentieth of the samples). The reward is a classifier's probability, rounded
to twentieths, plus Gaussian noise; every arm has 600 sampler calls a wish, `ddpo_equal_cost` as
many as cost the same with its scoring and backward passes. One policy for each wish.
Variant `own`: a reward of your own, `--config.study.reward=module:function`, `(image, label) ->
number` of one image, float32 [8, 8, 1] in [-1, 1], and the wanted digit, on the host;
`jit:module:function` of jax (see `experiments.generator_studies.own_reward`). FIND's settings are
for rewards of the size of 1.

Found (3 seeds): with the study's stochastic sampler no claim holds. Reward is .056 from base noise,
.057 with FIND and .975 with DDPO on the network: two samples from one initial noise have rewards
that do not correlate (-.02 [-.08, .04]), so 20 steps of full noise forget their start and nothing
of it can be learned. With the deterministic sampler (`ode`) FIND gains .66 [.53, .79] and the
released pairing loses all of it; the baseline (.12 [-.01, .25]), the clip (-.04) and the
regulariser (.01) earn nothing; DDPO wins at equal sampler calls (-.26 [-.43, -.08]) and draws at
equal cost, as do the best of 600 noises.

Hardware and time: one CPU core, 4.5 minutes of processor time each; `smoke`: seconds.
Command: python -m experiments.generate_rl --config=configs/find.py --workdir=DIR
"""

import ml_collections
from ml_collections import config_dict

from configs.study import claim, study

VARIANTS = ("", "smoke", "ode", "own", "own_smoke")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "", "ode" (the sampler adds no noise of its own), "own" (the same with your reward).

    "smoke" and "own_smoke" take seconds.
    """
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r}; allowed are 'ode', 'own', 'own_smoke', 'smoke' or none")
    mine, smoke = arg.startswith("own"), arg.endswith("smoke")
    config = study("find" + ("_ode" if arg == "ode" else "_own" if mine else ""), _FN, seeds=3)
    own = config.study
    own.wishes = (0, 3, 4, 7)  # wanted digits
    if mine:
        own.reward = config_dict.placeholder(str)  # module:function, or jit:module:function
    else:
        own.levels = 20  # of the reward
    own.reward_noise = 0.0 if mine else 0.2  # standard deviation
    own.calls = 600  # of the sampler, by each arm for each wish
    own.fresh = 400  # samples that are judged
    own.sampler_steps = 20
    own.eta = 0.0 if mine or arg == "ode" else 1.0  # of the sampler whose noise is learned
    own.devices = 1  # over which the wishes are split
    own.generator = ml_collections.ConfigDict(dict(
        kind="transformer", features=96, layers=2, heads=2, patch=8, guidance=False,
        steps=1500, batch=64, learning_rate=2e-3, drop=0.5,
    ))  # fmt: skip
    own.arms = _arms()
    _claims(config.claims)
    config.show = ("reward", "judge", "diversity/kept", "prior/mean_abs", "reward/decided_by_noise")
    if mine:
        config.show = ("reward", "judge", "diversity/kept", "reward/missing")
    if smoke:
        config.seeds = config.seeds_at_a_time = 1
        # a perceptron compiles in half the time
        own.generator.update(dict(kind="perceptron", features=16, layers=1, steps=4, batch=8))
        own.wishes, own.calls, own.fresh, own.sampler_steps = (0, 7), 16, 8, 3
        for name in SLOW:
            del own.arms[name]
        for name in ("baseline", "clip", "regularizer", "cost", "released"):
            del config.claims[name]
    return config


_FN = "experiments.generator_studies.find:study"
SLOW = (
    "find_no_baseline", "find_no_clip", "find_no_regularizer", "find_batch_8", "find_replay",
    "find_as_released", "ddpo_equal_cost",
)  # fmt: skip
"""Arms that only add to the time of a test."""


def _arms() -> ml_collections.ConfigDict:
    arms = ml_collections.ConfigDict()
    arms.base = ml_collections.ConfigDict(dict(kind="base"))
    arms.best_of_n = ml_collections.ConfigDict(dict(kind="best_of_n"))
    arms.reinforce = _noise(objective="reinforce", baseline_rate=0.0)
    arms.find = _noise()
    arms.find_replay = _noise(old="behaviour", buffer=4)
    arms.find_batch_8 = _noise(batch=8, learning_rate=3e-2)
    arms.find_as_released = _noise(as_released=True, buffer=20)
    arms.find_no_baseline = _noise(baseline_rate=0.0)
    arms.find_no_clip = _noise(objective="reinforce")
    arms.find_no_regularizer = _noise(drift=0.0)
    for name, equal in (("ddpo", "calls"), ("ddpo_equal_cost", "cost")):  # on a stochastic sampler
        arms[name] = ml_collections.ConfigDict(
            dict(kind="network", eta=1.0, batch=8, clip=1e-2, learning_rate=1e-3, equal=equal)
        )
    return arms


def _noise(**changes) -> ml_collections.ConfigDict:
    """An arm on noise; `baseline_rate` 0 is no baseline.

    `recomputed` scores are those of the start, as in the released code, "behaviour" those of the
    policy that drew a sample. `buffer` is the number of rollouts learned from; `as_released` pairs
    the newest noise with the oldest reward in it, which the released code does by mistake.
    """
    own = dict(kind="noise", batch=1, objective="clip_always", old="recomputed", clip=0.2)
    own.update(learning_rate=1e-2, reward_weight=10.0, drift=0.01, baseline_rate=1e-4)
    own.update(buffer=1, as_released=False)
    return ml_collections.ConfigDict({**own, **changes})


def _claims(claims: ml_collections.ConfigDict) -> None:
    claims.base = claim("FIND's noise gets more reward than the base noise", "find", "base", "reward")
    claims.baseline = claim(
        "the learned baseline earns reward", "find", "find_no_baseline", "reward"
    )
    claims.reinforce = claim("FIND beats plain REINFORCE", "find", "reinforce", "reward")
    claims.network = claim(
        "FIND beats DDPO on the network at equal sampler calls", "find", "ddpo", "reward"
    )
    claims.cost = claim("FIND beats DDPO at equal cost", "find", "ddpo_equal_cost", "reward")
    claims.single = claim(
        "FIND's samples are better than those of the best of 600 noises",
        "find", "best_of_n", "reward",
    )  # fmt: skip
    claims.clip = claim("the clip earns reward", "find", "find_no_clip", "reward")
    claims.regularizer = claim(
        "the regulariser keeps diversity", "find", "find_no_regularizer", "diversity"
    )
    claims.released = claim(
        "each noise with its own reward beats the released pairing",
        "find", "find_as_released", "reward",
    )  # fmt: skip
