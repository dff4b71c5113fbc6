"""Test-time scaling over a user's own rubrics and those of similar users (P-GenRM, 2602.12116).

Claim: averaging m generations helps; generations from similar users (Pro) help beside them at an
equal number of generations where users of a cluster are alike, most with a history of one pair,
and hurt where they are not.

Closed form: 400 training users, 8 criteria, histories with 10% wrong labels; test users are new.
Columns: `tight` and `loose` clusters, ten of them, with 3 pairs of history, `cold` (tight, 1 pair),
`long` and `long_loose` (8 pairs), `hurt` (loosest, noisier generations); `few...` the same with 4
clusters, as is the sweep of the spread. References without generations: the estimate from the
history, its prototype, the sum of both, the true weights.

Found (accuracy on clean pairs, 10 seeds): 8 generations give 2.5 to 5.8 points over one. With four
tight clusters neighbours beat as many own generations by 1.1 points, and by 1.0 beside them; the
gain falls with the spread and is gone at 1.0 (few_loose), a loss beyond (-0.5 at 2.0, `hurt` -0.8).
What does not hold, and why:

- With ten clusters and 3 pairs neighbours add nothing: the cluster is not known then. The prototype
  itself is worth 0.60 there (four clusters: 0.65, above the estimate's 0.63); with 8 pairs (`long`)
  it is worth 0.68, and neighbours gain 0.8 points beside own generations.
- A history of one pair gains less than one of three (four clusters: 0.3 against 1.0 points): the
  neighbours are found by the same pair; what is short for the estimate is short for the cluster.
- Adding the prototype to the estimate does more than any number of generations where neighbours
  help (0.66 against 0.64 with four clusters, 0.71 against 0.69 in `long`): what generations from
  neighbours add is in the prototype, less the noise of sampling.

Hardware and time: one CPU core, 20 seconds; `smoke`: seconds.
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
    own.few_clusters = 4
    own.criteria = 8
    own.tested = 200
    own.pairs = 40
    own.flips = 0.1  # of the labels in the histories
    add = lambda name, *entry: config.claims.update({name: study.claim(*entry)})
    for where in ("few", "tight", "loose", "cold", "long"):
        add(f"samples_{where}", f"8 generations beat one: {where}", "ind_8", "ind_1", where)
    for where in ("few", "few_cold", "tight", "cold", "long", "few_loose", "loose"):
        add(f"alone_{where}", f"as many neighbours beat own generations: {where}",
            "pro_8", "ind_8", where)  # fmt: skip
        add(f"joined_{where}", f"and beside own generations: {where}",
            "ind_16_pro_8", "ind_24", where)  # fmt: skip
    add("hurt", "own generations beat neighbours where clusters are loosest",
        "ind_24", "ind_16_pro_8", "hurt")  # fmt: skip
    for metric, where in (("gain_few", "few clusters"), ("gain", "ten clusters")):
        add(f"cold_{metric}", f"a history of one pair gains more from neighbours: {where}",
            "gain_of_1", "gain_of_3", metric)  # fmt: skip
    for where in ("few", "tight", "long"):
        add(f"limit_{where}", f"neighbours add what no number of own generations has: {where}",
            "ind_16_pro_16", "estimate", where)  # fmt: skip
        add(f"simple_{where}", f"and what adding the prototype to the estimate has not: {where}",
            "ind_16_pro_16", "estimate_and_prototype", where)  # fmt: skip
    config.show = ("few", "few_loose", "few_cold", "tight", "loose", "cold", "long", "hurt")
    if arg == "smoke":
        config.seeds = 2
        own.users, own.clusters, own.few_clusters, own.tested, own.pairs = 40, 3, 2, 10, 4
    return config
