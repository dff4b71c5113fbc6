"""What `experiments.reliability` prints of the suite's tests."""

import subprocess
import types

import pytest

from experiments import reliability


@pytest.mark.parametrize(
    "code, said, line",
    [
        (0, "...\n==== 3 passed in 1.00s ====\n", "3 passed in 1.00s"),
        (1, "ERROR a.py::b[failed]\n== 8 errors in 654.38s ==\n", "8 errors in 654.38s"),
        (4, "", "no output"),
    ],
)
def test_one_line_whatever_happens(monkeypatch, code, said, line):
    done = types.SimpleNamespace(returncode=code, stdout=said, stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert reliability._pytest(("a.py",)) == (code == 0, line)
