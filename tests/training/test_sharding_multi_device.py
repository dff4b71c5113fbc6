"""A whole GRPO step on meshes of eight forced host devices; see sharded_meshes.py."""

import pathlib

import processes
import pytest

HERE = pathlib.Path(__file__).resolve().parent


@pytest.fixture(scope="module", name="found")
def every_mesh(tmp_path_factory):
    """What sharded_meshes.py found, by mesh."""
    return processes.found(HERE / "sharded_meshes.py", tmp_path_factory.mktemp("saved"))


MESHES = ("1x1x1", "8x1x1", "2x2x2", "1x4x2")


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_samples_the_same_and_learns_the_same(found, mesh):
    """Ten steps against one device; the noise of the chain is drawn on the mesh too."""
    assert found[mesh]["tokens"]
    assert found[mesh]["loss"] <= 1e-6
    assert found[mesh]["params"] <= 1e-5
    assert found[mesh]["learned"] > 0.01


@pytest.mark.parametrize("mesh", MESHES)
def test_at_learning_rate_0_the_ratio_is_1_and_nothing_moves(found, mesh):
    assert found[mesh]["moved"] == 0
    assert found[mesh]["ratio"] <= 1e-6
    assert found[mesh]["gap"] <= 1e-5
