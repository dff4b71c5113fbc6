"""RewardMATH: which benchmark of reward models predicts what a policy gets (arXiv 2410.01729).

Claims: over reward models of differing quality, the score of one right solution against nine
wrong ones in the same style explains (squared correlation) how good best-of-64 by that model
is, and far better than one terse human solution against one detailed wrong one does; models of
low reciprocal rank lose gold reward from their peak as n grows, those of high rank less.

The task is summing digits modulo a base with written running totals; the 16 reward models of a
seed differ in data (32 to 8192 pairs), label noise (0 to 40%) and in how much of the data is
terse human solutions against detailed wrong ones. The policy writes in detail, as the models of
the paper do: were a tenth of its samples terse, a taste for terse solutions would ruin best-of-64
by itself, and the usual pairs would "explain" it with the wrong sign (squared correlation 0.67).
Beside best-of-64, `tilted` is the policy that is optimal for reward less KL, in closed form on
the same samples.

What does not hold: the reciprocal rank explains 0.48 [0.38, 0.58] more of best-of-64 than the
usual pairs (0.64 against 0.16), which is not surely over 0.4. And models of high rank lose no less
from their peak (0.40) than those of low rank (0.35), for these have no peak to lose: their gold
reward falls from 0.44 without optimisation to 0.11 at n = 128, that of the best third rises to
0.64 at n = 4 and falls to 0.26. A problem has one right solution among dozens of distinct wrong
ones, and the models rank it first of ten in a quarter of the problems on average.

Hardware and time: one CPU core, about 1 minute.
Command: python -m experiments.reward_model --config=configs/reward_math.py --workdir=DIR
"""

import ml_collections

BON, TILTED = "r2_best_of_n", "r2_tilted"


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" or "smoke" (seconds)."""
    if arg not in ("", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke' or none")
    config = ml_collections.ConfigDict()
    config.method = "reward_math"
    config.seed, config.seeds, config.seeds_at_a_time = 0, 5, 1
    config.study = ml_collections.ConfigDict(_study())
    config.show = (BON, TILTED, "mean_score", "collapse")
    config.claims = ml_collections.ConfigDict()
    _add_claims(config.claims)
    if arg == "smoke":
        own = dict(models=4, pairs_most=64, steps=5, problems=20, prompts=10, samples=16, best_of=8)
        config.study.update(own)
        config.seeds = 2
    return config


def _study() -> dict:
    return dict(
        fn="experiments.reward_studies.reward_math:make",
        models=16,  # per seed
        digits=4,
        base=7,
        pairs_least=32,
        pairs_most=8192,
        noise_most=0.4,
        width=96,
        steps=1500,
        batch=64,
        learning_rate=3e-3,
        weight_decay=1e-2,
        problems=400,
        rejected=9,
        prompts=200,
        samples=128,  # per prompt, of the policy
        best_of=64,
        step_accuracy=0.8,  # of the policy
        detailed_share=1.0,  # of its solutions: a model writes as models do
        tilt=0.5,  # KL coefficient, in deviations of the reward
    )


def _add_claims(claims: ml_collections.ConfigDict) -> None:
    rank, accuracy, other = "one_to_many_rank", "one_to_many_accuracy", "one_to_one_other_style"
    for name in (rank, accuracy):
        claims[f"{name}_bon"] = _claim(
            f"{name} explains best-of-64 better than the usual pairs, by 0.4", name, other, BON,
            margin=0.4,
        )
        claims[f"{name}_tilted"] = _claim(
            f"{name} explains the tilted policy better than the usual pairs, by 0.4", name, other,
            TILTED, margin=0.4,
        )
    claims.style = _claim(
        "the same style matters: one to one, it explains more", "one_to_one_same_style", other, BON
    )
    claims.many = _claim(
        "many matter: the same style, nine explain more than one", rank, "one_to_one_same_style",
        BON,
    )
    claims.collapse = _claim(
        "models of low rank lose more gold from their peak", "lowest_third", "highest_third",
        "collapse",
    )


def _claim(text, better, worse, metric, *, kind="better", margin=0.0) -> ml_collections.ConfigDict:
    entry = dict(claim=text, kind=kind, better=better, worse=worse, metric=metric, margin=margin)
    return ml_collections.ConfigDict(entry)
