"""Frozen dataclasses that are pytrees."""

import dataclasses
from typing import TypeVar

import jax

_T = TypeVar("_T")


def pytree_dataclass(cls: type[_T]) -> type[_T]:
    """Makes `cls` a frozen dataclass registered as a pytree, every field a child.

    Flattening and unflattening skip `__init__`, so that jax may put placeholders where
    arrays were (annotations are checked only where a person constructs the object).
    """
    cls = dataclasses.dataclass(frozen=True)(cls)
    names = tuple(field.name for field in dataclasses.fields(cls))

    def flatten_with_keys(value):
        children = tuple((jax.tree_util.GetAttrKey(n), getattr(value, n)) for n in names)
        return children, None

    def flatten(value):
        return tuple(getattr(value, n) for n in names), None

    def unflatten(_, children):
        value = object.__new__(cls)
        for name, child in zip(names, children):
            object.__setattr__(value, name, child)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
