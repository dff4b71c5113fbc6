"""What configs of noise search share: the digit canvases' generator, recognisers and judge."""

import ml_collections

from configs.study import study

STUDIES = "experiments.image_studies"


def noise_search(method: str, *, student: bool = False) -> ml_collections.ConfigDict:
    """A study on digit canvases: three seeds, each with its own generator and judge, one by one.

    `student`: whether the generator is the one-step student of the diffusion model.
    """
    config = study(method, f"{STUDIES}.{method}:study", seeds=3)
    config.seeds_at_a_time = 1
    config.study.generator = ml_collections.ConfigDict(dict(
        kind="perceptron", features=384, layers=3, canvases=20000, drop=0.1, batch=128,
        learning_rate=4e-3, steps=6000,
    ))  # fmt: skip
    if student:
        config.study.student = ml_collections.ConfigDict(dict(
            guidance=1.5, sampler_steps=10, pairs=8192, batch=128, learning_rate=1e-3, steps=3000,
        ))  # fmt: skip
    recognizer = dict(batch=128, learning_rate=3e-3, steps=400, augmentation=0.1, dimming=0.4)
    config.study.recognizer = ml_collections.ConfigDict(recognizer)
    config.study.judge = ml_collections.ConfigDict(dict(recognizer, hidden=(96, 96), members=3))
    return config


def shrink(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The same for a test of seconds: the numbers mean nothing."""
    config.seeds = 1
    own = config.study
    own.generator.update(dict(features=32, layers=1, canvases=64, batch=16, steps=4))
    if "student" in own:
        own.student.update(dict(sampler_steps=3, pairs=32, batch=16, steps=4))
    own.recognizer.update(dict(batch=16, steps=4))
    own.judge.update(dict(batch=16, steps=4, hidden=(16,), members=2))
    return config
