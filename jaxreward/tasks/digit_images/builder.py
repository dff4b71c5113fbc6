"""The tensorflow-datasets builder of DigitImages. Needs no TensorFlow."""

import dataclasses

import numpy as np
import tensorflow_datasets as tfds

from jaxreward.tasks import image_records, records
from jaxreward.tasks.image_records import DigitImagesSpec

_DESCRIPTION = """\
Canvases of 8x8 cells that hold handwritten digits, each with a prompt: two digits in any order, one
left or right of another, one or two of a digit, a big or a small one. The digits come with
scikit-learn (UCI, Optical Recognition of Handwritten Digits); those of different splits differ. The
prompts are modelled on the categories of GenEval.
"""

_CITATION = """\
@article{ghosh2023geneval,
  title={{GenEval}: An Object-Focused Framework for Evaluating Text-to-Image Alignment},
  author={Ghosh, Dhruba and Hajishirzi, Hannaneh and Schmidt, Ludwig},
  journal={arXiv preprint arXiv:2310.11513},
  year={2023}
}
"""


@dataclasses.dataclass
class DigitImagesConfig(tfds.core.BuilderConfig):
    """A named `DigitImagesSpec`."""

    spec: DigitImagesSpec = DigitImagesSpec()


def _configs() -> list[DigitImagesConfig]:
    named = {
        "pairs": ("all categories, 8x16", DigitImagesSpec()),
        "relations": ("one digit left or right of another", DigitImagesSpec(("relation",))),
        "counts": ("one or two of a digit", DigitImagesSpec(("count",))),
        "sizes": ("a big or a small digit", DigitImagesSpec(("size",))),
        "single": ("one digit, 8x8", DigitImagesSpec(("count",), cells=1)),
    }
    return [
        DigitImagesConfig(name=name, description=words, spec=spec)
        for name, (words, spec) in named.items()
    ]


class DigitImages(tfds.core.GeneratorBasedBuilder):
    """See the package."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = _configs()

    def _info(self) -> tfds.core.DatasetInfo:
        spec = self.builder_config.spec
        width = 8 * spec.cells
        features = tfds.features.FeaturesDict(
            {
                "id": np.int64,
                "text": tfds.features.Text(),
                "tokens": tfds.features.Tensor(shape=(3,), dtype=np.int32),
                "prompt": tfds.features.Tensor(shape=(4,), dtype=np.int32),
                "image": tfds.features.Tensor(
                    shape=(8, width), dtype=np.float32, encoding=tfds.features.Encoding.BYTES
                ),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=features,
            homepage="https://arxiv.org/abs/2310.11513",
            citation=_CITATION,
            disable_shuffling=True,
            metadata=records.metadata(spec, spec.categories, ("drawn",)),
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        made = image_records.make_images(self.builder_config.spec)
        return {split: self._generate_examples(images) for split, images in made.items()}

    def _generate_examples(self, images):
        for position, record in enumerate(image_records.to_records(images)):
            yield position, record
