"""The check of types at run time that `conftest.py` has put around every function of the library.

jaxtyping asks for a check each time a `def` is run, so for one inside a function at every call of
that, and beartype takes a millisecond to write one. What jaxtyping asks it about is a function
that does nothing but carry the annotations, so the check of one serves all that are alike.
"""

import beartype

beartyped = {}


def beartype_once(function):
    """`beartype.beartype(function)`, written once for all functions that differ in nothing."""
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    parts = (
        function.__module__, function.__qualname__, function.__code__,
        *function.__annotations__.items(), *map(id, defaults),
    )  # fmt: skip
    try:
        known = beartyped.get(parts)
    except TypeError:  # an annotation without a hash
        return beartype.beartype(function)
    if known is None:
        known = beartyped[parts] = beartype.beartype(function), function  # which keeps the ids
    return known[0]
