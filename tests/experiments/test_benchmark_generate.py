"""The benchmark of generators under rewards, on tiny shapes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from experiments import benchmark
from experiments.benchmarks import generate, timing
from experiments.benchmarks.generator_programs import Case
from jaxreward.networks import diffusion
from jaxreward.networks.diffusion import EMPTY, Condition, DiffusionConfig

TINY = dict(height=8, features=8, layers=1, heads=2)
DIGIT = DiffusionConfig(width=8, classes=10, **TINY)
CANVAS = DiffusionConfig(width=16, vocabulary=18, prompt_length=3, **TINY)


@pytest.mark.parametrize("kind", ["transformer", "unet"])
@pytest.mark.parametrize("config", [DIGIT, CANVAS])
def test_networks_agree(kind, config):
    torch = pytest.importorskip("torch")
    from experiments.benchmarks import torch_denoisers

    network = diffusion.make_network(config, kind)
    rng = np.random.default_rng(0)
    normal = lambda shape: rng.standard_normal(shape).astype(np.float32)
    start = jax.device_get(jax.jit(network.init)(jax.random.key(0)))
    params = jax.tree.map(lambda leaf: leaf + np.float32(0.1) * normal(leaf.shape), start)
    x = normal((3, config.height, config.width, 1))
    time = np.array([0.1, 0.5, 1.0], np.float32)
    labels = np.array([0, 7, EMPTY], np.int32) if config.classes else None
    words = np.array([[0, 5, 17], [3, EMPTY, EMPTY], [EMPTY] * 3], np.int32)
    tokens = words if config.vocabulary else None
    ours = jax.jit(network.apply)(params, x, time, Condition(labels=labels, tokens=tokens))
    flat = {k: np.array(v) for k, v in flatten_dict(params, sep="/").items()}
    given = torch_denoisers.from_flax(flat, train=False)
    asked = [None if a is None else torch.from_numpy(np.array(a)) for a in (x, time, labels, tokens)]
    theirs = torch_denoisers.make_network(config._asdict(), kind)(given, *asked)
    np.testing.assert_allclose(theirs.numpy(), ours, atol=2e-5)
    for name, tensor in given.items():
        np.testing.assert_array_equal(torch_denoisers.to_flax(name, tensor), flat[name])


def test_quick(tmp_path, monkeypatch, capsys):
    """Both works run in both frameworks, agree, and compile nothing while they are timed."""
    pytest.importorskip("torch")
    tiny = {
        "rlcm": Case("RLCM, tiny", "rlcm", "transformer", DIGIT._replace(patch=8), 3, 2),
        "reno": Case("ReNO, tiny", "reno", "unet", CANVAS, 2, 2),
    }
    monkeypatch.setattr(generate, "cases", lambda: tiny)
    monkeypatch.setattr(generate, "QUICK", 2)
    assert benchmark.main(["generate", f"--workdir={tmp_path}", "--quick"]) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "generate.json").read_text())["measured"]
    for name, case in tiny.items():
        assert case.title in shown
        assert {way: len(own) for way, own in found[name]["torch"].items()} == dict.fromkeys(
            generate.WAYS[case.work], 2
        )
        assert found[name]["compiled"] == 0 and max(found[name]["worst"].values()) < 1e-3


def test_disagreement_is_refused(tmp_path):
    np.savez(tmp_path / "found.npz", loss=np.array(1.1))
    with pytest.raises(ValueError, match="loss differs by 1.0e-01; allowed is 0.0001"):
        generate._agreement({"loss": np.array(1.0)}, str(tmp_path / "found.npz"))


def test_compilations_are_counted():
    with timing.compilations() as count:
        double = jax.jit(lambda x: x * 2)
        double(jnp.ones((3,)))
        first = count[0]
        double(jnp.zeros((3,)))
    assert first >= 1 and count[0] == first
    jax.jit(lambda x: x * 3)(jnp.ones((3,)))
    assert count[0] == first


def test_ratio_has_an_interval():
    mid, low, high = timing.ratio([3.0, 4.0, 5.0], [1.0, 1.0, 1.0])
    assert mid == 4.0 and 3.0 <= low <= mid <= high <= 5.0
