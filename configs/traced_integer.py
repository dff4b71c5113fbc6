"""Which noise in training text hurts: static against dynamic traces (arXiv 2402.04004).

Claim: a model trained on traces with local, static noise answers clean questions nearly as well
as one trained on clean text, where the answer can be computed without the trace; noise that
propagates through the execution (dynamic) is learned at its own rate, and shows when answers
are sampled though greedy decoding hides it. Dropping the wrong answers alone repairs it.

Task: the running maximum of six digits (variant "sum": their running sum modulo 10, where the
trace is needed), a character transformer of two layers, trained from scratch.

Hardware and time: two CPU cores, about 5 minutes; `smoke`: seconds.
Command: python -m experiments.supervised --config=configs/traced_integer.py --workdir=DIR
"""

import ml_collections

TRUE, GREEDY = "eval/true_accuracy", "eval/greedy_accuracy"


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "", "sum" or "smoke" (seconds)."""
    if arg not in ("", "sum", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'sum', 'smoke' or none")
    config = ml_collections.ConfigDict()
    config.method = "traced_integer" + ("_sum" if arg == "sum" else "")
    config.seed = 0
    config.seeds = 3
    config.steps = 700
    config.batch_size = 64
    config.learning_rate = 2e-3
    config.warm_up = 50
    config.samples_tested = 1000
    config.runs_at_a_time = 0
    config.sampler = ml_collections.ConfigDict(dict(max_new_tokens=9))
    config.model = ml_collections.ConfigDict(
        dict(width=64, layers=2, heads=4, kv_heads=4, intermediate=128)
    )
    config.task = ml_collections.ConfigDict()
    config.task.dataset = "traced_integer"
    config.task.alphabet = "jaxreward.tasks.tokenizer:WORKED_ALPHABET"
    config.task.spec = ml_collections.ConfigDict(_spec("runmax"))
    config.arms = ml_collections.ConfigDict()
    config.claims = ml_collections.ConfigDict()
    _add_max(config)
    if arg == "sum":
        config.steps = 1500
        config.task.spec.program = "runsum"
        _add_sum(config)
    if arg == "smoke":
        config.seeds, config.steps, config.warm_up, config.samples_tested = 2, 6, 2, 20
        config.model.width, config.model.layers = 16, 1
        config.task.spec.sizes = (("train", 60), ("test", 20))
    return config


def _spec(program: str) -> dict:
    """The data of every arm, before its own changes: a `TracedSpec`."""
    return dict(
        fn="jaxreward.tasks.traced:TracedSpec",
        program=program,
        style="digits",
        noise="none",
        contamination=0.0,
        intensity=0.0,
        keep="all",
        sizes=(("train", 6000), ("test", 1000)),
    )


def _arm(noise: str, contamination: float, intensity: float, **more) -> ml_collections.ConfigDict:
    own = dict(noise=noise, contamination=contamination, intensity=intensity, **more)
    return ml_collections.ConfigDict(own)


def _add_max(config: ml_collections.ConfigDict) -> None:
    arms = config.arms
    arms.clean = _arm("none", 0.0, 0.0)
    for percent in (30, 70):
        arms[f"static_{percent}"] = _arm("static", 1.0, percent / 100)
    for percent in (10, 30, 70):
        arms[f"dynamic_{percent}"] = _arm("dynamic", 1.0, percent / 100)
    arms.half = _arm("dynamic", 0.5, 0.5)
    for keep in ("right", "clean", "random"):
        arms[f"half_keep_{keep}"] = _arm("dynamic", 0.5, 0.5, keep=keep)
    _claim(config, "static_70", "dynamic_10", TRUE, 0.15)
    _claim(config, "static_70", "clean", TRUE, 0.05, equivalent=True)
    _claim(config, "clean", "dynamic_10", TRUE, 0.2)
    _claim(config, "dynamic_10", "clean", GREEDY, 0.02, equivalent=True)
    _claim(config, "half_keep_right", "half", TRUE, 0.1)
    _claim(config, "half_keep_right", "half_keep_clean", TRUE, 0.05, equivalent=True)
    _claim(config, "half_keep_right", "half_keep_random", TRUE, 0.1)


def _add_sum(config: ml_collections.ConfigDict) -> None:
    config.arms, config.claims = ml_collections.ConfigDict(), ml_collections.ConfigDict()
    config.arms.clean = _arm("none", 0.0, 0.0)
    config.arms.static_30 = _arm("static", 1.0, 0.3)
    config.arms.static_half = _arm("static", 0.5, 0.5)
    config.arms.dynamic_10 = _arm("dynamic", 1.0, 0.1)
    config.arms.dynamic_30 = _arm("dynamic", 1.0, 0.3)
    _claim(config, "clean", "static_30", TRUE, 0.3)
    _claim(config, "clean", "dynamic_10", TRUE, 0.3)
    _claim(config, "static_30", "clean", GREEDY, 0.05, equivalent=True)
    _claim(config, "dynamic_30", "clean", GREEDY, 0.05, equivalent=True)


def _claim(config, better: str, worse: str, metric: str, margin: float, equivalent=False) -> None:
    """`better` is more than `margin` above `worse`, or `equivalent` to it within `margin`."""
    decoder = "T=1" if metric == TRUE else "greedy"
    words = f"differs by less than {margin} from" if equivalent else f"is {margin} above"
    config.claims[f"{better}_{worse}_{decoder.lower().replace('=', '')}"] = dict(
        claim=f"{better} {words} {worse} ({decoder})",
        better=better,
        worse=worse,
        metric=metric,
        margin=margin,
        equivalent=equivalent,
    )
