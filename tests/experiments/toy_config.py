"""Config of the toy runner of the tests."""

import ml_collections

from jaxreward.training import check


def get_config(arg=""):
    config = ml_collections.ConfigDict()
    config.steps = 6 if arg == "smoke" else 60
    config.seed = 0
    config.mode = "slow"
    config.unused = 1
    config.transforms = {"noise": {"false_positive": 0.1, "false_negative": 0.2}}
    config.group_size = 4
    return config


def validate(config):
    check.positive(config, "steps")
    check.at_least(config, "group_size", 2, "a group baseline")
    noise = "transforms.noise"
    check.correctable(config, f"{noise}.false_positive", f"{noise}.false_negative")
