"""Golden noise: a learned map from noise and prompt to a better noise (arXiv 2411.09502).

Claim: a small network that has learned from pairs of a noise and its re-denoised counterpart (one
step with strong guidance, inverted with weak), kept where a reward prefers the second, improves the
images of new noises and prompts in one forward pass; more with the filter than without.

Task: 8x16 canvases of digits by a diffusion model with guidance 1; the filter's reward has noise of
standard deviation 0.3. Judged by an ensemble that took no part. `random_move` moves the noise as
far in a random direction; `redenoised`, the target of learning, costs four network calls more.

The map sees noises as 16 channels of 2x4, as of a latent: its prompt moves two numbers of each
channel, and with a single channel it learned little and gained nothing.

Found (3 seeds): re-denoised noises satisfy 74.0% of prompts, random ones 67.2%; the learned map
gets 70.9%, by 0.037 [0.027, 0.048] more, at one forward pass. As released, with the batch's first
prompt, it gains nothing (67.6%), nor does a random move (67.4%). Five of six claims hold. The
filter makes no difference, 0.001 [-0.043, 0.045] in log-probability: it keeps 64% of the pairs, and those
it drops were moved along the same guidance direction, so they teach the same map.

Hardware and time: one CPU core, 3 minutes; `smoke`: seconds.
Command: python -m experiments.noise_search --config=configs/golden_noise.py --workdir=DIR
"""

import ml_collections

from configs.noise_search import noise_search, shrink
from configs.study import claim

ACCURACY = "judge/accuracy"


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" or "smoke" (seconds)."""
    if arg not in ("", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke' or none")
    config = noise_search("golden_noise")
    config.study.update(
        dict(
            reader=(64,), pairs=4000, tested=1000, real=500, sampler_steps=10, guidance=1.0,
            redenoise_guidance=5.5, inversion_guidance=1.0, margin=0.0, reward_noise=0.3,
        )
    )  # fmt: skip
    config.study.map = ml_collections.ConfigDict(
        dict(hidden=64, wide=128, channels=32, batch=64, learning_rate=2e-3, steps=1500)
    )
    config.show = (ACCURACY, "judge/log_prob", "noise/moved", "real/distance")
    _add_claims(config.claims)
    if arg == "smoke":
        config = shrink(config)
        config.study.update(dict(reader=(8,), pairs=12, tested=8, real=20, sampler_steps=3))
        config.study.map.update(dict(hidden=8, wide=8, channels=4, batch=4, steps=2))
    return config


def _add_claims(claims: ml_collections.ConfigDict) -> None:
    claims.target = claim(
        "re-denoised noises satisfy more prompts than random ones", "redenoised", "start", ACCURACY
    )
    claims.learned = claim(
        "the learned map satisfies more prompts than random noises",
        "golden_noise", "start", ACCURACY,
    )  # fmt: skip
    claims.direction = claim(
        "and than random moves as far", "golden_noise", "random_move", ACCURACY
    )
    claims.filter = claim(
        "the filter helps", "golden_noise", "golden_noise_unfiltered", "judge/log_prob"
    )
    claims.own_prompt = claim(
        "each noise with its own prompt, not the batch's first as released, helps",
        "golden_noise", "golden_noise_as_released", ACCURACY,
    )  # fmt: skip
    claims.random = claim(
        "random moves change nothing", "random_move", "start", ACCURACY, kind="equal", margin=0.03
    )
