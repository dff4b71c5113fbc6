"""STARC: distances of reward functions that bound regret (arXiv 2309.15257).

Claims: over random MDPs, pairs of random rewards and what lies between them, the value-adjusted
metric correlates better with regret than EPIC and DARD, and all do better than no
canonicalisation; rewards that induce the same order of policies are at distance 0 (1000 MDPs,
200 per seed), which EPIC and DARD miss; the regret bounds hold. "Worst-case" is the most that
can be lost of one reward while the other does not fall, solved exactly; "regret" is that of
optimal policies, as in the paper.

Hardware and time: one CPU core, about 2 minutes; `full`: the paper's grid, for an accelerator.
Command: python -m experiments.reward_model --config=configs/starc.py --workdir=DIR
"""

import ml_collections

METRICS = (
    "VAL-2-2", "Minimal-2-2", "MinimalWeighted-weighted_2-weighted_2", "EPIC-2-2", "DARD-2-2",
    "VALPotential-2-2", "MinimalPotential-2-2", "None-2-2",
)
OPTIMAL, WORST = "regret_correlation", "worst_case_correlation"


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "", "full" or "smoke" (seconds)."""
    if arg not in ("", "full", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'full', 'smoke' or none")
    config = ml_collections.ConfigDict()
    config.method = "starc"
    config.seed, config.seeds, config.seeds_at_a_time = 0, 5, 1
    config.study = ml_collections.ConfigDict(
        dict(
            fn="experiments.reward_studies.starc:make",
            metrics=METRICS,
            drawn=("VAL-2-2", "EPIC-2-2", "None-2-2"),
            states=32,
            actions=4,
            discount=0.95,
            absent_logit=-20.0,
            mdps=24,
            pairs=4,
            steps=8,
            mdps_at_a_time=1,
            invariance_mdps=200,
        )
    )
    config.show = (OPTIMAL, WORST, "shaped_distance", "equivalent_distance", "bounds_hold")
    config.claims = ml_collections.ConfigDict()
    _add_claims(config.claims)
    if arg == "full":
        own = dict(mdps=128, pairs=8, steps=16, mdps_at_a_time=32)
        config.study.update(own)
    if arg == "smoke":
        own = dict(states=6, mdps=3, pairs=2, steps=3, invariance_mdps=4)
        config.study.update(own)
        config.seeds = 2
    return config


def _add_claims(claims: ml_collections.ConfigDict) -> None:
    for metric, words in ((OPTIMAL, "regret"), (WORST, "worst-case regret")):
        for other in ("EPIC-2-2", "DARD-2-2"):
            text = f"value-adjusted correlates better with {words} than {other}"
            claims[f"{metric}_{other}"] = _claim(text, "VAL-2-2", other, metric)
        for name in ("VAL-2-2", "EPIC-2-2", "DARD-2-2"):
            text = f"{name} correlates better with {words} than no canonicalisation, by 0.1"
            claims[f"{metric}_{name}_none"] = _claim(text, name, "None-2-2", metric, margin=0.1)
    same, far = "equivalent rewards are at distance below 1e-6", "equivalent_distance"
    for name in METRICS[:3]:
        own = dict(kind="equal", margin=1e-6)
        claims[f"same_{name}"] = _claim(f"{name}: {same}", name, "exact", far, **own)
    for name in ("EPIC-2-2", "DARD-2-2"):
        text = f"{name} puts equivalent rewards farther apart, by 0.1"
        claims[f"far_{name}"] = _claim(text, name, "VAL-2-2", far, margin=0.1)
    claims.bounds = _claim(
        "lower and upper bound on regret hold in every pair", "VAL-2-2", "exact", "bounds_hold",
        kind="equal", margin=1e-6,
    )


def _claim(text, better, worse, metric, *, kind="better", margin=0.0) -> ml_collections.ConfigDict:
    entry = dict(claim=text, kind=kind, better=better, worse=worse, metric=metric, margin=margin)
    return ml_collections.ConfigDict(entry)
