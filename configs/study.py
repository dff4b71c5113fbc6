"""What configs of studies share: `experiments.studies` and the runners that are studies."""

import ml_collections


def study(method: str, fn: str, *, seeds: int = 5) -> ml_collections.ConfigDict:
    """The keys that every study has; the method's own settings go into `config.study`.

    Args:
      method: slug, also the name of the config file.
      fn: dotted path of the function from the config to an `experiments.studies.Study`.
      seeds: reported, >= 1.
    """
    config = ml_collections.ConfigDict()
    config.method = method
    config.seed = 0  # of everything random
    config.seeds = seeds
    config.seeds_at_a_time = seeds  # side by side in one program
    config.study = ml_collections.ConfigDict(dict(fn=fn))
    config.claims = ml_collections.ConfigDict()
    config.show = ()  # metrics of the table and the bars
    return config


def claim(
    text: str, better: str, worse: str, metric: str, *, kind: str = "better", margin: float = 0.0
) -> ml_collections.ConfigDict:
    """An entry of `config.claims`.

    "better": `better` has more of the metric than `worse`, by over `margin`; "lower": less;
    "equal": they differ by less than `margin`.
    """
    entry = dict(claim=text, kind=kind, better=better, worse=worse, metric=metric, margin=margin)
    return ml_collections.ConfigDict(entry)
