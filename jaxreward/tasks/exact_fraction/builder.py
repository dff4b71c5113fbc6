"""The tensorflow-datasets builder of ExactFraction. Needs no TensorFlow."""

import dataclasses

import tensorflow_datasets as tfds

from jaxreward.tasks import fraction_forms, records
from jaxreward.tasks.fraction_forms import FractionSpec

_DESCRIPTION = """\
Sums, differences and products of small fractions. An answer counts in any equivalent form: 12/36
is 1/3. The worked answers for supervised training are written in mixed forms, so that a verifier
that compares strings has false negatives, whose rate varies with the form and the operator.
"""

_CITATION = """\
@article{cai2025noisy,
  title={Reinforcement Learning with Verifiable yet Noisy Rewards under Imperfect Verifiers},
  author={Cai, Xin-Qiang and Wang, Wei and Liu, Feng and Liu, Tongliang and Niu, Gang and
          Sugiyama, Masashi},
  journal={arXiv preprint arXiv:2510.00915},
  year={2025}
}
"""


@dataclasses.dataclass
class ExactFractionConfig(tfds.core.BuilderConfig):
    """A named `FractionSpec`."""

    spec: FractionSpec = FractionSpec()


def _configs() -> list[ExactFractionConfig]:
    sizes = {  # numerators to, denominators to, examples for training and validation
        "tiny": (3, 4, 72, 20),
        "small": (3, 5, 180, 50),
        "medium": (5, 6, 500, 150),
    }
    return [
        ExactFractionConfig(
            name=name,
            description=f"+ - * of fractions, numerators to {top}, denominators to {bottom}",
            spec=FractionSpec(
                max_numerator=top,
                max_denominator=bottom,
                sizes=(("train", train), ("validation", validation)),
            ),
        )
        for name, (top, bottom, train, validation) in sizes.items()
    ]


class ExactFraction(tfds.core.GeneratorBasedBuilder):
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
            homepage="https://arxiv.org/abs/2510.00915",
            citation=_CITATION,
            disable_shuffling=True,
            metadata=records.metadata(spec, spec.operators, fraction_forms.FORMS),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        examples = fraction_forms.make_examples(self.builder_config.spec)
        return {split: self._generate_examples(items) for split, items in examples.items()}

    def _generate_examples(self, examples):
        for example in examples:
            yield example.id, records.to_record(example)
