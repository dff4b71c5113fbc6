"""Test-time scaling over a user's own rubrics and those of similar users (P-GenRM, 2602.12116).

Claim: averaging m generations helps; generations from similar users (Pro) help beside them at an
equal number of generations where users of a cluster are alike, most with a history of one pair,
and hurt where they are not.

Closed form: 400 training users in 10 clusters, 8 criteria, histories with 10% wrong labels.
Columns: `tight` and `loose` clusters with 3 pairs of history, `cold` (tight, 1 pair), `long` and
`long_loose` (8 pairs), `hurt` (loosest, noisier generations). References without generations:
the estimate from the history, its prototype, the sum of both, the true weights. Test users are new.

Hardware and time: one CPU core, TIME; `smoke`: seconds.
Command: python -m experiments.reward_model --config=configs/p_genrm.py --workdir=DIR
"""

import ml_collections

from configs import study


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" or "smoke" (seconds)."""
    if arg not in ("", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke' or none")
    config = study.study("p_genrm", "experiments.reward_studies.p_genrm:make", seeds=10)
    config.seeds_at_a_time = 1
    own = config.study
    own.users = 400
    own.clusters = 10
    own.criteria = 8
    own.tested = 200
    own.pairs = 40
    own.flips = 0.1  # of the labels in the histories
    add = lambda name, *entry: config.claims.update({name: study.claim(*entry)})
    for where in ("tight", "loose", "cold", "long"):
        add(f"samples_{where}", f"8 generations beat one: {where}", "ind_8", "ind_1", where)
    for where in ("tight", "cold", "long", "loose"):
        add(f"alone_{where}", f"as many neighbours beat own generations: {where}",
            "pro_8", "ind_8", where)  # fmt: skip
        add(f"joined_{where}", f"and beside own generations: {where}",
            "ind_16_pro_8", "ind_24", where)  # fmt: skip
    add("hurt", "own generations beat neighbours where clusters are loosest",
        "ind_24", "ind_16_pro_8", "hurt")  # fmt: skip
    add("limit", "neighbours add what no number of own generations has", "ind_16_pro_16",
        "estimate", "tight")  # fmt: skip
    add("simple", "and what adding the prototype to the estimate has not", "ind_16_pro_16",
        "estimate_and_prototype", "tight")  # fmt: skip
    config.show = ("tight", "loose", "cold", "long", "long_loose", "hurt")
    if arg == "smoke":
        config.seeds = 2
        own.users, own.clusters, own.tested, own.pairs = 40, 3, 10, 4
    return config
