"""The tensorflow-datasets builder of RandomCalculation. Needs no TensorFlow."""

import dataclasses

import tensorflow_datasets as tfds

from jaxreward.tasks import arithmetic, records
from jaxreward.tasks.arithmetic import ExpressionSpec

_DESCRIPTION = """\
Random arithmetic expressions over integers, fractions, squares and cubes with a chosen number
of binary operations, and their exact values. They are drawn afresh from a seed, so no model can
have seen them; splits share no expression and no compound part of one.
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

_TINY = ExpressionSpec(
    steps=(1,),
    elements=("integer",),
    operators=("+", "-", "*"),
    high=9,
    style="compact",
    prefix="",
    suffix="=",
    sizes=(("train", 200), ("validation", 60)),
    seed=1,
)


@dataclasses.dataclass
class RandomCalculationConfig(tfds.core.BuilderConfig):
    """A named `ExpressionSpec`."""

    spec: ExpressionSpec = ExpressionSpec()


def _configs() -> list[RandomCalculationConfig]:
    tiny = {
        "digits": ("one + - or * of two digits: 7+5=", _TINY),
        "digits_add": (
            "one + of two numbers from 0 to 19: 7+15=",
            _TINY._replace(operators=("+",), high=19, sizes=(("train", 240), ("validation", 80))),
        ),
        "numbers": (
            "one + or - of two numbers from 0 to 99: 23+48=",
            _TINY._replace(
                operators=("+", "-"), high=99, sizes=(("train", 4000), ("validation", 500))
            ),
        ),
        "digitwise": (
            "one + or - of two numbers from 0 to 99 without carry or borrow: 23+45=",
            _TINY._replace(
                operators=("+", "-"),
                high=99,
                carries=False,
                sizes=(("train", 4000), ("validation", 500)),
            ),
        ),
        "digit_steps": (
            "3 to 5 steps of + - * over digits, every part below 1000: ((3+4)*(7-2))-8=",
            _TINY._replace(
                steps=(3, 4, 5),
                max_value=999,
                prompt_type="steps",
                sizes=(("train", 700), ("validation", 300)),
            ),
        ),
    }
    paper = {
        f"steps_{n}": (f"{n} steps in LaTeX, as in the paper", ExpressionSpec(steps=(n,)))
        for n in range(1, 21)
    }
    return [
        RandomCalculationConfig(name=name, description=text, spec=spec)
        for name, (text, spec) in {**tiny, **paper}.items()
    ]


class RandomCalculation(tfds.core.GeneratorBasedBuilder):
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
            homepage="https://arxiv.org/abs/2507.10532",
            citation=_CITATION,
            disable_shuffling=True,
            metadata=records.metadata(spec, arithmetic.prompt_type_names(spec), ("reduced",)),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        examples = arithmetic.make_examples(self.builder_config.spec)
        return {split: self._generate_examples(items) for split, items in examples.items()}

    def _generate_examples(self, examples):
        for example in examples:
            yield example.id, records.to_record(example)
