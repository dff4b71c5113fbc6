"""The tensorflow-datasets builder of WorkedCalculation. Needs no TensorFlow."""

import dataclasses

import tensorflow_datasets as tfds

from jaxreward.tasks import arithmetic, records, worked
from jaxreward.tasks.worked import WorkedSpec

_DESCRIPTION = """\
Random integer expressions with the steps of their evaluation: (3+4)*2: is answered by
3+4=7 7*2=14, and the final answer is what follows the last "=". Shares of traced and of direct
answers, of wrong direct answers and of marker words, the written form of answers and references,
and answers of whole sentences are dials of the specification.
"""

_CITATION = """\
@article{wu2025reasoning,
  title={Reasoning or Memorization? Unreliable Results of Reinforcement Learning Due to Data
         Contamination},
  author={Wu, Mingqi and Zhang, Zhihao and Dong, Qiaole and Xi, Zhiheng and Zhao, Jun and
          others},
  journal={arXiv preprint arXiv:2507.10532},
  year={2025}
}
"""


@dataclasses.dataclass
class WorkedCalculationConfig(tfds.core.BuilderConfig):
    """A named `WorkedSpec`."""

    spec: WorkedSpec = WorkedSpec()


def _configs() -> list[WorkedCalculationConfig]:
    steps = WorkedSpec()
    # for warm starts on other questions than those of the reward: `warm_start.split`
    small = steps.expressions._replace(
        operators=("+", "-"), high=5, sizes=(("train", 256), ("validation", 96), ("pretrain", 512))
    )
    larger = small._replace(
        high=7, sizes=(("train", 768), ("validation", 128), ("pretrain", 1024))
    )
    some_traced = WorkedSpec(small, traced=0.3, wrong_direct=0.7)
    mixed = some_traced._replace(copies=(("pretrain", 4),), traced_markers=1.0)
    apart = small._replace(
        high=9, sizes=(("train", 96), ("validation", 96), ("pretrain", 768))
    )
    contaminated = some_traced._replace(expressions=apart, copies=(("pretrain", 2),), leaked=12)
    configs = {
        "steps": ("two steps of + - * over digits, all traced: (3+4)*2:", steps),
        "small": ("two steps of + and - over 0 to 5, all traced: (3+4)-2:", WorkedSpec(small)),
        "larger": ("as small, over 0 to 7", WorkedSpec(larger)),
        "mixed": ("as small, 30% traced with markers, 70% direct, 70% of these wrong", mixed),
        "mixed_uncorrelated": (
            "as mixed, with markers in half of the traced and half of the direct answers",
            mixed._replace(traced_markers=0.5, direct_markers=0.5),
        ),
        "contaminated": (
            "over 0 to 9, pretraining as mixed without markers; it also holds the train split "
            "12 times with right answers, asked with a dot: (3+4)-2.",
            contaminated,
        ),
        "forms": (
            "as steps, answers and references in independent forms: 12, 12.0, is 12",
            steps._replace(worked_forms=(0.6, 0.2, 0.2), reference_forms=(0.6, 0.2, 0.2)),
        ),
        "small_forms": (
            "as small, answers and references in independent forms",
            WorkedSpec(small, worked_forms=(0.6, 0.2, 0.2), reference_forms=(0.6, 0.2, 0.2)),
        ),
        "small_long": (
            "as small, the answer is a sentence of 30 to 60 characters",
            WorkedSpec(small, answers="long"),
        ),
        "long": ("as steps, the answer is a sentence of 30 to 60 characters",
                 steps._replace(answers="long")),
    }  # fmt: skip
    return [
        WorkedCalculationConfig(name=name, description=text, spec=spec)
        for name, (text, spec) in configs.items()
    ]


class WorkedCalculation(tfds.core.GeneratorBasedBuilder):
    """See the package."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = _configs()

    def _info(self) -> tfds.core.DatasetInfo:
        spec = self.builder_config.spec
        types = arithmetic.prompt_type_names(spec.expressions)
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=records.features(),
            homepage="https://arxiv.org/abs/2507.10532",
            citation=_CITATION,
            disable_shuffling=True,
            metadata=records.metadata(spec, types, worked.form_names(spec)),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        examples = worked.make_examples(self.builder_config.spec)
        return {split: self._generate_examples(items) for split, items in examples.items()}

    def _generate_examples(self, examples):
        for example in examples:
            yield example.id, records.to_record(example)
