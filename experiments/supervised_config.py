"""What a config of `experiments.supervised` must satisfy, checked before anything heavy."""

import ml_collections

from jaxreward.training import check
from jaxreward.training.exits import ConfigError

TRUE, GREEDY = "eval/true_accuracy", "eval/greedy_accuracy"


def validate(config: ml_collections.ConfigDict) -> None:
    """Raises ConfigError, naming the key, the value and what is allowed."""
    check.required(config, "method", "task.dataset", "task.alphabet", "task.spec")
    positive = ("seeds", "steps", "batch_size", "learning_rate", "samples_tested")
    check.positive(config, *positive, "sampler.max_new_tokens", "model.width", "model.layers")
    check.at_least(config, "warm_up", 0)
    if not config.arms:
        raise ConfigError("config.arms is empty; needed is at least one arm")
    for arm in config.arms:
        for key in config.arms[arm]:
            if key not in config.task.spec:
                known = ", ".join(config.task.spec)
                raise ConfigError(f"config.arms.{arm} changes {key!r}; allowed are {known}")
    for name in config.claims:
        for side in ("better", "worse"):
            check.choice(config, f"claims.{name}.{side}", list(config.arms))
        check.choice(config, f"claims.{name}.metric", (TRUE, GREEDY))
        check.at_least(config, f"claims.{name}.margin", 0)
