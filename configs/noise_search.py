"""What configs of noise search share: the digit canvases' generator, recognisers and judge."""

import ml_collections

from configs.study import study

STUDIES = "experiments.image_studies"


def noise_search(method: str) -> ml_collections.ConfigDict:
    """A study on digit canvases: three seeds, each with its own generator and judge, one by one."""
    config = study(method, f"{STUDIES}.{method}:study", seeds=3)
    config.seeds_at_a_time = 1
    config.study.generator = ml_collections.ConfigDict(
        dict(
            hidden=(256, 256), batch=128, learning_rate=2e-3, steps=2000, guidance=1.5,
            sampler_steps=10, pairs=4096, student_steps=1500,
        )
    )  # fmt: skip
    recognizer = dict(batch=128, learning_rate=3e-3, steps=400, augmentation=0.1)
    config.study.recognizer = ml_collections.ConfigDict(recognizer)
    config.study.judge = ml_collections.ConfigDict(dict(recognizer, hidden=(96, 96), members=3))
    return config


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same for a test of seconds: the numbers mean nothing."""
    config.seeds = 2
    own = config.study
    own.generator.update(dict(hidden=(32, 32), batch=16, steps=4))
    own.generator.update(dict(sampler_steps=3, pairs=32, student_steps=4))
    own.recognizer.update(dict(batch=16, steps=4))
    own.judge.update(dict(batch=16, steps=4, hidden=(16,), members=2))
    return config
