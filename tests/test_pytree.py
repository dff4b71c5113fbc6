"""Tests of jaxreward.pytree: frozen dataclasses that are pytrees."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Float

from jaxreward.channel import Channel, binary
from jaxreward.pytree import pytree_dataclass
from jaxreward.types import Signal, make_signal


@pytree_dataclass
class Pair:
    """Two leaves and a default."""

    first: Any
    second: Any = None
    third: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def total(self):
        return self.first + self.second


PAIR = Pair(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]), {"b": jnp.ones(3), "a": jnp.zeros(())})


def test_it_is_a_frozen_dataclass():
    assert dataclasses.is_dataclass(Pair) and Pair(1) == Pair(1, None, {})
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAIR.first = 0
    with pytest.raises(TypeError, match="first"):
        Pair()
    assert Pair(1).third is not Pair(1).third  # each has its own default
    assert dataclasses.replace(Pair(1, 2), second=5) == Pair(1, 5)


def test_leaves_come_in_the_order_of_the_fields():
    leaves = jax.tree.leaves(PAIR)
    assert [leaf.shape for leaf in leaves] == [(2,), (2,), (), (3,)]  # a dict by sorted key
    assert jax.tree.leaves(Pair(None, None)) == []


def test_paths_are_named_after_the_fields():
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(PAIR)]
    assert paths == [".first", ".second", ".third['a']", ".third['b']"]
    channel = jax.tree.leaves_with_path(make_signal(jnp.zeros((1, 2))).replace(rates=binary(0, 0)))
    assert ".rates.matrix" in [jax.tree_util.keystr(path) for path, _ in channel]


def test_a_round_trip_gives_the_same():
    leaves, structure = jax.tree.flatten(PAIR)
    back = jax.tree.unflatten(structure, leaves)
    assert type(back) is Pair and back.first is PAIR.first and back.third["b"] is leaves[3]
    assert jax.tree.structure(back) == structure
    assert jax.tree.structure(Pair(1, None)) != jax.tree.structure(Pair(1, 2))


def test_map_keeps_the_class_and_its_properties():
    doubled = jax.tree.map(lambda leaf: 2 * leaf, PAIR)
    np.testing.assert_array_equal(doubled.total, [8, 12])
    added = jax.tree.map(jnp.add, PAIR, doubled)
    np.testing.assert_array_equal(added.first, [3, 6])
    with pytest.raises(ValueError):
        jax.tree.map(jnp.add, PAIR, Pair(PAIR.first, PAIR.second))


def test_classes_are_told_apart():
    @pytree_dataclass
    class Other:
        first: Any
        second: Any = None

    assert jax.tree.structure(Other(1, 2)) != jax.tree.structure(Pair(1, 2))


def test_placeholders_are_not_checked_but_a_person_is():
    """jax rebuilds with `None`, objects, booleans; annotations hold where one constructs."""
    channel = binary(0.1, 0.2)
    structure = jax.tree.structure(channel)
    for placeholder in (object(), None, True, jax.ShapeDtypeStruct((2, 2), jnp.float32)):
        assert jax.tree.unflatten(structure, [placeholder]).matrix is placeholder
    with pytest.raises(Exception, match="matrix"):
        Channel(jnp.zeros((2, 3), jnp.int32))
    with pytest.raises(Exception, match="mask"):
        Signal(rewards=jnp.zeros((2, 3)), mask=jnp.zeros((2, 4), bool))


def test_under_jit_vmap_scan_and_grad():
    compiled = jax.jit(lambda pair: Pair(pair.total, pair.first))(PAIR)
    assert type(compiled) is Pair and compiled.third == {}
    np.testing.assert_array_equal(compiled.first, [4, 6])

    axes = Pair(0, None, {"a": None, "b": None})
    mapped = jax.vmap(lambda pair: pair.first + pair.second, in_axes=(axes,))(PAIR)
    np.testing.assert_array_equal(mapped, [[4, 5], [5, 6]])

    step = lambda pair, _: (Pair(pair.total, pair.first), pair.first[0])
    last, seen = jax.lax.scan(step, Pair(PAIR.first, PAIR.second), None, length=3)
    np.testing.assert_array_equal(seen, [1, 4, 5])
    np.testing.assert_array_equal(last.first, [9, 14])

    grad = jax.grad(lambda pair: jnp.sum(pair.first * pair.second))(Pair(PAIR.first, PAIR.second))
    np.testing.assert_array_equal(grad.first, PAIR.second)


def test_it_is_compiled_once_for_values_of_one_form():
    traces = []

    @jax.jit
    def add(pair):
        traces.append(pair)
        return pair.total

    for value in (1.0, 2.0):
        add(Pair(jnp.full(2, value), jnp.ones(2)))
    assert len(traces) == 1
    add(Pair(jnp.ones(3), jnp.ones(3)))
    assert len(traces) == 2


def test_annotated_fields_work_alike():
    @pytree_dataclass
    class Typed:
        values: Float[Array, "N"]

    doubled = jax.jit(lambda typed: Typed(2 * typed.values))(Typed(jnp.ones(3)))
    np.testing.assert_array_equal(doubled.values, [2, 2, 2])
    many = jax.vmap(Typed)(jnp.ones((4, 3)))  # now [4, 3] inside; nothing is checked again
    assert many.values.shape == (4, 3)
