"""The tensorflow-datasets builder of questions by reasoning-gym. Needs no TensorFlow."""

import dataclasses

import tensorflow_datasets as tfds

from jaxreward.tasks import procedural, records
from jaxreward.tasks.procedural import ProceduralSpec

_DESCRIPTION = """\
Questions with one number as the answer, drawn from a seed by the generators of reasoning-gym:
the word problems of GSM-Symbolic, whose names and numbers vary, and easier chains of sums.
Splits share no question.
"""

_CITATION = """\
@article{stojanovski2025reasoning,
  title={REASONING GYM: Reasoning Environments for Reinforcement Learning with Verifiable Rewards},
  author={Stojanovski, Zafir and Stanley, Oliver and Sharratt, Joe and Jones, Richard and Adefioye,
          Abdulhakeem and Kaddour, Jean and K{\\"o}pf, Andreas},
  journal={arXiv preprint arXiv:2505.24760},
  year={2025}
}
"""

_SHORT = "What is {expression}? Answer with the number only."


@dataclasses.dataclass
class GsmSymbolicConfig(tfds.core.BuilderConfig):
    """A named `ProceduralSpec`."""

    spec: ProceduralSpec = ProceduralSpec()


def _sums(terms: tuple[int, int], digits: tuple[int, int], **changes) -> ProceduralSpec:
    """Sums and differences of several numbers."""
    options = (
        ("max_digits", digits[1]), ("max_terms", terms[1]), ("min_digits", digits[0]),
        ("min_terms", terms[0]),
    )  # fmt: skip
    return ProceduralSpec(
        family="chain_sum", options=options, template=_SHORT, prompt_type="operators", **changes
    )


def _configs() -> list[GsmSymbolicConfig]:
    small = (("train", 512), ("validation", 128))
    named = {
        "words": ("word problems of GSM-Symbolic", ProceduralSpec()),
        "sums": ("2 or 3 numbers below 10: 7 + 5 - 3", _sums((2, 3), (1, 1), sizes=small)),
        "long_sums": ("2 to 4 numbers below 100: 71 - 5 + 30", _sums((2, 4), (1, 2))),
    }
    return [
        GsmSymbolicConfig(name=name, description=text, spec=spec)
        for name, (text, spec) in named.items()
    ]


class GsmSymbolic(tfds.core.GeneratorBasedBuilder):
    """See the package."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = _configs()

    def _info(self) -> tfds.core.DatasetInfo:
        spec = self.builder_config.spec
        names = procedural.prompt_type_names(spec)
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=records.features(),
            homepage="https://arxiv.org/abs/2505.24760",
            citation=_CITATION,
            disable_shuffling=True,
            metadata=records.metadata(spec, names, ("reduced",)),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        examples = procedural.make_examples(self.builder_config.spec)
        return {split: self._generate_examples(items) for split, items in examples.items()}

    def _generate_examples(self, examples):
        for example in examples:
            yield example.id, records.to_record(example)
