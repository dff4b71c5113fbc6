"""The tensorflow-datasets builder of TracedInteger. Needs no TensorFlow."""

import dataclasses

import tensorflow_datasets as tfds

from jaxreward.tasks import records, traced
from jaxreward.tasks.traced import TracedSpec

_DESCRIPTION = """\
Integer programs (sums, products, maxima, medians, greatest common divisors) with the trace of
their execution. The training split may hold noise of a chosen kind and intensity: static noise
changes the printed trace alone, dynamic noise changes results while the program runs. The test
split is always clean.
"""

_CITATION = """\
@article{havrilla2024understanding,
  title={Understanding the Effect of Noise in {LLM} Training Data with Algorithmic Chains of
         Thought},
  author={Havrilla, Alex and Iyer, Maia},
  journal={arXiv preprint arXiv:2402.04004},
  year={2024}
}
"""


@dataclasses.dataclass
class TracedIntegerConfig(tfds.core.BuilderConfig):
    """A named `TracedSpec`."""

    spec: TracedSpec = TracedSpec()


def _configs() -> list[TracedIntegerConfig]:
    lines = dict(style="lines", inputs=4, high=99)
    programs = {
        "runmax": dict(style="digits"),
        "runsum": dict(style="digits"),
        "add": lines,
        "max": lines,
        "multiply": dict(lines, inputs=2, digits=3),
        "median": dict(lines, inputs=3),
        "gcd": dict(lines, inputs=2, digits=4),
    }
    noises = {
        "": {},
        "_static": dict(noise="static", contamination=0.5, intensity=0.3),
        "_dynamic": dict(noise="dynamic", contamination=0.5, intensity=0.3),
    }
    return [
        TracedIntegerConfig(
            name=program + suffix,
            description=f"{program}, {noise.get('noise', 'no')} noise in training",
            spec=TracedSpec(program=program)._replace(
                **{**own, **noise}, change="offset" if own.get("style") == "lines" else "digit"
            ),
        )
        for program, own in programs.items()
        for suffix, noise in noises.items()
    ]


class TracedInteger(tfds.core.GeneratorBasedBuilder):
    """See the package."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = _configs()

    def _info(self) -> tfds.core.DatasetInfo:
        spec = self.builder_config.spec
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=records.features(),
            homepage="https://arxiv.org/abs/2402.04004",
            citation=_CITATION,
            disable_shuffling=True,
            metadata=records.metadata(spec, (spec.program,), traced.FORMS),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        examples = traced.make_examples(self.builder_config.spec)
        return {split: self._generate_examples(items) for split, items in examples.items()}

    def _generate_examples(self, examples):
        for example in examples:
            yield example.id, records.to_record(example)
