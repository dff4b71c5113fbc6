"""Reward model ensembles against over-optimisation (arXiv 2310.02743).

Claims: optimised hard, by best-of-n, by the optimal policy for reward less KL or by policy
gradient, a single learned reward loses gold reward from its peak; the mean of five loses hardly
less, mean less variance (UWO) less, the least of five (WCO) least; with wrong labels the gain is
larger; more members help; with a small KL penalty the cautious aggregates keep their peak.

Candidates are those the pairs come from but for 5% that are twice as far out, where the gold
reward falls; `control` has none, nor the fall, and there the mean should win. The policy is a
Gaussian that can go anywhere: its runs are compared at a KL of 20 nats, or at their end.

What does not hold, of 36 claims 8, and why. With KL coefficient 0.1 the worst case loses 0.7
(0.9 with wrong labels) from its peak: scores have deviation 1 at the start, so a proxy that is
nearly linear is optimal at a KL of 1 / (2 coefficient^2) = 50 nats, and the runs are at 17 to 20;
with 0.3 they stay at 4 to 9 and lose less than 0.1. UWO at the paper's weights (0.5, and 0.1 for
policies) is nearly the mean: it saves 0.04 by best-of-n where labels are right, as members then
agree, and 0.01 to 0.06 under the policy. Too small for 10 seeds: the gain of three members over
one with right labels (0.06 [-0.02, 0.15]), that the policy gains more with wrong labels
(0.27 [-0.05, 0.59]), and that the mean leads in the control (0.03 [-0.06, 0.12]).

Hardware and time: one CPU core, about 2 minutes; `smoke`: half a minute, compiling.
Command: python -m experiments.reward_model --config=configs/rm_ensemble.py --workdir=DIR
"""

import ml_collections

WAYS = ("best_of_n", "tilted", "policy_0")
BEST_OF = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2000)


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" or "smoke" (seconds)."""
    if arg not in ("", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke' or none")
    config = ml_collections.ConfigDict()
    config.method = "rm_ensemble"
    config.seed, config.seeds, config.seeds_at_a_time = 0, 10, 1
    config.study = ml_collections.ConfigDict(_study())
    config.show = (
        "best_of_n/gold", "best_of_n/collapse", "tilted/collapse", "policy_0/gold",
        "policy_0/collapse", "policy_0.1/gold", "policy_0.1/collapse", "policy_0.3/collapse",
    )
    config.claims = ml_collections.ConfigDict()
    _add_claims(config.claims)
    if arg == "smoke":
        config.seeds = 2
        own = dict(pairs=32, steps=4, reference=50, prompts=4, candidates=64, hidden=(8, 8))
        config.study.update(own)
        config.study.best_of = (1, 4, 16, 64)
        config.study.policy.update(dict(steps=4, group=8, window=2))
    return config


def _study() -> dict:
    return dict(
        fn="experiments.reward_studies.rm_ensemble:make",
        features=12,
        gold_width=64,
        safe_radius=1.2,  # in root mean squares, beyond which the gold reward falls
        pairs=300,
        hidden=(64, 64),
        batch=64,
        steps=600,
        learning_rate=1e-3,
        l2=1e-3,  # of the scores
        members=5,
        reference=2000,  # samples that scores are normalised on
        prompts=60,
        candidates=2000,
        far_scale=2.0,
        best_of=BEST_OF,
        tilts=(0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0),  # of 1 / KL coefficient
        settings=dict(
            clean=dict(flips=0.0, far=0.05, cost=4.5),
            flips_25=dict(flips=0.25, far=0.05, cost=4.5),
            control=dict(flips=0.25, far=0.0, cost=0.0),
        ),
        arms=dict(
            single=_arm("mean", 1),
            mean_3=_arm("mean", 3),
            mean_5=_arm("mean", 5),
            uncertainty_3=_arm("uncertainty_weighted", 3),
            uncertainty_5=_arm("uncertainty_weighted", 5),
            uncertainty_5_strong=_arm("uncertainty_weighted", 5, weight=2.0, policy_weight=0.5),
            worst_3=_arm("worst_case", 3),
            worst_5=_arm("worst_case", 5),
        ),
        policy=dict(
            kl_coefficients=(0.0, 0.01, 0.1, 0.3),
            kl_budget=20.0,  # nats at which gold rewards are compared
            steps=200,
            group=128,
            learning_rate=0.015,
            window=5,  # steps that a point of a curve is the mean of; a divisor
        ),
    )


def _arm(aggregate: str, members: int, *, weight=0.5, policy_weight=0.1) -> dict:
    """Weights and ddof as in the paper: 0.5 and 0 for best-of-n, 0.1 and 1 for policies."""
    own = dict(
        aggregate=aggregate, members=members, policy_weight=policy_weight, policy_ddof=1
    )
    return own if members == 1 else dict(own, weight=weight, ddof=0)


def _add_claims(claims: ml_collections.ConfigDict) -> None:
    for name in ("clean", "flips_25"):
        for way in WAYS:
            for arm in ("uncertainty_5", "worst_5"):
                _lower(claims, name, way, arm, "single")
            _lower(claims, name, way, "worst_5", "mean_5")
        _lower(claims, name, "best_of_n", "worst_5", "worst_3")
        _lower(claims, name, "best_of_n", "worst_3", "single")
        for way in WAYS:
            claims[f"{name}_{way}_gold"] = _claim(
                f"{name}, {way}: worst_5 ends with more gold than single", f"{name}/worst_5",
                f"{name}/single", f"{way}/gold",
            )
        for coefficient in ("0.1", "0.3"):
            claims[f"{name}_penalty_{coefficient[2:]}"] = _claim(
                f"{name}: with KL coefficient {coefficient}, worst_5 keeps within 0.1 of its peak",
                f"{name}/nothing", f"{name}/worst_5", f"policy_{coefficient}/collapse",
                kind="equal", margin=0.1,
            )
    for way in WAYS:
        claims[f"noise_{way}"] = _claim(
            f"{way}: with wrong labels worst_5 saves more", "flips_25/gain", "clean/gain",
            f"{way}/collapse",
        )
    claims.control = _claim(
        "control: without far candidates the mean is best", "control/mean_5", "control/worst_5",
        "best_of_n/gold",
    )


def _lower(claims, name: str, way: str, better: str, worse: str) -> None:
    claims[f"{name}_{way}_{better}_{worse}"] = _claim(
        f"{name}, {way}: {better} loses less from its peak than {worse}", f"{name}/{better}",
        f"{name}/{worse}", f"{way}/collapse", kind="lower",
    )


def _claim(
    text: str, better: str, worse: str, metric: str, *, kind="better", margin=0.0
) -> ml_collections.ConfigDict:
    entry = dict(claim=text, kind=kind, better=better, worse=worse, metric=metric, margin=margin)
    return ml_collections.ConfigDict(entry)
