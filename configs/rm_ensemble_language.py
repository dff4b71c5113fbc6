"""Reward model ensembles against over-optimisation by a language policy (arXiv 2310.02743).

Claims: a single reward model that was trained on few noisy preferences is over-optimised, by
best-of-n and by GRPO: its score rises, the gold reward turns and falls. The mean of five, mean
less variance (UWO) and least of five (WCO) lose less, the least no more than the mean; with wrong
labels they save more; with a KL penalty the gold reward stays near its peak.

All parts are those of the library: a transformer is trained on a corpus whose texts mostly consist
of independent words, a tenth of them stutter; ordinary texts are labelled in pairs by a gold reward
that is known and falls where texts repeat themselves; five transformers with a reward head learn
from the labels, 0% or 25% of them wrong; the first transformer is optimised for one, three or five
of them. Gold rewards are in deviations over samples of the start; runs of GRPO are compared at a KL
of 10 nats from it, or at their end. `single` is the mean over members optimised alone.

Found (5 seeds, 10 of 32 claims): with 25% wrong labels GRPO without penalty over-optimises a single
model (2.9 [1.3, 4.6] of gold lost from its peak at 10 nats) and every ensemble loses less: by 1.6
[.3, 2.9] the mean of five, 1.6 [.1, 3.1] UWO, 1.9 [.5, 3.3] the least of five, which ends 2.5
[1.0, 4.0] higher. The least does not beat the mean (.3 [-.5, 1.1]). With clean labels a single model
loses 1.4 [.7, 2.2] and no ensemble can be told from it: on one seed or two the mean and UWO fell far
(intervals of four), as all members share the corpus's blind spot. Best-of-512 hardly
over-optimises (.02 and .09): it does not reach the stuttering texts. With KL coefficient 0.3 the
least of five keeps within .09 of its peak with clean labels, .15 [.09, .21] with wrong ones, and a
single model within .08 and .32.

Hardware and time: one CPU core, about 10 minutes beside other work; `smoke`: about a minute, compiling.
Command: python -m experiments.reward_model --config=configs/rm_ensemble_language.py --workdir=DIR
"""

import ml_collections

from configs import study

WAYS = ("best_of_n", "policy_0")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" or "smoke" (seconds)."""
    if arg not in ("", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke' or none")
    config = study.study(
        "rm_ensemble_language", "experiments.reward_studies.rm_ensemble_language:make"
    )
    config.seeds_at_a_time = 1
    config.study.update(world())
    config.study.update(_optimization())
    config.study.update(models(dict(members=5), dict(kl_coefficients=(0.0, 0.3), kl_budget=10.0)))
    config.study.policy.runs = 3
    config.study.arms = _arms()
    config.show = (
        "accuracy", "best_of_n/gold", "best_of_n/collapse", "policy_0/gold", "policy_0/collapse",
        "policy_0.3/gold", "policy_0.3/collapse",
    )  # fmt: skip
    _add_claims(config.claims)
    if arg == "smoke":
        shrink(config)
        config.study.update(dict(prompts=2, candidates=16, best_of=(1, 4, 16)))
        config.study.policy.runs = 2
    return config


def world() -> dict:
    """Texts and their gold reward."""
    return dict(
        words=16,
        length=12,  # of a response; the prompt is one word
        features=8,  # of a word
        gold_width=64,
        cost=4.5,
        safe_radius=1.2,  # in root mean squares, beyond which the gold reward falls
        stuttering=0.1,  # share of such texts in the corpus; there are none among the pairs
        repeat=0.85,  # of the word before, in those
    )


def models(reward: dict | None = None, policy: dict | None = None) -> dict:
    """Transformers and how they are trained, with further settings of rewards and policies."""
    size = dict(width=32, heads=2, kv_heads=2, intermediate=64)
    return dict(
        language=dict(size, layers=2),
        pretraining=dict(steps=300, batch=64, learning_rate=3e-3),
        scorer=dict(size, layers=1),
        reward=dict(
            pairs=300, tested=1000, steps=400, batch=32, learning_rate=1e-3, l2=1e-3,
            hidden=(32,), **(reward or {}), reference=1000,
        ),
        policy=dict(
            policy or {}, steps=60, prompts=8, group=16, learning_rate=2e-3, window=4
        ),
    )  # fmt: skip


def _optimization() -> dict:
    return dict(
        settings=dict(clean=dict(flips=0.0), flips_25=dict(flips=0.25)),
        prompts=8,
        candidates=512,
        best_of=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        tilts=(0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),  # of 1 / KL coefficient
    )


def _arms() -> dict:
    """Weights and ddof as in the paper: 0.5 and 0 for best-of-n, 0.1 and 1 for policies."""
    arm = lambda aggregate, members: dict(
        aggregate=aggregate, members=members, policy_weight=0.1, policy_ddof=1,
        **({} if members == 1 else dict(weight=0.5, ddof=0)),
    )  # fmt: skip
    return dict(
        single=arm("mean", 1),
        mean_3=arm("mean", 3),
        mean_5=arm("mean", 5),
        uncertainty_3=arm("uncertainty_weighted", 3),
        uncertainty_5=arm("uncertainty_weighted", 5),
        worst_3=arm("worst_case", 3),
        worst_5=arm("worst_case", 5),
    )


def _add_claims(claims: ml_collections.ConfigDict) -> None:
    for name in ("clean", "flips_25"):
        for way in WAYS:
            where, own = f"{name}, {way}", f"{name}_{way}"
            claims[f"{own}_over"] = study.claim(
                f"{where}: a single reward model is over-optimised", f"{name}/single",
                f"{name}/nothing", f"{way}/collapse", margin=0.1,
            )
            for arm in ("mean_5", "uncertainty_5", "worst_3", "worst_5"):
                claims[f"{own}_{arm}"] = study.claim(
                    f"{where}: {arm} loses less from its peak than single", f"{name}/{arm}",
                    f"{name}/single", f"{way}/collapse", kind="lower",
                )
            claims[f"{own}_worst_mean"] = study.claim(
                f"{where}: worst_5 loses less from its peak than mean_5", f"{name}/worst_5",
                f"{name}/mean_5", f"{way}/collapse", kind="lower",
            )
            claims[f"{own}_gold"] = study.claim(
                f"{where}: worst_5 ends with more gold than single", f"{name}/worst_5",
                f"{name}/single", f"{way}/gold",
            )
        claims[f"{name}_penalty"] = study.claim(
            f"{name}: with KL coefficient 0.3, worst_5 keeps within 0.2 of its peak",
            f"{name}/nothing", f"{name}/worst_5", "policy_0.3/collapse", kind="equal", margin=0.2,
        )
    for way in WAYS:
        claims[f"noise_{way}"] = study.claim(
            f"{way}: with wrong labels worst_5 saves more", "flips_25/gain", "clean/gain",
            f"{way}/collapse",
        )


def shrink(config: ml_collections.ConfigDict) -> None:
    """Two seeds of the least that runs."""
    config.seeds = 2
    own = config.study
    own.update(dict(words=6, length=4))
    own.language.update(dict(width=8, layers=1, intermediate=8))
    own.scorer.update(dict(width=8, intermediate=8))
    own.pretraining.update(dict(steps=2, batch=4))
    own.reward.update(dict(pairs=16, tested=20, steps=2, batch=4, hidden=(4,), reference=20))
    own.policy.update(dict(steps=4, prompts=2, group=2, window=2))
