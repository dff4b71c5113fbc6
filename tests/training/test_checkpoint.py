"""Checkpoints: everything comes back, a torn one is noticed, failures are heard."""

import logging
import os
import resource
import shutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.training import checkpoint, faults
from jaxreward.training.exits import CheckpointError, ConfigError


class Moments(NamedTuple):
    mean: jax.Array
    count: np.ndarray


def make_state(shift: int = 0):
    return {
        "params": {"layers": [jnp.arange(6.0).reshape(2, 3) + shift, jnp.full(3, shift)]},
        "half": jnp.full((4,), 1.5 + shift, jnp.bfloat16),
        "moments": Moments(jnp.float32(shift), np.arange(3, dtype=np.int64) + shift),
        "flag": jnp.asarray(bool(shift % 2)),
        "empty": jnp.zeros((0, 3), jnp.float32),
        "none": None,
        "key": jax.random.key(shift),
        "keys": jax.random.split(jax.random.key(shift, impl="rbg"), 3),
        "odd/name %": jnp.uint32(shift),
    }


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        assert (type(a), a.dtype, a.shape) == (type(b), b.dtype, b.shape)
        if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(a) == jax.random.key_impl(b)
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def save_steps(folder, steps=(10, 20), keep=3):
    with checkpoint.open_checkpoints(folder, keep=keep) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), {"step": step})


def restore(folder, template=None):
    with checkpoint.open_checkpoints(folder) as checkpoints:
        return checkpoints.restore_newest(make_state() if template is None else template)


def test_everything_comes_back_bit_for_bit(tmp_path):
    host = {"iterator": b"\x00\xff", "best": 0.1 + 0.2, "nested": [1, None, {"a": np.int64(3)}]}
    with checkpoint.open_checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.newest() is None
        assert checkpoints.restore_newest(make_state()) is None
        checkpoints.save(7, make_state(7), host)
        checkpoints.wait()
        assert checkpoints.newest() == 7
    restored = restore(tmp_path / "c")
    assert restored.step == 7
    assert_same(restored.state, make_state(7))
    expected = {"iterator": b"\x00\xff", "best": 0.1 + 0.2, "nested": [1, None, {"a": 3}]}
    assert restored.host == expected
    continued = jax.random.normal(restored.state["key"], (4,))
    np.testing.assert_array_equal(continued, jax.random.normal(jax.random.key(7), (4,)))


def test_abstract_template_and_reading_without_one(tmp_path):
    save_steps(tmp_path, (5,))
    state = make_state()
    state["moments"] = Moments(jnp.float32(0), jnp.zeros(3, jnp.int32))
    with checkpoint.open_checkpoints(tmp_path / "b") as checkpoints:
        checkpoints.save(1, state, None)
        checkpoints.wait()
        abstract = jax.eval_shape(lambda: state)
        assert_same(checkpoints.restore_newest(abstract).state, state)
    read = checkpoint.read_newest(tmp_path)
    assert read.step == 5
    np.testing.assert_array_equal(read.state["params/layers/0"], np.arange(6.0).reshape(2, 3) + 5)
    np.testing.assert_array_equal(read.state["key"], jax.random.key_data(jax.random.key(5)))
    assert read.state["empty"].shape == (0, 3)


def test_a_save_keeps_what_it_was_given_when_the_next_step_reuses_the_memory(tmp_path):
    step = jax.jit(lambda s: s * 0 - 1, donate_argnums=0)
    mutable = np.arange(1000)
    state = {"big": jnp.arange(4e6, dtype=jnp.float32), "host": mutable}
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, None)
        step(state["big"]).block_until_ready()
        mutable[:] = -1
    read = checkpoint.read_newest(tmp_path)
    np.testing.assert_array_equal(read.state["big"], np.arange(4e6, dtype=np.float32))
    np.testing.assert_array_equal(read.state["host"], np.arange(1000))


def test_only_the_newest_are_kept(tmp_path):
    save_steps(tmp_path, (1, 2, 3, 4, 5), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "5"]
    with pytest.raises(ConfigError, match="keep = 1; allowed is >= 2"):
        with checkpoint.open_checkpoints(tmp_path, keep=1):
            pass


def files_of_a_step(folder):
    """One of every kind of file of a step; the names of data files are random."""
    save_steps(folder)
    return sorted(str(p.relative_to(folder / "20")) for p in faults.files_in(folder / "20"))


def test_damage_to_any_file_of_the_newest_step_falls_back(tmp_path, caplog):
    names = files_of_a_step(tmp_path / "whole")
    assert len(names) >= 10 and "manifest.json" in names
    for number, name in enumerate(names):
        # Deciding is a matter of bytes; loading what was decided for is slow, so every kind
        # of damage is loaded for some file and detected for all.
        for kind in faults.DAMAGES:
            copy = tmp_path / f"{number}-{kind}"
            shutil.copytree(tmp_path / "whole", copy)
            faults.damage(copy / "20" / name, kind)
            assert checkpoint.find_damage(copy / "20"), (name, kind)
            assert checkpoint.find_damage(copy / "10") is None
        kind = faults.DAMAGES[number % len(faults.DAMAGES)]
        caplog.clear()
        restored = restore(tmp_path / f"{number}-{kind}")
        assert restored.step == 10
        assert restored.host == {"step": 10}
        assert "checkpoint 20" in caplog.text and "not used" in caplog.text
        assert (tmp_path / f"{number}-{kind}" / "torn-20").is_dir()


def test_after_falling_back_the_torn_step_is_written_anew(tmp_path):
    save_steps(tmp_path)
    faults.damage(max(faults.files_in(tmp_path / "20"), key=os.path.getsize), "zero")
    with checkpoint.open_checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(make_state()).step == 10
        checkpoints.save(20, make_state(21), None)
    restored = restore(tmp_path)
    assert restored.step == 20
    assert_same(restored.state, make_state(21))


def test_when_none_can_be_read_nothing_is_touched(tmp_path):
    save_steps(tmp_path)
    for step in ("10", "20"):
        faults.damage(max(faults.files_in(tmp_path / step), key=os.path.getsize), "flip")
    before = faults.fingerprint_files(tmp_path)
    with pytest.raises(CheckpointError, match="none of the checkpoints .* can be read.*20: .*10:"):
        restore(tmp_path)
    assert faults.fingerprint_files(tmp_path) == before
    assert CheckpointError.exit_code == 4


def test_a_step_never_sealed_is_the_last_resort(tmp_path, caplog):
    save_steps(tmp_path)
    (tmp_path / "20" / "manifest.json").unlink()
    (tmp_path / "10" / "manifest.json").unlink()
    restored = restore(tmp_path)
    assert restored.step == 20
    assert "unverified" in caplog.text


def test_leftovers_of_a_killed_save_are_ignored_and_removed(tmp_path, caplog):
    save_steps(tmp_path)
    torn = tmp_path / "30.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "20", torn)
    with caplog.at_level(logging.WARNING, "jaxreward"):
        assert restore(tmp_path).step == 20
    assert not torn.exists()
    assert "not used" not in caplog.text


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s | {"half": jnp.zeros((4,))}, r"half is bfloat16\[4\] there and float32\[4\]"),
        (lambda s: s | {"half": jnp.zeros((5,), jnp.bfloat16)}, r"bfloat16\[4\] .*bfloat16\[5\]"),
        (lambda s: s | {"extra": jnp.zeros(2)}, r"extra is absent there and float32\[2\] here"),
        (lambda s: {k: v for k, v in s.items() if k != "flag"}, r"flag is bool\[\] there and abs"),
        (lambda s: s | {"key": jax.random.key(0, impl="rbg")}, r"key is key<fry>.*key<rbg>"),
    ],
)
def test_a_state_of_another_shape_is_refused_by_path(tmp_path, change, message):
    save_steps(tmp_path, (10,))
    before = faults.fingerprint_files(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        restore(tmp_path, change(make_state()))
    assert faults.fingerprint_files(tmp_path) == before


@pytest.mark.parametrize(
    "state, host, message",
    [
        ({"a": {"b": 1.0}}, None, "leaf a/b of the state is 1.0, a float"),
        ({"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)}, None, "two leaves .* called a/b"),
        ({"a": jnp.ones(1)}, {"x": [{1, 2}]}, r"host/x/0 = \{1, 2\} cannot be saved"),
        ({"a": jnp.ones(1)}, {1: 2}, r"host = \{1: 2\} cannot be saved"),
    ],
)
def test_what_cannot_be_saved_is_named(tmp_path, state, host, message):
    with checkpoint.open_checkpoints(tmp_path / "c") as checkpoints:
        with pytest.raises(CheckpointError, match=message):
            checkpoints.save(1, state, host)
    assert not (tmp_path / "c").exists()


def test_a_full_disk_is_heard_at_the_next_save_and_spares_the_last_step(tmp_path):
    big = {"x": jax.random.normal(jax.random.key(0), (100_000,))}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(CheckpointError, match="cannot write .*step 1 is whole"):
        with checkpoint.open_checkpoints(tmp_path) as checkpoints:
            checkpoints.save(1, big, None)
            checkpoints.wait()
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
            try:
                checkpoints.save(2, big, None)
                checkpoints.save(3, big, None)
                pytest.fail("the failed save went unnoticed")
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert restore(tmp_path, big).step == 1


def test_a_folder_that_cannot_be_written_is_heard(tmp_path):
    if os.geteuid() == 0:  # permissions do not stop root: a file in the way does
        (tmp_path / "c").write_text("")
    else:
        (tmp_path / "c").mkdir(mode=0o555)
    with pytest.raises(CheckpointError, match="cannot write .*there is no older one"):
        with checkpoint.open_checkpoints(tmp_path / "c") as checkpoints:
            checkpoints.save(1, make_state(), None)
            checkpoints.wait()


def test_an_existing_step_is_not_overwritten(tmp_path):
    save_steps(tmp_path, (10,))
    before = faults.fingerprint_files(tmp_path)
    with pytest.raises(CheckpointError, match="cannot write checkpoint 10"):
        save_steps(tmp_path, (10,))
    assert faults.fingerprint_files(tmp_path) == before
