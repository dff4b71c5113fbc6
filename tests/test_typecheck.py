"""The check that is written once for functions that are alike still tells what is wrong."""

import beartype
import pytest
from typecheck import beartype_once


def checked(annotation, default=None):
    """A function of which there is one more with every call."""

    def take(x: annotation, other=default) -> annotation:
        return x

    return beartype_once(take)


def test_functions_that_are_alike_share_a_check_that_can_fail():
    first, second = checked(int), checked(int)
    assert first is second
    for function in (first, checked(list[int]), checked(str)):
        with pytest.raises(beartype.roar.BeartypeCallHintViolation):
            function(1.5)
    assert checked(str)("x") == "x" and first(1) == 1


def test_other_annotations_and_defaults_have_checks_of_their_own():
    made = [checked(int), checked(float), checked(int, 1), checked(int, "1")]
    assert len(set(made)) == 4
    with pytest.raises(beartype.roar.BeartypeCallHintViolation):
        made[1](1)
