"""The comparison with transformers: what it refuses. What it finds is in tests of the weights."""

import pytest

from experiments import parity
from jaxreward.training.exits import ConfigError


def test_bad_calls_are_refused_in_words(monkeypatch):
    with pytest.raises(ConfigError, match="--nonsense=1 is not a flag"):
        parity.main(["--nonsense=1"])
    monkeypatch.setattr(parity.importlib.util, "find_spec", lambda name: name != "torch" or None)
    with pytest.raises(ConfigError, match="^torch not installed"):
        parity.main([])
    monkeypatch.setattr(parity.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(ConfigError, match="--gguf=nowhere.gguf: there is no such file"):
        parity.main(["--gguf=nowhere.gguf"])
