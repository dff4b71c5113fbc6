"""FIND and RLCM on eight forced host devices; see generators_on_eight_devices.py."""

import pathlib

import processes
import pytest

HERE = pathlib.Path(__file__).resolve().parent


@pytest.fixture(scope="module", name="found")
def both_methods():
    """What generators_on_eight_devices.py found, by method."""
    return processes.found(HERE / "generators_on_eight_devices.py")


@pytest.mark.parametrize("method", ["find", "rlcm"])
def test_eight_devices_learn_the_same(found, method):
    """One iteration, its batch split over the devices, against one device."""
    assert found[method]["split"]
    assert found[method]["apart"] <= 2e-5
    assert found[method]["moved"] > 1e-4
