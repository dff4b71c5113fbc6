from fractions import Fraction

import numpy as np
import pytest

from jaxreward.tasks import records
from jaxreward.tasks.records import Example

EXAMPLE = Example(
    id=3, prompt_type=1, form=0, steps=1, expression="1/3-1/2", prompt="1/3-1/2=", worked="-1/6",
    **records.exact_value(Fraction(-1, 6)),
)


def stored(**changes) -> dict:
    """The record as it comes back from disk."""
    record = {}
    for name, value in EXAMPLE._asdict().items():
        record[name] = value.encode() if isinstance(value, str) else np.int64(value)
    return {**record, "value": np.array([EXAMPLE.value]), **changes}


def test_values_are_exact():
    huge = Fraction(10**40 + 1, 7)
    value = records.exact_value(huge)
    assert Fraction(int(value["numerator"]), int(value["denominator"])) == huge
    assert records.exact_value(Fraction(-8, 2))["answer"] == "-4"
    assert records.exact_value(Fraction(10, -12))["answer"] == "-5/6"


def test_round_trip():
    assert records.from_record(stored()) == EXAMPLE
    assert records.to_record(EXAMPLE)["value"].dtype == np.float64


def test_spec_text_tells_specs_apart():
    from jaxreward.tasks.arithmetic import ExpressionSpec

    spec = ExpressionSpec()
    assert records.spec_text(spec) == records.spec_text(ExpressionSpec())
    assert records.spec_text(spec) != records.spec_text(spec._replace(seed=1))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"id": np.float32(3)}, "'id' has dtype float32"),
        ({"steps": np.array([1, 2])}, r"'steps' has dtype int64 and shape \(2,\)"),
        ({"prompt": 7}, "'prompt' has dtype int64"),
        ({"value": np.array([1])}, "'value' has dtype int64"),
    ],
)
def test_wrong_dtype_or_shape(changes, message):
    with pytest.raises(ValueError, match=message):
        records.from_record(stored(**changes))


def test_missing_field():
    record = stored()
    del record["answer"]
    with pytest.raises(ValueError, match="no field 'answer'"):
        records.from_record(record)
