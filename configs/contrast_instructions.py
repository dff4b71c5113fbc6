"""Contrast instructions: does a reward follow its instruction? (arXiv 2309.16155)

Claims: a reward model that ranks pairs well (in-distribution accuracy) may hardly notice that the
instruction changed; ConvexDA at training time and RewardFusion at inference time make it more
consistent at the same number of steps; policies (here best-of-64) that use the more consistent
reward get more gold reward. Baselines: random augmentation of the same count, all augmentations.
All arms have the same network, steps and learning rate.

With 8000 pairs the network learns something of the instruction (with 1500 all consistencies were
within 0.03 of the 0.5 of a blind guess, and no method could show anything).

Of three seeds: ConvexDA is more consistent than the base, by 0.05 and 0.06, and its policy earns
0.20 more gold; random perturbations of the same number do as much (differences 0.014 [-0.03, 0.06]
and 0.004). RewardFusion loses 0.09 of both consistencies; probably since the similarity of mean
embeddings does not know which token decides, and neighbours of a text answer other instructions.
Hardware and time: one CPU core, about 1 minute.
Command: python -m experiments.reward_model --config=configs/contrast_instructions.py --workdir=DIR
"""

import ml_collections

RESPONSE, INSTRUCTION = "response_consistency", "instruction_consistency"
GOLD = "gold_best_of_n"


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" or "smoke" (seconds)."""
    if arg not in ("", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke' or none")
    config = ml_collections.ConfigDict()
    config.method = "contrast_instructions"
    config.seed, config.seeds, config.seeds_at_a_time = 0, 5, 1
    config.study = ml_collections.ConfigDict(_study())
    config.show = ("pair_accuracy", RESPONSE, INSTRUCTION, GOLD, "augmentations")
    config.claims = ml_collections.ConfigDict()
    _add_claims(config.claims)
    if arg == "smoke":
        own = dict(pairs=40, steps=5, tested=30, prompts=4, samples=8, best_of=4)
        config.study.update(own)
        config.seeds = 2
    return config


def _study() -> dict:
    return dict(
        fn="experiments.reward_studies.contrast_instructions:make",
        wordings=2,
        slot_values=8,  # of each slot, and of answers
        fillers=3,
        words=8,
        worth_of_answer=2.0,
        pairs=8000,
        style_share=0.7,  # of the pairs, which differ in their words only
        noise=0.1,
        perturbations=5,
        other_word=0.5,  # share of perturbations that change the word, not its spelling
        width=64,
        steps=1500,
        batch=64,
        learning_rate=3e-3,
        weight_decay=1e-2,
        embedding=32,
        spelling_distance=0.5,
        top_k=5,
        threshold=0.9,
        tested=2000,
        prompts=64,
        samples=256,
        best_of=64,
        policy_right=0.3,
    )


def _add_claims(claims: ml_collections.ConfigDict) -> None:
    kinds = ((RESPONSE, "response consistency"), (INSTRUCTION, "instruction consistency"))
    for metric, words in kinds:
        for arm in ("convex_da", "base_fusion"):
            claims[f"{arm}_{metric}"] = _claim(f"{arm} has more {words}", arm, "base", metric)
        claims[f"vertices_{metric}"] = _claim(
            f"vertices give more {words} than as many random perturbations", "convex_da",
            "random_da", metric,
        )
    for arm in ("convex_da", "base_fusion"):
        claims[f"{arm}_gold"] = _claim(f"{arm}: the policy earns more gold", arm, "base", GOLD)


def _claim(text, better, worse, metric) -> ml_collections.ConfigDict:
    entry = dict(claim=text, kind="better", better=better, worse=worse, metric=metric, margin=0.0)
    return ml_collections.ConfigDict(entry)
