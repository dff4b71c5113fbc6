"""The tensorflow-datasets builder of PreferencePairs. Needs no TensorFlow."""

import dataclasses

import tensorflow_datasets as tfds

from jaxreward.tasks import preference_records, preference_worlds, records
from jaxreward.tasks.preference_worlds import PreferenceSpec

_DESCRIPTION = """\
Pairs of items, or single items, judged by simulated annotators whose gold reward is known: feature
vectors or token sequences of several domains. Wrong labels, skill and bias of annotators, ties,
tastes of their own, feedback that is given when it was felt strongly, and critiques that are right
for the wrong reason have a dial each. The known gold reward is modelled on the setting of the
citation.
"""

_CITATION = """\
@article{gao2022scaling,
  title={Scaling Laws for Reward Model Overoptimization},
  author={Gao, Leo and Schulman, John and Hilton, Jacob},
  journal={arXiv preprint arXiv:2210.10760},
  year={2022}
}
"""

DEFECTS = {
    "clean": ("every label right and seen", {}),
    "flips": ("a quarter of the labels wrong", {"flips": 0.25}),
    "annotators": (
        "8 annotators of different skill, for the longer and for what comes first",
        {"annotators": 8, "noise": 0.7, "length_bias": 0.5, "leaning": 0.3, "flips": 0.05,
         "annotator_spread": 1.0, "judgements": 2},
    ),
    "ties": ("leads below half a standard deviation are ties", {"tie_zone": 0.5, "noise": 0.3}),
    "tastes": (
        "40 users of 4 groups",
        {"annotators": 40, "groups": 4, "taste": 1.0, "taste_within": 0.3},
    ),
    "selected": (
        "feedback on a fifth, 16 times as often where felt most",
        {"observed": 0.2, "feedback_decay": 1 / 16, "flips": 0.1},
    ),
    "critiques": ("three in ten right verdicts for a wrong reason", {"wrong_critiques": 0.3}),
    "domains": ("4 domains with golds of their own", {"domains": 4, "domain_difference": 1.0}),
    "singles": ("items liked or not, one at a time", {"judged": "singles", "flips": 0.1}),
}  # fmt: skip
"""By name: what is wrong, and the dials."""


@dataclasses.dataclass
class PreferencePairsConfig(tfds.core.BuilderConfig):
    """A named `PreferenceSpec`."""

    spec: PreferenceSpec = PreferenceSpec()


def _configs() -> list[PreferencePairsConfig]:
    every = {name: dial for _, dials in DEFECTS.values() for name, dial in dials.items()}
    every |= {"judged": "pairs", "flips": 0.1, "annotators": 8}
    named = DEFECTS | {"everything": ("all of these at once, on pairs", every)}
    kinds = {
        "": ("vectors", PreferenceSpec()),
        "tokens_": ("tokens", PreferenceSpec(items="tokens", size=13)),
    }
    return [
        PreferencePairsConfig(
            name=start + name, description=f"{kind}: {words}", spec=spec._replace(**dials)
        )
        for start, (kind, spec) in kinds.items()
        for name, (words, dials) in named.items()
    ]


class PreferencePairs(tfds.core.GeneratorBasedBuilder):
    """See the package."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = _configs()

    def _info(self) -> tfds.core.DatasetInfo:
        spec = self.builder_config.spec
        domains = tuple(f"domain_{number}" for number in range(spec.domains))
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=preference_records.features(spec),
            homepage="https://arxiv.org/abs/2210.10760",
            citation=_CITATION,
            disable_shuffling=True,
            metadata=records.metadata(spec, domains, (spec.judged,)),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        made = preference_worlds.generate(self.builder_config.spec)
        return {split: self._generate_examples(part) for split, part in made.items()}

    def _generate_examples(self, judgements):
        yield from enumerate(preference_records.to_records(judgements))
