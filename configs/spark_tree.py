"""The spark tree: does a rare branch live until its follow-up is learned? (arXiv 2510.03222)

Claims: GRPO loses the spark; low-probability regularization with a proxy that is always up to date
is GRPO (the gradient of KL(proxy || policy) at equal parameters only moves the dropped tail), with
a lagged proxy and the sampled k3 term it keeps the spark more often. The full KL and an entropy
bonus stand beside them.

Measured (16 seeds, share of seeds in which the spark wins):
- With 0.1 of the first choices noise: GRPO, clip-higher and both fresh proxies 0.56, lagged full KL
  0.50, lagged k3 1.00 (+0.44 [0.16, 0.71] over GRPO), but so has the entropy bonus.
- `noisy`, with 0.3: lagged k3 1.00, entropy bonus (of 0.02, not tuned) 0.19 (+0.81 [0.60, 1.03]),
  all others 0: a bonus feeds the noise as well, the filter of the proxy does not.
- `minibatches`, eight updates per rollout: lagged k3, GRPO, clip-higher and the entropy bonus 1.00,
  what has neither a tight clip nor a lagged k3 0.69 (-0.31 [-0.57, -0.06]). There the clip protects
  as well as the pull.
- A fresh proxy leaves the spark's probability within 0.0005 of GRPO's at step 40.
- The full KL does not protect, lagged or not: it pulls all that is kept, the sampled k3 the one
  token that is about to be lost.

Hardware and time: one CPU core, half a minute each (`noisy` and ""), `minibatches` 20 s; `smoke`:
seconds.
Command: python -m experiments.studies --config=configs/spark_tree.py --workdir=DIR
"""

import ml_collections

from configs import study as common


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" (one update per rollout), "noisy", "minibatches" or "smoke"."""
    if arg not in ("", "noisy", "minibatches", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'noisy', 'minibatches', 'smoke' or none")
    method = "spark_tree" + (f"_{arg}" if arg in ("noisy", "minibatches") else "")
    config = common.study(method, "experiments.spark_tree:make_study", seeds=16)
    study = config.study
    study.spark = 0.04  # first probabilities; the default has the rest
    study.noise = 0.3 if arg == "noisy" else 0.1
    study.groups = 16  # P
    study.group_size = 8  # G
    study.minibatches = 8 if arg == "minibatches" else 1
    study.rollouts = 150 if arg == "minibatches" else 400
    study.learning_rate = 2.0
    study.defaults = ml_collections.ConfigDict(
        dict(
            clip_low=1.0, clip_high=9.0, coefficient=0.0, form="k3_token", proxy_every=1,
            share=0.1, entropy_coefficient=0.0,
        )
    )  # fmt: skip
    every = 5 if arg == "minibatches" else 50
    arms = {
        "grpo": dict(clip_low=0.2, clip_high=0.2),
        "open_grpo": dict(),
        "clip_higher": dict(clip_low=0.2, clip_high=0.28),
        "entropy_bonus": dict(clip_low=0.2, clip_high=0.2, entropy_coefficient=0.02),
        "fresh_k3": dict(coefficient=1.0),
        "fresh_full_kl": dict(coefficient=1.0, form="full_kl"),
        "lagged_k3": dict(coefficient=1.0, proxy_every=every),
        "lagged_full_kl": dict(coefficient=1.0, form="full_kl", proxy_every=every),
    }
    study.arms = ml_collections.ConfigDict()
    for name, changes in arms.items():
        study.arms[name] = ml_collections.ConfigDict(changes)
    for worse in ("grpo", "fresh_k3", "lagged_full_kl", "entropy_bonus", "clip_higher"):
        name = f"lagged_k3_beats_{worse}"
        text = f"lagged_k3 keeps the spark more often than {worse}"
        config.claims[name] = common.claim(text, "lagged_k3", worse, "spark_wins")
    if arg != "minibatches":
        for form in ("fresh_k3", "fresh_full_kl"):
            config.claims[f"{form}_is_grpo"] = common.claim(
                f"{form} leaves the spark where GRPO does (step 40)",
                form, "open_grpo", "spark_early", kind="equal", margin=0.01,
            )  # fmt: skip
    config.show = ("spark_wins", "reward", "entropy")
    if arg == "smoke":
        config.seeds, config.seeds_at_a_time, study.rollouts = 2, 2, 5
    return config
