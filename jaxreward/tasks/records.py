"""What every arithmetic data set stores: one prompt with its exact answer."""

import json
from fractions import Fraction
from typing import Any, NamedTuple, Sequence

import numpy as np


class Example(NamedTuple):
    """One prompt.

    Attributes:
      id: position within its split, `0 .. n - 1`.
      expression: the expression alone.
      prompt: what the policy reads.
      answer: canonical text of the value, `format_fraction`.
      worked: the answer that supervised training shows; equal in value to `answer`.
      form: how `worked` is written, an index into the data set's names of forms.
      prompt_type: index into the data set's names of types; noise may vary by it.
      steps: number of binary operations, 0 where it is not known.
      numerator: of the reduced value, as text (it may exceed 64 bits); carries the sign.
      denominator: of the reduced value, as text, positive.
      value: float64 nearest to the value.
    """

    id: int
    expression: str
    prompt: str
    answer: str
    worked: str
    form: int
    prompt_type: int
    steps: int
    numerator: str
    denominator: str
    value: float


def format_fraction(value: Fraction) -> str:
    """Canonical text: `-3` for an integer, else reduced as `-5/6`."""
    return str(value)


def exact_value(value: Fraction) -> dict[str, Any]:
    """The fields of an `Example` that state its value."""
    return {
        "answer": format_fraction(value),
        "numerator": str(value.numerator),
        "denominator": str(value.denominator),
        "value": float(value),
    }


def features():
    """The tensorflow-datasets features of an `Example`.

    `value` is stored as bytes: the default encoding keeps only 32 bits of a float.
    """
    import tensorflow_datasets as tfds  # here, because the import is slow

    text = tfds.features.Text()
    real = tfds.features.Tensor(
        shape=(1,), dtype=np.float64, encoding=tfds.features.Encoding.BYTES
    )
    kinds = {int: np.int64, str: text, float: real}
    hints = Example.__annotations__
    return tfds.features.FeaturesDict({name: kinds[hints[name]] for name in Example._fields})


def to_record(example: Example) -> dict[str, Any]:
    """The example as tensorflow-datasets writes it."""
    return {**example._asdict(), "value": np.array([example.value], np.float64)}


def from_record(record: dict[str, Any]) -> Example:
    """The example as tensorflow-datasets reads it.

    Raises:
      ValueError: a field is absent or has another dtype or shape than `features` states.
    """
    values = {}
    for name, kind in Example.__annotations__.items():
        if name not in record:
            raise ValueError(f"record has no field {name!r}; it has {sorted(record)}")
        value = np.asarray(record[name])
        shape, codes = ((1,), "f") if kind is float else ((), "SO" if kind is str else "i")
        if value.shape != shape or value.dtype.kind not in codes:
            raise ValueError(
                f"field {name!r} has dtype {value.dtype} and shape {value.shape}; allowed is "
                f"{kind.__name__} of shape {shape}"
            )
        value = value.reshape(-1)[0]
        values[name] = bytes(value).decode() if kind is str else kind(value)
    return Example(**values)


def metadata(spec: tuple, prompt_types: Sequence[str], forms: Sequence[str]):
    """What the builder stores beside the examples: its spec and the names behind indices."""
    import tensorflow_datasets as tfds

    return tfds.core.MetadataDict(
        spec=spec_text(spec), prompt_types=list(prompt_types), forms=list(forms)
    )


def spec_text(spec: tuple) -> str:
    """A spec as canonical JSON; equal texts mean equal data."""
    return json.dumps(spec._asdict(), sort_keys=True)
