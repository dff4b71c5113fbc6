"""A file is there whole or not at all."""

import os
import stat

import pytest

from jaxreward.training import files


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    files.atomic_write(path, "old")
    with pytest.raises(RuntimeError):
        with files.atomic_path(path) as temporary:
            temporary.write_text("new, torn")
            assert temporary.suffix == ".json"
            raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_content_mode_and_digest(tmp_path):
    path = tmp_path / "a.bin"
    files.atomic_write(path, b"abc")
    files.atomic_write(path, b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(path) == expected
    assert stat.S_IMODE(path.stat().st_mode) & 0o600 == 0o600
    files.atomic_write(path, "ä")
    assert path.read_bytes() == "ä".encode()
