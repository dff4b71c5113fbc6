"""Consistency distillation guided by reward, directly and by a latent proxy (arXiv 2403.11027).

Claim: adding a reward to latent consistency distillation makes two steps as good as fifty of the
teacher; differentiating the reward itself over-optimises it, a latent proxy that learns its
preferences online does not.

Task: scikit-learn's 8x8 digits as 48 principal components, the class as the prompt. The reward is
a classifier's log-probability plus a bonus for checkerboard energy, the flaw. Judged by another
classifier, by the Frechet distance of its features to unseen digits, and by checkerboard energy.
Variant `own`: a reward of your own, `--config.study.reward=module:function`, `(image, label) ->
number` of one image, float32 [8, 8, 1] in [-1, 1], on the host, from which proxies learn;
`jit:module:function` of jax, which direct guidance needs (`own_direct`; see
`experiments.generator_studies.own_reward`).

Found (5 seeds): direct guidance raises the flawed reward most (2.24 [2.08, 2.40]) and moves far from
real digits (Frechet distance 77 against 4.5 without a reward). The proxy raises the true score of
distillation without reward by .20 [.02, .39]; that it stays as close to real digits is not shown (5.3,
farther by .76 [-.52, 2.04]; with a tenth of the weight 3.9), nor that two guided steps reach the
teacher's fifty (.22 [-.02, .46]).

Hardware and time: one CPU core, about 8 minutes beside other work; `smoke`: seconds.
Command: python -m experiments.generate_rl --config=configs/rg_lcd.py --workdir=DIR
"""

import ml_collections
from ml_collections import config_dict

from configs.study import claim, study


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "", "own" (your reward) or "own_direct" (one that can be differentiated).

    "smoke", "own_smoke" and "own_direct_smoke" take seconds.
    """
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r}; allowed are {', '.join(VARIANTS[1:])} or none")
    name, smoke = arg.removesuffix("smoke").strip("_"), arg.endswith("smoke")
    method = "rg_lcd" + (f"_{name}" if name else "")
    config = study(method, "experiments.generator_studies.rg_lcd:study", seeds=5)
    own = config.study
    if name:
        own.reward = config_dict.placeholder(str)  # module:function, or jit:module:function
    else:
        own.flaw = 5.0  # nats for a full checkerboard
    own.fresh = 100  # samples of each class that are judged
    own.sampling_steps = 2
    own.sampling_guidance = 1.0
    own.generator = ml_collections.ConfigDict(dict(
        kind="transformer", features=64, layers=2, heads=2, patch=4, guidance=True,
        steps=1500, batch=64, learning_rate=2e-3, drop=0.1,
    ))  # fmt: skip
    own.distillation = ml_collections.ConfigDict(
        dict(steps=800, batch=32, learning_rate=5e-4, decay=0.95, guidance=(0.0, 2.0))
    )
    own.proxy = ml_collections.ConfigDict(dict(
        pretraining=300, batch=64, pretraining_rate=3e-3, learning_rate=3e-4,
        logit_scale=10.0, expert_scale=1.0,
    ))  # fmt: skip
    own.arms = _arms()
    _claims(config.claims)
    config.show = ("reward/flawed", "score/true", "score/accuracy", "frechet", "checkerboard")
    if name:
        _take_own_reward(config, direct=name == "own_direct")
    if smoke:
        config.seeds = config.seeds_at_a_time = 1
        own.generator.update(dict(features=16, layers=1, steps=4, batch=8))
        own.distillation.update(dict(steps=2, batch=8))
        own.proxy.update(dict(pretraining=4, batch=8))
        own.fresh = 8
        for name in [name for name in own.arms if "_beta_" in name]:
            del own.arms[name]
        for name in ("proxy", "proxy_smooth", "proxy_all_rows"):
            own.arms[name].rows = 2
        del own.arms["proxy_all_rows"]
        if "more_flaw" in config.claims:
            del config.claims["more_flaw"]
    return config


def _take_own_reward(config: ml_collections.ConfigDict, direct: bool) -> None:
    """Claims and metrics on any reward; without the arms that differentiate it unless `direct`."""
    del config.claims["more_flaw"]
    config.claims.direct.update(
        claim="direct guidance raises the reward most", metric="reward/own"
    )
    if not direct:
        for name in ("direct", "direct_beta_01", "direct_beta_3"):
            del config.study.arms[name]
        for name in ("direct", "exploits"):
            del config.claims[name]
    config.claims.reward = claim("the proxy raises the reward of LCM", "proxy", "lcm", "reward/own")
    config.show = ("reward/own", "reward/missing", "score/true", "score/accuracy", "frechet")


def _arms() -> ml_collections.ConfigDict:
    arms = ml_collections.ConfigDict()
    arms.teacher_50 = dict(kind="teacher", steps=50)
    arms.teacher_2 = dict(kind="teacher", steps=2)
    arms.lcm = dict(kind="lcm")
    for name, beta in (("_beta_01", 0.1), ("", 1.0), ("_beta_3", 3.0)):
        arms["direct" + name] = dict(kind="direct", beta=beta)
        arms["proxy" + name] = dict(kind="proxy", beta=beta, labels="soft", rows=ROWS)
    arms.proxy_smooth = dict(kind="proxy", beta=1.0, labels="smooth", rows=ROWS)
    arms.proxy_all_rows = dict(kind="proxy", beta=1.0, labels="soft", rows=32)
    return arms


VARIANTS = ("", "smoke", "own", "own_smoke", "own_direct", "own_direct_smoke")
ROWS = 10
"""Of the batch of 32: three candidates each need as many reward calls as direct guidance."""


def _claims(claims: ml_collections.ConfigDict) -> None:
    claims.direct = claim(
        "direct guidance raises the flawed reward most", "direct", "proxy", "reward/flawed"
    )
    claims.exploits = claim(
        "direct guidance moves away from real digits", "direct", "lcm", "frechet"
    )
    claims.more_flaw = claim(
        "more weight makes more checkerboard", "direct_beta_3", "direct_beta_01", "checkerboard"
    )
    claims.score = claim("the proxy raises the true score of LCM", "proxy", "lcm", "score/true")
    claims.distance = claim(
        "the proxy stays as close to real digits as LCM", "proxy", "lcm", "frechet", kind="lower"
    )
    claims.steps = claim(
        "two guided steps reach the teacher's fifty", "proxy", "teacher_50", "score/true"
    )
