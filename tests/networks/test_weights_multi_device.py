"""A load onto a mesh gives the same parameters and reads each device's part alone."""

import processes


def test_each_device_gets_its_slice(tmp_path):
    loads = processes.found("-m", "tests.networks.sharded_weights", tmp_path)
    assert len(loads) == 2
    for found in loads.values():
        assert found["equal"]
        whole = {name for name, share in found["shares"].items() if share > 0.125}
        assert whole and all("norm" in name for name in whole), whole
