"""CausalRM: reward models from noisy feedback that only some give (arXiv 2603.18736).

Claims: where labels are flipped at rates that differ by class, and liked items get feedback more
often, weighting by inverse propensity with the noise-corrected label beats either repair alone,
and these the plain mean over observed items; the gain grows with the selection. Variant "risk":
at fixed predictions the corrected estimates of the risk over *all* items are unbiased, with an
error that falls as 1/sqrt(n), while the plain one's stays; the same for fitted models.

Items are vectors with a random network as gold reward, cut to five levels; an item is liked above
the middle one, and observed with probability `k decay^(4 - level)`, 0.2 on average.

Hardware and time: one CPU core, about 3 minutes; `risk`: about 1 minute; `smoke`: seconds.
Command: python -m experiments.reward_model --config=configs/causal_rm.py --workdir=DIR
"""

import ml_collections

VARIANTS = ("", "risk", "smoke")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "", "risk" or "smoke" (seconds)."""
    if arg not in VARIANTS:
        raise ValueError(f"variant {arg!r}; allowed are 'risk', 'smoke' or none")
    config = ml_collections.ConfigDict()
    config.method = "causal_rm"
    config.seed, config.seeds, config.seeds_at_a_time = 0, 5, 1
    config.claims = ml_collections.ConfigDict()
    if arg == "risk":
        config.method = "causal_rm_risk"
        config.seeds_at_a_time = 5
        config.study = ml_collections.ConfigDict(_risk())
        config.show = ("bias", "slope")
        _add_risk_claims(config.claims)
        return config
    config.study = ml_collections.ConfigDict(_study())
    config.show = ("r2", "accuracy", "false_positive", "false_negative", "over_naive")
    _add_claims(config.claims)
    if arg == "smoke":
        config.seeds = 2
        own = dict(train_items=500, test_items=200, steps=4, propensity_steps=4, every=2, batch=32)
        config.study.update(own)
    return config


def _study() -> dict:
    rates = dict(false_positive=0.3, false_negative=0.1)
    return dict(
        fn="experiments.reward_studies.causal_rm:make",
        features=12,
        width=32,  # of the gold reward
        train_items=40000,  # four fifths to train on, the rest to select by
        test_items=10000,
        propensity=0.2,  # mean
        clip=0.02,  # least propensity that is divided by
        paper_clip=0.1,
        quantile=0.97,  # where the anchors are
        hidden=(64, 32),
        batch=512,
        learning_rate=1e-3,
        steps=400,
        propensity_steps=800,
        every=50,  # updates between two looks at the validation part
        settings=dict(
            selection=dict(decay=0.5, **rates),
            strong_selection=dict(decay=0.3, **rates),
            no_noise=dict(decay=0.5, false_positive=0.0, false_negative=0.0),
        ),
    )


def _add_claims(claims: ml_collections.ConfigDict) -> None:
    for name in ("selection", "strong_selection"):
        own = lambda arm: f"{name}/{arm}"
        claims[f"{name}_both"] = _claim(
            f"{name}: both repairs beat either alone", own("causal_ips"), own("best_partial")
        )
        for arm in ("ips", "denoise"):
            claims[f"{name}_{arm}"] = _claim(
                f"{name}: {arm} alone beats the plain mean", own(arm), own("naive")
            )
        claims[f"{name}_dr"] = _claim(
            f"{name}: doubly robust beats it without the noise correction",
            own("causal_dr"), own("dr"),
        )
        claims[f"{name}_imputation"] = _claim(
            f"{name}: imputing corrected labels beats imputing noisy ones",
            own("causal_dr"), own("causal_dr_noisy_imputation"),
        )
    claims.grows = _claim(
        "the gain over the plain mean grows with the selection", "strong_selection/gain",
        "selection/gain", "over_naive",
    )
    claims.no_noise = _claim(
        "without noise the correction costs less than 0.05", "no_noise/causal_ips",
        "no_noise/ips", kind="equal", margin=0.05,
    )


def _risk() -> dict:
    return dict(
        fn="experiments.reward_studies.causal_risk:make",
        features=12,
        width=32,
        population=65536,
        sizes=(512, 2048, 8192, 32768),  # samples
        redraws=200,
        propensity=0.2,
        decay=0.5,
        false_positive=0.3,
        false_negative=0.1,
        newton_steps=8,  # of the fitted linear models
        fits=16,  # redraws of these
    )


def _add_risk_claims(claims: ml_collections.ConfigDict) -> None:
    for arm in ("causal_ips", "causal_dr"):
        for bad in ("naive", "ips", "denoise"):
            claims[f"{arm}_{bad}"] = _claim(
                f"{arm} is less biased than {bad}, by 0.02", f"risk/{arm}", f"risk/{bad}", "bias",
                kind="lower", margin=0.02,
            )
        claims[f"{arm}_root"] = _claim(
            f"{arm}: the error falls as 1/sqrt(n)", f"risk/{arm}", "risk/root_n", "slope",
            kind="equal", margin=0.1,
        )
    claims.either = _claim(
        "doubly robust: a wrong propensity is mended by the right imputation",
        "risk/causal_dr_wrong_propensity", "risk/causal_ips_wrong_propensity", "bias",
        kind="lower", margin=0.02,
    )
    claims.noisy = _claim(
        "but not by the imputation of noisy labels", "risk/causal_dr_wrong_propensity",
        "risk/causal_dr_wrong_propensity_noisy_imputation", "bias", kind="lower", margin=0.02,
    )
    for bad in ("naive", "ips", "denoise"):
        claims[f"fitted_{bad}"] = _claim(
            f"fitted on the most data, causal_ips has less excess risk than {bad}",
            "fitted/causal_ips", f"fitted/{bad}", "excess_at_most", kind="lower",
        )


def _claim(
    text: str, better: str, worse: str, metric: str = "r2", *, kind="better", margin=0.0
) -> ml_collections.ConfigDict:
    entry = dict(claim=text, kind=kind, better=better, worse=worse, metric=metric, margin=margin)
    return ml_collections.ConfigDict(entry)
