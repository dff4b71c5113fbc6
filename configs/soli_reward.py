"""Reward models from single pass/fail labels with win-tie pairs (SoliReward, arXiv 2512.22170).

Claim: ties between good items (BT-WT) halve the spread of scores among them, lower the advantage
of the top sample, and give more gold reward after optimisation than Bradley-Terry (BT) and than
ties among bad items as well (BTT), for at most 3 points of pair accuracy.

Feature vectors with 10% flipped labels; perceptrons trained on pairs across prompts, then
optimised by best-of-512 and by a policy, whose runs are compared at a KL of 20 nats from their
start (farther out the gold reward falls without end). `bt_margin` and `released` have the margin
3 of the released code.

What does not hold: under the policy BT-WT has no more gold than BT (-0.4 [-0.9, 0.2]). GRPO
divides by the group's deviation, so a narrower spread of scores does not slow it down; at one KL
both go the same way. By best-of-512 it leads BT by 1.5, and BTT by 1.3 [-0.1, 2.7].

Hardware and time: one CPU core, about 1 minute; `smoke`: seconds.
Command: python -m experiments.reward_model --config=configs/soli_reward.py --workdir=DIR
"""

import ml_collections


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" or "smoke" (seconds)."""
    if arg not in ("", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke' or none")
    config = ml_collections.ConfigDict()
    config.method = "soli_reward"
    config.seed = 0
    config.seeds = 10
    config.seeds_at_a_time = 5
    config.study = ml_collections.ConfigDict(
        dict(
            fn="experiments.reward_studies.soli_reward:make",
            examples=1200,
            flips=0.1,
            hidden=(64, 64),
            steps=800,
            pairs=64,  # of each kind in a batch
            learning_rate=1e-3,
            best_of=512,
            prompts=60,
            policy_steps=150,
            policy_window=5,  # steps that a point of its curve is the mean of; a divisor
            policy_kl=20.0,  # nats from its start, where gold rewards are compared
            policy_groups=4,
            policy_learning_rate=0.02,
        )
    )
    config.study.arms = ml_collections.ConfigDict()
    _arm(config, "bt")
    _arm(config, "bt_wt", win_tie=1.0)
    _arm(config, "btt", win_tie=1.0, lose_tie=1.0)
    _arm(config, "bt_margin", margin=3.0)
    _arm(config, "released", margin=3.0, win_tie=1.0, tie_weight=2.0)
    config.claims = ml_collections.ConfigDict()
    _claim(config, "ties halve the spread of good items", "bt", "log2_spread", "lower", 1.0)
    _claim(config, "and cost less than 3 points of accuracy", "bt", "accuracy", "equal", 0.03)
    _claim(config, "the top sample's advantage falls", "bt", "top_advantage", "lower")
    for worse in ("bt", "btt"):
        _claim(config, f"more gold by best-of-512 than {worse}", worse, "best_of_n_gold", "better")
        _claim(config, f"more gold by a policy than {worse}", worse, "policy_gold", "better")
    config.show = ("accuracy", "spread", "margin", "top_advantage", "best_of_n_gold", "policy_gold")
    if arg == "smoke":
        config.seeds = config.seeds_at_a_time = 2
        own = config.study
        own.examples, own.hidden, own.steps, own.pairs = 100, (8,), 5, 4
        own.best_of, own.prompts, own.policy_steps, own.policy_window = 8, 4, 12, 3
    return config


def _arm(config, name: str, margin=0.0, win_tie=0.0, lose_tie=0.0, tie_weight=1.0) -> None:
    """Weights of the pairs of two passes and of two fails, beside 1 of pass against fail."""
    own = dict(margin=margin, win_tie=win_tie, lose_tie=lose_tie, tie_weight=tie_weight)
    config.study.arms[name] = ml_collections.ConfigDict(own)


def _claim(config, text: str, worse: str, metric: str, kind: str, margin: float = 0.0) -> None:
    """About the arm `bt_wt`."""
    entry = dict(claim=text, kind=kind, better="bt_wt", worse=worse, metric=metric, margin=margin)
    config.claims[f"{metric}_{worse}"] = ml_collections.ConfigDict(entry)
