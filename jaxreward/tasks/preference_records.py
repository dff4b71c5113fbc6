"""What the data set of preferences stores, and reading it back."""

from typing import Any, Iterator

import jax.numpy as jnp
import numpy as np

from jaxreward.tasks.datasets import Dataset
from jaxreward.tasks.preference_worlds import Judgements, PreferenceSpec

INTEGERS = ("subject", "domain", "annotator", "argument", "sound")
REALS = ("gold", "taste", "target", "propensity")


def features(spec: PreferenceSpec):
    """The tensorflow-datasets features of one judgement; floats keep all their bits."""
    import tensorflow_datasets as tfds  # here, because the import is slow

    def tensor(shape: tuple[int, ...], dtype: Any):
        encoding = tfds.features.Encoding.BYTES if dtype == np.float32 else "none"
        return tfds.features.Tensor(shape=shape, dtype=dtype, encoding=encoding)

    count = 2 if spec.judged == "pairs" else 1
    of_items = np.int32 if spec.items == "tokens" else np.float32
    shapes = {"gold": (count,), "taste": (count,), "target": (1,), "propensity": (1,)}
    return tfds.features.FeaturesDict(
        {
            "items": tensor((count, spec.size), of_items),
            "aspects": tensor((count, spec.aspects), np.float32),
            "observed": np.bool_,
            **{name: tensor(shapes[name], np.float32) for name in REALS},
            **{name: np.int32 for name in INTEGERS},
        }
    )


def to_records(judgements: Judgements) -> Iterator[dict[str, Any]]:
    """Records as tensorflow-datasets writes them, in order."""
    columns = {name: np.asarray(value) for name, value in judgements._asdict().items()}
    for name in ("target", "propensity"):
        columns[name] = columns[name][:, None]
    for row in range(len(columns["subject"])):
        yield {name: values[row] for name, values in columns.items()}


def read_judgements(dataset: Dataset, split: str) -> Judgements:
    """All judgements of a split of a data set that `datasets.prepare` made.

    Raises:
      ValueError: another data set, or no such split.
    """
    if not dataset.name.startswith("preference_pairs/"):
        raise ValueError(f"dataset = {dataset.name!r}; allowed is preference_pairs/config")
    if split not in dataset.splits:
        raise ValueError(
            f"split = {split!r} of {dataset.name}; allowed are {', '.join(dataset.splits)}"
        )
    source = dataset.builder.as_data_source(split=split)
    rows = source.__getitems__(list(range(len(source))))
    columns = {name: np.stack([row[name] for row in rows]) for name in Judgements._fields}
    for name in ("target", "propensity"):
        columns[name] = columns[name][:, 0]
    return Judgements(**{name: jnp.asarray(values) for name, values in columns.items()})
